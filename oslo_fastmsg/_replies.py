"""The queue on which one transport receives the replies to its calls."""

import functools
import logging
import weakref

from oslo_fastmsg import _bus, _core, _envelope, _events, _topology, _waiting
from oslo_fastmsg._options import Settings

__all__ = ["ReplyQueue"]

LOG = logging.getLogger(__name__)

# Replies are matched and handed to their callers by the core; what waits
# there costs its body's memory, so this bounds it, not the calls in flight.
_PREFETCH = 1024

# Replies per visit to the core, of those that it cannot read; and after how many
# seconds it is looked whether the transport was dropped without cleanup().
_SLOW_TAKE = 32
_SLOW_LOOK_S = 30.0


class _OpenQueues:
    """The queues of this process that have a consumer."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have none: at first, and in a forked child."""
        self._lock = _waiting.make_lock()
        self._queues: weakref.WeakSet[ReplyQueue] = weakref.WeakSet()

    def add(self, queue: "ReplyQueue") -> None:
        with self._lock:
            self._queues.add(queue)

    def begin_to_read_slowly(self) -> None:
        """Have those replies read that the core cannot: compressed ones, mostly.

        From then on each queue has a thread for them, so that they do not wait
        for handlers of the log.
        """
        with self._lock:
            queues = list(self._queues)
        for queue in queues:
            queue.begin_to_read_slowly()


_open_queues = _OpenQueues()
_bus.forget_after_fork(_open_queues)
_events.when_called(_open_queues.begin_to_read_slowly)


def _read_slowly(
    weak_queue: "weakref.ref[ReplyQueue]", consumer: _core.Consumer
) -> None:
    while True:
        try:
            deliveries = _waiting.take(consumer, _SLOW_TAKE, _SLOW_LOOK_S)
        except _core.Closed:
            return
        queue = weak_queue()
        if queue is None:
            return
        for delivery in deliveries:
            queue.read_slowly(consumer, delivery)
        del queue


class ReplyQueue:
    """Made by the first call, once, whoever comes first; then shared by all.

    :ivar name: the queue's name, ``_reply_q`` of the requests; empty before
        the first one.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = ""
        self._settings = settings
        self._lock = _waiting.make_lock()
        self._consumer: _core.Consumer | None = None
        self._choosing: _waiting.Signal | None = None
        self._reader: _waiting.Task | None = None
        # Requests whose reply has not come: each entry is a caller in flight.
        self._asked: set[str] = set()
        self._is_owed_a_reply = False
        self._was_answered = False

    def consumer(self, bus: _core.Bus) -> _core.Consumer:
        """Give what the core matches replies with; wait for nothing.

        The core declares the queue and consumes from it before it sends the
        first request, within that request's own time.

        :raises RuntimeError: options that exclude each other.
        :raises oslo_config.cfg.RequiredOptError: a stable name needs
            oslo.concurrency's ``lock_path``.
        """
        consumer = self._consumer
        if consumer is not None:
            return consumer
        self._choose_name()
        with self._lock:
            consumer = self._consumer
            if consumer is not None:
                return consumer
            consumer = _core.Consumer(
                bus,
                _topology.reply_queue(self._settings, self.name),
                [self.name],
                prefetch=_PREFETCH,
                ack_on_take=True,
                replies=True,
                cancel_on_failover=self._settings.enable_cancel_on_failover,
            )
            consumer.start()
            self._consumer = consumer
        _open_queues.add(self)
        LOG.debug("Replies are received on queue %s", self.name)
        return consumer

    def _choose_name(self) -> None:
        """Have a name, made once; a stable one may wait for other processes."""
        while not self.name:
            with self._lock:
                if self.name:
                    return
                chosen, is_mine = self._choosing, self._choosing is None
                if chosen is None:
                    chosen = self._choosing = _waiting.Signal()
            if not is_mine:
                chosen.wait()
                continue
            try:
                self.name = _topology.reply_queue_name(self._settings)
            finally:
                self._choosing = None
                chosen.set()

    def begin_to_read_slowly(self) -> None:
        """Start the thread that reads what the core cannot, unless there is one."""
        with self._lock:
            consumer = self._consumer
            if consumer is None or self._reader is not None:
                return
            self._reader = _waiting.spawn(
                functools.partial(_read_slowly, weakref.ref(self), consumer),
                "fastmsg-replies",
                is_independent=True,
            )

    def read_slowly(self, consumer: _core.Consumer, delivery: _core.Delivery) -> None:
        """Give one reply to its caller; say so if that cannot be."""
        try:
            self._pass_on(consumer, delivery)
        except _core.Closed:
            pass  # and so are the callers
        except Exception as error:
            # It is acknowledged: it must not take those behind it along.
            self._reject(delivery, type(error).__name__)

    def _pass_on(self, consumer: _core.Consumer, delivery: _core.Delivery) -> None:
        try:
            payload = delivery.payload
            if payload is None:
                payload = _envelope.read_delivery(delivery)
        except (_envelope.Rejected, _core.BadMessage) as error:
            self._reject(delivery, str(error))
            return
        if not consumer.deliver_reply(payload):
            self._reject(delivery, "it names no call")

    def _reject(self, delivery: _core.Delivery, why: str) -> None:
        LOG.error(
            "Rejected a reply of %d bytes on queue %s: %s",
            delivery.size,
            self.name,
            why,
        )

    def asked(self, msg_id: str) -> None:
        """Count a request that is about to be sent."""
        self._asked.add(msg_id)

    def answered(self, msg_id: str) -> None:
        """Count its reply."""
        self._asked.discard(msg_id)
        self._was_answered = True

    def given_up(self, msg_id: str, is_owed: bool) -> None:
        """Count a caller who left without a reply.

        :param is_owed: it may still come.
        """
        self._asked.discard(msg_id)
        if is_owed:
            self._is_owed_a_reply = True

    def refused(self) -> None:
        """Note that the broker refused a call, maybe by refusing this queue.

        That is final for the consumer. As long as no reply has ever come, it
        is left, so that the next call tries again, with the same queue.
        """
        if self._was_answered:
            return
        with self._lock:
            consumer, self._consumer = self._consumer, None
            reader, self._reader = self._reader, None
        if consumer is not None:
            _waiting.close_consumer(consumer)
        if reader is not None:
            _waiting.join(reader)

    def close(self) -> None:
        """Stop consuming; callers in flight are woken with ``Closed``.

        The queue is deleted only if no server can have a reply for it any
        more: a server that meets a vanished queue tries for a minute. Else
        the queue's expiry removes it. A queue with a stable name stays, for the
        next start of the service.
        """
        with self._lock:
            consumer, self._consumer = self._consumer, None
            reader, self._reader = self._reader, None
        if consumer is None:
            return
        is_done = (
            not self._asked
            and not self._is_owed_a_reply
            and not self._settings.use_queue_manager
        )
        _waiting.close_consumer(consumer, [self.name] if is_done else [])
        if reader is not None:
            _waiting.join(reader)
