"""Option use_queue_manager: names that a service finds again when it restarts."""

import multiprocessing
import os
import pathlib
import uuid

import oslo_messaging
import pytest
from fix_peer import TestEndpoint, stock_takes
from oslo_concurrency import lockutils
from oslo_config import cfg

pytestmark = [
    pytest.mark.options("use_queue_manager", "hostname", "processname"),
    pytest.mark.skipif(
        not stock_takes("use_queue_manager", True),
        reason="the option came with oslo.messaging 14.7",
    ),
]


class Manager:
    """A service's options, and its counter in the memory of the machine."""

    def __init__(self) -> None:
        self.process = f"test-{uuid.uuid4().hex[:8]}"
        self.rabbit = {
            "use_queue_manager": True,
            "hostname": "host-1",
            "processname": self.process,
        }
        self.file = pathlib.Path(f"/dev/shm/host-1_{self.process}_qmanager")

    def name(self, number: int) -> str:
        return f"host-1:{self.process}:{number}"


@pytest.fixture
def manager(tmp_path):
    where = {"name": "lock_path", "group": "oslo_concurrency"}
    lockutils.CONF.set_override(override=str(tmp_path / "locks"), **where)
    it = Manager()
    yield it
    it.file.unlink(missing_ok=True)
    lockutils.CONF.clear_override(**where)


def names(broker, manager):
    return {each["name"] for each in broker.queues() if manager.process in each["name"]}


def test_both_drivers_draw_from_one_counter(peers, pairing, broker, manager, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic, rabbit=manager.rabbit)
    client = peers.client(pairing.sender, topic=topic, rabbit=manager.rabbit)
    another = peers.client(pairing.receiver, topic=topic, rabbit=manager.rabbit)

    assert client.call({}, "echo", arg=1) == 1
    client.prepare(fanout=True).cast({}, "echo", arg=2)
    assert another.call({}, "echo", arg=3) == 3
    assert client.call({}, "echo", arg=4) == 4

    assert sorted(endpoint.seen.wait(4)) == [1, 2, 3, 4]
    assert names(broker, manager) == {
        f"{topic}_fanout_{manager.name(1)}",
        f"reply_{manager.name(2)}",
        f"reply_{manager.name(3)}",
    }
    group, number, _ = manager.file.read_text().split(":")
    assert (int(group), int(number)) == (os.getpgrp(), 3)


def test_queues_stay_and_are_found_again(peers, fast, broker, manager, topic):
    def serve_and_call():
        transport = peers.transport(fast, rabbit=manager.rabbit)
        server = peers.server(fast, TestEndpoint(), topic=topic, transport=transport)
        client = peers.client(fast, topic=topic, transport=transport)
        assert client.call({}, "echo", arg=1) == 1
        peers.stop(server)
        peers.clean(transport)

    serve_and_call()
    left = names(broker, manager)
    assert left == {f"{topic}_fanout_{manager.name(1)}", f"reply_{manager.name(2)}"}
    manager.file.write_text("1:7:1")  # the service restarted since
    serve_and_call()
    assert names(broker, manager) == left


def test_queues_are_declared_as_by_stock(peers, broker, manager, topic):
    found = []
    for driver in ("stock", "fast"):
        transport = peers.transport(driver, rabbit=manager.rabbit)
        server = peers.server(driver, TestEndpoint(), topic=topic, transport=transport)
        client = peers.client(driver, topic=topic, transport=transport)
        assert client.call({}, "echo", arg=1) == 1
        queues = [q for q in broker.queues() if manager.process in q["name"]]
        found.append(
            [
                {
                    k: v
                    for k, v in q.items()
                    if k in ("durable", "auto_delete", "arguments")
                }
                for q in sorted(queues, key=lambda q: q["name"])
            ]
        )
        peers.stop(server)
        peers.clean(transport)
        manager.file.unlink()  # both draw the same names
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_one_transport_draws_one_name(peers, fast, broker, manager, topic, background):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, rabbit=manager.rabbit)

    calls = [background(client.call, {}, "echo", arg=n) for n in range(16)]
    assert [call.result() for call in calls] == list(range(16))

    assert names(broker, manager) == {f"reply_{manager.name(1)}"}


def call_again(client):
    assert client.call({}, "echo", arg=2) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_child_draws_a_name_of_its_own(peers, fast, broker, manager, topic):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, rabbit=manager.rabbit)
    assert client.call({}, "echo", arg=1) == 1

    context = multiprocessing.get_context("fork")
    child = context.Process(target=call_again, args=(client,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert client.call({}, "echo", arg=3) == 3

    assert names(broker, manager) == {
        f"reply_{manager.name(1)}",
        f"reply_{manager.name(2)}",
    }


def test_without_a_lock_path_it_says_so(peers, driver, manager, topic):
    """As stock does: the service's configuration lacks something."""
    lockutils.CONF.set_override("lock_path", None, "oslo_concurrency")
    client = peers.client(driver, topic=topic, rabbit=manager.rabbit)

    with pytest.raises(cfg.RequiredOptError):
        client.call({}, "echo", arg=1)
    with pytest.raises((cfg.RequiredOptError, oslo_messaging.ServerListenError)):
        peers.server(driver, TestEndpoint(), topic=topic, rabbit=manager.rabbit)


def test_making_a_transport_draws_nothing(peers, fast, manager):
    peers.transport(fast, rabbit=manager.rabbit)
    assert not manager.file.exists()
