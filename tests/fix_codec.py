"""The installed stock path for envelopes, and values to send through it.

What the codec has to match is asked of oslo.messaging, oslo.serialization and
kombu at run time: releases differ in what they make of foreign types.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st
from kombu import serialization
from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

__all__ = [
    "KEYS",
    "TEXTS",
    "VALUES",
    "Refused",
    "foreign_writer",
    "mutated",
    "outcome",
    "stock_decode",
    "stock_encode",
    "strict_decode",
]


class Refused(Exception):
    """Not an envelope of version "2.0" whose payload is JSON."""


def stock_encode(payload: Any) -> bytes:
    """Write an envelope as the stock driver does."""
    _, encoding, text = serialization.dumps(common.serialize_msg(payload), "json")
    return text.encode(encoding)


def stock_decode(body: bytes) -> Any:
    """Read a body as the stock driver does, whatever it is."""
    return common.deserialize_msg(_outer(body))


def strict_decode(body: bytes) -> Any:
    """Read what the fast path has to read, with the stock driver's parsers.

    :raises Refused: for what stock refuses, and for what it takes for
        something else than an envelope of exactly version "2.0".
    """
    try:
        envelope = _outer(body)
        if envelope["oslo.version"] != "2.0":
            raise Refused
        return jsonutils.loads(envelope["oslo.message"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused from None


def mutated(
    count: int,
    seed: int,
    samples: Sequence[bytes],
    tokens: Sequence[bytes],
    *,
    noise: float = 0.02,
    replaced: float = 0.0,
) -> Iterator[bytes]:
    """Make bodies that are nearly right.

    :param samples: bodies that are.
    :param tokens: what is put between their bytes.
    :param noise: the share of bodies that are bytes at random.
    :param replaced: the share of tokens that take the place of a byte.
    """
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < noise:
            yield rng.randbytes(rng.randrange(40))
            continue
        body = bytearray(rng.choice(samples))
        for _ in range(rng.randrange(5)):
            at = rng.randrange(len(body) + 1)
            kind = rng.randrange(8)
            if kind == 0 and at < len(body):
                body[at] = rng.randrange(256)
            elif kind == 1:
                del body[at : at + rng.randrange(9)]
            elif kind == 2 and rng.random() < 0.2:
                del body[at:]
            elif kind == 3:
                start = rng.randrange(len(body) + 1)
                body[at:at] = body[start : start + rng.randrange(20)]
            elif rng.random() < replaced:
                body[at : at + 1] = rng.choice(tokens)
            else:
                body[at:at] = rng.choice(tokens)
        yield bytes(body)


def _outer(body: bytes) -> Any:
    # kombu.serialization.loads does this, but hides errors in its own and
    # takes 20 us more.
    return serialization.registry._decoders["application/json"](body.decode("utf-8"))


def outcome(work: Callable[[Any], Any], given: Any) -> tuple[Any, ...]:
    """Return what a function gave, or which exception with which text."""
    try:
        return "returned", work(given)
    except RecursionError:
        return "raised", RecursionError  # the text tells the place
    except Exception as error:
        return "raised", type(error), str(error)


def foreign_writer(payload: Any, **style: Any) -> str:
    """Write an envelope in another style: keywords of ``json.dumps``, for both
    layers.
    """
    inner = json.dumps(payload, **style)
    return json.dumps({"oslo.message": inner, "oslo.version": "2.0"}, **style)


# Quotes and backslashes, both sorts of control characters, the last of one,
# two and three bytes of UTF-8, of each kind of str, and lone surrogates.
_SPECIAL = '"\\/\b\f\n\r\t\0\x1f\x7f\x80\xe9\xff\u0100\u2028\ud800\udbff\udc00\uffff'
_CHARACTERS = st.one_of(
    st.sampled_from(_SPECIAL + "\U00010000\U0001f600\U0010ffff"),
    st.characters(),  # surrogates too
    st.characters(min_codepoint=32, max_codepoint=126),
)
TEXTS = st.one_of(
    st.text(_CHARACTERS, max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=600),
)
_NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**17, 10**18, 10**19, 2**63, -(2**63), 2**64, 10**400]),
    st.floats(),
)
KEYS = st.one_of(TEXTS, TEXTS, _NUMBERS, st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=6),
    ),
    max_leaves=30,
)
