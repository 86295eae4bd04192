"""Row 10: many replies to callers that are gone, beside callers that live."""

import pytest
from fix_account import Account
from fix_faults import bounds
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


def answer_nobody(driver, peers, spy, topic, count, calls, **options):
    """Give the accounts of calls beside as many replies to a queue that is
    there, and of calls beside replies to nobody, and of those replies."""
    before, during, heard = Account(), Account(base=10**5), Account()

    class Endpoint:
        """Everybody's account, by the number."""

        def __init__(self):
            self.live = {id(it): Accounting(it, "server") for it in (before, during)}
            self.gone = Accounting(heard, "server")

        def take(self, ctxt, arg):
            number = int(arg.removeprefix(MARK))
            if number >= GONE_BASE:
                return self.gone.take(ctxt, arg)
            it = before if number < 10**5 else during
            return self.live[id(it)].take(ctxt, arg)

    peers.server(driver, Endpoint(), topic=topic, threads=WORKERS, **options)
    client = peers.client(driver, topic=topic)
    pace = {"threads": 2, "rate": 200, "count": calls}
    # The same work with replies that somebody wants is what to compare with.
    there = spy.queue()
    for account, base, queue in (
        (before, 10**6, lambda number: there),
        (during, 10**7, lambda number: f"gone-{number % 50}"),
    ):
        bodies = [
            request("take", None, queue(number), arg=f"{MARK}{base + number}")
            for number in range(count)
        ]
        call = sender(account, "call", client, timeout=LIMIT_S)
        with Load(call, **pace) as load:
            spy.send_many("openstack", topic, bodies)
            load.join()
    return before, during, heard


@bounds(promised=1.1, generous=20)
def test_replies_to_nobody_hold_up_no_worker(fast, peers, spy, topic, figure, bound):
    """``bound`` is in times of the 99th percentile beside wanted replies."""
    before, during, heard = answer_nobody(fast, peers, spy, topic, GONE, 400)

    # Each reply is tried again for a minute, by nobody who works.
    heard.wait("executed", 2 * GONE)
    before.balance()
    during.balance()
    p99 = percentile_99(before), percentile_99(during)
    figure(
        10,
        f"{GONE} replies, {WORKERS} workers",
        f"p99 {p99[0] * 1000:.1f} -> {p99[1] * 1000:.1f} ms",
    )
    # Two cores, and a burst of 1,000 requests: give it some.
    assert p99[1] < p99[0] * bound + 0.02


@pytest.mark.slow
def test_the_baseline_of_stock_that_replies_to_nobody(peers, spy, topic, figure):
    # A worker tries for so long, 60 s by default.
    options = {"rabbit": {"kombu_missing_consumer_retry_timeout": 10}}
    _, during, heard = answer_nobody("stock", peers, spy, topic, 8, 10, **options)

    lost = during.count("raised")
    figure(
        10,
        f"{GONE} replies, {WORKERS} workers",
        f"8 only, tried for 10 s: {lost} of {during.count('sent')} live calls "
        f"lost after {LIMIT_S} s",
        "stock",
    )
    assert heard.count("executed") > 0
