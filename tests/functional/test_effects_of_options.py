"""Options of the stock driver, as far as the broker or a peer sees them.

Those that change what is declared are in test_declarations.py and in
tests/interop/test_option_combinations.py, those about TLS in test_tls.py.
"""

import contextlib
import gc
import socket
import threading
import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Log, Notes, TestEndpoint, stock_takes
from fix_wire import request
from oslo_config import cfg


def serve(peers, driver, topic, rabbit):
    peers.server(driver, TestEndpoint(), topic=topic, rabbit=rabbit)


def listen(peers, driver, topic, rabbit):
    peers.listener(driver, Notes(["info"]), topics=[topic], rabbit=rabbit)


def call(peers, driver, topic, rabbit):
    peers.client(driver, topic=topic, timeout=1, rabbit=rabbit).call({}, "echo")


def cast(peers, driver, topic, rabbit):
    peers.client(driver, topic=topic, retry=0, rabbit=rabbit).cast({}, "echo")


def notify(peers, driver, topic, rabbit):
    """Send a notification without the notifier, who would only log the error."""
    transport = peers.transport(driver, notification=True, rabbit=rabbit)
    transport._send_notification(
        oslo_messaging.Target(topic=f"{topic}.info"),
        {},
        {"priority": "INFO", "payload": 1},
        version=2.0,
        retry=0,
    )


# --- what is seen ---


@pytest.mark.options("rabbit_qos_prefetch_count")
@pytest.mark.parametrize("act", [serve, listen], ids=lambda act: act.__name__)
def test_the_prefetch_is_the_options(driver, peers, broker, topic, act):
    act(peers, driver, topic, {"rabbit_qos_prefetch_count": 7})
    wait_until(broker.consumers)

    assert {row["prefetch_count"] for row in broker.consumers()} == {7}


@pytest.mark.options("direct_mandatory_flag")
@pytest.mark.parametrize("is_set", [True, False])
def test_replies_are_mandatory_as_the_option_says(driver, peers, topic, proxy, is_set):
    rabbit = {"direct_mandatory_flag": is_set}
    peers.server(driver, TestEndpoint(), topic=topic, via=proxy, rabbit=rabbit)
    client = peers.client(driver, topic=topic)

    assert client.call({}, "echo", arg=1) == 1

    (reply,) = proxy.publications()
    assert reply.routing_key.startswith("reply_")
    assert reply.mandatory is is_set


@pytest.mark.options("kombu_missing_consumer_retry_timeout")
def test_a_reply_to_nobody_is_given_up_when_the_option_says(
    driver, peers, topic, spy, caplog
):
    rabbit = {"kombu_missing_consumer_retry_timeout": 1}
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, rabbit=rabbit)
    spy.send("openstack", topic, request("echo", None, "reply_of_nobody"))
    endpoint.seen.wait()
    began = time.monotonic()

    gone = {"fast": "dropped the reply", "stock": "Abandoning..."}[driver]
    wait_until(lambda: gone in caplog.text)

    assert time.monotonic() - began > 0.5  # it was tried again


@pytest.fixture
def doors():
    """Give three ports that close each connection at once, and who knocked."""
    with contextlib.ExitStack() as stack:
        knocks = Log()

        def answer(door, number):
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = door.accept()
                    knocks.add(number)
                    connection.close()

        ports, threads = [], []
        for number in range(3):
            door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(door.getsockname()[1])
            threads.append(threading.Thread(target=answer, args=(door, number)))
            threads[-1].start()
            stack.callback(door.shutdown, socket.SHUT_RDWR)
        yield ports, knocks
    for thread in threads:
        thread.join(10)


@pytest.mark.options("kombu_failover_strategy")
@pytest.mark.parametrize("strategy", ["round-robin", "shuffle"])
def test_hosts_are_tried_in_turn_or_in_any_order(fast, peers, topic, doors, strategy):
    ports, knocks = doors
    hosts = ",".join(f"guest:guest@127.0.0.1:{port}" for port in ports)
    transport = peers.transport(
        fast,
        url=f"fastmsg://{hosts}/",
        rabbit={
            "kombu_failover_strategy": strategy,
            "kombu_reconnect_delay": 0,
            "rabbit_retry_backoff": 0,
            "rabbit_interval_max": 1,
        },
    )
    client = peers.client(fast, topic=topic, transport=transport, retry=8)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.cast({}, "echo")

    tried = knocks.wait(24)[:24]
    rounds = [tried[at : at + 3] for at in range(0, 24, 3)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds)  # none is left out
    in_turn = [(number + 1) % 3 for number in tried[:-1]]
    assert (tried[1:] == in_turn) is (strategy == "round-robin")


# --- what is refused, by both ---

#: Options; what is refused; the words of our text that say what to change.
REFUSED = {
    "quorum and ha": (
        {"rabbit_quorum_queue": True, "rabbit_ha_queues": True},
        [serve, listen, notify],
        ["rabbit_quorum_queue", "rabbit_ha_queues"],
    ),
    "transient quorum and ha": (
        {"rabbit_transient_quorum_queue": True, "rabbit_ha_queues": True},
        [serve, call],
        ["rabbit_transient_quorum_queue", "rabbit_ha_queues"],
    ),
    "streams and ha": (
        {
            "rabbit_stream_fanout": True,
            "rabbit_qos_prefetch_count": 1,
            "rabbit_transient_quorum_queue": True,
            "rabbit_ha_queues": True,
        },
        [serve, call],
        ["rabbit_transient_quorum_queue", "rabbit_ha_queues"],
    ),
    "streams without prefetch": (
        {"rabbit_stream_fanout": True, "rabbit_transient_quorum_queue": True},
        [serve, listen, call, cast, notify],
        ["rabbit_stream_fanout", "rabbit_qos_prefetch_count"],
    ),
    "streams without transient quorum": (
        {"rabbit_stream_fanout": True, "rabbit_qos_prefetch_count": 1},
        [serve, listen, call, cast, notify],
        ["rabbit_stream_fanout", "rabbit_transient_quorum_queue"],
    ),
    "quorum and auto-delete": (
        {"rabbit_quorum_queue": True, "amqp_auto_delete": True},
        [serve, listen, notify],
        ["rabbit_quorum_queue", "amqp_auto_delete"],
    ),
    "too large a prefetch": (
        {"rabbit_qos_prefetch_count": 65536},
        [serve, listen],
        ["rabbit_qos_prefetch_count", "65535"],
    ),
    "no such version of TLS": (
        {"ssl": True, "ssl_version": "TLSv9"},
        [serve, listen, call, cast, notify],
        ["TLSv9"],
    ),
    "a login that no broker has": (
        {"rabbit_login_method": "RABBIT-CR-DEMO"},
        [serve, listen, call, cast, notify],
        ["rabbit_login_method"],
    ),
}


@pytest.mark.options(
    "amqp_auto_delete",
    "rabbit_ha_queues",
    "rabbit_login_method",
    "rabbit_qos_prefetch_count",
    "rabbit_quorum_queue",
    "rabbit_stream_fanout",
    "rabbit_transient_quorum_queue",
    "ssl_version",
)
# Stock leaves sockets to the collector when it refuses.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_refuses_is_refused_and_says_why(fast, peers, topic, name):
    options, acts, words = REFUSED[name]
    if not all(stock_takes(option, value) for option, value in options.items()):
        pytest.skip("the installed oslo.messaging does not have these options")
    for number, act in enumerate(acts):
        errors = {}
        for driver in ("stock", fast):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - stock's are many
                act(peers, driver, f"{topic}-{number}-{driver}", options)
            errors[driver] = caught.value
            # It is the options, and not that nobody answers.
            assert not isinstance(caught.value, oslo_messaging.MessagingTimeout)
        ours = errors[fast]
        assert [word for word in words if word not in str(ours)] == []
        if isinstance(errors["stock"], RuntimeError):
            assert isinstance(ours, RuntimeError)
        else:  # the broker's 406, struct.error, ValueError
            assert isinstance(
                ours, RuntimeError | oslo_messaging.MessageDeliveryFailure
            )
        del caught, errors, ours
    peers.close()
    gc.collect()


@pytest.mark.options("rpc_conn_pool_size", "conn_pool_min_size")
def test_a_pool_that_cannot_be_is_refused_by_both(peers, topic):
    for driver in ("stock", "fast"):
        with pytest.raises(
            oslo_messaging.DriverLoadFailure, match="conn_pool_min_size"
        ):
            cast(peers, driver, topic, {"rpc_conn_pool_size": 1})


@pytest.mark.options(
    "kombu_reconnect_delay",
    "kombu_reconnect_splay",
    "rabbit_interval_max",
    "rabbit_retry_backoff",
    "rabbit_retry_interval",
    "rabbit_transient_queues_ttl",
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kombu_reconnect_delay", -1),
        ("kombu_reconnect_splay", -1),
        ("rabbit_interval_max", 0),
        ("rabbit_retry_backoff", -1),
        ("rabbit_retry_interval", 0),
        ("rabbit_transient_queues_ttl", -1),
    ],
)
def test_values_out_of_the_options_limits_are_refused_by_both(
    peers, topic, name, value
):
    """At the latest when they are used."""
    if stock_takes(name, value):
        pytest.skip("the installed oslo.messaging has no such limit")
    if not stock_takes(name, 2):
        pytest.skip("the installed oslo.messaging does not have the option")

    def use(driver, how):
        transport = peers.transport(driver, **{how: {name: value}})
        peers.client(driver, topic=topic, transport=transport).cast({}, "echo")

    for driver in ("stock", "fast"):
        for how in ("rabbit", "query"):
            with pytest.raises((ValueError, cfg.ConfigFileValueError)):
                use(driver, how)
