"""Messages of one thread to one queue arrive in sending order."""

import pytest
from fix_peer import Notes, TestEndpoint
from fix_wire import request


def test_casts_of_one_thread_arrive_in_order(peers, driver, topic):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    client = peers.client(driver, topic=topic)

    for number in range(500):
        client.cast({}, "echo", arg=number)

    assert endpoint.seen.wait(500) == list(range(500))


def test_casts_of_many_threads_arrive_in_each_ones_order(
    fast, peers, topic, background
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)
    client = peers.client(fast, topic=topic)

    def cast(thread):
        for number in range(200):
            client.cast({}, "echo", arg=[thread, number])

    for pending in [background(cast, thread) for thread in range(16)]:
        pending.result()

    seen = endpoint.seen.wait(16 * 200)
    for thread in range(16):
        assert [n for t, n in seen if t == thread] == list(range(200))


def test_small_and_large_casts_keep_their_order(peers, driver, topic):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    client = peers.client(driver, topic=topic)
    sizes = [1, 200_000, 10, 500_000, 0, 131_064, 131_000, 3] * 3

    for size in sizes:
        client.cast({}, "echo", arg="x" * size)

    assert [len(arg) for arg in endpoint.seen.wait(len(sizes))] == sizes


def test_fanouts_of_one_thread_arrive_in_order(peers, driver, topic):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    client = peers.client(driver, topic=topic).prepare(fanout=True)

    for number in range(200):
        client.cast({}, "echo", arg=number)

    assert endpoint.seen.wait(200) == list(range(200))


@pytest.mark.parametrize("version", [1, 2])
def test_notifications_of_one_thread_arrive_in_order(peers, driver, topic, version):
    notes = Notes(["info"])
    peers.listener(driver, notes, topics=[topic], threads=1)
    notifier = peers.notifier(driver, topic, version=version)

    for number in range(200):
        notifier.info({}, "event", number)

    assert [note["payload"] for note in notes.seen.wait(200)] == list(range(200))


def test_a_cast_after_a_call_comes_after_it(peers, driver, topic):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    client = peers.client(driver, topic=topic)

    for number in range(50):
        client.call({}, "echo", arg=2 * number)
        client.cast({}, "echo", arg=2 * number + 1)

    assert endpoint.seen.wait(100) == list(range(100))


def test_an_odd_message_keeps_its_place_among_the_others(peers, driver, topic, spy):
    """One that takes the decoder's slow path."""
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)
    bodies = [request("echo", arg=number) for number in range(100)]
    bodies[1::3] = [
        b" " + body.replace(b"echo", b"\\u0065cho") for body in bodies[1::3]
    ]

    spy.send_many("openstack", topic, bodies)

    assert endpoint.seen.wait(100) == list(range(100))
