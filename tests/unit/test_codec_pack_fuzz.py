"""Random and mutated bodies of the binary envelope, the same ones every time.

Another implementation tells what is in them: each is read as it reads it, or refused
where it refuses, or where JSON has no such value.
"""

import re
from typing import Any

import msgpack
import pytest
from fix_codec import mutated
from fix_request import REQUEST

from oslo_fastmsg import _core

SEED = 20241105
PAYLOAD = {
    "method": "echo",
    "args": {"a": [1, -2.5, None, True, {}], "\xe9": "q\u65e5\U0001f600\ud800"},
    "_msg_id": "8d76912c1b264d539c825e3654be6866",
    "big": [2**70, 2**63, -(2**31), 300, [[], "x" * 40]],
}
SAMPLES = [
    _core.pack(PAYLOAD),
    _core.pack({}),
    _core.pack([["a", {"b": [1] * 20}], {str(n): n for n in range(17)}]),
    _core.pack({"result": [1, "x"], "failure": None, "ending": True, "_msg_id": "1"}),
]
TOKENS = [
    *(b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\x80", b"\x81", b"\x90", b"\x91", b"\x9f"),
    *(b"\xa0", b"\xa1a", b"\xd9\x03abc", b"\xda\x00\x02ab", b"\xdb\x00\x00\x00\x01a"),
    *(b"\xc4\x01a", b"\xc7\x02\x0112", b"\xd4\x01\x35", b"\xd5\x0199", b"\xd6\xff0000"),
    *(b"\xca\x7f\xc0\x00\x00", b"\xcb" + b"\xff" * 8, b"\xcc\xff", b"\xcd\x01\x00"),
    *(b"\xce\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xd0\x80", b"\xd1\x80\x00"),
    *(b"\xd2\x80\x00\x00\x00", b"\xd3\x80" + b"\x00" * 7, b"\xdc\x00\x01"),
    *(b"\xdd\x00\x00\x00\x02", b"\xdd\xff\xff\xff\xff", b"\xde\x00\x01"),
    *(b"\xdf\x00\x00\x00\x01", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff"),
    *(b"\xa2\xc3\xa9", b"\xa3\xed\xa0\x80", b"\xa6\xed\xa0\xbd\xed\xb8\x80", b"\xff"),
]
DIGITS = re.compile(rb"-?(0|[1-9][0-9]*)")


class Refused(Exception):
    """Not what JSON could have brought."""


def big_int(code: int, data: bytes) -> int:
    if code != 1 or not DIGITS.fullmatch(data):
        raise Refused
    return int(data)


def members(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    if not all(type(key) is str for key, _ in pairs):
        raise Refused
    return dict(pairs)


def check(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            check(key)
            check(inner)
    elif isinstance(value, list):
        for inner in value:
            check(inner)
    elif isinstance(value, bytes | msgpack.Timestamp) or (
        isinstance(value, str) and re.search("[\ud800-\udbff][\udc00-\udfff]", value)
    ):
        raise Refused


def expected_of(body: bytes) -> str | None:
    try:
        value = msgpack.unpackb(
            body,
            ext_hook=big_int,
            object_pairs_hook=members,
            strict_map_key=False,
            unicode_errors="surrogatepass",
            timestamp=0,
        )
        check(value)
    except Exception:
        return None
    return repr(value)


def fuzz(count: int, seed: int) -> None:
    read = 0
    for body in mutated(count, seed, SAMPLES, TOKENS, noise=0.1, replaced=0.7):
        expected = expected_of(body)
        try:
            found = repr(_core.unpack(body))
        except _core.BadMessage:
            found = None
        assert found == expected, body
        read += found is not None
    # The mutations are neither all too harmless nor all too harmful.
    assert count * 0.1 < read < count * 0.9, read / count


def test_mutated_bodies_are_read_or_refused_as_another_reader_does():
    fuzz(40_000, SEED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_mutated_bodies_are_read_or_refused_as_another_reader_does():
    fuzz(1_000_000, SEED + 1)


def test_every_byte_of_a_message_replaced_by_every_other():
    body = bytearray(SAMPLES[0])
    for at, original in enumerate(body):
        for byte in range(256):
            body[at] = byte
            try:
                found = repr(_core.unpack(body))
            except _core.BadMessage:
                found = None
            assert found == expected_of(bytes(body)), bytes(body)
        body[at] = original


def test_every_byte_of_a_request_dropped():
    body = _core.pack(REQUEST)
    for at in range(len(body)):
        rest = body[:at] + body[at + 1 :]
        try:
            found = repr(_core.unpack(rest))
        except _core.BadMessage:
            found = None
        assert found == expected_of(rest)
