import ast
import pathlib
import threading

import oslo_fastmsg
from oslo_fastmsg import _waiting

PACKAGE = pathlib.Path(oslo_fastmsg.__file__).parent

# Methods of the core, and of threads, in which a caller sleeps.
SLEEPING = {"call", "begin_call", "publish", "take", "open", "next_event", "join"}


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
    # Returns once the request is handed over, like Bus.reply.
    assert found == {"driver.py: bus.begin_call"}


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
