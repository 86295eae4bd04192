import decimal
import json
import os
import threading

import oslo_messaging
import pytest
from fix_core import (
    Bus,
    Delivery,
    driver_of,
    eventually,
    make_conf,
    stand_in_core,  # noqa: F401 - a fixture
)
from oslo_messaging import Target, TransportOptions

from oslo_fastmsg import _bus, _compat, _core, _events, _options

RABBIT_OPTS = _compat.rabbit_opts()
TOPIC = Target(topic="T")
CONTEXT = {"user": "u", "request_id": "r"}


@pytest.fixture(autouse=True)
def quiet_events(monkeypatch):
    """Leave the core's event ring alone: test_events.py looks at that."""
    users = set()
    monkeypatch.setattr(_events, "retain", users.add)
    monkeypatch.setattr(_events, "release", users.discard)
    yield users
    assert users == set()


def request(**more):
    return {"method": "m", "args": {"a": 1}, **more}


def call(driver, message=None, target=TOPIC, ctxt=CONTEXT, timeout=20, **more):
    message = request() if message is None else message
    return driver.send(
        target, ctxt, message, wait_for_reply=True, timeout=timeout, **more
    )


# --- construction ---------------------------------------------------------


def test_construction_does_no_io_and_starts_no_thread(core):
    threads = threading.active_count()
    descriptors = os.listdir("/proc/self/fd")
    with driver_of("fastmsg://u:secret@no.such.host.invalid:1/v"):
        assert threading.active_count() == threads
        assert os.listdir("/proc/self/fd") == descriptors
        assert core == []


def test_conf_is_overlaid_by_the_url(core):
    with driver_of("fastmsg://h/?rabbit_qos_prefetch_count=7") as driver:
        assert driver.conf.oslo_messaging_rabbit.rabbit_qos_prefetch_count == 7
        assert isinstance(driver.conf, _compat.ConfigOptsProxy)
        assert driver.prefetch_size == 7
        assert oslo_messaging.transport.RPCTransport(driver).conf is driver.conf


def test_every_feature_is_there(core):
    with driver_of() as driver:
        driver.require_features(requeue=True)
        driver.require_features()


def test_the_bus_gets_the_parameters_of_the_url(core):
    with driver_of("fastmsg://u:p@h1:1,v:q@h2:2/vh?heartbeat_timeout_threshold=9") as d:
        d.send(TOPIC, {}, request())
    (bus,) = core
    assert bus.arguments["hosts"] == [("h1", 1, "u", "p"), ("h2", 2, "v", "q")]
    assert bus.arguments["virtual_host"] == "vh"
    assert bus.arguments["login_method"] == "AMQPLAIN"
    assert bus.arguments["heartbeat"] == 9
    assert bus.arguments["tls"] is None


@pytest.mark.parametrize(
    "use",
    [
        call,
        lambda driver: driver.send(TOPIC, {}, request()),
        lambda driver: driver.send_notification(TOPIC, {}, request(), 2.0),
        lambda driver: driver.listen(Target(topic="T", server="s"), 1, None).cleanup(),
        lambda driver: driver.listen_for_notifications(
            [(TOPIC, "info")], None, 1, None
        ).cleanup(),
    ],
    ids=["call", "cast", "notification", "listen", "listen_for_notifications"],
)
def test_each_use_looks_once_whether_the_process_was_forked(core, monkeypatch, use):
    looks = []
    monkeypatch.setattr(_bus, "notice_fork", lambda: looks.append(1))
    with driver_of() as driver:
        use(driver)
        assert looks == [1]
        looks.clear()
        use(driver)
        assert looks == [1]


# --- call -----------------------------------------------------------------


def test_a_call_adds_the_members_of_the_wire_in_their_order(core):
    message = request(namespace="ns", version="1.2")
    with driver_of() as driver:
        call(driver, message, timeout=7.5)
        (bus,) = core
        (sent,) = bus.requests
    assert message == sent.payload
    assert list(message) == [
        "method",
        "args",
        "namespace",
        "version",
        "_msg_id",
        "_reply_q",
        "_timeout",
        "_unique_id",
        "_context_user",
        "_context_request_id",
    ]
    assert message["_msg_id"] == sent.msg_id
    assert len(message["_msg_id"]) == len(message["_unique_id"]) == 32
    assert message["_msg_id"] != message["_unique_id"]
    assert message["_timeout"] is None
    assert message["_reply_q"].startswith("reply_")
    assert sent.exchange == "openstack"
    assert sent.routing_key == "T"
    assert sent.timeout == 7.5
    assert sent.mandatory is False
    assert sent.retry == -1
    assert sent.topology.declarations == [
        ("exchange", "openstack", "topic", False, False)
    ]


def test_a_target_names_exchange_and_server(core):
    with driver_of() as driver:
        call(driver, target=Target(exchange="X", topic="T", server="a.b"))
        (sent,) = core[0].requests
    assert (sent.exchange, sent.routing_key) == ("X", "T.a.b")
    assert sent.topology.declarations[0][1] == "X"


def test_declarations_are_made_once_per_exchange(core):
    with driver_of() as driver:
        for exchange in ("X", "Y", "X"):
            call(driver, target=Target(exchange=exchange, topic="T"))
        first, second, third = [sent.topology for sent in core[0].requests]
    assert first is third
    assert first is not second


def test_kept_declarations_are_bounded(core, monkeypatch):
    monkeypatch.setattr("oslo_fastmsg.driver._MAX_TOPOLOGIES", 3)
    with driver_of() as driver:
        for i in range(10):
            driver.send(Target(exchange=f"X{i}", topic="T"), {}, request())
        assert len(driver._topologies) == 3
        assert core[0].sent[9].topology.declarations[0][1] == "X9"


def test_the_first_call_makes_the_one_reply_queue(core):
    with driver_of() as driver:
        names = []
        threads = [
            threading.Thread(target=lambda: names.append(call_name(driver)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (bus,) = core
        (consumer,) = bus.consumers
        assert set(names) == set(consumer.queues)
        assert len(names) == 8
        assert consumer.declarations == [
            ("queue", names[0], False, False, {"x-expires": 1800000})
        ]
        assert consumer.replies
        assert consumer.prefetch > 0
        assert consumer.history == ["start"]
        assert all(sent.replies is consumer for sent in bus.requests)


def call_name(driver):
    message = request()
    call(driver, message)
    return message["_reply_q"]


def test_casts_make_no_reply_queue(core):
    with driver_of() as driver:
        driver.send(TOPIC, {}, request())
        assert core[0].consumers == []


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        ({"result": {"a": 1}, "failure": None, "ending": True}, {"a": 1}),
        ({"result": None, "failure": None, "ending": True}, None),
        ({"result": 0, "failure": "", "ending": True}, 0),
        ({"failure": None, "ending": True}, None),
    ],
)
def test_a_call_returns_the_result(core, reply, result):
    with driver_of() as driver:
        call(driver)
        core[0].answers = [reply]
        assert call(driver) == result


def failure(kind, module, *args):
    return {
        "result": None,
        "failure": json.dumps(
            {
                "class": kind,
                "module": module,
                "message": "bad",
                "tb": ["a line\n"],
                "args": list(args),
                "kwargs": {},
            }
        ),
        "ending": True,
    }


class Teapot(Exception):
    pass


def test_a_failure_is_raised_as_its_class_if_that_is_allowed(core):
    with driver_of(exmods=[__name__]) as driver:
        call(driver)
        core[0].answers = [failure("ValueError", "builtins", "bad")]
        with pytest.raises(ValueError, match="bad"):
            call(driver)
        core[0].answers = [failure("Teapot", __name__, 7)]
        with pytest.raises(Teapot) as caught:
            call(driver)
        assert caught.value.args == (7,)
        core[0].answers = [failure("Teapot", "another", 7)]
        with pytest.raises(oslo_messaging.RemoteError) as caught:
            call(driver)
        assert caught.value.exc_type == "Teapot"


def test_a_reply_without_failure_is_a_key_error_as_in_stock(core):
    with driver_of() as driver:
        call(driver)
        core[0].answers = [{"result": 1, "ending": True}]
        with pytest.raises(KeyError):
            call(driver)


# --- limits of a call -----------------------------------------------------


def test_timeout_zero_is_over_at_once(core):
    with driver_of() as driver, pytest.raises(oslo_messaging.MessagingTimeout):
        call(driver, timeout=0)
    assert core == []


@pytest.mark.parametrize(
    "timeout", [-1, -0.5, "5", b"5", float("nan"), float("inf"), [], object()]
)
def test_a_timeout_that_is_no_duration_is_a_delivery_failure(core, timeout):
    with driver_of() as driver, pytest.raises(oslo_messaging.MessageDeliveryFailure):
        call(driver, timeout=timeout)
    assert core == []


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(None, 45), (5, 5), (decimal.Decimal("1.5"), 1.5)]
)
def test_other_timeouts_are_seconds(core, timeout, seconds):
    conf = make_conf()
    _options.register(conf)
    conf.set_override("rpc_response_timeout", 45)
    with driver_of(conf=conf) as driver:
        call(driver, timeout=timeout)
        assert core[0].requests[0].timeout == seconds


@pytest.mark.parametrize(
    ("retry", "expected"), [(None, -1), (-1, -1), (-7, -1), (0, 0), (3, 3)]
)
def test_retry_without_a_limit_is_minus_one(core, retry, expected):
    with driver_of() as driver:
        call(driver, retry=retry)
        driver.send(TOPIC, {}, request(), retry=retry)
        driver.send_notification(TOPIC, {}, {}, 2.0, retry=retry)
        assert core[0].requests[0].retry == expected
        assert [sent.retry for sent in core[0].sent] == [expected] * 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (_core.Timeout, oslo_messaging.MessagingTimeout),
        (_core.Disconnected, oslo_messaging.MessageDeliveryFailure),
        (_core.Refused, oslo_messaging.MessageDeliveryFailure),
        (_core.Rejected, oslo_messaging.MessageDeliveryFailure),
        (_core.Nacked, oslo_messaging.MessageDeliveryFailure),
        (_core.Closed, oslo_messaging.MessageDeliveryFailure),
    ],
)
def test_errors_of_a_call_name_it_and_the_broker(core, kind, expected):
    with driver_of("fastmsg://u:secret@h:7/") as driver:
        call(driver)
        core[0].fault = kind("the core's words")
        with pytest.raises(expected) as caught:
            call(driver)
    text = str(caught.value)
    for part in ("'m'", "'T'", "h:7", "the core's words"):
        assert part in text
    assert "secret" not in text
    assert caught.value.__cause__ is core[0].fault


def test_a_refused_reply_queue_is_tried_again_by_the_next_call(core):
    with driver_of() as driver:
        with pytest.raises(RuntimeError):
            call(driver, message={"args": Boom()})
        bus = core[0]
        bus.fault = _core.Rejected("403")
        with pytest.raises(oslo_messaging.MessageDeliveryFailure):
            call(driver)
        bus.fault = None
        call(driver)
        refused, good = bus.consumers
        assert "close" in refused.history
        assert refused.deleted == []
        assert refused.queues == good.queues
        # From now on it is known to work.
        bus.fault = _core.Rejected("404")
        with pytest.raises(oslo_messaging.MessageDeliveryFailure):
            call(driver)
        assert good.history == ["start"]


class Boom:
    def __iter__(self):
        raise RuntimeError("boom")


# --- monitored calls ------------------------------------------------------


def beat():
    return {"result": None, "failure": None, "ending": False}


def final(result=None, failure=None):
    return {"result": result, "failure": failure, "ending": True}


def monitored(driver, answers, **more):
    driver.send(TOPIC, {}, request())  # makes the bus
    (bus,) = Bus.made
    bus.answers = answers
    return call(driver, call_monitor_timeout=2, **more)


def test_a_monitored_call_says_so_to_its_server(core):
    message = request()
    with driver_of() as driver:
        assert monitored(driver, [final(7)], message=message) == 7
        assert message["_timeout"] == 2
        assert core[0].requests[0].timeout == 20
        (pending,) = core[0].calls
        assert pending.is_cancelled


def test_heartbeats_are_borne(core):
    with driver_of() as driver:
        assert monitored(driver, [beat(), beat(), final(7)]) == 7


def test_silence_is_waited_for_no_longer_than_was_asked(core):
    with driver_of() as driver:
        with pytest.raises(oslo_messaging.MessagingTimeout):
            monitored(driver, [beat(), _core.Timeout("silence")])
        (pending,) = core[0].calls
        assert pending.is_cancelled
        assert all(1.5 < timeout <= 2 for timeout in pending.waited)


def test_heartbeats_do_not_extend_the_timeout(core):
    with driver_of() as driver:
        with pytest.raises(oslo_messaging.MessagingTimeout):
            monitored(driver, [beat(), beat(), _core.Timeout("over")], timeout=1.5)
        (pending,) = core[0].calls
        assert all(timeout <= 1.5 for timeout in pending.waited)
        assert pending.waited == sorted(pending.waited, reverse=True)


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ([{**final(1), "ending": False}, final()], 1),
        ([{**final(1), "ending": False}, final(2)], 2),
        ([{**final(), "ending": None}, final()], None),
        ([{"failure": None}, {"failure": None, "result": 3, "ending": 1}], 3),
    ],
)
def test_the_last_value_that_is_not_null_counts(core, answers, result):
    with driver_of() as driver:
        assert monitored(driver, answers) == result


def test_a_failure_is_raised_after_the_end(core):
    with driver_of() as driver:
        bad = failure("ValueError", "builtins", "bad")
        with pytest.raises(ValueError, match="bad"):
            monitored(driver, [{**bad, "ending": False}, beat(), final()])


def test_a_monitor_timeout_that_is_no_duration_is_a_delivery_failure(core):
    with driver_of() as driver, pytest.raises(oslo_messaging.MessageDeliveryFailure):
        call(driver, call_monitor_timeout="soon")


# --- names ----------------------------------------------------------------


@pytest.mark.parametrize("topic", ["x" * 256, "é" * 128, "a\0b", "\ud800"])
def test_a_name_that_amqp_cannot_carry_is_a_delivery_failure(core, topic):
    target = Target(topic=topic, server="S")
    with driver_of() as driver:
        for attempt in (
            lambda: call(driver, target=target),
            lambda: call(driver, target=Target(exchange=topic, topic="T")),
            lambda: driver.send(target, {}, request()),
            lambda: driver.send(Target(topic=topic, fanout=True), {}, request()),
            lambda: driver.send_notification(target, {}, {}, 2.0),
            lambda: driver.listen(target, 1, None),
            lambda: driver.listen_for_notifications([(target, "info")], None, 1, None),
            lambda: driver.listen_for_notifications([(TOPIC, "info")], topic, 1, None),
        ):
            with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="255"):
                attempt()


def test_long_names_are_carried_as_far_as_amqp_goes(core):
    with driver_of() as driver:
        driver.send(Target(topic="é" * 127), {}, request())
        driver.send(Target(topic="x" * 248, fanout=True), {}, request())
    assert len(core[0].sent) == 2


# --- cast and fanout ------------------------------------------------------


def test_a_cast_has_nothing_of_a_call(core):
    message = request()
    with driver_of("fastmsg://h/?send_timeout=2.5") as driver:
        driver.send(Target(topic="T", server="S"), CONTEXT, message)
    (sent,) = core[0].sent
    assert list(sent.payload) == [
        "method",
        "args",
        "_unique_id",
        "_context_user",
        "_context_request_id",
    ]
    assert (sent.exchange, sent.routing_key) == ("openstack", "T.S")
    assert sent.lane == _core.RPC
    assert sent.mandatory is False
    assert sent.timeout == 2.5


def test_a_fanout_ignores_exchange_server_and_at_least_once(core):
    target = Target(exchange="X", topic="T", server="S", fanout=True)
    with driver_of() as driver:
        driver.send(
            target,
            {},
            request(),
            transport_options=TransportOptions(at_least_once=True),
        )
    (sent,) = core[0].sent
    assert (sent.exchange, sent.routing_key) == ("T_fanout", "")
    assert sent.lane == _core.FANOUT
    assert sent.mandatory is False
    assert sent.topology.declarations == [
        ("exchange", "T_fanout", "fanout", False, True)
    ]


def returned():
    error = _core.Returned("312 NO_ROUTE")
    error.exchange, error.routing_key = "openstack", "T"
    return error


def test_at_least_once_raises_what_stock_raises(core):
    options = TransportOptions(at_least_once=True)
    with driver_of() as driver:
        call(driver, transport_options=options)
        driver.send(TOPIC, {}, request(), transport_options=options)
        (bus,) = core
        assert bus.requests[0].mandatory is True
        assert bus.sent[0].mandatory is True
        bus.fault = returned()
        for wait_for_reply in (True, False):
            message = request()
            with pytest.raises(oslo_messaging.MessageUndeliverable) as caught:
                driver.send(
                    TOPIC,
                    {},
                    message,
                    wait_for_reply=wait_for_reply,
                    timeout=5,
                    transport_options=options,
                )
            assert caught.value.routing_key == "T"
            assert caught.value.exchange == "openstack"
            assert caught.value.message is message


def test_a_cast_that_times_out_is_a_delivery_failure(core):
    with driver_of() as driver:
        driver.send(TOPIC, {}, request())
        core[0].fault = _core.Timeout("no confirm")
        with pytest.raises(
            oslo_messaging.MessageDeliveryFailure, match="cast on topic"
        ):
            driver.send(TOPIC, {}, request())


# Old releases of oslo.serialization warn as well.
@pytest.mark.filterwarnings("ignore:Cannot convert:UserWarning")
@pytest.mark.parametrize("wait_for_reply", [True, False])
def test_arguments_that_cannot_be_written_raise_unchanged(core, wait_for_reply):
    with driver_of() as driver:
        for argument, kind in ((object(), ValueError), ({(1, 2): 3}, TypeError)):
            with pytest.raises(kind):
                driver.send(
                    TOPIC,
                    {},
                    {"method": "m", "args": {"a": argument}},
                    wait_for_reply=wait_for_reply,
                    timeout=5,
                )
        assert core[0].requests == []
        assert core[0].sent == []


# --- context --------------------------------------------------------------


class Context:
    def to_dict(self):
        return {"a": 1, 2: None}


def test_a_context_may_have_to_dict(core):
    message = request()
    with driver_of() as driver:
        driver.send(TOPIC, Context(), message)
    assert message["_context_a"] == 1
    assert message["_context_2"] is None


def test_no_context_is_an_attribute_error_as_in_stock(core):
    with driver_of() as driver:
        for wait_for_reply in (True, False):
            with pytest.raises(AttributeError):
                driver.send(
                    TOPIC, None, request(), wait_for_reply=wait_for_reply, timeout=5
                )


def test_the_context_key_that_breaks_stock_servers_is_left_out(core, caplog):
    with driver_of() as driver:
        for _ in range(3):
            driver.send(TOPIC, {"self": 1, "b": 2}, request())
    for sent in core[0].sent:
        assert "_context_self" not in sent.payload
        assert sent.payload["_context_b"] == 2
    assert len([r for r in caplog.records if "'self'" in r.getMessage()]) <= 1


# --- notifications --------------------------------------------------------

NOTE = {"message_id": "i", "payload": {"é": [1]}, "priority": "INFO"}
NOTE_TARGET = Target(topic="notifications.info")


def test_a_notification_makes_its_queue(core):
    message = dict(NOTE)
    with driver_of() as driver:
        driver.send_notification(NOTE_TARGET, {"user": "u"}, message, 2.0)
    (sent,) = core[0].sent
    assert (sent.exchange, sent.routing_key) == ("openstack", "notifications.info")
    assert sent.lane == _core.NOTIFY
    assert sent.mandatory is False
    assert sent.payload == message
    assert list(message) == [*NOTE, "_unique_id", "_context_user"]
    assert sent.topology.declarations == [
        ("exchange", "openstack", "topic", False, False),
        ("queue", "notifications.info", False, False, {}),
        ("bind", "notifications.info", "openstack", "notifications.info"),
    ]


@pytest.mark.parametrize("version", [1.0, 1, None, "2.0"])
def test_other_versions_have_no_envelope(core, version):
    message = dict(NOTE)
    with driver_of() as driver:
        driver.send_notification(NOTE_TARGET, {"user": "u"}, message, version)
    assert core[0].sent[0].payload == json.dumps(message).encode()


def test_one_message_may_go_to_several_topics(core):
    message = dict(NOTE)
    with driver_of() as driver:
        driver.send_notification(NOTE_TARGET, {"a": 1}, message, 2.0)
        driver.send_notification(Target(topic="other.info"), {"a": 2}, message, 1.0)
    first, second = core[0].sent
    second = json.loads(second.payload)
    assert list(first.payload) == list(second)
    assert second["_context_a"] == 2
    assert second["_unique_id"] != first.payload["_unique_id"]


def test_a_v1_notification_that_cannot_be_written_is_a_delivery_failure(core):
    with driver_of() as driver:
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="JSON"):
            driver.send_notification(NOTE_TARGET, {}, {"payload": {1, 2}}, 1.0)
        with pytest.raises(TypeError):
            driver.send_notification(NOTE_TARGET, {}, {"payload": {(1, 2): 3}}, 2.0)
    assert core[0].sent == []


# --- listening ------------------------------------------------------------


def test_a_server_listens_on_its_own_share(core):
    with driver_of() as driver:
        listener = driver.listen(Target(topic="T", server="S"), 1, None)
        (bus,) = core
        (consumer,) = bus.consumers
        assert consumer.history == ["open"]
        assert consumer.ack_on_take is True
        assert consumer.prefetch == 256
        shared, own, fanout = consumer.queues
        assert (shared, own) == ("T", "T.S")
        assert fanout.startswith("T_fanout_")
        assert len(fanout) == len("T_fanout_") + 32
        got = []
        listener.start(got.extend)
        consumer.deliver(
            Delivery(request(_msg_id="i", _reply_q="r", _timeout=4, _context_a=1))
        )
        eventually(lambda: got)
        (incoming,) = got
        assert incoming.message == request()
        assert incoming.ctxt == {"a": 1, "client_timeout": 4}
        assert incoming.client_timeout == 4
        assert incoming.msg_id == "i"
        driver.cleanup()  # as a service may do before the server's end
        assert not bus.is_closed
        incoming.reply("done")
        assert bus.replied[0].payload["result"] == "done"
        listener.stop()
        listener.cleanup()
        assert consumer.deleted == [fanout]
        assert bus.flushes
        assert bus.is_closed


def test_a_refused_listener_leaves_nothing_open(core, monkeypatch):
    fault = _core.Rejected("406 inequivalent arg")

    def refuse(self, timeout):
        raise fault

    monkeypatch.setattr(_core.Consumer, "open", refuse)
    with driver_of() as driver:
        with pytest.raises(
            oslo_messaging.MessageDeliveryFailure, match="406"
        ) as caught:
            driver.listen(Target(topic="T", server="S"), 1, None)
        assert caught.value.__cause__ is fault
    (bus,) = core
    assert bus.is_closed
    assert "close" in bus.consumers[0].history


def test_notifications_are_listened_to_until_acknowledged(core):
    targets = {(Target(topic="a"), "info"), (Target(exchange="X", topic="b"), "warn")}
    with driver_of() as driver:
        listener = driver.listen_for_notifications(targets, None, 500, None)
        (consumer,) = core[0].consumers
        assert sorted(consumer.queues) == ["a.info", "b.warn"]
        assert consumer.ack_on_take is False
        assert consumer.prefetch == 1000
        assert ("bind", "b.warn", "X", "b.warn") in consumer.declarations
        listener.stop()
        listener.cleanup()
        assert consumer.deleted == []


def test_a_pool_is_one_queue(core):
    targets = [(Target(topic="a"), "info"), (Target(topic="a"), "warn")]
    with driver_of() as driver:
        listener = driver.listen_for_notifications(targets, "pool", 1, None)
        assert core[0].consumers[0].queues == ["pool"]
        listener.stop()
        listener.cleanup()


@pytest.mark.parametrize("is_set", [False, True])
def test_every_consumer_is_cancelled_on_failover_if_the_option_says_so(core, is_set):
    conf = make_conf(enable_cancel_on_failover=is_set)
    with driver_of(conf=conf) as driver:
        listeners = [
            driver.listen(Target(topic="T", server="S"), 1, None),
            driver.listen_for_notifications([(Target(topic="T"), "info")], None, 1, 1),
        ]
        call(driver)
        consumers = [each for bus in core for each in bus.consumers]
        assert [each.cancel_on_failover for each in consumers] == [is_set] * 3
        for listener in listeners:
            listener.stop()
            listener.cleanup()


def test_prefetch_follows_option_and_workers(core):
    from oslo_messaging import server

    conf = make_conf(rabbit_qos_prefetch_count=3)
    with driver_of(conf=conf) as driver:
        listener = driver.listen(Target(topic="T", server="S"), 1, None)
        assert core[0].consumers[0].prefetch == 3
        listener.cleanup()
    conf = make_conf()
    conf.register_opts(server._pool_opts)
    conf.set_override("executor_thread_pool_size", 300)
    with driver_of(conf=conf) as driver:
        listener = driver.listen_for_notifications([(TOPIC, "info")], None, 1, None)
        assert core[1].consumers[0].prefetch == 600
        listener.cleanup()


# --- configuration that fails at use --------------------------------------


def test_a_login_method_that_no_broker_has_fails_at_use(core):
    with driver_of("fastmsg://h/?rabbit_login_method=RABBIT-CR-DEMO") as driver:
        with pytest.raises(
            oslo_messaging.MessageDeliveryFailure, match="rabbit_login_method"
        ):
            driver.send(TOPIC, {}, request())
    assert core == []


@pytest.mark.parametrize(
    "query",
    [
        "ssl=true&ssl_version=SSLv9",
        "rabbit_quorum_queue=true&rabbit_ha_queues=true",
        pytest.param(
            "rabbit_stream_fanout=true",
            marks=pytest.mark.skipif(
                not any(o.name == "rabbit_stream_fanout" for o in RABBIT_OPTS),
                reason="this release of oslo.messaging has no streams",
            ),
        ),
    ],
)
def test_what_stock_refuses_at_connection_time_is_refused_then(core, query):
    with driver_of(f"fastmsg://h/?{query}") as driver, pytest.raises(RuntimeError):
        driver.send_notification(NOTE_TARGET, {}, {}, 2.0)


# --- the end --------------------------------------------------------------


def test_cleanup_closes_everything_twice_if_need_be(core, quiet_events):
    with driver_of() as driver:
        call(driver)
        driver.cleanup()
        assert core[0].is_closed
        assert "close" in core[0].consumers[0].history
        assert quiet_events == set()
        driver.cleanup()
        for wait_for_reply in (True, False):
            with pytest.raises(
                oslo_messaging.MessageDeliveryFailure, match="cleaned up"
            ):
                driver.send(
                    TOPIC, {}, request(), wait_for_reply=wait_for_reply, timeout=5
                )
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="cleaned up"):
            driver.listen(Target(topic="T", server="S"), 1, None)
    assert len(core) == 1


def deleted_after(driver):
    driver.cleanup()
    (consumer,) = Bus.made[0].consumers
    return consumer.deleted == consumer.queues


def test_the_reply_queue_is_deleted_when_every_call_was_answered(core):
    with driver_of() as driver:
        call(driver)
        core[0].answers = [failure("ValueError", "builtins")]
        with pytest.raises(ValueError):  # noqa: PT011 - the remote one
            call(driver)
        # Neither of these ever reached a server.
        core[0].fault = returned()
        with pytest.raises(oslo_messaging.MessageUndeliverable):
            call(driver)
        with pytest.raises(TypeError):
            call(driver, message={"args": {(1, 2): 3}})
        assert deleted_after(driver)


@pytest.mark.parametrize("kind", [_core.Timeout, _core.Disconnected, KeyboardInterrupt])
def test_the_reply_queue_stays_when_a_reply_may_still_come(core, kind):
    with driver_of() as driver:
        call(driver)
        core[0].fault = kind("over")
        with pytest.raises(BaseException):  # noqa: B017, PT011 - of any kind
            call(driver)
        assert not deleted_after(driver)


def test_the_reply_queue_stays_while_a_call_is_in_flight(core, monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def wait(self, *args, **kwargs):
        entered.set()
        leave.wait(10)
        raise _core.Closed("cleanup")

    with driver_of() as driver:
        monkeypatch.setattr(Bus, "call", wait)
        errors = []

        def ask():
            try:
                call(driver)
            except oslo_messaging.MessageDeliveryFailure as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert entered.wait(10)
        assert not deleted_after(driver)
        leave.set()
        thread.join()
        assert len(errors) == 1


def test_replies_are_let_out_at_exit(core):
    with driver_of() as driver:
        driver.send(TOPIC, {}, request())
        _bus._finish()
        assert core[0].flushes
        assert core[0].is_closed
        driver.cleanup()


# eventlet and, from 3.12 on, Python itself warn about a fork with threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_opens_its_own(core):
    with driver_of() as driver:
        message = request()
        call(driver, message)
        driver._lock.acquire()  # as a thread may have it that the child lacks
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                own = request()
                call(driver, own)
                _, bus = core
                status = 0 if own["_reply_q"] != message["_reply_q"] else 2
                if bus.consumers[0].queues != [own["_reply_q"]]:
                    status = 3
            finally:
                os._exit(status)
        driver._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(core) == 1


# --- through oslo.messaging -----------------------------------------------


def test_oslo_messaging_drives_it(core):
    with driver_of() as driver:
        transport = oslo_messaging.transport.RPCTransport(driver)
        # get_rpc_client came in 14.1.
        make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
        client = make(transport, Target(topic="T"))
        assert client.call({}, "m", a=1) is None
        client.cast({}, "m", a=1)
        client.prepare(fanout=True).cast({}, "m", a=1)
        bus = core[0]
        assert bus.requests[0].timeout == 60
        assert [sent.exchange for sent in bus.sent] == ["openstack", "T_fanout"]


class Endpoint:
    def echo(self, ctxt, arg):
        return {"arg": arg, "ctxt": ctxt}

    def boom(self, ctxt):
        raise ValueError("boom")


def test_a_server_of_oslo_messaging_answers(core):
    with driver_of() as driver:
        transport = oslo_messaging.transport.RPCTransport(driver)
        server = oslo_messaging.get_rpc_server(
            transport, Target(topic="T", server="S"), [Endpoint()]
        )
        server.start()
        (bus,) = core
        (consumer,) = bus.consumers
        consumer.deliver(
            Delivery(
                {
                    "method": "echo",
                    "args": {"arg": 1},
                    "_msg_id": "1",
                    "_reply_q": "r",
                    "_context_a": 2,
                }
            )
        )
        eventually(lambda: len(bus.replied) == 1)
        consumer.deliver(
            Delivery({"method": "boom", "args": {}, "_msg_id": "2", "_reply_q": "r"}),
            Delivery({"args": {}, "_msg_id": "3", "_reply_q": "r"}),
        )
        eventually(lambda: len(bus.replied) == 3)
        server.stop()
        server.wait()
    replies = {sent.payload["_msg_id"]: sent.payload for sent in bus.replied}
    assert replies["1"]["result"] == {
        "arg": 1,
        "ctxt": {"a": 2, "client_timeout": None},
    }
    assert json.loads(replies["2"]["failure"])["class"] == "ValueError"
    assert json.loads(replies["3"]["failure"])["class"] == "TypeError"
