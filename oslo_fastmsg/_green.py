"""Waiting through eventlet's hub, in processes whose threads are greenthreads.

A greenthread that slept in the core would stop every other one of its native
thread. It has the core put a token into a ``_core.Hub`` instead, whose
descriptor is registered with eventlet's hub once, and switches to that. What
eventlet patches is decided by the service, before or after this package is
imported: so it is looked at in each call, and nothing here imports eventlet.
"""

import collections
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from oslo_fastmsg import _core

__all__ = ["Station", "current", "here", "hub_here", "is_patched", "original", "spawn"]

T = TypeVar("T")

# epoll_wait() counts milliseconds in 31 bits; whoever waits longer looks
# again in between.
_LONGEST_TIMER_S = 3600.0

# For how long a hub lets one after the other run whose wait is over, before it
# looks at its timers again: a hundred replies may have come at once.
_TURN_S = 0.002

# Where an eventlet hub keeps its station.
_ATTRIBUTE = "_oslo_fastmsg_station"


def is_patched() -> bool:
    """Tell whether the threads of this process are greenthreads."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and "thread" in getattr(patcher, "already_patched", ())


def original(name: str) -> Any:
    """Give a module of the standard library as it is without eventlet."""
    if is_patched():
        return sys.modules["eventlet.patcher"].original(name)
    return importlib.import_module(name)


def current() -> Any:
    """Give the running greenlet, in a process that is patched."""
    return sys.modules["greenlet"].getcurrent()


def hub_here() -> Any:
    """Give eventlet's hub of this native thread; None if it has none.

    No hub is made: a thread without one has nobody else to run.
    """
    if not is_patched():
        return None
    return getattr(sys.modules["eventlet.hubs"]._threadlocal, "hub", None)


def here() -> "Station | None":
    """Give the station where the caller is to wait; None: it may just sleep.

    It may in processes without eventlet, in native threads beside the green
    ones, and in the hub's own greenlet, which cannot wait for itself.
    """
    # The first lines of is_patched(), for those who pay for this in vain.
    if "eventlet.patcher" not in sys.modules:
        return None
    hub = hub_here()
    try:
        if hub is None or hub.greenlet is current():
            return None
    except RuntimeError:
        return None  # the interpreter ends, and has no greenlets any more
    station: Station | None = getattr(hub, _ATTRIBUTE, None)
    if station is None or station.pid != os.getpid():
        station = Station(hub)
        setattr(hub, _ATTRIBUTE, station)
    return station


def spawn(function: Callable[[], None]) -> Any:
    """Start a greenthread in the hub of this native thread; does not switch."""
    return sys.modules["eventlet"].spawn(function)


class Station:
    """Where the greenthreads of one native thread wait for the core.

    Used by that thread alone; so it needs no lock.

    A forked child leaves the parent's alone: it makes its own, and what it
    inherited stays registered as it is, for epoll would take it from the
    parent. The descriptor stays open as long as the hub that knows it.

    :ivar pid: the process that made it.
    """

    def __init__(self, hub: Any) -> None:
        self.pid = os.getpid()
        self._hub = hub
        self._core = _core.Hub()
        self._tokens = itertools.count()
        self._waiters: dict[int, Any] = {}  # greenlets, all of them in wait()
        self._ready: collections.deque[int] = collections.deque()  # their tokens
        self._turn: Any = None  # the timer of the next _switch()
        hub.add(hub.READ, self._core.fileno(), self._on_readable, _ignore, None)

    def wait(
        self,
        target: "_core.Call | _core.Publication | _core.Consumer | _core.Flag | None",
        is_ready: Callable[[], bool],
        timeout: float | None,
    ) -> bool:
        """Let other greenthreads run until something is ready.

        What ends the wait from outside, such as ``GreenletExit`` or
        ``eventlet.Timeout``, leaves nothing behind.

        :param target: what fires when `is_ready` may have changed its mind.
        :param is_ready: asked after each sign; must not switch. Whatever it
            raises ends the wait.
        :param timeout: seconds; None for no limit.
        :returns: False at the timeout.
        """
        if is_ready():
            return True
        end_at = None if timeout is None else time.monotonic() + timeout
        token = next(self._tokens)
        timer = None
        watch = _core.Watch(self._core, target, token)
        self._waiters[token] = current()
        try:
            while not is_ready():
                if end_at is not None and (timer is None or timer.called):
                    left = end_at - time.monotonic()
                    if left <= 0:
                        return False
                    timer = self._hub.schedule_call_global(
                        min(left, _LONGEST_TIMER_S), self._wake, token
                    )
                self._hub.switch()
            return True
        finally:
            del self._waiters[token]
            watch.end()
            if timer is not None:
                timer.cancel()

    def pause(self) -> None:
        """Let everybody run who can.

        For loops that might always find something to do: without this, a
        flood of requests would be received and none of them served.
        """
        timer = self._hub.schedule_call_global(0, current().switch)
        try:
            self._hub.switch()
        finally:
            timer.cancel()

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have a native thread do what sleeps in the core, and wait for it.

        For what is rare. A wait that ends from outside leaves the thread
        behind, which ends with the function.
        """
        done = _core.Flag()
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        thread = original("threading").Thread(
            target=work, name="fastmsg-wait", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # No thread can be started any more, since the interpreter is at
            # its end (3.12) or the process at its limit.
            return function(*args, **kwargs)
        self.wait(done, done.is_set, None)
        thread.join()  # it has nothing left to do
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()  # the traceback would keep itself
        return results[0]

    def _on_readable(self, _fd: int) -> None:
        """Switch to those whose token is there; called by eventlet's hub."""
        if self.pid != os.getpid():
            return  # the parent's wake-ups are not the child's to take
        self._ready.extend(self._core.drain())
        self._switch()

    def _switch(self) -> None:
        """Let the ready ones run, but not all before anybody else may."""
        end_at = time.monotonic() + _TURN_S
        try:
            while self._ready:
                self._wake(self._ready.popleft())
                if time.monotonic() >= end_at:
                    break
        finally:
            # Also when the hub is left with an exception.
            if self._ready and (self._turn is None or self._turn.called):
                self._turn = self._hub.schedule_call_global(0, self._switch)

    def _wake(self, token: int) -> None:
        waiter = self._waiters.get(token)
        if waiter is None:
            return
        try:
            waiter.switch()
        except self._hub.SYSTEM_EXCEPTIONS:
            raise
        except BaseException:
            # What a greenlet dies of ends up here. It is not the others'
            # fault, and the hub would give up the descriptor for it.
            self._hub.squelch_generic_exception(sys.exc_info())


def _ignore(_error: object) -> None:
    """For a hub that finds the descriptor closed: nobody closes it."""
