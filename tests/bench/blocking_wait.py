"""Stock without its poll for replies, so that the rest of it can be compared.

From 14.8 to 18.1 the stock driver looks for a reply twice a second, which
makes every call last half a second. Its other costs would disappear behind
that, so the benchmark also measures a stock driver whose wait wakes up when
the reply comes, as it did before and does again since 18.2.
"""

from __future__ import annotations

import inspect
import queue
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import amqpdriver


def stock_polls() -> bool:
    """Tell whether the installed stock driver polls for its replies."""
    return "sleep(" in inspect.getsource(amqpdriver.ReplyWaiters.get)


def _get(self: amqpdriver.ReplyWaiters, msg_id: str, timeout: float) -> Any:
    try:
        return self._queues[msg_id].get(block=True, timeout=timeout)
    except queue.Empty:
        raise oslo_messaging.MessagingTimeout(
            f"Timed out waiting for a reply to message ID {msg_id}"
        ) from None


def install() -> None:
    """Replace the poll in this process by a blocking wait."""
    amqpdriver.ReplyWaiters.get = _get
