"""Run oslo.messaging's own functional tests, unmodified, with our driver.

For each release three times, each with a private RabbitMQ: with the stock
driver, with ``fastmsg://`` in the URL, and with ``rabbit://`` in it but our
driver behind it (``swap.py``), as upstream passes some tests over for other
schemes. What passes with the stock driver has to pass with ours.

Releases are virtual environments, ``.venv-upstream-*``, which
``make test-upstream`` makes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import verdict  # noqa: E402 - their path is known only now
from private_broker import PrivateBroker  # noqa: E402

# They are about kombu's failover and look into the driver's connections.
LEFT_OUT = ["oslo_messaging.tests.functional.test_rabbitmq"]
# A module of theirs takes three minutes: most of it they sleep.
LIMIT_S = 900.0
# Of files, where the modes are of reports.
LABELS = {
    verdict.STOCK: "stock",
    verdict.FASTMSG: "fastmsg",
    verdict.SWAPPED: "swapped",
}

COLLECTOR = """\
# Upstream's test of metrics starts a collector, which would listen on every
# address of the machine.
[oslo_metrics]
prometheus_host = 127.0.0.1
"""


def say(text: str = "") -> None:
    print(text, flush=True)


class Release:
    """An environment with one release of oslo.messaging."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.python = folder / "bin" / "python"
        asked = subprocess.run(
            [self.python, "-W", "ignore", HERE / "one_run.py", "--list"],
            env=environment(self.python, pathlib.Path(os.devnull)),
            cwd="/",
            stdout=subprocess.PIPE,
            check=True,
        )
        answer = json.loads(asked.stdout)
        self.version = answer["release"]
        if answer["modified"]:
            raise SystemExit(f"{folder} is not as released: {answer['modified']}")
        self.modules = [name for name in answer["modules"] if name not in LEFT_OUT]
        self.left_out = [name for name in answer["modules"] if name in LEFT_OUT]


def environment(python: pathlib.Path, home: pathlib.Path) -> dict[str, str]:
    """Have nothing of the caller's but the way to programs."""
    path = os.environ.get("PATH", os.defpath)
    return {
        "HOME": str(home),
        "PATH": f"{python.parent}{os.pathsep}{path}",
        "LANG": "C.UTF-8",
        # What tests print and log is in the report of those that fail.
        "OS_STDOUT_CAPTURE": "1",
        "OS_STDERR_CAPTURE": "1",
        "OS_LOG_CAPTURE": "1",
    }


def run_tests(
    release: Release, mode: str, lock: pathlib.Path, out: pathlib.Path
) -> verdict.Run:
    """Run the tests of a release once, each module in a process of its own."""
    run = verdict.Run()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="oslo-fastmsg-") as home,
        PrivateBroker() as broker,
    ):
        (pathlib.Path(home) / "__main__.conf").write_text(COLLECTOR)
        url = broker.url("fastmsg" if mode == verdict.FASTMSG else "rabbit")
        variables = environment(release.python, pathlib.Path(home))
        variables |= {"RPC_TRANSPORT_URL": url, "NOTIFY_TRANSPORT_URL": url}
        processes = []
        for module in release.modules:
            name = f"{release.version}-{LABELS[mode]}-{module.split('.')[-1]}"
            report = out / f"{name}.json"
            command: list[Any] = [release.python, HERE / "one_run.py"]
            command += ["--module", module, "--report", report, "--lock", lock]
            command += ["--swap"] * (mode == verdict.SWAPPED)
            with open(out / f"{name}.log", "wb") as log:
                process = subprocess.Popen(
                    command,
                    env=variables,
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            processes.append((module, report, process))
        for module, report, process in processes:
            status = finish(process, started + LIMIT_S)
            lines = report.read_text().splitlines() if report.exists() else []
            run.add(module, lines, status)
        run.seconds = time.monotonic() - started
        # The node writes its log with a delay, but all of it when it ends.
        broker.halt()
        run.logins = broker.logins()
    return run


def finish(process: subprocess.Popen[bytes], end_at: float) -> int | None:
    """Wait for a process; at the end nothing is left of its group.

    :returns: its status, or None if it did not end in time.
    """
    watch = os.pidfd_open(process.pid)
    ended, _, _ = select.select([watch], [], [], max(0.0, end_at - time.monotonic()))
    os.close(watch)
    # Nobody has asked for its status yet, so its number is not given away.
    os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return status if ended else None


def print_table(results: dict[str, dict[str, verdict.Run]]) -> None:
    rows = [["oslo.messaging", "driver", "tests", "passed", "failed", "skipped"]]
    rows[0].append("time")
    for version, runs in results.items():
        rows += [[version, mode, *verdict.row(run)] for mode, run in runs.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        texts = [cell.ljust(widths[at]) for at, cell in enumerate(cells[:2])]
        texts += [cell.rjust(widths[at + 2]) for at, cell in enumerate(cells[2:])]
        say("  ".join(texts))


def print_failures(version: str, mode: str, run: verdict.Run) -> None:
    for test, outcome in run.outcomes.items():
        if outcome.status == "failed":
            say(f"\n=== {version}, {mode}: {test}")
            say(outcome.detail.rstrip())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "releases",
        nargs="+",
        type=pathlib.Path,
        help="virtual environments, each with a release of oslo.messaging",
    )
    parser.add_argument("--jobs", type=int, default=3, help="runs at the same time (3)")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    for old in [*out.glob("*.json"), *out.glob("*.log")]:
        old.unlink()
    # The same for every checkout: so are the port and the socket it guards.
    lock = pathlib.Path(tempfile.gettempdir()) / f"oslo-fastmsg-upstream-{os.getuid()}"
    releases = [Release(folder.absolute()) for folder in options.releases]
    results: dict[str, dict[str, verdict.Run]] = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            (release.version, mode): pool.submit(run_tests, release, mode, lock, out)
            for release in releases
            for mode in verdict.MODES
        }
        for (version, mode), future in futures.items():
            run = results.setdefault(version, {})[mode] = future.result()
            say(f"{version}, {mode}: {run.count('passed')} of {len(run.outcomes)}")

    problems = []
    remarks = []
    for release in releases:
        runs = results[release.version]
        for mode, run in runs.items():
            print_failures(release.version, mode, run)
            if mode == verdict.STOCK:
                continue
            stock, where = runs[verdict.STOCK], f"{release.version}, {mode}: "
            found = verdict.differences(stock, run, mode)
            problems += [where + text for text in found]
            remarks += [where + text for text in verdict.notes(stock, run, mode)]
        remarks += [
            f"{release.version}: {name} is left out" for name in release.left_out
        ]
    say()
    print_table(results)
    for title, texts in [("Notes", remarks), ("Differences", problems)]:
        if texts:
            say(f"\n{title}:")
            for text in texts:
                say(f"- {text}")
    say()
    if problems:
        say(f"Differences: {len(problems)}. Reports and logs are in {out}.")
        return 1
    say("What passes with the stock driver passes with ours.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
