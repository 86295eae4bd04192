#!/usr/bin/env python3
"""A RabbitMQ broker of one's own, for tests, demo and benchmark.

As a library::

    with PrivateBroker() as broker:
        print(broker.url("fastmsg"))

    with PrivateCluster() as cluster:  # three nodes, one of which may be killed
        print(cluster.url("fastmsg"))
        cluster.nodes[0].kill()

As a command, until SIGTERM or Ctrl-C: ``python tools/private_broker.py``
prints the URL in one line when the broker is ready.

The node is made of Debian's rabbitmq-server, but shares nothing with the
system's: own Erlang port mapper, ports, cookie, home and data, all of it on
127.0.0.1 and in one temporary directory. It works as root and as anybody.

The environment names another RabbitMQ and how it is configured:
FASTMSG_RABBITMQ_ROOT
    a root directory with another Debian and its rabbitmq-server in it
    (``tools/make_rabbitmq_root.sh``). Everything of the node runs in there, and
    has its files in its ``/tmp``.
FASTMSG_RABBITMQ_STRICT
    not empty: the node denies queues that are neither durable nor exclusive, as
    RabbitMQ does by default from 4.3 on.

Every process is ended by its id; if this process dies without doing so,
a small shell that waits for that (the keeper) does it.

Only the standard library is used, so that any interpreter will do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from broker_console import Console, quote
from broker_home import (
    HOST,
    ROOT_VARIABLE,
    STARTUP_S,
    USER,
    BrokerError,
    Home,
    free_port,
    home_folder,
    make_certificates,
    rabbitmq_version,
    wait_until,
)

__all__ = [
    "ROOT_VARIABLE",
    "STRICT",
    "STRICT_VARIABLE",
    "BrokerError",
    "NamedBroker",
    "PrivateBroker",
    "PrivateCluster",
    "broker_from_environment",
    "free_port",
    "home_folder",
    "rabbitmq_version",
]

STRICT_VARIABLE = "FASTMSG_RABBITMQ_STRICT"
STRICT = "deprecated_features.permit.transient_nonexcl_queues = false\n"
# The port mapper is ours, and Erlang's own ports are nobody else's business.
ERL_ARGS = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"

# In the node's log. Up to RabbitMQ 3 the connection's pid precedes its name, which is
# in brackets then.
_LOGIN = re.compile(
    r"^.*? connection (?:\S+ (\())?\S+ -> \S+?(?: - (.*?))?(?(1)\)): user '[^']*' authe",
    re.MULTILINE,
)


def _new_name() -> str:
    return f"fm{secrets.token_hex(4)}@localhost"


class NamedBroker:
    """A broker that somebody else runs, named by its transport URL."""

    def __init__(self, url: str) -> None:
        """:param url: ``scheme://user:password@host:port/vhost?query``."""
        self._parts = urllib.parse.urlsplit(url)

    def url(self, scheme: str = "rabbit", **query: object) -> str:
        """Give the transport URL with another scheme and more options."""
        pairs = urllib.parse.parse_qsl(self._parts.query)
        pairs += [(key, str(value)) for key, value in query.items()]
        return urllib.parse.urlunsplit(
            self._parts._replace(scheme=scheme, query=urllib.parse.urlencode(pairs))
        )

    def __enter__(self) -> NamedBroker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def broker_from_environment() -> NamedBroker | PrivateBroker:
    """Give the broker of ``TRANSPORT_URL`` or else a new private one.

    Both are context managers with ``url(scheme, **query)``; only a private
    one can be asked about its queues and told to stop.
    """
    url = os.environ.get("TRANSPORT_URL")
    return NamedBroker(url) if url else PrivateBroker()


class PrivateBroker(Console):
    """One RabbitMQ node. Threads may ask it at once, one may steer it."""

    user = USER
    password = "guest"
    host = HOST

    def __init__(
        self,
        *,
        config: str = "",
        virtual_host: str = "/",
        tls: bool = False,
        plugins: Sequence[str] = (),
        _home: Home | None = None,
        _name: str | None = None,
    ) -> None:
        """Start nothing yet.

        :param config: more lines for the node's ``rabbitmq.conf``.
        :param virtual_host: what :meth:`url` names; made if it is not ``/``.
        :param tls: listen for TLS as well, see :meth:`tls_url`; needs the
            command openssl.
        :param plugins: of RabbitMQ's own, to be enabled.
        """
        super().__init__()
        self.virtual_host = virtual_host
        self.port = 0
        self.name = ""
        self.pid = 0
        self.tls_port = 0
        self._config = config
        if os.environ.get(STRICT_VARIABLE) and STRICT not in config:
            self._config += STRICT
        self._has_tls = tls
        self._plugins = tuple(plugins)
        self._home = _home
        self._fixed_name = _name
        self._is_open = False
        self._is_paused = False
        self._node: subprocess.Popen[bytes] | None = None
        self._dist_port = 0

    def __enter__(self) -> PrivateBroker:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<PrivateBroker {self.name or 'not started'}, port {self.port}>"

    # --- life ---

    def start(self) -> None:
        """Start the node and wait until it is ready.

        Started again after :meth:`halt` or :meth:`kill`, it has the same
        ports and data, but is not strict any more.
        """
        if self._node is not None:
            return
        if self._home is None:
            self._home = Home()
        try:
            if not self._is_open:
                self._is_open = True
                self._home.open()
            if self.name:
                self._permit_all()
                self._boot()
                return
            # Somebody may take a port between our look and RabbitMQ's bind.
            for attempt in (1, 2, 3):
                self._choose_names()
                try:
                    self._boot()
                    break
                except BrokerError as error:
                    if attempt == 3 or "eaddrinuse" not in str(error):
                        raise
            if self.virtual_host != "/":
                self.add_vhost(self.virtual_host)
        except BaseException:
            self.stop()
            raise

    def _permit_all(self) -> None:
        """Be not strict: RabbitMQ 4.0 looks for transient queues as it starts, before
        it can look, and ends. Only a new node has no need to."""
        config = self._data / "rabbitmq.conf"
        config.write_text(config.read_text().replace(STRICT, ""))

    def _choose_names(self) -> None:
        assert self._home is not None
        self.name = self._fixed_name or _new_name()
        self.port = free_port()
        self._dist_port = free_port()
        self._data = self._home.path / self.name
        (self._data / "log").mkdir(parents=True, exist_ok=True)
        (self._data / "environment.conf").touch()
        enabled = ",".join(self._plugins)
        (self._data / "enabled_plugins").write_text(f"[{enabled}].\n")
        (self._data / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            "loopback_users = none\n"
            "disk_free_limit.absolute = 1MB\n"
            "log.file = rabbit.log\n"
            "log.file.level = info\n"
            "log.console = false\n"
            + self._root_config()
            + self._config
            + self._tls_config()
        )

    def _root_config(self) -> str:
        assert self._home is not None
        if self._home.root is None:
            return ""
        # There is no /proc to find it in.
        return (
            "vm_memory_calculation_strategy = allocated\n"
            "total_memory_available_override_value = 2GB\n"
        )

    def _tls_config(self) -> str:
        if not self._has_tls:
            return ""
        self.tls_port = free_port()
        make_certificates(self._data)
        return (
            f"listeners.ssl.1 = {HOST}:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self._inside(Path(self.ca_file))}\n"
            f"ssl_options.certfile = {self._inside(self._data / 'server.pem')}\n"
            f"ssl_options.keyfile = {self._inside(self._data / 'server.key')}\n"
        )

    def _environment(self) -> dict[str, str]:
        data = PurePosixPath(self._inside(self._data))
        return {
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_PID_FILE": str(data / "pid"),
            # Without these, those of the system's broker would be read.
            "RABBITMQ_CONF_ENV_FILE": str(data / "environment.conf"),
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(data / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "generated"),
            "RABBITMQ_SCHEMA_DIR": str(data / "schema"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            # Two schedulers that do not spin and are bound to no core: it is
            # to share the machine with what is tested.
            "RABBITMQ_SERVER_ERL_ARGS": "+P 65536 +t 1048576 +stbt u +S 2:2 +A 4 "
            "+zdbbl 32000 +sbwt none +sbwtdcpu none +sbwtdio none",
            # With input allowed the script becomes the node instead of
            # starting it, so its pid is the node's; -noinput has it all the
            # same.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-noinput {ERL_ARGS}",
            "RABBITMQ_CTL_ERL_ARGS": ERL_ARGS,
        }

    def _boot(self) -> None:
        assert self._home is not None
        command = [os.path.join(self._home.scripts, "rabbitmq-server")]
        self._node = self._home.spawn(self.name, command, self._environment())
        self.pid = self._node.pid
        wait_until(self._is_ready, STARTUP_S, "start of RabbitMQ")

    def _is_ready(self) -> bool:
        """Tell whether the node says so itself; waits if it is just starting."""
        assert self._node is not None
        if self._node.poll() is not None:
            status, self._node = self._node.returncode, None
            raise BrokerError(f"RabbitMQ ended with status {status}:\n{self.log()}")
        with socket.socket() as probe:
            probe.settimeout(1)  # for somebody with a full backlog
            if probe.connect_ex((HOST, self.port)) != 0:
                time.sleep(0.05)  # between two looks at a process that starts
                return False
        # The listener is up before the node is, and may be somebody else's.
        try:
            return self.evaluate("rabbit:await_startup(node(), false, 60000)") == "ok"
        except BrokerError:
            # Too early, or it has just ended, of which the next look tells.
            time.sleep(0.05)
            return False

    def halt(self) -> None:
        """Stop the node as an operator does; data and name stay."""
        if self._node is None:
            return
        assert self._home is not None
        self.resume()
        self._node.terminate()  # the node's own orderly way out
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._node.wait(30)
        self.kill()

    def kill(self) -> None:
        """End the node at once, as a power failure would; data stay."""
        if self._node is not None:
            assert self._home is not None
            self._home.end(self.name, self._node)
            self._node = None
            self._is_paused = False
            self.pid = 0

    def restart(self) -> None:
        """Halt and start: durable things are still there."""
        self.halt()
        self.start()

    def stop(self) -> None:
        """End the node and remove what it left. Twice is allowed.

        A forked child that comes here, say while it unwinds its stack,
        leaves the parent's broker alone.
        """
        if not self._is_open or self._home is None:
            return
        if self._home.owner_pid != os.getpid():
            return
        self.kill()
        self._is_open = False
        home, self._home = self._home, None
        home.close()
        self.name = ""

    def pause(self) -> None:
        """Stop the node's process (SIGSTOP): connections stay, answers end."""
        if self._node is not None:
            self._node.send_signal(signal.SIGSTOP)
            self._is_paused = True

    def resume(self) -> None:
        """Let the node's process go on (SIGCONT)."""
        if self._node is not None:
            self._node.send_signal(signal.SIGCONT)
            self._is_paused = False

    def answers(self) -> bool:
        """Tell whether the node runs: neither ended nor paused."""
        return self._node is not None and not self._is_paused

    # --- addresses ---

    def url(self, scheme: str = "rabbit", **query: object) -> str:
        """Give the transport URL.

        :param query: options for the URL, for example ``heartbeat_rate=3``.
        """
        host = f"{self.user}:{self.password}@{self.host}:{self.port}"
        vhost = urllib.parse.quote(self.virtual_host, safe="")
        if self.virtual_host == "/":
            vhost = ""
        text = f"{scheme}://{host}/{vhost}"
        return f"{text}?{urllib.parse.urlencode(query)}" if query else text

    @property
    def ca_file(self) -> str:
        """The CA of the node's certificate, with ``tls``; readable while it runs."""
        return str(self._data / "ca.pem")

    @property
    def client_files(self) -> dict[str, str]:
        """The options that name the certificate and key of the user guest."""
        return {
            "ssl_cert_file": str(self._data / "client.pem"),
            "ssl_key_file": str(self._data / "client.key"),
        }

    def tls_url(self, scheme: str = "rabbit", **query: object) -> str:
        """Give the transport URL of the port that speaks TLS."""
        assert self._has_tls
        url = self.url(scheme, ssl="true", ssl_ca_file=self.ca_file, **query)
        return url.replace(f":{self.port}/", f":{self.tls_port}/", 1)

    def whole_log(self) -> str:
        """Give everything that the node has logged, so that a test can look
        at what came since."""
        files = sorted((self._data / "log").glob("*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def log(self, lines_per_file: int = 25) -> str:
        """Give the last lines of what the node wrote."""
        assert self._home is not None
        lines = self._home.tail(self.name).splitlines()
        for file in sorted((self._data / "log").glob("*.log")):
            text = file.read_text(errors="replace")
            lines += text.splitlines()[-lines_per_file:]
        return "\n".join(lines)

    def logins(self) -> list[str]:
        """Tell the name, as its client gave it, of each connection that ever
        logged in; complete once the node has been halted."""
        found = []
        for file in sorted((self._data / "log").glob("*.log")):
            text = file.read_text(errors="replace")
            found += [name for _, name in _LOGIN.findall(text)]
        return found


class PrivateCluster:
    """Several nodes joined to one cluster, in one home.

    A node is killed, halted, started again, paused and resumed by its own
    methods; the others go on as long as more than half of them are left.
    Questions about the cluster as a whole go to any node that answers.
    """

    user = PrivateBroker.user
    password = PrivateBroker.password
    virtual_host = "/"

    def __init__(self, size: int = 3, *, config: str = "") -> None:
        """Start nothing yet.

        :param config: more lines for each node's ``rabbitmq.conf``.
        """
        self.nodes: list[PrivateBroker] = []
        self._size = size
        self._config = config

    def __enter__(self) -> PrivateCluster:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --- life ---

    def start(self) -> None:
        """Start all nodes at once and wait until they are one cluster."""
        home = Home()
        names = [_new_name() for _ in range(self._size)]
        # A node that was cut off must not go on by itself, or what it knows
        # differs from the others' for good.
        config = (
            "cluster_partition_handling = pause_minority\n"
            "cluster_formation.peer_discovery_backend = classic_config\n"
        )
        for number, name in enumerate(names, 1):
            config += f"cluster_formation.classic_config.nodes.{number} = {name}\n"
        self.nodes = [
            PrivateBroker(config=config + self._config, _home=home, _name=name)
            for name in names
        ]
        try:
            self._start(self.nodes)
        except BaseException:
            self.stop()
            raise

    def _start(self, nodes: list[PrivateBroker]) -> None:
        with ThreadPoolExecutor(self._size) as pool:
            for done in [pool.submit(node.start) for node in nodes]:
                done.result()
        self.wait_until_whole()

    def stop(self) -> None:
        """End all nodes and remove what they left. Twice is allowed."""
        for node in self.nodes:
            node.stop()

    def wait_until_whole(self, timeout: float = STARTUP_S) -> None:
        """Wait until the nodes that run know each other, and no others, and
        each quorum queue has a leader and a member on each of its nodes that
        run: until the next one may fail."""
        running = self.running()
        names = sorted(node.name for node in running)

        def is_whole() -> bool:
            try:
                if any(sorted(node.known()) != names for node in running):
                    return False
                queues = self.quorum_queues()
            except BrokerError:  # a node that was cut off restarts itself
                return False
            return all(
                queue["leader"] in names
                and set(queue["online"]) == set(queue["members"]) & set(names)
                for queue in queues
            )

        wait_until(is_whole, timeout, f"a cluster of {', '.join(names)}")

    # --- nodes ---

    def running(self) -> list[PrivateBroker]:
        """Give the nodes that run: neither ended nor paused."""
        return [node for node in self.nodes if node.answers()]

    def any(self) -> PrivateBroker:
        """Give a node that runs, to ask it about the cluster."""
        return self.running()[0]

    def node(self, name: str) -> PrivateBroker:
        """Give the node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def restore(self) -> None:
        """Start again what was ended, resume what was paused, and wait."""
        for node in self.nodes:
            if not node.answers():
                node.resume()
        self._start([node for node in self.nodes if not node.answers()])

    def reset(self) -> None:
        """Restore all nodes, and empty the cluster, as between two tests."""
        self.restore()
        self.any().reset()

    # --- questions ---

    def url(self, scheme: str = "rabbit", **query: object) -> str:
        """Give the transport URL, which has all nodes in it."""
        hosts = ",".join(
            f"{self.user}:{self.password}@{node.host}:{node.port}"
            for node in self.nodes
        )
        text = f"{scheme}://{hosts}/"
        return f"{text}?{urllib.parse.urlencode(query)}" if query else text

    def connections(self) -> list[dict[str, Any]]:
        """Tell what :meth:`PrivateBroker.connections` does, of all nodes."""
        return self.any().connections()

    def consumers(self) -> list[dict[str, Any]]:
        """Tell what :meth:`PrivateBroker.consumers` does, of all nodes."""
        return self.any().consumers()

    def quorum_queues(self) -> list[dict[str, Any]]:
        """Tell each quorum queue's name, leader, members (nodes that should
        have it) and online (those where its process runs)."""
        rows = self.any().query(
            "[[{name, N} | rabbit_quorum_queue:info(Q, [leader, members, online])]"
            f" || Q <- rabbit_amqqueue:list({quote(self.virtual_host)}),"
            " N <- [amqqueue:get_name(Q)], amqqueue:get_type(Q) =:= rabbit_quorum_queue]"
        )
        return list(rows)

    def homes(self) -> dict[str, str]:
        """Tell the node of each queue, its leader's for a quorum queue; those
        whose node does not run are told as well."""
        vhost = quote(self.virtual_host)
        rows = self.any().query(
            "[[{name, amqqueue:get_name(Q)}, {home, amqqueue:qnode(Q)}]"
            f" || Q <- rabbit_amqqueue:list({vhost})"
            f" ++ rabbit_amqqueue:list_down({vhost})]"
        )
        return {row["name"]: row["home"] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run a RabbitMQ broker of one's own until SIGTERM or Ctrl-C."
    )
    parser.add_argument("--scheme", default="rabbit", help="of the URL that is printed")
    scheme = parser.parse_args().scheme
    ends = (signal.SIGTERM, signal.SIGINT)
    # By way of an exception, so that a node that is just starting ends too.
    for number in ends:
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with PrivateBroker() as broker:
            # Not signal.pause(), which sleeps through one that came just before it.
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            print(broker.url(scheme), flush=True)
            signal.sigwait(ends)
            return 0
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
