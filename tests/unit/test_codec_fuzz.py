"""Random and mutated bodies through the decoder, by the same seed every time.

Each is read as the stock driver's parsers read it or refused where they do.
Run them against a build with ``FM_SANITIZE=address`` to see what is read or
written where it should not be.
"""

import pytest
from fix_codec import Refused, foreign_writer, mutated, stock_encode, strict_decode
from fix_request import REQUEST

from oslo_fastmsg import _core

SEED = 20240817
PAYLOAD = {
    "method": "echo",
    "args": {"a": [1, -2.5, None, True, {}], "\xe9": 'q"\\\n\u65e5\U0001f600'},
    "_msg_id": "8d76912c1b264d539c825e3654be6866",
    "big": 2**70,
}
SAMPLES = [
    stock_encode(PAYLOAD),
    stock_encode({}),
    stock_encode(["\ud800", "\\\\", '""', float("inf"), {"a": {"a": "a"}}]),
    foreign_writer(PAYLOAD, ensure_ascii=False, indent=1).encode(),
    foreign_writer(PAYLOAD, separators=(",", ":")).replace('\\"', "\\u0022").encode(),
    b'{"x": [{}, "\xc3\xa9"], "oslo.version": "2.0", "oslo.message": "[1]"}',
]
TOKENS = [
    *(b"\\", b'"', b'\\"', b"\\\\", b"\\\\\\", b"{", b"}", b"[", b"]", b",", b":"),
    *(b" ", b"\n", b"\\n", b"\\\\n", b"null", b"true", b"NaN", b"-Infinity", b"-"),
    *(b"0", b"1", b".", b"e", b"1e400", b"12345678901234567890", b"\\u0022"),
    *(b"\\ud83d", b"\\ude00", b"\\\\ud83d", b"\\\\ude00", b"\\/", b"\\\\/", b"\0"),
    *(b"\xc3\xa9", b"\xe6\x97\xa5", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xff"),
    *(b'\\"a\\": ', b'"oslo.message": ', b'"oslo.version": "2.0"', b'"2.0"', b'"}'),
]


def fuzz(count: int, seed: int) -> None:
    read = 0
    for body in mutated(count, seed, SAMPLES, TOKENS):
        try:
            expected = repr(strict_decode(body))
        except Refused:
            expected = None
        try:
            found = repr(_core.decode(body))
        except _core.BadMessage:
            found = None
        assert found == expected, body
        read += found is not None
    # The mutations are neither all too harmless nor all too harmful.
    assert count * 0.1 < read < count * 0.9


def test_mutated_bodies_are_read_or_refused_as_stock_does():
    fuzz(100_000, SEED)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_mutated_bodies_are_read_or_refused_as_stock_does():
    fuzz(1_000_000, SEED + 1)


def test_every_beginning_of_a_request_is_refused():
    for body in (stock_encode(REQUEST), foreign_writer(REQUEST).encode()):
        for end in range(len(body)):
            with pytest.raises(_core.BadMessage):
                _core.decode(body[:end])
        assert _core.decode(body) == REQUEST


def test_every_byte_of_a_message_replaced_by_every_special_one():
    body = bytearray(SAMPLES[0])
    for at, original in enumerate(body):
        for byte in b'"\\{}[],: 0x\n\x00\x7f\x80\xff':
            body[at] = byte
            try:
                expected = repr(strict_decode(bytes(body)))
            except Refused:
                with pytest.raises(_core.BadMessage):
                    _core.decode(body)
            else:
                assert repr(_core.decode(body)) == expected
        body[at] = original
