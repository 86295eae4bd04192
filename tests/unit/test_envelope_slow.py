import bz2
import json
import lzma
import zlib

import kombu
import kombu.message
import pytest
from oslo_messaging._drivers import impl_rabbit

from oslo_fastmsg import _core, _envelope

NEW_KOMBU = tuple(map(int, kombu.__version__.split(".")[:2])) >= (5, 3)
PAYLOAD = {"method": "m", "args": {"é": "日本 \U0001f600"}}


def envelope(version="2.0", message=PAYLOAD, **more):
    if not isinstance(message, str):
        message = json.dumps(message)
    return json.dumps(
        {"oslo.version": version, "oslo.message": message, **more}
    ).encode()


def read(
    body, content_type="application/json", content_encoding="utf-8", compression=None
):
    headers = {} if compression is None else {"compression": compression}
    return _envelope.read(body, content_type, content_encoding, headers)


def read_like_stock(body, content_type, content_encoding, compression):
    """What the stock driver's own classes make of a delivery."""

    headers = {} if compression is None else {"compression": compression}
    # py-amqp decodes by the property before kombu sees the body.
    if content_encoding is not None:
        try:
            body = body.decode(content_encoding)
        except Exception:
            pass
    message = kombu.message.Message(
        body=body,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=headers,
    )
    return dict(impl_rabbit.RabbitMessage(message))


RAW = json.dumps(PAYLOAD, ensure_ascii=False)

ACCEPTED = {
    "envelope": (envelope(), PAYLOAD, {}),
    "envelope with more members": (envelope(more=1), PAYLOAD, {}),
    "no envelope": (json.dumps(PAYLOAD).encode(), PAYLOAD, {}),
    "version alone": (b'{"oslo.version": "9"}', {"oslo.version": "9"}, {}),
    "message alone": (b'{"oslo.message": 7}', {"oslo.message": 7}, {}),
    "pairs": (b'[["method", "m"], ["a", 1]]', {"method": "m", "a": 1}, {}),
    "pairs within": (envelope(message='[["method", "m"]]'), {"method": "m"}, {}),
    "no pairs": (b"[]", {}, {}),
    "empty": (b"", {}, {}),
    "empty text/plain": (b"", {}, {"content_type": "text/plain"}),
    "no encoding": (envelope(), PAYLOAD, {"content_encoding": None}),
    "unknown encoding": (envelope(), PAYLOAD, {"content_encoding": "no-such"}),
    "encoding of bytes": (envelope(), PAYLOAD, {"content_encoding": "zlib"}),
    "utf-16": (
        envelope().decode().encode("utf-16"),
        PAYLOAD,
        {"content_encoding": "utf-16"},
    ),
    "latin-1": (
        '{"a": "é"}'.encode("latin-1"),
        {"a": "é"},
        {"content_encoding": "iso-8859-1"},
    ),
    "raw UTF-8": (RAW.encode(), PAYLOAD, {}),
    "raw UTF-8 in both layers": (
        json.dumps(
            {"oslo.version": "2.0", "oslo.message": RAW}, ensure_ascii=False
        ).encode(),
        PAYLOAD,
        {},
    ),
    "unknown compression": (envelope(), PAYLOAD, {"compression": "no-such"}),
    "compression that is none": (envelope(), PAYLOAD, {"compression": "gzip"}),
    "NaN": (b'{"a": Infinity}', {"a": float("inf")}, {}),
    "duplicate keys": (b'{"a": 1, "a": 2}', {"a": 2}, {}),
    "revision": (envelope(version="2.0.0"), PAYLOAD, {}),
}
for name, squeeze in {
    "application/x-gzip": zlib.compress,
    "gzip": zlib.compress,
    "zlib": zlib.compress,
    "application/x-bz2": bz2.compress,
    "bzip2": bz2.compress,
    "application/x-lzma": lzma.compress,
    "xz": lzma.compress,
}.items():
    ACCEPTED[name] = (squeeze(envelope()), PAYLOAD, {"compression": name})

REJECTED = {
    "version 2.1": (envelope(version="2.1"), "version '2.1'", {}),
    "version 1.0": (envelope(version="1.0"), "version '1.0'", {}),
    "version 3.0": (envelope(version="3.0"), "version '3.0'", {}),
    "version 2": (envelope(version="2"), "version '2'", {}),
    "version 2.0 as a number": (envelope(version=2.0), r"version 2\.0", {}),
    "version null": (envelope(version=None), "version None", {}),
    "message an object": (
        b'{"oslo.version": "2.0", "oslo.message": {}}',
        "not a string",
        {},
    ),
    "message not JSON": (envelope(message="{"), "oslo.message is not JSON", {}),
    "message a number": (envelope(message="1"), "int is no payload", {}),
    "list": (b"[1, 2]", "list is no payload", {}),
    "list of triples": (b"[[1, 2, 3]]", "list is no payload", {}),
    "string": (b'"xyz"', "str is no payload", {}),
    "null": (b"null", "NoneType is no payload", {}),
    "number": (b"0", "int is no payload", {}),
    "not JSON": (b"{", "not JSON", {}),
    "trailing comma": (b'{"a": 1,}', "not JSON", {}),
    "BOM": (b"\xef\xbb\xbf{}", "not JSON", {}),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8", {}),
    "RFC 1952 gzip": (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00",
        "not UTF-8",
        {"compression": "gzip"},
    ),
    "deep": (b"[" * 200_000, "deep", {}),
    "deep within": (envelope(message="[" * 200_000), "deep", {}),
}
for content_type in (
    None,
    "text/plain",
    "application/octet-stream",
    "application/json; charset=utf-8",
    "application/x-python-serialize",
    "application/x-yaml",
    "application/x-msgpack",
    "application/data",
):
    REJECTED[f"type {content_type}"] = (
        envelope(),
        "content type",
        {"content_type": content_type},
    )


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts_what_stock_accepts(name):
    body, expected, properties = ACCEPTED[name]
    assert read(body, **properties) == expected
    stock = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "compression": None,
        **properties,
    }
    assert read_like_stock(body, **stock) == expected


@pytest.mark.parametrize("name", REJECTED)
def test_rejects_what_stock_rejects(name):
    body, reason, properties = REJECTED[name]
    with pytest.raises(_envelope.Rejected, match=reason):
        read(body, **properties)
    stock = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "compression": None,
        **properties,
    }
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
        read_like_stock(body, **stock)
    assert not isinstance(caught.value, NameError | AssertionError)


def test_bz2_is_understood_though_stock_does_not():
    assert read(bz2.compress(envelope()), compression="bz2") == PAYLOAD


def test_pairs_with_keys_that_are_no_strings_are_left_out():
    assert read(b'[[1, 2], ["a", 3]]') == {"a": 3}


def test_the_outer_layer_has_the_types_of_the_installed_kombu():
    tagged = {"__type__": "bytes", "__value__": "abc"}
    body = json.dumps({"payload": tagged}).encode()
    expected = b"abc" if NEW_KOMBU else tagged
    assert read(body) == {"payload": expected}
    # The inner layer is not kombu's.
    assert read(envelope(message={"payload": tagged})) == {"payload": tagged}


@pytest.mark.parametrize("name", REJECTED)
def test_a_reason_has_nothing_of_the_content(name):
    _, _, properties = REJECTED[name]
    for body in (
        b'{"password": "hunter2" ',
        b'["hunter2", "hunter2"]',
        b"hunter2 \xff",
        envelope(message="hunter2"),
        envelope(message={"a": "hunter2"}, version="7.7"),
        b'{"__type__": "hunter2", "__value__": "hunter2"} hunter2',
    ):
        with pytest.raises(_envelope.Rejected) as caught:
            read(body, **properties)
        assert "hunter2" not in str(caught.value)
        error = caught.value
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__


def test_v1_notifications_are_written_by_kombu():
    message = {"payload": {"é": [1, None]}, "_unique_id": "u"}
    assert _envelope.dumps_v1(message) == json.dumps(message).encode()
    with pytest.raises(Exception):  # noqa: B017, PT011 - kombu's choice
        _envelope.dumps_v1({"payload": {1, 2}})


# --- what is packed, and how ---

MESSAGE = {"a": "x" * 100}
HEADERS_OF_GZIP = "application/x-gzip"


@pytest.mark.parametrize(
    ("option", "request_is", "notification_is"),
    [
        ("json", _core.JSON, _core.JSON),
        ("auto", _core.READS_MSGPACK, _core.JSON),
        ("msgpack", _core.MSGPACK, _core.MSGPACK),
    ],
)
def test_each_kind_of_message_has_its_envelope(option, request_is, notification_is):
    packer = _envelope.Packer(None, 0, option)

    def packed(envelope):
        return (MESSAGE, "", envelope) if envelope else MESSAGE

    assert packer.pack(MESSAGE) == packed(request_is)
    assert packer.pack_notification(MESSAGE) == packed(notification_is)
    assert packer.pack_notification(b"{}") == b"{}"
    assert packer.pack_reply(MESSAGE, False) == MESSAGE
    assert packer.pack_reply(MESSAGE, True) == packed(_core.MSGPACK)


def test_compression_is_of_what_the_envelope_is():
    for option, write in (("json", _core.encode), ("msgpack", _core.pack)):
        packer = _envelope.Packer("gzip", 90, option)
        envelope = _core.MSGPACK if option == "msgpack" else _core.JSON

        body, compression, of = packer.pack(MESSAGE)
        assert (compression, of) == (HEADERS_OF_GZIP, envelope)
        assert zlib.decompress(body) == write(MESSAGE)
        small = packer.pack({"a": 1})
        if option == "json":
            assert small == write({"a": 1})
        else:
            assert small == (write({"a": 1}), "", envelope)
        assert packer.pack_notification(b"x" * 99)[1:] == (HEADERS_OF_GZIP, _core.JSON)


@pytest.mark.parametrize("encoding", [None, "binary", "utf-8", "utf-16"])
def test_the_binary_envelope_is_read_whatever_encoding_is_named(encoding):
    body = _core.pack({"é": [1, 2**70]})
    packed = {"compression": "application/x-gzip"}

    for given, headers in ((body, {}), (zlib.compress(body), packed), (body, packed)):
        found = _envelope.read(given, _core.MSGPACK_CONTENT_TYPE, encoding, headers)
        assert found == {"é": [1, 2**70]}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{}", "the body is not MessagePack"),
        (b"\xc1", "the body is not MessagePack"),
        (b"\x90", "a list is no payload"),
        (b"\xc0", "a NoneType is no payload"),
    ],
)
def test_what_is_no_binary_envelope_is_rejected(body, why):
    with pytest.raises(_envelope.Rejected) as caught:
        _envelope.read(body, _core.MSGPACK_CONTENT_TYPE, "binary", {})
    assert str(caught.value) == why
