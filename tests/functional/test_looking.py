"""What stats() counts and what health() finds wrong, on a live broker.

Peers of one test that connect to the same place share the process's connections:
so a client and a server are one entry of ``brokers``.
"""

import contextlib
import json
import os
import statistics
import time

import oslo_messaging
import pytest
from fix_looking import assert_is_typed
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint, standalone_peers
from fix_proxy import named
from fix_wire import request

import oslo_fastmsg
from oslo_fastmsg import _looking

PASSWORD = "a-word-that-no-look-may-show"


def only_broker():
    (broker,) = oslo_fastmsg.stats()["brokers"]
    return broker


def is_well():
    return oslo_fastmsg.health()["ok"]


def wait_for_reason(text, timeout=10.0):
    """Wait until health() is bad because of this."""
    found = []

    def is_found():
        health = oslo_fastmsg.health()
        found[:] = health["reasons"]
        assert health["ok"] == (health["reasons"] == [])
        return any(text in reason for reason in health["reasons"])

    wait_until(is_found, timeout, f"'{text}' among the reasons, last {found}")
    return found


def reply_queues():
    return [
        consumer["queues"][0]
        for broker in oslo_fastmsg.health()["brokers"]
        for consumer in broker["consumers"]
        if consumer["replies"]
    ]


# --- stats ---


def test_a_process_that_used_nothing_yet_has_no_brokers(fast, peers, topic):
    peers.client(fast, topic=topic)

    assert oslo_fastmsg.stats()["brokers"] == []
    assert oslo_fastmsg.health() == {"ok": True, "reasons": [], "brokers": []}


def test_everything_has_its_documented_type_and_is_plain(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    peers.client(fast, topic=topic, via=proxy).call({}, "echo")

    for look, kind in (
        (oslo_fastmsg.stats(), _looking.Stats),
        (oslo_fastmsg.health(), _looking.Health),
    ):
        assert_is_typed(look, kind)
        assert json.loads(json.dumps(look)) == look
    assert oslo_fastmsg.stats()["pid"] == os.getpid()
    assert abs(oslo_fastmsg.stats()["time"] - time.time()) < 5


def test_calls_casts_and_notifications_are_counted(fast, peers, topic, proxy):
    endpoint, notes = TestEndpoint(), Notes()
    peers.server(fast, endpoint, topic=topic, via=proxy)
    peers.listener(fast, notes, topics=[f"{topic}-n"], via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    notifier = peers.notifier(fast, f"{topic}-n", via=proxy)

    for number in range(5):
        assert client.call({}, "echo", arg=number) == number
    for number in range(3):
        client.cast({}, "echo", arg=number)
    for number in range(2):
        notifier.info({}, "event", number)
    endpoint.seen.wait(8)
    notes.seen.wait(2)

    wait_until(lambda: only_broker()["in_flight"] == 0, what="all confirms")
    broker = only_broker()
    assert broker["published"] == 5 + 5 + 3 + 2  # the replies are ours as well
    assert broker["confirmed"] == 5 + 5 + 3 + 2
    assert broker["delivered"] == 5 + 5 + 3 + 2
    for name in ("nacked", "returned", "resent", "failed", "unsent", "parked"):
        assert broker[name] == 0, name
    for name in ("duplicates", "rejected", "waiting_calls", "late_replies"):
        assert broker[name] == 0, name
    assert broker["blocked_s"] == 0.0


def test_bytes_are_those_on_the_wire_from_the_login_on(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    for size in (10, 10**5):
        assert len(client.call({}, "echo", arg="x" * size)) == size

    def on_the_wire():
        counts = {}
        for link in proxy.links():
            # Three frames of each side log in.
            sent, received = (
                sum(len(frame.payload) + 8 for _, frame in frames[3:])
                for frames in (link.sent, link.received)
            )
            (name,) = {"publishing", "consuming"} & {
                "publishing" if link.methods("basic.publish") else "consuming"
            }
            counts[name] = (sent, received)
        return counts

    def counted():
        broker = only_broker()
        return {
            name: (broker[name]["bytes_sent"], broker[name]["bytes_received"])
            for name in ("publishing", "consuming")
        }

    wait_until(lambda: counted() == on_the_wire(), what=f"{counted()} on the wire")
    assert counted()["publishing"][0] > 2 * 10**5
    assert counted()["consuming"][1] > 2 * 10**5


def test_a_connection_says_where_to_and_since_when(fast, peers, topic, proxy):
    before = time.time()
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    peers.client(fast, topic=topic, via=proxy).call({}, "echo")

    broker = only_broker()

    assert broker["hosts"] == [f"{proxy.host}:{proxy.port}"]
    assert broker["virtual_host"] == "/"
    for role in ("publishing", "consuming"):
        connection = broker[role]
        assert connection["state"] == "open"
        assert connection["host"] == f"{proxy.host}:{proxy.port}"
        assert before - 0.1 <= connection["since"] <= time.time()
        assert 0 <= connection["since_s"] <= time.time() - before + 0.1
        assert (connection["connects"], connection["reconnects"]) == (1, 0)
        assert connection["heartbeat"] == 60


def test_reconnects_and_what_was_sent_again_are_counted(fast, peers, topic, proxy):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    client.call({}, "echo")
    opened = only_broker()["publishing"]["since"]
    proxy.cut_when(named("basic.publish", from_client=True), forward=False)

    client.cast({}, "echo", arg="again")

    endpoint.seen.wait(2)
    broker = only_broker()
    assert broker["publishing"]["reconnects"] == 1
    assert broker["consuming"]["reconnects"] == 0
    assert broker["resent"] == 1
    assert broker["publishing"]["since"] > opened


def test_what_is_returned_is_counted(fast, peers, topic, proxy):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    client = peers.client(fast, topic=topic, via=proxy, transport_options=options)

    with pytest.raises(oslo_messaging.exceptions.MessageUndeliverable):
        client.cast({}, "echo")

    assert only_broker()["returned"] == 1


def test_what_is_refused_is_counted(fast, peers, topic, proxy, spy):
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    spy.tap_exchange("openstack", f"{topic}-unused")
    queue = spy.queue(**full)
    spy._channel.queue_bind(queue, "openstack", topic)
    spy.send("openstack", topic, b"{}")
    client = peers.client(fast, topic=topic, via=proxy, retry=0)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.cast({}, "echo")

    broker = only_broker()
    assert (broker["nacked"], broker["confirmed"]) == (1, 0)


def test_waiting_calls_and_late_replies_are_counted(
    fast, peers, topic, proxy, background
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy, timeout=1)
    pending = background(client.call, {}, "wait")
    endpoint.seen.wait(1)
    assert only_broker()["waiting_calls"] == 1
    with pytest.raises(oslo_messaging.MessagingTimeout):
        pending.result()
    assert only_broker()["waiting_calls"] == 0

    endpoint.gate.set()

    wait_until(lambda: only_broker()["late_replies"] == 1)
    assert only_broker()["round_trips"]["count"] == 0


def test_duplicates_and_rejected_messages_are_counted(fast, peers, topic, spy):
    endpoint = TestEndpoint()
    server = peers.server(fast, endpoint, topic=topic, threads=1)
    body = request("echo", arg="once")
    for _ in range(3):
        spy.send("openstack", topic, body)
    for _ in range(2):
        spy.send("openstack", topic, b"no envelope")
    spy.send("openstack", topic, request("echo", arg="after"))
    endpoint.seen.wait(2)

    def counts():
        broker = only_broker()
        return broker["delivered"], broker["duplicates"], broker["rejected"]

    assert counts() == (6, 2, 2)
    # Nor do they go with the consumer.
    client = peers.client(fast, topic=topic)  # keeps the connections
    client.cast({}, "echo", arg="more")
    endpoint.seen.wait(3)
    peers.stop(server)
    peers.clean(server.transport)
    wait_until(lambda: oslo_fastmsg.health()["brokers"][0]["consumers"] == [])
    assert counts() == (7, 2, 2)


def test_round_trips_are_in_buckets_of_powers_of_two(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    for _ in range(5):
        client.call({}, "echo")
    for _ in range(2):
        client.call({}, "last", seconds=0.2)

    trips = only_broker()["round_trips"]

    assert trips["count"] == sum(trips["buckets"]) == 7
    # Bucket i: below 2**i us. 0.2 s are above 2**17 us.
    assert sum(trips["buckets"][18:]) >= 2
    assert sum(trips["buckets"][:4]) == 0
    assert trips["sum_s"] >= 0.4


def test_an_alarm_is_bad_health_and_its_seconds_are_counted(fast, peers, topic, broker):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic)
    client.call({}, "echo")
    assert is_well()

    broker.set_alarm()
    # The broker tells it to who publishes.
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=0.5).call({}, "echo")
    reasons = wait_for_reason("the broker blocks publishers")
    assert len(reasons) == 1
    assert oslo_fastmsg.health()["brokers"][0]["blocked_s"] > 0
    during = only_broker()["blocked_s"]
    assert during > 0
    broker.clear_alarm()

    wait_until(is_well)
    assert oslo_fastmsg.health()["brokers"][0]["blocked_s"] is None
    after = only_broker()["blocked_s"]
    assert after >= during
    assert only_broker()["blocked_s"] == after


def test_no_password_is_shown(fast, peers, topic, broker):
    broker.add_user("looker", PASSWORD)
    url = f"fastmsg://looker:{PASSWORD}@{broker.host}:{broker.port}/"
    peers.server(fast, TestEndpoint(), topic=topic, url=url)
    peers.client(fast, topic=topic, url=url).call({}, "echo")

    text = json.dumps([oslo_fastmsg.stats(), oslo_fastmsg.health()])

    assert f"{broker.host}:{broker.port}" in text
    assert PASSWORD not in text


def test_each_set_of_connections_has_its_counts(fast, peers, topic, proxy):
    peers.client(fast, topic=topic, via=proxy).cast({}, "echo")
    beside = peers.client(fast, topic=topic)
    for _ in range(2):
        beside.cast({}, "echo")

    first, second = oslo_fastmsg.stats()["brokers"]

    assert (first["hosts"], first["published"]) == ([f"127.0.0.1:{proxy.port}"], 1)
    assert second["published"] == 2


# --- health ---


def test_a_process_that_calls_and_is_called_is_well(fast, peers, topic, proxy):
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    peers.listener(fast, Notes(), topics=[f"{topic}-n"], via=proxy)
    peers.client(fast, topic=topic, via=proxy).call({}, "echo")

    health = oslo_fastmsg.health()

    assert health["ok"], health["reasons"]
    (broker,) = health["brokers"]
    assert (broker["ok"], broker["reasons"]) == (True, [])
    for role in ("publishing", "consuming"):
        assert broker[role]["state"] == "open"
        assert broker[role]["wanted"]
        assert broker[role]["failures"] == 0
        assert 0 <= broker[role]["heard_s"] < 60
    consumers = broker["consumers"]
    assert [each["state"] for each in consumers] == ["consuming"] * 3
    assert all(each["wanted"] and each["present"] for each in consumers)
    assert [each["replies"] for each in consumers].count(True) == 1
    assert any(topic in each["queues"] for each in consumers)


def test_who_only_casts_is_well_without_the_other_connection(fast, peers, topic):
    peers.client(fast, topic=topic).cast({}, "echo")

    health = oslo_fastmsg.health()

    assert health["ok"], health["reasons"]
    consuming = health["brokers"][0]["consuming"]
    assert (consuming["state"], consuming["wanted"]) == ("idle", False)
    assert (consuming["host"], consuming["heard_s"]) == (None, None)


def test_a_server_that_was_stopped_on_purpose_is_no_reason(fast, peers, topic):
    server = peers.server(fast, TestEndpoint(), topic=topic)
    peers.client(fast, topic=topic).call({}, "echo")

    server.stop()

    health = oslo_fastmsg.health()
    assert health["ok"], health["reasons"]
    states = {
        consumer["state"]: consumer["wanted"]
        for consumer in health["brokers"][0]["consumers"]
    }
    assert states == {"stopped": False, "consuming": True}


def test_a_broker_that_is_gone_is_bad_health_until_it_is_back(
    fast, peers, topic, proxy
):
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    client.call({}, "echo")

    proxy.refuse()
    proxy.cut()

    wait_for_reason("the publish connection is not open")
    reasons = wait_for_reason("the consume connection is not open")
    assert len(reasons) == 2  # one for each, and none for each consumer
    assert all(f"127.0.0.1:{proxy.port}: " in reason for reason in reasons)
    wait_until(
        lambda: oslo_fastmsg.health()["brokers"][0]["publishing"]["failures"] > 0
    )
    proxy.accept()
    wait_until(is_well, 20)
    assert client.call({}, "echo", arg="back") == "back"
    assert oslo_fastmsg.health()["brokers"][0]["publishing"]["failures"] == 0


@pytest.mark.slow
def test_a_stopped_broker_is_bad_health_until_it_runs(fast, own_broker, tmp_path):
    with standalone_peers(own_broker.url(), str(tmp_path)) as peers:
        peers.server(fast, TestEndpoint(), topic="t")
        client = peers.client(fast, topic="t")
        client.call({}, "echo")
        assert is_well()

        own_broker.halt()

        wait_for_reason("the consume connection is not open")
        own_broker.start()
        wait_until(is_well, 30)
        assert client.call({}, "echo", arg="back") == "back"


def consuming_through(proxy):
    """Give what is known of the consuming connection through a proxy."""
    (found,) = (
        each["consuming"]
        for each in oslo_fastmsg.health()["brokers"]
        if each["hosts"] == [f"{proxy.host}:{proxy.port}"]
    )
    return found


def test_a_broker_that_refuses_the_login_is_bad_health(fast, peers, topic, broker):
    url = f"fastmsg://nobody:{PASSWORD}@{broker.host}:{broker.port}/"
    client = peers.client(fast, topic=topic, url=url)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.cast({}, "echo")

    # Nobody waits for it any more, and yet nobody can call.
    wait_until(lambda: not oslo_fastmsg.health()["brokers"][0]["publishing"]["wanted"])
    reasons = wait_for_reason("the publish connection is not open")
    assert PASSWORD not in json.dumps(reasons)


def test_a_connection_that_failed_and_is_not_wanted_is_no_bad_health(
    fast, peers, topic, proxy
):
    """Who called was cleaned up in the outage; who casts goes on."""
    caller = peers.transport(fast, via=proxy)
    other = peers.transport(fast, via=proxy)
    peers.server(fast, TestEndpoint(), topic=topic)
    peers.client(fast, topic=topic, transport=caller).call({}, "echo")
    client = peers.client(fast, topic=topic, transport=other)
    client.cast({}, "echo")

    proxy.refuse()
    proxy.cut()
    wait_for_reason("the consume connection is not open")
    wait_until(lambda: consuming_through(proxy)["failures"] > 0)
    peers.clean(caller)
    proxy.accept()
    client.cast({}, "echo")

    wait_until(is_well)
    assert consuming_through(proxy)["state"] == "idle"


def test_a_silent_broker_is_bad_health_before_the_connection_is_given_up(
    fast, peers, topic, proxy
):
    options = {"heartbeat_timeout_threshold": 4}
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy, rabbit=options)
    client = peers.client(fast, topic=topic, via=proxy, rabbit=options)
    client.call({}, "echo")

    proxy.silence()

    wait_for_reason("nothing heard on the consume connection for")
    heard_s = oslo_fastmsg.health()["brokers"][0]["consuming"]["heard_s"]
    assert heard_s > 4 * 1.5
    proxy.resume()
    wait_until(is_well, 20)


@pytest.mark.parametrize("whose", ["the consumer of", "the reply queue"])
def test_a_queue_that_is_deleted_and_not_restored_is_bad_health(
    fast, peers, topic, proxy, broker, whose
):
    """The driver declares and consumes again, and the broker gets none of that."""
    peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    client.call({}, "echo")
    (reply_queue,) = reply_queues()
    queue = topic if whose == "the consumer of" else reply_queue
    # All of it, or the answers would come out of turn.
    methods = ("exchange.declare", "queue.declare", "queue.bind", "basic.consume")
    proxy.drop(named(*methods, from_client=True))

    broker.delete_queue(queue)

    (reason,) = wait_for_reason(f"{whose} ")
    assert f"'{queue}'" in reason
    assert "is not there (starting)" in reason
    connections = oslo_fastmsg.health()["brokers"][0]
    assert connections["consuming"]["state"] == "open"  # and yet it is deaf
    proxy.drop(None)
    proxy.cut()  # what was lost on the way would not come any more
    wait_until(is_well, 20)
    assert client.call({}, "echo", arg="heard") == "heard"


def test_a_server_that_the_broker_refused_is_not_missed(fast, peers, topic, spy):
    spy.exchange(f"exchange-{topic}", "direct")
    transport = peers.transport(fast, control_exchange=f"exchange-{topic}")
    server = oslo_messaging.get_rpc_server(
        transport, oslo_messaging.Target(topic=topic, server="s"), [TestEndpoint()]
    )
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        server.start()

    # It is given up by who wanted it, so nothing is missing any more.
    wait_until(is_well)


# --- wherever it is asked ---


def look_in_a_child(pipe, url, directory, topic):
    """Fork in the midst of use; tell what parent and child see."""
    with standalone_peers(url, directory) as peers:
        client = peers.client("fast", topic=topic)
        assert client.call({}, "echo", arg=1) == 1
        before = oslo_fastmsg.stats()
        report_in, report_out = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                at_first = [oslo_fastmsg.stats(), oslo_fastmsg.health()]
                client.call({}, "echo", arg=2)
                report = [*at_first, oslo_fastmsg.stats(), oslo_fastmsg.health()]
                os.write(report_out, json.dumps(report).encode())
            os._exit(0)
        os.close(report_out)
        with open(report_in, "rb") as report:
            child = json.loads(report.read())
        os.waitpid(pid, 0)
        pipe.send((os.getpid(), pid, before, child, oslo_fastmsg.stats()))


def test_a_forked_child_has_counts_and_health_of_its_own(
    fast, peers, topic, broker, tmp_path
):
    peers.server(fast, TestEndpoint(), topic=topic)
    it = peers.child(look_in_a_child, broker.url(), str(tmp_path), topic)

    parent_pid, child_pid, before, child, after = it.receive(40)

    (parents,) = before["brokers"]
    assert parents["published"] == 1
    new_stats, new_health, used_stats, used_health = child
    assert (new_stats["pid"], new_stats["brokers"]) == (child_pid, [])
    assert new_health == {"ok": True, "reasons": [], "brokers": []}
    (own,) = used_stats["brokers"]
    assert own["published"] == 1
    assert own["publishing"]["connects"] == own["consuming"]["connects"] == 1
    assert used_health["ok"], used_health
    assert after["pid"] == parent_pid
    assert after["brokers"][0]["published"] == 1  # the child's is not ours


def test_looking_while_all_comes_and_goes_harms_nobody(
    fast, peers, topic, proxy, background
):
    """Under connections that are cut, and transports that come and go."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy)
    is_over = []

    def look():
        count = 0
        while not is_over:
            assert_is_typed(oslo_fastmsg.stats(), _looking.Stats)
            assert_is_typed(oslo_fastmsg.health(), _looking.Health)
            count += 1
        return count

    lookers = [background(look) for _ in range(2)]
    for number in range(10):
        client = peers.client(fast, topic=topic, via=proxy)
        if number % 5 == 2:
            proxy.cut()
        assert client.call({}, "echo", arg=number) == number
        peers.clean(client.transport)
    is_over.append(True)

    assert all(each.result() > 0 for each in lookers)


@pytest.mark.timing
@pytest.mark.parametrize("state", ["well", "refused", "silent"])
def test_health_answers_within_a_millisecond(fast, peers, topic, proxy, state):
    for number in range(20):
        peers.server(
            fast, TestEndpoint(), topic=f"{topic}-{number}", via=proxy, threads=1
        )
    client = peers.client(fast, topic=f"{topic}-0", via=proxy)
    client.call({}, "echo")
    if state == "refused":
        proxy.refuse()
        proxy.cut()
        wait_for_reason("the consume connection is not open")
    elif state == "silent":
        proxy.silence()
        proxy.cut()  # and so it hangs in the midst of logging in
        wait_for_reason("the consume connection is not open")

    spent = []
    for _ in range(500):
        begin = time.perf_counter()
        health = oslo_fastmsg.health()
        spent.append(time.perf_counter() - begin)
    assert health["ok"] == (state == "well")

    spent.sort()
    print(
        f"\n{state}, {len(health['brokers'][0]['consumers'])} consumers: "
        f"median {statistics.median(spent) * 1e6:.0f} us, "
        f"p99 {spent[int(len(spent) * 0.99)] * 1e6:.0f} us"
    )
    assert statistics.median(spent) < 1e-3
    proxy.resume()
    proxy.accept()
