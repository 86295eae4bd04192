"""Rows 13 and 14: no broker at the start, and none for a long time."""

import time

import oslo_messaging
import pytest
from fix_faults import QUICK, bounds
from fix_load import Accounting, Load, notify, sender
from fix_objects import wait_until

AWAY = {"refuses": lambda it: it.refuse(), "resets": lambda it: it.slam()}


# --- row 13 ---


@pytest.mark.parametrize("away", list(AWAY))
@bounds(promised=0.1, generous=3.0)
def test_everything_comes_up_when_the_broker_does(
    fast, peers, proxy, broker, topic, account, background, figure, away, bound
):
    """``bound`` is how late a call may be, whose timeout is 2 s."""
    AWAY[away](proxy)
    endpoint = Accounting(account, "server")
    options = {"via": proxy, "rabbit": QUICK}
    starting = [
        background(peers.server, fast, endpoint, topic=topic, **options),
        background(peers.listener, fast, endpoint, topics=[topic], **options),
    ]
    client = peers.client(fast, topic=topic, notification=True, **options)
    waiting = [
        background(sender(account, "cast", client)),
        background(sender(account, "notification", client, topic)),
    ]

    cpu, moment = time.process_time(), time.monotonic()
    with pytest.raises(oslo_messaging.MessagingTimeout, match=str(proxy.port)):
        client.prepare(timeout=2).call({}, "take")
    late = time.monotonic() - moment - 2
    cpu = (time.process_time() - cpu) / 2
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        notify(client.transport, topic, retry=0)
    assert not any(one.is_done() for one in [*starting, *waiting])
    moment = time.monotonic()
    proxy.accept()

    for one in [*starting, *waiting]:
        one.result()
    up_s = time.monotonic() - moment
    wait_until(lambda: len(broker.consumers()) >= 4, 20)
    sender(account, "call", client)()
    # No queue was there yet for one that was sent before the server started.
    account.excuse("lost", "sent before its server", lambda it: it.kind == "cast")
    account.balance()
    figure(
        13,
        away,
        f"call {late * 1000:+.0f} ms, {cpu * 100:.0f} % CPU, up after {up_s:.1f} s",
    )
    assert -0.01 < late < bound
    assert cpu < 0.2, "something spins"
    assert proxy.slammed < 60
    assert up_s < 5


# --- row 14 ---

#: Rounds of connecting in an hour: the pauses grow to 30.4 s on the average.
HOUR = 3600 / 30.4


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "share", [0.03, pytest.param(0.9, marks=pytest.mark.slow)], ids=["short", "hour"]
)
def test_an_outage_costs_few_lines_whoever_waits(
    fast, peers, proxy, topic, account, figure, caplog, share
):
    """The hour is counted in attempts, which come more often here."""
    peers.server(fast, Accounting(account, "server"), topic=topic)
    client = peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)
    call = sender(account, "call", client, timeout=2)
    call()
    caplog.clear()
    proxy.slam()
    began = time.monotonic()
    proxy.cut()
    with Load(call, threads=64):
        # Two connections, each by itself.
        proxy.wait_for(lambda: proxy.slammed >= 2 * HOUR * share, 280)
        lasted = time.monotonic() - began
        proxy.accept()
        ended = time.monotonic()
        account.wait_after("answered", ended, 60)
        back_s = time.monotonic() - ended
    account.excuse(
        "raised", "the outage", lambda it: 2 <= it.at("raised") - it.at("sent") < 4
    )
    account.balance()

    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("oslo_fastmsg")
    ]
    others = len(caplog.records) - len(lines)
    rounds = proxy.slammed // 2
    figure(
        14,
        f"{rounds} rounds in {lasted:.0f} s",
        f"{len(lines)} lines, {others} of others, back after {back_s:.1f} s",
    )
    print(*lines, sep="\n    ")
    address = f"{proxy.host}:{proxy.port}"
    first = [line for line in lines if "lost the" in line]
    assert first
    assert all(address in line and "connecting again" in line for line in first)
    failed = [line for line in lines if "cannot connect" in line]
    assert failed
    assert all(address in line and "next attempt in" in line for line in failed)
    # Of both connections.
    assert sum("back: connected to" in line for line in lines) == 1
    assert len(lines) <= 14
    assert others == 0
    assert back_s < 5
