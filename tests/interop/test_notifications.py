"""Notifications between peers of both drivers."""

import threading

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Batches, Notes
from fix_wire import envelope

PRIORITIES = ["audit", "debug", "info", "warn", "error", "critical", "sample"]


@pytest.mark.parametrize("version", [1, 2])
def test_every_priority_reaches_its_endpoint(peers, pairing, topic, version):
    notes = Notes()
    peers.listener(pairing.receiver, notes, topics=[topic])
    notifier = peers.notifier(pairing.sender, topic, version=version)

    for priority in PRIORITIES:
        getattr(notifier, priority)({}, f"event.{priority}", {"n": priority})

    seen = notes.seen.wait(len(PRIORITIES))
    assert sorted(note["priority"] for note in seen) == sorted(PRIORITIES)
    for note in seen:
        assert note["event_type"] == f"event.{note['priority']}"
        assert note["payload"] == {"n": note["priority"]}
        assert note["publisher_id"] == "publisher"
        assert set(note["metadata"]) == {"message_id", "timestamp"}


def test_versions_mix_on_one_queue(peers, pairing, topic):
    notes = Notes()
    peers.listener(pairing.receiver, notes, topics=[topic])

    for version in (1, 2, 1):
        peers.notifier(pairing.sender, topic, version=version).info({}, "e", version)

    assert sorted(note["payload"] for note in notes.seen.wait(3)) == [1, 1, 2]


def test_a_listener_of_several_topics_hears_all(peers, pairing, topic):
    topics = [f"{topic}-{name}" for name in ("one", "two", "three")]
    notes = Notes(["warn", "error"])
    peers.listener(pairing.receiver, notes, topics=topics)

    for name in topics:
        notifier = peers.notifier(pairing.sender, name)
        notifier.warn({}, name, 1)
        notifier.error({}, name, 2)
        notifier.info({}, name, 3)

    seen = {(note["event_type"], note["payload"]) for note in notes.seen.wait(6)}
    assert seen == {(name, value) for name in topics for value in (1, 2)}


def test_a_notifier_of_several_topics_sends_to_all(peers, pairing, topic):
    """The message dict is the same one each time, and already packed."""
    topics = [f"{topic}-{name}" for name in ("one", "two")]
    all_notes = [Notes(["info"]) for _ in topics]
    for name, notes in zip(topics, all_notes, strict=True):
        peers.listener(pairing.receiver, notes, topics=[name])

    peers.notifier(pairing.sender, *topics).info({"user": "u"}, "event", {"a": 1})

    for notes in all_notes:
        (note,) = notes.seen.wait()
        assert note["payload"] == {"a": 1}


def test_endpoints_are_chosen_by_their_filter(peers, pairing, topic):
    class Filtered(Notes):
        filter_rule = oslo_messaging.NotificationFilter(
            publisher_id="^compute.*", event_type=r"^instance\..*\.start$"
        )

    chosen, other = Filtered(["info"]), Notes(["info"])
    peers.listener(pairing.receiver, chosen, other, topics=[topic])
    for publisher, event in (
        ("network.a", "instance.create.start"),
        ("compute.a", "instance.create.end"),
        ("compute.a", "instance.create.start"),
    ):
        peers.notifier(pairing.sender, topic, publisher_id=publisher).info(
            {}, event, {}
        )

    other.seen.wait(3)
    (note,) = chosen.seen.wait()
    assert note["publisher_id"] == "compute.a"


def test_notifications_outlive_the_absence_of_a_listener(peers, pairing, topic):
    peers.notifier(pairing.sender, topic).info({}, "event", "early")
    notes = Notes(["info"])

    peers.listener(pairing.receiver, notes, topics=[topic])

    assert notes.seen.wait()[0]["payload"] == "early"


def test_a_pool_shares_and_another_gets_its_own_copy(peers, pairing, topic):
    shared = Notes(["info"])
    for _ in range(2):
        peers.listener(pairing.receiver, shared, topics=[topic], pool=f"{topic}-pool")
    other, plain = Notes(["info"]), Notes(["info"])
    peers.listener(pairing.receiver, other, topics=[topic], pool=f"{topic}-other")
    peers.listener(pairing.receiver, plain, topics=[topic])
    notifier = peers.notifier(pairing.sender, topic)

    for number in range(6):
        notifier.info({}, "event", number)

    for notes in (plain, other, shared):
        seen = notes.seen.wait(6)
        assert sorted(note["payload"] for note in seen) == list(range(6))


def test_a_pool_hears_several_topics_and_priorities(peers, pairing, topic, broker):
    topics = [f"{topic}-one", f"{topic}-two"]
    notes = Notes(["info", "error"])
    peers.listener(pairing.receiver, notes, topics=topics, pool=f"{topic}-pool")
    for name in topics:
        notifier = peers.notifier(pairing.sender, name)
        notifier.info({}, name, "i")
        notifier.error({}, name, "e")

    seen = {(note["event_type"], note["payload"]) for note in notes.seen.wait(4)}

    assert seen == {(name, value) for name in topics for value in "ie"}


def test_a_full_batch_is_handed_over_at_once(peers, pairing, topic):
    batches = Batches()
    peers.listener(pairing.receiver, batches, topics=[topic], batch=(5, 60))
    notifier = peers.notifier(pairing.sender, topic)

    for number in range(10):
        notifier.info({}, "event", number)

    assert batches.seen.wait(2) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_batch_that_is_not_full_ends_with_its_time(peers, pairing, topic):
    batches = Batches()
    peers.listener(pairing.receiver, batches, topics=[topic], batch=(100, 0.5))
    notifier = peers.notifier(pairing.sender, topic)

    for number in range(3):
        notifier.info({}, "event", number)

    seen = batches.seen.wait()
    assert [number for batch in seen for number in batch] == [0, 1, 2]


def test_the_prefetch_caps_a_batch(peers, pairing, topic):
    batches = Batches()
    peers.listener(
        pairing.receiver,
        batches,
        topics=[topic],
        batch=(100, 60),
        rabbit={"rabbit_qos_prefetch_count": 2},
    )
    notifier = peers.notifier(pairing.sender, topic)

    for number in range(4):
        notifier.info({}, "event", number)

    assert batches.seen.wait(2) == [[0, 1], [2, 3]]


def test_a_requeued_notification_comes_again(peers, pairing, topic, broker):
    answers = iter([oslo_messaging.NotificationResult.REQUEUE] * 2)
    notes = Notes(["info"], lambda note: next(answers, None))
    peers.listener(pairing.receiver, notes, topics=[topic], requeue=True)

    peers.notifier(pairing.sender, topic).info({}, "event", "again")

    seen = notes.seen.wait(3)
    assert [note["payload"] for note in seen] == ["again"] * 3
    assert len({note["metadata"]["message_id"] for note in seen}) == 1
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


def test_a_failing_endpoint_requeues_where_that_is_allowed(peers, pairing, topic):
    failures = iter([True])

    def answer(note):
        if next(failures, False):
            raise ValueError("try again")

    notes = Notes(["info"], answer)
    peers.listener(pairing.receiver, notes, topics=[topic], requeue=True)

    peers.notifier(pairing.sender, topic).info({}, "event", 1)

    assert len(notes.seen.wait(2)) == 2


def test_without_requeue_a_notification_is_done_with(peers, pairing, topic, broker):
    results = iter([oslo_messaging.NotificationResult.REQUEUE])
    notes = Notes(["info"], lambda note: next(results, None))
    peers.listener(pairing.receiver, notes, topics=[topic])
    notifier = peers.notifier(pairing.sender, topic)

    notifier.info({}, "event", 1)
    notifier.info({}, "event", 2)

    assert sorted(note["payload"] for note in notes.seen.wait(2)) == [1, 2]
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


def test_a_requeued_part_of_a_batch_comes_again(peers, pairing, topic):
    class Endpoint(Batches):
        def info(self, batch):
            super().info(batch)
            if len(self.seen) == 1:
                return oslo_messaging.NotificationResult.REQUEUE
            return oslo_messaging.NotificationResult.HANDLED

    endpoint = Endpoint()
    peers.listener(
        pairing.receiver, endpoint, topics=[topic], batch=(2, 0.5), requeue=True
    )
    notifier = peers.notifier(pairing.sender, topic)

    notifier.info({}, "event", 1)
    notifier.info({}, "event", 2)

    seen = endpoint.seen.wait(2)
    assert sorted(number for batch in seen[1:] for number in batch) == [1, 2]


def test_a_notification_is_acknowledged_after_its_endpoint(
    peers, pairing, topic, broker
):
    gate = threading.Event()
    notes = Notes(["info"], lambda note: gate.wait(20) and None)
    listener = peers.listener(pairing.receiver, notes, topics=[topic])
    peers.notifier(pairing.sender, topic).info({}, "event", 1)
    notes.seen.wait()
    assert broker.queue(f"{topic}.info")["messages_unacknowledged"] == 1

    gate.set()

    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)
    peers.stop(listener)


def test_an_unknown_priority_is_acknowledged(peers, driver, topic, spy, broker):
    notes = Notes(["info"])
    peers.listener(driver, notes, topics=[topic])

    for priority in ("LOUD", "INFO"):
        body = envelope_of_note(priority)
        spy.send("openstack", f"{topic}.info", body)

    assert notes.seen.wait()[0]["payload"] == "INFO"
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


def envelope_of_note(priority):
    return envelope(
        {
            "message_id": "m",
            "publisher_id": "p",
            "event_type": "e",
            "priority": priority,
            "payload": priority,
            "timestamp": "2026-11-21 00:00:00",
            "_unique_id": priority,
        }
    )
