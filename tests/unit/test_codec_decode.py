"""The decoder against the stock driver's parsers: values, and what is refused."""

import json
import math
import string
import threading
from typing import Any

import pytest
from fix_codec import (
    TEXTS,
    VALUES,
    Refused,
    foreign_writer,
    stock_decode,
    stock_encode,
    strict_decode,
)
from fix_request import REQUEST
from hypothesis import given, settings
from hypothesis import strategies as st

from oslo_fastmsg import _core

HEAD = b'{"oslo.version": "2.0", "oslo.message": "'


def same(found: Any, expected: Any) -> bool:
    """Tell whether two values are equal down to types, signs and NaN."""
    # repr is exact for all that JSON can mean, and tells 1 from 1.0 and True.
    return repr(found) == repr(expected)


def assert_reads_as(body: bytes, expected: Any) -> None:
    found = _core.decode(body)
    assert same(found, expected)


def assert_like_stock(body: bytes) -> None:
    """Give stock's value, or BadMessage where stock has none from an envelope."""
    try:
        expected = strict_decode(body)
    except Refused:
        with pytest.raises(_core.BadMessage):
            _core.decode(body)
    else:
        assert_reads_as(body, expected)


def in_envelopes(inner: str) -> list[bytes]:
    """Return the text of a payload in envelopes of several writers."""
    bodies = [
        json.dumps({"oslo.version": "2.0", "oslo.message": inner}).encode(),
        json.dumps({"oslo.message": inner, "oslo.version": "2.0"}).encode(),
        json.dumps(
            {"oslo.version": "2.0", "oslo.message": inner},
            indent=1,
            separators=(",", ":"),
        ).encode(),
    ]
    # Escapes that Python never writes.
    bodies += [
        bodies[0].replace(b'\\"', b"\\u0022"),
        bodies[0].replace(b"/", b"\\/"),
    ]
    try:
        bodies.append(
            json.dumps(
                {"oslo.version": "2.0", "oslo.message": inner}, ensure_ascii=False
            ).encode()
        )
    except UnicodeEncodeError:
        pass
    return bodies


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_what_stock_writes_is_read_as_stock_reads_it(value):
    body = stock_encode({"args": value})

    assert_reads_as(body, stock_decode(body))


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_we_write_is_read_as_stock_reads_it(value):
    body = _core.encode(value)

    assert_reads_as(body, stock_decode(body))


STYLES = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" ,\n", "\r: ")]),
    }
)


@settings(max_examples=500, deadline=None)
@given(VALUES, STYLES)
def test_what_others_write_is_read_as_stock_reads_it(value, style):
    text = foreign_writer({"args": value}, **style)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return  # lone surrogates, which stock cannot read so either

    assert_reads_as(body, stock_decode(body))


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_any_text_in_any_envelope(key, text):
    for body in in_envelopes(json.dumps({key: text})):
        assert_like_stock(body)
    for body in in_envelopes(json.dumps({key: text}, ensure_ascii=False)):
        assert_like_stock(body)


def test_a_request_is_read_as_stock_reads_it():
    body = stock_encode(REQUEST)

    assert _core.decode(body) == REQUEST == stock_decode(body)


SPECIAL = [
    "\\n",
    '\\"',
    "\\\\",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\u65e5",
    "\n",
    '"',
    "\\x",
]


@pytest.mark.parametrize("special", SPECIAL)
def test_every_escape_at_every_place_of_a_block(special):
    for before in range(35):
        inner = '["{}{}bc"]'.format("a" * before, special)
        for body in in_envelopes(inner):
            assert_like_stock(body)


VALUE_ROWS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "[NaN, Infinity, -Infinity]",
    "1e999",
    "-1e999",
    "1e-999",
    "0",
    "-0",
    "-0.0",
    "0.0",
    "1.0",
    "1E5",
    "1e+5",
    "1.5e-5",
    "0.1",
    "123456789012345678",
    "1234567890123456789",
    "-123456789012345678",
    "-12345678901234567",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1" + "0" * 4299,
    "1." + "0" * 500,
    "null",
    "true",
    "false",
    '""',
    "{}",
    "[]",
    "[ ]",
    "{ }",
    '{"a": 1, "a": 2}',
    '{"a": 1, "b": 2, "a": 3}',
    '{"": ""}',
    '"\\ud800"',
    '"\\ude00\\ud83d"',
    '"\\ud83d\\ude00"',
    '"\\ud83d\\u0041"',
    '"\\ud83d\\ud83d\\ude00"',
    '"\\ud83dx\\ude00"',
    '"\\/"',
    '"/"',
    '"\\u0000\\u001f\\u007f"',
    '"\x7f"',
    '"\u65e5\U0001f600\xe9"',
    " \t\n\r[1 ,\n2]\r\n",
    '{"\\u0061": 1, "a": 2}',
    '{"\u65e5": {"\\n": []}}',
    "[[[[[]]]]]",
    '[{}, [], {"a": [{}]}]',
    "12",
    '"text"',
]


@pytest.mark.parametrize("inner", VALUE_ROWS, ids=lambda text: text[:20])
def test_every_value_is_read_as_stock_reads_it(inner):
    for body in in_envelopes(inner) + in_envelopes(f'{{"a": [{inner}]}}'):
        assert_reads_as(body, stock_decode(body))


BAD_ROWS = [
    "",
    " ",
    "nan",
    "infinity",
    "-infinity",
    "Inf",
    "-Inf",
    "-NaN",
    "None",
    "True",
    "tru",
    "nul",
    "nulll",
    "[1,]",
    '{"a": 1,}',
    "[,1]",
    "[1 2]",
    "[1,,2]",
    '{"a" 1}',
    '{"a": }',
    '{"a"}',
    "{1: 2}",
    "{a: 1}",
    "{null: 1}",
    "[1}",
    '{"a": 1]',
    "[",
    "{",
    "]",
    "}",
    '{"a": [1, {"b": 2}',
    "[[[[[",
    "// comment\n1",
    "/* comment */ 1",
    "# comment\n1",
    "'a'",
    "{\"a\": 'b'}",
    "01",
    "-01",
    "00",
    "+1",
    ".5",
    "5.",
    "1.e5",
    "1e",
    "1e+",
    "-",
    "--1",
    "0x10",
    "1_000",
    "\uff11",
    "1 2",
    "{} x",
    "[] []",
    '"a" "b"',
    '"',
    '"abc',
    '"\\"',
    '"\\x41"',
    '"\\u12"',
    '"\\u12g4"',
    '"\\ud83d\\u12g4"',
    '"\\N"',
    '"\n"',
    '"\t"',
    '"\x00"',
    '"\x1f"',
    "\ufeff1",
    "\xa01",
    "\x0b1",
    "\x001",
    "1\x00",
]


@pytest.mark.parametrize("inner", BAD_ROWS, ids=ascii)
def test_every_broken_payload_is_refused(inner):
    for body in in_envelopes(inner) + in_envelopes(f'{{"a": {inner}}}'):
        with pytest.raises(Refused):
            strict_decode(body)
        with pytest.raises(_core.BadMessage):
            _core.decode(body)


# As they stand in JSON.
OTHER_VERSIONS = [
    *("2.0", "2", "null", "[]", '{"a": "2.0"}'),
    *('"2.1"', '"1.0"', '"3.0"', '"2"', '""', '"2.00"', '" 2.0"', '"2.0.0"', '"two"'),
]
NOT_ENVELOPES = [
    b"",
    b" ",
    b"null",
    b"1",
    b'"text"',
    b"[]",
    b'[["oslo.version", "2.0"], ["oslo.message", "{}"]]',
    b"{}",
    b'{"method": "echo", "args": {}}',
    b'{"oslo.version": "2.0"}',
    b'{"oslo.message": "{}"}',
    b'{"oslo.version": "2.0", "oslo.message": {}}',
    b'{"oslo.version": "2.0", "oslo.message": null}',
    b'{"oslo.version": "2.0", "oslo.message": 5}',
    b'{"oslo.version": "2.0", "oslo.message": "{}", "oslo.message": 5}',
    b'{"oslo.version": "2.0", "oslo.message": "{}", "oslo.version": "3.0"}',
    *(
        f'{{"oslo.version": {version}, "oslo.message": "{{}}"}}'.encode()
        for version in OTHER_VERSIONS
    ),
    HEAD,
    HEAD + b"{}",
    HEAD + b'{}"',
    HEAD + b'{}"} x',
    HEAD + b'{}"}}',
    HEAD + b'{}",}',
    HEAD + b'{}" "x": 1}',
    HEAD + b'{}", "x": }',
    HEAD + b'{}", "x": [}',
    HEAD + b'{}", "x": "\xff"}',
    HEAD + b'{}", "x": "\n"}',
    HEAD + b'{"a": 1}"}',
    HEAD + b'{\\"a": 1}"}',
    HEAD + b'{\\"a\\": \\"b"}',
    HEAD + b'{\\"a\\": \\"b\\\\"}',
    HEAD + b'{\\"a\\": \\"b\\',
    HEAD + b'{\\"a\\": \\"b\\\\',
    HEAD + b'{\\"a\\": \\"b\\\\\\',
    HEAD + b'{}\n"}',
    HEAD + b'{}\xa0"}',
    HEAD + b'{\\"a\\": \\"\xff\\"}"}',
    HEAD + b'{\\"a\\": \\"\xc0\xaf\\"}"}',
    HEAD + b'{\\"a\\": \\"\xed\xa0\x80\\"}"}',
    HEAD + b'{\\"a\\": \\"\xf4\x90\x80\x80\\"}"}',
    HEAD + b'{\\"a\\": \\"\xe6\x97\\"}"}',
    HEAD + b'{\\"a\\": \\"\xe6\x97',
    b"\xef\xbb\xbf" + HEAD + b'{}"}',
    (HEAD + b'{}"}').decode().encode("utf-16"),
    (HEAD + b'{}"}').decode().encode("utf-32-le"),
    HEAD + b'{}"}\x00',
]


@pytest.mark.parametrize("body", NOT_ENVELOPES, ids=lambda body: ascii(body[-30:]))
def test_what_is_no_envelope_is_refused(body):
    with pytest.raises(Refused):
        strict_decode(body)
    with pytest.raises(_core.BadMessage):
        _core.decode(body)


ENVELOPES = [
    HEAD + b'{}"}',
    HEAD + b'{}"  }\r\n\t ',
    HEAD + b' {} " }',
    HEAD + b'{}", "x": 1}',
    HEAD + b'{}", "x": [1, {"oslo.version": "1.0"}], "y": "\xe6\x97\xa5"}',
    HEAD + b'{\\"a\\": 1}", "oslo.message": "{\\"a\\": 2}"}',
    HEAD + b'{}", "oslo.version": "2.0"}',
    HEAD + b'\\u007b\\u0022a\\u0022: 1\\u007D"}',
    HEAD + b'{\\"a\\": \\"\\ud83d\\ude00\\ud83d\\"}"}',
    HEAD + b'{\\"a\\": \\"\\ud83d\\\\ude00\\"}"}',
    HEAD + b'{\\"a\\":\\t1,\\n\\"b\\":\\r2}"}',
    HEAD + b'{\\"a\\": \\"\\/\\\\/\\"}"}',
    HEAD + b'{\\"a\\": \\"\xe6\x97\xa5\\"}"}',
    b' {"oslo.message":"[]","oslo.version":"2.0"} ',
    b'{"\\u006fslo.version": "2\\u002e0", "oslo.message": "[]"}',
    b'{"oslo.message": 5, "oslo.version": 1, "oslo.message": "[]", '
    b'"oslo.version": "2.0"}',
]


@pytest.mark.parametrize("body", ENVELOPES, ids=lambda body: ascii(body[-30:]))
def test_what_is_an_envelope_is_read(body):
    assert_reads_as(body, stock_decode(body))


def test_an_integer_over_the_limit_of_digits_is_refused():
    body = HEAD + b"1" * 100_000 + b'"}'
    assert_like_stock(body)  # Python before 3.10.7 has no limit


# ---- Depth ----


def opened_and_closed(depth: int, opening: bytes, closing: bytes) -> bytes:
    return HEAD + opening * depth + b"1" + closing * depth + b'"}'


@pytest.mark.parametrize(
    ("opening", "closing"),
    [(b"[", b"]"), (b'{\\"a\\":', b"}"), (b'[{\\"a\\":', b"}]")],
    ids=["list", "dict", "both"],
)
def test_depth_is_limited_and_takes_no_stack(opening, closing):
    each = 2 if opening.startswith(b"[{") else 1
    value = _core.decode(opened_and_closed(1000 // each, opening, closing))
    for _ in range(1000):
        value = value[0] if isinstance(value, list) else value["a"]
    assert value == 1

    for depth in (1002 // each, 100_000, 1_000_000):
        with pytest.raises(_core.BadMessage):
            _core.decode(opened_and_closed(depth, opening, closing))
    with pytest.raises(_core.BadMessage):
        _core.decode(HEAD + opening * 1_000_000)
    # As above, on the way for other writers.
    other = opened_and_closed(1_000_000, opening, closing).replace(b":", b"\\u003a")
    with pytest.raises(_core.BadMessage):
        _core.decode(other)
    with pytest.raises(_core.BadMessage):
        _core.decode(HEAD + b'{}", "x": ' + b"[" * 1_000_000)


def test_depth_is_safe_on_a_small_stack():
    results = []

    def work():
        body = opened_and_closed(1000, b"[", b"]")
        results.append(_core.decode(body) is not None)
        try:
            _core.decode(HEAD + b"[" * 100_000)
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


# ---- Names of members, which are remembered ----


def test_many_names_of_every_length_stay_apart():
    alphabet = string.ascii_letters + string.digits
    names = [
        (alphabet[n % 62] + str(n) + "_" * 70)[:length]
        for length in range(1, 70)
        for n in range(300)
    ]
    names += ["", "\xe9", "\u65e5", "a\nb", "\ud800"]
    # Differences at single places only, at each in turn.
    for length in (1, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 64):
        for place in range(length):
            name = ["x"] * length
            name[place] = "y"
            names.append("".join(name))

    for _ in range(2):
        for start in range(0, len(names), 50):
            payload = dict.fromkeys(names[start : start + 50], 1)
            assert _core.decode(_core.encode(payload)) == payload


def test_names_may_be_decoded_by_many_threads():
    payloads = [{f"name {n} {m}": m for m in range(100)} for n in range(8)]
    bodies = [_core.encode(payload) for payload in payloads]
    wrong = []

    def work(first):
        for n in range(400):
            place = (first + n) % len(bodies)
            if _core.decode(bodies[place]) != payloads[place]:
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_decoded_containers_are_new_each_time():
    body = _core.encode({"a": {}, "b": []})
    first = _core.decode(body)
    first["a"]["x"] = first["b"].append(1)

    assert _core.decode(body) == {"a": {}, "b": []}


# ---- What is accepted as a body ----


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_contiguous_bytes_are_a_body(kind):
    assert _core.decode(kind(HEAD + b'{\\"a\\": 1}"}')) == {"a": 1}


def test_a_part_of_a_buffer_is_read_to_its_end_only():
    whole = HEAD + b'[1, 2]"}' + b"}"
    body = memoryview(whole)[:-1]

    assert _core.decode(body) == [1, 2]
    for end in range(len(body)):
        with pytest.raises(_core.BadMessage):
            _core.decode(body[:end])


@pytest.mark.parametrize("body", ["text", None, 5, [], memoryview(b"abcd")[::2]])
def test_what_holds_no_bytes_is_an_error_of_the_caller(body):
    with pytest.raises((TypeError, BufferError)):
        _core.decode(body)


def test_a_refusal_shows_nothing_of_the_message():
    for body in (b"secret", HEAD + b'{\\"secret\\": secret}"}'):
        with pytest.raises(_core.BadMessage) as caught:
            _core.decode(body)

        assert "secret" not in str(caught.value)


def test_floats_are_the_nearest_ones():
    texts = ["0.1", "1e23", "9007199254740993.0", "2.2250738585072011e-308", "5e-324"]
    texts += ["1.7976931348623159e308", "123456789.123456789e-5", "0." + "3" * 100]
    for text in texts:
        found = _core.decode(HEAD + text.encode() + b'"}')

        assert found == float(text)
        assert math.copysign(1, found) == 1
