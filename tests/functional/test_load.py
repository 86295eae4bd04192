"""Many threads at once, for as long as it takes to be sure."""

import gc
import itertools
import random
import threading
from pathlib import Path

import oslo_messaging
import pytest
from fix_objects import descriptors, threads, wait_until
from fix_peer import Notes, TestEndpoint


@pytest.mark.parametrize("count", [16, 64])
def test_each_thread_gets_the_replies_to_its_own_calls(
    fast, peers, topic, background, count
):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=60)
    together = threading.Barrier(count)

    def call(thread):
        together.wait(30)
        for step in range(3200 // count):
            argument = {"thread": thread, "step": step, "pad": "x" * (step % 50)}
            assert client.call({}, "echo", arg=argument) == argument

    for pending in [background(call, thread) for thread in range(count)]:
        pending.result(60)


def test_replies_out_of_order_find_their_callers(fast, peers, topic, background):
    class Endpoint:
        def delayed(self, ctxt, arg, seconds):
            threading.Event().wait(seconds)
            return arg

    peers.server(fast, Endpoint(), topic=topic, threads=32)
    client = peers.client(fast, topic=topic)
    delays = [random.Random(5).uniform(0, 0.05) for _ in range(32)]

    def call(thread):
        for step in range(10):
            seconds = delays[(thread + step) % 32]
            assert client.call({}, "delayed", arg=[thread, step], seconds=seconds) == [
                thread,
                step,
            ]

    for pending in [background(call, thread) for thread in range(32)]:
        pending.result(60)


def test_calls_that_time_out_beside_calls_that_do_not(fast, peers, topic, background):
    """Late replies come while other calls start: none gets the wrong one."""

    class Endpoint:
        def delayed(self, ctxt, arg, seconds):
            threading.Event().wait(seconds)
            return arg

    peers.server(fast, Endpoint(), topic=topic, threads=32)
    client = peers.client(fast, topic=topic)
    outcomes = []

    def call(thread):
        for step in range(20):
            argument = [thread, step]
            try:
                result = client.prepare(timeout=0.05).call(
                    {}, "delayed", arg=argument, seconds=0.05 if step % 2 else 0.0
                )
            except oslo_messaging.MessagingTimeout:
                outcomes.append("timeout")
            else:
                assert result == argument
                outcomes.append("result")

    for pending in [background(call, thread) for thread in range(16)]:
        pending.result(60)

    assert len(outcomes) == 320
    assert outcomes.count("result") > 50


def test_everything_at_once_on_two_connections(fast, peers, topic, background):
    """Calls, casts, fanouts and notifications of all sizes, both ways."""
    transport = peers.transport(fast)
    endpoint, notes = TestEndpoint(), Notes(["info"])
    peers.server(fast, endpoint, topic=topic, transport=transport)
    peers.listener(fast, notes, topics=[topic], transport=transport)
    client = peers.client(fast, topic=topic, transport=transport, timeout=60)
    notifier = peers.notifier(fast, topic, transport=transport)
    rounds = 25

    def work(thread):
        source = random.Random(thread)
        for step in range(rounds):
            text = "x" * source.choice([0, 100, 2_000, 70_000, 300_000])
            assert client.call({}, "echo", arg=[thread, step, text])[2] == text
            client.cast({}, "echo", arg=["cast", thread, step])
            client.prepare(fanout=True).cast({}, "echo", arg=["fanout", thread, step])
            notifier.info({}, "event", [thread, step, text])

    for pending in [background(work, thread) for thread in range(16)]:
        pending.result(60)

    seen = endpoint.seen.wait(16 * rounds * 3)
    for kind in ("cast", "fanout"):
        arrived = {tuple(arg[1:]) for arg in seen if arg[0] == kind}
        assert arrived == set(itertools.product(range(16), range(rounds)))
    assert len(seen) == 16 * rounds * 3
    assert len(notes.seen.wait(16 * rounds)) == 16 * rounds


def test_a_listener_keeps_up_with_many_notifiers(
    fast, peers, topic, background, broker
):
    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic])
    notifier = peers.notifier(fast, topic)

    def notify(thread):
        for step in range(250):
            notifier.info({}, "event", [thread, step])

    for pending in [background(notify, thread) for thread in range(16)]:
        pending.result(60)

    seen = [tuple(note["payload"]) for note in notes.seen.wait(16 * 250, 60)]
    assert len(set(seen)) == len(seen) == 16 * 250
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


def test_a_backlog_is_taken_in_bounded_bites(fast, peers, topic, broker):
    """With no prefetch set: what is not handed over stays with the broker."""
    gate = threading.Event()
    notes = Notes(["info"], lambda note: gate.wait(30) and None)
    notifier = peers.notifier(fast, topic)
    for number in range(1000):
        notifier.info({}, "event", number)

    peers.listener(fast, notes, topics=[topic], threads=2)
    notes.seen.wait(2)

    row = broker.queue(f"{topic}.info")
    assert row["messages_ready"] >= 700
    gate.set()
    notes.seen.wait(1000, 60)


def test_servers_started_and_stopped_50_times_leave_nothing(fast, peers, topic, broker):
    client = peers.client(fast, topic=topic)
    before = 0, 0, 0
    for number in range(50):
        serve_one_call(peers, client, topic)
        if number == 4:
            gc.collect()
            before = len(threads()), len(descriptors()), len(broker.channels())

    gc.collect()
    wait_until(lambda: len(threads()) <= before[0], what="threads")
    wait_until(lambda: len(descriptors()) <= before[1], what="descriptors")
    assert len(broker.channels()) <= before[2]
    assert not [row for row in broker.queues() if "_fanout_" in row["name"]]


def serve_one_call(peers, client, topic):
    server = peers.server("fast", TestEndpoint("it"), topic=topic, threads=1)
    assert client.call({}, "who") == "it"
    peers.stop(server)
    peers.clean(server.transport)


def test_transports_made_and_cleaned_up_by_many_threads_leave_nothing(
    fast, peers, topic, background, proxy
):
    """The last one out closes the connections, the next one in opens new ones."""
    peers.server(fast, TestEndpoint(), topic=topic, threads=1)
    peers.client(fast, topic=topic).call({}, "echo")
    gc.collect()
    before = len(threads()), len(descriptors())

    def come_and_go(thread):
        for step in range(10):
            client = peers.client(fast, topic=topic, via=proxy)
            assert client.call({}, "echo", arg=[thread, step]) == [thread, step]
            peers.clean(client.transport)

    for pending in [background(come_and_go, thread) for thread in range(8)]:
        pending.result(60)

    wait_until(lambda: not proxy.open_links(), what="closed connections")
    gc.collect()
    # The threads of this test's own pool stay.
    wait_until(lambda: len(threads()) <= before[0] + 8, what="threads")
    wait_until(lambda: len(descriptors()) <= before[1], what="descriptors")


def test_a_slow_endpoint_does_not_hold_up_the_others(fast, peers, topic, background):
    slow, quick = TestEndpoint(), TestEndpoint()
    transport = peers.transport(fast)
    peers.server(fast, slow, topic=f"{topic}-slow", transport=transport, threads=1)
    peers.server(fast, quick, topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport)
    for _ in range(600):
        client.prepare(topic=f"{topic}-slow").cast({}, "wait")
    slow.seen.wait()

    for number in range(50):
        assert client.call({}, "echo", arg=number) == number
    slow.gate.set()


def test_memory_stays_flat_over_many_calls(fast, peers, topic):
    class Endpoint:
        def give_back(self, ctxt, arg):
            return arg

    def calls(count):
        for _ in range(count):
            client.call({"user": "u"}, "give_back", arg={"text": "x" * 2000})

    def resident_kb():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

    peers.server(fast, Endpoint(), topic=topic)
    client = peers.client(fast, topic=topic)
    calls(1000)
    gc.collect()
    before = resident_kb()

    calls(4000)

    gc.collect()
    # 4,000 requests and replies, kept, would be more than 16 MB.
    assert resident_kb() - before < 4000
