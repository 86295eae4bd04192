#!/usr/bin/env python3
"""Run the tests with each Python and with three releases of oslo.messaging, by tox.

    tools/run_versions.py [-e ENVIRONMENT,...] [ARGUMENT of pytest...]

Ends with a table: what was run, how it ended, and what was not run and why. The status
is 0 if all that was run passed, and something was.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
RELEASES = ("oldest", "middle", "newest")
NOT_FOUND = "no python{} on the PATH or under pyenv"

COUNTS = ("passed", "failed", "skipped", "errors")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
LAST_LINE = re.compile(r"^=+ (.*\d+ \w+.*) in [\d.]+s.* =+$", re.MULTILINE)
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] \S+?:(?:\d+:)? (.*)$", re.MULTILINE)


def name(version: str, release: str) -> str:
    return f"py{version.replace('.', '')}-{release}"


def find(version: str) -> str | None:
    """Find an interpreter: its path."""
    command = [ROOT / "tools" / "find_pythons.sh", version]
    return subprocess.check_output(command, text=True).strip() or None


def run(environments: list[str], pythons: list[str], arguments: list[str]) -> Any:
    """Run tox; its status and what it wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(Path(sys.executable).with_name("tox")), "run"]
        command += ["-e", ",".join(environments), "--result-json", str(result)]
        command += ["--discover", *pythons]
        if arguments:
            command += ["--", *arguments]
        status = subprocess.run(command, cwd=ROOT).returncode
        journal = json.loads(result.read_text()) if result.exists() else {}
    return status, journal.get("testenvs", {})


def release_in(entry: dict[str, Any]) -> str:
    for package in entry.get("installed_packages", ()):
        found = re.match(r"oslo[._-]messaging==(\S+)", package, re.IGNORECASE)
        if found:
            return found[1]
    return "?"


def row_of(entry: dict[str, Any], skips: collections.Counter[str]) -> list[str]:
    """Write the columns behind an environment's name; count why tests were skipped."""
    version = ".".join(map(str, entry.get("python", {}).get("version_info", "?")[:3]))
    output = "".join(test["output"] for test in entry.get("test", ()))
    counts = dict.fromkeys(COUNTS, 0)
    last = LAST_LINE.findall(output)
    for number, what in COUNT.findall(last[-1] if last else ""):
        counts["errors" if what == "error" else what] += int(number)
    for number, why in SKIPPED.findall(output):
        skips[why] += int(number)
    seconds = sum(test["elapsed"] for test in entry.get("test", ()))
    if not last:
        verdict = "NO TESTS RAN"
    elif entry.get("result", {}).get("success"):
        verdict = "ok"
    else:
        verdict = "FAILED"
    numbers = [str(counts[what]) for what in COUNTS]
    return [version, release_in(entry), *numbers, f"{seconds:.0f}", verdict]


def table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-e", metavar="ENVIRONMENT,...", dest="only")
    options, arguments = parser.parse_known_args(words)
    wanted = options.only.split(",") if options.only else None

    to_run: list[str] = []
    pythons: list[str] = []
    not_run: dict[str, str] = {}
    for version in VERSIONS:
        python = find(version)
        if python is not None:
            pythons.append(python)
        for environment in (name(version, release) for release in RELEASES):
            if wanted is not None and environment not in wanted:
                not_run[environment] = "not asked for"
            elif python is None:
                not_run[environment] = NOT_FOUND.format(version)
            else:
                to_run.append(environment)
    unknown = set(wanted or ()) - {*to_run, *not_run}
    if unknown:
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    if to_run:
        status, entries = run(to_run, pythons, arguments)
    else:
        status, entries = 1, {}

    skips: collections.Counter[str] = collections.Counter()
    columns = ["Python", "oslo.messaging", *COUNTS, "seconds", ""]
    rows = [["environment", *columns]]
    for environment in to_run:
        rows.append([environment, *row_of(entries.get(environment, {}), skips)])
    print("\nRun:")
    table(rows)
    if skips:
        print("\nSkipped in them, in all:")
        for why, number in sorted(skips.items()):
            print(f"{number:5}  {why}")
    if not_run:
        print("\nNot run:")
        table([[environment, why] for environment, why in not_run.items()])
    # tox finds an environment in order whose tests were not found.
    return int(status != 0 or any(row[-1] != "ok" for row in rows[1:]))


if __name__ == "__main__":
    sys.exit(main())
