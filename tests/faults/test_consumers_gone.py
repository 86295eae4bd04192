"""Rows 5 and 6: what is consumed vanishes, or is not consumed any more.

The broker lives, and so do the connections. Calls go on all the time.
"""

import pytest
from fix_account import Account
from fix_faults import (
    QUICK,
    bounds,
    consumes,
    consuming,
    reply_queues,
    seen,
    wait_until_consumed,
)
from fix_load import Accounting, Load, sender
from fix_objects import wait_until

#: How long calls may take; those in flight are answered late.
TIMEOUT_S = 15
#: The same, where some are not answered.
SHORT_S = 4


# --- row 5: the caller's reply queue ---


def lose_the_reply_queue(driver, peers, proxy, broker, topic, account, how):
    """Run calls over a fault; give how long after it a call was answered that
    was made after it, and how long until the queue was consumed again."""
    peers.server(driver, Accounting(account, "server"), topic=topic, rabbit=QUICK)
    options = dict(QUICK)
    if how == "expired":
        options["rabbit_transient_queues_ttl"] = 1
    client = peers.client(driver, topic=topic, via=proxy, rabbit=options)
    timeout = TIMEOUT_S if how == "cancelled" else SHORT_S
    call = sender(account, "call", client, timeout=timeout)
    with Load(call, threads=4):
        account.wait("answered", 20)
        (queue,) = reply_queues(broker)
        link, channel, tag = consuming(proxy, queue["name"])
        if how == "deleted":
            before = proxy.now()
            broker.delete_queue(queue["name"])
            moment = seen(proxy, "basic.cancel", from_client=False, after=before)
        elif how == "cancelled":
            moment = proxy.inject("basic.cancel", tag, True, link=link, channel=channel)
        else:
            # A queue expires while nobody consumes it: in an outage.
            proxy.refuse()
            proxy.cut()
            wait_until(lambda: not reply_queues(broker), what="an expired queue")
            proxy.accept()
            # When the driver is there again is another row's matter.
            proxy.wait_for(lambda: len(consumed_on(proxy)) > 1)
            moment = consumed_on(proxy)[-1].received[0][0]
        # The next call: those of the load may all be in flight.
        call()
        answered_s = account.wait_after("answered", moment, 60)
        if how != "cancelled":
            account.excuse(
                "raised",
                "its reply went with the queue",
                lambda it: (
                    it.at("executed")
                    and it.at("sent") < moment
                    and timeout <= it.at("raised") - it.at("sent") < timeout + 1
                ),
                limit=4,
            )
        if how == "expired":
            # The broker takes its time with that, which may be more than a call has.
            account.excuse(
                "raised",
                "the broker was out of reach",
                lambda it: (
                    not it.at("executed")
                    and it.at("sent") < moment
                    and "not connected to the broker" in it.all("raised")[0].detail
                ),
                limit=8,
            )
        consumed = seen(
            proxy,
            "basic.consume",
            from_client=True,
            after=moment,
            arguments=lambda them: str(them[1]).startswith("reply_"),
        )
        account.wait("answered", account.count("answered") + 20)
    (back,) = reply_queues(broker)
    assert back["consumers"] == 1
    return max(answered_s, consumed - moment)


def consumed_on(proxy):
    """Give the connections on which somebody consumes."""
    return [link for link in proxy.links() if link.methods("basic.consume")]


HOW = pytest.mark.parametrize("how", ["deleted", "cancelled", "expired"])


@HOW
@bounds(promised=1.0, generous=10.0)
def test_calls_go_on_after_the_loss_of_their_reply_queue(
    fast, peers, proxy, broker, topic, account, figure, how, bound
):
    seconds = lose_the_reply_queue(fast, peers, proxy, broker, topic, account, how)

    sums = account.balance()
    lost = account.count("raised")
    figure(5, how, f"answered after {seconds:.3f} s, {lost} lost")
    assert seconds < bound, sums


@pytest.mark.slow
@HOW
def test_the_baseline_of_stock_after_the_loss_of_its_reply_queue(
    peers, proxy, broker, topic, figure, how
):
    account = Account()
    seconds = lose_the_reply_queue("stock", peers, proxy, broker, topic, account, how)

    raised = account.count("raised")
    figure(5, how, f"answered after {seconds:.3f} s, {raised} lost", "stock")


def test_a_call_in_flight_ends_when_its_reply_queue_is_gone(
    fast, peers, proxy, broker, topic, account, background
):
    """It waits for its reply, which the server sends when there is a queue."""
    endpoint = Accounting(account, "server")
    endpoint.gate.clear()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(fast, topic=topic, via=proxy)
    answered = sender(account, "call", client, timeout=TIMEOUT_S)
    late = sender(account, "call", client, timeout=1)
    pending = [background(send) for send in (answered, late)]
    account.wait("executed", 2)

    broker.delete_queue(reply_queues(broker)[0]["name"])
    wait_until(lambda: account.count("raised") == 1)
    endpoint.gate.set()

    numbers = [one.result() for one in pending]
    account.excuse("raised", "at its deadline", lambda it: it.number == numbers[1])
    account.balance()


# --- row 6: the server's queues ---


def lose_a_consumer(peers, proxy, broker, topic, account, how):
    """As above, for a server; there is another one in its process."""
    other = f"{topic}-other"
    theirs = Account()
    transport = peers.transport("fast", via=proxy, rabbit=QUICK)
    peers.server(
        "fast", Accounting(account, "server"), topic=topic, transport=transport
    )
    peers.server("fast", Accounting(theirs, "other"), topic=other, transport=transport)
    client = peers.client("fast", topic=topic)
    timeout = SHORT_S if how == "deleted" else TIMEOUT_S
    call = sender(account, "call", client, timeout=timeout)
    neighbour = sender(theirs, "call", client, timeout=5, topic=other)
    with Load(call, threads=2), Load(neighbour, threads=2):
        account.wait("answered", 20)
        theirs.wait("answered", 20)
        link, channel, tag = consuming(proxy, topic)
        before = consumes(proxy)
        links = len(proxy.links())
        if how == "deleted":
            moment = proxy.now()
            broker.delete_queue(topic)
            moment = seen(proxy, "basic.cancel", from_client=False, after=moment)
        elif how == "cancelled":
            moment = proxy.inject("basic.cancel", tag, True, link=link, channel=channel)
        else:
            code = int(how)
            text = {404: "NOT_FOUND - no queue", 406: "PRECONDITION_FAILED"}[code]
            moment = proxy.inject(
                "channel.close", code, text, 60, 80, link=link, channel=channel
            )
        consumed = seen(
            proxy,
            "basic.consume",
            from_client=True,
            after=moment,
            arguments=lambda them: them[1] == topic,
        )
        # One that comes before that finds no queue, and is lost.
        wait_until_consumed(broker, topic)
        call()
        answered_s = account.wait_after("answered", moment, 30)
        for it in (account, theirs):
            it.wait("answered", it.count("answered") + 20)
    after = consumes(proxy)
    assert {name for name in after if after[name] != before[name]} <= {
        name for name in after if other not in name
    }
    assert len(proxy.links()) == links, "a connection was made anew"
    theirs.balance()
    return max(answered_s, consumed - moment)


@pytest.mark.parametrize("how", ["deleted", "cancelled", "404", "406"])
@bounds(promised=1.0, generous=10.0)
def test_a_server_consumes_again_and_its_neighbour_notices_nothing(
    peers, proxy, broker, topic, account, figure, how, bound
):
    seconds = lose_a_consumer(peers, proxy, broker, topic, account, how)

    if how == "deleted":
        # What lay in the queue went with it, and what came to no queue.
        account.excuse(
            "raised",
            "its request was deleted",
            lambda it: not it.executions(),
            limit=3,
        )
    sums = account.balance()
    figure(6, how, f"answered after {seconds:.3f} s, {account.count('raised')} lost")
    assert seconds < bound, sums


def test_a_fanout_queue_that_is_deleted_is_consumed_again(
    fast, peers, proxy, broker, topic, account, figure
):
    peers.server(fast, Accounting(account, "server"), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic)
    fanout = sender(account, "fanout", client)
    fanout()
    account.wait("executed", 1)
    (queue,) = [name for name in consumes(proxy) if "_fanout_" in name]
    moment = proxy.now()

    broker.delete_queue(queue)
    proxy.wait_for(lambda: consumes(proxy)[queue] == 2, what="basic.consume")
    wait_until_consumed(broker, queue)

    at = seen(
        proxy,
        "basic.consume",
        from_client=True,
        after=moment,
        arguments=lambda them: them[1] == queue,
    )
    since = seen(proxy, "basic.cancel", from_client=False, after=moment)
    figure(6, "fanout queue", f"consumed after {at - since:.3f} s")
    fanout()
    account.wait("executed", 2)
    account.balance(["server"])
