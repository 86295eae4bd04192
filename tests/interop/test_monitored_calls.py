"""Calls whose server sends signs of life (call_monitor_timeout)."""

import time

import oslo_messaging
import pytest
from fix_peer import TestEndpoint, standalone_peers
from fix_wire import payload_of, request


def test_a_long_method_survives_its_callers_monitor(peers, pairing, topic):
    peers.server(pairing.receiver, TestEndpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic, timeout=20, monitor=2)

    assert client.call({}, "last", seconds=2.6) == "done"


def test_a_monitored_call_may_be_short(peers, pairing, topic):
    peers.server(pairing.receiver, TestEndpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic, monitor=2)

    assert client.call({}, "echo", arg=1) == 1
    assert client.call({}, "echo", arg=None) is None


def test_a_failure_of_a_monitored_call_arrives(peers, pairing, topic):
    class Endpoint:
        def late(self, ctxt):
            time.sleep(2.5)  # long enough for one sign of life
            raise KeyError("late")

    peers.server(pairing.receiver, Endpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic, monitor=4)

    with pytest.raises(KeyError, match="late"):
        client.call({}, "late")


def test_signs_of_life_do_not_extend_the_timeout(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic, timeout=1.5, monitor=2)

    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "wait")
    endpoint.gate.set()


def serve_until_killed(pipe, driver, url, directory, topic):
    with standalone_peers(url, directory) as peers:
        endpoint = TestEndpoint()
        peers.server(driver, endpoint, topic=topic)
        pipe.send("ready")
        endpoint.seen.wait(timeout=60)
        pipe.send("running")
        pipe.recv()


def test_a_killed_server_ends_a_monitored_call_early(
    peers, pairing, topic, broker, tmp_path
):
    child = peers.child(
        serve_until_killed, pairing.receiver, broker.url(), str(tmp_path), topic
    )
    assert child.receive() == "ready"
    client = peers.client(pairing.sender, topic=topic, timeout=600, monitor=2)
    client.cast({}, "wait")
    assert child.receive() == "running"
    child.kill()

    # Its own timeout is longer than this test may last.
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "wait")


def test_a_server_sends_two_signs_of_life_per_monitor_timeout(
    peers, driver, topic, spy
):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic)
    replies = spy.tap()
    spy.send("openstack", topic, request("last", 2, replies.queue, seconds=2.5))

    received = [payload_of(replies.get().body) for _ in range(3)]

    assert [reply["ending"] for reply in received] == [False, False, True]
    assert [reply["result"] for reply in received] == [None, None, "done"]
    assert len({reply["_unique_id"] for reply in received}) == 3


@pytest.mark.parametrize("timeout", [None, 1, "soon"])
def test_no_sign_of_life_is_sent_unless_asked_for(peers, driver, topic, spy, timeout):
    peers.server(driver, TestEndpoint(), topic=topic)
    replies = spy.tap()
    spy.send("openstack", topic, request("last", timeout, replies.queue, seconds=1.2))

    assert payload_of(replies.get().body)["ending"] is True
