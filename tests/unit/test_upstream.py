"""What `make test-upstream` does around the tests: runs, reports, verdicts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from upstream import verdict
from upstream.verdict import FASTMSG, SKIPPED_FOR_SCHEME, STOCK, SWAPPED, Run

STOCK_LOGINS = ["prog:1:8d76912c-1b26-4d53-9c82-5e3654be6866"]
OUR_LOGINS = ["prog:1:x:fastmsg-publish", "prog:1:x:fastmsg-consume"]


def report(**tests: tuple[str, str]) -> list[str]:
    lines = []
    for test, (status, detail) in tests.items():
        for event in ("started", *([] if status == "started" else [status, "stopped"])):
            line = {"test": test, "event": event, "detail": detail, "seconds": 1.0}
            lines.append(json.dumps(line))
    return [*lines, json.dumps({"test": "", "event": "end", "detail": ""})]


def run(mode: str, **tests: str) -> Run:
    """Make a run; the values are statuses, with a detail after a colon."""
    it = Run(logins=list(STOCK_LOGINS if mode == STOCK else OUR_LOGINS))
    pairs = {name: text.partition(":")[::2] for name, text in tests.items()}
    it.add("module", report(**pairs), 0)
    return it


@pytest.mark.parametrize("mode", [FASTMSG, SWAPPED])
def test_equal_runs_have_no_difference(mode: str) -> None:
    tests = {"a": "passed", "b": "failed:boom", "c": "skipped:no kafka"}

    found = verdict.differences(run(STOCK, **tests), run(mode, **tests), mode)

    assert found == []


@pytest.mark.parametrize("mode", [FASTMSG, SWAPPED])
@pytest.mark.parametrize(
    "status", ["failed:boom", "skipped:some other reason", "started"]
)
def test_what_passes_with_stock_alone_is_a_difference(mode: str, status: str) -> None:
    stock = run(STOCK, a="passed", b="passed")
    ours = run(mode, a="passed", b=status)

    (line,) = verdict.differences(stock, ours, mode)

    assert line.startswith("b: passed with stock, ")
    assert status.partition(":")[2] in line


def test_upstreams_skip_for_the_scheme_is_told_and_no_difference() -> None:
    stock = run(STOCK, a="passed", b="passed")
    ours = run(FASTMSG, a="passed", b=f"skipped:{SKIPPED_FOR_SCHEME}")

    assert verdict.differences(stock, ours, FASTMSG) == []
    (line,) = verdict.notes(stock, ours, FASTMSG)
    assert line.startswith("b: skipped")


def test_where_rabbit_is_ours_that_skip_is_a_difference() -> None:
    stock = run(STOCK, a="passed", b="passed")
    ours = run(SWAPPED, a="passed", b=f"skipped:{SKIPPED_FOR_SCHEME}")

    (line,) = verdict.differences(stock, ours, SWAPPED)

    assert line.startswith("b: passed with stock, skipped")


def test_what_fails_with_stock_is_told() -> None:
    stock = run(STOCK, a="passed", b="failed:boom")

    (line,) = verdict.notes(stock, run(SWAPPED, a="passed", b="passed"), SWAPPED)

    assert line == "b: failed (boom) with stock, passed with ours"


def test_what_fails_with_stock_must_not_be_skipped_with_ours() -> None:
    stock = run(STOCK, a="passed", b="failed:boom")
    ours = run(SWAPPED, a="passed", b="skipped:no mood")

    (line,) = verdict.differences(stock, ours, SWAPPED)

    assert line.startswith("b: failed (boom) with stock, skipped (no mood)")


@pytest.mark.parametrize("absent", [STOCK, SWAPPED])
def test_a_test_that_one_side_lacks_is_a_difference(absent: str) -> None:
    runs = {mode: run(mode, a="passed", b="passed") for mode in (STOCK, SWAPPED)}
    del runs[absent].outcomes["b"]

    (line,) = verdict.differences(runs[STOCK], runs[SWAPPED], SWAPPED)

    assert line.startswith("b: not run with")


@pytest.mark.parametrize("mode", [FASTMSG, SWAPPED])
def test_runs_without_a_test_are_differences(mode: str) -> None:
    found = verdict.differences(run(STOCK), run(mode), mode)

    assert "module: no test was collected" in found
    assert "module: no test was collected (with stock)" in found
    assert "no test passes with stock: nothing was compared" in found


def test_a_baseline_that_fails_altogether_is_a_difference() -> None:
    found = verdict.differences(
        run(STOCK, a="failed:boom"), run(SWAPPED, a="failed:boom"), SWAPPED
    )

    assert found == ["no test passes with stock: nothing was compared"]


@pytest.mark.parametrize("status", [1, -11, None])
def test_a_process_that_dies_is_a_difference(status: int | None) -> None:
    ours = Run(logins=OUR_LOGINS)
    ours.add("module", report(a=("passed", "")), status)

    (line,) = verdict.differences(run(STOCK, a="passed"), ours, SWAPPED)

    assert line.startswith("module: ")


def test_a_report_that_was_cut_off_is_a_difference() -> None:
    ours = Run(logins=OUR_LOGINS)
    ours.add("module", report(a=("passed", ""))[:-1], 0)

    found = verdict.differences(run(STOCK, a="passed"), ours, SWAPPED)

    assert found == ["module: the report has no end"]


def test_a_test_that_passes_and_then_fails_has_failed() -> None:
    it = Run()
    lines = report(a=("failed", "boom"))
    it.add("module", [*lines[:2], *report(a=("passed", ""))], 0)

    assert it.outcomes["a"].status == "failed"


@pytest.mark.parametrize(
    ("logins", "what"),
    [
        ([], "not both published and consumed"),
        (OUR_LOGINS[:1], "not both published and consumed"),
        (OUR_LOGINS[1:], "not both published and consumed"),
        ([*OUR_LOGINS, *STOCK_LOGINS], "1 connections are not ours"),
        ([*OUR_LOGINS, ""], "1 connections are not ours"),
    ],
)
def test_another_driver_behind_ours_is_a_difference(
    logins: list[str], what: str
) -> None:
    ours = run(SWAPPED, a="passed")
    ours.logins = logins

    (line,) = verdict.differences(run(STOCK, a="passed"), ours, SWAPPED)

    assert what in line


@pytest.mark.parametrize("logins", [[], OUR_LOGINS, [*STOCK_LOGINS, *OUR_LOGINS]])
def test_another_driver_than_stock_in_the_baseline_is_a_difference(
    logins: list[str],
) -> None:
    stock = run(STOCK, a="passed")
    stock.logins = logins

    (line,) = verdict.differences(stock, run(SWAPPED, a="passed"), SWAPPED)

    assert line == "the stock run was not one of the stock driver"


TESTS = """
import os
import subprocess
import unittest


class ATestCase(unittest.TestCase):
    def test_passes(self):
        pass

    def test_fails(self):
        self.fail("boom")

    def test_breaks(self):
        raise ValueError("bang")

    def test_is_skipped(self):
        self.skipTest("no mood")

    def test_fails_in_part(self):
        with self.subTest():
            self.fail("part")

    def test_fails_afterwards(self):
        self.addCleanup(self.fail, "cleanup")


class BTestCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise ValueError("class")

    def test_never_runs(self):
        pass


class MetricsTestCase(unittest.TestCase):
    def test_leaves_a_process(self):
        process = subprocess.Popen(["sleep", "600"])
        with open("pid", "w") as file:
            file.write(str(process.pid))


class NothingAfterwards(unittest.TestCase):
    def test_looks_for_the_process(self):
        with open("pid") as file, self.assertRaises(ProcessLookupError):
            os.kill(int(file.read()), 0)
"""


def run_module(tmp_path: Path, text: str) -> Run:
    (tmp_path / "some_tests.py").write_text(text)
    program = Path(verdict.__file__).with_name("one_run.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, "--module", "some_tests"]
        + ["--report", "report", "--lock", "lock"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        timeout=60,
    )
    it = Run()
    report = tmp_path / "report"
    lines = report.read_text().splitlines() if report.exists() else []
    it.add("some_tests", lines, done.returncode)
    return it


def test_every_way_to_end_is_reported(tmp_path: Path) -> None:
    it = run_module(tmp_path, TESTS)

    assert it.faults == []
    assert {test.split(".")[-1]: str(each) for test, each in it.outcomes.items()} == {
        "test_passes": "passed",
        "test_fails": "failed (AssertionError: boom)",
        "test_breaks": "failed (ValueError: bang)",
        "test_is_skipped": "skipped (no mood)",
        "test_fails_in_part": "did not end",
        "test_fails_afterwards": "failed (AssertionError: cleanup)",
        "BTestCase)": "failed (ValueError: class)",
        "test_leaves_a_process": "passed",
        "test_looks_for_the_process": "passed",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no test was collected"),
        ("import no_such_module", "the process ended with status 1"),
        (TESTS + "os._exit(0)", "the report has no end"),
        (
            TESTS.replace('self.fail("boom")', "os._exit(0)"),
            "the report has no end",
        ),
    ],
)
def test_a_module_that_cannot_be_run_is_a_fault(
    text: str, fault: str, tmp_path: Path
) -> None:
    it = run_module(tmp_path, text)

    assert it.faults == [f"some_tests: {fault}"]


LOAD = """
import sys
import oslo_messaging
from oslo_config import cfg
if "swap" in sys.argv:
    import swap
    swap.serve_rabbit_ourselves()
for scheme in ("rabbit", "kombu", "fastmsg", "fake"):
    conf = cfg.ConfigOpts()
    conf([])
    transport = oslo_messaging.get_rpc_transport(conf, scheme + "://h:1/")
    print(type(transport._driver).__name__)
"""


@pytest.mark.parametrize(
    ("arguments", "behind_rabbit"), [([], "RabbitDriver"), (["swap"], "FastmsgDriver")]
)
def test_only_rabbit_is_served_by_another_driver(
    arguments: list[str], behind_rabbit: str, tmp_path: Path
) -> None:
    folders = [str(Path(verdict.__file__).parent), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *arguments],
        # stevedore keeps a cache under HOME.
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(folders),
        },
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )

    others = ["RabbitDriver", "FastmsgDriver", "FakeDriver"]
    assert done.stdout.split() == [behind_rabbit, *others]


def test_the_table_counts_what_did_not_end_as_failed() -> None:
    it = run(STOCK, a="passed", b="failed:boom", c="skipped:no", d="started")
    it.seconds = 12.3

    assert verdict.row(it) == ["4", "1", "2", "1", "12 s"]
