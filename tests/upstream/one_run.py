"""Run one module of oslo.messaging's own tests; report in lines of JSON.

Runs in the environment of one release, started by ``run.py``, which sets
``RPC_TRANSPORT_URL`` and ``NOTIFY_TRANSPORT_URL``. Each line of the report is
``{"test", "event", "detail", "seconds"}``; the last one has the event "end",
so that a process that died is told from one that has finished.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import pkgutil
import signal
import sys
import time
import unittest
from collections.abc import Iterator
from typing import Any, TextIO

import swap

TESTS = "oslo_messaging.tests.functional"
# It starts a collector on a port and a socket that are the same everywhere.
EXCLUSIVE = "MetricsTestCase"


def modules() -> list[str]:
    """Name the modules with tests in them."""
    package = importlib.import_module(TESTS)
    found = pkgutil.walk_packages(package.__path__, f"{TESTS}.")
    return [each.name for each in found if each.name.split(".")[-1][:5] == "test_"]


def modified() -> list[str]:
    """Name the files of oslo.messaging that are not as they were released."""
    found = []
    for file in importlib.metadata.files("oslo.messaging") or []:
        if file.hash is not None and file.parts[0] == "oslo_messaging":
            digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
            text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if text != file.hash.value:
                found.append(str(file))
    return found


class Report(unittest.TestResult):
    """Writes down what happens when it happens."""

    def __init__(self, file: TextIO, lock: str) -> None:
        super().__init__()
        self._file = file
        self._lock = lock
        self._exclusive = contextlib.ExitStack()
        self._started = 0.0

    def write(self, test: Any, event: str, detail: str = "") -> None:
        line = {
            "test": test if isinstance(test, str) else test.id(),
            "event": event,
            "detail": detail,
            "seconds": time.monotonic() - self._started,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        if EXCLUSIVE in test.id():
            self._exclusive.enter_context(alone(self._lock))
        self._started = time.monotonic()
        self.write(test, "started")

    def stopTest(self, test: unittest.TestCase) -> None:
        self.write(test, "stopped")
        self._exclusive.close()
        super().stopTest(test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.write(test, "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.write(test, "failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.write(test, "failed", self.failures[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.write(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.write(test, "failed", "expected to fail")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.write(test, "failed", "passed unexpectedly")


@contextlib.contextmanager
def alone(lock: str) -> Iterator[None]:
    """Keep other runs out, and leave no process behind for them."""
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = children()
        yield
        for pid in children() - before:
            # The collector was told to end, if its test came that far.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children() -> set[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(OSError),
            open(f"/proc/self/task/{task}/children") as file,
        ):
            found |= set(map(int, file.read().split()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the modules")
    parser.add_argument("--module", help="to run")
    parser.add_argument("--report", help="file to write")
    parser.add_argument("--lock", help="file that runs lock against each other")
    parser.add_argument("--swap", action="store_true", help="rabbit:// is ours")
    options = parser.parse_args()
    if options.list:
        release = importlib.metadata.version("oslo.messaging")
        answer = {"release": release, "modules": modules(), "modified": modified()}
        print(json.dumps(answer))
        return 0
    if options.swap:
        swap.serve_rabbit_ourselves()
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromName(options.module)
    if loader.errors:
        print(*loader.errors, sep="\n", file=sys.stderr)
        return 1
    with open(options.report, "w") as file:
        report = Report(file, options.lock)
        suite.run(report)
        report.write("", "end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
