"""Which options ran with which broker in which pairing: a table after the run.

A plug-in of ``tests/conftest.py``, for runs that ask for the marker ``options``.
"""

import collections
from typing import Any

import pytest

_CELL = "options"
_PAIRINGS = ("fast-fast", "fast-stock", "stock-fast")
# Tests that are not about two peers, or compare one with the other.
_OTHER = "other"


def _pairing_of(item: pytest.Item) -> str:
    """Tell who sent and who received (fixture ``pairing`` of fix_peer.py)."""
    spec = getattr(item, "callspec", None)
    pairing = spec.params.get("pairing") if spec is not None else None
    return pairing if pairing in _PAIRINGS else _OTHER


def note_cells(items: list[pytest.Item]) -> None:
    """Have the reports of tests with the marker say what they are about."""
    for item in items:
        names = {name for mark in item.iter_markers("options") for name in mark.args}
        if names:
            cell = [_pairing_of(item), sorted(names)]
            item.user_properties.append((_CELL, cell))


def print_cells(reporter: Any, config: pytest.Config, broker: str) -> None:
    """Print for each option how many tests passed, in each pairing."""
    if "options" not in config.getoption("markexpr"):
        return
    counts: dict[str, collections.Counter[str]] = {}
    for report in reporter.stats.get("passed", []):
        for name, cell in report.user_properties:
            if name == _CELL and report.when == "call":
                for option in cell[1]:
                    counts.setdefault(option, collections.Counter())[cell[0]] += 1
    if not counts:
        return
    columns = (*_PAIRINGS, _OTHER)
    reporter.section(f"options, by pairing: tests passed with {broker}")
    reporter.write_line(f"{'option':<42}" + "".join(f"{c:>13}" for c in columns))
    for option, count in sorted(counts.items()):
        cells = "".join(f"{count[c] or '-':>13}" for c in columns)
        reporter.write_line(f"{option:<42}{cells}")
