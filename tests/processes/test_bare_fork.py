"""Hosts of Python in C fork without telling Python: uWSGI does by default.

No handler of ``os.register_at_fork`` runs then. A transport that was made
before, used or not, works in each child as if it had been told.
"""

import ctypes
import os
from multiprocessing.connection import Connection

import pytest
from fix_peer import TestEndpoint, standalone_peers

CHILDREN = 3
CALLS = 20


def call_in_children(
    pipe: Connection, url: str, directory: str, topic: str, is_used: bool
) -> None:
    with standalone_peers(url, directory) as peers:
        client = peers.client("fast", topic=topic, timeout=10)
        if is_used:
            assert client.call({}, "echo", arg="before") == "before"
        pids = []
        for child in range(CHILDREN):
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                status = 1
                try:
                    for number in range(CALLS):
                        assert client.call({}, "echo", arg=[child, number]) == [
                            child,
                            number,
                        ]
                    client.cast({}, "echo", arg="cast")
                    client.transport.cleanup()
                    status = 0
                except BaseException as error:
                    pipe.send(repr(error))
                finally:
                    os._exit(status)
            pids.append(pid)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert client.call({}, "echo", arg="after") == "after"
        pipe.send(ends)


@pytest.mark.parametrize("is_used", [False, True], ids=["unused", "used"])
def test_children_of_a_bare_fork_call_at_once_and_get_their_own_replies(
    fast, peers, broker, topic, tmp_path, is_used
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    child = peers.child(call_in_children, broker.url(), str(tmp_path), topic, is_used)

    assert child.receive(60) == [0] * CHILDREN
    assert endpoint.seen.items().count("cast") == CHILDREN


def serve_in_child(pipe: Connection, url: str, directory: str, topic: str) -> None:
    """Fork by C with a used transport; then listen with it in the child."""
    with standalone_peers(url, directory) as peers:
        transport = peers.transport("fast")
        peers.client("fast", topic=topic, transport=transport).cast({}, "nothing")
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            status = 1
            try:
                server = peers.server(
                    "fast", TestEndpoint("child"), topic=topic, transport=transport
                )
                pipe.send("up")
                pipe.recv()
                peers.stop(server)
                status = 0
            finally:
                os._exit(status)
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_a_child_of_a_bare_fork_serves(fast, peers, broker, topic, tmp_path):
    child = peers.child(serve_in_child, broker.url(), str(tmp_path), topic)
    assert child.receive() == "up"
    client = peers.client(fast, topic=topic)

    assert client.call({}, "who") == "child"
    child.send("leave")

    assert child.receive() == 0
