"""Rows 1 and 2: nodes of a cluster are killed under accounted load."""

import json
import os

import pytest
from fix_account import Account
from fix_faults import QUICK, bounds
from fix_load import Accounting, Load, loads, sender, serve_in_child
from fix_objects import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

QUORUM = {**QUICK, "rabbit_quorum_queue": True}
#: What calls may take; one that is lost costs as much.
TIMEOUT_S = 8
LISTENERS = ["one", "two"]
#: Of row 2; they take half an hour, and may be run in parts.
KILLS = int(os.environ.get("FASTMSG_KILLS", "100"))


@pytest.fixture
def peers(cluster_peers):
    return cluster_peers


def kill_under_calls(driver, cluster, peers, topic, account, dice, kills):
    """Give for each kill how long it took until a call was answered that was
    made after it, and how many calls were lost."""
    peers.server(driver, Accounting(account, "server"), topic=topic, rabbit=QUORUM)
    client = peers.client(driver, topic=topic, rabbit=QUORUM)
    call = sender(account, "call", client, timeout=TIMEOUT_S)
    call()
    figures = []
    with Load(call, threads=16, rate=200):
        account.wait("answered", 200)
        for node in dice.sample(cluster.nodes, kills):
            lost = account.count("raised")
            moment = account.now()
            node.kill()
            seconds = account.wait_after("answered", moment, 60)
            # Those in flight have ended by then, one way or the other.
            account.wait_after("answered", moment + TIMEOUT_S, 60)
            figures.append((seconds, account.count("raised") - lost))
            node.start()
            cluster.wait_until_whole()
    return figures


def in_words(figures):
    return "; ".join(f"{seconds:.2f} s, {lost} lost" for seconds, lost in figures)


@bounds(promised=3.0, generous=20.0)
def test_calls_resume_after_each_kill_and_few_are_lost(
    fast, cluster, peers, topic, account, dice, figure, bound
):
    figures = kill_under_calls(fast, cluster, peers, topic, account, dice, 3)

    figure(1, "3 kills, quorum queues", in_words(figures))
    account.excuse("raised", "its reply was in a queue of the node", limit=2 * 3)
    sums = account.balance()
    assert account.most_executions() == 1, sums
    assert max(seconds for seconds, _ in figures) < bound


def test_the_baseline_of_stock_under_kills(cluster, peers, topic, dice, figure):
    account = Account()
    figures = kill_under_calls("stock", cluster, peers, topic, account, dice, 3)

    figure(1, "3 kills, quorum queues", in_words(figures), "stock")


def random_faults(fast, cluster, peers, tmp_path, topic, account, dice, kills):
    """Kill a random node again and again, under everything at once."""
    url = cluster.url("rabbit")
    for name in LISTENERS:
        spec = {"topic": topic, "name": name, "journal": str(tmp_path / name)}
        spec |= {"rabbit": QUORUM, "notifications": topic}
        child = peers.child(serve_in_child, fast, url, str(tmp_path), json.dumps(spec))
        assert child.receive(60) == "serving"
    client = peers.client(fast, topic=topic, rabbit=QUORUM, notification=True)
    notify = sender(account, "notification", client, topic)
    call = sender(account, "call", client, timeout=TIMEOUT_S)
    cast = sender(account, "cast", client)
    # Of each process by itself.
    asked = [
        sender(account, "call", client, timeout=60, server=name) for name in LISTENERS
    ]
    slowest = 0.0
    with loads(Load(call, 4), Load(cast, 2, rate=100), Load(notify, 2, rate=100)):
        for _ in range(kills):
            node = dice.choice(cluster.nodes)
            node.kill()
            node.start()
            cluster.wait_until_whole()
            for each in asked:
                moment = account.now()
                each()
                slowest = max(slowest, account.now() - moment)
            account.wait_after("confirmed", moment, 60)
    for name in LISTENERS:
        account.read(tmp_path / name)
    return slowest


@pytest.mark.parametrize(
    ("kills", "bound"),
    [
        pytest.param(5, 30.0, id="5-in-the-end"),
        pytest.param(KILLS, 5.0, id="100-as-promised", marks=pytest.mark.timing),
    ],
)
def test_random_kills_lose_nothing_that_was_confirmed(
    fast, cluster, peers, tmp_path, topic, account, dice, figure, kills, bound
):
    slowest = random_faults(fast, cluster, peers, tmp_path, topic, account, dice, kills)

    def settled():
        for name in LISTENERS:
            account.read(tmp_path / name)
        return all(
            queue["messages"] == 0
            for queue in cluster.any().queues()
            if queue["name"].startswith(topic)
        )

    wait_until(settled, 60, "empty queues")
    account.excuse("raised", "its request or reply died", lambda it: it.kind == "call")
    account.excuse(
        "executed by several",
        "an unconfirmed publish or a lost ack",
    )
    sums = account.balance(within=30)
    figure(2, f"{kills} kills", f"all answer after {slowest:.1f} s ({sums})")
    assert slowest < bound
