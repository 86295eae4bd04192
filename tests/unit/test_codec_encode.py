"""The encoder against the installed oslo.serialization and kombu, to the byte."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import ipaddress
import itertools
import json
import subprocess
import sys
import threading
import types
import uuid
import xmlrpc.client
from typing import Any

import pytest
from fix_codec import TEXTS, VALUES, outcome, stock_encode
from fix_request import REQUEST
from hypothesis import given, settings
from oslo_serialization import jsonutils

from oslo_fastmsg import _core

try:
    import netaddr
except ImportError:
    netaddr = None


def assert_like_stock(payload: Any) -> None:
    assert outcome(_core.encode, payload) == outcome(stock_encode, payload)
    assert outcome(_core.dumps, payload) == outcome(jsonutils.dumps, payload)


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_any_value_is_written_as_stock_writes_it(value):
    assert _core.encode({"args": value}) == stock_encode({"args": value})
    assert _core.dumps(value) == jsonutils.dumps(value)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_any_text_is_written_as_stock_writes_it(text):
    assert _core.encode({text: text}) == stock_encode({text: text})
    assert _core.dumps(text) == jsonutils.dumps(text)


def test_a_request_is_written_as_stock_writes_it():
    body = _core.encode(REQUEST)

    assert type(body) is bytes
    assert body == stock_encode(REQUEST)


@pytest.mark.parametrize("code", [*range(0x100), 0x2028, 0xD800, 0xFFFF, 0x10000])
def test_every_character_at_every_place_of_a_block(code):
    for before in (0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63):
        for after in (0, 1, 4, 8, 15, 16, 31):
            text = "a" * before + chr(code) + "b" * after
            assert _core.encode(text) == stock_encode(text)


@pytest.mark.parametrize("length", [511, 512, 513, 1024, 5000])
@pytest.mark.parametrize("character", ["x", '"', "\\", "\xe9", "\u65e5", "\U0001f600"])
def test_long_texts_of_one_character(length, character):
    assert _core.encode(character * length) == stock_encode(character * length)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class State(str, enum.Enum):
    ON = 'o"n'


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Text(str):
    def __repr__(self):
        return "not this"

    __str__ = __repr__

    def __iter__(self):
        raise AssertionError


class Whole(int):
    def __repr__(self):
        return "not this"

    __str__ = __repr__


class Real(float):
    def __repr__(self):
        return "not this"

    __str__ = __repr__


Point = collections.namedtuple("Point", "x y")


class BackwardsList(list):
    def __iter__(self):
        return reversed(list(super().__iter__()))


class ShoutingDict(dict):
    def items(self):
        return [(key.upper(), value) for key, value in super().items()]


class OddItems(dict):
    def items(self):
        return [("a", 1, 2)]


class NoItems(dict):
    def items(self):
        raise LookupError("no items")


class WithItems:
    def __init__(self, items):
        self._items = items

    def items(self):
        return list(self._items.items())


class WithToDict:
    def to_dict(self):
        return {"a": 1}


class WithJson:
    def __json__(self):
        return {"a": 1}


@dataclasses.dataclass
class Data:
    a: int = 1


class Iterates:
    def __iter__(self):
        return iter([1, "two"])


class Slots:
    __slots__ = ()


def function():
    pass


def nested_items(levels, inside):
    for _ in range(levels):
        inside = WithItems({"k": inside})
    return inside


def nested_items_in_dicts(levels):
    inside: Any = 5
    for _ in range(levels):
        inside = WithItems({"d": {"k": inside}})
    return inside


MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 6)
# What an iterator gives, it gives once: each is made anew for each reader.
ITERATORS = {
    "deque": lambda: collections.deque([1, 2]),
    "range": lambda: range(3),
    "map": lambda: map(str, [1, 2]),
    "zip": lambda: zip([1], [2], strict=True),
    "iter": lambda: iter([1, 2]),
    "chain": lambda: itertools.chain([1], [2]),
}
ROWS: dict[str, Any] = {
    "str": "x",
    "empty str": "",
    "large int": 1180591620717411303424,
    "int at 64 bits": [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64],
    "constants": [None, True, False],
    "floats": [1.0, 0.1, 1e16, 1e22, 1e-7, -0.0, 5e-324, 1.7976931348623157e308],
    "infinities": [float("inf"), float("-inf"), float("nan")],
    "int of too many digits": 10**5000,
    "list": [1, [2, []]],
    "tuple": (1, (2, ())),
    "namedtuple": Point(1, 2),
    "empties": [{}, [], (), "", collections.OrderedDict(), Point],
    "dict": {"a": {"b": {}}},
    "OrderedDict": collections.OrderedDict(a=1, b=2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "Counter": collections.Counter("aab"),
    "key int": {1: 1, -5: 2, 10**30: 3},
    "key float": {1.5: 1, 1e22: 2, float("inf"): 3, float("nan"): 4, -0.0: 5},
    "key constants": {True: 1, None: 2, False: 3},
    "keys that become equal": {1: "a", "1": "b", None: "c", "null": "d"},
    "key str subclass": {Text('a"b'): 1},
    "key int subclass": {Whole(5): 1, Level.LOW: 2},
    "key float subclass": {Real(0.5): 1},
    "key str enum": {State.ON: 1},
    "key bytes": {b"a": 1},
    "key tuple": {(1, 2): 1},
    "key datetime": {MOMENT: 1},
    "key UUID": {uuid.UUID(int=1): 1},
    "key frozenset": {frozenset(): 1},
    "str subclass": Text('a"b\xe9'),
    "int subclass": Whole(7),
    "large int subclass": Whole(2**80),
    "float subclass": [Real(0.5), Real("inf"), Real("nan")],
    "IntEnum": Level.LOW,
    "IntFlag": Flag.A | Flag.B,
    "str enum": State.ON,
    "Enum": Colour.RED,
    "bytes": b'a"bc',
    "bytes of UTF-8": "\u65e5".encode(),
    "bytes of something else": b"\xff",
    "bytearray": bytearray(b"ab"),
    "memoryview": memoryview(b"ab"),
    "datetime": MOMENT,
    "datetime with zone": MOMENT.replace(tzinfo=datetime.timezone.utc),
    "xmlrpc DateTime": xmlrpc.client.DateTime(MOMENT),
    "date": datetime.date(2024, 1, 2),
    "time": datetime.time(1, 2),
    "timedelta": datetime.timedelta(1),
    "Decimal": decimal.Decimal("1.5"),
    "Fraction": fractions.Fraction(1, 2),
    "complex": 1j,
    "object": object(),
    "plain object": Slots(),
    "dataclass": Data(),
    "object with to_dict()": WithToDict(),
    "object with __json__()": WithJson(),
    "UUID": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "set": {1},
    "frozenset": frozenset(["x"]),
    "dict views": [{"a": 1}.keys(), {"a": 1}.values(), {"a": 1}.items()],
    "iterable": Iterates(),
    "object with items()": WithItems({"a": WithItems({"b": MOMENT})}),
    "items() over items()": [nested_items(levels, 5) for levels in range(1, 7)],
    "items() over dicts": [nested_items_in_dicts(levels) for levels in range(1, 7)],
    "IPv4Address": ipaddress.IPv4Address("10.0.0.1"),
    "IPv6Address": ipaddress.IPv6Address("::1"),
    "IPv4Interface": ipaddress.IPv4Interface("10.0.0.1/30"),
    "IPv4Network": ipaddress.IPv4Network("10.0.0.0/30"),
    "exception": ValueError("x", 1),
    "exception with quotes": ValueError("a'b\"c\\"),
    "BaseException": SystemExit(1),
    "class": Data,
    "module": types,
    "function": function,
    "lambda": lambda: None,
    "method": WithToDict().to_dict,
    "builtin": len,
    "generator": (n for n in [1, 2]),
    "count": itertools.count(),
    "file": io.StringIO("x"),
    "Ellipsis": ...,
    "NotImplemented": NotImplemented,
    "mappingproxy": types.MappingProxyType({"a": MOMENT}),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "list with an iterator of its own": BackwardsList([1, 2, 3]),
    "dict with items of its own": ShoutingDict(a=1),
    "dict whose items are no pairs": OddItems(a=1),
    "dict whose items fail": NoItems(a=1),
    "empty dict whose items fail": NoItems(),
    "foreign things in containers": [{"a": (MOMENT, {"b": b"c"}, {MOMENT})}, MOMENT],
    "error deep inside": {"a": [1, {"b": (2, object())}]},
    "bad key deep inside": {"a": [1, {"b": {b"": 1}}]},
}
if netaddr is not None:
    ROWS |= {
        "netaddr IPAddress": netaddr.IPAddress("10.0.0.1"),
        "netaddr IPNetwork": netaddr.IPNetwork("10.0.0.0/30"),
        "netaddr EUI": netaddr.EUI("00-11-22-33-44-55"),
    }


@pytest.mark.parametrize("name", ROWS)
def test_every_type_is_written_or_refused_as_stock_does(name):
    assert_like_stock(ROWS[name])
    assert_like_stock({"args": {"arg": ROWS[name]}, "after": [ROWS[name], 1]})


@pytest.mark.parametrize("name", ITERATORS)
def test_every_iterator_is_written_as_stock_does(name):
    make = ITERATORS[name]

    assert _core.encode([make()]) == stock_encode([make()])
    assert _core.dumps(make()) == jsonutils.dumps(make())


def test_what_should_fail_does_fail():
    """Keeps the comparisons above from comparing two surprises."""
    for name in ("object", "Fraction", "Enum", "int of too many digits"):
        if name.startswith("int") and not hasattr(sys, "get_int_max_str_digits"):
            continue
        with pytest.raises(ValueError, match=r".*"):
            _core.encode(ROWS[name])
    with pytest.raises(TypeError, match="keys must be str, int, float, bool or None"):
        _core.encode(ROWS["key bytes"])
    with pytest.raises(UnicodeDecodeError):
        _core.encode(ROWS["bytes of something else"])


def cycles():
    in_list: list[Any] = [1]
    in_list.append(in_list)
    yield in_list
    in_dict: dict[str, Any] = {"a": {}}
    in_dict["a"]["b"] = in_dict
    yield in_dict
    in_both: list[Any] = [({"a": []},)]
    in_both[0][0]["a"].append(in_both)
    yield in_both
    in_subclass = collections.OrderedDict()
    in_subclass["a"] = [in_subclass]
    yield in_subclass


@pytest.mark.parametrize("value", list(cycles()), ids=["list", "dict", "both", "sub"])
def test_a_cycle_is_an_error_and_no_crash(value):
    assert_like_stock(value)
    with pytest.raises(ValueError, match="Circular reference detected"):
        _core.encode({"args": value})


def test_a_foreign_object_that_becomes_itself_is_a_cycle():
    code = (
        "from oslo_serialization import jsonutils\n"
        "jsonutils.to_primitive = lambda value: value\n"
        "from oslo_fastmsg import _core\n"
        "try: _core.encode([object()])\n"
        "except ValueError as error: print(error)\n"
    )
    assert run_python(code) == "Circular reference detected\n"


def test_a_value_that_occurs_twice_is_no_cycle():
    shared = {"a": [1]}

    assert_like_stock([shared, shared, {"b": shared, "c": shared["a"]}])


def nested(levels: int, make: Any) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = make(value)
    return value


MAKERS = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"a": value},
    "OrderedDict": lambda value: collections.OrderedDict(a=value),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_depth_is_limited_by_recursion_as_in_json(make):
    assert_like_stock(nested(500, make))
    too_deep = nested(200_000, make)
    with pytest.raises(RecursionError):
        _core.encode(too_deep)
    # Let go of it step by step: CPython's own destructors may recurse.
    while not isinstance(too_deep, int):
        too_deep = too_deep["a"] if isinstance(too_deep, dict) else too_deep[0]


def test_a_failed_encoding_leaves_nothing_behind():
    before = _core.encode(REQUEST)
    for bad in (object(), {b"": 1}, [REQUEST, {"a": object()}]):
        with pytest.raises((ValueError, TypeError)):
            _core.encode({"args": [REQUEST, bad]})

        assert _core.encode(REQUEST) == before


# ---- Foreign code that changes what is being written ----


class Meddler:
    """Does something while it is converted, and becomes a list."""

    def __init__(self, meddle):
        self.meddle = meddle

    def __iter__(self):
        self.meddle()
        return iter(["meddled"])


def test_a_dict_is_written_as_it_was_when_foreign_code_began_to_change_it():
    payload: dict[str, Any] = {str(n): n for n in range(5)}
    payload["outer"] = inner = {"a": 1, "x": None, "b": 2}
    payload["last"] = "end"

    def meddle():
        payload.clear()
        inner.clear()
        for n in range(100):
            payload[f"new {n}"] = inner[f"new {n}"] = Meddler(meddle)

    inner["x"] = Meddler(meddle)
    expected = dict(payload, outer={"a": 1, "x": ["meddled"], "b": 2})

    assert _core.dumps(payload) == json.dumps(expected)


def test_a_dict_that_grows_by_being_written_comes_to_an_end():
    payload: dict[str, Any] = {}

    def grow():
        payload[f"new {len(payload)}"] = Meddler(grow)

    payload["first"] = Meddler(grow)

    assert json.loads(_core.dumps(payload)) == {"first": ["meddled"]}


def test_a_list_may_shrink_while_it_is_written():
    payload: list[Any] = [1, 2, None, "gone", {"gone": "too"}]
    payload[2] = Meddler(payload.clear)

    assert json.loads(_core.dumps(payload)) == [1, 2, ["meddled"]]


def test_an_object_that_is_dropped_while_it_is_written_lives_on():
    class Dropped:
        def __init__(self, holder):
            self.holder = holder

        def items(self):
            self.holder.clear()
            return [("still", ["here", b"x"])]

    for holder in ({}, []):
        value = {"a": {"b": Dropped(holder)}}
        if isinstance(holder, dict):
            holder["only"] = value
        else:
            holder.append(value)
        del value
        expected = [{"a": {"b": {"still": ["here", "x"]}}}]

        assert json.loads(_core.dumps([holder])) in (
            [expected],
            [{"only": expected[0]}],
        )


def test_an_exception_of_foreign_code_passes_through():
    class Stop(BaseException):
        pass

    def stop():
        raise Stop("now")

    with pytest.raises(Stop, match="now"):
        _core.encode({"a": [1, Meddler(stop)]})


def test_foreign_code_may_encode_and_decode_itself():
    seen = []

    def meddle():
        seen.append(_core.decode(_core.encode({"inner": MOMENT})))

    assert json.loads(_core.dumps([Meddler(meddle), 5])) == [["meddled"], 5]
    assert seen == [{"inner": "2024-01-02T03:04:05.000006"}]


def test_threads_may_share_what_they_encode():
    payload = {"a": [MOMENT] * 20, "b": REQUEST, "c": Iterates()}
    expected = stock_encode(payload)
    wrong = []

    def work():
        for _ in range(200):
            if _core.encode(payload) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


# ---- What is imported, and when ----


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",  # `-c` looks for modules there first
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_foreign_objects_load_oslo_serialization():
    code = (
        "import sys\n"
        "from oslo_fastmsg import _core\n"
        "_core.decode(_core.encode({'a': [1, 2.5, None, 'x', {'b': ()}]}))\n"
        "print('oslo_serialization' in sys.modules)\n"
        "print(_core.dumps({1}))\n"
        "print('oslo_serialization' in sys.modules)\n"
    )
    assert run_python(code) == "False\n[1]\nTrue\n"


def test_foreign_objects_without_oslo_serialization_are_an_import_error():
    code = (
        "import sys\n"
        "sys.modules['oslo_serialization'] = None\n"
        "from oslo_fastmsg import _core\n"
        "try: _core.encode({1})\n"
        "except ImportError: print('ImportError')\n"
        "print(_core.dumps([1]))\n"
    )
    assert run_python(code) == "ImportError\n[1]\n"
