"""Nothing waits longer than it may, whatever the broker does or does not."""

import os
import signal
import threading
import time

import oslo_messaging
import pytest
from fix_load import notify
from fix_objects import wait_until
from fix_peer import Notes, Peers, TestEndpoint
from fix_proxy import named
from fix_wire import envelope, payload_of, request

pytestmark = pytest.mark.timing

TIMEOUT = 0.6
# What a bound may be exceeded by, on a machine that is busy with the rest.
SLACK = 1.0


class Stopwatch:
    def __enter__(self):
        self.start = time.monotonic()
        return self

    def __exit__(self, *exc_info):
        self.elapsed = time.monotonic() - self.start


def assert_times_out(call, timeout=TIMEOUT, error=oslo_messaging.MessagingTimeout):
    with Stopwatch() as watch, pytest.raises(error) as caught:
        call()
    assert timeout * 0.99 <= watch.elapsed < timeout + SLACK
    return str(caught.value)


# --- calls ---


def test_a_call_that_nobody_answers_ends_at_its_timeout(driver, peers, topic):
    client = peers.client(driver, topic=topic, timeout=TIMEOUT)
    client.cast({}, "echo")

    assert_times_out(lambda: client.call({}, "echo"))


def test_a_call_to_a_refused_port_ends_at_its_timeout(fast, peers, topic, proxy):
    proxy.refuse()
    client = peers.client(fast, topic=topic, timeout=TIMEOUT, via=proxy)

    text = assert_times_out(lambda: client.call({}, "echo"))

    assert f"{proxy.host}:{proxy.port}" in text
    assert "refused" in text


def test_a_call_to_a_silent_port_ends_at_its_timeout(fast, peers, topic, proxy):
    proxy.silence()
    client = peers.client(fast, topic=topic, timeout=TIMEOUT, via=proxy)

    assert_times_out(lambda: client.call({}, "echo"))


def test_a_call_on_a_connection_that_fell_silent_ends_at_its_timeout(
    fast, peers, topic, proxy
):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=TIMEOUT, via=proxy)
    client.call({}, "echo")
    proxy.silence()

    assert_times_out(lambda: client.call({}, "echo"))

    proxy.resume()
    assert client.call({}, "echo", arg="again") == "again"


def test_a_call_through_a_connection_that_was_lost_ends_at_its_timeout(
    fast, peers, topic, proxy
):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(
        fast,
        topic=topic,
        timeout=TIMEOUT,
        via=proxy,
        rabbit={"rabbit_retry_backoff": 0},
    )
    client.call({}, "echo")
    proxy.refuse()
    proxy.cut()

    assert_times_out(lambda: client.call({}, "echo"))

    proxy.accept()
    assert client.prepare(timeout=20).call({}, "echo", arg="again") == "again"


def test_a_call_that_is_never_confirmed_nor_answered_ends_at_its_timeout(
    fast, peers, topic, proxy
):
    client = peers.client(fast, topic=topic, timeout=TIMEOUT, via=proxy)
    proxy.drop(named("basic.ack", from_client=False))

    assert_times_out(lambda: client.call({}, "echo"))


def test_a_call_that_is_answered_before_it_is_confirmed_succeeds(
    fast, peers, topic, proxy
):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=5, via=proxy)
    proxy.drop(named("basic.ack", from_client=False))

    with Stopwatch() as watch:
        assert client.call({}, "echo", arg=1) == 1
    assert watch.elapsed < SLACK


def test_a_paused_broker_ends_calls_at_their_timeout(fast, own_broker, tmp_path, topic):
    peers = Peers(own_broker, tmp_path)
    try:
        peers.server(fast, TestEndpoint(), topic=topic)
        client = peers.client(fast, topic=topic, timeout=TIMEOUT)
        client.call({}, "echo")
        own_broker.pause()

        assert_times_out(lambda: client.call({}, "echo"))

        own_broker.resume()
        assert client.prepare(timeout=20).call({}, "echo", arg=1) == 1
    finally:
        own_broker.resume()
        peers.close()


def test_a_call_with_timeout_0_ends_at_once_and_sends_nothing(
    fast, peers, topic, proxy
):
    client = peers.client(fast, topic=topic, timeout=0, via=proxy)

    with Stopwatch() as watch, pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo")

    assert watch.elapsed < 0.2
    assert proxy.publications() == []


@pytest.mark.parametrize("timeout", [-1, -0.5])
def test_a_negative_timeout_is_a_delivery_failure(driver, peers, topic, timeout):
    client = peers.client(driver, topic=topic, timeout=timeout)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.call({}, "echo")


def test_the_default_timeout_is_rpc_response_timeout(driver, peers, topic):
    client = peers.client(driver, topic=topic, timeout=None, rpc_response_timeout=1)

    assert_times_out(lambda: client.call({}, "echo"), timeout=1)


def test_64_calls_time_out_together(fast, peers, topic, background):
    client = peers.client(fast, topic=topic, timeout=TIMEOUT)
    client.cast({}, "echo")

    def call():
        assert_times_out(lambda: client.call({}, "echo"))

    for pending in [background(call) for _ in range(64)]:
        pending.result()


def test_a_monitored_call_without_a_sign_of_life_ends_early(driver, peers, topic):
    client = peers.client(driver, topic=topic, timeout=20, monitor=1)

    assert_times_out(lambda: client.call({}, "echo"), timeout=1)


# --- casts and the like: send_timeout ---


@pytest.fixture
def unconfirmed(fast, peers, topic, proxy):
    """A client, connected through a proxy that keeps confirms back."""
    transport = peers.transport(
        fast, via=proxy, query={"send_timeout": TIMEOUT}, notification=True
    )
    client = peers.client(fast, topic=topic, transport=transport)
    client.cast({}, "echo")
    client.prepare(fanout=True).cast({}, "echo")
    notify(transport, topic)
    proxy.drop(named("basic.ack", from_client=False))
    return client


@pytest.mark.options("send_timeout")
@pytest.mark.parametrize("kind", ["cast", "fanout", "notification"])
def test_a_withheld_confirm_is_a_delivery_failure_at_send_timeout(
    unconfirmed, topic, kind
):
    send = {
        "cast": lambda: unconfirmed.cast({}, "echo"),
        "fanout": lambda: unconfirmed.prepare(fanout=True).cast({}, "echo"),
        "notification": lambda: notify(unconfirmed.transport, topic),
    }[kind]

    text = assert_times_out(send, error=oslo_messaging.MessageDeliveryFailure)

    assert "send_timeout" in text


def test_the_connection_survives_a_withheld_confirm(unconfirmed, proxy):
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        unconfirmed.cast({}, "echo")

    proxy.drop(None)
    unconfirmed.cast({}, "echo")

    assert len(proxy.links()) == 1


@pytest.mark.options("send_timeout")
def test_send_timeout_is_rpc_response_timeout_unless_set(fast, peers, topic, proxy):
    client = peers.client(fast, topic=topic, via=proxy, rpc_response_timeout=1)
    client.cast({}, "echo")
    proxy.drop(named("basic.ack", from_client=False))

    assert_times_out(
        lambda: client.cast({}, "echo"),
        timeout=1,
        error=oslo_messaging.MessageDeliveryFailure,
    )


# --- a memory alarm of the broker ---


@pytest.fixture
def alarm(broker):
    """Raise and clear a memory alarm."""
    yield broker.set_alarm
    broker.clear_alarm()


def test_an_alarm_bounds_calls_and_casts(fast, peers, topic, broker, alarm):
    client = peers.client(
        fast, topic=topic, timeout=TIMEOUT, query={"send_timeout": TIMEOUT}
    )
    client.cast({}, "echo")
    alarm()
    # The broker blocks who publishes, so the first one may get through.
    for _ in range(2):
        start_cast(client)

    assert_times_out(
        lambda: client.cast({}, "echo"), error=oslo_messaging.MessageDeliveryFailure
    )
    assert_times_out(lambda: client.call({}, "echo"))

    broker.clear_alarm()
    client.prepare(timeout=20).cast({}, "echo")


@pytest.mark.parametrize("kind", ["fanout", "notification"])
def test_an_alarm_bounds_fanouts_and_notifications(
    fast, peers, topic, broker, alarm, kind
):
    client = peers.client(fast, topic=topic, query={"send_timeout": TIMEOUT})
    send = {
        "fanout": lambda: client.prepare(fanout=True).cast({}, "echo"),
        "notification": lambda: notify(client.transport, topic),
    }[kind]
    send()
    alarm()
    for _ in range(2):
        start_cast(client)

    assert_times_out(send, error=oslo_messaging.MessageDeliveryFailure)

    broker.clear_alarm()
    send()


def start_cast(client):
    try:
        client.cast({}, "echo")
    except oslo_messaging.MessageDeliveryFailure:
        return


def test_what_waits_for_the_end_of_an_alarm_goes_on_after_it(
    fast, peers, topic, broker, alarm, background
):
    endpoint = TestEndpoint()
    client = peers.client(fast, topic=topic, timeout=20, query={"send_timeout": 20})
    peers.server(fast, endpoint, topic=topic, transport=client.transport)
    client.cast({}, "echo", arg="first")
    endpoint.seen.wait()
    alarm()

    pending = [background(client.cast, {}, "echo", arg=n) for n in range(5)]
    call = background(client.call, {}, "echo", arg="call")
    wait_until(lambda: "blocked" in {row["state"] for row in broker.connections()})
    assert not call.is_done()
    broker.clear_alarm()

    for one in pending:
        one.result()
    assert call.result() == "call"
    assert set(endpoint.seen.wait(7)) == {"first", "call", *range(5)}


def test_consumers_go_on_under_an_alarm(fast, peers, topic, broker, spy, alarm):
    """The publishing connection is blocked, the consuming one is not."""
    for _ in range(50):
        leave_a_note(spy, topic)
    client = peers.client(fast, topic=topic, query={"send_timeout": TIMEOUT})
    client.cast({}, "echo")
    alarm()
    for _ in range(2):
        start_cast(client)
    wait_until(lambda: "blocked" in {row["state"] for row in broker.connections()})

    notes = Notes(["info"])
    peers.listener(fast, notes, topics=[topic], transport=client.transport)

    notes.seen.wait(50)
    wait_until(lambda: broker.queue(f"{topic}.info")["messages"] == 0)


def leave_a_note(spy, topic):
    spy.queue(f"{topic}.info")
    note = {"priority": "INFO", "payload": 1, "publisher_id": "p", "event_type": "e"}
    spy.send("", f"{topic}.info", envelope({**note, "timestamp": "t"}))


def test_replies_come_through_under_an_alarm(
    fast, peers, topic, broker, spy, alarm, background
):
    """The caller's publishing connection is blocked, not the one he listens on."""
    requests = spy.tap_exchange("openstack", topic)
    client = peers.client(fast, topic=topic, query={"send_timeout": TIMEOUT})
    pending = background(client.call, {}, "echo")
    request = payload_of(requests.get().body)
    alarm()
    for _ in range(2):
        start_cast(client)
    wait_until(lambda: "blocked" in {row["state"] for row in broker.connections()})

    reply = {"result": "x", "failure": None, "ending": True}
    broker.publish(
        request["_reply_q"], envelope({**reply, "_msg_id": request["_msg_id"]})
    )

    assert pending.result(5) == "x"


# --- stopping ---


def test_an_idle_server_stops_at_once(fast, peers, topic):
    server = peers.server(fast, TestEndpoint(), topic=topic)

    with Stopwatch() as watch:
        server.stop()
    assert watch.elapsed < SLACK


def test_cleanup_is_bounded_when_the_broker_is_silent(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, via=proxy)
    client.call({}, "echo")
    proxy.silence()

    with Stopwatch() as watch:
        peers.clean(client.transport)

    assert watch.elapsed < 12


# --- waking ---


def test_a_call_returns_when_its_reply_is_there(fast, peers, topic):
    """No poll interval: stock releases looked every half second."""
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic)
    client.call({}, "echo")

    with Stopwatch() as watch:
        for _ in range(20):
            client.call({}, "echo")

    assert watch.elapsed < 20 * 0.1


def test_acks_of_notifications_are_sent_at_once(fast, peers, topic, broker):
    """Prefetch 1 and an idle listener: each ack lets the next one come."""
    notes = Notes(["info"], lambda note: time.sleep(0.02))
    peers.listener(fast, notes, topics=[topic], rabbit={"rabbit_qos_prefetch_count": 1})
    notifier = peers.notifier(fast, topic)
    for number in range(30):
        notifier.info({}, "event", number)
    notes.seen.wait(1)

    with Stopwatch() as watch:
        notes.seen.wait(30)

    assert watch.elapsed < 30 * 0.1


def test_a_gone_callers_replies_occupy_no_worker(fast, peers, topic, spy):
    """Stock tries for a minute in the worker's own thread."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=2)
    for number in range(8):
        spy.send("openstack", topic, request("echo", None, f"gone-{number}", arg=1))
    client = peers.client(fast, topic=topic)

    with Stopwatch() as watch:
        assert client.call({}, "echo", arg="alive") == "alive"

    assert watch.elapsed < 5
    assert len(endpoint.seen.wait(9)) == 9


def test_interrupting_signals_reach_a_waiting_caller(fast, peers, topic):
    """Ctrl-C while a call waits in C."""
    client = peers.client(fast, topic=topic, timeout=20)
    client.cast({}, "echo")
    # To the process, as a terminal does it.
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()

    with Stopwatch() as watch, pytest.raises(KeyboardInterrupt):
        client.call({}, "echo")

    assert watch.elapsed < 0.5 + SLACK
