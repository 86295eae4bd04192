"""A peer without oslo.messaging: raw messages in and out of the broker.

On py-amqp, which the stock driver brings along. Nothing here knows envelopes
but :func:`payload_of`, which the tests read with, and :func:`packed`.
"""

import collections
import dataclasses
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import msgpack
import pytest
from private_broker import STRICT_VARIABLE

__all__ = [
    "MSGPACK",
    "READS_MSGPACK",
    "Captured",
    "Impostor",
    "Spy",
    "Tap",
    "envelope",
    "normalised",
    "packed",
    "payload_of",
    "request",
    "spy",
]


@dataclasses.dataclass(frozen=True)
class Captured:
    """A delivery as the broker gave it."""

    body: bytes
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    redelivered: bool


class Tap:
    """A queue that the spy consumes from."""

    def __init__(self, spy: "Spy", queue: str) -> None:
        self.queue = queue
        self._spy = spy
        self._channel = spy.connection.channel()
        self._messages: collections.deque[Captured] = collections.deque()
        self._channel.basic_consume(queue, no_ack=True, callback=self._receive)

    def _receive(self, message: amqp.Message) -> None:
        body = message.body
        self._messages.append(
            Captured(
                body.encode() if isinstance(body, str) else bytes(body),
                dict(message.properties),
                message.delivery_info["exchange"],
                message.delivery_info["routing_key"],
                message.delivery_info["redelivered"],
            )
        )

    def get(self, timeout: float = 10.0) -> Captured:
        """Take the next message; waits for it."""
        message = self.poll(timeout)
        assert message is not None, f"nothing in {self.queue} for {timeout} s"
        return message

    def poll(self, timeout: float) -> Captured | None:
        """Take the next message, if one comes in time."""
        deadline = time.monotonic() + timeout
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._spy.drain(left)
        return self._messages.popleft()

    def take(self, count: int, timeout: float = 10.0) -> list[Captured]:
        return [self.get(timeout) for _ in range(count)]

    def is_empty(self) -> bool:
        """Tell whether nothing has come so far; waits for what is on its way."""
        # The broker answers this after what it had to deliver before.
        self._channel.basic_qos(0, 0, False)
        return not self._messages


class Spy:
    """A connection of py-amqp and what tests do with it. For one thread."""

    def __init__(self, broker: Any) -> None:
        """:param broker: has ``host``, ``port``, ``user``, ``password`` and
        ``virtual_host``.
        """
        self.connection = amqp.Connection(
            host=f"{broker.host}:{broker.port}",
            userid=broker.user,
            password=broker.password,
            virtual_host=broker.virtual_host,
        )
        self.connection.connect()
        self._channel = self.connection.channel()
        self._channel.confirm_select()
        self._returned: list[Any] = []
        self._channel.events["basic_return"].add(
            lambda *args: self._returned.append(args)
        )

    def close(self) -> None:
        self.connection.close()

    def drain(self, timeout: float) -> None:
        """Read from the connection until a frame came or time is over."""
        try:
            self.connection.drain_events(timeout=timeout)
        except TimeoutError:
            pass

    def queue(self, name: str | None = None, **arguments: Any) -> str:
        """Declare a queue with the flags of oslo's; give its name."""
        name = name or f"spy-{uuid.uuid4().hex}"
        self._channel.queue_declare(
            name,
            # A strict broker takes no others.
            durable=bool(os.environ.get(STRICT_VARIABLE)),
            auto_delete=False,
            arguments=arguments,
        )
        return name

    def exchange(self, name: str, kind: str = "topic") -> None:
        """Declare an exchange that is not durable."""
        self._channel.exchange_declare(name, kind, durable=False, auto_delete=False)

    def tap(self, queue: str | None = None, **arguments: Any) -> Tap:
        """Declare a queue and consume from it."""
        return Tap(self, self.queue(queue, **arguments))

    def tap_exchange(
        self,
        exchange: str,
        key: str = "#",
        kind: str = "topic",
        queue: str | None = None,
    ) -> Tap:
        """Get a copy of what goes through an exchange, declared if need be."""
        self._channel.exchange_declare(
            exchange, kind, durable=False, auto_delete=kind == "fanout"
        )
        queue = self.queue(queue)
        self._channel.queue_bind(queue, exchange, key)
        return Tap(self, queue)

    def send(
        self, exchange: str, routing_key: str, body: bytes | str, **properties: Any
    ) -> None:
        """Publish and wait for the confirm.

        :param properties: of basic; without any it has the stock driver's.
            A value of None leaves that one out.
        """
        complete: dict[str, Any] = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "application_headers": {},
            "delivery_mode": 2,
            "priority": 0,
            **properties,
        }
        given = {key: value for key, value in complete.items() if value is not None}
        self._channel.basic_publish_confirm(
            amqp.Message(body, **given), exchange=exchange, routing_key=routing_key
        )

    def send_many(self, exchange: str, routing_key: str, bodies: list[bytes]) -> None:
        """Publish a lot, without waiting for any but the last."""
        channel = self.connection.channel()
        for body in bodies:
            message = amqp.Message(
                body, content_type="application/json", content_encoding="utf-8"
            )
            channel.basic_publish(message, exchange=exchange, routing_key=routing_key)
        channel.basic_qos(0, 0, False)
        channel.close()

    def count(self, queue: str) -> int:
        """Tell how many messages lie ready in a queue."""
        return int(self._channel.queue_declare(queue, passive=True).message_count)


def envelope(payload: Any, version: Any = "2.0") -> bytes:
    """Write an envelope the way the wire has it."""
    return json.dumps(
        {"oslo.version": version, "oslo.message": json.dumps(payload)}
    ).encode()


#: Properties of a body in the binary envelope, and of a JSON request of a peer
#: that reads it.
MSGPACK = {
    "content_type": "application/x-fastmsg-msgpack",
    "content_encoding": "binary",
}
READS_MSGPACK = {"application_headers": {"x-fastmsg-reads": "msgpack"}}


def packed(payload: Any) -> bytes:
    """Write the binary envelope with another implementation."""
    return bytes(msgpack.packb(payload))


def payload_of(body: bytes) -> Any:
    """Read an envelope; the first byte of a binary one is no text."""
    if body[0] >= 0x80:
        return msgpack.unpackb(body, ext_hook=lambda _, digits: int(digits))
    outer = json.loads(body)
    assert outer["oslo.version"] == "2.0"
    return json.loads(outer["oslo.message"])


def request(
    method: str | None, timeout: Any = None, reply_q: str | None = None, **args: Any
) -> bytes:
    """Write a request: a cast without `reply_q`, else a call.

    :param timeout: its ``_timeout``, for signs of life.
    """
    payload: dict[str, Any] = {} if method is None else {"method": method}
    payload["args"] = args
    if reply_q is not None:
        payload["_msg_id"] = uuid.uuid4().hex
        payload["_reply_q"] = reply_q
        payload["_timeout"] = timeout
    payload["_unique_id"] = uuid.uuid4().hex
    return envelope(payload)


_VARYING = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    rb"|[0-9a-f]{32}"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"
)


def normalised(data: bytes) -> bytes:
    """Replace random ids and times by their number of first appearance.

    Their form stays checked: 32 digits with or without dashes, six digits of
    a second. Equal ids become equal numbers.
    """
    seen: dict[bytes, int] = {}

    def replace(match: "re.Match[bytes]") -> bytes:
        number = seen.setdefault(match[0], len(seen))
        kind = {36: b"uuid", 32: b"id", 26: b"time"}[len(match[0])]
        return b"<%s %d>" % (kind, number)

    return _VARYING.sub(replace, data)


class Impostor:
    """Poses as an RPC server: consumes a topic's queue, answers as told."""

    def __init__(
        self, broker: Any, topic: str, answer: Callable[[Spy, dict[str, Any]], None]
    ) -> None:
        """:param answer: gets a spy to send with and a request's payload."""
        self.requests: list[Captured] = []
        self.errors: list[Exception] = []
        self._spy = Spy(broker)
        self._tap = self._spy.tap_exchange("openstack", topic, queue=topic)
        self._answer = answer
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Impostor":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_stopping = True
        self._thread.join(10)
        self._spy.close()
        assert not self.errors, self.errors

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                message = self._tap.poll(0.05)
                if message is not None:
                    self.requests.append(message)
                    self._answer(self._spy, payload_of(message.body))
        except Exception as error:
            self.errors.append(error)


@pytest.fixture
def spy(broker: Any) -> Iterator[Spy]:
    """A raw peer on the run's broker, for one test."""
    it = Spy(broker)
    yield it
    it.close()
