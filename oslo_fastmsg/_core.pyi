"""The core in C, as Python sees it."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from typing_extensions import Self

_Declaration = (
    tuple[str, str, str, bool, bool]
    | tuple[str, str, bool, bool, dict[str, int | str | bool]]
    | tuple[str, str, str, str]
)

# A dict is put into an envelope, which is JSON; bytes are sent as they are, as JSON.
# A tuple has one of them, the MIME type of its compression or "", for the header that
# names it, and what is to be said about envelopes.
_Body = dict[str, Any] | bytes | tuple[dict[str, Any] | bytes, str, int]

RPC: int
NOTIFY: int
FANOUT: int
# What may be said of a message about envelopes, as bits.
JSON: int
MSGPACK: int  # it is in the binary one
READS_MSGPACK: int  # it has the header that names that one
MSGPACK_CONTENT_TYPE: str

class Error(Exception):
    code: int

class Timeout(Error): ...
class Disconnected(Error): ...
class Refused(Error): ...
class Rejected(Error): ...
class Nacked(Error): ...

class Returned(Error):
    exchange: str
    routing_key: str

class Closed(Error): ...
class BadMessage(Error): ...

def new_id() -> str: ...
def fork_generation() -> int: ...
def encode(payload: Any, /) -> bytes: ...
def decode(body: bytes, /) -> Any: ...
def dumps(value: Any, /) -> str: ...
def pack(payload: Any, /) -> bytes: ...
def unpack(body: bytes, /) -> Any: ...
def next_event(timeout: float | None) -> tuple[int, str] | None: ...
def stop_events() -> None: ...
def resume_events() -> None: ...
def events_are_stopped() -> bool: ...
def events_lost() -> int: ...
def broker_stats() -> list[dict[str, Any]]: ...
def broker_health() -> list[dict[str, Any]]: ...

@final
class Topology:
    def __new__(cls, declarations: Sequence[_Declaration]) -> Self: ...

@final
class Bus:
    def __new__(
        cls,
        *,
        hosts: Sequence[tuple[str, int, str, str]],
        virtual_host: str,
        login_method: str,
        heartbeat: int,
        name: str,
        shuffle: bool,
        interval_start: float,
        interval_step: float,
        interval_max: float,
        reconnect_delay: float,
        reconnect_splay: float,
        tls: Mapping[str, Any] | None,
    ) -> Self: ...
    def call(
        self,
        topology: Topology | None,
        exchange: str,
        routing_key: str,
        payload: _Body,
        *,
        msg_id: str,
        replies: Consumer,
        timeout: float,
        mandatory: bool,
        retry: int,
    ) -> dict[str, Any]: ...
    def begin_call(
        self,
        topology: Topology | None,
        exchange: str,
        routing_key: str,
        payload: _Body,
        *,
        msg_id: str,
        replies: Consumer,
        timeout: float,
        mandatory: bool,
        retry: int,
    ) -> Call: ...
    def publish(
        self,
        topology: Topology | None,
        exchange: str,
        routing_key: str,
        payload: _Body,
        *,
        lane: int,
        mandatory: bool,
        timeout: float,
        retry: int,
    ) -> None: ...
    def reply(
        self,
        routing_key: str,
        payload: _Body,
        *,
        mandatory: bool,
        patience: float,
        timeout: float,
    ) -> None: ...
    def try_reply(
        self,
        routing_key: str,
        payload: _Body,
        *,
        mandatory: bool,
        patience: float,
        timeout: float,
    ) -> bool: ...
    def begin_publish(
        self,
        topology: Topology | None,
        exchange: str,
        routing_key: str,
        payload: _Body,
        *,
        lane: int,
        mandatory: bool,
        timeout: float,
        retry: int,
    ) -> Publication: ...
    def send_acks(self) -> None: ...
    def notice_json(self, queue: str, /) -> None: ...
    def flush(self, timeout: float) -> bool: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

@final
class Call:
    def wait(self, timeout: float) -> dict[str, Any]: ...
    def is_ready(self) -> bool: ...
    def cancel(self) -> None: ...

@final
class Publication:
    def wait(self) -> None: ...
    def remaining(self) -> float: ...
    def is_ready(self) -> bool: ...
    def cancel(self) -> None: ...

@final
class Flag:
    def __new__(cls) -> Self: ...
    def set(self) -> None: ...
    def is_set(self) -> bool: ...

@final
class Hub:
    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def drain(self) -> list[int]: ...

@final
class Watch:
    def __new__(
        cls,
        hub: Hub,
        target: Call | Publication | Consumer | Flag | None,
        token: int,
    ) -> Self: ...
    def end(self) -> None: ...

@final
class Consumer:
    def __new__(
        cls,
        bus: Bus,
        declarations: Sequence[_Declaration],
        queues: Sequence[str],
        *,
        prefetch: int,
        ack_on_take: bool,
        replies: bool,
        cancel_on_failover: bool,
    ) -> Self: ...
    def open(self, timeout: float | None) -> None: ...
    # Says what is wanted and returns; for a consumer of replies this is
    # enough, without open(): a call waits for its gate.
    def start(self) -> None: ...
    def take(self, max: int, timeout: float | None) -> list[Delivery]: ...
    def deliver_reply(self, payload: dict[str, Any], /) -> bool: ...
    def stop(self) -> None: ...
    def close(self, delete: Sequence[str] = (), timeout: float = ...) -> None: ...

@final
class Delivery:
    # None: `body` is for the slow path, and was not acknowledged by take().
    # Else the body is empty: it is not held in two forms.
    payload: dict[str, Any] | None
    body: bytes
    size: int  # of the body as received
    content_type: str | None
    content_encoding: str | None
    headers: dict[str, Any]  # raises BadMessage if they cannot be decoded
    queue: str
    routing_key: str
    exchange: str
    redelivered: bool
    reads_msgpack: bool  # the sender, as its message says
    def accept(self, unique_id: str | None, /) -> bool: ...
    def ack(self) -> None: ...
    def begin(self) -> bool: ...
    def reject(self, requeue: bool, /) -> None: ...
