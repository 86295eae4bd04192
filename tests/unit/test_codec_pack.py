"""The binary envelope: values and errors are those that JSON has."""

import datetime
import math
import sys
import threading
import tracemalloc
from typing import Any

import msgpack
import pytest
from fix_codec import TEXTS, VALUES, outcome
from fix_request import REQUEST
from hypothesis import given, settings
from test_codec_encode import ITERATORS, MAKERS, ROWS, Meddler, cycles, nested

from oslo_fastmsg import _core

MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 6)


def by_json(value: Any) -> str:
    # The text tells what == does not: order, signs, NaN, 1 and True and 1.0.
    return repr(_core.decode(_core.encode(value)))


def by_msgpack(value: Any) -> str:
    return repr(_core.unpack(_core.pack(value)))


def assert_like_json(value: Any) -> None:
    assert outcome(by_msgpack, value) == outcome(by_json, value)


# ---- Both ways ----


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_any_value_arrives_as_it_does_through_json(value):
    assert_like_json({"args": value})
    assert_like_json(value)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_any_text_arrives_as_it_does_through_json(text):
    assert_like_json({text: text})


def test_a_request_arrives_as_it_does_through_json():
    body = _core.pack(REQUEST)

    assert type(body) is bytes
    assert_like_json(REQUEST)
    assert msgpack.unpackb(body) == REQUEST


@pytest.mark.parametrize("name", ROWS)
def test_every_type_arrives_or_is_refused_as_in_json(name):
    assert_like_json(ROWS[name])
    assert_like_json({"args": {"arg": ROWS[name]}, "after": [ROWS[name], 1]})


@pytest.mark.parametrize("name", ITERATORS)
def test_every_iterator_arrives_as_in_json(name):
    make = ITERATORS[name]

    assert by_msgpack([make()]) == by_json([make()])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536, 70000])
def test_heads_of_every_length(count):
    assert_like_json("x" * count)
    assert_like_json("\xe9" * count)
    assert_like_json([None] * count)
    assert_like_json({str(n): n for n in range(count)})


INTEGERS = sorted(
    sign * (2**bits + delta)
    for sign in (1, -1)
    for bits in (0, 5, 7, 8, 15, 16, 31, 32, 63, 64, 65, 200)
    for delta in (-1, 0, 1)
)


@pytest.mark.parametrize("number", INTEGERS)
def test_integers_around_each_limit(number):
    assert _core.unpack(_core.pack(number)) == number
    assert_like_json(number)


@pytest.mark.skipif(
    not hasattr(sys, "get_int_max_str_digits"), reason="this Python has no such limit"
)
def test_an_integer_over_the_limit_of_digits_is_refused_by_either_side():
    limit = sys.get_int_max_str_digits()
    largest = 10**limit - 1
    assert _core.unpack(_core.pack(largest)) == largest
    assert_like_json(10**limit)
    with pytest.raises(ValueError, match="digits"):
        _core.pack(10**limit)

    body = _core.pack(largest)
    try:
        sys.set_int_max_str_digits(limit - 1)
        with pytest.raises(_core.BadMessage):
            _core.unpack(body)
    finally:
        sys.set_int_max_str_digits(limit)


def test_there_is_one_nan():
    for text in ("7ff8000000000000", "fff8000000000000", "7ff0000000000001"):
        number = _core.unpack(b"\xcb" + bytes.fromhex(text))
        assert math.isnan(number)
        assert math.copysign(1, number) == 1
    assert _core.pack(-math.nan) == _core.pack(math.nan)
    assert math.isnan(_core.unpack(bytes.fromhex("caffc00000")))


def test_surrogates_of_a_pair_become_one_character():
    for text in (
        "\ud83d\ude00",
        "\ude00\ud83d",
        "\ud83d\ud83d\ude00\ude00",
        "\xe9\ud83d",
    ):
        assert_like_json(text)
        assert_like_json({text: 1, "\U0001f600": 2})
    assert _core.unpack(_core.pack("\ud83d\ude00")) == "\U0001f600"


def test_a_name_that_comes_twice_has_the_last_value_and_the_first_place():
    assert_like_json({1: "a", "x": 0, "1": "b", None: "c", "null": "d"})


# ---- What cannot be written ----


@pytest.mark.parametrize("value", list(cycles()), ids=["list", "dict", "both", "sub"])
def test_a_cycle_is_an_error_and_no_crash(value):
    assert_like_json(value)
    with pytest.raises(ValueError, match="Circular reference detected"):
        _core.pack({"args": value})


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_depth_is_limited_by_recursion_as_in_json(make):
    assert_like_json(nested(500, make))
    too_deep = nested(200_000, make)
    with pytest.raises(RecursionError):
        _core.pack(too_deep)
    # Let go of it step by step: CPython's own destructors may recurse.
    while not isinstance(too_deep, int):
        too_deep = too_deep["a"] if isinstance(too_deep, dict) else too_deep[0]


def test_a_failed_packing_leaves_nothing_behind():
    before = _core.pack(REQUEST)
    for bad in (object(), {b"": 1}, [REQUEST, {"a": object()}]):
        with pytest.raises((ValueError, TypeError)):
            _core.pack({"args": [REQUEST, bad]})

        assert _core.pack(REQUEST) == before


def test_an_exception_of_foreign_code_passes_through():
    class Stop(BaseException):
        pass

    def stop():
        raise Stop("now")

    with pytest.raises(Stop, match="now"):
        _core.pack({"a": [1, Meddler(stop)]})


# ---- Foreign code that changes what is being written: heads are mended ----


@pytest.mark.parametrize("before", [1, 14, 15, 16, 65535])
@pytest.mark.parametrize("more", [-1, 0, 1, 20, 66000])
def test_a_list_may_change_its_length_while_it_is_written(before, more):
    def change():
        if more < 0:
            del payload[more:]
        else:
            payload.extend([None] * more)

    payload: list[Any] = [Meddler(change), *[1] * before]
    packed = _core.unpack(_core.pack({"a": payload, "b": 2}))

    assert packed == {"a": [["meddled"], *payload[1:]], "b": 2}


def test_a_dict_is_written_as_it_was_when_foreign_code_began_to_change_it():
    payload: dict[str, Any] = {str(n): n for n in range(5)}
    payload["outer"] = inner = {"a": 1, "x": None, "b": 2}

    def meddle():
        payload.clear()
        inner.clear()
        for n in range(100):
            payload[f"new {n}"] = inner[f"new {n}"] = Meddler(meddle)

    inner["x"] = Meddler(meddle)
    expected = dict(payload, outer={"a": 1, "x": ["meddled"], "b": 2})

    assert _core.unpack(_core.pack(payload)) == expected


@pytest.mark.parametrize("count", [0, 1, 20, 70000])
def test_a_dict_of_its_own_kind_may_have_more_items_than_members(count):
    class Own(dict):
        def items(self):
            return [(str(n), n) for n in range(count)]

    assert_like_json([Own(a=1), 5])


# ---- What is refused ----


def head(kind: int, size: int) -> bytes:
    return bytes([kind]) + size.to_bytes(4, "big")


BAD = {
    "nothing": b"",
    "the one code without a meaning": b"\xc1",
    "more than a value": b"\xc0\xc0",
    "bytes": b"\xc4\x01x",
    "no bytes": b"\xc4\x00",
    "an unknown extension": b"\xd4\x02x",
    "a time": b"\xd6\xff\0\0\0\0",
    "an extension of no bytes": b"\xc7\x00\x01",
    "digits that are none": b"\xc7\x03\x01x12",
    "a fraction as digits": b"\xc7\x03\x011.5",
    "digits and more": b"\xc7\x03\x0112 ",
    "a leading zero": b"\xc7\x02\x0101",
    "a key that is a number": b"\x81\x01\x01",
    "a key that is a list": b"\x81\x91\xa1a\x01",
    "a key that is an object": b"\x81\x81\xa1a\x01\x01",
    "a key that is null": b"\x81\xc0\x01",
    "a key without a value": b"\x81\xa1a",
    "no key": b"\x81",
    "a list without its end": b"\x93\x01\x02",
    "a list of lists without an end": b"\x92\x91\x01",
    "a text without its end": b"\xa5four",
    "a long text without its end": b"\xdb\xff\xff\xff\xfffour",
    "half a head": b"\xdb\x00\x00",
    "the longest extension": head(0xC9, 0xFFFFFFFF) + b"\x01" + b"1" * 20,
    "the longest list": head(0xDD, 0xFFFFFFFF) + b"\xc0" * 20,
    "the longest object": head(0xDF, 0xFFFFFFFF) + b"\xa0\xc0" * 20,
    "one element too few": head(0xDD, 6) + b"\xc0" * 5,
    "half a number": b"\xcf\0\0\0",
    "a byte that is no UTF-8": b"\xa2a\xff",
    "a character cut short": b"\xa2\xe6\x97",
    "a character in more bytes than it needs": b"\xa2\xc0\x80",
    "a character beyond the last": b"\xa4\xf4\x90\x80\x80",
    "a pair of surrogates": "\ud83d".encode(errors="surrogatepass").join(
        [b"\xa6", "\ude00".encode(errors="surrogatepass")]
    ),
    "a key that is no UTF-8": b"\x81\xa1\xff\x01",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused(name):
    for body in (BAD[name], b"\x91" + BAD[name], b"\x81\xa1a" + BAD[name]):
        with pytest.raises(_core.BadMessage) as caught:
            _core.unpack(body)
        assert str(caught.value) == "the body is not MessagePack"


def test_every_beginning_of_a_request_is_refused():
    body = _core.pack(REQUEST)
    for end in range(len(body)):
        with pytest.raises(_core.BadMessage):
            _core.unpack(body[:end])


def opened(depth: int, kind: str) -> bytes:
    if kind == "both":
        return b"\x91\x81\xa1a" * (depth // 2)
    return (b"\x91" if kind == "list" else b"\x81\xa1a") * depth


@pytest.mark.parametrize("kind", ["list", "dict", "both"])
def test_depth_is_limited_as_in_json_and_takes_no_stack(kind):
    for inside in (b"\x01", b"\x90", b"\x80"):
        value = _core.unpack(opened(1000, kind) + inside)
        for _ in range(1000):
            value = value[0] if isinstance(value, list) else value["a"]
        assert value in (1, [], {})
        for depth in (1002, 100_000, 1_000_000):
            with pytest.raises(_core.BadMessage):
                _core.unpack(opened(depth, kind) + inside)
    with pytest.raises(_core.BadMessage):
        _core.unpack(b"\x91" * 1001 + b"\x01")
    with pytest.raises(_core.BadMessage):
        _core.unpack(opened(1_000_000, kind))


def test_depth_is_safe_on_a_small_stack():
    results = []

    def work():
        results.append(_core.unpack(opened(1000, "list") + b"\x01") is not None)
        try:
            _core.unpack(opened(100_000, "list"))
        except _core.BadMessage:
            results.append(True)

    size = threading.stack_size(128 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(size)
    thread.join()

    assert results == [True, True]


# Per byte of the body. An empty object takes a byte, and 64 as a dict; JSON has such
# documents too, of four times the size.
MOST_MEMORY = 110

HEAVY = {
    "lists that announce more than there is": head(0xDD, 5000) * 1000 + b"\xc0" * 5000,
    "lists that announce all there is": head(0xDD, 60_000) + b"\x90" * 60_000,
    "empty objects": head(0xDD, 60_000) + b"\x80" * 60_000,
    "objects of one member": head(0xDD, 20_000) + b"\x81\xa0\xc0" * 20_000,
    "objects that announce too much": head(0xDF, 3000) * 1000 + b"\xa0\xc0" * 3000,
    "wide text": b"\xdb\0\0\xea\x60" + "\U0001f600".encode() + b"x" * 59_996,
    "a bad text at the end": head(0xDD, 30_000) + b"\x90" * 29_999 + b"\xa1\xff",
    "names": head(0xDF, 20_000) + b"".join(b"\xa4%04x\xc0" % n for n in range(20_000)),
}


@pytest.mark.parametrize("name", HEAVY)
def test_memory_is_bounded_by_the_length_of_the_body(name):
    body = HEAVY[name]
    tracemalloc.start()
    try:
        value = outcome(_core.unpack, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    print(f"{name}: {peak / len(body):.1f} bytes for each of {len(body)}")
    assert value
    assert peak < MOST_MEMORY * len(body)


# ---- Names and buffers ----


def test_names_are_shared_with_the_json_decoder():
    by_one = next(iter(_core.unpack(_core.pack({"nova_object.name": 1}))))
    by_other = next(iter(_core.decode(_core.encode({"nova_object.name": 1}))))

    assert by_one is by_other


def test_values_are_no_names():
    """A container is what is being filled, again, when one inside is complete."""
    value = {"a": [{"b": "a"}, [], {}, "a", [["a"]]], "c": {"d": ["a", {"a": "a"}]}}

    assert _core.unpack(_core.pack(value)) == value


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_contiguous_bytes_are_a_body(kind):
    assert _core.unpack(kind(_core.pack({"a": 1}))) == {"a": 1}


@pytest.mark.parametrize("body", ["text", None, 5, [], memoryview(b"abcd")[::2]])
def test_what_holds_no_bytes_is_an_error_of_the_caller(body):
    with pytest.raises((TypeError, BufferError)):
        _core.unpack(body)


def test_other_writers_of_messagepack_are_read():
    value = {"a": [1, -1, 2.5, None, True, "\xe9"], "b": {"c": 2**63}}

    assert _core.unpack(msgpack.packb(value)) == value
    assert _core.unpack(msgpack.packb(value, use_single_float=True)) == value
