"""Every kind of Python value, as it arrives on the other side.

What has to arrive is asked of the installed oslo.serialization and kombu,
whose rules change by release.
"""

import collections
import datetime
import decimal
import enum
import fractions
import ipaddress
import itertools
import json
import math
import uuid
import xmlrpc.client

import netaddr
import oslo_messaging
import pytest
from fix_peer import Notes, TestEndpoint
from fix_wire import envelope, request
from kombu.utils import json as kombu_json
from oslo_serialization import jsonutils


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    ONE = "one"


class Colour(enum.Enum):
    RED = 1


class Text(str):
    pass


class Whole(int):
    pass


class Pairs:
    """Has items(), so counts as a mapping, up to a depth."""

    def __init__(self, **content):
        self.content = content

    def items(self):
        return self.content.items()

    def __iter__(self):
        return iter(self.content)


class Countable:
    def __iter__(self):
        return iter([1, 2, 3])


class Plain:
    def __repr__(self):
        return "<Plain>"

    def __str__(self):
        return "plain"


class OnlyToDict:
    def to_dict(self):
        return {"a": 1}


Point = collections.namedtuple("Point", "x y")

UTC = datetime.timezone.utc
ZONE = datetime.timezone(datetime.timedelta(hours=2))


def generator():
    yield 1


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


# Made anew for each use: an iterator is good for one.
VALUES = {
    "text": lambda: "plain",
    "text empty": lambda: "",
    "text latin": lambda: "é à",
    "text cjk": lambda: "日本",
    "text beyond the BMP": lambda: "\U0001f600",
    "text controls": lambda: "".join(map(chr, range(32))),
    "text delete": lambda: "\x7f\x80\xa0",
    "text quotes": lambda: "\"'\\/\b\f\n\r\t",
    "text lone surrogate": lambda: "\ud800",
    "text surrogates the wrong way": lambda: "\udc00\ud800",
    "text of JSON": lambda: '{"a": "\\"b\\\\"}',
    "text line separators": lambda: "\u2028\u2029\ufeff",
    "text with a null": lambda: "a\0b",
    "true": lambda: True,
    "false": lambda: False,
    "none": lambda: None,
    "int": lambda: 1,
    "int negative": lambda: -1,
    "int 64 bits": lambda: 2**63 - 1,
    "int 64 bits and one": lambda: 2**63,
    "int huge": lambda: 2**70,
    "int hugely negative": lambda: -(2**200),
    "int of 4300 digits": lambda: 10**4299,
    "float": lambda: 1.0,
    "float tenth": lambda: 0.1,
    "float large": lambda: 1e16,
    "float larger": lambda: 1e22,
    "float small": lambda: 1e-7,
    "float smallest": lambda: 5e-324,
    "float largest": lambda: 1.7976931348623157e308,
    "float minus zero": lambda: -0.0,
    "float inf": lambda: math.inf,
    "float -inf": lambda: -math.inf,
    "float nan": lambda: math.nan,
    "list": lambda: [1, "a", None, [], {}],
    "tuple": lambda: (1, (2, 3), ()),
    "namedtuple": lambda: Point(1, 2),
    "dict": lambda: {"a": {"b": {"c": [1]}}},
    "dict ordered": lambda: collections.OrderedDict([("z", 1), ("a", 2)]),
    "dict default": lambda: collections.defaultdict(int, a=1),
    "dict counter": lambda: collections.Counter("aab"),
    "dict odd keys": lambda: {2: "i", 1.5: "f", True: "t", None: "n", -2: 3},
    "dict keys twice": lambda: {1: "a", "1": "b"},
    "dict enum keys": lambda: {Number.ONE: 1, Word.ONE: 2},
    "dict special floats as keys": lambda: {math.inf: 1, -math.inf: 2},
    "dict unicode keys": lambda: {"é": 1, "日本": 2, '"\\\n': 3},
    "dict empty key": lambda: {"": 1},
    "dict wire names": lambda: {"oslo.message": "x", "_unique_id": "y", "_msg_id": 1},
    "str subclass": lambda: Text("sub"),
    "int subclass": lambda: Whole(7),
    "IntEnum": lambda: Number.ONE,
    "str Enum": lambda: Word.ONE,
    "bytes": lambda: b"abc",
    "bytes UTF-8": lambda: "é".encode(),
    "bytearray": lambda: bytearray(b"ab"),
    "memoryview": lambda: memoryview(b"ab"),
    "datetime": lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
    "datetime whole": lambda: datetime.datetime(2024, 1, 2, 3, 4, 5),
    "datetime utc": lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, 6, UTC),
    "datetime zone": lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, 6, ZONE),
    "xmlrpc DateTime": lambda: xmlrpc.client.DateTime("20240102T03:04:05"),
    "date": lambda: datetime.date(2024, 1, 2),
    "time": lambda: datetime.time(1, 2),
    "timedelta": lambda: datetime.timedelta(1),
    "Decimal": lambda: decimal.Decimal("1.5"),
    "Fraction": lambda: fractions.Fraction(1, 2),
    "complex": lambda: 1j,
    "UUID": lambda: uuid.UUID(int=5),
    "set": lambda: {1},
    "frozenset": lambda: frozenset("a"),
    "deque": lambda: collections.deque([1, 2]),
    "range": lambda: range(3),
    "map": lambda: map(str, [1, 2]),
    "dict keys view": lambda: {"a": 1}.keys(),
    "dict items view": lambda: {"a": 1}.items(),
    "iterable": Countable,
    "mapping of our own": lambda: Pairs(a=1, b=[2]),
    "mapping in mapping": lambda: Pairs(k=Pairs(k=Pairs(k=1))),
    "mapping too deep": lambda: Pairs(k=Pairs(k=Pairs(k=Pairs(k=1)))),
    "mapping too deep in dicts": lambda: Pairs(
        k={"d": Pairs(k={"d": Pairs(k={"d": Pairs(k=1)})})}
    ),
    "IPv4Address": lambda: ipaddress.ip_address("10.0.0.1"),
    "IPv6Address": lambda: ipaddress.ip_address("::1"),
    "IPv4Interface": lambda: ipaddress.ip_interface("10.0.0.1/30"),
    "IPv4Network": lambda: ipaddress.ip_network("10.0.0.0/30"),
    "netaddr IPAddress": lambda: netaddr.IPAddress("10.0.0.1"),
    "netaddr IPNetwork": lambda: netaddr.IPNetwork("10.0.0.0/30"),
    "netaddr EUI": lambda: netaddr.EUI("00-11-22-33-44-55"),
    "exception": lambda: ValueError("x", 1),
    "class": lambda: Plain,
    "module": lambda: math,
    "function": lambda: generator,
    "builtin": lambda: len,
    "plain object": Plain,
    "object": object,
    "object with to_dict()": OnlyToDict,
    "Enum": lambda: Colour.RED,
    "Ellipsis": lambda: ...,
    "itertools.count": lambda: itertools.count(5),
    "bytes not UTF-8": lambda: b"\xff",
    "dict bytes keys": lambda: {b"k": 1},
    "dict tuple keys": lambda: {(1, 2): 1},
    "nested 50 deep": lambda: nested(50),
}


def through(dumps, loads, value):
    """Tell what a value becomes: its repr(), or the class of the error."""
    try:
        return repr(loads(dumps(value)))
    except Exception as error:
        return type(error)


def through_stock(value):
    return through(jsonutils.dumps, json.loads, value)


def outcome(action):
    try:
        return repr(action())
    except Exception as error:
        return type(error)


def test_every_argument_arrives_as_through_stock(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    expected = {name: through_stock(make()) for name, make in VALUES.items()}

    arrived = {}
    for name, make in VALUES.items():
        arrived[name] = outcome(lambda make=make: client.call({}, "echo", arg=make()))

    assert arrived == expected
    sendable = [text for text in expected.values() if isinstance(text, str)]
    assert [repr(value) for value in endpoint.seen.items()] == sendable


def test_every_result_arrives_as_through_stock(peers, pairing, topic):
    class Endpoint:
        def give(self, ctxt, name):
            return VALUES[name]()

    peers.server(pairing.receiver, Endpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    expected = {name: through_stock(make()) for name, make in VALUES.items()}
    expected = {name: text for name, text in expected.items() if isinstance(text, str)}

    arrived = {
        name: outcome(lambda name=name: client.call({}, "give", name=name))
        for name in expected
    }

    assert arrived == expected


def test_every_payload_of_version_2_arrives_as_through_stock(peers, pairing, topic):
    notes = Notes(["info"])
    peers.listener(pairing.receiver, notes, topics=[topic], threads=1)
    notifier = peers.notifier(pairing.sender, topic)
    expected = {name: through_stock(make()) for name, make in VALUES.items()}

    for name, make in VALUES.items():
        notifier.info({}, name, make())

    sendable = {name: text for name, text in expected.items() if isinstance(text, str)}
    seen = notes.seen.wait(len(sendable))
    arrived = {note["event_type"]: repr(note["payload"]) for note in seen}
    assert arrived == sendable


def test_every_payload_of_version_1_arrives_as_through_stock(peers, pairing, topic):
    notes = Notes(["info"])
    peers.listener(pairing.receiver, notes, topics=[topic], threads=1)
    notifier = peers.notifier(pairing.sender, topic, version=1)

    def through_kombu(value):
        return through(kombu_json.dumps, kombu_json.loads, value)

    expected = {name: through_kombu(make()) for name, make in VALUES.items()}
    sendable = {name: text for name, text in expected.items() if isinstance(text, str)}

    # The others cost a stock notifier its connection, and a second each.
    for name in sendable:
        notifier.info({}, name, VALUES[name]())

    seen = notes.seen.wait(len(sendable))
    arrived = {note["event_type"]: repr(note["payload"]) for note in seen}
    assert arrived == sendable


@pytest.mark.parametrize(
    "value",
    [object, lambda: {b"k": 1}, lambda: b"\xff"],
    ids=["object", "key", "bytes"],
)
def test_what_cannot_be_written_is_the_callers_error_and_not_sent(
    peers, driver, topic, spy, value
):
    tap = spy.tap_exchange("openstack", topic)
    client = peers.client(driver, topic=topic)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        jsonutils.dumps(value())

    with pytest.raises(expected.type):
        client.cast({}, "echo", arg=value())
    with pytest.raises(expected.type):
        client.call({}, "echo", arg=value())
    client.cast({}, "echo", arg="after")

    assert b"after" in tap.get().body


def test_a_notification_of_version_1_that_cannot_be_written_is_a_delivery_failure(
    peers, driver, topic
):
    transport = peers.transport(driver, notification=True)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        transport._send_notification(
            oslo_messaging.Target(topic=f"{topic}.info"),
            {},
            {"payload": object()},
            version=1.0,
            retry=0,
        )


def test_a_cycle_is_a_value_error(peers, driver, topic):
    client = peers.client(driver, topic=topic)
    cycle = []
    cycle.append(cycle)

    with pytest.raises((ValueError, RecursionError)):
        client.cast({}, "echo", arg=cycle)


# Texts that json of the standard library reads in a way of its own.
TEXTS = [
    "NaN",
    "[Infinity, -Infinity]",
    "1e999",
    "-1e999",
    "-0",
    "-0.0",
    "1.0",
    "1E5",
    "123456789012345678901234567890",
    '{"a": 1, "a": 2}',
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\/\\b\\u0041"',
    '"\\u00e9 \\u0000"',
    " [1 , 2,\t3 ,\r\n4 ] ",
    '{"" : {}}',
    "[[[[]]]]",
]


def test_every_text_of_json_is_read_as_by_stock(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)

    for text in TEXTS:
        inner = f'{{"method": "echo", "args": {{"arg": {text}}}}}'
        body = json.dumps({"oslo.version": "2.0", "oslo.message": inner})
        spy.send("openstack", topic, body.encode())

    seen = endpoint.seen.wait(len(TEXTS))
    assert list(map(repr, seen)) == [repr(json.loads(text)) for text in TEXTS]


BROKEN_TEXTS = [
    "nan",
    "[1,]",
    '{"a": 1,}',
    "{'a': 1}",
    "01",
    "+1",
    ".5",
    "5.",
    "0x10",
    '"\x01"',
    '"\\x41"',
    '"\\ud8"',
    "[1] [2]",
    "tru",
    "\ufeff1",
    "\u00a01",
    "/* c */ 1",
]


def test_every_text_that_stock_refuses_is_refused(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, threads=1)

    for text in BROKEN_TEXTS:
        inner = f'{{"method": "echo", "args": {{"arg": {text}}}}}'
        with pytest.raises(ValueError, match=r"."):
            json.loads(inner)
        body = json.dumps({"oslo.version": "2.0", "oslo.message": inner})
        spy.send("openstack", topic, body.encode())
    spy.send("openstack", topic, request("echo", arg="after"))

    assert endpoint.seen.wait() == ["after"]


def test_raw_utf8_is_read_in_both_layers(peers, driver, topic, spy):
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic)
    inner = '{"method": "echo", "args": {"arg": "é日本\U0001f600"}}'
    body = json.dumps(
        {"oslo.version": "2.0", "oslo.message": inner}, ensure_ascii=False
    )

    spy.send("openstack", topic, body.encode())

    assert endpoint.seen.wait() == ["é日本\U0001f600"]
    assert body.encode() != envelope(inner)
