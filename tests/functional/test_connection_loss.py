"""Connections that break, at exact moments and under load.

Nothing that was sent is lost, nothing is executed twice by one server, and
who waits for a reply gets it.
"""

import contextlib
import threading

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Notes, Peers, TestEndpoint
from fix_proxy import named
from fix_wire import payload_of

# The pauses before reconnecting, as short as the options allow.
QUICK = {
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}

HOW = pytest.mark.parametrize("how", ["rst", "fin"])


@pytest.fixture
def served(fast, peers, topic):
    """A server that the breaking proxy is not before, and its endpoint."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)
    return endpoint


@pytest.fixture
def client(fast, peers, topic, proxy):
    """A client behind the breaking proxy."""
    return peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)


@HOW
def test_a_call_waits_through_the_loss_of_both_connections(
    client, served, proxy, background, how
):
    pending = background(client.call, {}, "wait")
    served.seen.wait()

    assert proxy.cut(how) == 2
    served.gate.set()

    assert pending.result() == "opened"


def test_a_reply_sent_during_the_outage_is_received_after_it(
    client, served, proxy, background
):
    pending = background(client.call, {}, "wait")
    served.seen.wait()
    proxy.refuse()
    proxy.cut()

    served.gate.set()
    proxy.accept()

    assert pending.result() == "opened"


@HOW
@pytest.mark.parametrize("forward", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("part", ["basic.publish", "header", "body"])
def test_a_cast_survives_a_cut_in_the_middle_of_it(
    client, served, proxy, how, forward, part
):
    client.cast({}, "echo", arg="before")
    proxy.cut_when(named(part, from_client=True), how=how, forward=forward)

    client.cast({}, "echo", arg="during")
    client.cast({}, "echo", arg="after")

    assert served.seen.wait(3) == ["before", "during", "after"]


@HOW
def test_a_call_survives_a_cut_before_its_confirm(client, served, proxy, how):
    client.call({}, "echo", arg="before")
    proxy.cut_when(named("basic.ack", from_client=False), how=how, forward=False)

    assert client.call({}, "echo", arg="during") == "during"

    assert served.seen.items() == ["before", "during"]


def test_a_call_survives_a_cut_before_its_reply(client, served, proxy):
    client.call({}, "echo", arg="before")
    proxy.cut_when(named("basic.deliver", from_client=False), forward=False)

    assert client.call({}, "echo", arg="during") == "during"

    assert served.seen.items() == ["before", "during"]


def test_a_resent_message_keeps_its_ids_and_expiration(client, served, proxy):
    client.call({}, "echo", arg="before")
    proxy.cut_when(named("body", from_client=True), forward=False)

    client.call({}, "echo", arg="during")

    _, first, second = proxy.publications()
    assert first.body == second.body
    assert first.properties == second.properties
    assert payload_of(first.body)["args"] == {"arg": "during"}


def test_a_resent_notification_arrives_once(fast, peers, topic, proxy):
    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic])
    notifier = peers.notifier(fast, topic, via=proxy, rabbit=QUICK)
    notifier.info({}, "event", 1)
    proxy.cut_when(named("basic.ack", from_client=False), forward=False)

    notifier.info({}, "event", 2)
    notifier.info({}, "event", 3)

    seen = notes.seen.wait(3)
    assert sorted(note["payload"] for note in seen) == [1, 2, 3]


@pytest.fixture
def storm(proxy, background):
    """Cut the proxy's connections a few times while a test's block runs."""

    @contextlib.contextmanager
    def blow(cuts, every):
        """:param every: after so many frames from the clients."""
        done = threading.Event()

        def cut_again_and_again():
            for number in range(cuts):
                before = frames(proxy)
                proxy.wait_for(
                    lambda before=before: (
                        done.is_set() or frames(proxy) >= before + every
                    ),
                    timeout=60,
                )
                proxy.cut(("rst", "fin")[number % 2])

        pending = background(cut_again_and_again)
        try:
            yield
        finally:
            done.set()
            proxy.nudge()
            pending.result()

    return blow


def frames(proxy):
    return sum(len(link.sent) for link in proxy.links())


def test_calls_of_many_threads_survive_repeated_cuts(
    client, served, proxy, storm, background
):
    def call(thread):
        for step in range(40):
            assert client.call({}, "echo", arg=[thread, step]) == [thread, step]

    with storm(cuts=5, every=150):
        for pending in [background(call, thread) for thread in range(8)]:
            pending.result(60)

    seen = [tuple(arg) for arg in served.seen.items()]
    assert len(seen) == len(set(seen)) == 8 * 40
    assert len(proxy.links()) > 4


def test_casts_are_neither_lost_nor_doubled_nor_reordered_by_cuts(
    client, served, proxy, storm, background
):
    def cast(thread):
        for step in range(100):
            client.cast({}, "echo", arg=[thread, step])

    with storm(cuts=5, every=150):
        for pending in [background(cast, thread) for thread in range(4)]:
            pending.result(60)

    seen = served.seen.wait(400)
    for thread in range(4):
        assert [step for t, step in seen if t == thread] == list(range(100))
    assert len(proxy.links()) > 2


def test_a_server_behind_cuts_executes_everything_once(
    fast, peers, topic, proxy, storm, background
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, rabbit=QUICK, threads=4)
    client = peers.client(fast, topic=topic, timeout=60)

    def call(thread):
        for step in range(40):
            assert client.call({}, "echo", arg=[thread, step]) == [thread, step]

    with storm(cuts=5, every=150):
        for pending in [background(call, thread) for thread in range(8)]:
            pending.result(60)

    seen = [tuple(arg) for arg in endpoint.seen.items()]
    assert len(seen) == len(set(seen)) == 8 * 40


def test_a_listener_behind_cuts_hears_everything(
    fast, peers, topic, proxy, storm, broker
):
    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic], via=proxy, rabbit=QUICK)
    notifier = peers.notifier(fast, topic)

    with storm(cuts=5, every=50):
        for number in range(300):
            notifier.info({}, "event", number)
        notes.seen.wait(300)

    # At least once: one that ran while its ack was lost comes again.
    assert {note["payload"] for note in notes.seen.items()} == set(range(300))
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


# --- what the broker does by itself ---


def test_a_connection_closed_by_the_operator_is_made_again(fast, peers, topic, broker):
    endpoint = TestEndpoint()
    server = peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic, transport=server.transport)
    assert client.call({}, "echo", arg=1) == 1

    assert broker.close_connections() == 2

    assert client.call({}, "echo", arg=2) == 2
    client.prepare(fanout=True).cast({}, "echo", arg=3)
    assert endpoint.seen.wait(3) == [1, 2, 3]


def test_a_deleted_queue_is_declared_and_consumed_again(fast, peers, topic, broker):
    """The broker says basic.cancel to whom has announced to understand it."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic)
    client.call({}, "echo", arg=1)

    broker.delete_queue(topic)
    wait_until(lambda: (broker.queue(topic) or {}).get("consumers") == 1)

    assert client.call({}, "echo", arg=2) == 2


def test_a_deleted_fanout_queue_is_made_again(fast, peers, topic, broker):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic)

    def fanout_queues():
        return [
            row
            for row in broker.queues()
            if "_fanout_" in row["name"] and row["consumers"]
        ]

    (queue,) = fanout_queues()
    broker.delete_queue(queue["name"])
    wait_until(lambda: len(fanout_queues()) == 1)

    client.prepare(fanout=True).cast({}, "echo", arg=1)
    assert endpoint.seen.wait() == [1]


def test_a_deleted_reply_queue_is_made_again(fast, peers, topic, broker):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    client.call({}, "echo", arg=1)

    def reply_queues():
        return [row for row in broker.queues() if row["name"].startswith("reply_")]

    (queue,) = reply_queues()
    broker.delete_queue(queue["name"])
    wait_until(lambda: [row["consumers"] for row in reply_queues()] == [1])

    assert client.call({}, "echo", arg=2) == 2
    assert reply_queues()[0]["name"] == queue["name"]


@pytest.fixture
def own_peers(own_broker, tmp_path):
    """Peers on a broker that may be restarted."""
    it = Peers(own_broker, tmp_path)
    yield it
    it.close()


def test_a_call_made_while_the_broker_restarts_is_answered(
    fast, own_peers, own_broker, topic, background
):
    """The request waits in its durable queue until the server is back."""
    options = {"amqp_durable_queues": True, **QUICK}
    endpoint = TestEndpoint()
    own_peers.server(fast, endpoint, topic=topic, rabbit=options)
    client = own_peers.client(fast, topic=topic, rabbit=options, timeout=60)
    client.call({}, "echo", arg="before")
    own_broker.halt()

    during = background(client.call, {}, "echo", arg="during")
    own_broker.start()

    assert during.result(60) == "during"
    assert endpoint.seen.items() == ["before", "during"]


def test_a_restarted_broker_gets_everything_declared_again(
    fast, own_peers, own_broker, topic
):
    """Queues that are not durable do not survive it."""
    endpoint, notes = TestEndpoint(), Notes(["info"])
    own_peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    own_peers.listener(fast, notes, topics=[topic], rabbit=QUICK)
    client = own_peers.client(fast, topic=topic, rabbit=QUICK)
    notifier = own_peers.notifier(fast, topic, rabbit=QUICK)
    client.call({}, "echo", arg=1)

    own_broker.restart()
    wait_until(lambda: len(own_broker.consumers()) == 5, 30)

    assert client.call({}, "echo", arg=2) == 2
    client.prepare(fanout=True).cast({}, "echo", arg=3)
    assert endpoint.seen.wait(3) == [1, 2, 3]
    notifier.info({}, "event", "after")
    notes.seen.wait()


def test_a_fanout_whose_exchange_vanished_is_declared_and_sent_again(
    fast, peers, topic, proxy
):
    """The last server's stop deletes the exchange; stock fails with 404."""
    client = peers.client(fast, topic=topic, via=proxy)
    server = peers.server(fast, TestEndpoint(), topic=topic)
    client.prepare(fanout=True).cast({}, "echo", arg=1)
    peers.stop(server)

    client.prepare(fanout=True).cast({}, "echo", arg=2)

    assert len(proxy.publications()) == 3
    assert len(proxy.links()) == 1


def test_a_vanished_fanout_exchange_touches_fanouts_only(
    fast, peers, topic, background, broker
):
    peers.server(fast, TestEndpoint(), topic=topic)
    other = f"{topic}-other"
    client = peers.client(fast, topic=topic)
    fanout = client.prepare(topic=other, fanout=True)
    fanout.cast({}, "echo")
    stop = threading.Event()

    def call():
        count = 0
        while not stop.is_set():
            assert (
                client.prepare(timeout=5, retry=0).call({}, "echo", arg=count) == count
            )
            count += 1
        return count

    pending = [background(call) for _ in range(4)]
    for _ in range(10):
        broker.delete_exchange(f"{other}_fanout")
        fanout.cast({}, "echo")
    stop.set()

    assert all(one.result() for one in pending)


def test_a_deleted_control_exchange_is_declared_again(fast, peers, topic, broker):
    client = peers.client(fast, topic=topic, control_exchange=topic)
    client.cast({}, "echo", arg=1)
    broker.delete_exchange(topic)

    client.cast({}, "echo", arg=2)

    assert [row["name"] for row in broker.exchanges()] == [topic]


def test_hosts_of_the_url_are_tried_in_turn(fast, peers, topic, broker, proxy):
    """The first one refuses; the second one is the broker."""
    proxy.refuse()
    url = (
        f"fastmsg://guest:guest@{proxy.host}:{proxy.port},"
        f"guest:guest@{broker.host}:{broker.port}/"
    )
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, url=url, timeout=10)

    assert client.call({}, "echo", arg=1) == 1


def test_a_lost_host_is_replaced_by_the_next(fast, peers, topic, broker, proxy):
    peers.server(fast, TestEndpoint(), topic=topic)
    url = (
        f"fastmsg://guest:guest@{proxy.host}:{proxy.port},"
        f"guest:guest@{broker.host}:{broker.port}/"
    )
    client = peers.client(fast, topic=topic, url=url, rabbit=QUICK)
    for number in range(3):
        # Whichever of the two it is at.
        client.call({}, "echo", arg=number)
        proxy.refuse()
        proxy.cut()
        assert client.call({}, "echo", arg=number) == number
        proxy.accept()


def test_messages_are_redelivered_to_another_server_when_one_dies(
    fast, peers, topic, proxy
):
    """What is prefetched and not handed over is nobody's yet."""
    first, second = TestEndpoint("first"), TestEndpoint("second")
    peers.server(
        fast,
        first,
        topic=topic,
        server="first",
        via=proxy,
        threads=1,
        rabbit={"rabbit_qos_prefetch_count": 1, **QUICK},
    )
    client = peers.client(fast, topic=topic)
    client.call({}, "who")
    proxy.silence()
    for number in range(10):
        client.cast({}, "echo", arg=number)

    peers.server(fast, second, topic=topic, server="second")
    proxy.refuse()
    proxy.resume()
    proxy.cut()

    # The first may have run one whose acknowledgement was cut: that comes twice.
    def seen():
        return [each for each in first.seen.items() if each != "first"] + (
            second.seen.items()
        )

    wait_until(lambda: set(seen()) == set(range(10)))
    assert len(seen()) <= 11
    proxy.accept()


def test_losses_are_logged_without_a_line_per_attempt(client, served, proxy, caplog):
    client.call({}, "echo", arg=1)
    caplog.clear()
    proxy.refuse()
    proxy.cut()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=2).call({}, "echo", arg=2)
    proxy.accept()

    assert client.call({}, "echo", arg=3) == 3

    lines = [r for r in caplog.records if r.name.startswith("oslo_fastmsg")]
    assert 1 <= len(lines) <= 12
    address = f"{proxy.host}:{proxy.port}"
    assert any(address in record.getMessage() for record in lines)
