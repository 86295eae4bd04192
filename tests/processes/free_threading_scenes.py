"""What test_free_threading.py has done by a Python without a GIL.

``python free_threading_scenes.py SCENE [ARGUMENT...]``: threads of one process do to
the same objects at once what a GIL would put in order. The core alone, since what
oslo.messaging imports may turn the GIL on. Ends with status 0 and says ``done``, or
with a traceback.
"""

import functools
import itertools
import json
import sys

from interpreters_scenes import CALL, at_once, run_here

from oslo_fastmsg import _core

THREADS = 4


def make_bus(port):
    return _core.Bus(
        hosts=[("127.0.0.1", int(port), "guest", "guest")],
        virtual_host="/",
        login_method="AMQPLAIN",
        heartbeat=60,
        name="free-threading",
        shuffle=False,
        interval_start=1.0,
        interval_step=2.0,
        interval_max=30.0,
        reconnect_delay=1.0,
        reconnect_splay=0.0,
        tls=None,
    )


def begin_publish(bus, routing_key="q", payload=b""):
    return bus.begin_publish(
        None,
        "",
        routing_key,
        payload,
        lane=_core.RPC,
        mandatory=False,
        timeout=20,
        retry=-1,
    )


def all_at_once(*functions, count=1):
    at_once([function for function in functions for _ in range(count)])


def codec():
    """Some encode a payload that others change: each text is of some state of it."""
    inner, items = {}, []
    payload = {"inner": inner, "items": items}
    buffer = bytearray(_core.encode({"text": "\u20ac" * 99}))
    smaller = bytes(buffer).replace(b"u20ac", b"u00e9")

    def change():
        for number in range(20000):
            inner[f"key {number % 7}"] = [str(number)] * (number % 5)
            items.append({"n": str(number)})
            if number % 50 == 0:
                inner.clear()
                items.clear()

    def use():
        for _ in range(500):
            value = _core.decode(_core.encode(payload))
            assert value.keys() == {"inner", "items"}
            assert all(one.keys() == {"n"} for one in value["items"])
            assert json.loads(_core.dumps(value)) == value

    def overwrite():
        for body in itertools.islice(itertools.cycle([bytes(buffer), smaller]), 20000):
            buffer[:] = body

    def read():
        for _ in range(2000):
            try:
                _core.decode(buffer)
            except _core.BadMessage:
                pass  # half of one and half of the other

    all_at_once(change, overwrite)
    all_at_once(change, change, use, use, overwrite, read)


def declare():
    """Declarations and hosts are read while they change."""
    arguments = {}
    declarations = [("queue", "q", False, True, arguments)]

    def change():
        for number in range(100000):
            arguments[f"x-{number % 7}"] = f"text {number}"
            declarations.append(("bind", f"q{number}", "e", "k"))
            if number % 20 == 0:
                arguments.clear()
                del declarations[1:]

    def use():
        for _ in range(10000):
            _core.Topology(declarations)

    all_at_once(change, use, use)


def close(port):
    """Some close buses that others use: all the same ones in the same order."""
    buses = [make_bus(port) for _ in range(10000)]

    def close_each():
        for bus in buses:
            bus.close()

    def use_each():
        for bus in buses:
            bus.send_acks()
            assert bus.flush(0)
            try:
                assert bus.stats()["published"] == 0
            except _core.Closed:
                pass

    all_at_once(close_each, use_each, count=2)


def cancel(port):
    """Several cancel the same publications and end the same watches.

    Nobody listens there, so they all wait.
    """
    bus = make_bus(port)
    hub = _core.Hub()
    for _ in range(100):
        pending = [begin_publish(bus) for _ in range(100)]
        watches = [_core.Watch(hub, each, n) for n, each in enumerate(pending)]
        steps = [step for pair in zip(pending, watches, strict=True) for step in pair]

        def end_each(steps=steps):
            for step in steps:
                (step.end if isinstance(step, _core.Watch) else step.cancel)()

        all_at_once(end_each, count=THREADS)
        assert all(each.is_ready() for each in pending)
    assert bus.stats()["in_flight"] == bus.stats()["unsent"] == 0
    bus.close()


def call(port):
    """All call, each with a bus of its own of those that share two connections."""
    codes = [CALL.format(number=number, port=port) for number in range(THREADS)]
    at_once([functools.partial(run_here, code) for code in codes])


def settle(port):
    """Several accept and acknowledge each delivery: the broker hears of it once.

    It would close the channel of one that acknowledges twice, and deliver again.
    """
    bus = make_bus(port)
    topic = "q" + _core.new_id()
    server = _core.Consumer(
        bus,
        [("queue", topic, False, True, {})],
        [topic],
        prefetch=100,
        ack_on_take=False,
        replies=False,
        cancel_on_failover=False,
    )
    server.open(20)
    server.start()
    count = 2000
    sent = [begin_publish(bus, topic, {"n": number}) for number in range(count)]
    for pending in sent:
        pending.wait()
    seen = []
    while len(seen) < count:
        taken = server.take(100, 20)
        assert not any(delivery.redelivered for delivery in taken)
        seen += [delivery.payload["n"] for delivery in taken]

        def settle_each(taken=taken):
            for delivery in taken:
                assert delivery.accept(_core.new_id())
                delivery.ack()

        all_at_once(settle_each, count=THREADS)
    assert seen == list(range(count))
    assert server.take(10, 0) == []
    server.close([topic])
    connects = bus.stats()["consuming"]["connects"]
    assert connects == 1, connects
    bus.close()


if __name__ == "__main__":
    assert not sys._is_gil_enabled(), "importing the core turned the GIL on"
    globals()[sys.argv[1]](*sys.argv[2:])
    assert not sys._is_gil_enabled()
    print("done")
