"""Carries what the core has to say into ``logging`` (logger ``oslo_fastmsg``).

The core's threads never take the GIL, so they put their lines into a bounded
ring. One daemon thread per process empties it; it sleeps while there is
nothing, starts with the first connection in use and ends with the last one.
"""

import contextlib
import logging
import threading
import weakref

from oslo_fastmsg import _core, _waiting

__all__ = ["forget", "release", "retain"]

LOG = logging.getLogger("oslo_fastmsg")

# The log may end up in a notification, which waits for a broker: whoever
# cleans up does not wait for that for ever.
_JOIN_S = 5.0


class _Drain:
    """The thread, and those for whose sake it runs."""

    def __init__(self) -> None:
        self._lock = _waiting.Lock()
        # Weak: a transport that is dropped without cleanup() is no reason to
        # keep the thread when all others are gone.
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def retain(self, user: object) -> None:
        with self._lock:
            self._users.add(user)
            if self._thread is None:
                _core.resume_events()
                self._thread = _waiting.spawn(_run, "fastmsg-events")

    def release(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if self._users or self._thread is None:
                return
            thread, self._thread = self._thread, None
            # Under the lock, so that a retain() of now starts after the end.
            _core.stop_events()
            _waiting.join(thread, _JOIN_S)


_drain = _Drain()


def retain(user: object) -> None:
    """Have events logged for as long as `user` lives or until its release."""
    _drain.retain(user)


def release(user: object) -> None:
    """End what :func:`retain` began; the last one logs the rest and ends."""
    _drain.release(user)


def forget() -> None:
    """In a forked child: nobody uses anything, and there is no thread."""
    global _drain
    _drain = _Drain()


def _run() -> None:
    while (event := _waiting.next_event()) is not None:
        level, text = event
        # A handler that fails is to be heard of elsewhere; the next line may
        # matter, and the ring must not fill.
        with contextlib.suppress(Exception):
            LOG.log(level, "%s", text)
