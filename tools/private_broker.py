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
import glob
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "BrokerError",
    "NamedBroker",
    "PrivateBroker",
    "PrivateCluster",
    "broker_from_environment",
    "free_port",
    "rabbitmq_version",
]

USER = "guest"
HOST = "127.0.0.1"
SCRIPTS = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
# The port mapper is ours, and Erlang's own ports are nobody else's business.
ERL_ARGS = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
STARTUP_S = 120.0
COMMAND_S = 60.0

ROOT_VARIABLE = "FASTMSG_RABBITMQ_ROOT"
STRICT_VARIABLE = "FASTMSG_RABBITMQ_STRICT"
STRICT = "deprecated_features.permit.transient_nonexcl_queues = false\n"
PATH_IN_ROOT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Ends every process group whose id is in a *.pid file, then the directory,
# when its standard input ends: when the process that made it is gone.
KEEPER = """
trap '' INT TERM HUP
cat >/dev/null
for file in "$1"/*.pid; do
    test -s "$file" && kill -s KILL -- "-$(cat "$file")" 2>/dev/null
done
while ! rm -rf "$1" 2>/dev/null && test -e "$1"; do :; done
"""

# What the node is asked for, in Erlang. erl_call evaluates it in the node
# itself, some 20 ms, where rabbitmqctl starts a virtual machine first, 1 s.
TO_JSON = """
To = fun F(V) when is_boolean(V); is_number(V); is_binary(V) -> V;
         F(V) when is_atom(V) -> atom_to_binary(V, utf8);
         F(V) when is_pid(V) -> list_to_binary(pid_to_list(V));
         F({resource, _, _, Name}) -> Name;
         F({table, V}) -> F(V);
         F([{K, T, _} | _] = L) when is_binary(K), is_atom(T) ->
             maps:from_list([{Key, F(V)} || {Key, _, V} <- L]);
         F([{K, _} | _] = L) when is_atom(K) ->
             maps:from_list([{Key, F(V)} || {Key, V} <- L]);
         F(V) when is_list(V) -> [F(E) || E <- V];
         F(V) when is_map(V) -> maps:map(fun(_, E) -> F(E) end, V);
         F(V) -> list_to_binary(io_lib:format("~p", [V]))
     end,
"""


class BrokerError(Exception):
    """The broker could not be started, or did not do what it was asked."""


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on.

    From below the range that the kernel gives to clients, so that no
    connection takes it before its server does.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def _root() -> Path | None:
    """Where the RabbitMQ is that is to be used; None: in this system."""
    name = os.environ.get(ROOT_VARIABLE)
    return Path(name).resolve() if name else None


def _scripts(root: Path | None) -> str:
    """Give the directory of RabbitMQ's commands, as seen from within the root."""
    found = sorted(glob.glob(f"{root or ''}{SCRIPTS}"))
    if root is not None:
        if not found or not (root / "usr/bin/erl_call").exists():
            raise BrokerError(f"no RabbitMQ in {root}: tools/make_rabbitmq_root.sh")
        return found[-1].removeprefix(str(root))
    if not found or shutil.which("erl") is None or shutil.which("erl_call") is None:
        raise BrokerError("no RabbitMQ here: apt install rabbitmq-server")
    return found[-1]


def rabbitmq_version() -> tuple[int, ...]:
    """Tell the version of the RabbitMQ that is used, by its directory."""
    folder = Path(_scripts(_root())).parent.name
    return tuple(int(part) for part in re.findall(r"\d+", folder.partition("-")[2]))


def home_folder() -> Path:
    """Tell where nodes have their directories."""
    root = _root()
    return root / "tmp" if root is not None else Path(tempfile.gettempdir())


def _new_name() -> str:
    return f"fm{secrets.token_hex(4)}@localhost"


def _make_certificates(folder: Path) -> None:
    """Make a CA (``ca.pem``) and what it has signed: for 127.0.0.1 (``server.pem``
    and ``.key``), and for the user guest (``client.pem`` and ``.key``)."""
    names = folder / "server.ext"
    names.write_text(f"subjectAltName = IP:{HOST}, DNS:localhost\n")
    make_key = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout"]
    for arguments in (
        [*make_key, "ca.key", "-x509", "-days", "2", "-subj", "/CN=CA", "-out"]
        + ["ca.pem"],
        [*make_key, "server.key", "-subj", "/CN=localhost", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]
        + ["-set_serial", "1", "-days", "2", "-extfile", names.name]
        + ["-out", "server.pem"],
        [*make_key, "client.key", "-subj", f"/CN={USER}", "-out", "client.csr"],
        ["x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]
        + ["-set_serial", "2", "-days", "2", "-out", "client.pem"],
    ):
        try:
            subprocess.run(
                ["openssl", *arguments],
                cwd=folder,
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_S,
            )
        except FileNotFoundError:
            raise BrokerError("no openssl here: apt install openssl") from None
        except subprocess.CalledProcessError as error:
            raise BrokerError(f"openssl {arguments[0]}: {error.stderr!r}") from None


# In the node's log. Up to RabbitMQ 3 the connection's pid precedes its name, which is
# in brackets then.
_LOGIN = re.compile(
    r"^.*? connection (?:\S+ (\())?\S+ -> \S+?(?: - (.*?))?(?(1)\)): user '[^']*' authe",
    re.MULTILINE,
)


def _quote(text: str) -> str:
    """Write an Erlang binary."""
    return "<<" + ",".join(map(str, text.encode())) + ">>"


def _children(pid: int) -> list[int]:
    """Tell who descends from a process, itself not included."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *_children(child)]
    return found


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _wait_until(condition: Any, timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.01)


class _Home:
    """The directory, the port mapper and the keeper of one or more nodes."""

    def __init__(self) -> None:
        self.root = _root()
        self.scripts = _scripts(self.root)
        self.path = Path(tempfile.mkdtemp(prefix="oslo-fastmsg-", dir=home_folder()))
        self.epmd_port = free_port()
        self.users = 0
        self._lock = threading.Lock()  # the nodes of a cluster start at once
        cookie = self.path / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16).upper())
        cookie.chmod(0o400)
        self.environment = {
            "HOME": self.inside(self.path),
            "PATH": PATH_IN_ROOT if self.root else os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
        }
        # A child that was forked, and did not exec, holds the pipe as well:
        # so it ends the keeper's wait, but nobody here waits for that.
        self.owner_pid = os.getpid()
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(self.path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self._epmd: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        with self._lock:
            self.users += 1
            if self._epmd is None:
                self._epmd = self.spawn("epmd", ["epmd"], {})
                _wait_until(self._epmd_answers, 20, "start of epmd")

    def _epmd_answers(self) -> bool:
        assert self._epmd is not None
        if self._epmd.poll() is not None:
            raise BrokerError(f"epmd ended: {self.tail('epmd')}")
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.epmd_port)) == 0

    def inside(self, path: Path) -> str:
        """Tell what processes of the node call a path."""
        if self.root is None:
            return str(path)
        return f"/{path.relative_to(self.root)}"

    def command(self, words: Sequence[str]) -> list[str]:
        """Give the command that runs one of the node's, in the same process."""
        if self.root is None:
            return list(words)
        if os.geteuid() == 0:
            return ["chroot", str(self.root), *words]
        return ["unshare", "--map-root-user", f"--root={self.root}", *words]

    def spawn(
        self, name: str, command: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process with a group of its own that the keeper knows."""
        with open(self.path / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                # The pid file is there before the process is: nothing can be
                # started and not known.
                ["/bin/sh", "-c", 'echo $$ >"$0"; exec "$@"']
                + [str(self.path / f"{name}.pid"), *self.command(command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                cwd=self.path,
                start_new_session=True,
            )
        return process

    def end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that descends from it; wait for them."""
        family = _children(process.pid)
        for pid in [process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        _wait_until(
            lambda: not any(map(_is_alive, family)), 20, f"end of {name}'s children"
        )
        (self.path / f"{name}.pid").unlink(missing_ok=True)

    def tail(self, name: str) -> str:
        text = (self.path / f"{name}.out").read_text(errors="replace")
        return "\n".join(text.strip().splitlines()[-25:])

    def close(self) -> None:
        """One node less; after the last one nothing is left."""
        with self._lock:
            self.users -= 1
            if self.users > 0:
                return
        if self._epmd is not None:
            self.end("epmd", self._epmd)
            self._epmd = None
        shutil.rmtree(self.path, ignore_errors=True)
        self._keeper.kill()
        self._keeper.communicate()


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


class PrivateBroker:
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
        _home: _Home | None = None,
        _name: str | None = None,
    ) -> None:
        """Start nothing yet.

        :param config: more lines for the node's ``rabbitmq.conf``.
        :param virtual_host: what :meth:`url` names; made if it is not ``/``.
        :param tls: listen for TLS as well, see :meth:`tls_url`; needs the
            command openssl.
        :param plugins: of RabbitMQ's own, to be enabled.
        """
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
        self._exhausted: set[str] = set()
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
            self._home = _Home()
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
        _make_certificates(self._data)
        return (
            f"listeners.ssl.1 = {HOST}:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self._inside(Path(self.ca_file))}\n"
            f"ssl_options.certfile = {self._inside(self._data / 'server.pem')}\n"
            f"ssl_options.keyfile = {self._inside(self._data / 'server.key')}\n"
        )

    def _inside(self, path: Path) -> str:
        assert self._home is not None
        return self._home.inside(path)

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
        _wait_until(self._is_ready, STARTUP_S, "start of RabbitMQ")

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

    # --- questions and orders ---

    def known(self) -> list[str]:
        """Tell the nodes of the cluster that run, by what this one knows."""
        return list(self.query("rabbit_nodes:all_running()"))

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run Debian's rabbitmqctl against this node; give what it prints."""
        assert self._home is not None
        command = [os.path.join(self._home.scripts, "rabbitmqctl"), "-q"]
        command += ["-n", self.name]
        return self._run([*command, *arguments], None)

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang in the node; give the value as Erlang prints it."""
        for is_last in (False, True):
            # A name of its own, or two calls at once would share one.
            caller = f"call{secrets.token_hex(4)}"
            command = ["erl_call", "-n", self.name, "-c", self._cookie()]
            command += ["-timeout", "60", "-h", caller, "-e"]
            try:
                answer = self._run(command, f"{expression}.\n").strip()
                break
            except BrokerError as error:
                # A busy node may miss the time of a handshake.
                if is_last or "failed to connect" not in str(error):
                    raise
        if not answer.startswith("{ok, ") or not answer.endswith("}"):
            raise BrokerError(f"{expression!r}: {answer}")
        return answer[len("{ok, ") : -1]

    def _cookie(self) -> str:
        assert self._home is not None
        return (self._home.path / ".erlang.cookie").read_text()

    def _run(self, command: list[str], given: str | None) -> str:
        assert self._home is not None
        try:
            done = subprocess.run(
                self._home.command(command),
                input=given or "",
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                env={**self._home.environment, **self._environment()},
            )
        except subprocess.TimeoutExpired:
            raise BrokerError(f"{command[0]}: no answer") from None
        if done.returncode != 0:
            raise BrokerError(f"{command[0]}: {done.stdout}{done.stderr}".strip())
        return done.stdout

    def query(self, expression: str) -> Any:
        """Evaluate Erlang in the node; give the value as JSON has it.

        Property lists and AMQP tables become dicts, atoms strings.
        """
        # Through a file: erl_call prints terms, and escapes as it likes.
        answer = self._data / f"answer-{secrets.token_hex(4)}"
        try:
            # Bound to a name first: nothing of ours must be in its scope.
            self.evaluate(
                f"Asked = ({expression}), {TO_JSON}"
                f"file:write_file({_quote(self._inside(answer))}, "
                "rabbit_json:encode(#{asked => To(Asked)}))"
            )
            return json.loads(answer.read_text())["asked"]
        finally:
            answer.unlink(missing_ok=True)

    def _listing(self, expression: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.query(expression)
        for row in rows:
            for key in ("arguments", "client_properties"):
                if key in row and not row[key]:
                    row[key] = {}  # Erlang's empty list is both
        return rows

    def queues(self) -> list[dict[str, Any]]:
        """Tell each queue's name, durable, auto_delete, exclusive, arguments,
        messages, messages_ready, messages_unacknowledged, consumers."""
        rows = self._listing(
            f"rabbit_amqqueue:info_all({_quote(self.virtual_host)}, "
            "[name, durable, auto_delete, exclusive, arguments, messages, "
            "messages_ready, messages_unacknowledged, consumers])"
        )
        for row in rows:
            # RabbitMQ 4 says so of each queue that was declared without a type.
            if row["arguments"].get("x-queue-type") == "classic":
                del row["arguments"]["x-queue-type"]
        return sorted(rows, key=lambda row: str(row["name"]))

    def queue(self, name: str) -> dict[str, Any] | None:
        """Give the row of :meth:`queues` with this name, None without one."""
        return next((row for row in self.queues() if row["name"] == name), None)

    def exchanges(self) -> list[dict[str, Any]]:
        """Tell each exchange's name, type, durable, auto_delete, internal,
        arguments; those that every virtual host has are left out."""
        rows = self._listing(
            f"rabbit_exchange:info_all({_quote(self.virtual_host)}, "
            "[name, type, durable, auto_delete, internal, arguments])"
        )
        rows = [
            row for row in rows if row["name"] and not row["name"].startswith("amq.")
        ]
        return sorted(rows, key=lambda row: str(row["name"]))

    def bindings(self) -> list[dict[str, Any]]:
        """Tell each binding's source_name, destination_name, routing_key,
        arguments; those of the default exchange are left out."""
        rows = self._listing(
            f"rabbit_binding:info_all({_quote(self.virtual_host)}, "
            "[source_name, destination_name, routing_key, arguments])"
        )
        return [row for row in rows if row["source_name"]]

    def connections(self) -> list[dict[str, Any]]:
        """Tell each connection's pid, node, name, user, vhost, state, channels,
        auth_mechanism, timeout, frame_max, client_properties."""
        return self._listing(
            # Without those that end while they are asked.
            "rabbit_misc:filter_exit_map(fun(P) -> "
            "[{pid, P}, {node, node(P)} | rabbit_networking:connection_info(P, "
            "[name, user, vhost, state, channels, auth_mechanism, timeout, "
            "frame_max, channel_max, client_properties])] end, "
            "rabbit_networking:connections())"
        )

    def channels(self) -> list[dict[str, Any]]:
        """Tell each channel's pid, connection, number, confirm, consumer_count,
        prefetch_count, messages_unacknowledged, messages_unconfirmed."""
        return self._listing(
            "rabbit_channel:info_all([pid, connection, number, confirm, "
            "consumer_count, prefetch_count, messages_unacknowledged, "
            "messages_unconfirmed])"
        )

    def consumers(self) -> list[dict[str, Any]]:
        """Tell each consumer's queue_name, consumer_tag, channel_pid, node (its
        connection's), ack_required, prefetch_count, arguments."""
        return self._listing(
            "[[{node, node(proplists:get_value(channel_pid, C))} | C] || C <- "
            f"rabbit_amqqueue:consumers_all({_quote(self.virtual_host)})]"
            # Those of streams are in the channels' own metrics alone.
            " ++ [[{node, node(P)}, {queue_name, N}, {channel_pid, P}, "
            "{consumer_tag, T}, {ack_required, A}, {prefetch_count, C}, "
            "{arguments, Args}] || {{N, P, T}, _, A, C, _, _, Args} <- "
            "lists:append([rpc:call(Node, ets, tab2list, [consumer_created]) "
            "|| Node <- [node() | nodes()]]), {ok, Q} <- [rabbit_amqqueue:lookup(N)], "
            "amqqueue:get_type(Q) =:= rabbit_stream_queue, "
            # Which keep what has ended for a while.
            "rpc:call(node(P), erlang, is_process_alive, [P])]"
        )

    def add_vhost(self, name: str) -> None:
        """Make a virtual host, and let guest use it."""
        self.evaluate(f"rabbit_vhost:add({_quote(name)}, {_quote('test')})")
        self.set_permissions(self.user, name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with everything in it."""
        self.evaluate(f"rabbit_vhost:delete({_quote(name)}, {_quote('test')})")

    def add_user(self, name: str, password: str, *, vhost: str | None = None) -> None:
        """Make a user who may do everything in one virtual host."""
        self.evaluate(
            f"rabbit_auth_backend_internal:add_user({_quote(name)}, "
            f"{_quote(password)}, {_quote('test')})"
        )
        self.set_permissions(name, self.virtual_host if vhost is None else vhost)

    def set_permissions(
        self,
        user: str,
        vhost: str,
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Set what a user may do, as three regular expressions."""
        texts = (user, vhost, configure, write, read, "test")
        self.evaluate(
            "rabbit_auth_backend_internal:set_permissions("
            f"{', '.join(map(_quote, texts))})"
        )

    def delete_queue(self, name: str) -> None:
        """Delete a queue, as an operator or its expiry would."""
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({self._r('queue', name)})),"
            f" rabbit_amqqueue:delete(Q, false, false, {_quote('test')}), ok"
        )

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        self.evaluate(
            f"rabbit_exchange:delete(rabbit_misc:r({self._r('exchange', name)}),"
            f" false, {_quote('test')}), ok"
        )

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Delete a binding, as whoever may configure the queue can."""
        exchange, queue = self._r("exchange", exchange), self._r("queue", queue)
        self.evaluate(
            f"rabbit_binding:remove({{binding, rabbit_misc:r({exchange}), "
            f"{_quote(routing_key)}, rabbit_misc:r({queue}), []}}, {_quote('test')})"
        )

    def purge_queue(self, name: str) -> None:
        """Drop the messages of a queue that are not out for delivery."""
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({self._r('queue', name)})),"
            " rabbit_amqqueue:purge(Q), ok"
        )

    def _r(self, kind: str, name: str) -> str:
        return f"{_quote(self.virtual_host)}, {kind}, {_quote(name)}"

    def close_connection(self, pid: str, reason: str = "closed by the test") -> None:
        """Close a connection as an operator does (connection.close 320).

        :param pid: as in :meth:`connections`.
        """
        self.evaluate(
            f'rabbit_networking:close_connection(list_to_pid("{pid}"), "{reason}"), ok'
        )

    def close_connections(self, reason: str = "closed by the test") -> int:
        """Close every connection as an operator does; tell how many there
        were. One whose client does not answer stays for half a minute."""
        return int(
            self.evaluate(
                "length([rabbit_networking:close_connection(P, "
                f'"{reason}") || P <- rabbit_networking:connections()])'
            )
        )

    def drop_connections(self) -> int:
        """End every connection at once and without a word, as a network does;
        tell how many there were. Who is connected need not answer."""
        return int(
            self.evaluate(
                "length([begin M = monitor(process, P), exit(P, kill), "
                "receive {'DOWN', M, _, _, _} -> ok after 10000 -> ok end end"
                " || P <- rabbit_networking:connections()])"
            )
        )

    def set_alarm(self, resource: str = "memory") -> None:
        """Have the node believe that it is short of memory or disk, so that
        it blocks whoever publishes."""
        self.evaluate(
            f"rabbit_alarm:set_alarm({{{{resource_limit, {resource}, node()}}, []}}), ok"
        )

    def clear_alarm(self, resource: str = "memory") -> None:
        """Take :meth:`set_alarm` back."""
        self.evaluate(
            f"rabbit_alarm:clear_alarm({{resource_limit, {resource}, node()}}), ok"
        )

    def exhaust(self, resource: str = "memory") -> None:
        """Have the node be short of memory or disk by the limits that an
        operator sets: it blocks whoever publishes. :meth:`relieve` ends it."""
        self._exhausted.add(resource)
        if resource == "memory":
            # Less than any node has in use.
            self.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
        else:
            self.rabbitmqctl("set_disk_free_limit", "1000000GB")

    def relieve(self, resource: str = "memory") -> None:
        """Take :meth:`exhaust` back."""
        if resource == "memory":
            self.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
        else:
            self.rabbitmqctl("set_disk_free_limit", "1MB")
        self._exhausted.discard(resource)

    def publish(self, queue: str, body: bytes) -> None:
        """Publish from within the node, which no alarm holds up."""
        exchange = f"rabbit_misc:r({self._r('exchange', '')})"
        properties = (
            '[{content_type, <<"application/json">>}, {content_encoding, <<"utf-8">>}]'
        )
        codes = f"<<{','.join(map(str, body))}>>"
        if rabbitmq_version() < (4,):
            self.evaluate(
                f"rabbit_basic:publish({exchange}, {_quote(queue)}, {properties}, "
                f"{codes}), ok"
            )
            return
        self.evaluate(
            f"{{ok, M}} = mc_amqpl:message({exchange}, {_quote(queue)}, "
            f"rabbit_basic:build_content(rabbit_basic:properties({properties}), "
            f"{codes})), rabbit_queue_type:publish_at_most_once({exchange}, M), ok"
        )

    def reset(self) -> None:
        """Drop all connections and delete all queues and exchanges of the
        virtual host, as between two tests."""
        for resource in list(self._exhausted):
            self.relieve(resource)
        self.clear_alarm("memory")
        self.clear_alarm("disk")
        self.drop_connections()
        vhost = _quote(self.virtual_host)
        self.evaluate(
            f"[rabbit_amqqueue:delete(Q, false, false, {_quote('test')})"
            f" || Q <- rabbit_amqqueue:list({vhost})], ok"
        )
        for exchange in self.exchanges():
            self.delete_exchange(exchange["name"])


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
        home = _Home()
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

        _wait_until(is_whole, timeout, f"a cluster of {', '.join(names)}")

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
            f" || Q <- rabbit_amqqueue:list({_quote(self.virtual_host)}),"
            " N <- [amqqueue:get_name(Q)], amqqueue:get_type(Q) =:= rabbit_quorum_queue]"
        )
        return list(rows)

    def homes(self) -> dict[str, str]:
        """Tell the node of each queue, its leader's for a quorum queue; those
        whose node does not run are told as well."""
        vhost = _quote(self.virtual_host)
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
    # By way of an exception, so that a node that is just starting ends too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with PrivateBroker() as broker:
            print(broker.url(scheme), flush=True)
            while True:
                signal.pause()
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
