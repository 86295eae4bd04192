"""The installed stock path for envelopes, and values to send through it.

What the codec has to match is asked of oslo.messaging, oslo.serialization and
kombu at run time: releases differ in what they make of foreign types.
"""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from kombu import serialization
from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

__all__ = [
    "KEYS",
    "REQUEST",
    "TEXTS",
    "VALUES",
    "Refused",
    "foreign_writer",
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

_CONTEXT: dict[str, Any] = {
    "user_id": "1f9d1a6d0c9a4a3c8f4b7f8d6e5c4b3a",
    "project_id": "9a8b7c6d5e4f40312233445566778899",
    "is_admin": True,
    "read_deleted": "no",
    "roles": ["member", "reader"],
    "remote_address": "192.0.2.17",
    "timestamp": "2026-05-11T09:15:41.993211",
    "request_id": "req-3e1c4e0e-55f5-4a38-8ad2-0d3d5a5cf8e6",
    "global_request_id": None,
    "auth_token": "gAAAAABk0123456789abcdef",
    "user_name": "alice",
    "project_name": "shop",
    "service_catalog": [],
    "instance_lock_checked": False,
    "user_domain": "default",
    "project_domain": "default",
    "domain": None,
    "system_scope": None,
    "is_admin_project": True,
    "show_deleted": False,
    "resource_uuid": None,
    "user_identity": "1f9d 9a8b - default default",
    "quota_class": None,
}
_INSTANCE: dict[str, Any] = {
    "nova_object.name": "Instance",
    "nova_object.namespace": "nova",
    "nova_object.version": "2.7",
    "nova_object.data": {
        "id": 4711,
        "uuid": "5b2b3c1c-3c25-4a5e-8a0e-4d8f5b3e2f10",
        "user_id": "1f9d1a6d0c9a4a3c8f4b7f8d6e5c4b3a",
        "project_id": "9a8b7c6d5e4f40312233445566778899",
        "image_ref": "c1d2e3f4-aaaa-4bbb-8ccc-1234567890ab",
        "hostname": "web-17",
        "display_name": "web-17",
        "memory_mb": 4096,
        "vcpus": 2,
        "root_gb": 20,
        "ephemeral_gb": 0,
        "host": None,
        "node": None,
        "launched_at": None,
        "created_at": "2026-05-11T09:15:42Z",
        "locked": False,
        "vm_state": "building",
        "task_state": "scheduling",
        "power_state": 0,
        "availability_zone": "az-1",
        "metadata": {"role": "web", "tier": "1"},
        "auto_disk_config": True,
        "progress": 0.5,
    },
    "nova_object.changes": ["vm_state", "task_state"],
}
# A call as services send it: 23 fields of context and one versioned object,
# 2.2 kB on the wire.
REQUEST: dict[str, Any] = {
    "method": "build_and_run_instance",
    "args": {"instance": _INSTANCE},
    "version": "6.0",
    "_msg_id": "8d76912c1b264d539c825e3654be6866",
    "_reply_q": "reply_cb67037c75054449a24700b6a16fa875",
    "_timeout": None,
    "_unique_id": "397de6e91f3a462ea1dbbcd175c58345",
    **{f"_context_{key}": value for key, value in _CONTEXT.items()},
}
