"""What the tests of promises under faults share: seed, account, figures.

A promise is a row of ROWS. Its scenario is one function, run for two bounds:
a generous one, and under the marker ``timing`` the promised one. What it
measured is printed in one table at the end of the run.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from fix_account import Account
from fix_faulty_proxy import FaultyProxy
from fix_objects import wait_until

__all__ = ["QUICK", "account", "bounds", "dice", "figure", "print_figures"]

#: Fault and promise, as the project states them.
ROWS = {
    1: ("node killed under 200 calls/s", "calls resume <= 3 s, <= 2 lost per kill"),
    2: ("100 random kills, everything sent", "all answer <= 5 s, 0 confirmed lost"),
    3: ("first host away", "second one used <= 0.2, 0.2, 3 s"),
    4: ("connection goes silent", "noticed <= 2 heartbeats"),
    5: ("reply queue gone, or not consumed", "back <= 1 s"),
    6: ("server's queue or channel gone", "back <= 1 s, others undisturbed"),
    7: ("memory or disk alarm", "limits +-50 ms, resumes <= 1 s"),
    8: ("confirms withheld, nacked, returned", "failure at the deadline, alone"),
    9: ("fanout exchange gone, channel 404", "none lost, none twice"),
    10: ("1,000 replies to nobody", "no worker blocked, p99 within 10 %"),
    11: (
        "broker away for 20 s, 1,000 clients",
        "<= 100 connections/s, all back <= 45 s",
    ),
    12: ("10,000 messages redelivered", "0 executed twice"),
    13: ("broker away at start", "limits hold, nothing spins, all come up"),
    14: ("an hour of outage, 64 threads", "<= 20 lines, recovery one"),
    15: ("server killed with slow handlers", "what is lost is bounded"),
    16: ("no memory, no descriptors", "clear errors, the process lives and recovers"),
    17: ("clock set by an hour", "no timeout moves"),
}

#: The pauses before reconnecting, as short as the options allow.
QUICK = {
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_interval": 1,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}

_FIGURE = "figure"


def bounds(promised: float, generous: float) -> pytest.MarkDecorator:
    """Run a scenario for both: its argument ``bound``, in its own unit."""
    return pytest.mark.parametrize(
        "bound",
        [
            pytest.param(generous, id="in-the-end"),
            pytest.param(promised, id="as-promised", marks=pytest.mark.timing),
        ],
    )


def print_figures(reporter: Any) -> None:
    """Print the table: every row, so that none is missing unnoticed; what tests
    of several bounds measured stands once."""
    measured = [
        figure
        for reports in reporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, figure in report.user_properties
        if name == _FIGURE
    ]
    if not measured:
        return
    lines: dict[tuple[int, str], dict[str, list[str]]] = {}
    for row, what, driver, text in measured:
        texts = lines.setdefault((row, what), {}).setdefault(driver, [])
        if text not in texts:
            texts.append(text)
    reporter.section("promises under faults")
    form = "{:>3}  {:<36}  {:<40}  {:<34}  {}"
    reporter.write_line(
        form.format("row", "fault", "promise", "measured (fast)", "measured (stock)")
    )
    for row in ROWS.keys() - {row for row, _ in lines}:
        lines[row, "not measured in this run"] = {}
    shown = 0
    for (row, what), texts in sorted(lines.items()):
        fault, promise = ROWS[row] if row != shown else ("", "")
        shown = row
        by_driver = [
            f"{what}: {' | '.join(texts[driver])}" if driver in texts else "-"
            for driver in ("fast", "stock")
        ]
        if not texts:
            by_driver[0] = what
        reporter.write_line(form.format(row, fault, promise, *by_driver))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Give a function that puts a figure into the table: row, what, text."""

    def put(row: int, what: str, text: str, driver: str = "fast") -> None:
        print(f"\n  row {row}, {driver}: {what}: {text}", end="")
        # A part of the test's report, which comes here from any process.
        request.node.user_properties.append((_FIGURE, [row, what, driver, text]))

    return put


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def dice() -> random.Random:
    """Where faults come from; FASTMSG_SEED in the environment repeats a run."""
    seed = os.environ.get("FASTMSG_SEED") or f"{random.SystemRandom().getrandbits(32)}"
    print(f"\n  FASTMSG_SEED={seed}", end="")
    return random.Random(seed)


# --- what the tests look for ---


def reply_queues(broker: Any) -> list[dict[str, Any]]:
    return [row for row in broker.queues() if row["name"].startswith("reply_")]


def consuming(proxy: FaultyProxy, queue: str) -> tuple[Any, int, str]:
    """Find who consumes a queue: its link, channel and tag, the latest."""
    for link in reversed(proxy.open_links()):
        for _, frame in reversed(list(link.sent)):
            if frame.name == "basic.consume" and frame.arguments[1] == queue:
                return link, frame.channel, str(frame.arguments[2])
    raise AssertionError(f"nobody consumes {queue}")


def seen(
    proxy: FaultyProxy,
    name: str,
    *,
    from_client: bool,
    after: float,
    arguments: Callable[[list[Any]], object] = lambda arguments: True,
    timeout: float = 20.0,
) -> float:
    """Wait for a method to have gone through the proxy; give the moment."""
    found: list[float] = []

    def look() -> bool:
        for link in proxy._links:
            for at, frame in link.sent if from_client else link.received:
                if at >= after and frame.name == name and arguments(frame.arguments):
                    found.append(at)
        return bool(found)

    proxy.wait_for(look, timeout, name)
    return min(found)


def consumes(proxy: FaultyProxy) -> dict[str, int]:
    """Count how often each queue was consumed, over all connections."""
    found: dict[str, int] = {}
    for method in proxy.methods("basic.consume"):
        name = str(method.arguments[1])
        found[name] = found.get(name, 0) + 1
    return found


def wait_until_consumed(broker: Any, queue: str, timeout: float = 20.0) -> None:
    wait_until(
        lambda: (broker.queue(queue) or {}).get("consumers", 0) > 0,
        timeout,
        f"a consumer of {queue}",
    )
