"""Every ``test_*.c`` of this folder, under two builds of the core.

``asan`` is AddressSanitizer with UBSan, ``tsan`` is ThreadSanitizer. The core
(base, wire, io) becomes one static library for each; what did not change is
not compiled again. ``pytest tests/native -k 'test_buf and asan'`` runs one.

A program called ``test_*_fork.c`` runs in a third build, ``plain``: after a fork
in mid-traffic AddressSanitizer may hold a lock of its own for ever, and
ThreadSanitizer lets the child start no thread. So does one called
``test_*_timing.c``, which bounds what something costs and says what it found. One
called ``test_*_memory.c`` is about what AddressSanitizer sees, and runs there alone.

A program called ``test_broker_*.c`` finds the run's broker in FM_TEST_HOST,
FM_TEST_PORT, FM_TEST_USER, FM_TEST_PASSWORD and FM_TEST_VHOST.
"""

import os
from pathlib import Path

import pytest
from fix_native import FOLDER, SANITIZERS, Build, broker_environment, run

ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
# A test ends long before; one that hangs says so itself, if it can.
RUN_S = 120

# The first test of a build pays for the compiler.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Build:
    made = Build(request.param)
    made.compile_core()
    return made


def marks_of(program: str) -> list[pytest.MarkDecorator]:
    marks = []
    if program.startswith("test_broker"):
        marks.append(pytest.mark.broker)
    if program.endswith("_timing"):
        marks.append(pytest.mark.timing)
    return marks


def programs() -> list[object]:
    return [
        pytest.param(
            name,
            source,
            id=f"{source.stem}-{name}",
            marks=marks_of(source.stem),
        )
        for name in SANITIZERS
        for source in sorted(FOLDER.glob("test_*.c"))
        if (name == "plain") == source.stem.endswith(("_fork", "_timing"))
        and not (name == "tsan" and source.stem.endswith("_memory"))
    ]


@pytest.mark.parametrize(("build", "source"), programs(), indirect=["build"])
def test_native(source: Path, build: Build, request: pytest.FixtureRequest) -> None:
    program = build.compile_program(source)
    environment = {**os.environ, **ENVIRONMENT}
    if source.stem.startswith("test_broker"):
        broker = request.getfixturevalue("broker")
        environment |= broker_environment(broker)

    print(
        run([*build.prefix, str(program)], env=environment, cwd=FOLDER, timeout=RUN_S)
    )
