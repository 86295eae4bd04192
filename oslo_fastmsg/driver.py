"""The driver that oslo.messaging loads for ``fastmsg://`` URLs.

How a call travels
------------------
:meth:`FastmsgDriver.send` adds the members of the wire format to the message
and gives it to the core (``_core``, in C), which writes the envelope, the
frames and the socket, and wakes this thread with the decoded reply. Between
the two there is no other Python: one native thread per process reads and
writes two connections per broker, whatever the number of callers, servers and
transports.

How a request is served
-----------------------
:meth:`FastmsgDriver.listen` declares queues (``_topology``) and returns a
listener (``_listener``), whose thread takes deliveries from the core and calls
oslo.messaging back with incoming messages (``_incoming``). What the core
cannot read goes through ``_envelope``.

The rest: ``_options`` and ``_url`` say what the configuration means,
``_replies`` holds the queue of replies, ``_bus`` a user's share of the
connections, ``_errors`` the table of exceptions, ``_waiting`` every place
where Python sleeps (``_green``: where eventlet's greenthreads do), ``_events``
the way from the core into the log, and ``_compat`` what is taken from
oslo.messaging's private modules.

Making a driver does no I/O and starts no thread, so that it may be made
before a fork; each process opens its own connections at first use.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import oslo_messaging
from oslo_config import cfg

from oslo_fastmsg import (
    _bus,
    _compat,
    _core,
    _envelope,
    _errors,
    _incoming,
    _listener,
    _options,
    _replies,
    _topology,
    _url,
    _waiting,
)

__all__ = ["FastmsgDriver"]

LOG = logging.getLogger(__name__)

# Exchanges and queues whose declarations are kept. One that falls out is
# declared once more when it is next used.
_MAX_TOPOLOGIES = 1024

_MAX_NAME = 255  # bytes, AMQP 0-9-1 section 4.2.5.3
_LOGIN_METHODS = frozenset({"PLAIN", "AMQPLAIN", "EXTERNAL"})


class FastmsgDriver(_compat.BaseDriver):  # type: ignore[misc]
    """A transport over RabbitMQ, on the stock driver's wire.

    :ivar conf: the configuration, overlaid by the URL's query.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: oslo_messaging.TransportURL,
        default_exchange: str | None = None,
        allowed_remote_exmods: list[str] | None = None,
    ) -> None:
        """Read the options; connect to nothing.

        :param conf: the service's configuration; the options of the groups
            ``oslo_messaging_rabbit`` and ``oslo_messaging_fastmsg`` are
            registered in it.
        :param url: brokers, credentials, virtual host and options.
        :param default_exchange: for targets without one; oslo.messaging gives
            option ``control_exchange``.
        :param allowed_remote_exmods: modules of which remote exceptions are
            rebuilt as their class.
        :raises NoSuchOptError, ValueError: an option in the URL.
        :raises InvalidTransportURL: another part of the URL.
        :raises RuntimeError: options that exclude each other.
        """
        _options.register(conf)
        overlaid = _options.overlay(conf, url)
        super().__init__(overlaid, url, default_exchange, allowed_remote_exmods)
        self._settings = _options.Settings.read(overlaid)
        if _url.has_tls(url):
            self._settings = dataclasses.replace(self._settings, ssl=True)
        _url.warn_of_old_tls(self._settings)
        self.prefetch_size = self._settings.rabbit_qos_prefetch_count
        self._hosts = _url.broker_hosts(url)
        self._vhost = _url.virtual_host(url)
        self._brokers = _url.shown(self._hosts)
        self._packer = _envelope.Packer(
            self._settings.kombu_compression,
            self._settings.compression_threshold,
            self._settings.envelope,
        )
        self._is_cleaned_up = False
        self.forget()
        _bus.forget_after_fork(self)

    def forget(self) -> None:
        """Have nothing open: at first, and in a child of the process that has."""
        self._lock = _waiting.make_lock()
        self._share: _bus.Share | None = None
        self._replies = _replies.ReplyQueue(self._settings)
        self._topologies: dict[tuple[Any, ...], _core.Topology | None] = {}

    def require_features(self, requeue: bool = False) -> None:
        """Have every feature that oslo.messaging can ask for."""

    def send(
        self,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        """Send a request, and wait for its reply if there is to be one.

        :param target: topic, and if wanted exchange, server or fanout.
        :param ctxt: a dict, or an object with ``to_dict()``.
        :param message: gets the driver's members, in place.
        :param wait_for_reply: a call; else a cast or, by `target`, a fanout.
        :param timeout: seconds for all of a call, 0 or more; None for
            ``rpc_response_timeout``. A cast ignores it.
        :param call_monitor_timeout: seconds that a call may go on without a
            sign of life from the server; None or 0 to do without.
        :param retry: how often a lost connection is made again for this
            message; None or -1 without a limit. A call's timeout ends it too.
        :param transport_options: ``at_least_once`` makes a call or cast fail
            if there is no queue for it.
        :returns: the result of a call, else None.
        :raises MessagingTimeout: a call's time is over, whatever it was
            spent on.
        :raises MessageDeliveryFailure: the message did not get through, or
            its confirm was not seen.
        :raises MessageUndeliverable: no queue, with ``at_least_once``.
        :raises Exception: what the remote endpoint raised.
        """
        _bus.notice_fork()
        mandatory = bool(transport_options and transport_options.at_least_once)
        attempts = _retry(retry)
        if wait_for_reply:
            return self._call(
                target,
                ctxt,
                message,
                timeout,
                call_monitor_timeout,
                mandatory,
                attempts,
            )
        self._pack(message, ctxt)
        if target.fanout:
            attempt = f"fanout on topic {target.topic!r}"
            exchange = _name(_topology.fanout_exchange_name(target.topic), attempt)
            self._publish(
                attempt,
                self._topology(_topology.fanout_exchange, target.topic),
                exchange,
                "",
                message,
                _core.FANOUT,
                False,
                attempts,
            )
        else:
            attempt = f"cast on topic {target.topic!r}"
            exchange = _name(self._exchange(target), attempt)
            self._publish(
                attempt,
                self._topology(_topology.control_exchange, exchange),
                exchange,
                _name(_routing_key(target), attempt),
                message,
                _core.RPC,
                mandatory,
                attempts,
            )
        return None

    def send_notification(
        self,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        """Send a notification to a queue, which is made if there is none.

        :param target: its topic has the priority in it already: ``T.P``.
        :param message: gets the driver's members, in place; oslo.messaging
            uses it again for the next topic, which replaces them.
        :param version: 2.0 for an envelope; anything else for bare JSON.
        :raises MessageDeliveryFailure: the broker did not take it.
        :raises ValueError, TypeError: it cannot be written as version 2.0.
        """
        _bus.notice_fork()
        self._pack(message, ctxt)
        attempt = f"notification on topic {target.topic!r}"
        body: dict[str, Any] | bytes = message
        if version != 2.0:
            try:
                body = _envelope.dumps_v1(message)
            except Exception as error:
                raise oslo_messaging.MessageDeliveryFailure(
                    f"{attempt} failed: it cannot be written as JSON "
                    f"({type(error).__name__}: {error})"
                ) from error
        exchange = _name(self._exchange(target), attempt)
        queue = _name(target.topic, attempt)
        self._publish(
            attempt,
            self._topology(_topology.notified_queue, exchange, queue),
            exchange,
            queue,
            body,
            _core.NOTIFY,
            False,
            _retry(retry),
        )

    def listen(
        self,
        target: oslo_messaging.Target,
        batch_size: int,
        batch_timeout: float | None,
    ) -> _listener.FastmsgListener:
        """Declare an RPC server's queues and return its listener, not started.

        Waits for a broker as long as it takes.

        :raises MessageDeliveryFailure: the broker refuses the login or one of
            the declarations.
        """
        fanout_queue = _topology.fanout_queue_name(self._settings, target.topic)
        declarations, queues = _topology.server_queues(
            self._settings,
            self._exchange(target),
            target.topic,
            target.server,
            fanout_queue,
        )

        def maker(share: _bus.Share) -> _listener.Make:
            replier = _incoming.Replier(
                share.core, self._settings, self._packer, self._brokers
            )
            kind = _incoming.RpcIncoming
            make = functools.partial(kind.begun_by_worker if intake else kind, replier)
            if self._settings.envelope == "msgpack":
                return functools.partial(_incoming.make_noticing, share.core, make)
            return make

        intake = self._settings.rpc_intake
        return self._listen(
            f"listening on topic {target.topic!r}",
            declarations,
            queues,
            maker,
            acks_first=not intake,
            prefetch=intake
            or _listener.rpc_prefetch(self._settings.rabbit_qos_prefetch_count),
            batch_size=batch_size,
            batch_timeout=batch_timeout,
            # A queue with a stable name waits for the next start, and a stream
            # is everybody's.
            delete=[]
            if self._settings.use_queue_manager or self._settings.rabbit_stream_fanout
            else [fanout_queue],
        )

    def listen_for_notifications(
        self,
        targets_and_priorities: Iterable[tuple[oslo_messaging.Target, str]],
        pool: str | None,
        batch_size: int | None,
        batch_timeout: float | None,
    ) -> _listener.FastmsgListener:
        """Declare the queues of notifications and return their listener.

        :param pool: one queue of this name for all of them.
        :param batch_size: messages per callback, None without a limit.
        :param batch_timeout: seconds after which a batch ends, full or not.
        :raises MessageDeliveryFailure: as for :meth:`listen`.
        """
        pairs = [
            (self._exchange(target), f"{target.topic}.{priority}")
            for target, priority in targets_and_priorities
        ]
        declarations, queues = _topology.listened_priorities(
            self._settings, pairs, pool
        )
        return self._listen(
            f"listening on queues {', '.join(queues)}",
            declarations,
            queues,
            lambda _: _incoming.NotificationIncoming,
            acks_first=False,
            prefetch=_listener.notification_prefetch(
                self._settings.rabbit_qos_prefetch_count,
                batch_size,
                # Registered by oslo.messaging's servers alone.
                getattr(self.conf, "executor_thread_pool_size", None),
            ),
            batch_size=batch_size,
            batch_timeout=batch_timeout,
            delete=[],
        )

    def cleanup(self) -> None:
        """End the transport: callers in flight fail, connections close.

        Listeners live on until their own cleanup. Twice is allowed.
        """
        _bus.notice_fork()
        with self._lock:
            self._is_cleaned_up = True
            share, self._share = self._share, None
        if share is None:
            return
        try:
            self._replies.close()
        except _core.Error as error:
            LOG.warning("Closing the reply queue: %s", error)
        share.close()

    def _call(
        self,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        timeout: float | None,
        monitor_timeout: float | None,
        mandatory: bool,
        retry: int,
    ) -> Any:
        attempt = f"call of {message.get('method')!r} on topic {target.topic!r}"
        limit = _seconds(timeout, self._settings.rpc_response_timeout, attempt)
        if limit == 0:
            raise oslo_messaging.MessagingTimeout(f"{attempt} failed: its timeout is 0")
        silence = None
        if monitor_timeout:
            silence = _seconds(monitor_timeout, None, f"monitored {attempt}")
        bus = self._use_bus(attempt)
        replies = self._replies
        consumer = replies.consumer(bus)
        msg_id = _core.new_id()
        message["_msg_id"] = msg_id
        message["_reply_q"] = replies.name
        message["_timeout"] = monitor_timeout
        self._pack(message, ctxt)
        exchange = _name(self._exchange(target), attempt)
        request = {
            "topology": self._topology(_topology.control_exchange, exchange),
            "exchange": exchange,
            "routing_key": _name(_routing_key(target), attempt),
            "payload": self._packer.pack(message),
            "msg_id": msg_id,
            "replies": consumer,
            "timeout": limit,
            "mandatory": mandatory,
            "retry": retry,
        }
        replies.asked(msg_id)
        try:
            if silence is None:
                reply = _waiting.call(bus, request)
            else:
                reply = _monitored(bus, request, silence)
        except _core.Error as error:
            replies.given_up(msg_id, not isinstance(error, _core.Returned))
            if isinstance(error, _core.Refused | _core.Rejected):
                replies.refused()
            raise _errors.translate(
                error, attempt, self._brokers, is_call=True, message=message
            ) from error
        except (ValueError, TypeError):
            # The arguments cannot be written as JSON: nothing was sent.
            replies.given_up(msg_id, False)
            raise
        except BaseException:
            replies.given_up(msg_id, True)
            raise
        replies.answered(msg_id)
        if reply["failure"]:
            raise _compat.deserialize_remote_exception(
                reply["failure"], self._allowed_remote_exmods
            )
        return reply.get("result")

    def _publish(
        self,
        attempt: str,
        topology: _core.Topology | None,
        exchange: str,
        routing_key: str,
        payload: dict[str, Any] | bytes,
        lane: int,
        mandatory: bool,
        retry: int,
    ) -> None:
        pack: Callable[[Any], _envelope.Body] = self._packer.pack
        if lane == _core.NOTIFY:
            pack = self._packer.pack_notification
        try:
            _waiting.publish(
                self._use_bus(attempt),
                topology,
                exchange,
                routing_key,
                pack(payload),
                lane=lane,
                mandatory=mandatory,
                timeout=self._settings.send_timeout,
                retry=retry,
            )
        except _core.Error as error:
            raise _errors.translate(
                error,
                attempt,
                self._brokers,
                message=payload if isinstance(payload, dict) else None,
            ) from error

    def _listen(
        self,
        attempt: str,
        declarations: list[_topology.Declaration],
        queues: list[str],
        maker: Callable[[_bus.Share], _listener.Make],
        *,
        acks_first: bool,
        prefetch: int,
        batch_size: int | None,
        batch_timeout: float | None,
        delete: list[str],
    ) -> _listener.FastmsgListener:
        _bus.notice_fork()
        for declaration in declarations:
            for name in declaration[1:4]:
                if isinstance(name, str):
                    _name(name, attempt)
        share = self._new_share(attempt)
        try:
            consumer = _core.Consumer(
                share.core,
                declarations,
                queues,
                prefetch=prefetch,
                ack_on_take=acks_first,
                replies=False,
                cancel_on_failover=self._settings.enable_cancel_on_failover,
            )
            try:
                _waiting.open_consumer(consumer, None)
            except BaseException:
                _waiting.close_consumer(consumer)
                raise
        except _core.Error as error:
            share.close()
            raise _errors.translate(error, attempt, self._brokers) from error
        except BaseException:
            share.close()
            raise
        return _listener.FastmsgListener(
            share,
            consumer,
            maker(share),
            acks_first=acks_first,
            prefetch=prefetch,
            batch_size=batch_size,
            batch_timeout=batch_timeout,
            delete=delete,
            brokers=self._brokers,
        )

    def _use_bus(self, attempt: str) -> _core.Bus:
        """Give the transport's own share of the connections, from the first use on."""
        share = self._share
        if share is None:
            with self._lock:
                share = self._share
                if share is None:
                    share = self._share = self._new_share(attempt)
        return share.core

    def _new_share(self, attempt: str) -> _bus.Share:
        if self._is_cleaned_up:
            raise _errors.closed(attempt)
        if self._settings.rabbit_login_method not in _LOGIN_METHODS:
            raise oslo_messaging.MessageDeliveryFailure(
                f"{attempt} failed: login method "
                f"{self._settings.rabbit_login_method} does not exist in RabbitMQ; "
                "check option rabbit_login_method"
            )
        _topology.check(self._settings)
        return _bus.Share(_url.bus_arguments(self._hosts, self._vhost, self._settings))

    def _exchange(self, target: oslo_messaging.Target) -> str:
        return target.exchange or self._default_exchange or ""

    def _topology(
        self, declare: Callable[..., list[_topology.Declaration]], *names: str
    ) -> _core.Topology | None:
        """Give what is to be declared before a message goes to an exchange."""
        key = (declare, *names)
        try:
            return self._topologies[key]
        except KeyError:
            pass
        declarations = declare(self._settings, *names)
        topology = _core.Topology(declarations) if declarations else None
        with self._lock:
            if len(self._topologies) >= _MAX_TOPOLOGIES:
                del self._topologies[next(iter(self._topologies))]
            self._topologies[key] = topology
        return topology

    def _pack(self, message: dict[str, Any], ctxt: Any) -> None:
        """Add what every message has, after what a call has."""
        message["_unique_id"] = _core.new_id()
        items = ctxt if isinstance(ctxt, dict) else ctxt.to_dict()
        for key, value in items.items():
            message[f"_context_{key}"] = value
        if "_context_self" in message:
            # A stock server would drop the message and reset its channel.
            del message["_context_self"]
            _warn_of_self()


def _name(name: str, attempt: str) -> str:
    """Check that AMQP can carry a name, which each side makes from a topic.

    :raises MessageDeliveryFailure: it cannot.
    """
    if len(name) <= _MAX_NAME and name.isascii() and "\0" not in name:
        return name
    try:
        is_good = len(name.encode()) <= _MAX_NAME and "\0" not in name
    except UnicodeEncodeError:
        is_good = False
    if is_good:
        return name
    raise oslo_messaging.MessageDeliveryFailure(
        f"{attempt} failed: {name!a} is no name for an exchange or queue, "
        "which has up to 255 bytes of UTF-8; check topic, server and exchange"
    )


def _routing_key(target: oslo_messaging.Target) -> str:
    if target.server:
        return f"{target.topic}.{target.server}"
    return str(target.topic)


def _retry(retry: int | None) -> int:
    return -1 if retry is None or retry < 0 else retry


def _seconds(value: Any, default: Any, attempt: str) -> float:
    """Check a duration of a caller's.

    :raises MessageDeliveryFailure: negative, infinite or no number, as in the
        stock driver.
    """
    if value is None:
        value = default
    try:
        seconds = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise oslo_messaging.MessageDeliveryFailure(
            f"{attempt} failed: {value!r} is no number of seconds from 0 on"
        )
    return seconds


def _monitored(
    bus: _core.Bus, request: dict[str, Any], silence: float
) -> dict[str, Any]:
    """Make a call that ends when its server has been silent for too long.

    :param request: the arguments of ``Bus.begin_call``.
    :param silence: seconds between signs of life. They do not extend the
        call's timeout.
    :returns: the last reply with a result or a failure in it, or the final
        one if there was none.
    :raises Timeout: silence, or the end of the call's time.
    """
    end_at = time.monotonic() + request["timeout"]
    pending = bus.begin_call(**request)
    try:
        last: dict[str, Any] | None = None
        heard_at = time.monotonic()
        while True:
            limit = min(end_at, heard_at + silence)
            reply = _waiting.wait_reply(pending, max(0.0, limit - time.monotonic()))
            is_ending = reply.get("ending", False)
            if reply["failure"] or reply.get("result") is not None:
                last = reply
            elif is_ending is False:
                heard_at = time.monotonic()
            if is_ending:
                return reply if last is None else last
    finally:
        pending.cancel()


@functools.cache
def _warn_of_self() -> None:
    LOG.warning(
        "The key 'self' of a context is left out, here and from now on: a server "
        "with the stock driver loses a message that has it"
    )
