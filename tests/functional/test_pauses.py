"""What the options say of the pauses between attempts to connect.

The pause that is drawn is in the line that tells of a failed round; only short ones
are waited for.
"""

import re
import socket

import oslo_messaging
import pytest
from fix_peer import stock_takes

LINE = re.compile(r"next attempt in (\d+\.\d) s")


@pytest.fixture
def closed_port():
    """Give a port where nobody listens, as it is bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def first_pause(fast, peers, topic, closed_port, caplog):
    """Give a function that fails to connect, and tells the first pause."""

    def fail(**rabbit):
        caplog.clear()
        transport = peers.transport(
            fast, url=f"fastmsg://guest:guest@127.0.0.1:{closed_port}/", rabbit=rabbit
        )
        client = peers.client(fast, topic=topic, transport=transport, retry=0)
        with pytest.raises(oslo_messaging.MessageDeliveryFailure):
            client.cast({}, "echo")
        peers.clean(transport)
        return float(LINE.search(caplog.text)[1])

    return fail


@pytest.mark.options("rabbit_retry_interval")
def test_the_first_pause_is_a_part_of_the_interval(first_pause):
    assert all(0 < first_pause(kombu_reconnect_delay=0) <= 1.1 for _ in range(10))
    long = {"rabbit_retry_interval": 1000, "kombu_reconnect_delay": 0}
    assert all(100 <= first_pause(**long) <= 1001 for _ in range(10))


@pytest.mark.options("kombu_reconnect_delay")
def test_the_delay_is_added_to_the_interval(first_pause):
    pauses = [first_pause(kombu_reconnect_delay=4) for _ in range(20)]
    assert all(0.5 <= pause <= 5.1 for pause in pauses)
    assert max(pauses) > 1.1


@pytest.mark.options("kombu_reconnect_splay")
@pytest.mark.skipif(
    not stock_takes("kombu_reconnect_splay", 1.0),
    reason="the option came with oslo.messaging 16.1",
)
def test_a_random_part_of_the_splay_is_added(first_pause):
    quick = {"kombu_reconnect_delay": 0, "rabbit_interval_max": 1}
    pauses = [first_pause(**quick, kombu_reconnect_splay=5000) for _ in range(20)]
    assert max(pauses) > 1500
    assert all(pause <= 5001.1 for pause in pauses)
    assert len(set(pauses)) > 10


@pytest.mark.options("rabbit_retry_backoff", "rabbit_interval_max")
def test_later_pauses_grow_up_to_a_bound(fast, peers, topic, closed_port, caplog):
    def second_pause(**rabbit):
        caplog.clear()
        transport = peers.transport(
            fast,
            url=f"fastmsg://guest:guest@127.0.0.1:{closed_port}/",
            rabbit={"kombu_reconnect_delay": 0, **rabbit},
        )
        client = peers.client(fast, topic=topic, transport=transport, retry=0)
        # The second one does not wait for all of the first pause.
        for _ in range(2):
            with pytest.raises(oslo_messaging.MessageDeliveryFailure):
                client.cast({}, "echo")
        peers.clean(transport)
        return float(LINE.findall(caplog.text)[-1])

    assert second_pause(rabbit_retry_backoff=0) <= 1.1
    # From a tenth of the interval to all of it.
    assert 100 <= second_pause(rabbit_retry_backoff=1000, rabbit_interval_max=5000)
    assert 10 <= second_pause(rabbit_retry_backoff=1000, rabbit_interval_max=100) <= 102
