import gc
import logging
import os
import threading

import pytest
from fix_core import eventually

from oslo_fastmsg import _core, _events


class Ring:
    """As the core's: one for the process, with a stop that lasts."""

    def __init__(self):
        self.changed = threading.Condition()
        self.events = []
        self.is_stopped = False

    def next_event(self, timeout):
        with self.changed:
            self.changed.wait_for(lambda: self.events or self.is_stopped, timeout)
            return self.events.pop(0) if self.events else None

    def post(self, level, text):
        with self.changed:
            self.events.append((level, text))
            self.changed.notify_all()

    def stop_events(self):
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()

    def resume_events(self):
        with self.changed:
            self.is_stopped = False


@pytest.fixture
def ring(monkeypatch):
    ring = Ring()
    for name in ("next_event", "stop_events", "resume_events"):
        monkeypatch.setattr(_core, name, getattr(ring, name))
    monkeypatch.setattr(_events, "_drain", _events._Drain())
    return ring


class User:
    pass


def threads():
    return [t for t in threading.enumerate() if t.name == "fastmsg-events"]


def test_events_are_logged_while_somebody_is_there(ring, caplog):
    user = User()
    _events.retain(user)
    (thread,) = threads()
    assert thread.daemon
    with caplog.at_level(logging.INFO, logger="oslo_fastmsg"):
        ring.post(logging.WARNING, "100 % lost")
        eventually(lambda: caplog.records)
    (record,) = caplog.records
    assert record.name == "oslo_fastmsg"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "100 % lost"
    _events.release(user)
    assert threads() == []


def test_the_thread_ends_with_the_last_user_and_starts_again(ring):
    first, second = User(), User()
    _events.retain(first)
    _events.retain(second)
    assert len(threads()) == 1
    _events.release(first)
    _events.release(first)
    assert len(threads()) == 1
    _events.release(second)
    assert threads() == []
    _events.retain(first)
    assert len(threads()) == 1
    _events.release(first)
    assert threads() == []


def test_what_is_left_is_logged_before_the_end(ring, caplog):
    user = User()
    _events.retain(user)
    with caplog.at_level(logging.INFO, logger="oslo_fastmsg"):
        for i in range(50):
            ring.post(logging.INFO, str(i))
        _events.release(user)
    assert [r.getMessage() for r in caplog.records] == [str(i) for i in range(50)]


def test_a_user_who_is_dropped_does_not_keep_the_thread(ring):
    dropped, last = User(), User()
    _events.retain(dropped)
    _events.retain(last)
    del dropped
    gc.collect()
    _events.release(last)
    assert threads() == []


def test_a_handler_that_fails_does_not_end_the_thread(ring):
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
            raise RuntimeError("a broken handler")

        def handleError(self, record):
            pass

        def handle(self, record):
            self.emit(record)

    handler = Handler()
    log = logging.getLogger("oslo_fastmsg")
    log.addHandler(handler)
    user = User()
    _events.retain(user)
    try:
        ring.post(logging.ERROR, "one")
        ring.post(logging.ERROR, "two")
        eventually(lambda: seen == ["one", "two"])
    finally:
        log.removeHandler(handler)
        _events.release(user)
    assert threads() == []


class Blocking(logging.Handler):
    """Does not come back from its first record before the gate opens."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.is_blocked = threading.Event()
        self.seen = []

    def emit(self, record):
        self.is_blocked.set()
        assert self.gate.wait(20)
        self.seen.append(record.getMessage())


def test_a_new_thread_begins_when_the_old_one_has_ended(ring, monkeypatch):
    monkeypatch.setattr(_events, "_JOIN_S", 0.05)
    handler = Blocking()
    log = logging.getLogger("oslo_fastmsg")
    log.addHandler(handler)
    user = User()
    try:
        _events.retain(user)
        ring.post(logging.ERROR, "one")
        assert handler.is_blocked.wait(10)
        _events.release(user)  # gives up after a moment
        _events.retain(user)
        assert len(threads()) == 2
        ring.post(logging.ERROR, "two")
        handler.gate.set()
        eventually(lambda: handler.seen == ["one", "two"])
        eventually(lambda: len(threads()) == 1)
        ring.post(logging.ERROR, "three")
        eventually(lambda: handler.seen == ["one", "two", "three"])
    finally:
        handler.gate.set()
        _events.release(user)
        log.removeHandler(handler)
    eventually(lambda: threads() == [])


def test_threads_that_were_never_needed_end_too(ring, monkeypatch):
    monkeypatch.setattr(_events, "_JOIN_S", 0.05)
    handler = Blocking()
    log = logging.getLogger("oslo_fastmsg")
    log.addHandler(handler)
    user = User()
    try:
        _events.retain(user)
        ring.post(logging.ERROR, "one")
        assert handler.is_blocked.wait(10)
        for _ in range(3):
            _events.release(user)
            _events.retain(user)
        _events.release(user)
        ring.post(logging.ERROR, "two")
        handler.gate.set()
        eventually(lambda: threads() == [])
        assert handler.seen == ["one", "two"]
    finally:
        handler.gate.set()
        log.removeHandler(handler)


# eventlet and, from 3.12 on, Python itself warn about a fork with threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_starts_its_own_thread(ring):
    user = User()
    _events.retain(user)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _events.forget()
            ring.resume_events()
            ok = not threads()
            _events.retain(user)
            ok = ok and len(threads()) == 1
            _events.release(user)
            status = 0 if ok and not threads() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    _events.release(user)
