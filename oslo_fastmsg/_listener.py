"""What ``listen()`` returns: deliveries from the core become callbacks.

One Python thread per listener (a greenthread where threads are green) sleeps
until the core has deliveries and calls oslo.messaging's callback, which hands
them to the executor. Nobody but that thread calls it, so messages are handed
over in delivery order.
"""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from oslo_fastmsg import _compat, _core, _envelope, _errors, _waiting
from oslo_fastmsg._bus import Share

__all__ = ["FastmsgListener", "notification_prefetch", "rpc_prefetch"]

LOG = logging.getLogger(__name__)

# What is delivered and not yet handed over lies in this process, and comes
# back to the queue only when the listener stops; a server that stalls for
# longer than that should not hold a whole backlog.
_PREFETCH = 256
_MOST_PREFETCH = 65535

# Deliveries per visit to the core. Those of RPC are acknowledged together, when
# the first of them is begun or all are handed over: so this is what a killed
# process can lose before it runs them.
_TAKE = 32

# Large requests that no worker has begun are waited for above so many bytes,
# since decoded they take several times as much; for so long, since nobody is
# obliged to begin. Those below the size cost too little to be counted.
_AHEAD_BYTES = 128 * 1024
_AHEAD_S = 0.05
_LARGE = 8 * 1024

# After an error that is not expected, so that it does not fill the log.
_PAUSE_S = 1.0

Make = Callable[[_core.Delivery, dict[str, Any]], _compat.IncomingMessage]


class Backlog:
    """Large requests that were handed over and that no worker has begun."""

    def __init__(self) -> None:
        self._lock = _waiting.make_lock()
        self._bytes = 0
        self._room: _waiting.Signal | None = None

    def add(self, size: int) -> Callable[[], None]:
        """Count one of so many bytes; call the result when it is begun."""
        with self._lock:
            self._bytes += size
        return functools.partial(self._remove, size)

    def _remove(self, size: int) -> None:
        with self._lock:
            self._bytes -= size
            if self._bytes > _AHEAD_BYTES:
                return
            room, self._room = self._room, None
        if room is not None:
            room.set()

    def wait(self) -> None:
        """Let the workers begin, for a while, if there is more than enough."""
        if self._bytes <= _AHEAD_BYTES:
            return
        room = _waiting.Signal()
        with self._lock:
            if self._bytes <= _AHEAD_BYTES:
                return
            self._room = room
        room.wait(_AHEAD_S)


def rpc_prefetch(option: int) -> int:
    """Bound what lies here undispatched, also when the option says no bound.

    :raises RuntimeError: more than AMQP can say.
    """
    _check_prefetch(option)
    return option if option > 0 else _PREFETCH


def notification_prefetch(
    option: int, batch_size: int | None, workers: int | None
) -> int:
    """Bound them for notifications, which count until they are acknowledged.

    :param option: ``rabbit_qos_prefetch_count``; above 0 it is obeyed.
    :param batch_size: messages per callback, None without a limit.
    :param workers: the size of the server's thread pool, None if unknown.
        Twice of both, so that the next are here when a worker comes free.
    :raises RuntimeError: more than AMQP can say.
    """
    _check_prefetch(option)
    if option > 0:
        return option
    return max(_PREFETCH, 2 * (batch_size or 0), 2 * (workers or 0))


def _check_prefetch(option: int) -> None:
    if option > _MOST_PREFETCH:
        raise RuntimeError(
            f"Configuration Error: rabbit_qos_prefetch_count is {option}, but can be "
            f"{_MOST_PREFETCH} at most"
        )


class FastmsgListener(_compat.Listener):  # type: ignore[misc]
    """A consumer of the core, declared but not consuming before start()."""

    def __init__(
        self,
        share: Share,
        consumer: _core.Consumer,
        make: Make,
        *,
        acks_first: bool,
        prefetch: int,
        batch_size: int | None,
        batch_timeout: float | None,
        delete: Sequence[str],
        brokers: str,
    ) -> None:
        """Take over an open consumer.

        :param share: the listener's own; closed by cleanup().
        :param make: builds the incoming message from a delivery and its
            payload.
        :param acks_first: the consumer acknowledges what take() gives.
        :param prefetch: of the consumer, more than 0. No batch can be larger:
            the broker would not send the rest.
        :param batch_size: messages per callback; None: as many as come within
            `batch_timeout`.
        :param batch_timeout: seconds from the first message of a batch until
            it is handed over, full or not; None: when it is full.
        :param delete: queues that end with the listener.
        :param brokers: ``host:port, ...`` for error texts.
        """
        if batch_size is None:
            # Without either limit no batch would ever end.
            batch_size = prefetch if batch_timeout else 1
        super().__init__(batch_size, batch_timeout, prefetch)
        self._share = share
        self._consumer = consumer
        self._make = make
        self._acks_first = acks_first
        self._delete = delete
        self._brokers = brokers
        self._backlog = Backlog()
        self._stopping = _waiting.Signal()
        self._task: _waiting.Task | None = None

    def start(self, on_incoming_callback: Callable[[list[Any]], Any]) -> None:
        """Begin to consume and to call back, in a thread of its own.

        Does not wait for the broker: one that refuses is asked again, with a
        line in the log.

        :raises MessageDeliveryFailure: the listener was closed.
        """
        super().start(on_incoming_callback)
        self._callback = on_incoming_callback
        try:
            self._consumer.start()
        except _core.Error as error:
            raise _errors.translate(error, "consuming", self._brokers) from error
        self._task = _waiting.spawn(self._run, "fastmsg-listener")

    def stop(self) -> None:
        """Stop consuming; when it returns, there are no more callbacks.

        What was handed over may still run and be acknowledged, until
        cleanup(). What was not goes back to its queue. Twice is allowed.
        """
        self._stopping.set()
        try:
            _waiting.stop_consumer(self._consumer)
        except _core.Error as error:
            LOG.warning("Stopping a listener: %s", error)
        if self._task is not None:
            _waiting.join(self._task)
        super().stop()

    def cleanup(self) -> None:
        """Give everything back, once the workers are done."""
        # Replies are handed over, not waited for: this is their last chance.
        self._share.flush()
        try:
            _waiting.close_consumer(self._consumer, self._delete)
        except _core.Error as error:
            LOG.warning("Closing a listener: %s", error)
        self._share.close()

    def _run(self) -> None:
        batch: list[_compat.IncomingMessage] = []
        end_at: float | None = None
        while True:
            try:
                self._backlog.wait()
                batch, end_at = self._gather(batch, end_at)
                if end_at is not None and time.monotonic() >= end_at:
                    self._hand_over(batch)
                    batch, end_at = [], None
            except _core.Closed:
                break
            except Exception:
                LOG.exception("Listening failed; trying again in %s s", _PAUSE_S)
                if self._stopping.wait(_PAUSE_S):
                    break
        if batch:
            self._hand_over(batch)

    def _gather(
        self, batch: list[_compat.IncomingMessage], end_at: float | None
    ) -> tuple[list[_compat.IncomingMessage], float | None]:
        """Wait for deliveries, and add them; give the batch that is not full yet.

        Afterwards nothing here refers to a delivery that was handed over: one that
        nobody settles has to end, or its copies wait for it.

        :param end_at: when the batch is to be handed over; None: not known yet.
        """
        left = None
        if end_at is not None:
            left = max(0.0, end_at - time.monotonic())
        for delivery in _waiting.take(self._consumer, self._room(batch), left):
            incoming = self._receive(delivery)
            if incoming is None:
                continue
            if not batch and self.batch_timeout:
                end_at = time.monotonic() + self.batch_timeout
            batch.append(incoming)
            if len(batch) >= self.batch_size:
                self._hand_over(batch)
                batch, end_at = [], None
        return batch, end_at

    def _room(self, batch: Sequence[object]) -> int:
        if self.batch_size == 1:
            return _TAKE
        return int(self.batch_size) - len(batch)

    def _receive(self, delivery: _core.Delivery) -> _compat.IncomingMessage | None:
        """Make an incoming message, or settle the delivery here."""
        try:
            payload = delivery.payload
            if payload is None:
                payload = self._read_slowly(delivery)
                if payload is None:
                    return None
            incoming = self._make(delivery, payload)
            if self._acks_first and delivery.size >= _LARGE:
                incoming.on_begin = self._backlog.add(delivery.size)
            return incoming
        except Exception:
            # One message must not take those behind it along.
            LOG.exception("Skipping a message from queue %s", delivery.queue)
            return None

    def _read_slowly(self, delivery: _core.Delivery) -> dict[str, Any] | None:
        try:
            payload = _envelope.read_delivery(delivery)
        except (_envelope.Rejected, _core.BadMessage) as why:
            LOG.error(
                "Rejected a message of %d bytes from queue %s: %s",
                len(delivery.body),
                delivery.queue,
                why,
            )
            delivery.reject(False)
            return None
        unique_id = payload.pop("_unique_id", None)
        is_new = delivery.accept(unique_id if isinstance(unique_id, str) else None)
        # What the core could not read it has not acknowledged either.
        if self._acks_first or not is_new:
            delivery.ack()
        return payload if is_new else None

    def _hand_over(self, batch: list[_compat.IncomingMessage]) -> None:
        """Call back; what goes wrong there must not end the thread."""
        try:
            self._callback(batch)
        except Exception:
            LOG.exception("A callback with %d received messages failed", len(batch))
