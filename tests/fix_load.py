"""Load that is accounted for: who sends, and who is sent to.

Each message carries its number; senders and receivers note in an account
(``fix_account.py``) what becomes of it. Over either driver, in threads of this
process or of one of their own.
"""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import oslo_messaging
from fix_account import Account
from fix_peer import standalone_peers

__all__ = [
    "Accounting",
    "Load",
    "loads",
    "notify",
    "number_in",
    "send_in_child",
    "sender",
    "serve_in_child",
]

#: What comes before a message's number, on the wire too.
MARK = "number-"


def number_in(text: Any) -> int:
    """Read the number out of a message's argument."""
    assert isinstance(text, str)
    assert text.startswith(MARK), text
    return int(text.removeprefix(MARK).rstrip("."))


class Accounting:
    """An endpoint for requests and notifications that notes what it executes."""

    def __init__(self, account: Account, name: str, takes_s: float = 0.0) -> None:
        self._account = account
        self._name = name
        self.takes_s = takes_s  # for each request
        self.gate = threading.Event()  # requests wait for it
        self.gate.set()

    def take(self, ctxt: dict[str, Any], arg: str) -> str:
        self._account.note(number_in(arg), "executed", self._name)
        assert self.gate.wait(60)
        if self.takes_s:
            threading.Event().wait(self.takes_s)
        return arg

    def info(self, ctxt, publisher_id, event_type, payload, metadata):  # type: ignore
        self._account.note(number_in(payload), "executed", self._name)


def notify(
    transport: Any, topic: str, payload: Any = 1, retry: int | None = None
) -> None:
    """What a notifier does, without its catching every exception."""
    transport._send_notification(
        oslo_messaging.Target(topic=f"{topic}.info"),
        {},
        {"priority": "INFO", "payload": payload, "event_type": "e"}
        | {"publisher_id": "p", "timestamp": "t"},
        version=2.0,
        retry=retry,
    )


def sender(
    account: Account,
    kind: str,
    client: Any,
    note_topic: str = "",
    padding: int = 0,
    **options: Any,
) -> Callable[[], int]:
    """Give a function that sends one message, notes its end, never raises.

    :param kind: call, cast, fanout or notification.
    :param client: an RPC client; of a notification its transport matters.
    :param note_topic: of notifications.
    :param options: of the client, as ``timeout``.
    """
    if kind == "fanout":
        options["fanout"] = True
    used = client.prepare(**options) if kind != "notification" else None

    def send() -> int:
        number = account.new(kind)
        arg = f"{MARK}{number}".ljust(padding, ".")
        try:
            if kind == "call":
                assert used.call({}, "take", arg=arg) == arg
            elif kind == "notification":
                notify(client.transport, note_topic, arg, **options)
            else:
                used.cast({}, "take", arg=arg)
        except Exception as error:
            account.note(number, "raised", "", f"{type(error).__name__}: {error}")
        else:
            account.note(number, "answered" if kind == "call" else "confirmed")
        return number

    return send


class Load:
    """Threads that send one message after the other until told to stop."""

    def __init__(
        self,
        send: Callable[[], Any],
        threads: int = 1,
        rate: float | None = None,
        count: int | None = None,
    ) -> None:
        """:param rate: messages a second, of all threads together; as fast as
        it goes unless given.
        :param count: of messages; without end unless given.
        """
        self._send = send
        self._interval_s = 0.0 if rate is None else 1.0 / rate
        self._numbers = itertools.count() if count is None else iter(range(count))
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._start = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(threads)
        ]
        self.error: BaseException | None = None

    def __enter__(self) -> "Load":
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self, timeout: float = 90.0) -> None:
        """Stop sending, and wait until the last ones have ended."""
        self._is_stopping.set()
        self.join(timeout)

    def join(self, timeout: float = 90.0) -> None:
        """Wait until the last ones have ended, of those that were to be sent."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a message that never ends"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._is_stopping.is_set():
                with self._lock:
                    number = next(self._numbers, None)
                if number is None:
                    return
                due = self._start + number * self._interval_s - time.monotonic()
                # The pace, not a wait for anything.
                if self._interval_s and due > 0 and self._is_stopping.wait(due):
                    return
                self._send()
        except BaseException as error:
            self.error = error


def serve_in_child(
    pipe: Connection, driver: str, url: str, directory: str, spec: str
) -> None:
    """Serve a topic in a process of its own, until the pipe ends.

    :param spec: JSON: topic, name, journal, threads, takes_s, rabbit, and
        notifications, a topic of those.
    """
    it = json.loads(spec)
    account = Account(Path(it["journal"]))
    endpoint = Accounting(account, it["name"], it.get("takes_s", 0.0))
    with standalone_peers(url, directory) as peers:
        transport = peers.transport(driver, rabbit=it.get("rabbit"))
        options = {"transport": transport, "threads": it.get("threads")}
        peers.server(driver, endpoint, topic=it["topic"], server=it["name"], **options)
        if "notifications" in it:
            topics = [it["notifications"]]
            peers.listener(driver, endpoint, topics=topics, **options)
        pipe.send("serving")
        _wait_for_end(pipe)


def send_in_child(
    pipe: Connection, driver: str, url: str, directory: str, spec: str
) -> None:
    """Send to a topic from a process of its own, until the pipe ends.

    :param spec: JSON: topic, journal, base (of its numbers), kinds, threads
        (for each kind), rate, timeout, rabbit.
    """
    it = json.loads(spec)
    account = Account(Path(it["journal"]), it["base"])
    with standalone_peers(url, directory) as peers:
        client = peers.client(
            driver,
            topic=it["topic"],
            timeout=it.get("timeout", 20),
            rabbit=it.get("rabbit"),
            notification=False,
        )
        with contextlib.ExitStack() as stack:
            for kind in it["kinds"]:
                send = sender(account, kind, client, it["topic"])
                load = Load(send, it.get("threads", 1), it.get("rate"))
                stack.enter_context(load)
            pipe.send("sending")
            _wait_for_end(pipe)
        pipe.send("ended")
        _wait_for_end(pipe)


def _wait_for_end(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        pipe.recv()


@contextlib.contextmanager
def loads(*each: Load) -> Iterator[None]:
    """Run several at once."""
    with contextlib.ExitStack() as stack:
        for load in each:
            stack.enter_context(load)
        yield
