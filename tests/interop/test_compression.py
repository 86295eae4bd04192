"""Option kombu_compression: what either driver compresses, the other reads."""

import bz2
import json
import logging
import lzma
import threading
import time
import zlib

import oslo_messaging
import pytest
from fix_peer import Notes, TestEndpoint
from fix_wire import Impostor, envelope, payload_of

from oslo_fastmsg import _envelope

LARGE = {"text": "compress me " * 500, "é": [1.5, None]}

# The option's value, the header, and the way back.
KINDS = {
    "gzip": ("application/x-gzip", zlib.decompress),
    "zlib": ("application/x-gzip", zlib.decompress),
    "bzip2": ("application/x-bz2", bz2.decompress),
    "lzma": ("application/x-lzma", lzma.decompress),
}
EVERYTHING = {"query": {"compression_threshold": 0}}


def more(driver):
    """Have our driver compress small messages too, as stock does."""
    return EVERYTHING if driver == "fast" else {}


@pytest.mark.options("kombu_compression")
@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_compressed_both_ways(peers, pairing, topic, kind):
    rabbit = {"kombu_compression": kind}
    receiver, sender = pairing.receiver, pairing.sender
    peers.server(receiver, TestEndpoint(), topic=topic, rabbit=rabbit, **more(receiver))
    client = peers.client(sender, topic=topic, rabbit=rabbit, **more(sender))

    assert client.call({}, "echo", arg=LARGE) == LARGE
    assert client.call({}, "echo", arg=None) is None
    with pytest.raises(ValueError, match="bad None"):
        client.call({}, "fail")


def test_only_the_sender_need_have_the_option(peers, pairing, topic):
    endpoint = TestEndpoint()
    rabbit = {"kombu_compression": "gzip"}
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic, rabbit=rabbit)

    assert client.call({}, "echo", arg=LARGE) == LARGE
    client.cast({}, "echo", arg=LARGE)
    client.prepare(fanout=True).cast({}, "echo", arg=LARGE)
    assert endpoint.seen.wait(3) == [LARGE] * 3


def test_only_the_server_need_have_the_option(peers, pairing, topic):
    receiver = pairing.receiver
    rabbit = {"kombu_compression": "bzip2"}
    peers.server(receiver, TestEndpoint(), topic=topic, rabbit=rabbit, **more(receiver))
    client = peers.client(pairing.sender, topic=topic)

    for number in range(50):
        assert client.call({}, "echo", arg=[number, LARGE]) == [number, LARGE]


def test_compressed_replies_find_their_callers(peers, pairing, topic, background):
    receiver = pairing.receiver
    rabbit = {"kombu_compression": "gzip"}
    peers.server(receiver, TestEndpoint(), topic=topic, rabbit=rabbit, **more(receiver))
    client = peers.client(pairing.sender, topic=topic)

    calls = [background(client.call, {}, "echo", arg=[n, LARGE]) for n in range(40)]
    assert [call.result() for call in calls] == [[n, LARGE] for n in range(40)]


def test_a_caller_who_polls_for_everybody_is_woken(
    peers, pairing, topic, background, monkeypatch
):
    """Not the I/O thread but Python ends his call, and slowly at that."""
    if pairing.sender != "fast":
        pytest.skip("stock reads its replies itself")
    receiver = pairing.receiver
    rabbit = {"kombu_compression": "gzip"}
    peers.server(receiver, TestEndpoint(), topic=topic, rabbit=rabbit, **more(receiver))
    client = peers.client(pairing.sender, topic=topic)
    read = _envelope.read

    def read_late(*args):
        time.sleep(0.1)  # beyond what an acknowledgement of replies takes
        return read(*args)

    monkeypatch.setattr(_envelope, "read", read_late)

    def call_often():
        began = time.monotonic()
        for number in range(5):
            assert client.call({}, "echo", arg=[number, LARGE]) == [number, LARGE]
        return time.monotonic() - began

    assert background(call_often).result() < 10


def test_a_reply_that_cannot_be_read_takes_no_other_along(
    peers, fast, topic, broker, background
):
    def answer(spy, payload):
        reply_to, msg_id = payload["_reply_q"], payload["_msg_id"]
        reply = {"result": "right", "failure": None, "ending": True, "_msg_id": msg_id}
        headers = {"application_headers": {"compression": "application/x-gzip"}}
        deep = f'{{"_msg_id": "{msg_id}", "result": {"[" * 1001}{"]" * 1001}}}'
        for text in (deep, "{", '{"a": 1}'):
            spy.send("", reply_to, zlib.compress(text.encode()), **headers)
        spy.send("", reply_to, zlib.compress(envelope(reply)), **headers)

    client = peers.client(fast, topic=topic)
    with Impostor(broker, topic, answer):
        for _ in range(5):
            assert client.call({}, "echo") == "right"


def test_a_log_handler_that_waits_holds_no_reply_back(
    peers, fast, topic, proxy, background
):
    rabbit = {"kombu_compression": "gzip"}
    peers.server(fast, TestEndpoint(), topic=topic, rabbit=rabbit, **EVERYTHING)
    client = peers.client(fast, topic=topic, via=proxy)
    assert client.call({}, "echo", arg=LARGE) == LARGE

    free, held = threading.Event(), threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            held.set()
            free.wait(20)

    handler = Handler()
    logging.getLogger("oslo_fastmsg").addHandler(handler)
    try:
        proxy.cut()
        assert held.wait(10)
        assert background(client.call, {}, "echo", arg=LARGE).result(10) == LARGE
        assert not free.is_set()
    finally:
        free.set()
        logging.getLogger("oslo_fastmsg").removeHandler(handler)


def test_a_monitored_call_lives_on_compressed_signs_of_life(peers, pairing, topic):
    receiver = pairing.receiver
    rabbit = {"kombu_compression": "gzip"}
    peers.server(receiver, TestEndpoint(), topic=topic, rabbit=rabbit, **more(receiver))
    client = peers.client(pairing.sender, topic=topic, timeout=30)

    monitored = client.prepare(call_monitor_timeout=2)
    assert monitored.call({}, "last", seconds=3.5) == "done"


@pytest.mark.options("kombu_compression")
@pytest.mark.parametrize("version", [1, 2])
def test_notifications_are_compressed(peers, pairing, topic, version):
    notes = Notes()
    rabbit = {"kombu_compression": "lzma"}
    peers.listener(pairing.receiver, notes, topics=[topic])
    notifier = peers.notifier(pairing.sender, topic, version=version, rabbit=rabbit)

    notifier.info({}, "event", LARGE)

    assert notes.seen.wait()[0]["payload"] == LARGE


@pytest.mark.options("kombu_compression")
@pytest.mark.envelopes("json")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_is_what_stock_sends(peers, spy, topic, kind):
    media_type, decompress = KINDS[kind]
    tap = spy.tap_exchange("openstack", topic)
    for driver in ("stock", "fast"):
        rabbit = {"kombu_compression": kind}
        peers.client(driver, topic=topic, rabbit=rabbit).cast({}, "echo", arg=LARGE)
    stock, fast = tap.take(2)

    assert fast.properties == stock.properties
    assert fast.properties["application_headers"] == {"compression": media_type}
    stock_payload, fast_payload = (
        payload_of(decompress(each.body)) for each in (stock, fast)
    )
    del stock_payload["_unique_id"], fast_payload["_unique_id"]
    assert json.dumps(fast_payload) == json.dumps(stock_payload)
    assert len(fast.body) == pytest.approx(len(stock.body), rel=0.05)


@pytest.mark.options("compression_threshold")
@pytest.mark.envelopes("json", "msgpack")  # auto has a header of its own
def test_small_messages_stay_plain(peers, spy, fast, topic):
    tap = spy.tap_exchange("openstack", topic)
    client = peers.client(fast, topic=topic, rabbit={"kombu_compression": "gzip"})

    client.cast({}, "echo", arg="x" * 600)
    client.cast({}, "echo", arg="x" * 1400)
    small, large = tap.take(2)

    assert small.properties["application_headers"] == {}
    assert payload_of(small.body)["args"] == {"arg": "x" * 600}
    assert large.properties["application_headers"] == {
        "compression": "application/x-gzip"
    }


def test_bz2_is_bzip2(peers, spy, fast, topic):
    """The option's help has that name; stock cannot send anything then."""
    tap = spy.tap_exchange("openstack", topic)
    client = peers.client(fast, topic=topic, rabbit={"kombu_compression": "bz2"})

    client.cast({}, "echo", arg=LARGE)

    assert payload_of(bz2.decompress(tap.get().body))["args"] == {"arg": LARGE}


@pytest.mark.options("kombu_compression")
def test_an_unknown_compression_is_refused_at_the_start(peers, fast):
    with pytest.raises(oslo_messaging.DriverLoadFailure, match=r"gzip.*lzma"):
        peers.transport(fast, rabbit={"kombu_compression": "rot13"})


def test_what_cannot_be_written_is_refused_before_it_is_compressed(peers, fast, topic):
    client = peers.client(fast, topic=topic, rabbit={"kombu_compression": "gzip"})

    circle = []
    circle.append(circle)

    with pytest.raises(ValueError, match="Circular"):
        client.cast({}, "echo", arg=circle)
