"""Messages on their way from the core to oslo.messaging's servers."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import oslo_messaging
from oslo_serialization import jsonutils

from oslo_fastmsg import _compat, _core, _envelope, _errors, _waiting
from oslo_fastmsg._options import Settings

__all__ = [
    "NotificationIncoming",
    "Replier",
    "RpcIncoming",
    "make_noticing",
    "unpack",
]

LOG = logging.getLogger(__name__)

_CONTEXT = "_context_"
_MAX_QUEUE_NAME = 255  # bytes, AMQP 0-9-1 section 4.2.5.3

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def unpack(payload: dict[str, Any]) -> tuple[dict[str, Any], Any, Any, Any]:
    """Take the driver's own members out of a payload, in place.

    :param payload: of a request or notification, decoded for this one
        delivery; so neither it nor the context is shared with another server
        of the process, and neither needs a copy.
    :returns: the context as endpoints get it, with the extra key
        ``client_timeout``; then ``_msg_id``, ``_reply_q`` and ``_timeout``,
        each None if it is missing.
    """
    msg_id = payload.pop("_msg_id", None)
    reply_q = payload.pop("_reply_q", None)
    client_timeout = payload.pop("_timeout", None)
    ctxt = {
        key[len(_CONTEXT) :]: payload.pop(key)
        for key in [key for key in payload if key.startswith(_CONTEXT)]
    }
    # A stock receiver keeps its own values under these names of a context,
    # and then takes two of them away.
    ctxt.pop("msg_id", None)
    ctxt.pop("reply_q", None)
    ctxt["client_timeout"] = client_timeout
    return ctxt, msg_id, reply_q, client_timeout


class Replier:
    """Sends what the requests of one listener are answered with."""

    def __init__(
        self,
        bus: _core.Bus,
        settings: Settings,
        packer: _envelope.Packer,
        brokers: str,
    ) -> None:
        self._bus = bus
        self._packer = packer
        self._is_mandatory = settings.direct_mandatory_flag
        self._patience_s = float(settings.kombu_missing_consumer_retry_timeout)
        self._send_timeout_s = float(settings.send_timeout)
        self._brokers = brokers

    def send_acks(self) -> None:
        """See to it that what was handed over is acknowledged before it runs."""
        self._bus.send_acks()

    def reply(self, queue: str, payload: dict[str, Any], reads_msgpack: bool) -> None:
        """Hand a reply over; the core sees to its confirm, or tries again.

        :param reads_msgpack: the caller does.
        :raises ValueError, TypeError: the result cannot be written as JSON;
            nothing is sent.
        :raises Error: the core cannot take it any more.
        """
        _waiting.reply(
            self._bus,
            queue,
            self._packer.pack_reply(payload, reads_msgpack),
            mandatory=self._is_mandatory,
            patience=self._patience_s,
            timeout=self._send_timeout_s,
        )

    def heartbeat(
        self, queue: str, payload: dict[str, Any], reads_msgpack: bool
    ) -> None:
        """Send a sign of life, once, and wait for its confirm.

        :raises MessageDeliveryFailure: it did not reach the caller's queue.
        """
        try:
            _waiting.publish(
                self._bus,
                None,
                "",
                queue,
                self._packer.pack_reply(payload, reads_msgpack),
                lane=_core.RPC,
                mandatory=self._is_mandatory,
                timeout=self._send_timeout_s,
                retry=0,
            )
        except _core.Returned as error:
            raise oslo_messaging.MessageDeliveryFailure(
                f"heartbeat failed: the caller's reply queue {queue} is gone"
            ) from error
        except _core.Error as error:
            raise _errors.translate(error, "heartbeat", self._brokers) from error


class RpcIncoming(_compat.IncomingMessage):
    """A request; it is acknowledged before it runs."""

    def __init__(
        self, replier: Replier, delivery: _core.Delivery, payload: dict[str, Any]
    ) -> None:
        """Take over a payload.

        :param delivery: tells what the caller reads.
        :param payload: decoded for this delivery, without ``_unique_id``;
            what oslo.messaging is not to see is removed from it.
        """
        ctxt, request_id, reply_q, client_timeout = unpack(payload)
        super().__init__(ctxt, payload, request_id, client_timeout)
        self.reply_q = reply_q
        self._request_id = request_id
        self._replier = replier
        self._reads_msgpack = delivery.reads_msgpack
        self.on_begin: Callable[[], None] | None = None
        self._delivery: _core.Delivery | None = None

    @classmethod
    def begun_by_worker(
        cls, replier: Replier, delivery: _core.Delivery, payload: dict[str, Any]
    ) -> "RpcIncoming":
        """Make one that is the broker's until a worker begins it."""
        incoming = cls(replier, delivery, payload)
        incoming._delivery = delivery
        return incoming

    def acknowledge(self) -> None:
        """Tell the broker, and the listener, that a worker begins.

        Mostly the broker has been told: the listener does so when it has handed
        over, while the worker wakes up.

        :raises MessageDeliveryFailure: the request is not to run here: it waited
            for a worker, and the broker has taken it back. oslo.messaging logs
            that and skips it.
        """
        if self._delivery is not None:
            if not self._delivery.begin():
                raise oslo_messaging.MessageDeliveryFailure(
                    "the connection was lost while this request waited for a "
                    "worker: the broker delivers it again"
                )
            return
        self._replier.send_acks()
        if self.on_begin is not None:
            self.on_begin()
            self.on_begin = None

    def requeue(self) -> None:
        """Do nothing: a request runs at most once."""

    def reply(self, reply: Any = None, failure: ExcInfo | None = None) -> None:
        """Answer the request, if anybody waits for an answer.

        Returns before the reply is confirmed. A caller who is gone costs no
        thread, whatever has become of his queue.

        :param reply: the result; anything that oslo.serialization can write.
            What it cannot write becomes a failure that says so.
        :param failure: what ``sys.exc_info()`` gave, instead of a result.
        """
        if not self._request_id or not self._has_reply_queue():
            return
        text = _failure_text(failure) if failure else None
        try:
            try:
                self._send(reply, text, ending=True)
            except _core.Error:
                raise
            except Exception as error:
                LOG.error(
                    "The result of %s cannot be sent (%s); its caller gets this "
                    "as a failure",
                    self.message.get("method"),
                    type(error).__name__,
                )
                exc_info = (type(error), error, error.__traceback__)
                self._send(None, _failure_text(exc_info), ending=True)
        except _core.Error as error:
            LOG.error("The reply to %s is lost: %s", self._request_id, error)

    def heartbeat(self) -> None:
        """Tell a caller who monitors his call that it is still running.

        :raises MessageDeliveryFailure: he was not reached.
        """
        if self._request_id and self._has_reply_queue():
            payload = self._payload(None, None, False)
            self._replier.heartbeat(self.reply_q, payload, self._reads_msgpack)

    def _send(self, result: Any, failure: str | None, ending: bool) -> None:
        payload = self._payload(result, failure, ending)
        self._replier.reply(self.reply_q, payload, self._reads_msgpack)

    def _payload(
        self, result: Any, failure: str | None, ending: bool
    ) -> dict[str, Any]:
        # All five, always: stock callers fail without `failure`, hang
        # without `ending`.
        return {
            "result": result,
            "failure": failure,
            "ending": ending,
            "_msg_id": self._request_id,
            "_unique_id": _core.new_id(),
        }

    def _has_reply_queue(self) -> bool:
        name = self.reply_q
        if (
            isinstance(name, str)
            and 0 < len(name)
            and len(name.encode(errors="surrogatepass")) <= _MAX_QUEUE_NAME
        ):
            return True
        LOG.warning(
            "Request %r names no queue for its reply; nothing is sent",
            self._request_id,
        )
        return False


def make_noticing(
    bus: _core.Bus,
    make: Callable[[_core.Delivery, dict[str, Any]], RpcIncoming],
    delivery: _core.Delivery,
    payload: dict[str, Any],
) -> RpcIncoming:
    """Make a request's incoming message, and tell if its sender reads JSON alone.

    For a process that sends no JSON, which such a peer could not understand.
    """
    if not delivery.reads_msgpack:
        queue = payload.get("_reply_q")
        if not isinstance(queue, str) or not queue:
            queue = delivery.queue  # of a cast, for want of one of the sender's
        bus.notice_json(queue.encode(errors="replace").decode())
    return make(delivery, payload)


class NotificationIncoming(_compat.IncomingMessage):
    """A notification; it is the broker's until the endpoint is done."""

    def __init__(self, delivery: _core.Delivery, payload: dict[str, Any]) -> None:
        ctxt, msg_id, _, client_timeout = unpack(payload)
        super().__init__(ctxt, payload, msg_id, client_timeout)
        self._delivery = delivery

    def acknowledge(self) -> None:
        """Tell the broker that it is done, now."""
        _settle(self._delivery.ack, "acknowledge")

    def requeue(self) -> None:
        """Give it back to its queue, for this or another listener."""
        _settle(lambda: self._delivery.reject(True), "requeue")

    def reply(self, reply: Any = None, failure: ExcInfo | None = None) -> None:
        """Do nothing: nobody waits."""

    def heartbeat(self) -> None:
        """Do nothing: nobody waits."""


def _settle(settle: Callable[[], None], verb: str) -> None:
    try:
        settle()
    except _core.Error as error:
        # The connection is gone, and the broker delivers it once more.
        LOG.warning("Failed to %s a received message: %s", verb, error)


def _failure_text(exc_info: ExcInfo) -> str:
    """Serialise an exception, with its arguments as text if need be."""
    try:
        return str(_compat.serialize_remote_exception(exc_info))
    except Exception:
        LOG.warning(
            "An exception of class %s has arguments that cannot be sent; its "
            "caller gets their repr()",
            exc_info[0].__name__,
        )
    return str(_compat.serialize_remote_exception(_writable(exc_info)))


def _writable(exc_info: ExcInfo) -> ExcInfo:
    """Give a double of an exception whose arguments JSON can write.

    Class, module, text and traceback are the original's; so the caller gets
    the class that he expects, if it can be built from what is left.
    """
    kind, error, traceback = exc_info
    text = _text(error)
    double_kind = type(
        kind.__name__,
        (Exception,),
        {"__module__": kind.__module__, "__str__": lambda _: text},
    )
    double = double_kind(*[_plain(arg) for arg in error.args])
    kwargs = getattr(error, "kwargs", None)
    double.__cause__ = error.__cause__
    double.__context__ = error.__context__
    double.__suppress_context__ = error.__suppress_context__
    if isinstance(kwargs, dict):
        double.kwargs = {str(key): _plain(value) for key, value in kwargs.items()}
    return double_kind, double, traceback


def _plain(value: Any) -> Any:
    try:
        jsonutils.dumps(value)
    except Exception:
        return _text(value)
    return value


def _text(value: object) -> str:
    """Describe anything, even what refuses to be described."""
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:
        return f"<{type(value).__name__} object>"
