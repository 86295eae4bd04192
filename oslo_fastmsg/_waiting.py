"""Where a thread of Python sleeps: nowhere else in the package.

Native threads sleep in the core, without the GIL, until their own deadline.
Greenthreads must sleep in their hub instead, and how that is done will be
decided here, per call, by what the calling thread is; the rest of the package
only says what it waits for. Until then a monkey-patched process works, but a
wait stops its hub.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from oslo_fastmsg import _core

__all__ = [
    "Lock",
    "Signal",
    "call",
    "close_bus",
    "close_consumer",
    "flush",
    "join",
    "next_event",
    "open_consumer",
    "publish",
    "reply",
    "spawn",
    "stop_consumer",
    "take",
    "wait_reply",
]

#: Held for a few statements, never while its holder sleeps.
Lock = threading.Lock
#: A flag to sleep on.
Signal = threading.Event


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that does not keep the process alive."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def join(thread: threading.Thread, timeout: float | None = None) -> None:
    """Wait for a thread's end, but not for oneself."""
    if thread is not threading.current_thread():
        thread.join(timeout)


def call(bus: _core.Bus, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and sleep until its reply: ``Bus.call`` of these arguments."""
    return bus.call(**request)


def wait_reply(pending: _core.Call, timeout: float) -> dict[str, Any]:
    """Sleep until the next reply to a request: ``Call.wait``."""
    return pending.wait(timeout)


def publish(bus: _core.Bus, *args: Any, **kwargs: Any) -> None:
    """Send a message and sleep until it is confirmed: ``Bus.publish``."""
    bus.publish(*args, **kwargs)


def reply(bus: _core.Bus, *args: Any, **kwargs: Any) -> None:
    """Hand over a reply; sleep while too many wait: ``Bus.reply``."""
    bus.reply(*args, **kwargs)


def flush(bus: _core.Bus, timeout: float) -> bool:
    """Sleep until the replies handed over are confirmed: ``Bus.flush``."""
    return bus.flush(timeout)


def close_bus(bus: _core.Bus) -> None:
    """Leave a bus; the last sleeps until its connections close: ``Bus.close``."""
    bus.close()


def open_consumer(consumer: _core.Consumer, timeout: float | None) -> None:
    """Sleep until a consumer's queues are declared: ``Consumer.open``."""
    consumer.open(timeout)


def stop_consumer(consumer: _core.Consumer) -> None:
    """Sleep until nothing more is delivered: ``Consumer.stop``."""
    consumer.stop()


def close_consumer(consumer: _core.Consumer, delete: Sequence[str] = ()) -> None:
    """Sleep until the channel is closed: ``Consumer.close``."""
    consumer.close(delete=delete)


def take(
    consumer: _core.Consumer, limit: int, timeout: float | None
) -> Sequence[_core.Delivery]:
    """Sleep until there are deliveries: ``Consumer.take``."""
    return consumer.take(limit, timeout)


def next_event() -> tuple[int, str] | None:
    """Sleep until the core has something to log; None when it is told to end."""
    return _core.next_event(None)
