"""Rows 1 and 4: a network in two parts, all clients in one, one node in the other.

The other nodes still see it, so that the cluster loses nothing, and elects nobody:
what lies in the node's connections is given out again when it has found that
nobody is there.
"""

import contextlib

import pytest
from fix_faults import QUICK, bounds
from fix_faulty_proxy import FaultyProxy
from fix_load import Accounting, Load, sender

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HEARTBEAT_S = 2
OPTIONS = {
    **QUICK,
    "rabbit_quorum_queue": True,
    "heartbeat_timeout_threshold": HEARTBEAT_S,
}
#: The broker gives a silent consumer's messages to others after two heartbeats.
TIMEOUT_S = 30


@pytest.fixture
def peers(cluster_peers):
    return cluster_peers


@pytest.fixture
def ways(cluster):
    """What lies between the clients and each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FaultyProxy(node)) for node in cluster.nodes]


@bounds(promised=2.0, generous=6.0)
def test_clients_go_on_by_other_nodes_when_one_is_out_of_their_reach(
    fast, peers, cluster, ways, topic, account, dice, figure, bound
):
    """``bound`` is in heartbeats, and a second for what has to be made anew."""
    netloc = ",".join(f"guest:guest@{way.host}:{way.port}" for way in ways)
    options = {"url": f"fastmsg://{netloc}/", "rabbit": OPTIONS}
    peers.server(fast, Accounting(account, "server"), topic=topic, **options)
    client = peers.client(fast, topic=topic, **options)
    call = sender(account, "call", client, timeout=TIMEOUT_S)
    cast = sender(account, "cast", client)
    call()
    resumed = []
    with Load(call, threads=8, rate=100), Load(cast, threads=2, rate=50):
        for _ in range(3):
            account.wait("answered", account.count("answered") + 100)
            way = dice.choice([way for way in ways if way.open_links()])
            moment = account.now()
            way.part()
            resumed.append(account.wait_after("answered", moment, 60))
            account.wait("answered", account.count("answered") + 100)
            way.mend()
    sums = account.balance(within=TIMEOUT_S)

    slowest = max(
        it.at("answered") - it.at("sent")
        for it in account.entries()
        if it.kind == "call"
    )
    figure(
        4,
        f"a node out of reach, heartbeat {HEARTBEAT_S} s",
        f"calls resume after {max(resumed):.1f} s, the slowest took {slowest:.1f} s",
    )
    assert account.count("raised") == 0, sums
    assert max(resumed) <= bound * HEARTBEAT_S + 1, sums
