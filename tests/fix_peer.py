"""Peers: RPC clients and servers, notifiers and listeners, of either driver.

``fast`` is the driver under test, ``stock`` the installed oslo.messaging's
own. Both are configured by a file, as services are, and started through
oslo.messaging's public functions.

FASTMSG_PAIRINGS=stock-stock in the environment runs the tests themselves
against the stock driver alone; what asserts improvements over it (fixture
``fast``) is left out then.

FASTMSG_ENVELOPE=auto or msgpack runs them with that option set for each fast
peer which does not say otherwise. What the option forbids is left out: a stock
peer reads nothing that is sent with msgpack. So is what is marked
``envelopes`` with others; it is counted as deselected.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import itertools
import logging
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from futurist import _thread as futurist_thread
from oslo_config import cfg
from oslo_messaging._drivers import amqp as stock_amqp
from oslo_messaging._drivers import amqpdriver, impl_rabbit

# Groups that oslo.messaging looks at in each configuration, but registers in
# the global one alone.
_GLOBAL_OPTIONS = {}
for _package in ("_metrics", "_tracing"):
    with contextlib.suppress(ImportError):
        _module = importlib.import_module(f"oslo_messaging.{_package}.client")
        _group = f"oslo_messaging{_package}"
        _GLOBAL_OPTIONS[_group] = getattr(_module, _group)

__all__ = [
    "Child",
    "Log",
    "Notes",
    "Pairing",
    "Peers",
    "TestEndpoint",
    "background",
    "driver",
    "fast",
    "pairing",
    "peers",
    "pytest_collection_modifyitems",
    "stock_takes",
    "topic",
]

SCHEMES = {"fast": "fastmsg", "stock": "rabbit"}

#: Option envelope of fast peers.
ENVELOPE = os.environ.get("FASTMSG_ENVELOPE", "json")
assert ENVELOPE in ("json", "auto", "msgpack"), ENVELOPE
if ENVELOPE != "json":
    # oslo.config's own way, which reaches every configuration and child process.
    os.environ["OS_OSLO_MESSAGING_FASTMSG__ENVELOPE"] = ENVELOPE

PAIRINGS = os.environ.get("FASTMSG_PAIRINGS", "fast-fast fast-stock stock-fast").split()
if ENVELOPE == "msgpack":
    PAIRINGS = [name for name in PAIRINGS if name != "fast-stock"]
#: The driver of tests that have one side only.
DRIVERS = ["fast"] if any("fast" in name for name in PAIRINGS) else ["stock"]

# A stock listener looks for its stop flag between two polls, which idle grow
# up to 5 s. Nothing of this is on the wire; it only makes stops quick. (The
# options of impl_rabbit have a limit made of it when that is imported.)
assert impl_rabbit
amqpdriver.ACK_REQUEUE_EVERY_SECONDS_MAX = 0.05
# The same for idle workers of the thread pool that every server has.
futurist_thread.ThreadWorker.MAX_IDLE_FOR = 0.05


def stock_takes(option: str, value: object) -> bool:
    """Tell whether the installed release has an option and allows a value."""
    for known in (*impl_rabbit.rabbit_opts, *stock_amqp.amqp_opts):
        if known.name == option:
            with contextlib.suppress(ValueError):
                known.type(value)
                return True
    return False


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Which driver sends (client, notifier), which receives."""

    sender: str
    receiver: str

    def __str__(self) -> str:
        return f"{self.sender}-{self.receiver}"


class Log:
    """What has happened so far, from any thread; tests wait for more."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)

    def items(self) -> list[Any]:
        with self._changed:
            return list(self._items)

    def wait(self, count: int = 1, timeout: float = 20.0) -> list[Any]:
        """Sleep until there are `count` items; give all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._items) >= count, timeout), (
                f"{len(self._items)} of {count} within {timeout} s: {self._items[:5]}"
            )
            return list(self._items)


class TestEndpoint:
    """What RPC servers of the tests can do; records what it was asked."""

    __test__ = False

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.seen = Log()
        self.contexts = Log()
        self.gate = threading.Event()

    def echo(self, ctxt: dict[str, Any], arg: Any = None) -> Any:
        self.seen.add(arg)
        self.contexts.add(ctxt)
        return arg

    def who(self, ctxt: dict[str, Any]) -> str:
        self.seen.add(self.name)
        return self.name

    def fail(self, ctxt: dict[str, Any], arg: Any = None) -> None:
        self.seen.add(arg)
        raise ValueError(f"bad {arg}")

    def wait(self, ctxt: dict[str, Any], limit: float = 30.0) -> str:
        """Answer when the test opens the gate."""
        self.seen.add("wait")
        return "opened" if self.gate.wait(limit) else "never opened"

    def last(self, ctxt: dict[str, Any], seconds: float = 0.0) -> str:
        """Take so long, whoever waits."""
        self.seen.add(seconds)
        time.sleep(seconds)
        return "done"


class Notes:
    """A notification endpoint for every priority; records what came."""

    def __init__(
        self,
        priorities: Iterable[str] = (
            "audit",
            "debug",
            "info",
            "warn",
            "error",
            "critical",
            "sample",
        ),
        answer: Callable[[Any], Any] = lambda note: None,
    ) -> None:
        """:param answer: gets the record, gives the endpoint's result."""
        self.seen = Log()
        for priority in priorities:
            setattr(self, priority, self._handler(priority, answer))

    def _handler(self, priority: str, answer: Callable[[Any], Any]) -> Any:
        def handle(ctxt, publisher_id, event_type, payload, metadata):  # type: ignore
            note = {
                "priority": priority,
                "ctxt": ctxt,
                "publisher_id": publisher_id,
                "event_type": event_type,
                "payload": payload,
                "metadata": metadata,
            }
            self.seen.add(note)
            return answer(note)

        return handle


class Batches:
    """An endpoint of a batch listener; records each batch's payloads."""

    def __init__(self) -> None:
        self.seen = Log()

    def info(self, batch: list[dict[str, Any]]) -> None:
        self.seen.add([message["payload"] for message in batch])


class Peers:
    """Starts peers and ends them, the last one first."""

    def __init__(self, broker: Any, directory: Path) -> None:
        """:param broker: what to connect to, unless ``via`` says otherwise;
        has ``url(scheme, **query)``.
        """
        self._broker = broker
        self._directory = directory
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        self._stack.close()

    def conf(
        self, url: str, *, rabbit: dict[str, Any] | None = None, **default: Any
    ) -> cfg.ConfigOpts:
        """Make a service's configuration, in a file of its own.

        :param rabbit: options of ``[oslo_messaging_rabbit]``.
        :param default: options of ``[DEFAULT]``.
        """
        file = self._directory / f"service-{next(self._numbers)}.conf"
        lines = ["[DEFAULT]", f"transport_url = {url.replace('$', '$$')}"]
        lines += [f"{key} = {value}" for key, value in default.items()]
        lines += ["[oslo_messaging_rabbit]"]
        lines += [f"{key} = {value}" for key, value in (rabbit or {}).items()]
        file.write_text("\n".join(lines) + "\n")
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[str(file)], default_config_dirs=[])
        for group, options in _GLOBAL_OPTIONS.items():
            conf.register_opts(options, group=group)
        return conf

    def transport(
        self,
        driver: str,
        *,
        via: Any = None,
        url: str | None = None,
        exmods: Iterable[str] = (),
        notification: bool = False,
        rabbit: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
        **default: Any,
    ) -> Any:
        """Make a transport, cleaned up at the end of the test.

        :param via: a proxy or another broker, to connect to instead.
        :param url: the URL itself, instead.
        :param query: options for the URL.
        """
        if url is None:
            url = (via or self._broker).url(SCHEMES[driver], **(query or {}))
        conf = self.conf(url, rabbit=rabbit, **default)
        if notification:
            make = oslo_messaging.get_notification_transport
        else:
            make = oslo_messaging.get_rpc_transport
        transport = make(conf, allowed_remote_exmods=list(exmods))
        self._stack.callback(self.clean, transport)
        return transport

    def clean(self, transport: Any) -> None:
        """Clean a transport up, unless that is done."""
        if not getattr(transport, "_is_cleaned_by_test", False):
            transport._is_cleaned_by_test = True
            transport.cleanup()

    def server(
        self,
        driver: str,
        *endpoints: Any,
        topic: str,
        server: str = "server1",
        exchange: str | None = None,
        threads: int | None = None,
        transport: Any = None,
        access_policy: Any = None,
        **options: Any,
    ) -> Any:
        """Start an RPC server, stopped at the end of the test.

        :param threads: the size of its pool of workers.
        :param options: as for :meth:`transport`, unless that is given.
        """
        transport = transport or self.transport(driver, **options)
        it = oslo_messaging.get_rpc_server(
            transport,
            oslo_messaging.Target(topic=topic, server=server, exchange=exchange),
            list(endpoints),
            access_policy=access_policy,
        )
        self._start(it, threads)
        return it

    def client(
        self,
        driver: str,
        *,
        topic: str,
        timeout: float | None = 20,
        monitor: int | None = None,
        retry: int | None = None,
        transport: Any = None,
        target: dict[str, Any] | None = None,
        transport_options: Any = None,
        **options: Any,
    ) -> Any:
        """Make an RPC client.

        :param monitor: its ``call_monitor_timeout``.
        :param target: more of its target: exchange, namespace, version.
        """
        transport = transport or self.transport(driver, **options)
        # 14.0 as upstream published it has the class alone.
        make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
        return make(
            transport,
            oslo_messaging.Target(topic=topic, **(target or {})),
            timeout=timeout,
            call_monitor_timeout=monitor,
            retry=retry,
            transport_options=transport_options,
        )

    def notifier(
        self,
        driver: str,
        *topics: str,
        version: int = 2,
        publisher_id: str = "publisher",
        retry: int | None = None,
        transport: Any = None,
        **options: Any,
    ) -> Any:
        """Make a notifier of the wire's version 1 or 2."""
        transport = transport or self.transport(driver, notification=True, **options)
        return oslo_messaging.Notifier(
            transport,
            publisher_id,
            driver={1: "messaging", 2: "messagingv2"}[version],
            topics=list(topics),
            retry=retry,
        )

    def listener(
        self,
        driver: str,
        *endpoints: Any,
        topics: Iterable[str],
        pool: str | None = None,
        requeue: bool = False,
        batch: tuple[int | None, float | None] | None = None,
        threads: int | None = None,
        transport: Any = None,
        **options: Any,
    ) -> Any:
        """Start a notification listener, stopped at the end of the test.

        :param batch: its size and timeout, for a listener of batches.
        """
        transport = transport or self.transport(driver, notification=True, **options)
        targets = [oslo_messaging.Target(topic=name) for name in topics]
        more: dict[str, Any] = {"allow_requeue": requeue, "pool": pool}
        if batch is None:
            make = oslo_messaging.get_notification_listener
        else:
            make = oslo_messaging.get_batch_notification_listener
            more["batch_size"], more["batch_timeout"] = batch
        it = make(transport, targets, list(endpoints), **more)
        self._start(it, threads)
        return it

    def stop(self, server: Any) -> None:
        """Stop a server or listener and wait for its workers; once."""
        if not getattr(server, "_is_stopped_by_test", False):
            server._is_stopped_by_test = True
            server.stop()
            server.wait()

    def child(self, function: Callable[..., None], *args: Any) -> "Child":
        """Run ``function(pipe, *args)`` in a process of its own."""
        it = Child(function, *args)
        self._stack.callback(it.close)
        return it

    def _start(self, server: Any, threads: int | None) -> None:
        server.start(override_pool_size=threads)
        self._stack.callback(self.stop, server)


class Child:
    """A process that runs a function of a test module; pipes both ways."""

    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(
            target=_run_child, args=(function, far, *args), daemon=True
        )
        self._process.start()
        far.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, item: Any) -> None:
        self._pipe.send(item)

    def receive(self, timeout: float = 20.0) -> Any:
        assert self._pipe.poll(timeout), f"the child said nothing for {timeout} s"
        return self._pipe.recv()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.join(10)

    def join(self, timeout: float = 20.0) -> int | None:
        """Wait for its end; give the exit status."""
        self._process.join(timeout)
        return self._process.exitcode

    def close(self) -> None:
        self._pipe.close()  # a child that waits for us ends by this
        self._process.join(5)
        if self._process.exitcode is None:
            self.kill()


def _run_child(function: Callable[..., None], pipe: Connection, *args: Any) -> None:
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(EOFError):
        function(pipe, *args)


@contextlib.contextmanager
def standalone_peers(url: str, directory: str) -> Iterator[Peers]:
    """Give peers to a child, whose broker is a URL of scheme ``rabbit``."""

    class Broker:
        @staticmethod
        def url(scheme: str, **query: object) -> str:
            assert not query
            return url.replace("rabbit://", f"{scheme}://", 1)

    folder = Path(directory) / f"child-{os.getpid()}"
    folder.mkdir()
    peers = Peers(Broker(), folder)
    try:
        yield peers
    finally:
        peers.close()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out what asks for the fast driver when it does not take part.

    And what is true of an envelope that fast peers do not have in this run.
    """
    absent = []
    if "fast" not in DRIVERS:
        absent += [
            item for item in items if "fast" in getattr(item, "fixturenames", ())
        ]
    for item in items:
        mark = item.get_closest_marker("envelopes")
        if mark is not None and ENVELOPE not in mark.args:
            absent.append(item)
    if not absent:
        return
    items[:] = [item for item in items if item not in absent]
    config.hook.pytest_deselected(items=absent)


@pytest.fixture
def peers(broker: Any, tmp_path: Path) -> Iterator[Peers]:
    """Start peers on the run's broker."""
    with contextlib.closing(Peers(broker, tmp_path)) as it:
        yield it


@pytest.fixture
def background() -> Iterator[Callable[..., Any]]:
    """Give a function that starts another one in a thread: a future of it."""
    with concurrent.futures.ThreadPoolExecutor(64) as pool:

        class Future:
            def __init__(self, action: Callable[..., Any], *args: Any, **more: Any):
                self._future = pool.submit(action, *args, **more)

            def result(self, timeout: float = 30.0) -> Any:
                return self._future.result(timeout)

            def is_done(self) -> bool:
                return self._future.done()

        yield Future


@pytest.fixture(params=PAIRINGS)
def pairing(request: pytest.FixtureRequest) -> Pairing:
    """Run the test with each pair of drivers: sender-receiver."""
    return Pairing(*request.param.split("-"))


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """The driver of a test that is true of the stock one as well."""
    return str(request.param)


@pytest.fixture
def fast() -> str:
    """The driver of a test of what we do better, or otherwise, than stock."""
    return "fast"


@pytest.fixture
def topic() -> str:
    """A topic that no other test has."""
    return f"topic-{uuid.uuid4().hex[:8]}"
