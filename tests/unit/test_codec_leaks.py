"""Encoding and decoding, successful or not, keep no memory and no reference."""

import datetime
import gc
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fix_codec import foreign_writer, stock_encode
from fix_request import REQUEST
from oslo_serialization import jsonutils

from oslo_fastmsg import _core

ROUNDS = 100_000
WARM_UP = 3_000
SLOW_ROUNDS = 3_000  # of what takes a quarter of a millisecond

MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 6)
CYCLE: list[Any] = [1]
CYCLE.append({"a": CYCLE})


class Failing:
    def __iter__(self):
        raise LookupError("not iterable after all")


class Stubborn(dict):
    def items(self):
        raise LookupError("no items")


def rss() -> int:
    """Return the bytes that this process has in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def attempt(work: Callable[[Any], Any], given: Any, error: Any) -> None:
    try:
        work(given)
    except error:
        pass


def beginnings(
    body: bytes, decode: Callable[[bytes], Any] = _core.decode
) -> Callable[[], None]:
    """Return a function that decodes one longer beginning with each call."""
    ends = itertools.cycle(range(len(body)))
    return lambda: attempt(decode, body[: next(ends)], _core.BadMessage)


def new_names() -> Callable[[], None]:
    """Return a function that decodes a name never seen before."""
    numbers = itertools.count()
    return lambda: attempt(
        _core.decode, b'%s{\\"n%d\\": 1}"}' % (HEAD, next(numbers)), ()
    )


HEAD = b'{"oslo.version": "2.0", "oslo.message": "'
BODY = stock_encode({"a": [1, {"b": ["text", 2.5, "\xe9"]}, 10**30], "c": {"d": None}})
FOREIGN_BODY = (
    foreign_writer({"a": [1, {"b": ["text", 2.5, "\xe9"]}, 10**30], "c": {"d": None}})
    .replace('\\"', "\\u0022")
    .encode()
)
PACKED = _core.pack({"a": [1, {"b": ["text", 2.5, "\xe9"]}, 10**30], "c": {"d": None}})
ENCODE = {
    "request": (REQUEST, ()),
    "every builtin": (
        [1, 2**70, 2.5, "\xe9\u65e5\U0001f600", (), {1: {None: [True]}}],
        (),
    ),
    "foreign": ({"a": [MOMENT, {"b": MOMENT}, {1}], "c": b"d"}, ()),
    "subclass": ({"a": Stubborn(), "b": type("L", (list,), {})([1])}, ()),
    "bad key": ({"a": [1, {b"": 2}]}, TypeError),
    "bad object": ({"a": [MOMENT, {"b": object()}]}, ValueError),
    "failing object": ({"a": [MOMENT, {"b": Failing()}]}, LookupError),
    "failing items": ({"a": [MOMENT, Stubborn(x=1)]}, LookupError),
    "cycle": (CYCLE, ValueError),
}
if hasattr(sys, "get_int_max_str_digits"):
    ENCODE["digits"] = ({"a": [10**5000]}, ValueError)
WORK: dict[str, Callable[[], None]] = {
    **{
        f"encode: {name}": lambda given=given, error=error: attempt(
            _core.encode, given, error
        )
        for name, (given, error) in ENCODE.items()
    },
    "dumps": lambda: attempt(_core.dumps, REQUEST, ()),
    "decode": lambda: attempt(_core.decode, BODY, ()),
    "decode: other writer": lambda: attempt(_core.decode, FOREIGN_BODY, ()),
    "decode: beginnings": beginnings(BODY),
    "decode: beginnings, other writer": beginnings(FOREIGN_BODY),
    "decode: new names": new_names(),
    "decode: digits": lambda: attempt(
        _core.decode, BODY.replace(b"10000", b"1" * 5000), _core.BadMessage
    ),
    "decode: depth": lambda: attempt(
        _core.decode, BODY.replace(b"2.5", b"[" * 1500), _core.BadMessage
    ),
    "decode: no bytes": lambda: attempt(_core.decode, "text", TypeError),
    **{
        f"pack: {name}": lambda given=given, error=error: attempt(
            _core.pack, given, error
        )
        for name, (given, error) in ENCODE.items()
        # The walk is the one of encode().
        if name in ("every builtin", "foreign", "bad object", "digits")
    },
    "unpack": lambda: attempt(_core.unpack, PACKED, ()),
    "unpack: beginnings": beginnings(PACKED, _core.unpack),
    "unpack: key of another kind": lambda: attempt(
        _core.unpack, PACKED.replace(b"\xa1b", b"\x91\xc0"), _core.BadMessage
    ),
    "unpack: more than a value": lambda: attempt(
        _core.unpack, PACKED + PACKED, _core.BadMessage
    ),
    "unpack: depth": lambda: attempt(
        _core.unpack, PACKED.replace(b"\xcb", b"\x91" * 1500), _core.BadMessage
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_memory_stays_flat(name):
    work = WORK[name]
    rounds = SLOW_ROUNDS if name.endswith(": depth") else ROUNDS
    for _ in range(WARM_UP):
        work()
    gc.collect()
    blocks, memory = sys.getallocatedblocks(), rss()

    for _ in range(rounds):
        work()

    gc.collect()
    # A block or some bytes for each round would be far above this.
    assert sys.getallocatedblocks() - blocks < 1_000
    assert rss() - memory < 1_000_000


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_references_stay_the_same(work):
    name = next(iter(_core.decode(stock_encode({"a": 1}))))  # the remembered one
    watched = [
        *(name, None, True, MOMENT, CYCLE, REQUEST, REQUEST["args"], Failing, Stubborn),
        *(_core.BadMessage, jsonutils.to_primitive, "method", BODY, PACKED, ENCODE),
        *(given for given, _ in ENCODE.values()),
    ]
    work()
    before = [sys.getrefcount(thing) for thing in watched]

    for _ in range(1_000):
        work()

    after = [sys.getrefcount(thing) for thing in watched]
    for thing, count, expected in zip(watched, after, before, strict=True):
        # The interpreter's own caches come and go.
        assert abs(count - expected) < 100, repr(thing)[:50]
