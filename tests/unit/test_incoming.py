import json
import logging
import sys

import oslo_messaging
import pytest
from fix_core import Bus, Delivery

from oslo_fastmsg import _compat, _core, _envelope, _incoming
from oslo_fastmsg._options import Settings


class Teapot(Exception):
    pass


class Unwritable:
    def __repr__(self):
        return "<a thing>"


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def request(**more):
    return {
        "method": "m",
        "args": {"a": 1},
        "_msg_id": "id",
        "_reply_q": "reply_1",
        "_timeout": None,
        "_context_user": "u",
        **more,
    }


@pytest.fixture
def bus():
    return Bus()


def incoming(bus, payload=None, **settings):
    packer = _envelope.Packer(None, 0)
    replier = _incoming.Replier(bus, Settings(**settings), packer, "h:5672")
    payload = request() if payload is None else payload
    return _incoming.RpcIncoming(replier, Delivery(), payload)


def exc_info(error):
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_underscore_members_are_the_drivers_own():
    payload = request(_timeout=7)
    ctxt, msg_id, reply_q, client_timeout = _incoming.unpack(payload)
    assert payload == {"method": "m", "args": {"a": 1}}
    assert ctxt == {"user": "u", "client_timeout": 7}
    assert (msg_id, reply_q, client_timeout) == ("id", "reply_1", 7)


def test_context_keys_that_stock_overwrites_are_overwritten():
    payload = {
        "_context_a": 1,
        "_context_client_timeout": 9,
        "_context_msg_id": 9,
        "_context_reply_q": 9,
        "_context_1": 2,
        "_context_user": None,
        "_context_self": 3,
        "_other": 4,
    }
    ctxt, *rest = _incoming.unpack(payload)
    assert list(ctxt.items()) == [
        ("a", 1),
        ("client_timeout", None),
        ("1", 2),
        ("user", None),
        ("self", 3),
    ]
    assert rest == [None, None, None]
    assert payload == {"_other": 4}


def test_reply_has_the_five_members_in_order(bus):
    incoming(bus).reply({"a": 1})
    (sent,) = bus.replied
    assert sent.routing_key == "reply_1"
    assert sent.mandatory is True
    assert sent.patience == 60
    assert list(sent.payload) == [
        "result",
        "failure",
        "ending",
        "_msg_id",
        "_unique_id",
    ]
    assert len(sent.payload.pop("_unique_id")) == 32
    assert sent.payload == {
        "result": {"a": 1},
        "failure": None,
        "ending": True,
        "_msg_id": "id",
    }


def test_options_say_how_replies_are_sent(bus):
    made = incoming(
        bus, direct_mandatory_flag=False, kombu_missing_consumer_retry_timeout=3
    )
    made.reply(1)
    assert bus.replied[0].mandatory is False
    assert bus.replied[0].patience == 3


def rebuild(text, allowed=()):
    return _compat.deserialize_remote_exception(text, list(allowed))


def test_failure_is_serialised_as_by_stock(bus):
    info = exc_info(ValueError("bad", 3))
    incoming(bus).reply(failure=info)
    (sent,) = bus.replied
    assert sent.payload["result"] is None
    assert sent.payload["failure"] == _compat.serialize_remote_exception(info)
    assert isinstance(rebuild(sent.payload["failure"]), ValueError)


# Old releases of oslo.serialization warn as well.
@pytest.mark.filterwarnings("ignore:Cannot convert:UserWarning")
@pytest.mark.parametrize("result", [Unwritable(), {(1, 2): 3}, b"\xff", object()])
def test_a_result_that_cannot_be_written_becomes_a_failure(bus, result, caplog):
    incoming(bus).reply(result)
    (sent,) = bus.replied
    failure = json.loads(sent.payload["failure"])
    assert failure["module"] == "builtins"
    assert failure["class"] in ("ValueError", "TypeError", "UnicodeDecodeError")
    assert sent.payload["ending"] is True
    assert "cannot be sent" in caplog.text
    assert "<a thing>" not in caplog.text


def test_exception_arguments_that_cannot_be_written_go_as_text(bus):
    info = exc_info(Teapot("kind", Unwritable(), 7))
    incoming(bus).reply(failure=info)
    text = bus.replied[0].payload["failure"]
    failure = json.loads(text)
    assert failure["class"] == "Teapot"
    assert failure["module"] == __name__
    assert failure["args"] == ["kind", "<a thing>", 7]
    assert failure["message"] == str(info[1])
    assert any("test_incoming.py" in line for line in failure["tb"])
    rebuilt = rebuild(text, [__name__])
    assert isinstance(rebuilt, Teapot)
    assert rebuilt.args == ("kind", "<a thing>", 7)


def test_exception_that_cannot_describe_itself_is_sent_too(bus):
    incoming(bus).reply(failure=exc_info(Unspeakable()))
    failure = json.loads(bus.replied[0].payload["failure"])
    assert failure["class"] == "Unspeakable"


def test_keyword_arguments_of_exceptions_go_as_text_if_need_be(bus):
    error = Teapot()
    error.kwargs = {"a": 1, "b": Unwritable()}
    incoming(bus).reply(failure=exc_info(error))
    failure = json.loads(bus.replied[0].payload["failure"])
    assert failure["kwargs"] == {"a": 1, "b": "<a thing>"}


@pytest.mark.parametrize(
    "missing",
    [
        {"_msg_id": None},
        {"_msg_id": ""},
        {"_reply_q": None},
        {"_reply_q": ""},
        {"_reply_q": 7},
        {"_reply_q": ["reply_1"]},
        {"_reply_q": "é" * 128},
    ],
)
def test_nothing_is_sent_where_nobody_can_be_reached(bus, missing):
    made = incoming(bus, request(**missing))
    made.reply(1)
    made.reply(failure=exc_info(ValueError()))
    made.heartbeat()
    assert bus.replied == []
    assert bus.sent == []


def test_a_longest_queue_name_is_served(bus):
    incoming(bus, request(_reply_q="é" * 127 + "x")).reply(1)
    assert len(bus.replied) == 1


def test_reply_does_not_raise_what_the_core_says(bus, caplog):
    bus.fault = _core.Closed("closed")
    incoming(bus).reply(1)
    assert "closed" in caplog.text


def test_heartbeat_is_a_null_reply_that_does_not_end(bus):
    incoming(bus, send_timeout=4).heartbeat()
    (sent,) = bus.sent
    assert sent.topology is None
    assert sent.exchange == ""
    assert sent.routing_key == "reply_1"
    assert sent.lane == _core.RPC
    assert sent.mandatory is True
    assert sent.timeout == 4
    assert sent.retry == 0
    assert sent.payload["result"] is None
    assert sent.payload["failure"] is None
    assert sent.payload["ending"] is False
    assert sent.payload["_msg_id"] == "id"


@pytest.mark.parametrize("kind", [_core.Returned, _core.Disconnected, _core.Timeout])
def test_a_failed_heartbeat_is_a_delivery_failure(bus, kind):
    bus.fault = kind("gone")
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        incoming(bus).heartbeat()


def test_requests_are_acknowledged_before_they_run(bus):
    made = incoming(bus)
    assert bus.acks_sent == 0
    made.acknowledge()
    assert bus.acks_sent == 1
    made.requeue()
    assert {made} == {made}  # batches put them into sets


def test_notifications_are_settled_at_the_broker():
    delivery = Delivery()
    made = _incoming.NotificationIncoming(delivery, {"event_type": "e"})
    assert made.message == {"event_type": "e"}
    assert made.ctxt == {"client_timeout": None}
    made.acknowledge()
    made.requeue()
    assert delivery.settled == ["ack", ("reject", True)]
    assert {made} == {made}


def test_settling_on_a_lost_connection_is_logged_and_not_raised(caplog):
    delivery = Delivery(fault=_core.Closed("lost"))
    made = _incoming.NotificationIncoming(delivery, {})
    with caplog.at_level(logging.WARNING):
        made.acknowledge()
        made.requeue()
    assert [r.getMessage() for r in caplog.records] == [
        "Failed to acknowledge a received message: lost",
        "Failed to requeue a received message: lost",
    ]
