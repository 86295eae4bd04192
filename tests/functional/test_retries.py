"""What `retry` means: how often a lost or refused connection is made again."""

import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint
from fix_proxy import named

QUICK = {
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}


def notify(transport, topic, retry):
    """What a notifier does, without its catching every exception."""
    transport._send_notification(
        oslo_messaging.Target(topic=f"{topic}.info"),
        {},
        {"priority": "INFO", "payload": 1},
        version=2.0,
        retry=retry,
    )


def cast(transport, topic, retry, peers):
    peers.client("fast", topic=topic, transport=transport, retry=retry).cast(
        {}, "echo", arg=1
    )


def fanout(transport, topic, retry, peers):
    client = peers.client("fast", topic=topic, transport=transport, retry=retry)
    client.prepare(fanout=True).cast({}, "echo", arg=1)


def call(transport, topic, retry, peers):
    client = peers.client(
        "fast", topic=topic, transport=transport, retry=retry, timeout=60
    )
    client.call({}, "echo", arg=1)


def notification(transport, topic, retry, peers):
    notify(transport, topic, retry)


SENDS = pytest.mark.parametrize(
    "send", [cast, fanout, call, notification], ids=lambda send: send.__name__
)


@pytest.fixture
def transport(fast, peers, proxy):
    return peers.transport(fast, via=proxy, rabbit=QUICK)


@SENDS
@pytest.mark.parametrize("retry", [0, 1])
def test_a_refused_port_is_a_delivery_failure_after_so_many_tries(
    transport, peers, proxy, topic, send, retry
):
    proxy.refuse()

    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        send(transport, topic, retry, peers)

    assert f"{proxy.host}:{proxy.port}" in str(caught.value)
    assert "refused" in str(caught.value)


@SENDS
def test_a_lost_connection_is_a_delivery_failure_without_retry(
    transport, peers, proxy, topic, send
):
    peers.client("fast", topic=topic, transport=transport).cast({}, "echo")
    # Whatever comes, it is neither confirmed nor answered.
    proxy.drop(named("basic.ack", "basic.deliver", from_client=False))
    proxy.cut_when(named("body", from_client=True))

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        send(transport, topic, 0, peers)


@SENDS
@pytest.mark.parametrize("retry", [None, -1])
def test_without_a_limit_it_is_tried_until_the_broker_is_there(
    transport, peers, proxy, topic, background, send, retry
):
    peers.server("fast", TestEndpoint(), topic=topic)
    proxy.slam()

    pending = background(send, transport, topic, retry, peers)
    proxy.wait_for(lambda: proxy.slammed >= 2)
    assert not pending.is_done()
    proxy.accept()

    pending.result()


@SENDS
def test_one_loss_is_borne_with_one_retry(transport, peers, proxy, topic, send):
    peers.server("fast", TestEndpoint(), topic=topic)
    peers.client("fast", topic=topic, transport=transport).cast({}, "echo")
    proxy.cut_when(named("body", from_client=True), forward=False)

    send(transport, topic, 1, peers)


@pytest.mark.timing
def test_a_failure_without_retry_is_quick(transport, peers, proxy, topic):
    proxy.refuse()
    start = time.monotonic()

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        cast(transport, topic, 0, peers)

    assert time.monotonic() - start < 2


def test_a_later_try_is_a_fresh_one(transport, peers, proxy, topic):
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(oslo_messaging.MessageDeliveryFailure):
            cast(transport, topic, 0, peers)

    proxy.accept()

    cast(transport, topic, None, peers)


def test_two_hosts_that_refuse_are_both_named(fast, peers, broker, proxy, topic):
    proxy.refuse()
    url = (
        f"fastmsg://guest:guest@{proxy.host}:{proxy.port},"
        f"guest:guest@localhost:{proxy.port}/"
    )
    transport = peers.transport(fast, url=url, rabbit=QUICK)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        cast(transport, topic, 1, peers)

    assert f"{proxy.host}:{proxy.port}" in str(caught.value)
    assert f"localhost:{proxy.port}" in str(caught.value)


def test_a_server_starts_when_its_broker_is_there(
    fast, peers, proxy, topic, background
):
    """It has no deadline of its own, as in stock."""
    proxy.slam()
    endpoint = TestEndpoint()

    pending = background(
        peers.server, fast, endpoint, topic=topic, via=proxy, rabbit=QUICK
    )
    proxy.wait_for(lambda: proxy.slammed >= 2)
    assert not pending.is_done()
    proxy.accept()
    pending.result()

    assert peers.client(fast, topic=topic).call({}, "echo", arg=1) == 1


def test_a_notifier_swallows_failures(driver, peers, topic, proxy, caplog):
    notifier = peers.notifier(driver, topic, retry=0, via=proxy)
    proxy.refuse()

    notifier.info({}, "event", {})

    assert "Could not send notification" in caplog.text


def test_a_notifier_that_is_told_to_wait_does(
    fast, peers, topic, proxy, broker, background
):
    notifier = peers.notifier(fast, topic, retry=-1, via=proxy, rabbit=QUICK)
    proxy.slam()

    pending = background(notifier.info, {}, "event", {})
    proxy.wait_for(lambda: proxy.slammed >= 2)
    assert not pending.is_done()
    proxy.accept()

    pending.result()
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 1)
