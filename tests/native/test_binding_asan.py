"""The unit tests once more, on an extension built with ASan and UBSan.

This is what sees a wrong reference count or a read past the end in
``csrc/py``, which the native tests leave out. Assertions are on, too.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "asan"

pytestmark = pytest.mark.timeout(900)


def find_library(name: str) -> str:
    path = subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True)
    assert os.path.isabs(path.strip()), f"gcc has no {name}"
    return path.strip()


def test_unit_tests_pass_under_address_sanitizer() -> None:
    library = BUILD / "lib"
    # Not the compiled files, or a module that was removed would live on.
    shutil.rmtree(library, ignore_errors=True)
    command = [sys.executable, "setup.py", "--quiet", "build"]
    subprocess.run(
        [*command, "--build-base", str(BUILD), "--build-lib", str(library)],
        cwd=ROOT,
        env={**os.environ, "FM_SANITIZE": "address"},
        check=True,
    )

    done = subprocess.run(
        # ASan's frames are larger than Python's limit of recursion counts with.
        ["sh", "-c", 'ulimit -S -s 65536; exec "$@"', "sh"]
        # By path, since -m would put the checkout before the build.
        + [Path(sys.executable).with_name("pytest"), "-p", "no:cacheprovider"]
        + ["-m", "not slow and not timing and not broker", "tests/unit"]
        # That one tests the build, and the compiler has no use for ASan; the
        # others measure memory, of which ASan sets aside what was freed.
        + ["--ignore=tests/unit/test_packaging.py", "--ignore-glob=*_leaks.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(library),
            "PYTHONMALLOC": "malloc",
            # greenlet throws C++ exceptions, and ASan looks for the function
            # that does so when it starts, before greenlet has brought it.
            "LD_PRELOAD": " ".join(map(find_library, ["libasan.so", "libstdc++.so.6"])),
            # The interpreter itself leaves a lot behind when it ends.
            "ASAN_OPTIONS": "detect_leaks=0:strict_string_checks=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    print(done.stdout)
    assert f"oslo_fastmsg._core: {library}" in done.stdout, "another build was tested"
    assert done.returncode == 0
