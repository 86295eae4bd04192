import ast
import pathlib
import threading

import oslo_fastmsg
from oslo_fastmsg import _waiting

PACKAGE = pathlib.Path(oslo_fastmsg.__file__).parent

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
        if path.name != "_waiting.py"
        for call in sleeping_calls(path)
    }
    assert found == {
        "driver.py: bus.begin_call",  # returns once the request is handed over
        *("driver.py: self._replies.close", "driver.py: share.close"),  # our own
        *("_bus.py: share.close", "_bus.py: share.flush"),
        *("_listener.py: self._share.close", "_listener.py: self._share.flush"),
        *("_listener.py: super().stop", "_incoming.py: self._replier.reply"),
        "_listener.py: self._stopping.wait",  # a _waiting.Signal
    }


def test_nothing_else_makes_threads_or_locks():
    makers = ("threading.Thread(", "threading.Lock(", "threading.Event(")
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        for maker in makers:
            assert path.name == "_waiting.py" or maker not in text


def test_a_spawned_thread_has_its_name_and_dies_with_the_process():
    seen = []
    thread = _waiting.spawn(lambda: seen.append(threading.current_thread()), "x")
    _waiting.join(thread)
    assert [t.name for t in seen] == ["x"]
    assert thread.daemon


def test_a_thread_does_not_wait_for_itself():
    _waiting.join(threading.current_thread())
