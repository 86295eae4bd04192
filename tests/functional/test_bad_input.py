"""What a live server makes of bodies and properties that no peer should send.

The table is the stock driver's behaviour. What is rejected goes to a dead
letter exchange that a policy of the broker gives to every queue.
"""

import json
import logging
import random
import uuid
import zlib

import pytest
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint
from fix_wire import MSGPACK, READS_MSGPACK, Spy, envelope, packed, payload_of, request

from oslo_fastmsg import _envelope, _listener

SECRET = "content-that-no-log-may-show"


@pytest.fixture
def rejected(broker, spy):
    """A tap on what consumers reject for good."""
    tap = spy.tap_exchange("rejected", kind="fanout")
    definition = '[{<<"dead-letter-exchange">>, <<"rejected">>}]'
    broker.evaluate(
        'rabbit_policy:set(<<"/">>, <<"rejected">>, <<"^topic">>, '
        f'{definition}, 0, <<"queues">>, <<"test">>)'
    )
    yield tap
    broker.evaluate('rabbit_policy:delete(<<"/">>, <<"rejected">>, <<"test">>)')


def payload(**members):
    return {"method": "echo", "args": {"arg": SECRET}, **members}


def outer(message, version="2.0", **more):
    return json.dumps({"oslo.version": version, "oslo.message": message, **more})


INNER = json.dumps(payload())

ACCEPTED = {
    "an envelope": (envelope(payload()), {}),
    "an envelope with more members": (outer(INNER, more=[1]), {}),
    "members in another order": (
        json.dumps({"oslo.message": INNER, "oslo.version": "2.0"}),
        {},
    ),
    "no version: the object is the payload": (json.dumps(payload()), {}),
    "a version without a message": (
        json.dumps({"oslo.version": "2.0", **payload()}),
        {},
    ),
    "a list of pairs": (json.dumps(list(payload().items())), {}),
    "no content_encoding": (envelope(payload()), {"content_encoding": None}),
    "utf-16": (
        envelope(payload()).decode().encode("utf-16"),
        {"content_encoding": "utf-16"},
    ),
    "latin-1": (envelope(payload()), {"content_encoding": "iso-8859-1"}),
    "raw UTF-8": (
        json.dumps(
            {
                "oslo.version": "2.0",
                "oslo.message": json.dumps(payload(x="é日"), ensure_ascii=False),
            },
            ensure_ascii=False,
        ).encode(),
        {},
    ),
    "blanks around": (b" \r\n\t" + envelope(payload()) + b"\n ", {}),
    "compressed": (
        zlib.compress(envelope(payload())),
        {"application_headers": {"compression": "application/x-gzip"}},
    ),
    "compressed, by alias": (
        zlib.compress(envelope(payload())),
        {"application_headers": {"compression": "zlib"}},
    ),
    "an unknown compression of plain text": (
        envelope(payload()),
        {"application_headers": {"compression": "application/x-dream"}},
    ),
    "other properties": (
        envelope(payload()),
        {"priority": 9, "delivery_mode": 1, "application_headers": {"a": {"b": [1]}}},
    ),
    "no properties but the type": (
        envelope(payload()),
        {"priority": None, "delivery_mode": None, "application_headers": None},
    ),
    "unknown members": (envelope(payload(_new=1, other={"x": []})), {}),
    "no unique id": (envelope(payload()), {}),
    "a null unique id": (envelope(payload(_unique_id=None)), {}),
    "an empty msg_id": (envelope(payload(_msg_id="")), {}),
    "a msg_id without a reply queue": (envelope(payload(_msg_id="1" * 32)), {}),
    "an empty reply queue": (envelope(payload(_msg_id="2" * 32, _reply_q="")), {}),
    "a vanished reply queue": (
        envelope(payload(_msg_id="3" * 32, _reply_q="reply_gone")),
        {},
    ),
    "NaN": (envelope({"method": "echo", "args": {"arg": float("nan")}}), {}),
    "an unknown timeout": (envelope(payload(_timeout="soon")), {}),
    "escapes in the outer layer": (
        envelope(payload()).replace(b"echo", b"\\u0065cho"),
        {},
    ),
}

REJECTED = {
    "version 2.1": (outer(INNER, "2.1"), {}),
    "version 1.0": (outer(INNER, "1.0"), {}),
    "version 3.0": (outer(INNER, "3.0"), {}),
    "version 2": (outer(INNER, "2"), {}),
    "version as a number": (outer(INNER, 2.0), {}),
    "a null version": (outer(INNER, None), {}),
    "an object as the message": (outer(payload()), {}),
    "a null message": (outer(None), {}),
    "broken JSON inside": (outer(INNER[:-1]), {}),
    "trailing garbage inside": (outer(INNER + "x"), {}),
    "broken JSON outside": (envelope(payload())[:-1], {}),
    "trailing garbage outside": (envelope(payload()) + b"x", {}),
    "a list": (json.dumps([SECRET, SECRET]), {}),
    "a string": (json.dumps(SECRET), {}),
    "null": ("null", {}),
    "a number": ("17", {}),
    "no JSON at all": (SECRET, {}),
    "bytes that are no UTF-8": (b"\xff\xfe" + SECRET.encode(), {}),
    "no content_type": (envelope(payload()), {"content_type": None}),
    "text/plain": (envelope(payload()), {"content_type": "text/plain"}),
    "octets": (envelope(payload()), {"content_type": "application/octet-stream"}),
    "a charset": (
        envelope(payload()),
        {"content_type": "application/json; charset=utf-8"},
    ),
    "pickle": (
        b"cos\nsystem\n(S'true'\ntR.",
        {"content_type": "application/x-python-serialize"},
    ),
    "yaml": (b"a: 1", {"content_type": "application/x-yaml"}),
    "gzip of RFC 1952": (
        b"\x1f\x8b\x08\x00" + bytes(20),
        {"application_headers": {"compression": "application/x-gzip"}},
    ),
    "compressed without saying so": (zlib.compress(envelope(payload())), {}),
    "nested without end": (b'{"a":' * 200_000, {}),
}


@pytest.fixture
def served(peers, driver, topic, rejected):
    endpoint = TestEndpoint()
    # Stock occupies its only worker while it looks for a reply queue.
    rabbit = {"kombu_missing_consumer_retry_timeout": 2}
    peers.server(driver, endpoint, topic=topic, threads=1, rabbit=rabbit)
    return endpoint


def send_and_ask(spy, topic, served, body, properties):
    """Inject a body; come back when the server is past it."""
    # Endpoints run one after the other, but what is rejected does not
    # run; a call behind it marks the end of both.
    replies = spy.tap()
    spy.send("openstack", topic, body, **properties)
    spy.send("openstack", topic, request("echo", None, replies.queue, arg="after"))
    assert payload_of(replies.get().body)["result"] == "after"
    return [arg for arg in served.seen.items() if arg != "after"]


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_stock_accepts_is_accepted(served, spy, topic, rejected, case):
    body, properties = ACCEPTED[case]

    seen = send_and_ask(spy, topic, served, body, properties)

    assert len(seen) == 1
    assert seen == [SECRET] or case == "NaN"
    assert rejected.is_empty()


@pytest.mark.parametrize("case", REJECTED)
def test_what_stock_rejects_is_rejected(served, spy, topic, rejected, case):
    body, properties = REJECTED[case]

    seen = send_and_ask(spy, topic, served, body, properties)

    assert seen == []
    expected = body if isinstance(body, bytes) else body.encode()
    assert rejected.get().body == expected
    assert rejected.is_empty()


FAILING = {
    "no method": ({"args": {}}, "TypeError"),
    "a null method": ({"method": None, "args": {}}, "TypeError"),
    "null args": ({"method": "echo", "args": None}, "AttributeError"),
    "a null version": (payload(version=None), "UnsupportedVersion"),
    "an unknown namespace": (payload(namespace="x"), "UnsupportedVersion"),
    "an unknown method": (payload(method="absent"), "NoSuchMethod"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_request_that_cannot_be_dispatched_is_a_failure(
    served, spy, topic, rejected, case
):
    members, error = FAILING[case]
    replies = spy.tap()
    members = {**members, "_msg_id": uuid.uuid4().hex, "_reply_q": replies.queue}

    spy.send("openstack", topic, envelope(members))

    reply = payload_of(replies.get().body)
    assert reply["result"] is None
    assert json.loads(reply["failure"])["class"] == error
    assert rejected.is_empty()


def test_a_request_without_args_has_none(served, spy, topic):
    replies = spy.tap()
    members = {"method": "who", "_msg_id": "4" * 32, "_reply_q": replies.queue}

    spy.send("openstack", topic, envelope(members))

    assert payload_of(replies.get().body)["failure"] is None


def test_an_empty_body_is_an_empty_payload(served, spy, topic, rejected):
    assert send_and_ask(spy, topic, served, b"", {}) == []
    assert rejected.is_empty()


def test_a_reply_waits_for_its_queue_to_come(served, spy, topic):
    name = f"reply_{uuid.uuid4().hex}"
    spy.send("openstack", topic, request("echo", None, name, arg=1))
    served.seen.wait()

    reply = payload_of(spy.tap(name).get().body)

    assert reply["result"] == 1


@pytest.mark.parametrize("where", ["notifications", "replies"])
def test_bad_bodies_elsewhere_are_survived_too(
    peers, driver, topic, spy, rejected, where
):
    bodies = [
        body if isinstance(body, bytes) else body.encode()
        for body, properties in REJECTED.values()
        if not properties
    ]
    if where == "notifications":
        notes = Notes(["info"])
        peers.listener(driver, notes, topics=[topic])
        for body in bodies:
            spy.send("openstack", f"{topic}.info", body)
        peers.notifier(driver, topic).info({}, "event", "after")
        assert notes.seen.wait()[0]["payload"] == "after"
        assert len(rejected.take(len(bodies))) == len(bodies)
    else:
        client = peers.client(driver, topic=topic)
        peers.server(driver, TestEndpoint(), topic=topic)
        client.call({}, "echo", arg=1)
        (queue,) = [
            row["name"] for row in peers._broker.queues() if row["name"][:6] == "reply_"
        ]
        for body in bodies:
            spy.send("", queue, body)
        assert client.call({}, "echo", arg="after") == "after"


# --- the binary envelope, which stock rejects whatever is in it ---

PACKED = packed(payload())
COMPRESSED = {**MSGPACK, "application_headers": {"compression": "application/x-gzip"}}

ACCEPTED_PACKED = {
    "an object": (PACKED, MSGPACK),
    "no content_encoding": (PACKED, {**MSGPACK, "content_encoding": None}),
    "an encoding of text": (PACKED, {**MSGPACK, "content_encoding": "utf-16"}),
    "compressed": (zlib.compress(PACKED), COMPRESSED),
    "compressed, by a name that nobody knows": (
        PACKED,
        {**MSGPACK, "application_headers": {"compression": "application/x-dream"}},
    ),
    "other headers": (PACKED, {**MSGPACK, "application_headers": {"a": {"b": [1]}}}),
    "unknown members": (packed(payload(_new=1, other={"x": []})), MSGPACK),
    "a null unique id": (packed(payload(_unique_id=None)), MSGPACK),
    "a vanished reply queue": (
        packed(payload(_msg_id="3" * 32, _reply_q="reply_gone")),
        MSGPACK,
    ),
}
REJECTED_PACKED = {
    "half of it": (PACKED[: len(PACKED) // 2], MSGPACK),
    "all but a byte": (PACKED[:-1], MSGPACK),
    "a byte more": (PACKED + b"\xc0", MSGPACK),
    "twice": (PACKED * 2, MSGPACK),
    "null": (b"\xc0", MSGPACK),
    "a number": (b"\x11", MSGPACK),
    "a text": (packed(SECRET), MSGPACK),
    "a list of pairs": (packed(list(payload().items())), MSGPACK),
    "a code without a meaning": (b"\xc1", MSGPACK),
    "bytes in it": (packed(payload(x=b"bytes")), MSGPACK),
    "a key that is a number": (packed(payload(x={1: 2})), MSGPACK),
    "more members than bytes": (b"\xdf\xff\xff\xff\xff" + PACKED[1:], MSGPACK),
    "lists without end": (b"\x91" * 200_000, MSGPACK),
    "JSON": (envelope(payload()), MSGPACK),
    "as JSON": (PACKED, {}),
    "as kombu's MessagePack": (PACKED, {"content_type": "application/x-msgpack"}),
    "half of it, compressed": (zlib.compress(PACKED[:-9]), COMPRESSED),
    "compressed without saying so": (zlib.compress(PACKED), MSGPACK),
}


@pytest.mark.parametrize("case", ACCEPTED_PACKED)
def test_what_is_the_binary_envelope_is_accepted(
    fast, served, spy, topic, rejected, case
):
    body, properties = ACCEPTED_PACKED[case]

    assert send_and_ask(spy, topic, served, body, properties) == [SECRET]
    assert rejected.is_empty()


@pytest.mark.parametrize("case", REJECTED_PACKED)
def test_what_is_no_binary_envelope_is_rejected(
    fast, served, spy, topic, rejected, case
):
    body, properties = REJECTED_PACKED[case]

    assert send_and_ask(spy, topic, served, body, properties) == []
    assert rejected.get().body == body
    assert rejected.is_empty()


def test_an_empty_binary_body_is_an_empty_payload(fast, served, spy, topic, rejected):
    assert send_and_ask(spy, topic, served, b"", MSGPACK) == []
    assert rejected.is_empty()


def test_bad_binary_replies_are_survived_too(peers, fast, topic, spy):
    client = peers.client(fast, topic=topic)
    peers.server(fast, TestEndpoint(), topic=topic)
    client.call({}, "echo", arg=1)
    (queue,) = [
        row["name"] for row in peers._broker.queues() if row["name"][:6] == "reply_"
    ]
    for body, properties in REJECTED_PACKED.values():
        spy.send("", queue, body, **properties)
    assert client.call({}, "echo", arg="after") == "after"


HEADERS = {
    "none": ({}, "application/json"),
    "it": (READS_MSGPACK["application_headers"], MSGPACK["content_type"]),
    "it among others": (
        {"a": {"b": [1]}, "x-fastmsg-reads": "cbor, msgpack"},
        MSGPACK["content_type"],
    ),
    "another one": ({"x-fastmsg-reads": "msgpack2"}, "application/json"),
    "an empty one": ({"x-fastmsg-reads": ""}, "application/json"),
    "a number": ({"x-fastmsg-reads": 5}, "application/json"),
    "a table": ({"x-fastmsg-reads": {"msgpack": 1}}, "application/json"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_reply_is_what_the_header_of_its_request_names(
    fast, served, spy, topic, case
):
    headers, content_type = HEADERS[case]
    replies = spy.tap()
    body = request("echo", None, replies.queue, arg=[case, 2**70])

    spy.send("openstack", topic, body, application_headers=headers)
    reply = replies.get()

    assert reply.properties["content_type"] == content_type
    assert reply.properties["application_headers"] == {}
    assert payload_of(reply.body)["result"] == [case, 2**70]


# --- the log ---


def test_each_rejected_message_is_logged_once_without_its_content(
    fast, peers, topic, spy, rejected, caplog
):
    caplog.set_level(logging.INFO)
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)
    caplog.clear()

    for body, properties in REJECTED.values():
        spy.send("openstack", topic, body, **properties)
    rejected.take(len(REJECTED))

    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("oslo_fastmsg") and record.levelno >= logging.WARNING
    ]
    sizes = [len(body) for body, _ in REJECTED.values()]
    assert len(lines) == len(REJECTED)
    for line, size in zip(lines, sizes, strict=True):
        assert f"{size} bytes" in line
        assert topic in line
    assert SECRET not in caplog.text
    for word in ("cos\\n", "system", "Traceback"):
        assert not any(word in line for line in lines)


def test_accepted_content_is_not_logged_either(
    fast, peers, topic, spy, rejected, caplog
):
    caplog.set_level(logging.DEBUG, logger="oslo_fastmsg")
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=1)

    for body, properties in ACCEPTED.values():
        spy.send("openstack", topic, body, **properties)
    endpoint.seen.wait(len(ACCEPTED))

    ours = [r.getMessage() for r in caplog.records if r.name.startswith("oslo_fastmsg")]
    assert not any(SECRET in line for line in ours)


# --- in numbers ---


def mutated(seeds, count, seed):
    """Give bodies that differ from good ones by a few bytes, or are noise."""
    source = random.Random(seed)
    for _ in range(count):
        body = bytearray(source.choice(seeds))
        for _ in range(source.randint(1, 4)):
            kind = source.randrange(6)
            at = source.randrange(len(body) + 1)
            if kind == 0 and body:
                body[at - 1] = source.randrange(256)
            elif kind == 1:
                body[at:at] = source.randbytes(source.randint(1, 8))
            elif kind == 2:
                del body[at : at + source.randint(1, 30)]
            elif kind == 3:
                body[at:at] = body[: source.randint(0, 60)]
            elif kind == 4:
                body[at:at] = source.choice(
                    [b'"', b"\\", b"{", b"}", b"[", b"]", b"\\u", b"\\ud800", b"null"]
                )
            else:
                body = bytearray(source.randbytes(source.randint(0, 200)))
        yield bytes(body)


def seeds():
    """Good bodies. None is a call: a reply to nowhere is tried for a minute."""
    values = (1, "text", {"a": [1.5, None, True, "é"]}, '"\\')
    good = [{"method": "echo", "args": {"arg": value}} for value in values]
    good += [payload(_timeout=5, namespace="n", version="1.0", _context_a=1)]
    return list(map(envelope, good))


def with_mutated_arguments(count, seed):
    """Give good envelopes whose argument is nearly JSON, if not quite."""
    source = random.Random(seed)
    texts = [
        '{"a": [1.5, -2e3, null], "\\u00e9": "x\\n"}',
        '"\\ud83d\\ude00 \\"q\\""',
        "12.5e1",
    ]
    letters = '"\\{}[]:, 0123456789eE+-.ntfu/é日\U0001f600\x7f\t'
    for _ in range(count):
        text = source.choice(texts)
        at = source.randrange(len(text))
        text = text[:at] + source.choice(letters) + text[at + source.randint(0, 1) :]
        inner = f'{{"method": "echo", "args": {{"arg": {text}}}}}'
        ascii_only = source.random() < 0.7
        body = {"oslo.version": "2.0", "oslo.message": inner}
        yield json.dumps(body, ensure_ascii=ascii_only).encode()


def test_10000_mutated_bodies_neither_stop_nor_hang_a_server(
    fast, peers, topic, broker
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(fast, topic=topic)
    assert client.call({}, "echo", arg="before") == "before"
    logging.getLogger("oslo_messaging").setLevel(logging.CRITICAL)
    logging.getLogger("oslo_fastmsg").setLevel(logging.CRITICAL)
    spy = Spy(broker)
    try:
        spy.send_many("openstack", topic, list(mutated(seeds(), 10_000, seed=2)))

        wait_until(lambda: broker.queue(topic)["messages"] == 0, 60)
        assert client.call({}, "echo", arg="after") == "after"
        client.prepare(fanout=True).cast({}, "echo", arg="fanout")
        wait_until(lambda: "fanout" in endpoint.seen.items())
    finally:
        spy.close()
        logging.getLogger("oslo_messaging").setLevel(logging.NOTSET)
        logging.getLogger("oslo_fastmsg").setLevel(logging.NOTSET)


def test_mutated_bodies_have_the_same_fate_as_with_stock(
    fast, peers, topic, spy, rejected
):
    """The same bodies to both: executed and rejected alike, one by one."""
    bodies = [*mutated(seeds(), 1000, seed=3), *with_mutated_arguments(1000, seed=4)]
    fates = {}
    for driver in (fast, "stock"):
        name = f"{topic}-{driver}"
        endpoint = TestEndpoint()
        server = peers.server(driver, endpoint, topic=name, threads=1)
        spy.send_many("openstack", name, bodies)
        replies = spy.tap()
        spy.send("openstack", name, request("echo", None, replies.queue, arg="end"))
        replies.get(60)
        refused = []
        while (message := rejected.poll(0.3)) is not None:
            refused.append(message.body)
        fates[driver] = (list(map(repr, endpoint.seen.items())), refused)
        peers.stop(server)

    assert fates[fast][0] == fates["stock"][0]
    assert fates[fast][1] == fates["stock"][1]
    assert min(map(len, fates[fast])) > 300  # both fates are in it


def test_what_nobody_settled_is_not_acknowledged_with_others(
    fast, peers, topic, spy, broker, monkeypatch
):
    """Requests are acknowledged many at a time, but not over one that was skipped."""
    endpoint = TestEndpoint()
    server = peers.server(fast, endpoint, topic=topic, threads=1)
    skipped = []

    def fail(delivery):
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(_envelope, "read_delivery", fail)
        # Not by logging: that keeps the exception, and so the delivery.
        patch.setattr(_listener.LOG, "exception", lambda *words: skipped.append(words))
        odd = {"content_encoding": "us-ascii"}  # for Python to read
        spy.send("openstack", topic, request("echo", arg="skipped"), **odd)
        wait_until(lambda: skipped)
    for number in range(3):
        spy.send("openstack", topic, request("echo", arg=number))
        endpoint.seen.wait(number + 1)
    peers.stop(server)

    assert endpoint.seen.items() == [0, 1, 2]
    wait_until(lambda: broker.queue(topic)["messages_ready"] == 1)
