"""A broker that denies queues that are neither durable nor exclusive.

So does RabbitMQ by default from 4.3 on, and by configuration before. A service with an
untouched configuration declares nothing else.
"""

import logging

import pytest
from fix_faults import reply_queues
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint, stock_takes

pytestmark = pytest.mark.rabbitmq4

FINDING = "denies queues that are neither durable nor exclusive"


@pytest.fixture
def broker(strict_broker):
    return strict_broker


@pytest.fixture
def findings(caplog):
    """Give a function that counts what was said of it; the events are behind."""
    caplog.set_level(logging.INFO)
    return lambda: sum(FINDING in r.getMessage() for r in caplog.records)


def said_of_losses(caplog):
    words = ("lost the", "is back", "cannot connect", "exists with another")
    texts = [r.getMessage() for r in caplog.records if "oslo_fastmsg" in r.name]
    return [text for text in texts if any(word in text for word in words)]


def test_call_cast_fanout_and_notification_with_the_defaults(
    peers, fast, broker, topic, findings, caplog
):
    endpoint, notes = TestEndpoint(), Notes()
    peers.server(fast, endpoint, topic=topic)
    peers.listener(fast, notes, topics=[f"{topic}-notes"])
    client = peers.client(fast, topic=topic)
    assert client.call({}, "echo", arg=1) == 1
    client.cast({}, "echo", arg=2)
    client.prepare(fanout=True).cast({}, "echo", arg=3)
    client.prepare(server="server1").cast({}, "echo", arg=4)
    notifier = peers.notifier(fast, f"{topic}-notes")
    notifier.info({}, "event", {"n": 5})
    notifier.error({}, "event", {"n": 6})

    assert sorted(endpoint.seen.wait(4)) == [1, 2, 3, 4]
    assert sorted(note["payload"]["n"] for note in notes.seen.wait(2)) == [5, 6]
    queues = {row["name"]: row for row in broker.queues()}
    assert all(row["durable"] for row in queues.values())
    assert not any(row["exclusive"] for row in queues.values())
    for name, row in queues.items():
        is_own = name.startswith("reply_") or "_fanout_" in name
        assert ("x-expires" in row["arguments"]) == is_own, name
        assert "x-queue-type" not in row["arguments"]
    assert {topic, f"{topic}.server1", f"{topic}-notes.info"} <= set(queues)
    wait_until(lambda: findings() == 1)
    assert said_of_losses(caplog) == []


def test_a_process_finds_out_once_and_loses_nothing_by_it(
    peers, fast, broker, proxy, topic, findings, caplog, background
):
    """Everything at once, on connections that know nothing yet, without a retry."""
    transport = peers.transport(fast, via=proxy)
    notes = peers.transport(fast, via=proxy, notification=True)
    notifier = peers.notifier(fast, f"{topic}-notes", transport=notes, retry=0)
    client = peers.client(fast, topic=topic, transport=transport, retry=0)
    pending = [
        background(notifier.info, {}, "event", {"n": number}) for number in range(20)
    ]
    pending += [background(client.cast, {}, "echo", arg=number) for number in range(20)]
    server = background(
        peers.server, fast, TestEndpoint(), topic=topic, transport=transport
    )
    for each in pending:
        assert each.result() is None
    server.result()
    assert client.call({}, "echo", arg=1) == 1

    # Each of the two connections at most once, if both asked at the same moment.
    made = len(proxy.links())
    assert 3 <= made <= 4
    wait_until(lambda: findings() == 1)
    assert said_of_losses(caplog) == []

    proxy.cut()
    patient = peers.client(fast, topic=topic, transport=transport)
    assert patient.call({}, "echo", arg=2) == 2
    other = peers.transport(fast, via=proxy, query={"heartbeat_timeout_threshold": 33})
    assert peers.client(fast, topic=topic, transport=other).call({}, "who") == ""
    assert len(proxy.links()) == made + 4  # two again, and the other's two
    assert findings() == 1


def test_queues_that_are_there_durable_are_no_news(
    peers, fast, broker, proxy, topic, findings, caplog
):
    """The second start of a service: others, or it, declared them."""
    first = peers.server(fast, TestEndpoint(), topic=topic)
    peers.stop(first)
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    assert client.call({}, "echo", arg=1) == 1

    wait_until(lambda: findings() == 1)
    assert said_of_losses(caplog) == []


def test_what_is_configured_to_be_durable_or_quorum_stays_so(
    peers, fast, broker, topic
):
    rabbit = {"rabbit_quorum_queue": True, "rabbit_transient_quorum_queue": True}
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=rabbit, control_exchange=topic)
    client = peers.client(fast, topic=topic, rabbit=rabbit, control_exchange=topic)
    assert client.call({}, "echo", arg=1) == 1
    types = {row["arguments"].get("x-queue-type") for row in broker.queues()}
    assert types == {"quorum"}


@pytest.mark.skipif(
    not stock_takes("rabbit_transient_quorum_queue", True),
    reason="the installed release has no transient quorum queues",
)
@pytest.mark.parametrize("names", [("fast", "stock"), ("stock", "fast")])
def test_stock_peers_have_to_be_configured_for_it(peers, fast, broker, topic, names):
    sender, receiver = names
    rabbit = {"rabbit_quorum_queue": True, "rabbit_transient_quorum_queue": True}
    options = {"rabbit": rabbit, "control_exchange": topic}
    endpoint = TestEndpoint()
    peers.server(receiver, endpoint, topic=topic, **options)
    client = peers.client(sender, topic=topic, **options)
    assert client.call({}, "echo", arg=1) == 1
    client.prepare(fanout=True).cast({}, "echo", arg=2)
    assert endpoint.seen.wait(2) == [1, 2]


def test_queues_of_stopped_services_do_not_pile_up(peers, fast, broker, topic):
    """Durable or not: what is one process's is deleted when it ends, or expires."""
    server = peers.server(fast, TestEndpoint(), topic=topic)
    transport = peers.transport(fast)
    client = peers.client(fast, topic=topic, transport=transport)
    assert client.call({}, "echo", arg=1) == 1
    assert len(reply_queues(broker)) == 1
    peers.stop(server)
    peers.clean(transport)

    names = {row["name"] for row in broker.queues()}
    assert names == {topic, f"{topic}.server1"}


def test_a_user_who_may_not_configure_uses_what_is_there(peers, fast, broker, topic):
    peers.server(fast, TestEndpoint(), topic=topic)
    broker.add_user("restricted", "secret")
    broker.set_permissions("restricted", "/", configure="^(reply_.*|.*_fanout_.*)$")
    url = broker.url("fastmsg").replace("guest:guest@", "restricted:secret@")
    transport = peers.transport(fast, url=url)
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport)
    assert client.call({}, "echo", arg=1) == 1
    client.prepare(fanout=True).cast({}, "echo", arg=2)
    wait_until(lambda: 2 in endpoint.seen.items())
