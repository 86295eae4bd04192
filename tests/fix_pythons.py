"""The Pythons of this machine, by version, and the core built for each of them.

A version is ``3.12`` or the like; ``3.13t`` is a free-threaded one. They are those that
``tools/find_pythons.sh`` finds, as long as they have their headers.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["OWN", "built", "flags", "include_of", "interpreter", "succeed"]

ROOT = Path(__file__).resolve().parents[1]


def _version() -> str:
    """Tell this interpreter's own."""
    free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{sys.version_info.major}.{sys.version_info.minor}{free}"


OWN = _version()


def succeed(command: list[object], **environment: str) -> str:
    """Run a command; give its output, or fail with all it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


_ASK = """
import os, sysconfig
include = sysconfig.get_path("include")
if os.path.exists(os.path.join(include, "Python.h")):
    print(include, sysconfig.get_config_var("EXT_SUFFIX"))
"""


@functools.cache
def _ask(executable: str) -> list[str]:
    """Get the folder of its headers and what ends its extensions' names."""
    return succeed([executable, "-c", _ASK]).split()


@functools.cache
def interpreter(version: str) -> tuple[str | None, str]:
    """Find one with its headers: the path of its executable, or why there is none."""
    if version == OWN:
        found = [sys.executable]
    else:
        found = succeed([ROOT / "tools" / "find_pythons.sh", version]).split()
    if found and _ask(found[0]):
        return found[0], ""
    return (
        None,
        f"no python{version} with its headers, neither on the PATH nor in pyenv",
    )


def include_of(executable: str) -> str:
    """Tell where the headers of an interpreter are."""
    return _ask(executable)[0]


def flags() -> list[str]:
    """Give the flags of the compiler that every file of the core needs."""
    libraries = ["librabbitmq", "libssl", "libcrypto"]
    # Of msgpack-c there are headers alone, by either name.
    known = subprocess.call(["pkg-config", "--exists", "msgpack"]) == 0
    libraries.append("msgpack" if known else "msgpack-c")
    found = succeed(["pkg-config", "--cflags", *libraries]).split()
    own = ["-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-pthread", "-Icsrc"]
    return [*own, *found]


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[str, Path]]:
    """Give a function: the interpreter of a version, and where its package is."""

    @functools.cache
    def build(version: str) -> tuple[str, Path]:
        executable, why = interpreter(version)
        if executable is None:
            pytest.skip(why)
        if version == OWN:
            return executable, ROOT
        package = tmp_path_factory.mktemp(f"python{version}") / "oslo_fastmsg"
        package.mkdir()
        for path in (ROOT / "oslo_fastmsg").glob("*.py"):
            shutil.copy(path, package)
        # By hand, for it may have no setuptools, and those here may be too old.
        include, suffix = _ask(executable)
        libraries = ["librabbitmq", "libssl", "libcrypto"]
        libs = succeed(["pkg-config", "--libs", *libraries]).split()
        command = ["gcc", "-shared", "-fPIC", "-O0", "-Werror", f"-I{include}"]
        sources = sorted(ROOT.glob("csrc/*/*.c"))
        target = package / f"_core{suffix}"
        succeed([*command, *flags(), *sources, "-o", target, *libs])
        return executable, package.parent

    return build
