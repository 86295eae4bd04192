"""What demo and benchmark do on a broker that is not their own.

Plain AMQP through kombu, the stock driver's library: such a broker may offer
nothing else. All of it is about queues whose names the caller knows.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

import amqp.exceptions
import kombu
import kombu.exceptions

__all__ = ["ERRORS", "connect", "consumers", "queues_in_use", "remove"]

# What connect() raises when the broker cannot be reached or refuses.
ERRORS = (OSError, kombu.exceptions.KombuError, amqp.exceptions.AMQPError)


@contextlib.contextmanager
def connect(url: str) -> Iterator[kombu.Connection]:
    """Connect to the first host of a transport URL."""
    rest, _, query = url.partition("://")[2].partition("?")
    hosts, _, vhost = rest.partition("/")
    options = {key: value.lower() for key, value in urllib.parse.parse_qsl(query)}
    vhost = urllib.parse.unquote(vhost) or "/"
    with kombu.Connection(
        f"amqp://{hosts.split(',')[0]}/{urllib.parse.quote(vhost, safe='')}",
        ssl=options.get("ssl") in ("true", "1", "yes", "on"),
        connect_timeout=10,
    ) as connection:
        connection.connect()
        yield connection


def _look(connection: kombu.Connection, name: str) -> Any:
    """Return what the broker says of a queue, None if there is no such queue."""
    with connection.channel() as channel:
        try:
            return channel.queue_declare(name, passive=True)
        except amqp.exceptions.NotFound:
            return None


def consumers(connection: kombu.Connection, name: str) -> int:
    """Return the number of consumers of a queue, 0 if there is no such queue."""
    found = _look(connection, name)
    return 0 if found is None else int(found.consumer_count)


def queues_in_use(connection: kombu.Connection, names: Iterable[str]) -> list[str]:
    """Return which of these queues have a consumer or a message."""
    in_use = []
    for name in names:
        found = _look(connection, name)
        if found is not None and (found.consumer_count or found.message_count):
            in_use.append(name)
    return in_use


def remove(connection: kombu.Connection, queues: Iterable[str], exchange: str) -> None:
    """Delete queues that nobody uses any more, and their exchange."""
    for name in queues:
        with contextlib.suppress(amqp.exceptions.ChannelError):
            with connection.channel() as channel:
                channel.queue_delete(name, if_unused=True)
    with contextlib.suppress(amqp.exceptions.ChannelError):
        with connection.channel() as channel:
            channel.exchange_delete(exchange, if_unused=True)
