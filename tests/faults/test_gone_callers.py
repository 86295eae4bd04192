"""Row 10: many replies to callers that are gone, beside callers that live."""

import statistics

import pytest
from fix_account import Account
from fix_load import MARK, Accounting, Load, sender
from fix_wire import request

GONE = 1000
#: Numbers of what is asked by nobody.
GONE_BASE = 10**6
WORKERS = 4
LIMIT_S = 5


def percentile_99(account):
    times = sorted(
        it.at("answered") - it.at("sent")
        for it in account.entries()
        if it.at("answered")
    )
    return times[int(len(times) * 0.99)]


def answer_beside(driver, peers, spy, topic, queue_of, count, calls, **options):
    """Have a server answer so many requests whose replies go to the queues that
    are given, and calls beside; give the account of these, and of those."""
    live, others = Account(), Account(base=GONE_BASE)

    class Endpoint:
        """Everybody's account, by the number."""

        def __init__(self):
            self.live = Accounting(live, "server")
            self.others = Accounting(others, "server")

        def take(self, ctxt, arg):
            is_live = int(arg.removeprefix(MARK)) < GONE_BASE
            return (self.live if is_live else self.others).take(ctxt, arg)

    transport = peers.transport(driver, **options)
    server = peers.server(
        driver, Endpoint(), topic=topic, threads=WORKERS, transport=transport
    )
    client = peers.client(driver, topic=topic)
    bodies = [
        request("take", None, queue_of(number), arg=f"{MARK}{GONE_BASE + number}")
        for number in range(count)
    ]
    call = sender(live, "call", client, timeout=LIMIT_S)
    with Load(call, threads=2, rate=200, count=calls) as load:
        spy.send_many("openstack", topic, bodies)
        load.join()
    # Each reply to nobody is tried again for a minute, by nobody who works.
    if driver == "fast":
        others.wait("executed", count)
    peers.stop(server)
    peers.clean(transport)
    peers.clean(client.transport)
    return live, others


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("turns", "bound"),
    [
        pytest.param(1, 20, id="in-the-end"),
        pytest.param(5, 1.1, id="as-promised", marks=pytest.mark.timing),
    ],
)
def test_replies_to_nobody_hold_up_no_worker(
    fast, peers, spy, topic, figure, turns, bound
):
    """``bound`` is in times of the 99th percentile beside wanted replies, which
    are the same work. By turns, each with a server of its own, for a machine does
    not always have the same to spare; the median of them counts."""
    there = spy.queue()
    found = {"wanted": [], "unwanted": []}
    for turn in range(turns):
        for kind, queue_of in (
            ("wanted", lambda number: there),
            ("unwanted", lambda number: f"gone-{number % 50}"),
        ):
            live, _ = answer_beside(
                fast, peers, spy, f"{topic}-{kind}-{turn}", queue_of, GONE, 400
            )
            live.balance()
            found[kind].append(percentile_99(live))

    p99 = [statistics.median(times) for times in found.values()]
    figure(
        10,
        f"{GONE} replies, {WORKERS} workers",
        f"p99 {p99[0] * 1000:.1f} -> {p99[1] * 1000:.1f} ms"
        + (f", median of {turns}" if turns > 1 else ""),
    )
    # Two cores, and a burst of 1,000 requests: give it some.
    assert p99[1] < p99[0] * bound + 0.02


@pytest.mark.slow
def test_the_baseline_of_stock_that_replies_to_nobody(peers, spy, topic, figure):
    # A worker tries for so long, 60 s by default.
    options = {"rabbit": {"kombu_missing_consumer_retry_timeout": 10}}
    during, heard = answer_beside(
        "stock", peers, spy, topic, lambda number: f"gone-{number}", 8, 10, **options
    )

    lost = during.count("raised")
    figure(
        10,
        f"{GONE} replies, {WORKERS} workers",
        f"8 only, tried for 10 s: {lost} of {during.count('sent')} live calls "
        f"lost after {LIMIT_S} s",
        "stock",
    )
    assert heard.count("executed") > 0
