"""The same messages, sent by both drivers, are the same bytes.

Compared at run time against the installed stock driver. A proxy before the
broker keeps what each process puts into its socket: exchange, routing key,
flags, property list and body. Random ids and times are replaced by their
order of appearance, everything else has to be equal byte by byte.
"""

import datetime
import uuid

import oslo_messaging
import pytest
from fix_peer import TestEndpoint
from fix_proxy import Proxy
from fix_wire import normalised, request

pytestmark = pytest.mark.envelopes("json")

CONTEXT = {"user": "u1", "request_id": "req-1", "n": None, "é": [1.5, {"a": "\x7f"}]}

ARGUMENT = {
    "a": 1,
    "é": "日本\U0001f600\x7f\ud800",
    "quotes": "\"\\'/\b\f\n\r\t\x00",
    "floats": [1.0, 0.1, 1e16, 1e22, 1e-7, -0.0, float("inf"), float("nan")],
    "ints": [0, -1, 2**63, 2**70],
    "others": [True, False, None, (), {}, [], ""],
    "keys": {2: "a", "2": "b", 1.5: "c", True: "d", None: "e"},
    "when": datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
    "uuid": uuid.UUID(int=7),
    "bytes": b"abc",
    "set": {1},
    "exception": ValueError("x", 1),
}


def comparable(publication):
    """What has to be equal, with the ids replaced in all of it at once."""
    parts = [
        publication.exchange.encode(),
        publication.routing_key.encode(),
        b"mandatory" if publication.mandatory else b"",
        b"immediate" if publication.immediate else b"",
        publication.properties.hex(" ").encode(),
        publication.body,
    ]
    return normalised(b"\n".join(parts)).split(b"\n", 5)


@pytest.fixture
def published(broker):
    """Give what a driver publishes while a test's action runs with it."""

    def collect(driver, action, count):
        with Proxy(broker) as proxy:
            action(driver, proxy)
            proxy.wait_for(lambda: len(proxy.publications()) >= count)
            found = proxy.publications()
        assert len(found) == count
        return [comparable(publication) for publication in found]

    return collect


@pytest.fixture
def assert_identical(published):
    def compare(action, count=1):
        fast, stock = (published(name, action, count) for name in ("fast", "stock"))
        assert fast == stock

    return compare


def options(**kwargs):
    return oslo_messaging.TransportOptions(**kwargs)


REQUESTS = {
    "call": (lambda c: c, "call", {"arg": ARGUMENT}),
    "call without arguments": (lambda c: c, "call", {}),
    "call to a server": (lambda c: c.prepare(server="h.1"), "call", {"arg": 1}),
    "call with namespace and version": (
        lambda c: c.prepare(namespace="ns", version="1.2"),
        "call",
        {"arg": [1, 2]},
    ),
    "call with a timeout in fractions": (
        lambda c: c.prepare(timeout=1.2345),
        "call",
        {"arg": 1},
    ),
    "call with a long timeout": (lambda c: c.prepare(timeout=5000000), "call", {}),
    "monitored call": (
        lambda c: c.prepare(call_monitor_timeout=20),
        "call",
        {"arg": 1},
    ),
    "mandatory call": (
        lambda c: c.prepare(transport_options=options(at_least_once=True)),
        "call",
        {"arg": 1},
    ),
    "cast": (lambda c: c, "cast", {"arg": ARGUMENT}),
    "cast to a server": (lambda c: c.prepare(server="h.1"), "cast", {"arg": 1}),
    "cast with namespace and version": (
        lambda c: c.prepare(namespace="ns", version="2.0"),
        "cast",
        {},
    ),
    "mandatory cast": (
        lambda c: c.prepare(transport_options=options(at_least_once=True)),
        "cast",
        {},
    ),
    "fanout": (lambda c: c.prepare(fanout=True), "cast", {"arg": ARGUMENT}),
    "mandatory fanout": (
        lambda c: c.prepare(fanout=True, transport_options=options(at_least_once=True)),
        "cast",
        {},
    ),
    "large cast": (lambda c: c, "cast", {"arg": "x" * 300_000}),
}


class Namespaced(TestEndpoint):
    target = oslo_messaging.Target(namespace="ns", version="1.9")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_the_same_bytes(fast, assert_identical, peers, topic, name):
    prepare, kind, arguments = REQUESTS[name]
    peers.server(
        "stock", TestEndpoint(), Namespaced(), topic=topic, server="h.1", threads=1
    )

    def send(driver, proxy):
        client = peers.client(driver, topic=topic, via=proxy)
        method = getattr(prepare(client), kind)
        method(CONTEXT, "echo", **arguments)
        # While the proxy is still there to say goodbye through.
        peers.clean(client.transport)

    assert_identical(send)


def test_a_large_body_is_cut_into_the_same_frames(fast, published, peers, topic):
    cut = []

    def send(driver, proxy):
        peers.client(driver, topic=topic, via=proxy).cast({}, "echo", arg="x" * 300_000)
        proxy.wait_for(lambda: proxy.publications())
        (link,) = [link for link in proxy.links() if link.publications()]
        cut.append([len(f.payload) for _, f in link.sent if f.name == "body"])

    for driver in ("fast", "stock"):
        published(driver, send, 1)

    assert cut[0] == cut[1]
    assert cut[0][0] == 131064


REPLIES = {
    "result": ("echo", None, {"arg": ARGUMENT}),
    "null result": ("echo", None, {}),
    "failure": ("fail", None, {"arg": "é"}),
    "unknown method": ("absent", None, {}),
}


def answer(peers, spy, topic, body, replies, count):
    """Have a server of a driver answer a raw request through a proxy."""

    def act(driver, proxy):
        server = peers.server(driver, TestEndpoint(), topic=topic, via=proxy, threads=1)
        spy.send("openstack", topic, body)
        replies.take(count)
        # The next driver's server is to be alone with its request.
        peers.stop(server)

    return act


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_the_same_bytes(fast, assert_identical, peers, topic, spy, name):
    method, timeout, arguments = REPLIES[name]
    replies = spy.tap()
    # Two requests alike: the second server knows the first one's id not.
    body = request(method, timeout, replies.queue, **plain(arguments))

    assert_identical(answer(peers, spy, topic, body, replies, 1))


def plain(arguments):
    """Leave out what the raw request cannot carry but as text."""
    return {
        name: {key: value for key, value in item.items() if key in PLAIN}
        if isinstance(item, dict)
        else item
        for name, item in arguments.items()
    }


PLAIN = {"a", "é", "quotes", "floats", "ints", "others"}


def test_a_sign_of_life_is_the_same_bytes(fast, assert_identical, peers, topic, spy):
    replies = spy.tap()
    body = request("last", 2, replies.queue, seconds=1.5)

    assert_identical(answer(peers, spy, topic, body, replies, 2), count=2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("priority", ["info", "critical"])
def test_a_notification_is_the_same_bytes(
    fast, assert_identical, peers, topic, version, priority
):
    payload = {key: ARGUMENT[key] for key in ARGUMENT if version == 2 or key in PLAIN}

    def send(driver, proxy):
        notifier = peers.notifier(
            driver, topic, version=version, publisher_id="compute.h", via=proxy
        )
        getattr(notifier, priority)({"user_id": "u"}, "compute.create.end", payload)

    assert_identical(send)


def test_a_notification_to_two_topics_is_the_same_bytes(
    fast, assert_identical, peers, topic
):
    def send(driver, proxy):
        notifier = peers.notifier(driver, f"{topic}-a", f"{topic}-b", via=proxy)
        notifier.info({"user_id": "u"}, "event", {"a": 1})

    assert_identical(send, count=2)


def test_the_comparison_sees_each_difference(fast, published, peers, topic):
    """The tests above compare what they should: other input, other bytes."""

    def send(driver, proxy, **kwargs):
        client = peers.client(
            driver, topic=topic, via=proxy, **kwargs.pop("client", {})
        )
        client.prepare(**kwargs.pop("prepare", {})).cast(CONTEXT, "echo", **kwargs)

    def parts(**kwargs):
        return published("stock", lambda d, p: send(d, p, **kwargs), 1)[0]

    usual = parts(arg=1)

    assert parts(arg=1) == usual
    assert parts(arg=1.0) != usual
    assert parts(arg=1, prepare={"server": "x"})[1] != usual[1]
    assert parts(arg=1, client={"control_exchange": "x"})[0] != usual[0]
