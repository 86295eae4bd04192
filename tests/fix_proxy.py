"""A TCP proxy before the broker that reads along and breaks things.

``fix_faulty_proxy.py`` has one that does worse.

It splits both directions into AMQP 0-9-1 frames, so a test can look at what
was on the wire, wait for it, hold it back or cut the connection at an exact
frame. Plain TCP only.
"""

import contextlib
import dataclasses
import selectors
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from amqp.serialization import loads

__all__ = ["Frame", "Link", "Method", "Proxy", "Publication", "proxy"]

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8

# Linger for 0 s: closing sends RST.
RESET = struct.pack("ii", 1, 0)

# Arguments in the notation of amqp.serialization.loads.
_METHODS = {
    (10, 11): ("connection.start-ok", "FsSs"),
    (10, 31): ("connection.tune-ok", "BlB"),
    (10, 40): ("connection.open", "ssb"),
    (10, 50): ("connection.close", "BsBB"),
    (10, 51): ("connection.close-ok", ""),
    (10, 60): ("connection.blocked", "s"),
    (10, 61): ("connection.unblocked", ""),
    (20, 10): ("channel.open", "s"),
    (20, 40): ("channel.close", "BsBB"),
    (20, 41): ("channel.close-ok", ""),
    (40, 10): ("exchange.declare", "BssbbbbbF"),
    (50, 10): ("queue.declare", "BsbbbbbF"),
    (50, 20): ("queue.bind", "BsssbF"),
    (50, 40): ("queue.delete", "Bsbbb"),
    (60, 10): ("basic.qos", "lBb"),
    (60, 20): ("basic.consume", "BssbbbbF"),
    (60, 21): ("basic.consume-ok", "s"),
    (60, 30): ("basic.cancel", "sb"),
    (60, 40): ("basic.publish", "Bssbb"),
    (60, 50): ("basic.return", "Bsss"),
    (60, 60): ("basic.deliver", "sLbss"),
    (60, 80): ("basic.ack", "Lb"),
    (60, 90): ("basic.reject", "Lb"),
    (60, 120): ("basic.nack", "Lbb"),
    (85, 10): ("confirm.select", "b"),
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame: its type, its channel and what is between head and end."""

    kind: int
    channel: int
    payload: bytes

    @property
    def name(self) -> str:
        """``class.method``, or what else it is."""
        if self.kind != METHOD:
            names = {HEADER: "header", BODY: "body", HEARTBEAT: "heartbeat"}
            return names.get(self.kind, f"frame {self.kind}")
        ids = struct.unpack_from(">HH", self.payload)
        return _METHODS[ids][0] if ids in _METHODS else f"method {ids}"

    @property
    def arguments(self) -> list[Any]:
        """A method's arguments; of those in the table above alone."""
        ids = struct.unpack_from(">HH", self.payload)
        values, _ = loads(_METHODS[ids][1], self.payload, 4)
        return list(values)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as a test compares it."""

    name: str
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Publication:
    """A basic.publish with its content, byte by byte."""

    exchange: str
    routing_key: str
    mandatory: bool
    immediate: bool
    properties: bytes  # property flags and list, as in the header frame
    body: bytes
    channel: int


class _Splitter:
    """Cuts a stream of bytes into frames; gives each with its raw bytes."""

    def __init__(self, *, has_greeting: bool) -> None:
        self._pending = bytearray()
        self._has_greeting = has_greeting

    def feed(self, data: bytes) -> Iterator[tuple[Frame | None, bytes]]:
        self._pending += data
        if self._has_greeting:
            if len(self._pending) < 8:
                return
            yield None, self._cut(8)
            self._has_greeting = False
        while len(self._pending) >= 7:
            if self._pending[:4] == b"AMQP":
                # What a broker answers to a greeting that it does not like.
                yield None, self._cut(len(self._pending))
                return
            kind, channel, size = struct.unpack_from(">BHI", self._pending)
            if len(self._pending) < size + 8:
                return
            raw = self._cut(size + 8)
            yield Frame(kind, channel, raw[7:-1]), raw

    def _cut(self, size: int) -> bytes:
        raw = bytes(self._pending[:size])
        del self._pending[:size]
        return raw


class _Side:
    """One socket of a link and what is still to be written to it."""

    def __init__(self, sock: socket.socket, *, has_greeting: bool) -> None:
        self.sock = sock
        self.splitter = _Splitter(has_greeting=has_greeting)
        self.unsent = bytearray()
        self.is_reading = True


class Link:
    """A connection through the proxy and the frames that went over it.

    ``sent`` are those from the client, ``received`` those from the broker,
    each with the moment (monotonic) when the proxy saw it.
    """

    def __init__(self, number: int, client: _Side, broker: _Side) -> None:
        self.number = number
        self.is_open = True
        self.sent: list[tuple[float, Frame]] = []
        self.received: list[tuple[float, Frame]] = []
        self._client = client
        self._broker = broker

    def methods(self, *names: str) -> list[Method]:
        """Give the methods that the client sent, of these names if any."""
        return [
            Method(frame.name, tuple(map(_hashable, frame.arguments)))
            for _, frame in list(self.sent)
            if frame.kind == METHOD
            and not frame.name.startswith("method")
            and (not names or frame.name in names)
        ]

    def publications(self) -> list[Publication]:
        """Put together what the client has published."""
        found: list[Publication] = []
        partial: dict[int, tuple[list[Any], bytes, int, bytes]] = {}
        for _, frame in list(self.sent):
            if frame.name == "basic.publish":
                partial[frame.channel] = (frame.arguments, b"", -1, b"")
            elif frame.channel in partial and frame.kind in (HEADER, BODY):
                arguments, properties, size, body = partial[frame.channel]
                if frame.kind == HEADER:
                    (size,) = struct.unpack_from(">Q", frame.payload, 4)
                    properties = frame.payload[12:]
                else:
                    body += frame.payload
                partial[frame.channel] = (arguments, properties, size, body)
                if len(body) == size:
                    _, exchange, key, mandatory, immediate = arguments
                    found.append(
                        Publication(
                            exchange,
                            key,
                            mandatory,
                            immediate,
                            properties,
                            body,
                            frame.channel,
                        )
                    )
                    del partial[frame.channel]
        return found


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return value


#: Tells of a frame whether something is to happen: link, is from the client, frame.
Predicate = Callable[[Link, bool, Frame], bool]


class Proxy:
    """Listens on a port of its own and connects each client to the broker."""

    def __init__(self, broker: Any) -> None:
        """:param broker: has ``host``, ``port`` and ``url(scheme, **query)``."""
        self._broker = broker
        self._lock = threading.Condition()
        self._links: list[Link] = []
        self._silent: frozenset[str] = frozenset()
        self._is_slamming = False
        self.slammed = 0
        self._is_closing = False
        self._drop: Predicate | None = None
        self._cut_at: tuple[Predicate, str, bool] | None = None
        self._jobs: list[Callable[[], None]] = []
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._wakened.setblocking(False)
        self._listener: socket.socket | None = None
        self.host = "127.0.0.1"
        self.port = 0
        self._listen()
        self._selector.register(self._wakened, selectors.EVENT_READ, "wake")
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._do(self._end)
        self._thread.join()
        self._selector.close()
        self._waker.close()
        self._wakened.close()

    def url(self, scheme: str = "rabbit", **query: object) -> str:
        """Give the broker's URL with the proxy's port."""
        parts = urllib.parse.urlsplit(self._broker.url(scheme, **query))
        login = parts.netloc.rpartition("@")[0]
        netloc = f"{login}@{self.host}:{self.port}"
        return urllib.parse.urlunsplit(parts._replace(netloc=netloc))

    # --- what is seen ---

    def links(self) -> list[Link]:
        """Give the connections so far, closed ones too, in order."""
        with self._lock:
            return list(self._links)

    def open_links(self) -> list[Link]:
        with self._lock:
            return [link for link in self._links if link.is_open]

    def publications(self) -> list[Publication]:
        return [item for link in self.links() for item in link.publications()]

    def methods(self, *names: str) -> list[Method]:
        return [item for link in self.links() for item in link.methods(*names)]

    def wait_for(
        self, condition: Callable[[], object], timeout: float = 10.0, what: str = ""
    ) -> None:
        """Sleep until frames have come that make `condition` true."""
        with self._lock:
            assert self._lock.wait_for(condition, timeout), (
                f"{what or 'condition'}: not seen within {timeout} s; "
                f"the wire had {[m.name for m in self._all_methods()]}"
            )

    def _all_methods(self) -> list[Method]:
        return [item for link in self._links for item in link.methods()]

    def nudge(self) -> None:
        """Have :meth:`wait_for` look again, for other news than frames."""
        self._do(lambda: None)

    # --- what is done ---

    def cut(self, how: str = "rst") -> int:
        """End all connections now, with RST or FIN; tell how many there were."""
        count = 0

        def cut_all() -> None:
            nonlocal count
            for link in self._links:
                if link.is_open:
                    count += 1
                    self._close_link(link, how)

        self._do(cut_all)
        return count

    def cut_when(
        self, predicate: Predicate, *, how: str = "rst", forward: bool = True
    ) -> None:
        """End the connection on which the next such frame is seen, once.

        :param forward: whether the frame itself still gets through.
        """

        def install() -> None:
            self._cut_at = (predicate, how, forward)

        self._do(install)

    def drop(self, predicate: Predicate | None) -> None:
        """Keep such frames back, for good; None ends that."""

        def install() -> None:
            self._drop = predicate

        self._do(install)

    def silence(self, *of: str) -> None:
        """Take nothing any more, with all connections left open.

        :param of: from ``"client"`` or ``"broker"``; from both unless given.
        """
        self._do(lambda: self._set_silent(frozenset(of or ("client", "broker"))))

    def resume(self) -> None:
        """End :meth:`silence`."""
        self._do(lambda: self._set_silent(frozenset()))

    def refuse(self) -> None:
        """Stop listening: the port refuses connections."""
        self._do(self._unlisten)

    def slam(self) -> None:
        """Reset each new connection as soon as it is made; count in `slammed`."""
        self._do(lambda: setattr(self, "_is_slamming", True))

    def accept(self) -> None:
        """End :meth:`refuse` (on the same port) and :meth:`slam`."""

        def accept() -> None:
            self._is_slamming = False
            self._listen()

        self._do(accept)

    # --- the thread ---

    def _do(self, job: Callable[[], None]) -> None:
        """Have the proxy's thread do something and wait until it has."""
        done = threading.Event()

        def do() -> None:
            try:
                job()
            finally:
                done.set()

        with self._lock:
            self._jobs.append(do)
        self._waker.send(b"\0")
        assert done.wait(10), "the proxy's thread is stuck"

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((self.host, self.port))
            self._listener.listen(128)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._selector.register(self._listener, selectors.EVENT_READ, "accept")

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _end(self) -> None:
        self._unlisten()
        for link in self._links:
            if link.is_open:
                self._close_link(link, "fin")
        self._is_closing = True

    def _run(self) -> None:
        while not self._is_closing:
            events = self._selector.select(self._pause())
            with self._lock:
                for key, mask in events:
                    self._handle(key, mask)
                self._tick()
                self._lock.notify_all()

    def _pause(self) -> float | None:
        """Tell how long nothing has to be done unless something comes."""
        return None

    def _tick(self) -> None:
        """Do what it is time for."""

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data == "wake":
            self._wakened.recv(4096)
            jobs, self._jobs = self._jobs, []
            for job in jobs:
                job()
        elif key.data == "accept":
            with contextlib.suppress(OSError):
                self._accept()
        else:
            link, side = key.data
            if link.is_open and mask & selectors.EVENT_WRITE:
                self._write(link, side)
            if link.is_open and mask & selectors.EVENT_READ:
                self._read(link, side)

    def _accept(self) -> None:
        if self._listener is None:
            return  # closed by a job that came in the same round
        client, _ = self._listener.accept()
        if self._is_slamming:
            self.slammed += 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        try:
            broker = socket.create_connection(
                (self._broker.host, self._broker.port), timeout=5
            )
        except OSError:
            client.close()
            return
        for sock in (client, broker):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        link = Link(
            len(self._links),
            _Side(client, has_greeting=True),
            _Side(broker, has_greeting=False),
        )
        self._links.append(link)
        self._watch(link)

    def _watch(self, link: Link) -> None:
        """Have the selector wait for what the link can do now."""
        for side in (link._client, link._broker):
            name, other = "client", "broker"
            if side is link._broker:
                name, other = other, name
            mask = 0
            if side.is_reading and name not in self._silent:
                mask |= selectors.EVENT_READ
            if self._may_write(side) and other not in self._silent:
                mask |= selectors.EVENT_WRITE
            with contextlib.suppress(KeyError):
                self._selector.unregister(side.sock)
            if mask:
                self._selector.register(side.sock, mask, (link, side))

    def _read(self, link: Link, side: _Side) -> None:
        try:
            data = side.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self._close_link(link, "rst")
            return
        if not data:
            self._close_link(link, "fin")
            return
        is_client = side is link._client
        other = link._broker if is_client else link._client
        log = link.sent if is_client else link.received
        now = time.monotonic()
        for frame, raw in side.splitter.feed(data):
            if frame is not None:
                log.append((now, frame))
                if self._cut_at and self._cut_at[0](link, is_client, frame):
                    _, how, forward = self._cut_at
                    self._cut_at = None
                    if forward:
                        other.unsent += raw
                        self._flush(other)
                    self._close_link(link, how)
                    return
                if self._drop and self._drop(link, is_client, frame):
                    continue
            self._pass_on(link, is_client, frame, raw)
        # What came from the one may have been answered to the other.
        for each in (other, side):
            if link.is_open:
                self._write(link, each)

    def _pass_on(
        self, link: Link, is_client: bool, frame: Frame | None, raw: bytes
    ) -> None:
        """Give to the other side what came from one.

        :param frame: None for the greeting.
        """
        side = link._broker if is_client else link._client
        side.unsent += raw

    def _may_write(self, side: _Side) -> bool:
        return bool(side.unsent)

    def _write(self, link: Link, side: _Side) -> None:
        try:
            self._flush(side)
        except OSError:
            self._close_link(link, "rst")
            return
        # Who does not read what he gets is not read from either.
        other = link._client if side is link._broker else link._broker
        other.is_reading = len(side.unsent) < 1 << 20
        self._watch(link)

    def _flush(self, side: _Side) -> None:
        with contextlib.suppress(BlockingIOError):
            while side.unsent:
                del side.unsent[: side.sock.send(side.unsent)]

    def _close_link(self, link: Link, how: str) -> None:
        link.is_open = False
        for side in (link._client, link._broker):
            with contextlib.suppress(KeyError):
                self._selector.unregister(side.sock)
            if how == "rst":
                side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            else:
                # The last words, connection.close-ok for instance.
                with contextlib.suppress(OSError):
                    self._flush(side)
            side.sock.close()

    def _set_silent(self, of: frozenset[str]) -> None:
        self._silent = of
        for link in self._links:
            if link.is_open:
                self._watch(link)


def named(*names: str, from_client: bool) -> Predicate:
    """Match frames by name and direction."""
    return lambda _, is_client, frame: is_client == from_client and frame.name in names


def total(links: Iterable[Link]) -> int:
    """Count all frames that clients sent over some links."""
    return sum(len(link.sent) for link in links)


@pytest.fixture
def proxy(broker: Any) -> Iterator[Proxy]:
    """A proxy before the broker, for one test."""
    with Proxy(broker) as it:
        yield it
