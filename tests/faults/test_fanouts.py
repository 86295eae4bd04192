"""Row 9: the fanout channel is closed with 404, under load.

The exchange was gone for a moment: the broker took what came before that, and
confirmed nothing of it. What was in flight is sent again with its ids.
"""

import json

from fix_account import Account
from fix_faults import QUICK, seen
from fix_load import Accounting, Load, loads, sender
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
    """The servers' bindings went with it: they hear nothing until they connect
    anew. That is said in docs/semantics.rst, and not what this is about."""
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
