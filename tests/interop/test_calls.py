"""RPC between peers of both drivers: call, cast, fanout."""

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint


def test_a_call_returns_the_endpoints_result(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic)

    assert client.call({}, "echo", arg={"a": [1, "é", None]}) == {"a": [1, "é", None]}
    assert client.call({}, "echo", arg=None) is None
    assert endpoint.seen.items() == [{"a": [1, "é", None]}, None]


def test_a_call_to_a_server_reaches_that_server_alone(peers, pairing, topic):
    for name in ("a.host", "b.host"):
        peers.server(pairing.receiver, TestEndpoint(name), topic=topic, server=name)
    client = peers.client(pairing.sender, topic=topic)

    for name in ("a.host", "b.host", "b.host", "a.host"):
        assert client.prepare(server=name).call({}, "who") == name


def test_namespace_and_version_select_the_endpoint(peers, pairing, topic):
    class Control(TestEndpoint):
        target = oslo_messaging.Target(namespace="control", version="2.3")

    peers.server(
        pairing.receiver, TestEndpoint("plain"), Control("control"), topic=topic
    )
    client = peers.client(pairing.sender, topic=topic)
    control = client.prepare(namespace="control", version="2.1")

    assert client.call({}, "who") == "plain"
    assert control.call({}, "who") == "control"
    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.prepare(namespace="control", version="2.4").call({}, "who")
    assert caught.value.exc_type == "UnsupportedVersion"


def test_a_cast_runs_once_and_returns_nothing(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic)

    assert client.cast({}, "echo", arg="cast") is None
    assert client.call({}, "echo", arg="call") == "call"
    assert sorted(endpoint.seen.wait(2)) == ["call", "cast"]


def test_a_cast_without_a_server_succeeds(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    assert client.cast({}, "echo", arg=1) is None


def test_a_cast_to_a_server_reaches_that_server_alone(peers, pairing, topic):
    endpoints = {name: TestEndpoint(name) for name in ("a", "b")}
    for name, endpoint in endpoints.items():
        peers.server(pairing.receiver, endpoint, topic=topic, server=name)
    client = peers.client(pairing.sender, topic=topic)

    client.prepare(server="b").cast({}, "echo", arg=1)

    assert endpoints["b"].seen.wait() == [1]
    assert endpoints["a"].seen.items() == []


def test_a_fanout_reaches_three_servers_once_each(peers, pairing, topic):
    endpoints = [TestEndpoint() for _ in range(3)]
    for number, endpoint in enumerate(endpoints):
        peers.server(pairing.receiver, endpoint, topic=topic, server=f"server{number}")
    client = peers.client(pairing.sender, topic=topic)

    client.prepare(fanout=True).cast({}, "echo", arg="all")
    client.prepare(fanout=True).cast({}, "echo", arg="again")

    for endpoint in endpoints:
        assert sorted(endpoint.seen.wait(2)) == ["again", "all"]


def test_a_fanout_is_heard_across_control_exchanges(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic, exchange="one")
    client = peers.client(pairing.sender, topic=topic, target={"exchange": "two"})

    client.prepare(fanout=True).cast({}, "echo", arg="all")

    assert endpoint.seen.wait() == ["all"]


def test_an_exchange_of_the_target_keeps_services_apart(peers, pairing, topic):
    for exchange in ("one", "two"):
        peers.server(
            pairing.receiver, TestEndpoint(exchange), topic=f"{topic}-{exchange}",
            exchange=exchange,
        )  # fmt: skip
    client = peers.client(pairing.sender, topic=f"{topic}-two", timeout=1)

    assert client.prepare(exchange="two").call({}, "who") == "two"
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(exchange="one").call({}, "who")


def test_the_default_control_exchange_is_the_options(peers, pairing, topic):
    peers.server(
        pairing.receiver,
        TestEndpoint("neutron"),
        topic=topic,
        control_exchange="neutron",
    )
    client = peers.client(pairing.sender, topic=topic, control_exchange="neutron")

    assert client.call({}, "who") == "neutron"


def test_a_call_without_a_server_times_out(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic, timeout=0.5)

    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo", arg=1)


def test_a_late_reply_is_dropped_and_the_next_call_gets_its_own(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=0.3).call({}, "wait")

    endpoint.gate.set()

    for number in range(5):
        assert client.call({}, "echo", arg=number) == number


def test_a_request_that_expired_unread_is_never_run(peers, pairing, topic, broker):
    endpoint = TestEndpoint()
    # The queue stays when its server goes.
    peers.stop(peers.server(pairing.receiver, endpoint, topic=topic))
    client = peers.client(pairing.sender, topic=topic)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=0.3).call({}, "echo", arg="expired")
    # It was sent some time after the call began, and lives as long from then.
    wait_until(lambda: broker.queue(topic)["messages"] == 0)
    client.cast({}, "echo", arg="cast")

    peers.server(pairing.receiver, endpoint, topic=topic)

    assert client.call({}, "echo", arg="call") == "call"
    assert sorted(endpoint.seen.wait(2)) == ["call", "cast"]


@pytest.mark.parametrize("kind", ["call", "cast"])
def test_at_least_once_without_a_queue_is_undeliverable(peers, pairing, topic, kind):
    client = peers.client(
        pairing.sender,
        topic=topic,
        transport_options=oslo_messaging.TransportOptions(at_least_once=True),
    )

    with pytest.raises(oslo_messaging.MessageUndeliverable) as caught:
        getattr(client, kind)({}, "echo", arg=1)
    assert caught.value.routing_key == topic
    assert caught.value.exchange == "openstack"


def test_at_least_once_with_a_server_is_an_ordinary_call(peers, pairing, topic):
    peers.server(pairing.receiver, TestEndpoint(), topic=topic)
    client = peers.client(
        pairing.sender,
        topic=topic,
        transport_options=oslo_messaging.TransportOptions(at_least_once=True),
    )

    assert client.call({}, "echo", arg=1) == 1
    client.cast({}, "echo", arg=2)


def test_a_large_message_travels_both_ways(peers, pairing, topic):
    peers.server(pairing.receiver, TestEndpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    large = {"text": 'quote " and \\ and é\n' * 20000, "numbers": list(range(50000))}

    assert client.call({}, "echo", arg=large) == large


def test_two_servers_of_a_topic_share_its_requests(peers, pairing, topic):
    endpoints = [TestEndpoint(name) for name in ("a", "b")]
    for endpoint in endpoints:
        peers.server(
            pairing.receiver, endpoint, topic=topic, server=endpoint.name, threads=1
        )
    client = peers.client(pairing.sender, topic=topic)

    for number in range(20):
        client.cast({}, "echo", arg=number)
    while sum(len(endpoint.seen) for endpoint in endpoints) < 20:
        endpoints[0].seen.wait(1)

    assert sorted(endpoints[0].seen.items() + endpoints[1].seen.items()) == list(
        range(20)
    )
    assert endpoints[0].seen.items()
    assert endpoints[1].seen.items()


def test_one_client_serves_several_topics(peers, pairing, topic):
    for name in ("one", "two"):
        peers.server(pairing.receiver, TestEndpoint(name), topic=f"{topic}-{name}")
    client = peers.client(pairing.sender, topic=topic)

    for name in ("one", "two", "one"):
        assert client.prepare(topic=f"{topic}-{name}").call({}, "who") == name
