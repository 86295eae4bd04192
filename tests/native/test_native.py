"""Every ``test_*.c`` of this folder, under two builds of the core.

``asan`` is AddressSanitizer with UBSan, ``tsan`` is ThreadSanitizer. The core
(base, wire, io) becomes one static library for each; what did not change is
not compiled again. ``pytest tests/native -k 'test_buf and asan'`` runs one.

A program called ``test_*_fork.c`` runs in a third build, ``plain``: after a fork
in mid-traffic AddressSanitizer may hold a lock of its own for ever, and
ThreadSanitizer lets the child start no thread. So does one called
``test_*_timing.c``, which bounds what something costs and says what it found.

A program called ``test_broker_*.c`` finds the run's broker in FM_TEST_HOST,
FM_TEST_PORT, FM_TEST_USER, FM_TEST_PASSWORD and FM_TEST_VHOST.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CC = shlex.split(os.environ.get("CC", "gcc"))
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-pthread"),
    *("-g", "-O1", "-fno-omit-frame-pointer", "-UNDEBUG"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes"),
    f"-I{ROOT}/csrc",
    f"-I{HERE}",
]
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
    "plain": [],
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
# A test ends long before; one that hangs says so itself, if it can.
RUN_S = 120
LIBRARIES = ["librabbitmq", "libssl", "libcrypto"]

# The first test of a build pays for the compiler.
pytestmark = pytest.mark.timeout(900)


def run(command: list[str], **options: object) -> str:
    """Run a command and give what it printed, or fail with that."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode != 0:
        pytest.fail(
            f"{shlex.join(command)}: status {done.returncode}\n{done.stdout}",
            pytrace=False,
        )
    return str(done.stdout)


def pkg_config(kind: str) -> list[str]:
    command = shlex.split(os.environ.get("PKG_CONFIG", "pkg-config"))
    text = subprocess.check_output([*command, kind, *LIBRARIES], text=True)
    return shlex.split(text)


class Build:
    """What was compiled for one sanitizer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.flags = [*FLAGS, *SANITIZERS[name]]
        self.folder = HERE / "build" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix: list[str] = []

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other test runs in the same checkout out."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _newest_header(self) -> float:
        headers = [*ROOT.glob("csrc/*/*.h"), *HERE.glob("*.h"), Path(__file__)]
        return max(header.stat().st_mtime for header in headers)

    def _compile(self, source: Path, newest_header: float) -> Path:
        target = self.folder / f"{source.parent.name}-{source.stem}.o"
        if target.exists():
            made = target.stat().st_mtime
            if made > newest_header and made > source.stat().st_mtime:
                return target
        partial = target.with_suffix(".tmp")
        includes = pkg_config("--cflags")
        run([*CC, *self.flags, *includes, "-c", str(source), "-o", str(partial)])
        partial.rename(target)
        return target

    def compile_core(self) -> None:
        with self._alone():
            newest = self._newest_header()
            sources = [
                source
                for layer in ("base", "wire", "io")
                for source in sorted((ROOT / "csrc" / layer).glob("*.c"))
            ]
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(self._compile, each, newest) for each in sources]
                objects = [str(job.result()) for job in jobs]
            library = self.folder / "libcore.a"
            library.unlink(missing_ok=True)
            run(["ar", "rcs", str(library), *objects])
            self.prefix = self._find_prefix()

    def _find_prefix(self) -> list[str]:
        """Tell how programs have to be started.

        On a kernel with much address randomisation ThreadSanitizer finds
        something where its shadow has to be; without it it starts.
        """
        probe = self.folder / "probe"
        if not probe.exists():
            run(
                [*CC, *self.flags, "-x", "c", "-", "-o", str(probe)],
                input="int main(void) { return 0; }\n",
            )
        prefix = ["setarch", os.uname().machine, "-R"]
        if subprocess.run([str(probe)], capture_output=True).returncode == 0:
            return []
        run([*prefix, str(probe)])
        return prefix

    def compile_program(self, source: Path) -> Path:
        program = self.folder / source.stem
        with self._alone():
            unit = self._compile(source, self._newest_header())
            library = self.folder / "libcore.a"
            command = [*CC, *self.flags, str(unit), str(library)]
            run([*command, *pkg_config("--libs"), "-o", str(program)])
        return program


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
        for source in sorted(HERE.glob("test_*.c"))
        if (name == "plain") == source.stem.endswith(("_fork", "_timing"))
    ]


@pytest.mark.parametrize(("build", "source"), programs(), indirect=["build"])
def test_native(source: Path, build: Build, request: pytest.FixtureRequest) -> None:
    program = build.compile_program(source)
    environment = {**os.environ, **ENVIRONMENT}
    if source.stem.startswith("test_broker"):
        broker = request.getfixturevalue("broker")
        environment |= {
            "FM_TEST_HOST": broker.host,
            "FM_TEST_PORT": str(broker.port),
            "FM_TEST_USER": broker.user,
            "FM_TEST_PASSWORD": broker.password,
            "FM_TEST_VHOST": broker.virtual_host,
        }

    print(run([*build.prefix, str(program)], env=environment, cwd=HERE, timeout=RUN_S))
