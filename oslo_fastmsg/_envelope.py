"""Message bodies that the core's fast path leaves alone.

Written: those that are compressed, or notifications of version 1.

Read: the core reads what every stock and fastmsg sender writes. Whatever else
arrives comes here and is treated as the stock driver treats it, by the same
code of kombu's and oslo.messaging's, so that odd senders work as before and
hostile ones get no further than before. Nothing of a message is ever put
into a text: it may hold secrets.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from kombu import compression as _compression
from kombu.utils import json as _kombu_json

from oslo_fastmsg import _compat, _core

__all__ = [
    "Packer",
    "Rejected",
    "check_compression",
    "dumps_v1",
    "read",
    "read_delivery",
    "show",
]

# kombu has type information, but none here.
_loads: Callable[[str | bytes], Any] = _kombu_json.loads
_dumps: Callable[[Any], Any] = _kombu_json.dumps
_decompress: Callable[[bytes, str], Any] = _compression.decompress
_compress: Callable[[bytes, str], tuple[bytes, str]] = _compression.compress
_get_encoder: Callable[[str], object] = _compression.get_encoder
_encoders: Callable[[], list[str]] = _compression.encoders

_CONTENT_TYPE = "application/json"
_MAX_SHOWN = 60


Payload = dict[str, Any]
Body = Payload | bytes | tuple[Payload | bytes, str, int]

# What requests say about envelopes, by option.
_OF_REQUESTS = {
    "json": _core.JSON,
    "auto": _core.READS_MSGPACK,
    "msgpack": _core.MSGPACK,
}


class Packer:
    """Makes what the core sends of a payload: envelope and compression by option.

    All methods raise ValueError and TypeError for what has no JSON form.
    """

    def __init__(
        self, compression: str | None, threshold: int, envelope: str = "json"
    ) -> None:
        """Take the three options.

        :param compression: a name that :func:`check_compression` takes; None
            or empty for none.
        :param threshold: bytes; a body below it stays as it is.
        :param envelope: ``json``, ``auto`` or ``msgpack``.
        """
        self._compression = compression and _known_by_kombu(compression)
        self._threshold = threshold
        self._of_requests = _OF_REQUESTS[envelope]

    def pack(self, payload: Payload) -> Body:
        """Pack a request: a call, cast or fanout."""
        return self._pack(payload, self._of_requests)

    def pack_notification(self, payload: Payload | bytes) -> Body:
        """Pack a notification; one of version 1 is a body already, and JSON."""
        if isinstance(payload, bytes):
            return self._pack(payload, _core.JSON)
        return self._pack(payload, self._of_requests & _core.MSGPACK)

    def pack_reply(self, payload: Payload, reads_msgpack: bool) -> Body:
        """Pack a reply.

        :param reads_msgpack: what its request has said of the caller.
        """
        return self._pack(payload, _core.MSGPACK if reads_msgpack else _core.JSON)

    def _pack(self, payload: Payload | bytes, envelope: int) -> Body:
        """Leave it to the core to write the body, unless it may be compressed."""
        if not self._compression:
            return (payload, "", envelope) if envelope else payload
        body = payload
        if not isinstance(body, bytes):
            write = _core.pack if envelope & _core.MSGPACK else _core.encode
            body = write(body)
        if len(body) < self._threshold:
            return (body, "", envelope) if envelope else body
        return *_compress(body, self._compression), envelope


def check_compression(name: str) -> None:
    """Check that messages can be compressed that way.

    :raises RuntimeError: kombu does not know the name, or lacks the module.
    """
    if _has_encoder(name):
        return
    # kombu lists MIME types, and has other names for some of them.
    names = sorted(each for each in {*_encoders(), *_NAMES} if _has_encoder(each))
    raise RuntimeError(
        f"Configuration Error: kombu_compression {name!a} is unknown here; "
        f"there are {', '.join(names)}"
    )


# Names for operators, of everything that kombu may know.
_NAMES = ("gzip", "zlib", "bzip2", "bz2", "lzma", "xz", "brotli", "zstd")


def _has_encoder(name: str) -> bool:
    try:
        _get_encoder(_known_by_kombu(name))
    except KeyError:
        return False
    return True


def _known_by_kombu(name: str) -> str:
    # The option's help text names bz2, kombu does not know it.
    return "bzip2" if name == "bz2" else name


class Rejected(Exception):
    """Not a message for oslo.messaging. The text says why, without content."""


def read(
    body: bytes,
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any],
) -> dict[str, Any]:
    """Read a body as a stock receiver does.

    :param body: as delivered.
    :param content_type: the AMQP property, None if it is absent.
    :param content_encoding: the AMQP property, None if it is absent.
    :param headers: the AMQP property; only ``compression`` is looked at.
    :returns: the payload, with the underscore keys in it.
    :raises Rejected: the message is to be rejected without requeueing.
    """
    plain = _decompressed(body, headers)
    if content_type == _core.MSGPACK_CONTENT_TYPE:
        return _unpacked(plain)
    text = _decoded(plain, content_encoding)
    if not text:
        return {}
    if content_type != _CONTENT_TYPE:
        # Only the type is shown, which names a format.
        raise Rejected(f"content type {_shown(content_type)} is not {_CONTENT_TYPE}")
    try:
        outer = _loads(text)
    except UnicodeDecodeError:
        raise Rejected("the body is not UTF-8") from None
    except RecursionError:
        raise Rejected("the body is nested too deeply") from None
    except Exception as error:
        raise Rejected(f"the body is not JSON ({_name(error)})") from None
    try:
        payload = _compat.deserialize_msg(outer)
    except RecursionError:
        raise Rejected("the payload is nested too deeply") from None
    except Exception as error:
        raise Rejected(_why_no_payload(outer, error)) from None
    try:
        # Takes a list of pairs too. Old senders' bare payloads come here as
        # well, and are objects.
        payload = dict(payload)
    except (TypeError, ValueError):
        raise Rejected(f"a {_name(payload)} is no payload") from None
    # Pairs may have other keys, which nothing looks at.
    return {key: value for key, value in payload.items() if isinstance(key, str)}


def read_delivery(delivery: _core.Delivery) -> dict[str, Any]:
    """Read a delivery that the core has left alone: :func:`read` of its parts.

    :raises BadMessage: its headers cannot be decoded.
    """
    return read(
        delivery.body,
        delivery.content_type,
        delivery.content_encoding,
        delivery.headers,
    )


def show(body: bytes, properties: Mapping[str, Any]) -> str:
    """Write a captured message's payload for people: see ``oslo_fastmsg.decode()``."""
    headers = properties.get("headers") or properties.get("application_headers") or {}
    try:
        payload = read(
            body,
            properties.get("content_type"),
            properties.get("content_encoding"),
            headers,
        )
    except Rejected as error:
        raise ValueError(str(error)) from None
    # kombu makes objects of some values in version 1; its own texts do for them.
    text = json.dumps(payload, indent=2, ensure_ascii=False, default=str)
    # Lone surrogates have no UTF-8, so a terminal could not show them.
    return text.encode(errors="backslashreplace").decode()


def dumps_v1(message: dict[str, Any]) -> bytes:
    """Write a notification of version 1: kombu's JSON, without an envelope.

    :raises Exception: whatever kombu or the objects in `message` raise.
    """
    text: str = _dumps(message)
    return text.encode()


def _unpacked(body: bytes) -> dict[str, Any]:
    """Read the binary envelope, of which nothing else than ours is known."""
    if not body:
        return {}
    try:
        payload = _core.unpack(body)
    except _core.BadMessage:
        raise Rejected("the body is not MessagePack") from None
    if not isinstance(payload, dict):
        raise Rejected(f"a {_name(payload)} is no payload")
    return payload


def _decompressed(body: bytes, headers: Mapping[str, Any]) -> bytes:
    """Undo the compression that the headers name.

    An unknown name, or a body that is not compressed that way, is taken as
    it is, as stock does: it will hardly be JSON then.
    """
    name = headers.get("compression")
    if not isinstance(name, str) or not name:
        return body
    try:
        unpacked = _decompress(body, _known_by_kombu(name))
    except Exception:
        return body
    return bytes(unpacked)


def _decoded(body: bytes, content_encoding: str | None) -> str | bytes:
    """Decode text; bytes that the named codec refuses stay, to be tried as UTF-8."""
    if content_encoding is None:
        return body
    try:
        return body.decode(content_encoding)
    except (LookupError, ValueError):
        return body


def _why_no_payload(outer: Any, error: Exception) -> str:
    if isinstance(outer.get("oslo.message"), str) and isinstance(
        error, ValueError | TypeError
    ):
        version = outer.get("oslo.version")
        if isinstance(version, str) and version.startswith("2.0"):
            return f"oslo.message is not JSON ({_name(error)})"
    elif not isinstance(outer.get("oslo.message"), str):
        return "oslo.message is not a string"
    return f"envelope version {_shown(outer.get('oslo.version'))} is not 2.0"


def _name(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    """Show a short thing of the sender's, harmless in a log."""
    return ascii(value)[:_MAX_SHOWN]
