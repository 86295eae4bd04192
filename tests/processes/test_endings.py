"""How processes end that have everything going on, in each interpreter.

Calls in flight, listeners that nobody stops, daemon threads: the process ends
as it was told, soon, and says nothing about it.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_peer import TestEndpoint
from fix_pythons import OWN, interpreter
from fix_scenes import Scene

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ["3.10", "3.11", "3.12", "3.13"]


@pytest.fixture(scope="session")
def interpreters(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], str]:
    """Give a function that makes a virtual environment with the driver in it.

    Our own interpreter has all that is needed.
    """
    made = {OWN: sys.executable}

    def get(version: str) -> str:
        if version in made:
            return made[version]
        found, why_not = interpreter(version)
        if found is None:
            pytest.skip(why_not)
        folder = tmp_path_factory.mktemp(f"python{version}")
        source = folder / "source"
        shutil.copytree(
            ROOT,
            source,
            ignore=shutil.ignore_patterns(
                ".*", "build", "*.so", "*.egg-info", "tests", "demo", "docs"
            ),
        )
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check"]
        for command in (
            [found, "-m", "venv", str(folder / "venv")],
            [*pip, "oslo.messaging>=14.0", "setuptools>=61", "wheel"],
            [*pip, "--no-build-isolation", "--no-deps", str(source)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        made[version] = python
        return python

    return get


# The first one pays for the packages and the compiler.
@pytest.fixture(
    params=[
        OWN,
        *[
            pytest.param(each, marks=pytest.mark.timeout(900))
            for each in VERSIONS
            if each != OWN
        ],
    ]
)
def python(request: pytest.FixtureRequest, interpreters: Callable[[str], str]) -> str:
    return interpreters(request.param)


@pytest.fixture
def endpoint(peers, topic) -> Iterator[TestEndpoint]:
    """What the scenes call; it is the stock driver's, so that is all it does."""
    endpoint = TestEndpoint()
    peers.server("stock", endpoint, topic=topic)
    yield endpoint
    endpoint.gate.set()


#: How a process ends, its exit status, and what it says about it.
ENDS = {
    "end_idle": (7, ""),
    "end_by_exit": (7, ""),
    "end_by_return": (0, ""),
    "end_by_exception": (1, "ValueError: on purpose"),
    "end_at_once": (3, ""),
    "end_by_sigterm": (-15, ""),
    "end_by_sigint_in_a_call": (-2, "KeyboardInterrupt"),
    "end_with_a_thread_that_counts": (0, ""),
    "end_without_a_broker": (7, ""),
}


# From 3.12 on no thread starts any more at that time; the pool of workers that
# every server has (futurist's) trips over one that it could not start.
POOLS_OWN = re.compile(
    r"Exception ignored in atexit callback: <function _clean_up at .*>\n"
    r"Traceback .*\n(  .*\n)*"
    r"RuntimeError: cannot join thread before it is started\n"
)


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize(
    "count",
    [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_a_process_ends_as_it_was_told(
    broker, fast, topic, endpoint, python, end, count
):
    expected, words = ENDS[end]
    with Scene("ending", broker.url("fastmsg"), topic, end, count, python=python) as it:
        statuses, answers = [], 0
        while "result" not in (heard := it.hear()):
            answers += heard == {"answered": True}
            statuses += [heard["status"]] if "status" in heard else []
        status, errors = it.end()

    errors = POOLS_OWN.sub("", errors)
    assert statuses == [expected] * count, errors
    assert status == 0
    assert answers == (count if end == "end_with_a_thread_that_counts" else 0)
    for sign in ("Fatal Python error", "Exception ignored", "Assertion", "Segm"):
        assert sign not in errors, errors
    # Each child says it once, and nobody anything else.
    assert errors.count("Traceback") == (count if words else 0), errors
    assert errors.count(words) == count or not words, errors
    if not words:
        assert errors == ""
