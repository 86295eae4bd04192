"""``oslo_fastmsg.decode()``: a captured message for people to read."""

import datetime
import json
import zlib

import pytest
from fix_codec import stock_encode
from fix_request import REQUEST
from kombu.utils import json as kombu_json

import oslo_fastmsg
from oslo_fastmsg import _core

PAYLOAD = {
    "method": "echo",
    "args": {
        "é": "日本\U0001f600 \ud800",
        "n": [1, 2.5, None, 2**70],
        "nan": float("nan"),
    },
    "_msg_id": "8d76912c1b264d539c825e3654be6866",
    "_context_user": "u",
}
TEXT = """\
{
  "method": "echo",
  "args": {
    "é": "日本\U0001f600 \\ud800",
    "n": [
      1,
      2.5,
      null,
      1180591620717411303424
    ],
    "nan": NaN
  },
  "_msg_id": "8d76912c1b264d539c825e3654be6866",
  "_context_user": "u"
}"""
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
MSGPACK = {
    "content_type": "application/x-fastmsg-msgpack",
    "content_encoding": "binary",
    "headers": {},
}
BODIES = {
    "JSON": (stock_encode(PAYLOAD), JSON),
    "JSON that reads the other": (
        stock_encode(PAYLOAD),
        {**JSON, "headers": {"x-fastmsg-reads": "msgpack"}},
    ),
    "MessagePack": (_core.pack(PAYLOAD), MSGPACK),
    "JSON, compressed": (
        zlib.compress(stock_encode(PAYLOAD)),
        {**JSON, "headers": {"compression": "application/x-gzip"}},
    ),
    "MessagePack, compressed, of py-amqp": (
        zlib.compress(_core.pack(PAYLOAD)),
        {
            "content_type": "application/x-fastmsg-msgpack",
            "application_headers": {"compression": "application/x-gzip"},
        },
    ),
    "bare JSON, as in version 1": (json.dumps(PAYLOAD).encode(), JSON),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_message_is_shown_whatever_it_is_written_in(name):
    text = oslo_fastmsg.decode(*BODIES[name])

    assert text == TEXT
    assert text.encode()  # a terminal can show it


def test_both_envelopes_of_a_request_show_the_same():
    shown = oslo_fastmsg.decode(_core.pack(REQUEST), MSGPACK)

    assert shown == oslo_fastmsg.decode(_core.encode(REQUEST), JSON)
    assert json.loads(shown) == REQUEST


def test_what_kombu_makes_an_object_of_is_shown_as_text():
    body = kombu_json.dumps({"when": datetime.datetime(2024, 1, 2)}).encode()

    assert "2024-01-02" in oslo_fastmsg.decode(body, JSON)


@pytest.mark.parametrize(
    ("body", "properties", "why"),
    [
        (_core.pack(PAYLOAD)[:-1], MSGPACK, "not MessagePack"),
        (_core.pack(PAYLOAD), JSON, "not UTF-8|not JSON"),
        (stock_encode(PAYLOAD), MSGPACK, "not MessagePack"),
        (_core.pack([1]), MSGPACK, "a list is no payload"),
        (b"{", JSON, "not JSON"),
        (b"{}", {}, "content type None is not"),
        (b"{}", {"content_type": "text/plain", "headers": None}, "'text/plain' is not"),
    ],
)
def test_what_receivers_reject_is_an_error_that_says_why(body, properties, why):
    with pytest.raises(ValueError, match=why):
        oslo_fastmsg.decode(body, properties)


def test_an_empty_body_is_an_empty_payload():
    assert oslo_fastmsg.decode(b"", MSGPACK) == "{}"
