import pytest

from oslo_fastmsg import _topology
from oslo_fastmsg._options import Settings

DEFAULT = Settings()


def test_a_client_declares_the_exchange_and_never_a_queue():
    assert _topology.control_exchange(DEFAULT, "X") == [
        ("exchange", "X", "topic", False, False)
    ]
    assert _topology.fanout_exchange(DEFAULT, "T") == [
        ("exchange", "T_fanout", "fanout", False, True)
    ]


@pytest.mark.parametrize("exchange", ["", "amq.topic"])
def test_exchanges_of_the_broker_are_not_declared(exchange):
    assert _topology.control_exchange(DEFAULT, exchange) == []


def test_the_default_exchange_needs_no_binding():
    assert _topology.notified_queue(DEFAULT, "", "T.info") == [
        ("queue", "T.info", False, False, {})
    ]


def test_a_server_declares_its_three_queues_in_the_order_of_stock():
    declarations, queues = _topology.server_queues(DEFAULT, "X", "T", "S", "F")
    assert queues == ["T", "T.S", "F"]
    assert declarations == [
        ("exchange", "X", "topic", False, False),
        ("queue", "T", False, False, {}),
        ("bind", "T", "X", "T"),
        ("exchange", "X", "topic", False, False),
        ("queue", "T.S", False, False, {}),
        ("bind", "T.S", "X", "T.S"),
        ("exchange", "T_fanout", "fanout", False, True),
        ("queue", "F", False, False, {"x-expires": 1800000}),
        ("bind", "F", "T_fanout", "T"),
    ]


def test_a_notifier_declares_the_queue_too():
    assert _topology.notified_queue(DEFAULT, "X", "T.info") == [
        ("exchange", "X", "topic", False, False),
        ("queue", "T.info", False, False, {}),
        ("bind", "T.info", "X", "T.info"),
    ]


def test_a_pool_has_many_bindings_and_one_consumer():
    pairs = [("X", "T.info"), ("Y", "T.warn")]
    declarations, queues = _topology.listened_priorities(DEFAULT, pairs, "pool")
    assert queues == ["pool"]
    assert [d for d in declarations if d[0] == "bind"] == [
        ("bind", "pool", "X", "T.info"),
        ("bind", "pool", "Y", "T.warn"),
    ]
    assert _topology.listened_priorities(DEFAULT, pairs, None)[1] == [
        "T.info",
        "T.warn",
    ]


def test_two_exchanges_with_one_topic_share_a_queue():
    pairs = [("X", "T.info"), ("Y", "T.info")]
    assert _topology.listened_priorities(DEFAULT, pairs, None)[1] == ["T.info"]


def test_the_reply_queue_expires_and_outlives_its_connection():
    assert _topology.reply_queue(DEFAULT, "R") == [
        ("queue", "R", False, False, {"x-expires": 1800000})
    ]


def queue_of(declarations, name):
    (found,) = [d for d in declarations if d[:2] == ("queue", name)]
    return found


@pytest.mark.parametrize(
    ("settings", "topic", "fanout_exchange", "fanout"),
    [
        (
            {"amqp_durable_queues": True, "amqp_auto_delete": True},
            (True, True, {}),
            (False, True),
            (False, False, {"x-expires": 1800000}),
        ),
        (
            {"rabbit_ha_queues": True, "rabbit_transient_queues_ttl": 0},
            (False, False, {"x-ha-policy": "all"}),
            (False, True),
            (False, False, {"x-ha-policy": "all"}),
        ),
        (
            {
                "rabbit_quorum_queue": True,
                "rabbit_quorum_delivery_limit": 3,
                "rabbit_quorum_max_memory_length": 4,
                "rabbit_quorum_max_memory_bytes": 5,
            },
            (
                True,
                False,
                {
                    "x-queue-type": "quorum",
                    "x-delivery-limit": 3,
                    "x-max-in-memory-length": 4,
                    "x-max-in-memory-bytes": 5,
                },
            ),
            (False, True),
            (False, False, {"x-expires": 1800000}),
        ),
        (
            {"rabbit_transient_quorum_queue": True, "rabbit_quorum_delivery_limit": 3},
            (False, False, {}),
            (True, True),
            (
                True,
                False,
                {"x-queue-type": "quorum", "x-delivery-limit": 3, "x-expires": 1800000},
            ),
        ),
    ],
)
def test_options_change_flags_and_arguments(settings, topic, fanout_exchange, fanout):
    settings = Settings(**settings)
    declarations, _ = _topology.server_queues(settings, "X", "T", "S", "F")
    assert queue_of(declarations, "T")[2:] == topic
    assert queue_of(declarations, "T.S")[2:] == topic
    assert declarations[0] == ("exchange", "X", "topic", topic[0], topic[1])
    assert declarations[6][3:] == fanout_exchange
    assert queue_of(declarations, "F")[2:] == fanout
    assert _topology.fanout_exchange(settings, "T")[0][3:] == fanout_exchange
    assert _topology.reply_queue(settings, "R")[0][2:] == fanout
    assert queue_of(_topology.notified_queue(settings, "X", "N"), "N")[2:] == topic


def test_argument_order_is_that_of_stock():
    settings = Settings(
        rabbit_transient_quorum_queue=True,
        rabbit_quorum_delivery_limit=1,
        rabbit_quorum_max_memory_length=1,
        rabbit_quorum_max_memory_bytes=1,
    )
    assert list(_topology.reply_queue(settings, "R")[0][4]) == [
        "x-queue-type",
        "x-delivery-limit",
        "x-max-in-memory-length",
        "x-max-in-memory-bytes",
        "x-expires",
    ]


def test_a_queue_is_quorum_or_mirrored_not_both():
    both = Settings(rabbit_ha_queues=True, rabbit_quorum_queue=True)
    with pytest.raises(RuntimeError, match="not both"):
        _topology.server_queues(both, "X", "T", "S", "F")
    _topology.reply_queue(both, "R")  # this one is mirrored only
    with pytest.raises(RuntimeError, match="not both"):
        _topology.reply_queue(
            Settings(rabbit_ha_queues=True, rabbit_transient_quorum_queue=True), "R"
        )


@pytest.mark.parametrize(("ttl", "age"), [(1800, {"x-max-age": "1800s"}), (0, {})])
def test_a_topic_has_one_stream_and_its_messages_expire(ttl, age):
    settings = Settings(
        rabbit_stream_fanout=True,
        rabbit_transient_quorum_queue=True,
        rabbit_quorum_delivery_limit=3,
        rabbit_qos_prefetch_count=1,
        rabbit_transient_queues_ttl=ttl,
    )
    name = _topology.fanout_queue_name(settings, "T")
    assert name == "T_fanout"
    declarations, queues = _topology.server_queues(settings, "X", "T", "S", name)
    assert queues == ["T", "T.S", "T_fanout"]
    assert declarations[6:] == [
        ("exchange", "T_fanout", "fanout", True, True),
        ("queue", "T_fanout", True, False, {"x-queue-type": "stream", **age}),
        ("bind", "T_fanout", "T_fanout", "T"),
    ]
    assert _topology.reply_queue(settings, "R")[0][4]["x-queue-type"] == "quorum"


def test_streams_have_two_conditions():
    _topology.check(DEFAULT)
    with pytest.raises(RuntimeError, match="rabbit_qos_prefetch_count"):
        _topology.check(Settings(rabbit_stream_fanout=True))
    stream = {"rabbit_stream_fanout": True, "rabbit_qos_prefetch_count": 1}
    with pytest.raises(RuntimeError, match="rabbit_transient_quorum_queue"):
        _topology.check(Settings(**stream))
    _topology.check(Settings(**stream, rabbit_transient_quorum_queue=True))
