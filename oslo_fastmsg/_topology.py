"""Names, flags and arguments of exchanges and queues.

Pure functions, but for those that draw names, from options to declarations, in
the form that the core takes and in the order in which the stock driver makes
them. Peers on either driver declare the same things, and the broker answers 406
when one flag or argument differs, so each line here is somebody else's
expectation.
"""

from collections.abc import Iterable

from oslo_fastmsg import _compat, _core
from oslo_fastmsg._options import Settings

__all__ = [
    "check",
    "control_exchange",
    "fanout_exchange",
    "fanout_exchange_name",
    "fanout_queue_name",
    "listened_priorities",
    "notified_queue",
    "reply_queue",
    "reply_queue_name",
    "server_queues",
]

Arguments = dict[str, int | str | bool]
Declaration = (
    tuple[str, str, str, bool, bool]  # "exchange", name, type, durable, auto-delete
    | tuple[str, str, bool, bool, Arguments]  # "queue", name, durable, auto-delete
    | tuple[str, str, str, str]  # "bind", queue, exchange, key
)


def check(settings: Settings) -> None:
    """Refuse what the stock driver refuses when it makes a connection.

    :raises RuntimeError: streams without their two conditions.
    """
    if not settings.rabbit_stream_fanout:
        return
    if settings.rabbit_qos_prefetch_count <= 0:
        raise RuntimeError(
            "Configuration Error: rabbit_stream_fanout needs "
            "rabbit_qos_prefetch_count to be set to a value greater than 0"
        )
    if not settings.rabbit_transient_quorum_queue:
        raise RuntimeError(
            "Configuration Error: rabbit_stream_fanout needs "
            "rabbit_transient_quorum_queue to be set to true"
        )


def control_exchange(settings: Settings, exchange: str) -> list[Declaration]:
    """Declare what a call or cast needs: no queue, ever.

    :returns: nothing for the broker's own exchanges, which cannot be declared.
    """
    if not exchange or exchange.startswith("amq."):
        return []
    return [
        ("exchange", exchange, "topic", _durable(settings), settings.amqp_auto_delete)
    ]


def fanout_exchange_name(topic: str) -> str:
    """Name the exchange of a topic's fanouts.

    The control exchange is not part of it: services with different exchanges
    and the same topic hear each other.
    """
    return f"{topic}_fanout"


def fanout_exchange(settings: Settings, topic: str) -> list[Declaration]:
    """Declare what a fanout cast needs."""
    return [
        (
            "exchange",
            fanout_exchange_name(topic),
            "fanout",
            settings.rabbit_transient_quorum_queue or settings.rabbit_stream_fanout,
            True,
        )
    ]


def fanout_queue_name(settings: Settings, topic: str) -> str:
    """Make the name of a server's own queue of fanouts.

    A stream is shared by all servers of the topic, and has its exchange's name.

    :raises oslo_config.cfg.RequiredOptError: see :func:`reply_queue_name`.
    """
    if settings.rabbit_stream_fanout:
        return fanout_exchange_name(topic)
    return f"{fanout_exchange_name(topic)}_{_unique(settings)}"


def reply_queue_name(settings: Settings) -> str:
    """Make the name of a transport's queue of replies.

    :raises oslo_config.cfg.RequiredOptError: ``use_queue_manager`` needs
        oslo.concurrency's ``lock_path``.
    """
    return f"reply_{_unique(settings)}"


def _unique(settings: Settings) -> str:
    if settings.use_queue_manager:
        return _compat.queue_manager_name(settings.hostname, settings.processname)
    return _core.new_id()


def notified_queue(settings: Settings, exchange: str, queue: str) -> list[Declaration]:
    """Declare what a notifier needs: its queue too, so that nothing is lost.

    :param queue: ``T.P``, topic and priority; also the binding key. A pool's
        queue is the listener's business.
    """
    return _topic_queue(settings, exchange, queue, queue)


def server_queues(
    settings: Settings, exchange: str, topic: str, server: str, fanout_queue: str
) -> tuple[list[Declaration], list[str]]:
    """Declare what an RPC server needs.

    :param fanout_queue: what :func:`fanout_queue_name` gave.
    :returns: the declarations, and the queues to consume from, in order.
    """
    declarations: list[Declaration] = []
    own = f"{topic}.{server}"
    for queue in (topic, own):
        declarations += _topic_queue(settings, exchange, queue, queue)
    declarations += fanout_exchange(settings, topic)
    declarations += [
        _fanout_queue(settings, fanout_queue),
        ("bind", fanout_queue, fanout_exchange_name(topic), topic),
    ]
    return declarations, [topic, own, fanout_queue]


def listened_priorities(
    settings: Settings, pairs: Iterable[tuple[str, str]], pool: str | None
) -> tuple[list[Declaration], list[str]]:
    """Declare what a notification listener needs.

    :param pairs: (exchange, ``T.P``), one per target and priority.
    :param pool: the queue's name for all of them, or None for one each.
    :returns: the declarations, and the queues to consume from: the pool's
        once, however many bindings it has.
    """
    declarations: list[Declaration] = []
    queues: dict[str, None] = {}
    for exchange, key in pairs:
        queue = pool or key
        declarations += _topic_queue(settings, exchange, queue, key)
        queues[queue] = None
    return declarations, list(queues)


def reply_queue(settings: Settings, name: str) -> list[Declaration]:
    """Declare what a first call needs; the default exchange binds it.

    Neither exclusive nor auto-delete: servers go on publishing to it while
    the client reconnects.
    """
    return [_transient_queue(settings, name)]


def _durable(settings: Settings) -> bool:
    # Quorum queues must be durable, and the exchange goes with them.
    return settings.amqp_durable_queues or settings.rabbit_quorum_queue


def _topic_queue(
    settings: Settings, exchange: str, queue: str, key: str
) -> list[Declaration]:
    declarations: list[Declaration] = [
        *control_exchange(settings, exchange),
        (
            "queue",
            queue,
            _durable(settings),
            settings.amqp_auto_delete,
            _arguments(settings, "rabbit_quorum_queue", ttl_s=0),
        ),
    ]
    if exchange:  # the default exchange binds every queue by its name
        declarations.append(("bind", queue, exchange, key))
    return declarations


def _fanout_queue(settings: Settings, name: str) -> Declaration:
    declaration = _transient_queue(settings, name)
    if not settings.rabbit_stream_fanout:
        return declaration
    # Neither limits nor expiry: it is the messages that expire.
    arguments: Arguments = {"x-queue-type": "stream"}
    if settings.rabbit_transient_queues_ttl > 0:
        arguments["x-max-age"] = f"{settings.rabbit_transient_queues_ttl}s"
    return ("queue", name, True, False, arguments)


def _transient_queue(settings: Settings, name: str) -> Declaration:
    return (
        "queue",
        name,
        settings.rabbit_transient_quorum_queue,
        False,
        _arguments(
            settings,
            "rabbit_transient_quorum_queue",
            ttl_s=settings.rabbit_transient_queues_ttl,
        ),
    )


def _arguments(settings: Settings, quorum_option: str, ttl_s: int) -> Arguments:
    is_quorum = getattr(settings, quorum_option)
    if is_quorum and settings.rabbit_ha_queues:
        raise RuntimeError(
            f"Configuration Error: {quorum_option} and rabbit_ha_queues are both "
            "set, but a queue is quorum or HA (mirrored), not both: set one to false"
        )
    arguments: Arguments = {}
    if settings.rabbit_ha_queues:
        arguments["x-ha-policy"] = "all"
    if is_quorum:
        arguments["x-queue-type"] = "quorum"
        for name, limit in (
            ("x-delivery-limit", settings.rabbit_quorum_delivery_limit),
            ("x-max-in-memory-length", settings.rabbit_quorum_max_memory_length),
            ("x-max-in-memory-bytes", settings.rabbit_quorum_max_memory_bytes),
        ):
            if limit:
                arguments[name] = limit
    if ttl_s > 0:
        arguments["x-expires"] = ttl_s * 1000
    return arguments
