"""The rest of what the rig's proxy does, each seen by the driver."""

import contextlib
import time

import oslo_messaging
import pytest
from fix_faults import QUICK
from fix_load import Accounting, sender
from fix_objects import wait_until

SIZE = 3000


@pytest.fixture
def call(fast, peers, proxy, topic, account):
    peers.server(fast, Accounting(account, "server"), topic=topic)
    client = peers.client(fast, topic=topic, via=proxy, rabbit=QUICK)
    it = sender(account, "call", client, padding=SIZE, timeout=20)
    it()
    return it


@pytest.mark.parametrize(
    ("slowness", "least_s"),
    [
        ({"delay_s": 0.2}, 0.4),  # there and back
        ({"rate": 10_000}, 2 * SIZE / 10_000 * 0.8),
        ({"slice": 1}, 0.0),
        ({"slice": 7, "delay_s": 0.1}, 0.2),
    ],
    ids=["delay", "rate", "bytes", "both"],
)
def test_a_slow_network_is_only_slow(proxy, account, call, slowness, least_s):
    proxy.slow(**slowness)
    start = time.monotonic()
    call()

    assert time.monotonic() - start >= least_s
    proxy.slow()
    call()
    account.balance()
    assert len(proxy.links()) == 2


@pytest.mark.parametrize(
    "words",
    [
        (320, "as told", 0, 0),
        (541, "as told", 0, 0),
        # No queue was declared when it came.
        (541, "Feature `transient_nonexcl_queues` is deprecated.", 60, 20),
    ],
)
def test_a_connection_that_is_closed_is_made_again(proxy, account, call, words):
    for link in proxy.open_links():
        proxy.inject("connection.close", *words, link=link)
    wait_until(lambda: len(proxy.links()) == 4)

    call()

    account.balance()
    assert len(proxy.open_links()) == 2


def test_a_broker_that_says_it_blocks_is_believed(fast, peers, proxy, topic):
    client = peers.client(fast, topic=topic, via=proxy, query={"send_timeout": 0.5})
    client.cast({}, "take")
    (link,) = proxy.open_links()
    proxy.inject("connection.blocked", "low on memory", link=link)

    # Its confirm comes after that, if it was sent before.
    with contextlib.suppress(oslo_messaging.MessageDeliveryFailure):
        client.cast({}, "take")
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="blocks"):
        client.cast({}, "take")

    proxy.inject("connection.unblocked", link=link)
    client.cast({}, "take")
