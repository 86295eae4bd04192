"""Carries what the core has to say into ``logging`` (logger ``oslo_fastmsg``).

The core's threads never take the GIL, so they put their lines into a bounded
ring. One daemon thread per process empties it (a greenthread where threads
are green); it sleeps while there is nothing, starts with the first connection
in use and ends with the last one. The core also calls it when replies come that
only Python can read (``_replies``).
"""

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable

from oslo_fastmsg import _core, _waiting

__all__ = ["forget", "release", "retain", "when_called"]

LOG = logging.getLogger("oslo_fastmsg")

# The log may end up in a notification, which waits for a broker: whoever
# cleans up does not wait for that for ever.
_JOIN_S = 5.0


class _Drain:
    """The thread, and those for whose sake it runs."""

    def __init__(self) -> None:
        self._lock = _waiting.make_lock()
        # Weak: a transport that is dropped without cleanup() is no reason to
        # keep the thread when all others are gone.
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._task: _waiting.Task | None = None
        self._ending: _waiting.Task | None = None  # told to, the last one
        self._starts = 0

    def retain(self, user: object) -> None:
        with self._lock:
            self._users.add(user)
            if self._task is None:
                self._starts += 1
                self._task = _waiting.spawn(
                    functools.partial(self._run, self._starts, self._ending),
                    "fastmsg-events",
                    is_independent=True,
                )

    def release(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if self._users or self._task is None:
                return
            task, self._task = self._task, None
            self._ending = task
            _core.stop_events()
        _waiting.join(task, _JOIN_S)

    def _run(self, number: int, predecessor: _waiting.Task | None) -> None:
        if predecessor is not None:
            # The ring has one stop for all: so one after the other.
            _waiting.join(predecessor)
            del predecessor
        with self._lock:
            # Or else it was released before it began, and logs what is left.
            if self._task is not None and self._starts == number:
                self._ending = None
                _core.resume_events()
        _log_all()


_drain = _Drain()


_called: list[Callable[[], None]] = []


def when_called(function: Callable[[], None]) -> None:
    """Have a function called when the core needs Python for something.

    It is to be quick, and to wait for nothing.
    """
    _called.append(function)


def retain(user: object) -> None:
    """Have events logged for as long as `user` lives or until its release.

    Does not switch greenlets.
    """
    _drain.retain(user)


def release(user: object) -> None:
    """End what :func:`retain` began; the last one logs the rest and ends."""
    _drain.release(user)


def forget() -> None:
    """In a forked child: nobody uses anything, and there is no thread."""
    global _drain
    _drain = _Drain()


def _log_all() -> None:
    while (event := _waiting.next_event()) is not None:
        level, text = event
        # A handler that fails is to be heard of elsewhere; the next line may
        # matter, and the ring must not fill.
        with contextlib.suppress(Exception):
            if level == 0:
                for function in _called:
                    function()
            else:
                LOG.log(level, "%s", text)
