"""The combinations of options that deployments use, against stock.

What the broker then holds is compared flag for flag, and everything that is sent is
sent by either driver to either.
"""

import pathlib
import uuid

import pytest
from fix_held import held_by, wait_for_consumers
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint, stock_takes
from oslo_concurrency import lockutils

QUORUM = {"rabbit_quorum_queue": True, "rabbit_quorum_delivery_limit": 3}
ALL_QUORUM = {**QUORUM, "rabbit_transient_quorum_queue": True}
MANAGED = {**ALL_QUORUM, "use_queue_manager": True}
STREAMS = {"rabbit_stream_fanout": True, "rabbit_qos_prefetch_count": 7}

# Not with quorum queues of replies: for them RabbitMQ refuses the argument of
# enable_cancel_on_failover, and stock does not get any.
#: Those that the installed release has.
COMBINATIONS = {
    name: options
    for name, options in {
        "durable": {"amqp_durable_queues": True},
        "durable and auto-delete": {
            "amqp_durable_queues": True,
            "amqp_auto_delete": True,
        },
        "auto-delete": {"amqp_auto_delete": True},
        "ha": {"rabbit_ha_queues": True},
        "durable ha, cancelled on failover": {
            "amqp_durable_queues": True,
            "rabbit_ha_queues": True,
            "enable_cancel_on_failover": True,
        },
        "cancelled on failover": {"enable_cancel_on_failover": True},
        "queues that stay": {"rabbit_transient_queues_ttl": 0},
        "prefetch": {"rabbit_qos_prefetch_count": 7},
        "quorum": QUORUM,
        "all quorum": ALL_QUORUM,
        "all quorum, managed": MANAGED,
        "all quorum, managed, streams": {**MANAGED, **STREAMS},
        "all quorum, streams": {**ALL_QUORUM, **STREAMS},
        "classic, streams": {**STREAMS, "rabbit_transient_quorum_queue": True},
        "streams that keep all": {
            **STREAMS,
            "rabbit_transient_quorum_queue": True,
            "rabbit_transient_queues_ttl": 0,
        },
    }.items()
    if all(stock_takes(option, value) for option, value in options.items())
}

pytestmark = pytest.mark.options(
    "amqp_auto_delete",
    "amqp_durable_queues",
    "enable_cancel_on_failover",
    "rabbit_ha_queues",
    "rabbit_qos_prefetch_count",
    "rabbit_quorum_delivery_limit",
    "rabbit_quorum_queue",
    "rabbit_stream_fanout",
    "rabbit_transient_queues_ttl",
    "rabbit_transient_quorum_queue",
    "use_queue_manager",
)


#: Run by `make test-slow` and `make test-options`.
LESS_COMMON = {
    "durable and auto-delete",
    "durable ha, cancelled on failover",
    "prefetch",
    "all quorum, streams",
    "classic, streams",
    "streams that keep all",
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in LESS_COMMON else [])
        for name in COMBINATIONS
    ]
)
def rabbit(request, tmp_path):
    """Give a combination; the queue manager's counter is one of our own."""
    options = {
        **COMBINATIONS[request.param],
        "hostname": "host-1",
        "processname": f"test-{uuid.uuid4().hex[:8]}",
    }
    if not stock_takes("use_queue_manager", True):
        del options["hostname"], options["processname"]
        yield options
        return
    where = {"name": "lock_path", "group": "oslo_concurrency"}
    lockutils.CONF.set_override(override=str(tmp_path / "locks"), **where)
    yield options
    forget_names(options)
    lockutils.CONF.clear_override(**where)


def forget_names(rabbit):
    """Have the queue manager begin at 1, as after the start of a machine."""
    name = f"{rabbit.get('hostname')}_{rabbit.get('processname')}_qmanager"
    (pathlib.Path("/dev/shm") / name).unlink(missing_ok=True)


class Service:
    """A server, a listener, and who sends to them."""

    def __init__(self, peers, broker, sender, receiver, topic, rabbit):
        self.endpoint, self.notes = TestEndpoint(), Notes(["info"])
        peers.server(receiver, self.endpoint, topic=topic, server="h.1", rabbit=rabbit)
        peers.listener(receiver, self.notes, topics=[f"{topic}-n"], rabbit=rabbit)
        self.client = peers.client(sender, topic=topic, rabbit=rabbit)
        self.notifier = peers.notifier(sender, f"{topic}-n", rabbit=rabbit)
        # Of a stream a stock server gets the last chunk of what came before.
        wait_until(
            lambda: any(
                row["queue_name"].startswith(f"{topic}_fanout")
                for row in broker.consumers()
            )
        )

    def use(self):
        assert self.client.call({}, "echo", arg="call") == "call"
        one = self.client.prepare(server="h.1")
        assert one.call({}, "echo", arg="server") == "server"
        self.client.cast({}, "echo", arg="cast")
        for number in range(3):
            self.client.prepare(fanout=True).cast({}, "echo", arg=number)
        self.notifier.info({}, "event", {"a": 1})

    def check(self):
        (note,) = self.notes.seen.wait()
        assert note["payload"] == {"a": 1}
        seen = self.endpoint.seen.wait(6)
        assert sorted(map(str, seen)) == ["0", "1", "2", "call", "cast", "server"]


def test_everything_arrives_once_in_every_pairing(
    peers, pairing, broker, topic, rabbit
):
    service = Service(peers, broker, pairing.sender, pairing.receiver, topic, rabbit)

    service.use()

    service.check()


def test_the_broker_holds_what_it_holds_with_stock(fast, peers, broker, topic, rabbit):
    held = {}
    for driver in (fast, "stock"):
        service = Service(peers, broker, driver, driver, topic, rabbit)
        service.use()
        service.check()
        # Of the server, the listener and the replies; stock makes them late.
        wait_for_consumers(broker, 5)
        running = held_by(broker)
        peers.close()
        wait_until(lambda: not broker.connections())
        left = held_by(broker)
        # A queue of replies without calls in flight is deleted here, at once. And
        # a stream counts consumers that are gone, if they have not said goodbye.
        left["queues"] = [
            {**each, "consumers": 0}
            for each in left["queues"]
            if not each["name"].startswith("reply_")
        ]
        held[driver] = {
            f"{what} {when}": rows
            for when, each in (("in use", running), ("afterwards", left))
            for what, rows in each.items()
        }
        broker.reset()
        forget_names(rabbit)

    for what, rows in held[fast].items():
        assert (what, rows) == (what, held["stock"][what])
    assert len(held[fast]["queues in use"]) == 5
