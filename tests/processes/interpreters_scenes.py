"""What test_interpreters.py has done by processes with several interpreters.

``python interpreters_scenes.py SCENE KIND [ARGUMENT...]``; KIND is ``legacy``
(shares the GIL with all others) or ``isolated`` (has its own, since 3.12). Other
interpreters than that of the tests have the package alone, no oslo.messaging: so
nothing else is imported but by the scene that says so. Ends with status 0 and says
``done``, or with a traceback.
"""

import functools
import sys
import threading

# What each interpreter runs, to be completed with its own values.

CODEC = """
import random
from oslo_fastmsg import _core
dice = random.Random({number})
for i in range({rounds}):
    payload = {{
        "method": "m", "args": {{"n": dice.random(), "text": "\\u20ac" * dice.randrange(99)}},
        "list": [{number}, i, None, True, -(1 << 40), {{"deep": [[]]}}],
    }}
    body = _core.encode(payload)
    assert _core.decode(body) == payload
    try:
        _core.decode(b"no envelope")
    except _core.BadMessage:
        pass
    else:
        raise AssertionError("decoded")
    assert len(_core.new_id()) == 32
"""

# A request and its reply, by the core alone; client and server are one bus.
CALL = """
from oslo_fastmsg import _core
bus = _core.Bus(
    hosts=[("127.0.0.1", {port}, "guest", "guest")], virtual_host="/",
    login_method="AMQPLAIN", heartbeat=60, name="interpreters", shuffle=False,
    interval_start=1.0, interval_step=2.0, interval_max=30.0, reconnect_delay=1.0, reconnect_splay=0.0,
    tls=None,
)
def queue(name):
    return [("queue", name, False, True, {{}})]
topic, reply_q = "q" + _core.new_id(), "r" + _core.new_id()
server = _core.Consumer(
    bus, queue(topic), [topic], prefetch=10, ack_on_take=True, replies=False,
    cancel_on_failover=False)
server.open(20)
server.start()
replies = _core.Consumer(
    bus, queue(reply_q), [reply_q], prefetch=10, ack_on_take=True, replies=True,
    cancel_on_failover=False)
replies.start()
for i in range(20):
    msg_id = _core.new_id()
    request = dict(
        topology=None, exchange="", routing_key=topic,
        payload={{"method": "echo", "args": [{number}, i], "_msg_id": msg_id,
            "_reply_q": reply_q, "_unique_id": _core.new_id()}},
        msg_id=msg_id, replies=replies, timeout=20, mandatory=False, retry=-1)
    pending = bus.begin_call(**request)
    (delivery,) = server.take(10, 20)
    bus.reply(
        delivery.payload["_reply_q"],
        {{"result": delivery.payload["args"], "failure": None, "ending": True,
            "_msg_id": delivery.payload["_msg_id"], "_unique_id": _core.new_id()}},
        mandatory=False, patience=10, timeout=20)
    assert pending.wait(20)["result"] == [{number}, i]
replies.close([reply_q])
server.close([topic])
bus.close()
"""

# Looks at what another interpreter has open, and at its own beside it.
LOOK = """
import oslo_fastmsg
from oslo_fastmsg import _core
def look():
    health = oslo_fastmsg.health()
    assert health["ok"], health["reasons"]
    return [broker["published"] for broker in oslo_fastmsg.stats()["brokers"]]
assert look() == [2], look()
bus = _core.Bus(
    hosts=[("127.0.0.1", {port}, "guest", "guest")], virtual_host="/",
    login_method="AMQPLAIN", heartbeat=7, name="interpreters", shuffle=False,
    interval_start=1.0, interval_step=2.0, interval_max=30.0, reconnect_delay=1.0, reconnect_splay=0.0,
    tls=None,
)
bus.publish(None, "", "q", {{}}, lane=_core.RPC, mandatory=False, timeout=20, retry=0)
assert look() == [2, 1], look()
bus.close()
assert look() == [2], look()
"""

# By oslo.messaging, as an application. With a cleanup: the module that makes the
# interpreters refuses to end one that has threads.
SERVICE = """
import warnings
warnings.simplefilter("ignore")
import oslo_messaging
from oslo_config import cfg
conf = cfg.CONF
conf([], default_config_files=[], default_config_dirs=[])
transport = oslo_messaging.get_rpc_transport(conf, "{url}")
make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)  # 14.1
client = make(
    transport, oslo_messaging.Target(topic="{topic}"), timeout=20)
for i in range(20):
    assert client.call({{}}, "echo", arg=[{number}, i]) == [{number}, i]
# cleanup
transport.cleanup()
"""

# Uses the log for a moment.
LOGGING = """
from oslo_fastmsg import _events
class User: pass
user = User()
_events.retain(user)
_events.release(user)
"""


class Interpreter:
    """One more in this process."""

    def __init__(self, kind):
        try:
            import _interpreters as them  # 3.13
        except ImportError:
            import _xxsubinterpreters as them

            self._id = them.create(isolated=kind == "isolated")
        else:
            self._id = them.create(kind)
        self._them = them

    def run(self, code):
        # Before 3.13 it raises, after that it gives what was raised.
        error = self._them.run_string(self._id, code)
        assert error is None, error

    def end(self):
        self._them.destroy(self._id)


def at_once(tasks):
    """Run functions in threads, all at once; raise what one of them raised."""
    together = threading.Barrier(len(tasks))
    errors = []

    def work(task):
        try:
            together.wait(20)
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run_here(code):
    exec(code, {"__name__": "__main__"})


def everywhere(kind, count, code, **values):
    """Run code in so many interpreters and in the main one, all at once."""
    codes = [code.format(number=number, **values) for number in range(count + 1)]

    def live(own):
        # Ended by its own thread: an interpreter that imported `threading` waits
        # for the one that did, up to 3.12.
        one = Interpreter(kind)
        one.run(own)
        one.end()

    at_once(
        [functools.partial(live, own) for own in codes[:-1]]
        + [functools.partial(run_here, codes[-1])]
    )
    # Nothing ended with them that the process still needs.
    run_here(codes[-1])


def codec(kind, rounds):
    everywhere(kind, 2, CODEC, rounds=rounds)


def call(kind, port):
    everywhere(kind, 2, CALL, port=port)


def look(kind, port):
    """What is counted is the process's, whichever interpreter asks."""
    import oslo_fastmsg
    from oslo_fastmsg import _core

    bus = _core.Bus(
        hosts=[("127.0.0.1", int(port), "guest", "guest")],
        virtual_host="/",
        login_method="AMQPLAIN",
        heartbeat=60,
        name="interpreters",
        shuffle=False,
        interval_start=1.0,
        interval_step=2.0,
        interval_max=30.0,
        reconnect_delay=1.0,
        reconnect_splay=0.0,
        tls=None,
    )
    for _ in range(2):
        bus.publish(
            None, "", "q", {}, lane=_core.RPC, mandatory=False, timeout=20, retry=0
        )
    other = Interpreter(kind)
    other.run(LOOK.format(port=port))
    other.end()
    (broker,) = oslo_fastmsg.stats()["brokers"]
    assert broker["published"] == 2
    bus.close()


def service(kind, url, topic):
    """Others call beside ours, which stands meanwhile; one after the other.

    When several interpreters import oslo.messaging at the same time, some never
    come back, whatever driver there is. The test of mod_wsgi has them call at once.
    """
    ours = {"__name__": "__main__"}
    use, clean = SERVICE.format(number=0, url=url, topic=topic).split("# cleanup\n")
    exec(use, ours)
    for number in (1, 2):
        one = Interpreter(kind)
        one.run(SERVICE.format(number=number, url=url, topic=topic))
        assert ours["client"].call({}, "echo", arg="beside") == "beside"
        one.end()
        assert ours["client"].call({}, "echo", arg="after") == "after"
    exec(clean, ours)


def events(kind, port):
    """Another interpreter stops logging; ours goes on."""
    import logging

    from oslo_fastmsg import _core, _events

    logged = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: logged.set()
    logging.getLogger("oslo_fastmsg").addHandler(handler)
    _events.retain(handler)
    other = Interpreter(kind)
    for _ in range(3):
        other.run(LOGGING)
    other.end()
    bus = _core.Bus(
        hosts=[("127.0.0.1", int(port), "guest", "guest")],
        virtual_host="/",
        login_method="AMQPLAIN",
        heartbeat=60,
        name="interpreters",
        shuffle=False,
        interval_start=1.0,
        interval_step=2.0,
        interval_max=30.0,
        reconnect_delay=1.0,
        reconnect_splay=0.0,
        tls=None,
    )
    try:
        bus.publish(
            None, "", "q", {}, lane=_core.RPC, mandatory=False, timeout=5, retry=0
        )
    except _core.Error:
        pass  # nobody listens there, which is worth a line in the log
    else:
        raise AssertionError("published")
    assert logged.wait(10), "our thread that logs has ended with another interpreter's"
    bus.close()
    _events.release(handler)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    print("done")
