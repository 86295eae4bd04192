"""The same message twice: by its unique id, per listener."""

import gc
import threading
import uuid

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Batches, Notes, TestEndpoint
from fix_wire import envelope, request

import oslo_fastmsg
from oslo_fastmsg import _core


def note(unique_id, payload):
    return envelope(
        {
            "message_id": str(uuid.uuid4()),
            "publisher_id": "p",
            "event_type": "e",
            "priority": "INFO",
            "payload": payload,
            "timestamp": "2026-11-21 00:00:00.000001",
            "_unique_id": unique_id,
        }
    )


def test_the_same_request_twice_runs_once(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    body = request("echo", arg="once")

    for _ in range(3):
        spy.send("openstack", topic, body)
    spy.send("openstack", topic, request("echo", arg="after"))

    assert endpoint.seen.wait(2) == ["once", "after"]


def test_the_same_call_twice_is_answered_once(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    replies = spy.tap()
    body = request("echo", None, replies.queue, arg="once")

    spy.send("openstack", topic, body)
    spy.send("openstack", topic, body)
    replies.get()
    spy.send("openstack", topic, request("echo", None, replies.queue, arg="after"))
    replies.get()

    assert endpoint.seen.items() == ["once", "after"]
    assert replies.is_empty()


def test_a_duplicate_is_known_after_thousands_of_others(fast, peers, topic, spy):
    """Stock forgets after 16."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)
    body = request("echo", arg="once")

    spy.send("openstack", topic, body)
    spy.send_many(
        "openstack", topic, [request("echo", arg=number) for number in range(5000)]
    )
    spy.send("openstack", topic, body)
    spy.send("openstack", topic, request("echo", arg="after"))

    seen = endpoint.seen.wait(5002)
    assert seen == ["once", *range(5000), "after"]


def test_a_duplicate_through_another_queue_of_the_server_is_known(
    peers, driver, topic, spy
):
    """T, T.S and the fanout queue have one listener."""
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, server="h", threads=1)
    body = request("echo", arg="once")

    spy.send("openstack", topic, body)
    endpoint.seen.wait()
    spy.send("openstack", f"{topic}.h", body)
    spy.send(f"{topic}_fanout", "", body)
    spy.send("openstack", f"{topic}.h", request("echo", arg="after"))
    spy.send(f"{topic}_fanout", "", request("echo", arg="after all"))

    assert set(endpoint.seen.wait(3)) == {"once", "after", "after all"}
    assert endpoint.seen.items().count("once") == 1


def test_two_servers_of_a_process_each_run_a_fanout(peers, driver, topic):
    """The window is the listener's, not the process's."""
    transport = peers.transport(driver)
    endpoints = [TestEndpoint(), TestEndpoint()]
    for number, endpoint in enumerate(endpoints):
        peers.server(
            driver, endpoint, topic=topic, server=f"s{number}", transport=transport
        )
    client = peers.client(driver, topic=topic, transport=transport)

    client.prepare(fanout=True).cast({}, "echo", arg="all")

    for endpoint in endpoints:
        assert endpoint.seen.wait() == ["all"]


def test_requests_without_an_id_are_never_duplicates(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic)
    body = envelope({"method": "echo", "args": {"arg": 1}})

    for _ in range(3):
        spy.send("openstack", topic, body)

    assert endpoint.seen.wait(3) == [1, 1, 1]


def test_a_duplicate_in_another_form_is_known_too(fast, peers, topic, spy):
    """One that the fast path of the decoder does not read."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)
    body = request("echo", arg="once")
    odd = b" " + body.replace(b"echo", b"\\u0065cho")

    for each in (body, odd, odd, body):
        spy.send("openstack", topic, each)
    spy.send("openstack", topic, request("echo", arg="after"))

    assert endpoint.seen.wait(2) == ["once", "after"]


def test_a_duplicate_notification_is_acknowledged(fast, peers, topic, spy, broker):
    """Stock leaves it unacknowledged until the connection ends."""
    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic])
    queue = f"{topic}.info"

    def settled():
        return broker.queue(queue)["messages"] == 0

    spy.send("openstack", queue, note("a" * 32, 1))
    notes.seen.wait()
    wait_until(settled)
    spy.send("openstack", queue, note("a" * 32, 1))
    spy.send("openstack", queue, note("b" * 32, 2))
    notes.seen.wait(2)

    wait_until(settled)
    assert [n["payload"] for n in notes.seen.items()] == [1, 2]


def test_a_requeued_notification_is_no_duplicate(fast, peers, topic, spy, broker):
    answers = iter([oslo_messaging.NotificationResult.REQUEUE] * 3)
    notes = Notes(["info"], lambda note: next(answers, None))
    peers.listener(fast, notes, topics=[topic], requeue=True, threads=1)
    queue = f"{topic}.info"

    spy.send("openstack", queue, note("a" * 32, "again"))
    seen = notes.seen.wait(4)
    assert [n["payload"] for n in seen] == ["again"] * 4
    wait_until(lambda: broker.queue(queue)["messages"] == 0)

    # Now it was acknowledged, and counts.
    spy.send("openstack", queue, note("a" * 32, "again"))
    spy.send("openstack", queue, note("c" * 32, "after"))
    assert notes.seen.wait(5)[-1]["payload"] == "after"


def test_a_notification_whose_endpoint_still_runs_when_its_double_comes(
    fast, peers, topic, spy, broker
):
    """Neither of the two was acknowledged yet: both are delivered, as in stock."""
    notes = Notes(["info"])
    spy.queue(f"{topic}.info")
    for _ in range(2):
        spy.send("", f"{topic}.info", note("a" * 32, 1))

    peers.listener(fast, notes, topics=[topic], threads=1)

    notes.seen.wait()
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)
    assert 1 <= len(notes.seen) <= 2


class Held:
    """Handles notifications, but for the payload "held" only when it is let go."""

    def __init__(self, answers=()):
        self.go = threading.Event()
        self._answers = iter(answers)
        self.notes = Notes(["info"], self._handle)

    def _handle(self, note):
        if note["payload"] != "held":
            return None
        assert self.go.wait(30)
        return next(self._answers, None)

    def payloads(self, count):
        return [note["payload"] for note in self.notes.seen.wait(count)]


# Of the second Python decides what it means, not the core.
FORMS = pytest.mark.parametrize(
    "form", [{}, {"content_encoding": "us-ascii"}], ids=["plain", "odd"]
)


@FORMS
def test_a_copy_of_a_notification_that_is_being_handled_is_acknowledged(
    fast, peers, topic, spy, broker, form
):
    held = Held()
    peers.listener(fast, held.notes, topics=[topic], threads=2)
    queue = f"{topic}.info"
    body = note("a" * 32, "held")

    spy.send("openstack", queue, body, **form)
    held.payloads(1)
    spy.send("openstack", queue, body, **form)
    spy.send("openstack", queue, note("b" * 32, "after"))
    assert held.payloads(2) == ["held", "after"]
    wait_until(lambda: broker.queue(queue)["messages"] == 1)
    held.go.set()

    wait_until(lambda: broker.queue(queue)["messages"] == 0)
    assert held.payloads(2) == ["held", "after"]


ENDS = pytest.mark.parametrize(
    ("answers", "times"),
    [([], 1), ([oslo_messaging.NotificationResult.REQUEUE], 2)],
    ids=["handled", "requeued"],
)


@FORMS
@ENDS
def test_what_is_delivered_again_while_it_is_handled_shares_its_fate(
    fast, peers, topic, spy, proxy, broker, form, answers, times
):
    held = Held(answers)
    peers.listener(fast, held.notes, topics=[topic], threads=2, requeue=True, via=proxy)
    queue = f"{topic}.info"

    spy.send("openstack", queue, note("a" * 32, "held"), **form)
    held.payloads(1)
    proxy.cut()
    spy.send("openstack", queue, note("b" * 32, "after"))
    assert held.payloads(2) == ["held", "after"]  # the copy came before it
    wait_until(lambda: broker.queue(queue)["messages_unacknowledged"] == 1)
    held.go.set()

    wait_until(lambda: broker.queue(queue)["messages"] == 0)
    assert sorted(held.payloads(1 + times)) == ["after"] + ["held"] * times


# A quorum queue takes back what it delivered, and delivers it again by the same channel.
LOSE_SIGHT = """
    {ok, Queue} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"QUEUE">>)),
    Leader = amqqueue:get_pid(Queue),
    [{ok, _, _} = ra:process_command(Leader, Command)
     || Command <- [{down, self(), noconnection}, {nodeup, node()}]],
    "ok"
"""


@ENDS
def test_what_a_quorum_queue_delivers_again_is_not_lost(
    fast, peers, topic, spy, broker, answers, times
):
    held = Held(answers)
    quorum = {"rabbit_quorum_queue": True, "amqp_durable_queues": True}
    peers.listener(
        fast,
        held.notes,
        topics=[topic],
        threads=2,
        requeue=True,
        rabbit=quorum,
    )
    queue = f"{topic}.info"

    spy.send("openstack", queue, note("a" * 32, "held"))
    held.payloads(1)
    broker.evaluate(LOSE_SIGHT.replace("QUEUE", queue))
    spy.send("openstack", queue, note("b" * 32, "after"))
    assert held.payloads(2) == ["held", "after"]
    (stats,) = oslo_fastmsg.stats()["brokers"]
    assert stats["duplicates"] == 1
    wait_until(lambda: broker.queue(queue)["messages"] == 1)
    held.go.set()

    wait_until(lambda: broker.queue(queue)["messages"] == 0)
    assert sorted(held.payloads(1 + times)) == ["after"] + ["held"] * times


def test_ids_that_begin_alike_are_two(fast, peers, topic, spy, broker, caplog):
    held = Held()
    peers.listener(fast, held.notes, topics=[topic], threads=2)
    queue = f"{topic}.info"

    spy.send("openstack", queue, note("a" * 32, "held"))
    held.payloads(1)
    spy.send("openstack", queue, note("a" * 32 + "\0x", "other"))
    assert held.payloads(2) == ["held", "other"]
    wait_until(lambda: broker.queue(queue)["messages"] == 1)
    held.go.set()

    wait_until(lambda: broker.queue(queue)["messages"] == 0)
    assert "closed the channel" not in caplog.text


class Ends(BaseException):
    """No Exception: nobody settles what the endpoint was given."""


def is_collected():
    """Is no delivery left that somebody works on?"""
    gc.collect()
    return not any(isinstance(each, _core.Delivery) for each in gc.get_objects())


def test_what_nobody_settles_comes_again_after_a_lost_connection(
    fast, peers, topic, spy, proxy
):
    def handle(note):
        if len(notes.seen) == 1:
            raise Ends

    notes = Notes(["info"], handle)
    peers.listener(fast, notes, topics=[topic], threads=2, via=proxy)

    spy.send("openstack", f"{topic}.info", note("a" * 32, "again"))
    notes.seen.wait(1)
    wait_until(is_collected)
    proxy.cut()

    assert [each["payload"] for each in notes.seen.wait(2)] == ["again"] * 2


def test_copies_of_a_notification_in_one_batch_are_one(fast, peers, topic, spy, broker):
    batches = Batches()
    peers.listener(fast, batches, topics=[topic], batch=(2, None))
    queue = f"{topic}.info"

    for unique_id in "aab":
        spy.send("openstack", queue, note(unique_id * 32, unique_id))

    assert batches.seen.wait(1) == [["a", "b"]]
    wait_until(lambda: broker.queue(queue)["messages"] == 0)
