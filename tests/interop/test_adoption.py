"""Exchanges and queues that exist with other flags than configured."""

import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint, stock_takes

QUORUM = {"rabbit_quorum_queue": True}
DURABLE = {"amqp_durable_queues": True}
CLASSIC = {}

CHANGES = {
    "to durable": (CLASSIC, DURABLE),
    "from durable": (DURABLE, CLASSIC),
    "classic to quorum": (CLASSIC, QUORUM),
    "durable to quorum": (DURABLE, QUORUM),
    "quorum to classic": (QUORUM, CLASSIC),
    "to auto-delete": (CLASSIC, {"amqp_auto_delete": True}),
    "another limit": (QUORUM, {**QUORUM, "rabbit_quorum_delivery_limit": 5}),
}


@pytest.fixture
def exchange(topic):
    """One that no other test has declared."""
    return f"exchange-{topic}"


@pytest.fixture
def declared(peers, topic, exchange):
    """Have a peer declare everything of a topic, and leave."""

    def declare(rabbit, driver="stock"):
        transport = peers.transport(driver, rabbit=rabbit, control_exchange=exchange)
        server = peers.server(
            driver, TestEndpoint(), topic=topic, transport=transport, server="server1"
        )
        peers.stop(server)

    return declare


def flags(broker, topic):
    return {
        each["name"]: (each["durable"], each["auto_delete"], sorted(each["arguments"]))
        for each in broker.queues()
        if each["name"] in (topic, f"{topic}.server1")
    }


@pytest.mark.parametrize("change", CHANGES)
def test_a_server_uses_what_is_there_and_says_so(
    peers, fast, broker, declared, topic, exchange, change, caplog
):
    before, after = CHANGES[change]
    declared(before)
    found = flags(broker, topic)
    assert len(found) == 2

    options = {"rabbit": after, "control_exchange": exchange}
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, **options)
    client = peers.client(fast, topic=topic, **options)
    assert client.call({}, "echo", arg=1) == 1
    client.prepare(server="server1").cast({}, "echo", arg=2)
    client.prepare(fanout=True).cast({}, "echo", arg=3)
    assert sorted(endpoint.seen.wait(3)) == [1, 2, 3]

    assert flags(broker, topic) == found
    if change == "to durable":  # its queues are declared like the exchange
        what, command = (
            f"exchange '{exchange}'",
            f"exchange '--vhost=/' 'name={exchange}'",
        )
    else:
        what, command = f"queue '{topic}'", f"delete_queue --vhost '/' '{topic}'"
    wait_until(lambda: f"{what} exists with another '" in caplog.text)
    assert command in caplog.text
    said = [r.getMessage() for r in caplog.records if "used as it is" in r.getMessage()]
    assert len(said) == len(set(said)) <= 3  # two queues and an exchange


START_S = 2.0


@pytest.mark.timing
@pytest.mark.parametrize("change", CHANGES)
def test_a_server_that_uses_what_is_there_starts_in_time(
    peers, fast, declared, topic, exchange, change
):
    before, after = CHANGES[change]
    declared(before)

    options = {"rabbit": after, "control_exchange": exchange}
    start = time.monotonic()
    peers.server(fast, TestEndpoint(), topic=topic, **options)
    assert peers.client(fast, topic=topic, **options).call({}, "echo", arg=1) == 1
    seconds = time.monotonic() - start
    print(f"{change}: served after {seconds:.2f} s")

    assert seconds < START_S


def test_peers_of_both_settings_answer_each_other(
    peers, pairing, declared, topic, exchange
):
    """An option is changed process by process, and the first has it not."""
    if pairing.receiver == "stock":
        first, second = "stock", "fast"
    else:
        first, second = "fast", pairing.sender
        if second == "stock":
            pytest.skip("stock does not start where a flag differs")
    old = {"rabbit": CLASSIC, "control_exchange": exchange}
    new = {"rabbit": QUORUM, "control_exchange": exchange}
    peers.server(first, TestEndpoint("old"), topic=topic, server="old", **old)
    peers.server(second, TestEndpoint("new"), topic=topic, server="new", **new)

    for options, driver in ((old, first), (new, second)):
        client = peers.client(driver, topic=topic, **options)
        for name in ("old", "new"):
            assert client.prepare(server=name).call({}, "who") == name


@pytest.mark.envelopes("json", "auto")
def test_an_exchange_that_is_not_durable_decides_as_with_stock(
    peers, broker, spy, topic, exchange
):
    """Durable queues wanted, the exchange is not: stock makes neither durable."""
    found = {}
    falls_back = stock_takes("use_queue_manager", True)  # 14.0 fails
    for driver in ("stock", "fast") if falls_back else ("fast",):
        name = f"{topic}-{driver}"
        spy.exchange(exchange)
        options = {"rabbit": DURABLE, "control_exchange": exchange}
        peers.server(driver, TestEndpoint(), topic=name, **options)
        client = peers.client("fast", topic=name, **options)
        assert client.call({}, "echo", arg=1) == 1
        found[driver] = broker.queue(name)["durable"]
    assert not any(found.values()), found


def test_notifications_go_through_queues_that_are_there(
    peers, fast, broker, topic, exchange, caplog
):
    notes = Notes()
    old = {"rabbit": CLASSIC, "control_exchange": exchange}
    new = {"rabbit": DURABLE, "control_exchange": exchange}
    peers.listener("stock", Notes(), topics=[topic], **old)
    notifier = peers.notifier(fast, topic, **new)
    peers.listener(fast, notes, topics=[topic], **new)

    for number in range(4):  # two listeners take turns
        notifier.info({}, "event", {"n": number})
    wait_until(lambda: len(notes.seen) >= 1)
    wait_until(lambda: f"'{exchange}' exists with another 'durable'" in caplog.text)


def test_what_was_adopted_and_vanished_is_declared_as_configured(
    peers, fast, broker, declared, topic, exchange
):
    declared(CLASSIC)
    options = {"rabbit": DURABLE, "control_exchange": exchange}
    peers.server(fast, TestEndpoint(), topic=topic, **options)
    client = peers.client(fast, topic=topic, **options)
    assert client.call({}, "echo", arg=1) == 1
    for name in (topic, f"{topic}.server1"):
        broker.rabbitmqctl("delete_queue", name)

    assert client.call({}, "echo", arg=2) == 2
    wait_until(lambda: len(flags(broker, topic)) == 2)


def test_a_queue_with_arguments_of_the_operators_is_used(
    peers, pairing, spy, topic, caplog
):
    """Where stock declares it first, or the operator, and we come later."""
    if "fast" != pairing.receiver:
        pytest.skip("stock does not start there")
    spy.queue(topic, **{"x-max-length": 5})

    peers.server(pairing.receiver, TestEndpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    assert client.call({}, "echo", arg=1) == 1
    wait_until(lambda: "exists with another 'x-max-length'" in caplog.text)


def test_an_exchange_of_another_type_is_an_error(peers, fast, spy, topic, exchange):
    """Messages would go astray."""
    spy.exchange(exchange, "direct")
    options = {"control_exchange": exchange, "retry": 0}
    client = peers.client(fast, topic=topic, **options)
    with pytest.raises(Exception, match="inequivalent arg 'type'"):
        client.cast({}, "echo", arg=1)


def test_a_user_who_may_not_configure_uses_what_is_there(
    peers, fast, broker, topic, exchange
):
    """Everything is declared by the operator, except queues of one's own."""
    peers.server(fast, TestEndpoint(), topic=topic, control_exchange=exchange)
    mine = "^(reply_.*|.*_fanout_.*)$"
    broker.add_user("restricted", "secret")
    broker.set_permissions("restricted", "/", configure=mine)
    url = broker.url("fastmsg").replace("guest:guest@", "restricted:secret@")
    transport = peers.transport(fast, url=url, control_exchange=exchange)
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport)
    assert client.call({}, "echo", arg=1) == 1
    client.prepare(fanout=True).cast({}, "echo", arg=2)
    wait_until(lambda: 2 in endpoint.seen.items())


def test_a_user_who_may_not_configure_what_is_not_there_is_told(
    peers, fast, broker, topic, exchange
):
    broker.add_user("helpless", "secret")
    broker.set_permissions("helpless", "/", configure="^$")
    url = broker.url("fastmsg").replace("guest:guest@", "helpless:secret@")
    transport = peers.transport(fast, url=url, control_exchange=exchange)
    client = peers.client(fast, topic=topic, transport=transport, timeout=5)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="access to"):
        peers.server(fast, TestEndpoint(), topic=topic, transport=transport)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="access to"):
        client.cast({}, "echo", arg=1)
    said = f"'{exchange}' in vhost '/' refused"
    wait_until(lambda: broker.whole_log().count(said) >= 2)
    assert broker.whole_log().count(said) <= 10
