"""Row 7: the broker has no memory or no disk left, and blocks who publishes."""

import time

import pytest
from fix_account import Account
from fix_faults import bounds, seen
from fix_load import Accounting, Load, sender
from fix_peer import Notes
from fix_wire import envelope, payload_of

LIMIT_S = 0.3
NOTES = 40


def note(number):
    it = {"priority": "INFO", "payload": number, "publisher_id": "p"}
    return envelope({**it, "event_type": "e", "timestamp": "t"})


def over(account, kind, seconds):
    """Tell by how much each message was late, in seconds."""
    return [
        it.at("raised") - it.at("sent") - seconds
        for it in account.entries()
        if it.kind == kind and it.at("raised")
    ]


def block(proxy, broker, resource, account, client):
    """Raise the alarm, and publish until the broker has said that it blocks."""
    broker.exhaust(resource)
    moment = proxy.now()
    first = sender(account, "cast", client)
    with Load(first):
        seen(proxy, "connection.blocked", from_client=False, after=moment)


def run_an_alarm(peers, proxy, broker, spy, topic, account, resource, background):
    """Give how late what was refused came, in s, and how soon the first
    message after the alarm was confirmed, and what the core kept meanwhile."""
    for number in range(NOTES):
        spy.queue(f"{topic}.info")
        spy.send("", f"{topic}.info", note(number))
    requests = spy.tap_exchange("openstack", f"{topic}-asked")
    endpoint = Accounting(account, "server")
    transport = peers.transport("fast", via=proxy, query={"send_timeout": LIMIT_S})
    client = peers.client("fast", topic=topic, transport=transport)
    peers.server("fast", endpoint, topic=topic)
    sender(account, "cast", client)()
    asked = background(client.prepare(topic=f"{topic}-asked").call, {}, "take")
    request = payload_of(requests.get().body)
    block(proxy, broker, resource, account, client)

    # What publishes is refused at its limit, whoever else waits.
    late = Account(base=10**6)
    kinds = {
        "call": sender(late, "call", client, timeout=LIMIT_S),
        "cast": sender(late, "cast", client),
        "fanout": sender(late, "fanout", client),
        "notification": sender(late, "notification", client, topic),
    }
    for send in [*kinds.values()] * 2:
        send()
    with Load(kinds["cast"], threads=32, count=96) as many:
        many.join()
    kept = transport._driver._use_bus("test").stats()
    # What consumes goes on, and so do replies.
    notes = Notes(["info"])
    peers.listener("fast", notes, topics=[topic], transport=transport)
    notes.seen.wait(NOTES)
    reply = {"result": "x", "failure": None, "ending": True}
    broker.publish(
        request["_reply_q"], envelope({**reply, "_msg_id": request["_msg_id"]})
    )
    assert asked.result(10) == "x"
    # Who may wait gets through when the alarm is over.
    waiting = background(sender(account, "call", client, timeout=30))
    proxy.nudge()
    broker.relieve(resource)
    waiting.result()
    over_at = seen(proxy, "connection.unblocked", from_client=False, after=0)
    answered = account.entries()[-1].at("answered")
    assert answered is not None
    overdue = {kind: over(late, kind, LIMIT_S) for kind in kinds}
    for kind, them in overdue.items():
        assert len(them) == (98 if kind == "cast" else 2), (kind, them)
    late.excuse("raised", "alarm")
    late.balance()
    assert late.count("executed") == 0
    account.excuse("raised", "sent while the alarm began", limit=1)
    account.balance()
    return overdue, answered - over_at, kept


@pytest.mark.parametrize(
    "resource", ["memory", pytest.param("disk", marks=pytest.mark.slow)]
)
@bounds(promised=0.05, generous=2.0)
def test_an_alarm_holds_up_nobody_past_its_limit(
    peers, proxy, broker, spy, topic, account, background, figure, resource, bound
):
    overdue, resumed_s, kept = run_an_alarm(
        peers, proxy, broker, spy, topic, account, resource, background
    )

    # One after the other; 32 at once wait for each other's GIL as well.
    alone = [seconds for them in overdue.values() for seconds in them[:2]]
    figure(
        7,
        resource,
        f"{min(alone) * 1000:+.1f} to {max(alone) * 1000:+.1f} ms, "
        f"resumed after {resumed_s:.2f} s",
    )
    assert kept["unsent"] < 1 << 20
    assert kept["in_flight"] < 120
    assert -0.01 < min(alone)
    assert max(alone) < bound
    assert resumed_s < max(1.0, 10 * bound)


@pytest.mark.slow
def test_the_baseline_of_stock_under_an_alarm(
    peers, proxy, broker, topic, account, figure, background
):
    """Its calls and casts wait for as long as the alarm lasts."""
    client = peers.client("stock", topic=topic, via=proxy, timeout=LIMIT_S)
    client.cast({}, "take", arg="number-0")
    broker.exhaust("memory")
    moment = time.monotonic()
    sends = [
        background(sender(account, kind, client, **more))
        for kind, more in (("call", {"timeout": LIMIT_S}), ("cast", {}))
        for _ in range(2)
    ]
    seen(proxy, "connection.blocked", from_client=False, after=0)
    proxy_wait = time.monotonic() - moment
    still = 0
    for one in sends:
        try:
            one.result(max(0.01, 8.0 - (time.monotonic() - moment)))
        except TimeoutError:
            still += 1
    broker.relieve("memory")
    for one in sends:
        one.result(60)
    assert proxy_wait < 8
    figure(7, "memory", f"{still} of 4 still waited after 8 s", "stock")
