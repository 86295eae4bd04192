"""One user's share of the process's connections to a broker.

A transport has one, and each listener has its own, because a listener may
outlive the transport's ``cleanup()`` or end long before it. The core gives
all shares with equal parameters the same two connections and closes them
with the last.
"""

import atexit
import logging
import os
import threading
import weakref
from typing import Any, Protocol

from oslo_fastmsg import _core, _events, _waiting

__all__ = ["Share", "forget_after_fork", "notice_fork"]

LOG = logging.getLogger(__name__)

# Seconds that a clean end waits for the confirms of replies handed over.
_FLUSH_S = 2.0


class Share:
    """An open ``_core.Bus`` (attribute ``core``) and what goes with it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Make it; no I/O until it is used.

        :param arguments: those of ``_core.Bus``.
        """
        self.core = _core.Bus(**arguments)
        _events.retain(self)
        _open_shares.add(self)

    def flush(self) -> None:
        """Wait for the confirms of replies, for a moment."""
        if not _waiting.flush(self.core, _FLUSH_S):
            LOG.warning(
                "Not all replies were confirmed by the broker within %s s", _FLUSH_S
            )

    def close(self) -> None:
        """Give the share back; twice is allowed."""
        _open_shares.discard(self)
        _waiting.close_bus(self.core)
        _events.release(self)


class _Forgetful(Protocol):
    def forget(self) -> None: ...


_open_shares: weakref.WeakSet[Share] = weakref.WeakSet()
_forgetful: weakref.WeakSet[_Forgetful] = weakref.WeakSet()
_generation = _core.fork_generation()  # when all of this was last forgotten, or new
_noticing: dict[int, threading.Lock] = {}  # by the generation


def forget_after_fork(user: _Forgetful) -> None:
    """Have ``user.forget()`` called in each forked child, while `user` lives.

    What a user has open belongs to the parent. The child drops it (in a child
    the core's objects leak rather than touch a socket or a lock), makes new
    locks, since a thread that the child lacks may hold the old ones, and
    opens its own at the next use.
    """
    _forgetful.add(user)


def notice_fork() -> None:
    """Forget, if this is a child of a fork that Python was not told of.

    A host in C may fork without Python's handlers: uWSGI does unless it has
    ``py-call-uwsgi-fork-hooks``, and so does another interpreter of the same
    process. Called first in whatever uses what a parent may have left.
    """
    generation = _core.fork_generation()
    if generation == _generation:
        return
    # A lock for each child, since a thread that the child lacks may have held
    # any other; setdefault() is one step of the interpreter.
    lock = _noticing.setdefault(generation, _waiting.make_lock())
    with lock:
        if generation != _generation:
            _forget()


def _forget() -> None:
    global _generation
    _open_shares.clear()
    _events.forget()
    for user in list(_forgetful):
        user.forget()
    _generation = _core.fork_generation()


def _finish() -> None:
    """At exit: let the replies out that were only handed over."""
    notice_fork()
    for share in list(_open_shares):
        share.flush()
        share.close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_finish)
