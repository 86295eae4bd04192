"""Native programs of ``tests/native``, under several builds of the core.

The core (base, wire, io) becomes one static library for each build; what did not
change is not compiled again.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FOLDER", "SANITIZERS", "Build", "broker_environment", "run"]

ROOT = Path(__file__).resolve().parents[1]
#: Where the programs are.
FOLDER = ROOT / "tests" / "native"
CC = shlex.split(os.environ.get("CC", "gcc"))
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-pthread"),
    *("-g", "-O1", "-fno-omit-frame-pointer", "-UNDEBUG"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes"),
    f"-I{ROOT}/csrc",
    f"-I{FOLDER}",
]
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
    "plain": [],
}
LIBRARIES = ["librabbitmq", "libssl", "libcrypto"]


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
    modules = list(LIBRARIES)
    if kind == "--cflags":  # of msgpack-c there are headers alone, by either name
        known = subprocess.call([*command, "--exists", "msgpack"]) == 0
        modules.append("msgpack" if known else "msgpack-c")
    text = subprocess.check_output([*command, kind, *modules], text=True)
    return shlex.split(text)


def _link_flags(source: Path) -> list[str]:
    """Read what a program says of its linking."""
    return re.findall(r"^ \* Linked with: (\S+)$", source.read_text(), re.MULTILINE)


class Build:
    """What was compiled for one sanitizer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.flags = [*FLAGS, *SANITIZERS[name]]
        self.folder = FOLDER / "build" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix: list[str] = []

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other test runs in the same checkout out."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _newest_header(self) -> float:
        headers = [*ROOT.glob("csrc/*/*.h"), *FOLDER.glob("*.h"), Path(__file__)]
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
            command = [*CC, *self.flags, *_link_flags(source), str(unit), str(library)]
            run([*command, *pkg_config("--libs"), "-o", str(program)])
        return program


def broker_environment(broker: Any) -> dict[str, str]:
    """Tell a program where its broker is."""
    return {
        "FM_TEST_HOST": broker.host,
        "FM_TEST_PORT": str(broker.port),
        "FM_TEST_USER": broker.user,
        "FM_TEST_PASSWORD": broker.password,
        "FM_TEST_VHOST": broker.virtual_host,
    }
