"""Option envelope: which envelope goes where, between which peers.

A mode is ``stock``, or the option's value of a fast peer. A proxy keeps what each
side puts on the wire.
"""

import logging

import oslo_messaging
import pytest
from fix_peer import Notes, TestEndpoint
from fix_proxy import Proxy
from fix_wire import MSGPACK, Impostor, envelope, packed, payload_of
from test_byte_identity import ARGUMENT, CONTEXT

TYPE = MSGPACK["content_type"].encode()
HEADER = b"\x0fx-fastmsg-readsS\x00\x00\x00\x07msgpack"

MODES = ["stock", "json", "auto", "msgpack"]
#: A stock peer reads nothing that is sent with msgpack.
ALLOWED = [
    (sender, receiver)
    for sender in MODES
    for receiver in MODES
    if (sender, receiver) not in {("stock", "stock"), ("msgpack", "stock")}
]
each_pair = pytest.mark.parametrize(
    ("sender", "receiver"), ALLOWED, ids=["-".join(pair) for pair in ALLOWED]
)


def peer(mode):
    """The driver's name and the URL's options."""
    if mode == "stock":
        return "stock", {}
    return "fast", {"envelope": mode}


def options(mode, **more):
    driver, query = peer(mode)
    return (driver, {"query": {**query, **more}}) if query else (driver, {})


@pytest.fixture
def wire(broker):
    """A proxy for the sender and one for the receiver."""
    with Proxy(broker) as sender, Proxy(broker) as receiver:
        yield sender, receiver


def is_packed(publication):
    is_packed = TYPE in publication.properties
    assert is_packed == (publication.body[0] >= 0x80)
    return is_packed


@pytest.mark.options("envelope")
@each_pair
def test_a_call_and_its_reply_are_what_each_side_may_send(
    peers, topic, wire, sender, receiver, fast
):
    driver, more = options(receiver)
    peers.server(driver, TestEndpoint(), topic=topic, via=wire[1], **more)
    driver, more = options(sender)
    client = peers.client(driver, topic=topic, via=wire[0], **more)

    assert client.call(CONTEXT, "echo", arg=5) == 5
    assert client.call(CONTEXT, "echo", arg=None) is None
    with pytest.raises(ValueError, match="bad 7"):
        client.call(CONTEXT, "fail", arg=7)

    requests, replies = (proxy.publications() for proxy in wire)
    assert len(requests) == len(replies) == 3
    for request in requests:
        assert is_packed(request) == (sender == "msgpack")
        assert (HEADER in request.properties) == (sender == "auto")
    for reply in replies:
        both = sender in ("auto", "msgpack") and receiver != "stock"
        assert is_packed(reply) == both
        assert HEADER not in reply.properties


@pytest.mark.options("envelope")
@each_pair
def test_casts_fanouts_and_notifications_are_what_the_sender_sends(
    peers, topic, wire, sender, receiver, fast
):
    endpoint, notes = TestEndpoint(), Notes()
    driver, more = options(receiver)
    peers.server(driver, endpoint, topic=topic, **more)
    peers.listener(driver, notes, topics=[topic], **more)
    driver, more = options(sender)
    client = peers.client(driver, topic=topic, via=wire[0], **more)

    client.cast(CONTEXT, "echo", arg="cast")
    client.prepare(fanout=True).cast(CONTEXT, "echo", arg="fanout")
    for version in (1, 2):
        notifier = peers.notifier(
            driver,
            topic,
            version=version,
            via=wire[0],
            publisher_id=str(version),
            **more,
        )
        notifier.info(CONTEXT, "event", {"é": 2**70})

    assert sorted(endpoint.seen.wait(2)) == ["cast", "fanout"]
    assert [note["payload"] for note in notes.seen.wait(2)] == [{"é": 2**70}] * 2
    found = {}
    for publication in wire[0].publications():
        what = publication.exchange, publication.routing_key
        found.setdefault(what, []).append(
            (is_packed(publication), HEADER in publication.properties)
        )
    is_msgpack, announced = sender == "msgpack", sender == "auto"
    assert found[f"{topic}_fanout", ""] == [(is_msgpack, announced)]
    assert found["openstack", topic] == [(is_msgpack, announced)]
    assert sorted(found["openstack", f"{topic}.info"]) == sorted(
        [(False, False), (is_msgpack, False)]
    )


@pytest.mark.parametrize("mode", ["auto", "msgpack"])
def test_values_arrive_as_they_do_through_json(peers, topic, mode, fast):
    seen = {}
    for each in ("json", mode):
        endpoint = TestEndpoint()
        peers.server(fast, endpoint, topic=f"{topic}-{each}", query=peer(each)[1])
        client = peers.client(fast, topic=f"{topic}-{each}", query=peer(each)[1])
        result = client.call(CONTEXT, "echo", arg=ARGUMENT)
        context = dict(endpoint.contexts.items()[0])
        seen[each] = repr((result, endpoint.seen.items(), context))

    assert seen[mode] == seen["json"]


@pytest.mark.parametrize("mode", ["json", "auto", "msgpack"])
def test_what_cannot_be_sent_is_the_same_error(peers, topic, mode, fast):
    client = peers.client(fast, topic=topic, query=peer(mode)[1])
    peers.server(fast, TestEndpoint(), topic=topic, query=peer(mode)[1])

    for bad, error, text in (
        (object(), ValueError, "object"),
        ({b"x": 1}, TypeError, "keys must be str"),
    ):
        with pytest.raises(error, match=text):
            client.call({}, "echo", arg=bad)
        with pytest.raises(error, match=text):
            client.cast({}, "echo", arg=bad)
    assert client.call({}, "echo", arg="after") == "after"


@pytest.mark.parametrize("mode", ["auto", "msgpack"])
def test_a_result_that_cannot_be_sent_is_a_failure(peers, topic, mode, fast):
    class Endpoint:
        def make(self, ctxt):
            return object()

    peers.server(fast, Endpoint(), topic=topic, query=peer(mode)[1])
    client = peers.client(fast, topic=topic, query=peer(mode)[1])

    with pytest.raises(ValueError, match="object"):
        client.call({}, "make")


@pytest.mark.parametrize("receiver", ["stock", "json"])
def test_signs_of_life_are_what_the_caller_reads(peers, topic, wire, receiver, fast):
    driver, more = options(receiver)
    peers.server(driver, TestEndpoint(), topic=topic, via=wire[1], **more)
    client = peers.client(fast, topic=topic, timeout=30, query=peer("auto")[1])

    monitored = client.prepare(call_monitor_timeout=2)
    assert monitored.call({}, "last", seconds=2.5) == "done"

    replies = wire[1].publications()
    assert len(replies) >= 2
    assert {is_packed(reply) for reply in replies} == {receiver != "stock"}


@pytest.mark.parametrize("sender", ["auto", "msgpack"])
def test_compression_applies_to_it(peers, topic, wire, sender, fast):
    large = {"text": "compress me " * 500, "é": [1.5, None, 2**70]}
    rabbit = {"kombu_compression": "gzip"}
    peers.server(fast, TestEndpoint(), topic=topic, via=wire[1], rabbit=rabbit)
    client = peers.client(
        fast, topic=topic, via=wire[0], rabbit=rabbit, query=peer(sender)[1]
    )

    assert client.call({}, "echo", arg=large) == large
    assert client.call({}, "echo", arg=1) == 1

    requests, replies = (proxy.publications() for proxy in wire)
    for compressed, plain in (requests, replies):
        assert b"compression" in compressed.properties
        assert b"compression" not in plain.properties
        assert (TYPE in compressed.properties) == (TYPE in plain.properties)
        assert len(compressed.body) < 1000
    assert (TYPE in requests[0].properties) == (sender == "msgpack")
    assert TYPE in replies[0].properties


def test_requests_that_wait_for_a_worker_are_answered_in_what_they_read(
    peers, topic, wire, fast
):
    query = {"rpc_intake": 4}
    peers.server(fast, TestEndpoint(), topic=topic, via=wire[1], query=query)
    for mode in ("json", "auto", "msgpack"):
        client = peers.client(fast, topic=topic, query=peer(mode)[1])
        assert client.call({}, "echo", arg=mode) == mode

    replies = wire[1].publications()
    assert [is_packed(reply) for reply in replies] == [False, True, True]


# ---- Operators who are about to shoot themselves ----


def told(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if "speaks JSON alone" in record.getMessage()
    ]


def wait_until_told(caplog, count, client):
    """Events come into the log by a thread; what is after them marks their end."""
    for _ in range(100):
        if len(told(caplog)) >= count:
            break
        client.call({}, "last", seconds=0.05)
    return told(caplog)


@pytest.mark.parametrize("sender", ["stock", "json"])
def test_a_server_with_msgpack_tells_once_of_a_caller_who_reads_json_alone(
    peers, topic, caplog, sender, fast, broker
):
    caplog.set_level(logging.INFO)
    peers.server(fast, TestEndpoint(), topic=topic, query=peer("msgpack")[1])
    driver, more = options(sender)
    client = peers.client(driver, topic=topic, **more)
    for _ in range(3):
        assert client.call({}, "echo", arg=1) == 1
    other = peers.client(driver, topic=topic, **more)
    assert other.call({}, "echo", arg=1) == 1

    (line,) = wait_until_told(caplog, 1, client)

    queues = [row["name"] for row in broker.queues() if row["name"][:6] == "reply_"]
    assert len(queues) == 2
    assert any(f"'{queue}'" in line for queue in queues)
    assert "Set envelope to auto" in line
    assert caplog.records[-1].levelno <= logging.WARNING


def test_a_server_with_msgpack_tells_of_a_cast_by_the_queue_it_came_to(
    peers, topic, caplog, fast
):
    caplog.set_level(logging.INFO)
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, query=peer("msgpack")[1])
    peers.client("stock", topic=topic).cast({}, "echo", arg=1)
    endpoint.seen.wait()

    client = peers.client(fast, topic=topic, query=peer("msgpack")[1])
    (line,) = wait_until_told(caplog, 1, client)

    assert f"'{topic}'" in line


def test_a_caller_with_msgpack_tells_of_a_server_who_answers_in_json(
    peers, topic, caplog, fast, broker
):
    def answer(spy, payload):
        reply = {"result": 1, "failure": None, "ending": True}
        reply["_msg_id"] = payload["_msg_id"]
        spy.send("", payload["_reply_q"], envelope(reply))

    caplog.set_level(logging.INFO)
    client = peers.client(fast, topic=topic, query=peer("msgpack")[1])
    with Impostor(broker, topic, answer):
        for _ in range(3):
            assert client.call({}, "echo", arg=1) == 1
        (line,) = wait_until_told(caplog, 1, client)

    assert f"'{topic}'" in line


def test_nobody_tells_where_json_is_welcome(peers, topic, caplog, fast):
    caplog.set_level(logging.INFO)
    for mode in ("json", "auto"):
        peers.server(fast, TestEndpoint(), topic=f"{topic}{mode}", query=peer(mode)[1])
        for sender in MODES:
            driver, more = options(sender)
            client = peers.client(driver, topic=f"{topic}{mode}", **more)
            assert client.call({}, "echo", arg=1) == 1
    peers.server(fast, TestEndpoint(), topic=topic, query=peer("msgpack")[1])
    for sender in ("auto", "msgpack"):
        client = peers.client(fast, topic=topic, query=peer(sender)[1])
        assert client.call({}, "echo", arg=1) == 1
        client.cast({}, "echo", arg=1)

    client.call({}, "last", seconds=0.2)
    assert told(caplog) == []


@pytest.mark.options("envelope")
def test_a_stock_server_rejects_it_and_lives_on(peers, topic, fast):
    """What the option's help and the operator's guide warn of."""
    endpoint = TestEndpoint()
    peers.server("stock", endpoint, topic=topic)
    packing = peers.client(fast, topic=topic, timeout=2, query=peer("msgpack")[1])

    with pytest.raises(oslo_messaging.MessagingTimeout):
        packing.call({}, "echo", arg="lost")
    packing.cast({}, "echo", arg="lost, too")
    client = peers.client(fast, topic=topic, query=peer("auto")[1])

    assert client.call({}, "echo", arg="read") == "read"
    assert endpoint.seen.items() == ["read"]


def test_another_writer_of_it_is_read(peers, topic, spy, fast):
    peers.server(fast, TestEndpoint(), topic=topic)
    replies = spy.tap()
    request = {
        "_reply_q": replies.queue,
        "_msg_id": "short",
        "args": {"arg": [1, {"é": None}]},
        "method": "echo",
    }
    spy.send("openstack", topic, packed(request), **MSGPACK)

    reply = replies.get()
    assert payload_of(reply.body)["result"] == [1, {"é": None}]
    assert reply.properties["content_type"] == MSGPACK["content_type"]
