"""Row 9: the fanout channel is closed with 404, under load.

The exchange was gone for a moment: the broker took what came before that, and
confirmed nothing of it. What was in flight is sent again with its ids.
"""

import json
import time

import pytest
from fix_account import Account
from fix_faults import QUICK, seen
from fix_load import Accounting, Load, loads, sender
from fix_objects import wait_until
from fix_wire import payload_of

FAULTS = 10
NAMES = ["one", "two"]


def fanout_channel(proxy, topic):
    """Find the channel that fanouts go over."""
    for link in proxy.open_links():
        for _, frame in reversed(list(link.sent)):
            if frame.name == "basic.publish" and frame.arguments[1].endswith("_fanout"):
                return link, frame.channel
    raise AssertionError("no fanout was sent")


def test_fanouts_in_flight_are_sent_again_and_run_once(
    fast, peers, proxy, topic, account, dice, figure
):
    quiet = Account(base=10**6)
    for name in NAMES:
        peers.server(fast, Accounting(account, name), topic=topic, server=name)
    peers.server(fast, Accounting(quiet, "quiet"), topic=f"{topic}-quiet")
    client = peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)
    other = peers.client(fast, topic=f"{topic}-quiet", transport=client.transport)
    fanout = sender(account, "fanout", client)
    fanout()
    slowest = []
    with loads(
        Load(fanout, threads=8),
        Load(sender(quiet, "call", other, timeout=5), threads=2),
        Load(sender(quiet, "cast", other), threads=2),
    ):
        for _ in range(FAULTS):
            account.wait("confirmed", account.count("confirmed") + dice.randrange(40))
            link, channel = fanout_channel(proxy, topic)
            # The confirms are still on their way when the channel ends.
            proxy.withhold(
                lambda _, is_client, frame, channel=channel: (
                    not is_client
                    and frame.channel == channel
                    and frame.name == "basic.ack"
                )
            )
            before = proxy.now()
            seen(proxy, "basic.publish", from_client=True, after=before)
            proxy.inject(
                "channel.close",
                404,
                f"NOT_FOUND - no exchange '{topic}_fanout' in vhost '/'",
                60,
                40,
                link=link,
                channel=channel,
            )
            proxy.forget()
            slowest.append(account.wait_after("confirmed", before, 20))
    account.balance(NAMES)
    quiet.balance()

    times = [
        it.at("answered" if it.kind == "call" else "confirmed") - it.at("sent")
        for it in quiet.entries()
    ]
    doubles = doubled(proxy, topic)
    figure(
        9,
        f"{FAULTS} closes",
        f"{account.count('confirmed')} sent, {len(doubles)} again, 0 lost or twice; "
        f"slowest other {max(times) * 1000:.0f} ms",
    )
    assert doubles, "nothing was in flight: the test tests nothing"
    # Byte by byte, ids included.
    assert all(len(set(bodies)) == 1 for bodies in doubles.values())
    assert max(times) < 5
    assert len(proxy.links()) == 2


def doubled(proxy, topic):
    """Give what was published more than once, by its number."""
    bodies = {}
    for each in proxy.publications():
        if each.exchange == f"{topic}_fanout":
            number = json.dumps(payload_of(each.body)["args"])
            bodies.setdefault(number, []).append(each.body)
    return {number: them for number, them in bodies.items() if len(them) > 1}


def test_a_deleted_fanout_exchange_costs_its_senders_and_others_nothing(
    fast, peers, proxy, broker, topic, account, dice, figure
):
    """The servers' bindings went with it: they hear nothing until they bind
    anew, within a minute. That is said in docs/semantics.rst, and what the next
    test is about."""
    quiet = Account(base=10**6)
    server = peers.server(fast, Accounting(account, "one"), topic=topic)
    peers.server(fast, Accounting(quiet, "quiet"), topic=f"{topic}-quiet")
    client = peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)
    other = peers.client(fast, topic=f"{topic}-quiet", transport=client.transport)
    fanout = sender(account, "fanout", client)
    fanout()
    with loads(
        Load(fanout, threads=4),
        Load(sender(quiet, "call", other, timeout=5), threads=2),
        Load(sender(quiet, "cast", other), threads=2),
    ):
        for _ in range(FAULTS):
            account.wait("confirmed", account.count("confirmed") + dice.randrange(40))
            broker.delete_exchange(f"{topic}_fanout")
        account.wait("confirmed", account.count("confirmed") + 20)
    quiet.balance()
    account.excuse("lost", "the binding went with the exchange")
    sums = account.balance()
    assert account.count("raised") == 0
    # Who starts anew binds anew, and is heard of again.
    peers.stop(server)
    again = Account(base=2 * 10**6)
    peers.server(fast, Accounting(again, "anew"), topic=topic, server="anew")
    sender(again, "fanout", client)()
    again.balance(["anew"])
    figure(9, "exchange deleted", f"{account.count('raised')} raised ({sums})")


#: Servers bind again so often.
BINDS_S = 60


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_servers_that_lost_their_bindings_are_reached_again_within_a_minute(
    fast, peers, broker, topic, account, figure
):
    """Two have lost the exchange, one of them by its namesake, and one only a
    binding. Nobody starts or connects anew."""
    lost = ["exchange", "remade", "binding"]
    for name in lost:
        peers.server(
            fast,
            Accounting(account, name),
            topic=f"{topic}-{name}",
            exchange=f"{topic}-{name}-control",
        )
    clients = {
        name: peers.client(
            fast,
            topic=f"{topic}-{name}",
            target={"exchange": f"{topic}-{name}-control"},
        )
        for name in lost
    }
    for client in clients.values():
        sender(account, "call", client)()
        sender(account, "fanout", client)()
    account.wait("executed", 2 * len(lost))
    bindings, connections = broker.bindings(), len(broker.connections())

    for name in lost[:2]:
        broker.delete_exchange(f"{topic}-{name}_fanout")
        broker.delete_exchange(f"{topic}-{name}-control")
    broker.unbind(f"{topic}-binding", f"{topic}-binding-control", f"{topic}-binding")
    # Its senders declare it again, and reach nobody.
    early = Account(base=10**6)
    sender(early, "fanout", clients["remade"])()
    sender(early, "call", clients["remade"], timeout=1)()
    start = time.monotonic()
    wait_until(
        lambda: sorted(map(str, broker.bindings())) == sorted(map(str, bindings)),
        BINDS_S + 10,
        "the same bindings",
    )
    seconds = time.monotonic() - start
    for client in clients.values():
        sender(account, "call", client, timeout=5)()
        sender(account, "fanout", client)()

    account.balance()
    assert early.count("executed") == 0, "it was reached: the test tests nothing"
    assert len(broker.connections()) == connections
    figure(9, "exchanges and a binding lost", f"bound again after {seconds:.0f} s")
    assert seconds < BINDS_S + 5


def test_a_fanout_survives_many_closes_in_a_few_milliseconds(
    fast, peers, proxy, topic, account, background
):
    """A broker that deletes an exchange says 404 and declares it, again and
    again, until it is done with that."""
    peers.server(fast, Accounting(account, "server"), topic=topic)
    client = peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)
    fanout = sender(account, "fanout", client)
    fanout()
    link, channel = fanout_channel(proxy, topic)
    proxy.drop(
        lambda _, is_client, frame: (
            not is_client and frame.channel == channel and frame.name == "basic.ack"
        )
    )
    moment = proxy.now()
    pending = background(fanout)
    for number in range(5):
        sent = seen(proxy, "basic.publish", from_client=True, after=moment)
        seen(proxy, "basic.ack", from_client=False, after=sent)
        if number == 4:
            proxy.drop(None)
        text = f"NOT_FOUND - no exchange '{topic}_fanout' in vhost '/'"
        moment = proxy.inject(
            "channel.close", 404, text, 60, 40, link=link, channel=channel
        )
    pending.result()

    account.balance(["server"])
