"""From the core's exceptions to those that oslo.messaging documents.

===================  ======================  =====================
what the core says   call                    cast, fanout, notify,
                                             listen, heartbeat
===================  ======================  =====================
Timeout              MessagingTimeout        MessageDeliveryFailure
Disconnected         MessageDeliveryFailure  MessageDeliveryFailure
Refused              MessageDeliveryFailure  MessageDeliveryFailure
Rejected, Nacked     MessageDeliveryFailure  MessageDeliveryFailure
Returned             MessageUndeliverable    MessageUndeliverable
Closed               MessageDeliveryFailure  MessageDeliveryFailure
===================  ======================  =====================

A text says what was attempted, what the core and the broker said, where the
brokers are, and what to check. It never has a password or message content.
"""

from typing import Any

import oslo_messaging

from oslo_fastmsg import _core

__all__ = ["closed", "translate"]

_CHECK_LOGIN = "check user and password in transport_url and option rabbit_login_method"
_CHECK_VHOST = (
    "check that the virtual host of transport_url exists and that the user has "
    "permissions there"
)
_CHECK_REACH = (
    "check host and port in transport_url and that RabbitMQ answers there, "
    "with or without TLS as option ssl says"
)
_CHECK_FLAGS = (
    "another process declared the same name with other options: compare "
    "amqp_durable_queues, amqp_auto_delete, rabbit_quorum_queue and the like"
)
_CHECK_AUTO_DELETE = (
    "a quorum queue cannot be auto-delete: set amqp_auto_delete or "
    "rabbit_quorum_queue to false"
)
_CHECK_SIZE = "send less at a time, or raise max_message_size in the broker"
_CHECK_LIMITS = (
    "check the length limits of the queues behind that name, and that quorum queues "
    "have a majority"
)
_CHECK_ALARM = (
    "check the broker for a memory or disk alarm, and option send_timeout in "
    "[oslo_messaging_fastmsg]"
)

# By what the text has in it, whatever its class and code.
_CHECKS_OF_TEXT: dict[str, str] = {
    "larger than configured max": _CHECK_SIZE,
    "invalid property 'auto-delete'": _CHECK_AUTO_DELETE,
    "basic.nack": _CHECK_LIMITS,
    "queue limit in vhost": (
        "raise or clear max-queues of the virtual host (rabbitmqctl set_vhost_limits), "
        "or look for queues that nobody uses"
    ),
    "connection limit": (
        "raise or clear max-connections of the virtual host or user (rabbitmqctl "
        "set_vhost_limits, set_user_limits); each process has two connections"
    ),
    "(channel_max)": (
        "raise channel_max in the broker: each listener of a process has a channel"
    ),
}
_CHECKS: dict[tuple[type, int], str] = {
    (_core.Refused, 403): _CHECK_LOGIN,
    (_core.Refused, 530): _CHECK_VHOST,
    (_core.Rejected, 403): "check the user's permissions on that name",
    (_core.Rejected, 404): "check that nothing deletes that name",
    (_core.Rejected, 406): _CHECK_FLAGS,
}
_CHECKS_OF_CLASS: dict[type, str] = {
    _core.Refused: _CHECK_LOGIN,
    _core.Disconnected: _CHECK_REACH,
    _core.Nacked: _CHECK_LIMITS,
    _core.Timeout: _CHECK_ALARM,
}


def translate(
    error: _core.Error,
    attempt: str,
    brokers: str,
    *,
    is_call: bool = False,
    message: dict[str, Any] | None = None,
) -> Exception:
    """Give the exception to raise ``from error``.

    :param attempt: what was tried, as the start of a sentence:
        ``call of 'echo' on topic 'T'``.
    :param brokers: ``host:port, ...`` without credentials.
    :param is_call: somebody waits for a reply, so that a deadline is his.
    :param message: the payload; handed on in the ``message`` of a
        ``MessageUndeliverable``, as the stock driver hands on the returned
        message.
    """
    if isinstance(error, _core.Returned):
        undeliverable: Exception = oslo_messaging.MessageUndeliverable(
            error, error.exchange, error.routing_key, message
        )
        return undeliverable
    if isinstance(error, _core.Timeout) and is_call:
        timeout: Exception = oslo_messaging.MessagingTimeout(
            _text(error, attempt, brokers, None)
        )
        return timeout
    return _failure(_text(error, attempt, brokers, _what_to_check(error)))


def closed(attempt: str) -> Exception:
    """Give the exception for a use after ``cleanup()``."""
    return _failure(f"{attempt} failed: the transport was cleaned up")


def _failure(text: str) -> Exception:
    failure: Exception = oslo_messaging.MessageDeliveryFailure(text)
    return failure


def _what_to_check(error: _core.Error) -> str | None:
    for mark, text in _CHECKS_OF_TEXT.items():
        if mark in str(error):
            return text
    check = _CHECKS.get((type(error), getattr(error, "code", 0)))
    return check or _CHECKS_OF_CLASS.get(type(error))


def _text(error: Exception, attempt: str, brokers: str, check: str | None) -> str:
    text = f"{attempt} failed: {error}"
    if brokers not in text:
        text += f" (broker {brokers})"
    return text if check is None else f"{text}; {check}"
