import ast
import pathlib
import threading
import time

import pytest

import oslo_fastmsg
from oslo_fastmsg import _core, _waiting

PACKAGE = pathlib.Path(oslo_fastmsg.__file__).parent

# Where it is decided how a caller sleeps.
SLEEPERS = {"_waiting.py", "_green.py"}

# Methods of the core, and of threads, in which a caller sleeps.
SLEEPING = {
    *("call", "begin_call", "publish", "reply", "flush", "close", "next_event"),
    *("open", "stop", "take", "wait", "join"),
}


def sleeping_calls(path):
    """What a module calls that sleeps, but for what goes through _waiting."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        if node.func.attr == "sleep" or (
            node.func.attr in SLEEPING
            and owner not in ("_waiting", "os.path")
            and not owner.startswith(("'", '"'))
        ):
            yield f"{owner}.{node.func.attr}"


def test_nothing_else_sleeps():
    found = {
        f"{path.name}: {call}"
        for path in PACKAGE.glob("*.py")
        if path.name not in SLEEPERS
        for call in sleeping_calls(path)
    }
    assert found == {
        "driver.py: bus.begin_call",  # returns once the request is handed over
        *("driver.py: self._replies.close", "driver.py: share.close"),  # our own
        *("_bus.py: share.close", "_bus.py: share.flush"),
        *("_listener.py: self._share.close", "_listener.py: self._share.flush"),
        *("_listener.py: super().stop", "_incoming.py: self._replier.reply"),
        "_listener.py: self._stopping.wait",  # a _waiting.Signal
        "_replies.py: chosen.wait",  # a _waiting.Signal
        *("_listener.py: room.wait", "_listener.py: self._backlog.wait"),  # another
    }


def test_nothing_else_makes_threads_or_locks():
    makers = ("Thread(", "Lock(", "Event(", "Condition(", "Semaphore(", "local(")
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        for maker in makers:
            assert path.name in SLEEPERS or maker not in text


def locked_blocks():
    """Every statement of the package that holds a lock."""
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.With) and any(
                "lock" in ast.unparse(item.context_expr) for item in node.items
            ):
                yield path, node


def test_nobody_sleeps_or_logs_with_a_lock():
    """A greenthread that switches with one stops its hub, for good."""
    blocks = list(locked_blocks())
    assert len(blocks) > 5
    for path, block in blocks:
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(block)
            if isinstance(node, ast.Call)
        }
        for call in calls - {"_waiting.spawn", "_waiting.Signal", "_core.stop_events"}:
            where = f"{path.name}:{block.lineno}: {call}"
            assert not call.startswith(("LOG.", "_waiting.")), where
            assert call.rpartition(".")[2] not in SLEEPING, where


def test_a_spawned_thread_has_its_name_and_dies_with_the_process():
    seen = []
    task = _waiting.spawn(lambda: seen.append(threading.current_thread()), "x")
    _waiting.join(task)
    assert [t.name for t in seen] == ["x"]
    assert seen[0].daemon
    assert not seen[0].is_alive()


def test_a_thread_does_not_wait_for_itself():
    ended = threading.Event()
    ready = threading.Event()

    def join_myself():
        ready.wait(10)
        _waiting.join(task)
        ended.set()

    task = _waiting.spawn(join_myself, "x")
    ready.set()
    assert ended.wait(10)
    _waiting.join(task)


def test_a_join_may_have_a_limit():
    gate = threading.Event()
    task = _waiting.spawn(lambda: gate.wait(20) and None, "x")
    start = time.monotonic()
    _waiting.join(task, 0.05)
    assert time.monotonic() - start >= 0.05
    gate.set()
    _waiting.join(task)


def test_a_task_ends_with_what_it_raises():
    caught = []

    def fail():
        raise ValueError("meant to")

    before, threading.excepthook = threading.excepthook, caught.append
    try:
        _waiting.join(_waiting.spawn(fail, "x"))
    finally:
        threading.excepthook = before
    assert [failure.exc_type for failure in caught] == [ValueError]


def test_a_signal_wakes_who_waits_for_it():
    signal = _waiting.Signal()
    assert not signal.is_set()
    seen = []
    tasks = [
        _waiting.spawn(lambda: seen.append(signal.wait(20)), str(i)) for i in range(3)
    ]
    signal.set()
    for task in tasks:
        _waiting.join(task)
    assert seen == [True, True, True]
    assert signal.is_set()
    assert signal.wait(0)
    assert signal.wait()


def test_a_signal_that_does_not_come_is_not_waited_for():
    start = time.monotonic()
    assert not _waiting.Signal().wait(0.05)
    assert time.monotonic() - start >= 0.05
    assert not _waiting.Signal().wait(0)


class Call:
    """As ``_core.Call``, of replies that are all there."""

    def __init__(self, *replies):
        self.replies = list(replies)

    def wait(self, timeout):
        if not self.replies:
            raise _core.Timeout("no reply")
        return self.replies.pop(0)


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ({"result": None, "failure": None}, False),
        ({"failure": None}, False),
        ({"result": None, "failure": ""}, False),
        ({"result": 0, "failure": None}, True),
        ({"result": None, "failure": "{}"}, True),
    ],
)
def test_a_reply_with_a_value_is_more_than_a_sign_of_life(reply, counts):
    assert _waiting._has_value(reply) is counts


def test_a_native_caller_waits_in_the_core():
    assert _waiting.wait_reply(Call({"result": 1}), 20) == {"result": 1}
