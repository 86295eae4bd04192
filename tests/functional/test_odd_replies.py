"""What a caller makes of replies that no server of today sends."""

import oslo_messaging
import pytest
from fix_wire import Impostor, envelope


def reply(payload, result=None, *, failure=None, ending=True, **more):
    return {
        "result": result,
        "failure": failure,
        "ending": ending,
        "_msg_id": payload["_msg_id"],
        **more,
    }


@pytest.fixture
def call(peers, driver, broker, topic):
    """Call once, answered with what the test says; gives the result."""

    def call_and_answer(*answers, timeout=10):
        def answer(spy, payload):
            for make in answers:
                body = make(payload)
                if not isinstance(body, bytes):
                    body = envelope(body)
                spy.send("", payload["_reply_q"], body)

        client = peers.client(driver, topic=topic, timeout=timeout)
        with Impostor(broker, topic, answer):
            return client.call({}, "echo")

    return call_and_answer


def test_a_value_and_then_an_end_are_one_result(call):
    """Servers of long ago sent a reply in two parts."""
    assert (
        call(
            lambda request: reply(request, "value", ending=False),
            lambda request: reply(request, None),
        )
        == "value"
    )


def test_a_failure_and_then_an_end_are_a_failure(call):
    failure = '{"class": "KeyError", "module": "builtins", "message": "k", "tb": [], "args": ["k"], "kwargs": {}}'

    with pytest.raises(KeyError):
        call(
            lambda request: reply(request, failure=failure, ending=False),
            lambda request: reply(request, None),
        )


def test_the_module_exceptions_is_builtins(call):
    """What Python 2 peers call it."""
    failure = '{"class": "KeyError", "module": "exceptions", "message": "k", "tb": [], "args": ["k"]}'

    with pytest.raises(KeyError):
        call(lambda request: reply(request, failure=failure))


def test_a_failure_of_no_known_class_is_a_remote_error(call):
    failure = '{"class": "NoSuchThing", "module": "builtins", "message": "k", "tb": []}'

    with pytest.raises(oslo_messaging.RemoteError) as caught:
        call(lambda request: reply(request, failure=failure))
    assert caught.value.exc_type == "NoSuchThing"


def test_a_reply_without_a_result_is_none(call):
    def bare(request):
        return {"failure": None, "ending": True, "_msg_id": request["_msg_id"]}

    assert call(bare) is None


def test_a_reply_without_an_end_does_not_end_the_call(call):
    def endless(request):
        return {"result": 1, "failure": None, "_msg_id": request["_msg_id"]}

    with pytest.raises(oslo_messaging.MessagingTimeout):
        call(endless, timeout=0.5)


def test_a_reply_to_nobody_is_dropped(call):
    assert (
        call(
            lambda request: reply({"_msg_id": "0" * 32}, "wrong"),
            lambda request: reply({"_msg_id": None}, "wrong"),
            lambda request: reply(request, "right"),
        )
        == "right"
    )


def test_a_second_reply_is_dropped(call, topic):
    assert (
        call(
            lambda request: reply(request, "first"),
            lambda request: reply(request, "second"),
        )
        == "first"
    )


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b'"text"', b"\xff\xfe", envelope({}, version="3.0")],
    ids=["broken", "empty", "list", "string", "binary", "version"],
)
def test_a_broken_reply_is_dropped(call, body):
    assert call(lambda _: body, lambda request: reply(request, "right")) == "right"


def test_unknown_members_of_a_reply_are_ignored(call):
    assert call(lambda request: reply(request, 1, something={"new": [1]})) == 1


def test_a_reply_in_raw_utf8_and_with_odd_escapes_is_read(call):
    def answer(request):
        inner = (
            '{"result": "\\u00e9 é \\/ \\u0041", "failure": null, "ending": true,'
            f' "_msg_id": "{request["_msg_id"]}"}}'
        )
        outer = inner.replace("\\", "\\\\").replace('"', "\\u0022")
        return f'{{"oslo.version": "2.0", "oslo.message": "{outer}"}}'.encode()

    assert call(answer) == "é é / A"
