"""A proxy that is a bad network and a bad broker as well.

Slow, in slices, behind a port that answers nothing; and it says methods that
the broker did not say. What it makes a client believe (a channel is closed, a
consumer cancelled) it makes the broker do, so that the two still agree.
"""

import collections
import contextlib
import dataclasses
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from amqp.serialization import dumps
from fix_proxy import BODY, HEADER, METHOD, Frame, Link, Predicate, Proxy, _Side

__all__ = ["FaultyProxy", "frame_of", "proxy"]

_IDS = {
    "connection.close": (10, 50, "BsBB"),
    "connection.blocked": (10, 60, "s"),
    "connection.unblocked": (10, 61, ""),
    "channel.close": (20, 40, "BsBB"),
    "basic.cancel": (60, 30, "sb"),
    "basic.ack": (60, 80, "Lb"),
    "basic.nack": (60, 120, "Lbb"),
}


def frame_of(name: str, channel: int, *arguments: Any) -> bytes:
    """Write a method's frame."""
    class_id, method_id, kinds = _IDS[name]
    payload = struct.pack(">HH", class_id, method_id)
    payload += dumps(kinds, list(arguments)) if kinds else b""
    return struct.pack(">BHI", METHOD, channel, len(payload)) + payload + b"\xce"


@dataclasses.dataclass
class _Flow:
    """How fast a side is written to, and what is not due yet."""

    later: collections.deque[tuple[float, bytes]]
    next_at: float = 0.0


@dataclasses.dataclass
class _Confirms:
    """What is to become of the confirms of messages with these bytes in them."""

    marker: bytes
    how: str  # withhold or nack


class _Publishing:
    """The tags of a channel of confirms, as both sides count them."""

    def __init__(self) -> None:
        self.published = 0
        self.unconfirmed: set[int] = set()
        self.marked: set[int] = set()


class FaultyProxy(Proxy):
    """See the module."""

    def __init__(self, broker: Any) -> None:
        self._flows: dict[_Side, _Flow] = {}
        self._delay_s = 0.0
        self._slice = 0
        self._rate = 0
        self._crowd: list[socket.socket] = []
        self._withheld: Predicate | None = None
        self._held: list[tuple[Link, bool, bytes]] = []
        self._held_content: set[tuple[int, bool, int]] = set()
        self._confirms: _Confirms | None = None
        self._publishing: dict[tuple[int, int], _Publishing] = collections.defaultdict(
            _Publishing
        )
        # Channels that we closed: "said" until the client has agreed, then
        # what it sends meanwhile, until the broker has.
        self._closing: dict[tuple[int, int], bytearray | None] = {}
        self._cancelled: set[tuple[int, str]] = set()
        self._has_closed: set[int] = set()
        super().__init__(broker)

    def close(self) -> None:
        super().close()
        self._disperse()

    @staticmethod
    def now() -> float:
        """The clock of links and accounts."""
        return time.monotonic()

    # --- a bad network ---

    def black_hole(self) -> None:
        """Answer no SYN any more, until :meth:`accept`.

        The kernel drops them as soon as a listener's queue is full.
        """

        def fill() -> None:
            self._unlisten()
            hole = socket.socket()
            hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            hole.bind((self.host, self.port))
            hole.listen(0)
            self._crowd.append(hole)
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex((self.host, self.port))
                self._crowd.append(one)

        self._do(fill)

    def accept(self) -> None:
        self._do(self._disperse)
        super().accept()

    def _disperse(self) -> None:
        # Those who wait first: what a closed listener left could not be reset.
        for one in reversed(self._crowd):
            with contextlib.suppress(OSError):
                one.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            one.close()
        self._crowd.clear()

    def part(self) -> None:
        """Let nothing pass and nobody in, as a network in two parts; whoever is
        connected is told nothing. :meth:`mend` ends it."""
        self.silence()
        self.black_hole()

    def mend(self) -> None:
        """End :meth:`part`; what the kernels still hold passes."""
        self.accept()
        self.resume()

    def slow(self, *, delay_s: float = 0.0, rate: int = 0, slice: int = 0) -> None:
        """Pass things on late, at so many bytes a second, in pieces of so many
        bytes; 0 for none of it, in both directions."""

        def install() -> None:
            self._delay_s, self._rate, self._slice = delay_s, rate, slice

        self._do(install)

    def _flow(self, side: _Side) -> _Flow:
        return self._flows.setdefault(side, _Flow(collections.deque()))

    def _put(self, side: _Side, raw: bytes) -> None:
        flow = self._flow(side)
        if self._delay_s or flow.later:
            flow.later.append((time.monotonic() + self._delay_s, raw))
        else:
            side.unsent += raw

    def _may_write(self, side: _Side) -> bool:
        return bool(side.unsent) and self._flow(side).next_at <= time.monotonic()

    def _flush(self, side: _Side) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._may_write(side):
                most = self._slice or len(side.unsent)
                if self._rate:
                    most = min(most, max(1, self._rate // 100))
                sent = side.sock.send(side.unsent[:most])
                del side.unsent[:sent]
                if self._rate:
                    self._flow(side).next_at = time.monotonic() + sent / self._rate

    def _pause(self) -> float | None:
        moments = []
        for side, flow in self._flows.items():
            if flow.later:
                moments.append(flow.later[0][0])
            if side.unsent and flow.next_at:
                moments.append(flow.next_at)
        if not moments:
            return None
        return min(1.0, max(0.0, min(moments) - time.monotonic()))

    def _tick(self) -> None:
        now = time.monotonic()
        for link in self._links:
            for side in (link._client, link._broker):
                flow = self._flows.get(side)
                if flow is None:
                    continue
                if not link.is_open:
                    del self._flows[side]
                    continue
                is_due = bool(flow.next_at and side.unsent and flow.next_at <= now)
                while flow.later and flow.later[0][0] <= now:
                    side.unsent += flow.later.popleft()[1]
                    is_due = True
                if is_due and link.is_open:
                    self._write(link, side)

    # --- a bad broker ---

    def withhold(self, predicate: Predicate | None) -> None:
        """Keep such frames back, content included; None gives them, in order."""

        def install() -> None:
            self._withheld = predicate
            if predicate is None:
                held, self._held = self._held, []
                self._held_content.clear()
                for link, is_client, raw in held:
                    if link.is_open:
                        self._put(link._broker if is_client else link._client, raw)
                        self._write(link, link._broker if is_client else link._client)

        self._do(install)

    def forget(self) -> None:
        """End :meth:`withhold`, and give nothing of it."""

        def drop() -> None:
            self._withheld = None
            self._held.clear()
            self._held_content.clear()

        self._do(drop)

    def treat_confirms(self, marker: bytes | None, how: str = "withhold") -> None:
        """Withhold or nack the confirms of messages with some bytes in them;
        the confirms of others come as they would. None ends that.

        """
        self._do(
            lambda: setattr(
                self, "_confirms", None if marker is None else _Confirms(marker, how)
            )
        )

    def inject(self, name: str, *arguments: Any, link: Link, channel: int = 0) -> float:
        """Say a method to a client in the broker's name; give the moment.

        connection.close: the client's close-ok is kept from the broker.
        channel.close, basic.cancel: the broker is told the same by the client.
        """
        moment = 0.0

        def say() -> None:
            nonlocal moment
            moment = time.monotonic()
            if name == "connection.close":
                self._has_closed.add(link.number)
            elif name == "channel.close":
                self._closing[link.number, channel] = None
            elif name == "basic.cancel":
                raw = frame_of("basic.cancel", channel, arguments[0], True)
                self._put(link._broker, raw)
                self._write(link, link._broker)
            self._put(link._client, frame_of(name, channel, *arguments))
            self._write(link, link._client)

        self._do(say)
        return moment

    # --- frames ---

    def _pass_on(
        self, link: Link, is_client: bool, frame: Frame | None, raw: bytes
    ) -> None:
        side = link._broker if is_client else link._client
        if frame is None:
            self._put(side, raw)
            return
        if is_client:
            self._count(link, frame)
        elif frame.name in ("basic.ack", "basic.nack"):
            raw = self._confirm(link, frame, raw)
        raw = self._close(link, is_client, frame, raw)
        if raw and self._is_withheld(link, is_client, frame):
            self._held.append((link, is_client, raw))
        elif raw:
            self._put(side, raw)

    def _is_withheld(self, link: Link, is_client: bool, frame: Frame) -> bool:
        key = link.number, is_client, frame.channel
        if frame.kind in (HEADER, BODY):
            return key in self._held_content
        is_it = bool(self._withheld and self._withheld(link, is_client, frame))
        if is_it and frame.name in ("basic.deliver", "basic.publish", "basic.return"):
            self._held_content.add(key)
        elif frame.kind == METHOD:
            self._held_content.discard(key)
        return is_it

    def _count(self, link: Link, frame: Frame) -> None:
        if frame.name == "channel.open":
            self._publishing.pop((link.number, frame.channel), None)
        elif frame.name == "basic.publish":
            it = self._publishing[link.number, frame.channel]
            it.published += 1
            it.unconfirmed.add(it.published)
        elif frame.kind == BODY and self._confirms is not None:
            if self._confirms.marker in frame.payload:
                it = self._publishing[link.number, frame.channel]
                it.marked.add(it.published)

    def _confirm(self, link: Link, frame: Frame, raw: bytes) -> bytes:
        """Write an ack anew, one by one, if some of it is treated."""
        it = self._publishing[link.number, frame.channel]
        tag, is_multiple = frame.arguments[:2]
        tags = [tag]
        if is_multiple:
            tags = sorted(each for each in it.unconfirmed if each <= tag)
        it.unconfirmed.difference_update(tags)
        # An ack of several tags would take those in that are withheld.
        if self._confirms is None or not it.marked:
            return raw
        anew = b""
        for each in tags:
            if each not in it.marked:
                anew += frame_of("basic.ack", frame.channel, each, False)
            elif self._confirms.how == "nack":
                anew += frame_of("basic.nack", frame.channel, each, False, False)
        return anew

    def _close(self, link: Link, is_client: bool, frame: Frame, raw: bytes) -> bytes:
        key = link.number, frame.channel
        if is_client and frame.name == "connection.close-ok":
            return b"" if link.number in self._has_closed else raw
        if key not in self._closing:
            return raw
        waiting = self._closing[key]
        if is_client and waiting is None:
            if frame.name != "channel.close-ok":
                return b""  # sent before it knew
            self._closing[key] = bytearray()
            return frame_of("channel.close", frame.channel, 200, "as told", 0, 0)
        if waiting is None:
            return b""
        if is_client:
            waiting += raw
        elif frame.name == "channel.close-ok":
            del self._closing[key]
            self._put(link._broker, bytes(waiting))
        return b""  # the channel is closed for the client


@pytest.fixture
def proxy(broker: Any) -> Iterator[FaultyProxy]:
    """A proxy before the broker, for one test."""
    with FaultyProxy(broker) as it:
        yield it
