"""Where a thread of Python sleeps: nowhere else in the package.

Native threads sleep in the core, without the GIL, until their own deadline.
Greenthreads switch to their hub (``_green``). Which of both is decided per
call, by what the caller is; so native threads and greenthreads may use the
same transport at the same time.

What both share is guarded by a :func:`make_lock`, which is native and stops the
whole hub while it is waited for. So its holder does not switch greenlets: it
does not wait, and does not log either, since a handler may.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from oslo_fastmsg import _core, _green

__all__ = [
    "Signal",
    "Task",
    "call",
    "close_bus",
    "close_consumer",
    "flush",
    "join",
    "make_lock",
    "next_event",
    "open_consumer",
    "publish",
    "reply",
    "spawn",
    "stop_consumer",
    "take",
    "wait_reply",
]

T = TypeVar("T")

# poll() takes milliseconds as an int of C.
_LONGEST_POLL_S = 3600.0


def make_lock() -> threading.Lock:
    """Make a native lock, whatever eventlet has made of ``threading``."""
    lock: threading.Lock = _green.original("threading").Lock()
    return lock


class Signal:
    """A flag to sleep on, for any thread."""

    def __init__(self) -> None:
        self._flag = _core.Flag()

    def set(self) -> None:
        """Set it for good and wake all who wait."""
        self._flag.set()

    def is_set(self) -> bool:
        """Tell whether it was set."""
        return self._flag.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until it is set.

        :param timeout: seconds; None for no limit.
        :returns: False at the timeout.
        """
        station = _green.here()
        if station is not None:
            return station.wait(self._flag, self._flag.is_set, timeout)
        return _wait_natively(self._flag, timeout)


def _wait_natively(flag: _core.Flag, timeout: float | None) -> bool:
    # A flag has no sleep of its own; this is for what is rare.
    end_at = None if timeout is None else time.monotonic() + timeout
    hub = _core.Hub()
    select = _green.original("select")
    poll = select.poll()
    poll.register(hub.fileno(), select.POLLIN)
    watch = _core.Watch(hub, flag, 0)
    try:
        while not flag.is_set():
            left = _LONGEST_POLL_S
            if end_at is not None:
                left = min(left, end_at - time.monotonic())
                if left <= 0:
                    return False
            poll.poll(left * 1e3)
            hub.drain()
        return True
    finally:
        watch.end()


class Task:
    """A thread, or a greenthread, that runs one function; see :func:`spawn`."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._ended = Signal()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._greenlet: Any = None
        self._hub: Any = None

    def _start_thread(self, name: str) -> None:
        self._thread = _green.original("threading").Thread(
            target=self._run, name=name, daemon=True
        )
        self._thread.start()

    def _start_greenthread(self) -> None:
        # Unlike the start of a patched Thread, this does not switch.
        self._greenlet = _green.spawn(self._run)
        self._hub = _green.hub_here()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.set()

    def _join(self, timeout: float | None) -> None:
        if self._pid != os.getpid():
            return  # it is not in this process
        if self._thread is None:
            is_hub = _green.here() is None and self._hub is _green.hub_here()
            # While the hub waits, nobody runs for whom it could wait.
            if not is_hub and self._greenlet is not _green.current():
                self._ended.wait(timeout)
        elif self._thread is not _green.original("threading").current_thread() and (
            _green.here() is None or self._ended.wait(timeout)
        ):
            self._thread.join(timeout)


def spawn(
    target: Callable[[], None], name: str, *, is_independent: bool = False
) -> Task:
    """Start a thread that does not keep the process alive; does not switch.

    In a process whose threads are greenthreads it is one, of the caller's
    hub, since what it calls back expects that.

    :param is_independent: it is to run on when the caller's thread has ended:
        in a native one that has no hub, it becomes a native thread.
    """
    task = Task(target)
    if _green.is_patched() and not (is_independent and _green.hub_here() is None):
        task._start_greenthread()
    else:
        task._start_thread(name)
    return task


def join(task: Task, timeout: float | None = None) -> None:
    """Wait for a task's end, but not for oneself."""
    task._join(timeout)


def call(bus: _core.Bus, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and sleep until its reply: ``Bus.call`` of these arguments."""
    if _green.here() is None:
        return bus.call(**request)
    end_at = time.monotonic() + request["timeout"]
    pending = bus.begin_call(**request)
    try:
        best: dict[str, Any] | None = None
        while True:
            reply = wait_reply(pending, max(0.0, end_at - time.monotonic()))
            if _has_value(reply):
                best = reply
            if reply.get("ending") is True:
                return reply if best is None else best
    finally:
        pending.cancel()


def _has_value(reply: dict[str, Any]) -> bool:
    """Tell whether a reply is more than a sign of life, or the end of one."""
    return bool(reply.get("failure")) or reply.get("result") is not None


def wait_reply(pending: _core.Call, timeout: float) -> dict[str, Any]:
    """Sleep until the next reply to a request: ``Call.wait``."""
    station = _green.here()
    if station is None:
        return pending.wait(timeout)
    station.wait(pending, pending.is_ready, timeout)
    return pending.wait(0)


def publish(bus: _core.Bus, *args: Any, **kwargs: Any) -> None:
    """Send a message and sleep until it is confirmed: ``Bus.publish``."""
    station = _green.here()
    if station is None:
        bus.publish(*args, **kwargs)
        return
    pending = bus.begin_publish(*args, **kwargs)
    try:
        # The time begins anew with each connection.
        while not station.wait(pending, pending.is_ready, pending.remaining()):
            if pending.remaining() == 0:
                break
        pending.wait()
    finally:
        pending.cancel()


def reply(bus: _core.Bus, *args: Any, **kwargs: Any) -> None:
    """Hand over a reply; sleep while too many wait: ``Bus.reply``."""
    station = _green.here()
    if station is None:
        bus.reply(*args, **kwargs)
    elif not bus.try_reply(*args, **kwargs):
        station.run(bus.reply, *args, **kwargs)


def flush(bus: _core.Bus, timeout: float) -> bool:
    """Sleep until the replies handed over are confirmed: ``Bus.flush``."""
    station = _green.here()
    if station is None:
        return bus.flush(timeout)
    return bus.flush(0.0) or station.run(bus.flush, timeout)


def close_bus(bus: _core.Bus) -> None:
    """Leave a bus; the last sleeps until its connections close: ``Bus.close``."""
    _run(bus.close)


def open_consumer(consumer: _core.Consumer, timeout: float | None) -> None:
    """Sleep until a consumer's queues are declared: ``Consumer.open``."""
    _run(consumer.open, timeout)


def stop_consumer(consumer: _core.Consumer) -> None:
    """Sleep until nothing more is delivered: ``Consumer.stop``."""
    _run(consumer.stop)


def close_consumer(consumer: _core.Consumer, delete: Sequence[str] = ()) -> None:
    """Sleep until the channel is closed: ``Consumer.close``."""
    _run(consumer.close, delete=delete)


def _run(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    station = _green.here()
    if station is None:
        return function(*args, **kwargs)
    return station.run(function, *args, **kwargs)


def take(
    consumer: _core.Consumer, limit: int, timeout: float | None
) -> Sequence[_core.Delivery]:
    """Sleep until there are deliveries: ``Consumer.take``."""
    station = _green.here()
    if station is None:
        return consumer.take(limit, timeout)
    taken: Sequence[_core.Delivery] = ()

    def is_ready() -> bool:
        nonlocal taken
        taken = consumer.take(limit, 0)
        return len(taken) > 0

    station.pause()
    station.wait(consumer, is_ready, timeout)
    return taken


def next_event() -> tuple[int, str] | None:
    """Sleep until the core has something to log; None when it is told to end."""
    station = _green.here()
    if station is None:
        return _core.next_event(None)
    event: tuple[int, str] | None = None

    def is_ready() -> bool:
        nonlocal event
        event = _core.next_event(0)
        return event is not None or _core.events_are_stopped()

    station.pause()
    station.wait(None, is_ready, None)
    return event
