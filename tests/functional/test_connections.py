"""How many connections, threads and descriptors there are, and for how long."""

import gc
import os
import re
import sys
import threading

import oslo_messaging
import pytest
from fix_objects import connections_to, descriptors, threads, wait_until
from fix_peer import Notes, TestEndpoint, standalone_peers


def test_making_a_transport_opens_nothing_and_starts_nothing(fast, peers, proxy, topic):
    before = threads(), descriptors()

    for notification in (False, True):
        peers.transport(fast, via=proxy, notification=notification)
    peers.client(fast, topic=topic, via=proxy)
    peers.notifier(fast, topic, via=proxy)
    transport = peers.transport(fast, via=proxy)
    oslo_messaging.get_rpc_server(
        transport, oslo_messaging.Target(topic=topic, server="s"), []
    )

    assert (threads(), descriptors()) == before
    assert proxy.links() == []


def test_cleaning_up_an_unused_transport_is_nothing(fast, peers, proxy):
    peers.clean(peers.transport(fast, via=proxy))

    assert proxy.links() == []


def test_a_client_that_casts_has_one_connection(driver, peers, proxy, topic):
    client = peers.client(driver, topic=topic, via=proxy)

    client.cast({}, "echo")
    client.cast({}, "echo")

    assert len(proxy.links()) == 1


def test_64_threads_servers_listeners_and_transports_share_two_connections(
    fast, peers, proxy, topic, background, broker
):
    for number in range(3):
        peers.server(fast, TestEndpoint(), topic=topic, server=f"s{number}", via=proxy)
    for number in range(2):
        peers.listener(fast, Notes(["info"]), topics=[f"{topic}-{number}"], via=proxy)
    clients = [peers.client(fast, topic=topic, via=proxy) for _ in range(4)]
    notifier = peers.notifier(fast, topic, via=proxy)
    together = threading.Barrier(64)

    def use(number):
        together.wait(30)
        client = clients[number % len(clients)]
        for step in range(10):
            assert client.call({}, "echo", arg=[number, step]) == [number, step]
        notifier.info({}, "event", number)
        client.prepare(fanout=True).cast({}, "echo", arg=None)

    for future in [background(use, number) for number in range(64)]:
        future.result(60)

    assert len(proxy.links()) == 2
    assert connections_to(proxy.port) == 2
    assert len(broker.connections()) == 2
    channels = broker.channels()
    assert sum(channel["confirm"] for channel in channels) <= 3


def test_another_virtual_host_gets_connections_of_its_own(
    fast, peers, proxy, topic, broker
):
    other = "other-vhost"
    broker.add_vhost(other)
    try:
        peers.client(fast, topic=topic, via=proxy).cast({}, "echo")
        url = proxy.url("fastmsg") + other
        peers.client(fast, topic=topic, url=url).cast({}, "echo")

        assert len(proxy.links()) == 2
    finally:
        peers.close()
        broker.delete_vhost(other)


def test_a_cleaned_up_process_has_no_thread_and_no_descriptor_left(
    fast, peers, proxy, topic
):
    gc.collect()  # or what others left would be closed below, and missing then
    before = threads(), descriptors()
    endpoint = TestEndpoint()
    server = peers.server(fast, endpoint, topic=topic, via=proxy)
    listener = peers.listener(fast, Notes(["info"]), topics=[topic], via=proxy)
    client = peers.client(fast, topic=topic, via=proxy)
    assert client.call({}, "echo", arg=1) == 1
    assert threads() != before[0]

    for it in (server, listener):
        peers.stop(it)
        peers.clean(it.transport)
    peers.clean(client.transport)

    wait_until(lambda: not proxy.open_links(), what="closed connections")
    wait_until(lambda: threads() == before[0], what="threads as before")
    gc.collect()
    wait_until(lambda: descriptors() == before[1], what="descriptors as before")


def test_connections_end_with_the_last_of_their_users(fast, peers, proxy, topic):
    clients = [peers.client(fast, topic=topic, via=proxy) for _ in range(3)]
    for client in clients:
        client.cast({}, "echo")

    for client in clients[:-1]:
        peers.clean(client.transport)
    clients[-1].cast({}, "echo")
    assert len(proxy.open_links()) == 1
    peers.clean(clients[-1].transport)

    wait_until(lambda: not proxy.open_links())
    assert len(proxy.links()) == 1


def test_connections_are_closed_the_way_amqp_has_it(driver, peers, proxy, topic):
    peers.server(driver, TestEndpoint(), topic=topic, via=proxy)
    peers.client(driver, topic=topic, via=proxy).call({}, "echo")

    peers.close()

    wait_until(lambda: not proxy.open_links())
    for link in proxy.links():
        assert len(link.methods("connection.close")) == 1


def test_a_transport_can_be_made_anew_after_the_last_was_cleaned_up(
    fast, peers, proxy, topic
):
    for number in range(3):
        server = peers.server(fast, TestEndpoint(), topic=topic, via=proxy)
        client = peers.client(fast, topic=topic, via=proxy)
        assert client.call({}, "echo", arg=number) == number
        peers.stop(server)
        peers.clean(server.transport)
        peers.clean(client.transport)
        wait_until(lambda: not proxy.open_links())

    assert len(proxy.links()) == 6


def test_a_transport_that_was_cleaned_up_says_so(fast, peers, topic):
    client = peers.client(fast, topic=topic)
    client.cast({}, "echo")
    peers.clean(client.transport)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
        client.cast({}, "echo")
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
        client.call({}, "echo")


def test_cleanup_wakes_who_still_waits_for_a_reply(fast, peers, topic, background):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(fast, topic=topic, timeout=60)
    pending = background(client.call, {}, "wait")
    endpoint.seen.wait()

    peers.clean(client.transport)

    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        pending.result(10)
    endpoint.gate.set()


def test_connections_announce_their_name_and_capabilities(driver, peers, topic, broker):
    peers.server(driver, TestEndpoint(), topic=topic)
    peers.client(driver, topic=topic).call({}, "echo")

    connections = broker.connections()

    name = re.compile(
        re.escape(os.path.basename(sys.argv[0]))
        + rf":{os.getpid()}:[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}(:.*)?"
    )
    names = [row["client_properties"]["connection_name"] for row in connections]
    assert all(map(name.fullmatch, names)), names
    assert len(set(names)) == len(names)
    for row in connections:
        capabilities = row["client_properties"]["capabilities"]
        for key in (
            "authentication_failure_close",
            "connection.blocked",
            "consumer_cancel_notify",
        ):
            assert capabilities[key] is True


@pytest.mark.options("rabbit_login_method")
@pytest.mark.parametrize("method", ["PLAIN", "AMQPLAIN"])
def test_the_login_method_is_the_options(driver, peers, topic, broker, method):
    peers.client(driver, topic=topic, rabbit={"rabbit_login_method": method}).cast(
        {}, "echo"
    )

    assert [row["auth_mechanism"] for row in broker.connections()] == [method]


@pytest.mark.options("heartbeat_timeout_threshold")
@pytest.mark.parametrize("seconds", [0, 7, 60])
def test_the_heartbeat_is_the_options(driver, peers, topic, broker, seconds):
    peers.client(
        driver, topic=topic, rabbit={"heartbeat_timeout_threshold": seconds}
    ).cast({}, "echo")

    assert [row["timeout"] for row in broker.connections()] == [seconds]


def test_options_in_the_url_win_over_the_file(driver, peers, topic, broker):
    client = peers.client(
        driver,
        topic=topic,
        rabbit={"heartbeat_timeout_threshold": 11},
        query={"heartbeat_timeout_threshold": 22},
    )
    client.cast({}, "echo")

    assert [row["timeout"] for row in broker.connections()] == [22]


def test_an_idle_connection_is_kept_by_heartbeats(driver, peers, topic, proxy):
    client = peers.client(
        driver, topic=topic, via=proxy, rabbit={"heartbeat_timeout_threshold": 1}
    )
    client.cast({}, "echo")

    def beats():
        (link,) = proxy.links()
        return [frame for _, frame in link.sent if frame.name == "heartbeat"]

    proxy.wait_for(lambda: len(beats()) >= 3, 15)

    assert len(proxy.open_links()) == 1
    client.cast({}, "echo")
    assert len(proxy.links()) == 1


@pytest.mark.options("heartbeat_timeout_threshold")
def test_a_silent_broker_is_given_up_after_two_heartbeats(fast, peers, topic, proxy):
    client = peers.client(
        fast, topic=topic, via=proxy, rabbit={"heartbeat_timeout_threshold": 1}
    )
    client.cast({}, "echo")

    proxy.silence()
    proxy.wait_for(lambda: len(proxy.links()) >= 2, 15, "another connection")
    proxy.resume()

    client.cast({}, "echo")


# --- processes ---


def fork_and_call(pipe, url, directory, topic, when):
    with standalone_peers(url, directory) as peers:
        client = peers.client("fast", topic=topic)
        if when == "after":
            pipe.send(client.call({}, "echo", arg="parent first"))
        pid = os.fork()
        if pid == 0:
            try:
                pipe.send(client.call({}, "echo", arg="child"))
                pipe.send(client.call({}, "echo", arg="child again"))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        pipe.send(client.call({}, "echo", arg="parent"))
        pipe.recv()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_transport_works_in_a_forked_child(
    fast, peers, topic, broker, tmp_path, when
):
    peers.server(fast, TestEndpoint(), topic=topic)
    child = peers.child(fork_and_call, broker.url(), str(tmp_path), topic, when)

    if when == "after":
        assert child.receive() == "parent first"
    assert child.receive() == "child"
    assert child.receive() == "child again"
    assert child.receive() == "parent"


def cast_and_leave(pipe, url, directory, topic):
    folder = standalone_peers(url, directory)
    peers = folder.__enter__()
    client = peers.client("fast", topic=topic)
    client.call({}, "echo", arg="call")
    client.cast({}, "echo", arg="cast")
    threading.Thread(target=client.call, args=({}, "wait"), daemon=True).start()
    # No cleanup: the process just ends, with a call in flight.


def test_a_process_may_end_without_cleanup(fast, peers, topic, broker, tmp_path):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)

    child = peers.child(cast_and_leave, broker.url(), str(tmp_path), topic)

    assert child.join() == 0
    assert set(endpoint.seen.wait(2)) >= {"call", "cast"}
    endpoint.gate.set()


def serve_once_and_leave(pipe, url, directory, topic):
    folder = standalone_peers(url, directory)
    peers = folder.__enter__()
    endpoint = TestEndpoint()
    peers.server("fast", endpoint, topic=topic)
    pipe.send("ready")
    endpoint.seen.wait()
    pipe.recv()


def test_a_reply_gets_out_of_a_process_that_ends(fast, peers, topic, broker, tmp_path):
    """It was handed over only; the exit waits for it."""
    child = peers.child(serve_once_and_leave, broker.url(), str(tmp_path), topic)
    assert child.receive() == "ready"
    client = peers.client(fast, topic=topic)

    assert client.call({}, "echo", arg="last words") == "last words"
    child.send("leave")

    assert child.join() == 0
