"""What test_eventlet.py has done by processes of their own.

``python eventlet_scenes.py SCENE URL DIRECTORY TOPIC [ARGUMENT]``: eventlet patches
everything before anything else is imported, as in a service. Questions and
answers are lines of JSON; the last answer is ``{"result": ...}``.
"""
# ruff: noqa: E402

import eventlet

eventlet.monkey_patch()

import collections
import ctypes
import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging

sys.path.insert(0, str(Path(__file__).parents[1]))

import fix_objects
import pytest
from eventlet import patcher, tpool
from fix_peer import Notes, TestEndpoint, standalone_peers

import oslo_fastmsg
from oslo_fastmsg import _green

native = patcher.original("threading")


# --- with the test --------------------------------------------------------


def say(**answer):
    print(json.dumps(answer), flush=True)


def hear():
    """Wait for a line from the test, as a greenthread does."""
    eventlet.hubs.trampoline(0, read=True)
    return os.read(0, 1000).decode().strip()


# --- helpers --------------------------------------------------------------


class Ticker:
    """A greenthread that looks at the clock every 10 ms."""

    def __enter__(self):
        self.gaps = []
        self._greenthread = eventlet.spawn(self._tick)
        eventlet.sleep(0)
        return self

    def _tick(self):
        last = time.monotonic()
        while True:
            eventlet.sleep(0.01)
            now = time.monotonic()
            self.gaps.append(now - last)
            last = now

    def __exit__(self, *exc_info):
        self._greenthread.kill()

    def report(self):
        return {"ticks": len(self.gaps), "seconds": sum(self.gaps)} | {
            "longest_ms": max(self.gaps, default=0) * 1e3
        }


class Where:
    """Records in which native threads it is used, and in which greenlets."""

    def __init__(self):
        self.threads = set()
        self.greenlets = set()

    def __call__(self):
        self.threads.add(native.get_ident())
        self.greenlets.add(id(eventlet.getcurrent()))


class Endpoint(TestEndpoint):
    def __init__(self, name=""):
        super().__init__(name)
        self.where = Where()

    def echo(self, ctxt, arg=None):
        self.where()
        return super().echo(ctxt, arg)

    def size(self, ctxt, count):
        """Answer with much, when the test opens the gate."""
        self.seen.add("size")
        self.gate.wait()
        return "x" * count


def start_server(peers, executor, *endpoints, topic, **options):
    transport = peers.transport("fast", **options)
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic=topic, server="green"),
        list(endpoints),
        executor=executor,
    )
    server.start()
    return server


def core_of(client):
    return client.transport._driver._share.core


def spawn_all(count, function, *args):
    return [eventlet.spawn(function, number, *args) for number in range(count)]


def wait_all(greenthreads):
    return [it.wait() for it in greenthreads]


# --- scenes ---------------------------------------------------------------


def every_kind(peers, topic, executor):
    """Client and server of one process, in all they can do."""
    endpoint = Endpoint("one")
    other = Endpoint("two")
    notes = Notes()
    server = start_server(peers, executor, endpoint, topic=topic)
    second = start_server(peers, executor, other, topic=f"{topic}-x")
    third = start_server(peers, executor, other, topic=f"{topic}-x")
    transport = peers.transport("fast", notification=True)
    listener = oslo_messaging.get_notification_listener(
        transport,
        [oslo_messaging.Target(topic=f"{topic}-n")],
        [notes],
        executor=executor,
    )
    listener.start()
    client = peers.client("fast", topic=topic)
    assert our_threads() == ["fastmsg-io"]

    with Ticker() as ticker:
        assert client.call({}, "echo", arg={"a": [1, "é", None]}) == {
            "a": [1, "é", None]
        }
        assert client.cast({}, "echo", arg="cast") is None
        endpoint.seen.wait(2)
        client.prepare(topic=f"{topic}-x", fanout=True).cast({}, "echo", arg="all")
        assert other.seen.wait(2) == ["all", "all"]
        peers.notifier("fast", f"{topic}-n").info({}, "event", {"a": 1})
        assert notes.seen.wait()[0]["payload"] == {"a": 1}
        with pytest.raises(ValueError, match="bad 7"):
            client.call({}, "fail", arg=7)
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.prepare(timeout=0.3).call({}, "wait")
        endpoint.gate.set()
        monitored = client.prepare(timeout=20, call_monitor_timeout=2)
        assert monitored.call({}, "last", seconds=2.6) == "done"
    stats = core_of(client).stats()
    assert stats["waiting_calls"] == stats["failed"] == 0
    for it in (server, second, third, listener):
        peers.stop(it)
    assert endpoint.where.threads == {native.get_ident()}
    assert id(eventlet.getcurrent()) not in endpoint.where.greenlets
    return ticker.report()


def in_step(peers, topic, count):
    """A hundred call somebody else's server, and one ticks."""
    client = peers.client("fast", topic=topic)
    client.call({}, "echo", arg=0)
    reports = []
    for _ in range(3):
        with Ticker() as ticker:

            def work(number):
                for step in range(int(count) // 100):
                    assert client.call({}, "echo", arg=[number, step]) == [number, step]

            wait_all(spawn_all(100, work))
        reports.append(ticker.report())
    return reports


def crowd(peers, topic, count):
    """A hundred call while others have threads of tpool block."""
    client = peers.client("fast", topic=topic, timeout=60)
    sleep = patcher.original("time").sleep
    blocked = collections.Counter()
    is_over = []

    def block(number):
        while not is_over:
            tpool.execute(sleep, 0.002)
            blocked[number] += 1

    def work(number):
        for step in range(int(count) // 100):
            assert client.call({}, "echo", arg=[number, step]) == [number, step]
        return int(count) // 100

    blockers = spawn_all(10, block)
    start = time.monotonic()
    done = sum(wait_all(spawn_all(100, work)))
    seconds = time.monotonic() - start
    is_over.append(True)
    wait_all(blockers)
    tpool.killall()
    assert core_of(client).stats()["waiting_calls"] == 0
    return {"done": done, "blocked": min(blocked.values()), "rate": done / seconds}


def interrupted(peers, topic, _):
    """Calls that are ended from outside, in each state that they can be in."""
    client = peers.client("fast", topic=topic)
    client.call({}, "echo", arg=0)
    stats = core_of(client).stats
    waiting = eventlet.spawn(client.call, {}, "wait")
    while stats()["waiting_calls"] != 1:
        eventlet.sleep(0.001)
    eventlet.sleep(0.05)
    waiting.kill()
    assert stats()["waiting_calls"] == 0

    with pytest.raises(eventlet.Timeout), eventlet.Timeout(0.05):
        client.call({}, "wait")
    assert stats()["waiting_calls"] == 0

    # As the main thread's, a signal ends the hub itself, and a new one begins.
    hub = eventlet.hubs.get_hub()
    hub.schedule_call_global(0.05, os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        client.call({}, "wait")
    assert stats()["waiting_calls"] == 0

    # Some before their reply, some after it, some in between.
    callers = spawn_all(50, lambda number: client.call({}, "echo", arg=number))
    for number, caller in enumerate(callers):
        eventlet.sleep(0.0002)
        if number % 2:
            caller.kill()
    results = [caller.wait() for caller in callers[::2]]
    assert results == list(range(0, 50, 2))
    assert stats()["waiting_calls"] == 0

    # Beside a monitor that counts the time between signs of life.
    monitored = client.prepare(call_monitor_timeout=2)
    waiting = eventlet.spawn(monitored.call, {}, "wait")
    eventlet.sleep(0.05)
    waiting.kill()
    assert stats()["waiting_calls"] == 0
    assert client.call({}, "echo", arg="after") == "after"
    return stats()["in_flight"]


def nowhere(peers, topic, url):
    """What waits for a broker that is not there can be interrupted, too."""
    client = peers.client("fast", topic=topic, url=url)
    with Ticker() as ticker:
        for action in (
            lambda: client.cast({}, "echo", arg=1),
            lambda: client.call({}, "echo", arg=1),
            lambda: start_server(peers, "eventlet", Endpoint(), topic=topic, url=url),
        ):
            waiting = eventlet.spawn(action)
            eventlet.sleep(0.2)
            assert not waiting.dead
            waiting.kill()
    stats = core_of(client).stats()
    assert stats["waiting_calls"] == stats["unsent"] == stats["in_flight"] == 0
    return ticker.report()


def alarm(peers, topic, _):
    """While the broker takes nothing, publishers and repliers are green."""
    endpoint = Endpoint()
    server = start_server(peers, "eventlet", endpoint, topic=topic)
    client = peers.client("fast", topic=topic)
    assert client.call({}, "echo", arg=0) == 0
    say(up=True)
    assert hear() == "asked"
    endpoint.seen.wait(1 + 24)
    say(asked=True)
    assert hear() == "alarm"
    with Ticker() as ticker:
        endpoint.gate.set()  # 24 MB of replies: too many for the core to take
        cast = eventlet.spawn(client.cast, {}, "echo", arg=1)
        eventlet.sleep(0.5)
        threads = our_threads()
        assert not cast.dead
        cast.kill()
        late = eventlet.spawn(client.cast, {}, "echo", arg=2)
        eventlet.sleep(0.01)
        assert not late.dead
        say(threads=threads)
        assert hear() == "clear"
        late.wait()
        assert client.call({}, "echo", arg=3) == 3
        seen = endpoint.seen.wait(1 + 24 + 2)
        assert {2, 3} <= set(seen)
        assert 1 not in seen
        assert core_of(client).stats()["failed"] == 0
    peers.stop(server)
    return ticker.report()


def start_metrics(client):
    """Make a process's first call.

    With it oslo.messaging 16 starts a thread for its metrics, and waits for it as if it
    were in a greenthread: where there is a hub, the hub cannot do so, and where there
    is none, there is one afterwards.
    """
    client.call({}, "who")


def native_beside(peers, topic, _):
    """A native thread calls while greenthreads do, with the same transport."""
    client = peers.client("fast", topic=topic)
    start_metrics(client)
    results = []
    stations = []

    def work():
        for number in range(200):
            results.append(client.call({}, "echo", arg=number))
        results.append(client.call({}, "last", seconds=0.5))
        stations.append(_green.here())

    def green_work(number):
        rounds = 0
        while thread.is_alive():
            assert client.call({}, "echo", arg=[number, rounds]) == [number, rounds]
            rounds += 1
        return rounds

    thread = native.Thread(target=work)
    with Ticker() as ticker:
        thread.start()
        rounds = wait_all(spawn_all(10, green_work))
    thread.join()
    assert results == [*range(200), "done"]
    assert stations == [None]
    assert min(rounds) > 0
    assert tpool.execute(client.call, {}, "echo", arg="tpool") == "tpool"
    tpool.killall()
    return ticker.report()


def native_first(peers, topic, _):
    """A native thread makes the connections, and greenthreads use them."""
    client = peers.client("fast", topic=topic)
    results = []
    thread = native.Thread(
        target=lambda: results.append(client.call({}, "echo", arg="native"))
    )
    thread.start()
    while thread.is_alive():
        eventlet.sleep(0.01)
    assert results == ["native"]
    assert client.call({}, "echo", arg="green") == "green"
    return None


def in_the_hub(peers, topic, _):
    """What a timer of the hub calls blocks the hub, and works."""
    client = peers.client("fast", topic=topic)
    start_metrics(client)
    results = []
    hub = eventlet.hubs.get_hub()
    hub.schedule_call_global(0, lambda: results.append(client.call({}, "who")))
    while not results:
        eventlet.sleep(0.01)
    assert results == ["native"]
    hub.schedule_call_global(
        0, lambda: results.append(peers.clean(client.transport) or "clean")
    )
    while len(results) < 2:
        eventlet.sleep(0.01)
    return results


def events(peers, topic, _):
    """The core's lines are logged by a greenthread, as handlers expect."""
    where = Where()

    class Handler(logging.Handler):
        def emit(self, record):
            if record.threadName:
                where()

    handler = Handler()
    log = logging.getLogger("oslo_fastmsg")
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    client = peers.client("fast", topic=topic)
    assert client.call({}, "who") == "native"
    mine = id(eventlet.getcurrent())
    end_at = time.monotonic() + 10
    while not where.greenlets - {mine} and time.monotonic() < end_at:
        eventlet.sleep(0.01)
    peers.clean(client.transport)
    assert where.threads == {native.get_ident()}
    return len(where.greenlets - {mine})


def fork(peers, topic, _):
    """A child has a hub of its own, and disturbs nobody."""
    client = peers.client("fast", topic=topic)
    is_over = []

    def work(number):
        rounds = 0
        while not is_over:
            assert client.call({}, "echo", arg=[number, rounds]) == [number, rounds]
            rounds += 1
        return rounds

    workers = spawn_all(10, work)
    statuses = []
    for _ in range(3):
        eventlet.sleep(0.1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                eventlet.hubs.use_hub()  # as oslo.service does
                with Ticker() as ticker:
                    results = wait_all(
                        spawn_all(20, lambda i: client.call({}, "echo", arg=["c", i]))
                    )
                    eventlet.sleep(0.05)
                client.transport.cleanup()
                assert results == [["c", i] for i in range(20)]
                assert ticker.gaps
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        # The patched waitpid() polls, and lets the others run.
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    is_over.append(True)
    rounds = wait_all(workers)
    assert statuses == [0, 0, 0]
    stats = core_of(client).stats()
    assert stats["waiting_calls"] == 0
    assert stats["publishing"]["connects"] == 1
    return min(rounds)


def serve(peers, topic, executor):
    """A server for a test that has the client."""
    endpoint = Endpoint()
    server = start_server(peers, executor, endpoint, topic=topic)
    say(up=True)
    assert hear() == "stop"
    peers.stop(server)
    return endpoint.seen.items()


def looking(peers, topic, _):
    """Counts and health, before anything, in the midst of it, and after."""
    assert oslo_fastmsg.health() == {"ok": True, "reasons": [], "brokers": []}
    endpoint = Endpoint()
    server = start_server(peers, "eventlet", endpoint, topic=topic)
    client = peers.client("fast", topic=topic)
    looks = []

    def look():
        while True:
            looks.append((oslo_fastmsg.stats(), oslo_fastmsg.health()))
            eventlet.sleep(0.01)

    with Ticker() as ticker:
        looker = eventlet.spawn(look)
        calls = spawn_all(50, lambda i: client.call({}, "last", seconds=0.02 * (i % 9)))
        assert wait_all(calls) == ["done"] * 50
        eventlet.sleep(0.1)
        looker.kill()
    assert max(stats["brokers"][0]["waiting_calls"] for stats, _ in looks) > 10
    stats, health = looks[-1]
    assert health["ok"], health
    assert stats["brokers"][0]["round_trips"]["count"] == 50
    peers.stop(server)
    return ticker.report()


def no_cleanup(peers, topic, how):
    """The process ends while everything is in use."""
    endpoint = Endpoint()
    start_server(peers, "eventlet", endpoint, topic=topic)
    client = peers.client("fast", topic=topic)
    assert client.call({}, "echo", arg=1) == 1
    eventlet.spawn(client.call, {}, "wait")
    endpoint.seen.wait(2)
    say(result="left")
    if how == "exit":
        sys.exit(0)
    if how == "greenthread":
        eventlet.spawn_n(sys.exit, 0)
        eventlet.sleep(20)
    os.kill(os.getpid(), signal.SIGINT)
    eventlet.sleep(20)


def our_threads():
    """Name what this driver runs: in the core, and native ones of Python.

    Others have some as well, such as oslo.metrics.
    """
    return [name for name in fix_objects.threads() if "fastmsg" in name] + [
        thread.name for thread in native.enumerate() if "fastmsg" in thread.name
    ]


def main(name, url, directory, topic, argument=None):
    if name == "no_cleanup":
        # For ever, or it would clean up when this function is left.
        context = standalone_peers(url, directory)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
        no_cleanup(context.__enter__(), topic, argument)
    with standalone_peers(url, directory) as peers:
        result = globals()[name](peers, topic, argument)
    # The core's thread may be in its last instructions.
    end_at = time.monotonic() + 5
    while our_threads() and time.monotonic() < end_at:
        eventlet.sleep(0.01)
    assert our_threads() == []
    say(result=result)


if __name__ == "__main__":
    main(*sys.argv[1:])
