import oslo_messaging
import pytest

from oslo_fastmsg import _core, _errors

FAILURE = oslo_messaging.MessageDeliveryFailure
TIMEOUT = oslo_messaging.MessagingTimeout


def error_of(kind, text="the core's words", code=0):
    error = kind(text)
    error.code = code
    return error


@pytest.mark.parametrize(
    ("kind", "of_a_call", "of_others"),
    [
        (_core.Timeout, TIMEOUT, FAILURE),
        (_core.Disconnected, FAILURE, FAILURE),
        (_core.Refused, FAILURE, FAILURE),
        (_core.Rejected, FAILURE, FAILURE),
        (_core.Nacked, FAILURE, FAILURE),
        (_core.Closed, FAILURE, FAILURE),
        (_core.Error, FAILURE, FAILURE),
    ],
)
def test_each_error_has_its_exception(kind, of_a_call, of_others):
    for is_call, expected in ((True, of_a_call), (False, of_others)):
        made = _errors.translate(
            error_of(kind), "call of 'm'", "h:5672", is_call=is_call
        )
        assert type(made) is expected
        for part in ("call of 'm'", "the core's words", "h:5672"):
            assert part in str(made)


@pytest.mark.parametrize(
    ("error", "check"),
    [
        (error_of(_core.Refused, code=403), "password"),
        (error_of(_core.Refused, code=530), "virtual host"),
        (error_of(_core.Refused), "rabbit_login_method"),
        (error_of(_core.Disconnected), "host and port"),
        (error_of(_core.Rejected, code=406), "amqp_durable_queues"),
        (error_of(_core.Rejected, code=403), "permissions"),
        (
            error_of(
                _core.Rejected, "message size 2 is larger than configured max size 1"
            ),
            "max_message_size",
        ),
        (error_of(_core.Nacked), "length limits"),
        (error_of(_core.Timeout), "alarm"),
        (error_of(_core.Timeout, "it was refused (basic.nack)"), "length limits"),
    ],
)
def test_the_text_says_what_to_check(error, check):
    assert check in str(_errors.translate(error, "cast", "h:1"))


def test_the_broker_is_named_once():
    error = _core.Disconnected("connect to h:1: refused")
    assert str(_errors.translate(error, "cast", "h:1")).count("h:1") == 1
    assert str(_errors.translate(error, "cast", "h:1, i:2")).count("i:2") == 1


def test_a_returned_message_has_the_attributes_of_stock():
    error = _core.Returned("no queue")
    error.exchange, error.routing_key = "X", "T"
    message = {"method": "m"}
    made = _errors.translate(error, "cast", "h:1", message=message)
    assert type(made) is oslo_messaging.MessageUndeliverable
    assert made.exception is error
    assert (made.exchange, made.routing_key) == ("X", "T")
    assert made.message is message


def test_a_use_after_cleanup_is_a_delivery_failure():
    assert type(_errors.closed("cast")) is FAILURE
