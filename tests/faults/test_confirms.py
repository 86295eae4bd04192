"""Row 8: confirms that do not come, or say no; and messages that come back.

One message's matter alone: others of the same channel are confirmed meanwhile.
"""

import oslo_messaging
import pytest
from fix_account import Account
from fix_faults import bounds
from fix_load import MARK, Accounting, Load, sender

LIMIT_S = 2.5
HEARTBEAT_S = 2
#: The victim's number, and so bytes of its message.
VICTIM = 10**9


def refuse_one(peers, proxy, topic, account, kind, how, retry):
    """Send one message whose confirm is treated, while others go on; give how
    long it took, and the largest time that one of the others did."""
    options = {"query": {"send_timeout": LIMIT_S}}
    options["rabbit"] = {"heartbeat_timeout_threshold": HEARTBEAT_S}
    client = peers.client("fast", topic=topic, via=proxy, retry=retry, **options)
    peers.server("fast", Accounting(account, "server"), topic=topic)
    peers.listener("fast", Accounting(account, "server"), topics=[topic])
    victims = Account(base=VICTIM)
    proxy.treat_confirms(f"{MARK}{VICTIM}".encode(), how)
    same = sender(account, kind, client, topic)
    call = sender(account, "call", client)
    # Its server notes it in the account of the others.
    options = {"retry": retry} if kind == "notification" else {}
    victim = sender(victims, kind, client, topic, **options)
    same()
    with Load(same, threads=2, rate=200), Load(call, threads=2, rate=200):
        account.wait("executed", 20)
        victim()
    (ended,) = victims.entries()
    assert ended.at("raised") is not None, "a confirm that nobody gave"
    return ended, account


def heartbeats(proxy, start, end):
    """Count what clients sent on each link in a time, and what of it was a
    heartbeat."""
    return sum(
        start <= at <= end and frame.name == "heartbeat"
        for link in proxy.links()
        for at, frame in link.sent
    )


@pytest.mark.parametrize("kind", ["cast", "fanout", "notification"])
@pytest.mark.parametrize("how", ["withhold", "nack"])
@bounds(promised=0.05, generous=2.0)
def test_a_confirm_that_is_not_given_is_its_messages_matter_alone(
    peers, proxy, topic, account, figure, kind, how, bound
):
    retry = 0 if how == "nack" else None
    ended, others = refuse_one(peers, proxy, topic, account, kind, how, retry)

    start, end = ended.at("sent"), ended.at("raised")
    (raised,) = ended.all("raised")
    assert raised.detail.startswith("MessageDeliveryFailure"), raised.detail
    late = end - start - (LIMIT_S if how == "withhold" else 0)
    # The victim ran: only its sender does not know.
    others.excuse("received", "the victim", lambda it: it.number == VICTIM)
    others.balance(["server"])
    slowest = max(
        (it.at("answered") or it.at("confirmed")) - it.at("sent")
        for it in others.entries()
        if it.number != VICTIM
    )
    figure(
        8,
        f"{how}, {kind}",
        f"{late * 1000:+.0f} ms, slowest other {slowest * 1000:.0f} ms",
    )
    assert -0.01 < late < bound
    assert slowest < 20 * bound
    assert len(proxy.open_links()) == 2
    assert len(proxy.links()) == 2, "a connection was made anew"


def test_heartbeats_go_on_while_a_confirm_is_withheld(
    fast, peers, proxy, topic, account
):
    """Nothing else is sent meanwhile: the client has to say that it lives."""
    client = peers.client(
        fast,
        topic=topic,
        via=proxy,
        query={"send_timeout": LIMIT_S},
        rabbit={"heartbeat_timeout_threshold": HEARTBEAT_S},
    )
    cast = sender(account, "cast", client)
    client.cast({}, "take", arg="number-1")
    proxy.treat_confirms(MARK.encode())

    cast()

    (it,) = account.entries()
    assert it.at("raised") is not None
    assert heartbeats(proxy, it.at("sent"), it.at("raised")) >= 2
    assert len(proxy.links()) == 1


@pytest.mark.parametrize("kind", ["call", "cast"])
@bounds(promised=0.1, generous=5.0)
def test_a_message_that_comes_back_is_undeliverable_at_once(
    fast, peers, proxy, topic, account, figure, kind, bound
):
    peers.server(fast, Accounting(account, "server"), topic=topic)
    transport = peers.transport(fast, via=proxy)
    at_least_once = oslo_messaging.TransportOptions(at_least_once=True)
    client = peers.client(fast, topic=topic, transport=transport)
    nobody = peers.client(
        fast,
        topic=f"{topic}-nobody",
        transport=transport,
        transport_options=at_least_once,
    )
    returned = Account()
    send = sender(returned, kind, nobody)
    with Load(sender(account, "call", client), threads=2, rate=200):
        account.wait("answered", 10)
        for _ in range(5):
            send()
    account.balance()

    times = [it.at("raised") - it.at("sent") for it in returned.entries()]
    for it in returned.entries():
        assert it.all("raised")[0].detail.startswith("MessageUndeliverable")
    figure(8, f"returned, {kind}", f"within {max(times) * 1000:.0f} ms")
    assert max(times) < bound
    assert len(proxy.links()) == 2
