"""What goes wrong is said: the documented exception, host, cause, what to check.

Within its deadline, without a password, and with the connection and the work
of other threads unharmed.
"""

import contextlib
import logging
import socket
import threading
import traceback

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint
from fix_streams import needs_streams
from fix_wire import envelope, payload_of
from oslo_config import cfg

PASSWORD = "s3cret-Zq9/@:%"
QUOTED = "s3cret-Zq9%2F%40%3A%25"

QUICK = {"kombu_reconnect_delay": 0.05, "rabbit_retry_backoff": 0}


def url_of(broker, *, user="guest", password="guest", vhost="", host=None, port=None):
    host = host or broker.host
    return f"fastmsg://{user}:{password}@{host}:{port or broker.port}/{vhost}"


def all_text_of(error):
    """Whatever a log or a console would show of an exception."""
    return "".join([*traceback.format_exception(error), repr(error), str(error.args)])


# --- the URL ---


def test_an_unknown_option_of_the_url_is_no_such_option(driver, peers):
    with pytest.raises(cfg.NoSuchOptError, match="no_such_thing"):
        peers.transport(driver, query={"no_such_thing": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rabbit_retry_interval", "often"),
        ("rabbit_qos_prefetch_count", "1.5"),
        ("kombu_failover_strategy", "hope"),
        ("rabbit_login_method", "PIGEON"),
        ("ssl", "perhaps"),
    ],
)
def test_a_bad_value_in_the_url_is_a_value_error(driver, peers, name, value):
    with pytest.raises(ValueError, match=value):
        peers.transport(driver, query={name: value})


@pytest.mark.parametrize("value", ["soon", "-1"])
def test_a_bad_send_timeout_is_a_value_error(fast, peers, value):
    with pytest.raises(ValueError, match=f"{value}|greater"):
        peers.transport(fast, query={"send_timeout": value})


def test_a_port_that_cannot_be_is_an_invalid_url(fast, peers, broker):
    with pytest.raises(oslo_messaging.InvalidTransportURL) as caught:
        peers.transport(fast, url=url_of(broker, port=70000, password=QUOTED))

    assert "70000" in str(caught.value)
    assert "s3cret" not in all_text_of(caught.value)


# --- what the broker or the network refuses ---


@contextlib.contextmanager
def peer_that_says(words):
    """Listen on a port and greet whoever connects with these words."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    taken.append(connection)
                    connection.sendall(words)
                    if words.startswith(b"HTTP"):
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in taken:
        connection.close()


def wrong_password(broker):
    broker.add_user("operator", PASSWORD)
    return url_of(broker, user="operator", password="wr0ng-Zq9"), "wr0ng"


def missing_vhost(broker):
    return url_of(broker, vhost="no-such-vhost"), None


def forbidden_vhost(broker):
    broker.add_user("stranger", PASSWORD, vhost="/")
    broker.add_vhost("closed-vhost")
    return url_of(broker, user="stranger", password=QUOTED, vhost="closed-vhost"), None


def refused_port(broker):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return url_of(broker, port=probe.getsockname()[1]), None


def unresolvable_host(broker):
    return url_of(broker, host="no-such-host.invalid"), None


#: What is wrong, and words that the text has to have.
WRONG = {
    wrong_password: ["ACCESS_REFUSED|refused", "user and password"],
    missing_vhost: ["no-such-vhost", "virtual host"],
    forbidden_vhost: ["closed-vhost", "virtual host|permissions"],
    refused_port: ["refused", "host and port"],
    unresolvable_host: ["no-such-host.invalid", "host and port"],
}


@pytest.fixture
def tidy(broker):
    """Take away what the cases below add to the broker."""
    yield
    for user in ("operator", "stranger"):
        broker.evaluate(
            f'catch rabbit_auth_backend_internal:delete_user(<<"{user}">>, <<"test">>)'
        )
    broker.evaluate('catch rabbit_vhost:delete(<<"closed-vhost">>, <<"test">>)')


def assert_says(text, words):
    for alternatives in words:
        assert any(word in text for word in alternatives.split("|")), (
            alternatives,
            text,
        )


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_cast_that_cannot_connect_says_why(fast, peers, broker, topic, wrong):
    url, _ = wrong(broker)
    client = peers.client(fast, topic=topic, url=url, retry=0)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo")

    assert_says(str(caught.value), WRONG[wrong])
    assert url.rpartition("@")[2].split("/")[0].rpartition(":")[0] in str(caught.value)


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    "wrong", [wrong_password, missing_vhost, forbidden_vhost], ids=lambda w: w.__name__
)
def test_a_refused_login_ends_everything_at_once_whatever_retry_says(
    fast, peers, broker, topic, wrong
):
    url, _ = wrong(broker)
    transport = peers.transport(fast, url=url)
    client = peers.client(fast, topic=topic, transport=transport, timeout=30)

    for act in (
        lambda: client.cast({}, "echo"),
        lambda: client.prepare(fanout=True).cast({}, "echo"),
        lambda: client.call({}, "echo"),
        lambda: peers.server(fast, TestEndpoint(), topic=topic, transport=transport),
        lambda: peers.listener(fast, Notes(), topics=[topic], transport=transport),
    ):
        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            act()
        assert_says(str(caught.value), WRONG[wrong])


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"AMQP\x00\x01\x00\x00",
        b"\x16\x03\x01\x00\x05hello",
        b"\x00" * 64,
        b"\xff" * 200_000,
    ],
    ids=["http", "ssh", "amqp 1.0", "tls", "zeros", "flood"],
)
def test_a_peer_that_is_no_broker_is_said_to_be_none(fast, peers, broker, topic, words):
    with peer_that_says(words) as port:
        url = url_of(broker, port=port)
        client = peers.client(fast, topic=topic, url=url, retry=0, timeout=3)

        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            client.cast({}, "echo")
        with pytest.raises(
            (oslo_messaging.MessageDeliveryFailure, oslo_messaging.MessagingTimeout)
        ):
            client.call({}, "echo")

    assert f"127.0.0.1:{port}" in str(caught.value)
    assert_says(str(caught.value), ["AMQP|broker", "host and port"])


# --- what one operation is refused for, and others are not ---


@pytest.fixture
def bystander(fast, peers, topic):
    """A client and a server on the same connections, which go on working."""
    transport = peers.transport(fast)
    peers.server(fast, TestEndpoint(), topic=f"{topic}-by", transport=transport)
    client = peers.client(fast, topic=f"{topic}-by", transport=transport, timeout=5)
    assert client.call({}, "echo", arg=1) == 1
    return client


def assert_unharmed(bystander, broker):
    assert bystander.call({}, "echo", arg="still there") == "still there"
    products = [row["client_properties"]["product"] for row in broker.connections()]
    assert products.count("oslo-fastmsg") == 2


def test_a_message_above_the_brokers_limit_is_refused_alone(
    fast, peers, broker, topic, bystander
):
    def bound(size):
        broker.evaluate(f"application:set_env(rabbit, max_message_size, {size})")
        # Where RabbitMQ 4 looks: there it is from the node's start.
        broker.evaluate(f"persistent_term:put(max_message_size, {size})")

    limit = broker.evaluate("element(2, application:get_env(rabbit, max_message_size))")
    bound(100_000)
    try:
        # Channels ask for the limit when they are opened.
        other = peers.transport(fast, query={"heartbeat_timeout_threshold": 33})
        client = peers.client(fast, topic=topic, transport=other, timeout=5)
        client.cast({}, "echo", arg="small")

        for act in (client.cast, client.call):
            with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
                act({}, "echo", arg="x" * 200_000)
            assert_says(str(caught.value), ["message size|larger|PRECONDITION"])
        client.cast({}, "echo", arg="small")
        connections = len(broker.connections())
    finally:
        bound(limit)

    assert connections <= 4
    assert bystander.call({}, "echo", arg=2) == 2


def test_an_exchange_that_may_not_be_written_is_a_delivery_failure(
    fast, peers, broker, topic
):
    broker.set_permissions("guest", "/", write="^(?!forbidden).*")
    try:
        transport = peers.transport(fast)
        client = peers.client(fast, topic=topic, transport=transport)
        forbidden = peers.client(
            fast, topic=topic, transport=transport, target={"exchange": "forbidden"}
        )
        client.cast({}, "echo")

        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            forbidden.cast({}, "echo")
        assert_says(str(caught.value), ["ACCESS_REFUSED|access", "forbidden"])
        with pytest.raises(oslo_messaging.MessageDeliveryFailure):
            forbidden.call({}, "echo")
        client.cast({}, "echo")

        assert len(broker.connections()) <= 2
    finally:
        broker.set_permissions("guest", "/")


def test_an_exchange_of_another_type_refuses_a_cast_alone(
    fast, peers, broker, topic, spy, bystander
):
    spy.tap_exchange(topic, kind="fanout")
    client = peers.client(
        fast, topic=topic, transport=bystander.transport, target={"exchange": topic}
    )

    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo")
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.call({}, "echo")

    assert_says(str(caught.value), ["PRECONDITION_FAILED|inequivalent", topic])
    assert_unharmed(bystander, broker)


FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@pytest.fixture
def full(broker, topic, spy):
    """A queue of the topic that has no room: basic.nack, until it is emptied."""
    spy.tap_exchange("openstack", f"{topic}-unused")
    queue = spy.queue(**FULL)
    spy._channel.queue_bind(queue, "openstack", topic)
    spy.send("openstack", topic, b"{}")
    return queue


@pytest.mark.parametrize("retry", [0, None])
def test_a_full_queue_that_refuses_is_a_delivery_failure(
    fast, peers, broker, topic, full, bystander, retry
):
    """At once, or when the sender's time is over."""
    transport = bystander.transport
    if retry is None:
        transport = peers.transport(fast, query={"send_timeout": 1})
    client = peers.client(fast, topic=topic, transport=transport, retry=retry)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo")

    assert_says(str(caught.value), ["refused|nack|reject|not take", "limit"])
    assert_unharmed(bystander, broker)


def test_what_was_refused_for_a_moment_is_sent_again(
    fast, peers, broker, topic, spy, full, background
):
    """A quorum queue without a leader refuses as well, while it elects one."""
    client = peers.client(fast, topic=topic)
    pending = background(client.cast, {}, "echo", arg="again")
    stats = client.transport._driver._use_bus("test").stats
    wait_until(lambda: stats()["nacked"] > 0)

    broker.purge_queue(full)

    assert pending.result() is None
    assert payload_of(spy.tap(full, **FULL).get().body)["args"] == {"arg": "again"}
    assert stats()["nacked"] < 5


def test_what_is_refused_for_longer_is_sent_again_while_its_sender_waits(
    fast, peers, broker, topic, spy, full, background
):
    """A cluster on a busy machine takes its time to elect a leader."""
    client = peers.client(fast, topic=topic, timeout=30)
    pending = [
        background(client.call, {}, "echo", arg="call"),
        background(client.cast, {}, "echo", arg="cast"),
    ]
    stats = client.transport._driver._use_bus("test").stats
    # Pauses of 0.25, 0.5, 1, 2 and 4 s lie between six refusals.
    wait_until(lambda: stats()["nacked"] >= 12, 30)
    assert not any(one.is_done() for one in pending)

    broker.purge_queue(full)
    answers = spy.tap(full, **FULL)
    requests = [payload_of(answers.get().body) for _ in pending]
    (call,) = [it for it in requests if it["args"] == {"arg": "call"}]
    reply = {"result": "x", "failure": None, "ending": True}
    spy.send("", call["_reply_q"], envelope({**reply, "_msg_id": call["_msg_id"]}))

    assert [one.result() for one in pending] == ["x", None]
    assert {"arg": "cast"} in [it["args"] for it in requests]


def test_a_call_that_is_refused_all_the_time_says_so_at_its_timeout(
    fast, peers, topic, full
):
    client = peers.client(fast, topic=topic, timeout=1)

    with pytest.raises(oslo_messaging.MessagingTimeout, match=r"basic\.nack"):
        client.call({}, "echo")


@needs_streams
def test_streams_without_their_conditions_are_refused_as_by_stock(fast, peers, topic):
    client = peers.client(fast, topic=topic, rabbit={"rabbit_stream_fanout": True})

    with pytest.raises(RuntimeError, match="rabbit_qos_prefetch_count"):
        client.cast({}, "echo")


def test_quorum_and_ha_together_are_refused_as_by_stock(driver, peers, topic):
    with pytest.raises(RuntimeError, match="quorum"):
        peers.server(
            driver,
            TestEndpoint(),
            topic=topic,
            rabbit={"rabbit_quorum_queue": True, "rabbit_ha_queues": True},
        )


def test_a_pool_that_cannot_be_is_a_driver_load_failure(driver, peers):
    with pytest.raises(oslo_messaging.DriverLoadFailure, match="conn_pool_min_size"):
        peers.transport(driver, query={"rpc_conn_pool_size": 1})


# --- no password, ever ---


@pytest.mark.usefixtures("tidy")
def test_no_password_is_in_a_log_an_exception_or_a_repr(
    fast, peers, broker, topic, proxy, caplog
):
    caplog.set_level(logging.DEBUG)
    broker.add_user("operator", PASSWORD)
    texts = []

    def attempt(url, act):
        transport = peers.transport(fast, url=url, rabbit=QUICK)
        texts.append(repr(transport._driver) + repr(vars(transport)))
        try:
            act(transport)
        except Exception as error:
            texts.append(all_text_of(error))

    def cast(transport):
        peers.client(fast, topic=topic, transport=transport, retry=0).cast({}, "echo")

    def call(transport):
        client = peers.client(fast, topic=topic, transport=transport, timeout=1)
        client.call({}, "echo")

    def serve(transport):
        peers.server(fast, TestEndpoint(), topic=topic, transport=transport)

    credentials = {"user": "operator", "password": QUOTED}
    good = url_of(broker, **credentials)
    for act in (cast, serve, call):
        attempt(good, act)
        attempt(good + "no-such-vhost", act)
        attempt(url_of(broker, user="guest", password=QUOTED), act)
    for act in (cast, call):
        attempt(url_of(broker, **credentials, host="no-such-host.invalid"), act)
        attempt(refused_port(broker)[0].replace("guest:guest", f"u:{QUOTED}"), act)
    # A connection that is lost and made again.
    lost = url_of(broker, **credentials, port=proxy.port)
    transport = peers.transport(fast, url=lost, rabbit=QUICK)
    cast(transport)
    proxy.cut()
    peers.client(fast, topic=topic, transport=transport).cast({}, "echo")
    peers.close()

    assert len(texts) > 20
    ours = [r.getMessage() for r in caplog.records if "oslo_fastmsg" in r.name]
    assert ours
    for text in [*texts, caplog.text]:
        assert "s3cret" not in text
