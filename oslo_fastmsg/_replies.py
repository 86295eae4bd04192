"""The queue on which one transport receives the replies to its calls."""

import logging

from oslo_fastmsg import _core, _topology, _waiting
from oslo_fastmsg._options import Settings

__all__ = ["ReplyQueue"]

LOG = logging.getLogger(__name__)

# Replies are matched and handed to their callers by the core; what waits
# there costs its body's memory, so this bounds it, not the calls in flight.
_PREFETCH = 1024


class ReplyQueue:
    """Made by the first call, once, whoever comes first; then shared by all.

    :ivar name: the queue's name, ``_reply_q`` of the requests.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = f"reply_{_core.new_id()}"
        self._settings = settings
        self._lock = _waiting.make_lock()
        self._consumer: _core.Consumer | None = None
        # Requests whose reply has not come: each entry is a caller in flight.
        self._asked: set[str] = set()
        self._is_owed_a_reply = False
        self._was_answered = False

    def consumer(self, bus: _core.Bus) -> _core.Consumer:
        """Give what the core matches replies with; wait for nothing.

        The core declares the queue and consumes from it before it sends the
        first request, within that request's own time.

        :raises RuntimeError: options that exclude each other.
        """
        consumer = self._consumer
        if consumer is not None:
            return consumer
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
        LOG.debug("Replies are received on queue %s", self.name)
        return consumer

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
        if consumer is not None:
            _waiting.close_consumer(consumer)

    def close(self) -> None:
        """Stop consuming; callers in flight are woken with ``Closed``.

        The queue is deleted only if no server can have a reply for it any
        more: a server that meets a vanished queue tries for a minute. Else
        the queue's expiry removes it.
        """
        with self._lock:
            consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        is_done = not self._asked and not self._is_owed_a_reply
        _waiting.close_consumer(consumer, [self.name] if is_done else [])
