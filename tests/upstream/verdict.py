"""What the runs of one release come to: pure functions for ``run.py``."""

import dataclasses
import json
import re
from collections.abc import Iterable

__all__ = [
    "FASTMSG",
    "MODES",
    "STOCK",
    "SWAPPED",
    "Outcome",
    "Run",
    "differences",
    "notes",
    "row",
]

STOCK = "stock"
FASTMSG = "fastmsg://"
SWAPPED = "rabbit:// by us"
MODES = (STOCK, FASTMSG, SWAPPED)

# Why upstream itself passes a test over for any scheme but its own. Both
# tests run where our driver serves rabbit://.
SKIPPED_FOR_SCHEME = "backend does not support call monitoring"

OURS = re.compile(r":fastmsg-(publish|consume)$")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one test ended."""

    status: str  # passed, failed, skipped; started: it never ended
    detail: str = ""

    def __str__(self) -> str:
        if self.status == "started":
            return "did not end"
        if self.status == "skipped":
            return f"skipped ({self.detail})"
        if self.status == "failed":
            lines = self.detail.strip().splitlines()
            return f"failed ({lines[-1] if lines else 'no reason given'})"
        return self.status


@dataclasses.dataclass
class Run:
    """All that is known of one run.

    :ivar logins: the names of the connections that the broker saw.
    :ivar faults: what went wrong besides tests.
    """

    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    logins: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(each.status == status for each in self.outcomes.values())

    def add(self, module: str, report: Iterable[str], status: int | None) -> None:
        """Take in what one process of the run has left.

        :param module: of tests, that it ran.
        :param report: lines of JSON, as ``one_run.py`` writes them.
        :param status: of the process; None: it was ended when its time was up.
        """
        outcomes, is_complete = _fold(report)
        self.outcomes |= outcomes
        if status is None:
            self.faults.append(f"{module}: it did not end in time")
        elif status != 0:
            self.faults.append(f"{module}: the process ended with status {status}")
        elif not is_complete:
            self.faults.append(f"{module}: the report has no end")
        elif not outcomes:
            self.faults.append(f"{module}: no test was collected")


def _fold(report: Iterable[str]) -> tuple[dict[str, Outcome], bool]:
    """Make outcomes of a report's lines, and tell whether it has an end."""
    outcomes: dict[str, Outcome] = {}
    is_complete = False
    for line in report:
        entry = json.loads(line)
        test, event = entry["test"], entry["event"]
        if event == "end":
            is_complete = True
        elif event != "stopped":
            known = outcomes.get(test)
            # What failed stays so, whatever else is reported of it.
            if known is None or known.status != "failed":
                outcomes[test] = Outcome(event, entry["detail"])
    return outcomes, is_complete


def row(run: Run) -> list[str]:
    """Give the table's columns: tests, passed, failed, skipped, time."""
    failed = run.count("failed") + run.count("started")
    counts = [len(run.outcomes), run.count("passed"), failed, run.count("skipped")]
    return [*map(str, counts), f"{run.seconds:.0f} s"]


def differences(stock: Run, ours: Run, mode: str) -> list[str]:
    """Tell what speaks against our driver, or against the run.

    :param ours: the same tests with our driver.
    :param mode: of `ours`.
    """
    found = [f"{fault} (with stock)" for fault in stock.faults] + ours.faults
    if stock.count("passed") == 0:
        found.append("no test passes with stock: nothing was compared")
    for test in sorted(stock.outcomes.keys() | ours.outcomes.keys()):
        before, after = stock.outcomes.get(test), ours.outcomes.get(test)
        if before is None or after is None:
            absent = "stock" if before is None else "ours"
            found.append(f"{test}: not run with {absent}")
        elif _is_skipped_for_scheme(after, mode):
            continue
        elif before.status == "passed" and after.status != "passed":
            found.append(f"{test}: passed with stock, {after} with ours")
        elif before.status != "skipped" and after.status == "skipped":
            found.append(f"{test}: {before} with stock, {after} with ours")
    return found + _strangers(stock, ours)


def notes(stock: Run, ours: Run, mode: str) -> list[str]:
    """Tell what differs or is not proven, without being wrong."""
    found = []
    for test, after in sorted(ours.outcomes.items()):
        before = stock.outcomes.get(test)
        if before is None:
            continue
        if _is_skipped_for_scheme(after, mode) and before.status != "skipped":
            found.append(f"{test}: {after}, by upstream and for the scheme")
        elif before.status != "passed":
            found.append(f"{test}: {before} with stock, {after} with ours")
    return found


def _is_skipped_for_scheme(outcome: Outcome, mode: str) -> bool:
    return mode == FASTMSG and outcome == Outcome("skipped", SKIPPED_FOR_SCHEME)


def _strangers(stock: Run, ours: Run) -> list[str]:
    """Ask the broker's log which driver it was."""
    found = []
    if not stock.logins or any(map(OURS.search, stock.logins)):
        found.append("the stock run was not one of the stock driver")
    ends = {match[1] for match in map(OURS.search, ours.logins) if match}
    if ends != {"publish", "consume"}:
        found.append("our driver has not both published and consumed")
    strangers = [name for name in ours.logins if not OURS.search(name)]
    if strangers:
        found.append(f"{len(strangers)} connections are not ours: {strangers[0]}")
    return found
