"""Promises of docs/semantics.rst that no other test has: deaths, limits, doubles."""

import threading
import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Log, Notes, TestEndpoint, standalone_peers
from fix_proxy import named
from fix_wire import payload_of, request

import oslo_fastmsg

QUICK = {
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}


def serve_until_killed(pipe, url, directory, topic, kind):
    """Say what was begun, and never finish it."""

    class Endpoint:
        def work(self, ctxt, number):
            pipe.send(number)
            threading.Event().wait()

    def begin(note):
        pipe.send(note["payload"])
        threading.Event().wait()

    with standalone_peers(url, directory) as peers:
        if kind == "request":
            peers.server("fast", Endpoint(), topic=topic, threads=1)
        else:
            peers.listener("fast", Notes(["info"], begin), topics=[topic], threads=1)
        pipe.send("up")
        pipe.recv()


def test_a_request_that_ran_when_its_server_was_killed_is_not_run_again(
    fast, peers, topic, broker, tmp_path
):
    seen = []

    class Endpoint:
        def work(self, ctxt, number):
            seen.append(number)

    child = peers.child(
        serve_until_killed, broker.url(), str(tmp_path), topic, "request"
    )
    assert child.receive() == "up"
    client = peers.client(fast, topic=topic)
    client.cast({}, "work", number=1)
    assert child.receive() == 1

    child.kill()

    peers.server(fast, Endpoint(), topic=topic, threads=1)
    client.call({}, "work", number=2)
    assert seen == [2]
    assert broker.queue(topic)["messages"] == 0


def test_a_notification_whose_listener_was_killed_comes_to_the_next(
    fast, peers, topic, broker, tmp_path
):
    child = peers.child(serve_until_killed, broker.url(), str(tmp_path), topic, "note")
    assert child.receive() == "up"
    peers.notifier(fast, topic).info({}, "event", "again")
    assert child.receive() == "again"

    child.kill()

    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic])
    assert [note["payload"] for note in notes.seen.wait()] == ["again"]


@pytest.fixture
def handled(fast, peers, topic, proxy):
    """A note that a listener with two threads is handling; and what lets it go on."""
    gate = threading.Event()
    notes = Notes(["info"], lambda note: gate.wait(20) and None)
    peers.listener(fast, notes, topics=[topic], via=proxy, threads=2, rabbit=QUICK)
    peers.notifier(fast, topic).info({}, "event", "handled")
    notes.seen.wait(1)
    yield notes.seen, gate
    gate.set()


def test_a_notification_is_handled_once_though_its_connection_goes_meanwhile(
    fast, peers, topic, proxy, broker, handled
):
    seen, gate = handled
    proxy.cut()
    # For the other thread, behind the copy.
    peers.notifier(fast, topic).info({}, "event", "after")
    seen.wait(2)
    gate.set()

    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)
    assert [note["payload"] for note in seen.items()] == ["handled", "after"]


def test_another_listener_gets_a_notification_whose_connection_goes_meanwhile(
    fast, peers, topic, proxy, handled
):
    others = Notes(["info"])
    proxy.refuse()
    proxy.cut()
    peers.listener(fast, others, topics=[topic])

    assert [note["payload"] for note in others.seen.wait(1)] == ["handled"]


def test_a_notification_whose_ack_is_lost_is_not_handled_again_by_its_listener(
    fast, peers, topic, proxy, broker
):
    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic], via=proxy, threads=1, rabbit=QUICK)
    notifier = peers.notifier(fast, topic)
    proxy.cut_when(named("basic.ack", from_client=True), forward=False)
    notifier.info({}, "event", "once")

    proxy.wait_for(lambda: len(proxy.links()) == 2, what="a new connection")
    notifier.info({}, "event", "after")

    assert [note["payload"] for note in notes.seen.wait(2)] == ["once", "after"]
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)
    assert len(notes.seen) == 2


@pytest.mark.slow
def test_what_was_confirmed_survives_a_killed_broker_in_durable_queues_alone(
    fast, own_broker, tmp_path
):
    kept, lost = TestEndpoint(), TestEndpoint()
    # An exchange is durable or not: each needs its own.
    durable = {"rabbit": {"amqp_durable_queues": True}, "control_exchange": "durable"}
    with standalone_peers(own_broker.url(), str(tmp_path)) as peers:
        for endpoint, topic, options in (
            (kept, "kept", durable),
            (lost, "lost", {}),
        ):
            # The queue stays when its server goes.
            peers.stop(peers.server(fast, endpoint, topic=topic, **options))
            client = peers.client(fast, topic=topic, **options)
            client.cast({}, "echo", arg="before")

        own_broker.kill()
        own_broker.start()

        for endpoint, topic, options in (
            (kept, "kept", durable),
            (lost, "lost", {}),
        ):
            peers.server(fast, endpoint, topic=topic, threads=1, **options)
            client = peers.client(fast, topic=topic, **options)
            assert client.call({}, "echo", arg="after") == "after"
    assert kept.seen.items() == ["before", "after"]
    assert lost.seen.items() == ["after"]


def test_an_outage_uses_up_no_send_timeout(fast, peers, topic, proxy, background):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(
        fast, topic=topic, via=proxy, rabbit=QUICK, query={"send_timeout": 1}
    )
    client.cast({}, "echo", arg="before")
    proxy.slam()
    proxy.cut()
    start = time.monotonic()

    pending = background(client.cast, {}, "echo", arg="through")

    # Longer than the limit, by the tries that were in vain.
    proxy.wait_for(lambda: proxy.slammed >= 3 and time.monotonic() - start > 2, 20)
    assert not pending.is_done()
    proxy.accept()
    pending.result()
    assert endpoint.seen.wait(2) == ["before", "through"]


def test_a_loss_of_the_consuming_connection_uses_up_no_retry(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, via=proxy, retry=0, rabbit=QUICK)
    client.call({}, "echo")
    proxy.cut_when(named("basic.deliver", from_client=False), forward=False)

    assert client.call({}, "echo", arg="comes") == "comes"

    assert len(proxy.links()) == 3
    assert [link.is_open for link in proxy.links()].count(False) == 1


def test_a_refusal_that_is_over_is_found_by_the_next_message(
    fast, peers, topic, broker
):
    url = f"fastmsg://late:word@{broker.host}:{broker.port}/"
    client = peers.client(fast, topic=topic, url=url, rabbit=QUICK)
    for _ in range(2):
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="403"):
            client.cast({}, "echo")

    broker.add_user("late", "word")

    client.cast({}, "echo")


def test_two_servers_of_a_topic_may_each_run_a_copy(fast, peers, topic, spy):
    """Each remembers what it ran itself."""
    first, second = TestEndpoint("first"), TestEndpoint("second")
    body = request("who")
    server = peers.server(fast, first, topic=topic, server="first")
    spy.send("openstack", topic, body)
    first.seen.wait()
    peers.stop(server)

    peers.server(fast, second, topic=topic, server="second")
    spy.send("openstack", topic, body)

    assert second.seen.wait() == ["second"]


def test_what_the_program_sends_again_has_an_id_of_its_own(fast, peers, topic, proxy):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(fast, topic=topic, via=proxy)

    for _ in range(2):
        client.cast({}, "echo", arg="same")

    assert endpoint.seen.wait(2) == ["same", "same"]
    ids = [payload_of(each.body)["_unique_id"] for each in proxy.publications()]
    assert len(set(ids)) == len(ids) == 2


def test_a_reply_that_is_not_confirmed_in_time_is_dropped_with_a_line(
    fast, peers, topic, proxy, spy, caplog
):
    peers.server(
        fast, TestEndpoint(), topic=topic, via=proxy, query={"send_timeout": 1}
    )
    replies = spy.tap()
    proxy.drop(named("basic.ack", from_client=False))

    spy.send("openstack", topic, request("echo", None, replies.queue, arg=1))

    replies.get()  # it has arrived; what is missing is the word of it
    wait_until(lambda: "dropped the reply" in caplog.text, 10)
    assert "did not take it in time" in caplog.text


def test_a_worker_who_finds_no_room_for_a_reply_gives_it_up_in_time(
    fast, peers, topic, proxy, spy, caplog
):
    """More of them than may wait: each ends as a line in the log, one or the other."""
    count = 12
    seen = Log()

    class Endpoint:
        def big(self, ctxt):
            seen.add(1)
            return "x" * 10**6

    peers.server(
        fast, Endpoint(), topic=topic, via=proxy, threads=1, query={"send_timeout": 1}
    )
    queue = spy.queue()
    proxy.drop(named("basic.ack", from_client=False))

    for _ in range(count):
        spy.send("openstack", topic, request("big", None, queue))

    seen.wait(count)

    def lines():
        return sum(
            caplog.text.count(text) for text in ("dropped the reply:", "is lost:")
        )

    wait_until(lambda: lines() == count, 20, "a line for each reply")


def test_a_fanout_is_lost_while_its_exchange_has_no_bindings(
    fast, peers, topic, proxy, broker
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, threads=1, rabbit=QUICK)
    fanout = peers.client(fast, topic=topic).prepare(fanout=True)
    fanout.cast({}, "echo", arg="before")
    endpoint.seen.wait(1)

    broker.delete_exchange(f"{topic}_fanout")
    fanout.cast({}, "echo", arg="lost")
    proxy.cut()
    proxy.wait_for(lambda: len(proxy.open_links()) == 1)
    wait_until(lambda: oslo_fastmsg.health()["ok"])

    fanout.cast({}, "echo", arg="after")
    assert endpoint.seen.wait(2) == ["before", "after"]


def test_a_started_server_outlives_refusals(fast, peers, topic, proxy, broker, caplog):
    """Its queue goes while it is away, and it may not declare that any more."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, rabbit=QUICK)
    proxy.refuse()
    proxy.cut()
    broker.delete_queue(topic)
    broker.set_permissions("guest", "/", configure=f"^(?!{topic}$).*")
    try:
        proxy.accept()
        wait_until(lambda: "opening it again" in caplog.text)
        assert not oslo_fastmsg.health()["ok"]
    finally:
        broker.set_permissions("guest", "/")
    wait_until(lambda: oslo_fastmsg.health()["ok"])

    client = peers.client(fast, topic=topic)
    assert client.call({}, "echo", arg="here") == "here"
