"""Stand-ins for the objects of our own C module, for tests without a broker.

They show what the Python side asked for, and answer what the test says. No
AMQP here: that is the native tests' and the functional tests' business.
"""

import contextlib
import threading
import time
import types
import typing
from collections import deque

import pytest
from oslo_config import cfg
from oslo_messaging import TransportURL
from oslo_messaging._metrics import client as _metrics
from oslo_serialization import jsonutils

from oslo_fastmsg import _core, _options, driver

try:
    from oslo_messaging._tracing import client as _tracing  # since 18.2
except ImportError:
    _tracing = None


class Topology:
    def __init__(self, declarations):
        self.declarations = list(declarations)


class Delivery:
    """As ``_core.Delivery``; `settled` has what was done with it, in order."""

    def __init__(self, payload=None, body=b"", queue="T", **properties):
        self.payload = payload
        self.body = body
        self.size = len(body)
        self.content_type = "application/json"
        self.content_encoding = "utf-8"
        self.headers = {}
        self.queue = self.routing_key = queue
        self.exchange = "openstack"
        self.redelivered = False
        self.reads_msgpack = False
        self.is_new = True
        self.fault = None
        self.settled = []
        vars(self).update(properties)

    def accept(self, unique_id):
        self.settled.append(("accept", unique_id))
        return self.is_new

    def ack(self):
        if self.fault:
            raise self.fault
        self.settled.append("ack")

    def reject(self, requeue):
        if self.fault:
            raise self.fault
        self.settled.append(("reject", requeue))


class Consumer:
    def __init__(
        self,
        bus,
        declarations,
        queues,
        *,
        prefetch,
        ack_on_take,
        replies,
        cancel_on_failover,
    ):
        self.bus = bus
        self.declarations = list(declarations)
        self.queues = list(queues)
        self.prefetch = prefetch
        self.ack_on_take = ack_on_take
        self.replies = replies
        self.cancel_on_failover = cancel_on_failover
        self.history = []
        self.deleted = None
        self.faults = deque()  # what the next take()s raise
        self._waiting = deque()
        self._is_stopped = False
        self._changed = threading.Condition()
        bus.consumers.append(self)

    def open(self, timeout):
        self.history.append("open")

    def start(self):
        self.history.append("start")

    def deliver(self, *deliveries):
        with self._changed:
            self._waiting.extend(deliveries)
            self._changed.notify_all()

    def take(self, max, timeout):
        assert max > 0
        with self._changed:
            if self.faults:
                raise self.faults.popleft()
            self._changed.wait_for(
                lambda: self._waiting or self._is_stopped or self.faults, timeout
            )
            if self._is_stopped:
                raise _core.Closed("stopped")
            return [
                self._waiting.popleft() for _ in range(min(max, len(self._waiting)))
            ]

    def stop(self):
        with self._changed:
            self.history.append("stop")
            self._is_stopped = True
            self._changed.notify_all()

    def close(self, delete=(), timeout=10.0):
        self.stop()
        self.history.append("close")
        self.deleted = list(delete)


class Call:
    def __init__(self, answers):
        self._answers = iter(answers)
        self.is_cancelled = False
        self.waited = []

    def wait(self, timeout):
        self.waited.append(timeout)
        answer = next(self._answers)
        if callable(answer):
            answer = answer(timeout)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self):
        self.is_cancelled = True


class Bus:
    """As ``_core.Bus``. What was asked of it is in `requests`, `sent` and
    `replied`, as namespaces of the arguments."""

    made: typing.ClassVar[list] = []  # of the running test
    acks_sent = 0

    def __init__(self, **arguments):
        self.arguments = arguments
        self.requests = []
        self.sent = []
        self.replied = []
        self.consumers = []
        self.calls = []
        self.answers = [{"result": None, "failure": None, "ending": True}]
        self.fault = None  # what a request or publication raises
        self.is_closed = False
        self.flushes = []
        Bus.made.append(self)

    def _ask(self, topology, exchange, routing_key, payload, **more):
        jsonutils.dumps(payload)
        self.requests.append(
            types.SimpleNamespace(
                topology=topology,
                exchange=exchange,
                routing_key=routing_key,
                payload=dict(payload),
                **more,
            )
        )
        if self.fault is not None:
            raise self.fault

    def call(
        self,
        topology,
        exchange,
        routing_key,
        payload,
        *,
        msg_id,
        replies,
        timeout,
        mandatory,
        retry,
    ):
        self._ask(
            topology,
            exchange,
            routing_key,
            payload,
            msg_id=msg_id,
            replies=replies,
            timeout=timeout,
            mandatory=mandatory,
            retry=retry,
        )
        (answer,) = self.answers
        return answer

    def begin_call(self, *args, **kwargs):
        self._ask(*args, **kwargs)
        call = Call(self.answers)
        self.calls.append(call)
        return call

    def publish(
        self,
        topology,
        exchange,
        routing_key,
        payload,
        *,
        lane,
        mandatory,
        timeout,
        retry,
    ):
        if not isinstance(payload, bytes):
            jsonutils.dumps(payload)
            payload = dict(payload)
        self.sent.append(
            types.SimpleNamespace(
                topology=topology,
                exchange=exchange,
                routing_key=routing_key,
                payload=payload,
                lane=lane,
                mandatory=mandatory,
                timeout=timeout,
                retry=retry,
            )
        )
        if self.fault is not None:
            raise self.fault

    def reply(self, routing_key, payload, *, mandatory, patience, timeout):
        jsonutils.dumps(payload)
        if self.fault is not None:
            raise self.fault
        self.replied.append(
            types.SimpleNamespace(
                routing_key=routing_key,
                payload=dict(payload),
                mandatory=mandatory,
                patience=patience,
            )
        )

    def send_acks(self):
        self.acks_sent += 1

    def flush(self, timeout):
        self.flushes.append(timeout)
        return True

    def close(self):
        self.is_closed = True


@pytest.fixture(name="core")
def stand_in_core(monkeypatch):
    """Put the stand-ins into the core; gives the list of buses made."""
    monkeypatch.setattr(Bus, "made", [])
    for stand_in in (Topology, Consumer, Bus):
        monkeypatch.setattr(_core, stand_in.__name__, stand_in)
    return Bus.made


def make_conf(**rabbit):
    """A configuration with options of [oslo_messaging_rabbit] set."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    # oslo.messaging reads these from the configuration that it is given, but
    # registers them in the global one only.
    conf.register_opts(_metrics.oslo_messaging_metrics, group="oslo_messaging_metrics")
    if _tracing is not None:
        conf.register_opts(
            _tracing.oslo_messaging_tracing, group="oslo_messaging_tracing"
        )
    if rabbit:
        _options.register(conf)
        for name, value in rabbit.items():
            conf.set_override(name, value, group="oslo_messaging_rabbit")
    return conf


@contextlib.contextmanager
def driver_of(url="fastmsg://u:secret@h/", conf=None, exmods=None, **rabbit):
    """A driver, cleaned up at the end."""
    conf = make_conf(**rabbit) if conf is None else conf
    made = driver.FastmsgDriver(
        conf,
        TransportURL.parse(conf, url),
        default_exchange="openstack",
        allowed_remote_exmods=exmods,
    )
    try:
        yield made
    finally:
        made.cleanup()


def eventually(claim, timeout=10.0):
    """Wait until `claim()` is true, and give what it gave."""
    end_at = time.monotonic() + timeout
    while not (value := claim()):
        assert time.monotonic() < end_at, "it did not come true in time"
        time.sleep(0.005)
    return value
