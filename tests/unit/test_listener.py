import logging
import threading
import time

import oslo_messaging
import pytest
from fix_core import Bus, Consumer, Delivery, eventually

from oslo_fastmsg import _core, _listener
from oslo_fastmsg._listener import FastmsgListener, notification_prefetch, rpc_prefetch


class Share:
    def __init__(self):
        self.history = []

    def flush(self):
        self.history.append("flush")

    def close(self):
        self.history.append("close")


class Harness:
    """A listener whose incoming messages are the payloads themselves."""

    def __init__(self, acks_first=True, prefetch=256, batch_size=1, **more):
        self.share = Share()
        self.consumer = Consumer(
            Bus(),
            [],
            ["T"],
            prefetch=prefetch,
            ack_on_take=acks_first,
            replies=False,
            cancel_on_failover=False,
        )
        self.batches = []
        self.callback = self.batches.append
        self.listener = FastmsgListener(
            self.share,
            self.consumer,
            lambda delivery, payload: payload,
            acks_first=acks_first,
            prefetch=prefetch,
            batch_size=batch_size,
            batch_timeout=more.pop("batch_timeout", None),
            delete=more.pop("delete", []),
            brokers="h:5672",
        )
        assert not more

    def __enter__(self):
        self.listener.start(lambda batch: self.callback(batch))
        return self

    def __exit__(self, *exc_info):
        self.listener.stop()
        self.listener.cleanup()

    def deliver(self, *payloads):
        self.consumer.deliver(*[Delivery(payload) for payload in payloads])

    def got(self, *batches):
        eventually(lambda: len(self.batches) >= len(batches))
        assert self.batches == list(batches)


def payloads(*numbers):
    return [{"n": n} for n in numbers]


def test_requests_are_handed_over_one_by_one_in_order():
    with Harness() as harness:
        harness.deliver(*payloads(*range(100)))
        harness.got(*[[payload] for payload in payloads(*range(100))])
        assert harness.consumer.history == ["start"]


def test_nothing_is_consumed_before_start():
    harness = Harness()
    assert harness.consumer.history == []
    harness.listener.stop()
    harness.listener.cleanup()
    assert harness.share.history == ["flush", "close"]


def test_a_batch_ends_when_it_is_full():
    with Harness(batch_size=3) as harness:
        harness.deliver(*payloads(1, 2))
        harness.deliver(*payloads(3, 4))
        harness.got(payloads(1, 2, 3))
    assert harness.batches == [payloads(1, 2, 3), payloads(4)]


@pytest.mark.timing
def test_a_batch_ends_when_its_time_is_over():
    with Harness(batch_size=3, batch_timeout=0.3) as harness:
        time.sleep(0.4)  # the clock runs from the first message on
        start = time.monotonic()
        harness.deliver(*payloads(1))
        harness.deliver(*payloads(2))
        harness.got(payloads(1, 2))
        assert 0.25 <= time.monotonic() - start < 2
        harness.deliver(*payloads(3, 4, 5))
        harness.got(payloads(1, 2), payloads(3, 4, 5))


def test_a_batch_is_no_larger_than_the_prefetch():
    with Harness(batch_size=10, prefetch=2) as harness:
        harness.deliver(*payloads(1, 2, 3, 4))
        harness.got(payloads(1, 2), payloads(3, 4))


def test_without_a_size_the_time_alone_ends_a_batch():
    with Harness(batch_size=None, batch_timeout=0.2) as harness:
        harness.deliver(*payloads(*range(20)))
        harness.got(payloads(*range(20)))


def test_without_any_limit_each_message_is_a_batch():
    with Harness(batch_size=None) as harness:
        harness.deliver(*payloads(1, 2))
        harness.got(payloads(1), payloads(2))


def test_stop_hands_over_what_was_taken_and_then_no_more():
    with Harness(batch_size=3) as harness:
        harness.deliver(*payloads(1))
        eventually(lambda: not harness.consumer._waiting)
        harness.listener.stop()
        assert harness.batches == [payloads(1)]
        harness.deliver(*payloads(2))
        assert harness.consumer.history == ["start", "stop"]
        assert not [t for t in threading.enumerate() if t.name == "fastmsg-listener"]
    assert harness.batches == [payloads(1)]


def test_stop_from_within_the_callback_does_not_wait_for_itself():
    with Harness() as harness:

        def callback(batch):
            harness.batches.append(batch)
            harness.listener.stop()

        harness.callback = callback
        harness.deliver(*payloads(1, 2))
        harness.got(payloads(1), payloads(2))


def test_cleanup_lets_replies_out_and_deletes_its_own_queues():
    harness = Harness(delete=["T_fanout_x"])
    with harness:
        pass
    assert harness.consumer.history == ["start", "stop", "stop", "close"]
    assert harness.consumer.deleted == ["T_fanout_x"]
    assert harness.share.history == ["flush", "close"]


def test_a_failing_callback_does_not_end_the_thread(caplog):
    with Harness() as harness:

        def callback(batch):
            harness.batches.append(batch)
            raise RuntimeError("no more workers")

        harness.callback = callback
        harness.deliver(*payloads(1))
        harness.deliver(*payloads(2))
        harness.got(payloads(1), payloads(2))
    assert "no more workers" in caplog.text


def test_an_unexpected_error_is_logged_and_listening_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(_listener, "_PAUSE_S", 0.01)
    with Harness() as harness:
        harness.consumer.faults.append(_core.Rejected("406"))
        harness.deliver(*payloads(1))
        harness.got(payloads(1))
    assert "406" in caplog.text


def test_a_refused_consumer_is_a_delivery_failure(monkeypatch):
    harness = Harness()

    def start():
        raise _core.Rejected("404 no queue")

    monkeypatch.setattr(harness.consumer, "start", start)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="404 no queue"):
        harness.listener.start(print)
    harness.listener.stop()
    harness.listener.cleanup()


BARE = b'{"n": 1, "_unique_id": "u"}'


def test_a_bare_request_is_acknowledged_before_it_runs():
    delivery = Delivery(body=BARE)
    with Harness() as harness:
        harness.callback = lambda batch: harness.batches.append(list(delivery.settled))
        harness.consumer.deliver(delivery)
        harness.got([("accept", "u"), "ack"])


def test_a_bare_notification_is_left_to_its_endpoint():
    delivery = Delivery(body=BARE)
    with Harness(acks_first=False) as harness:
        harness.consumer.deliver(delivery)
        harness.got(payloads(1))
    assert delivery.settled == [("accept", "u")]


@pytest.mark.parametrize("acks_first", [True, False])
def test_a_bare_duplicate_is_acknowledged_and_dropped(acks_first):
    duplicate = Delivery(body=BARE, is_new=False)
    with Harness(acks_first=acks_first) as harness:
        harness.consumer.deliver(duplicate, Delivery({"n": 2}))
        harness.got(payloads(2))
    assert duplicate.settled == [("accept", "u"), "ack"]


@pytest.mark.parametrize("unique_id", [b"null", b"7", b'["u"]'])
def test_an_id_that_is_no_string_is_no_id(unique_id):
    delivery = Delivery(body=b'{"n": 1, "_unique_id": %s}' % unique_id)
    with Harness() as harness:
        harness.consumer.deliver(delivery)
        harness.got(payloads(1))
    assert delivery.settled == [("accept", None), "ack"]


def test_a_rejected_message_is_logged_once_without_its_content(caplog):
    bad = Delivery(body=b'{"password": "hunter2"', queue="T.S")
    with caplog.at_level(logging.DEBUG), Harness() as harness:
        harness.consumer.deliver(bad, Delivery({"n": 2}))
        harness.got(payloads(2))
    assert bad.settled == [("reject", False)]
    (record,) = [r for r in caplog.records if "Rejected" in r.getMessage()]
    assert "T.S" in record.getMessage()
    assert "22 bytes" in record.getMessage()
    assert "not JSON" in record.getMessage()
    assert "hunter2" not in caplog.text


def test_one_message_that_breaks_us_does_not_take_others_along(caplog):
    class Broken(Delivery):
        @property
        def content_encoding(self):
            raise RuntimeError("a bug")

        @content_encoding.setter
        def content_encoding(self, value):
            pass

    with Harness() as harness:
        harness.consumer.deliver(Broken(body=BARE), Delivery({"n": 2}))
        harness.got(payloads(2))
    assert "a bug" in caplog.text


def test_prefetch_is_bounded_when_the_option_has_no_bound():
    assert rpc_prefetch(0) == 256
    assert rpc_prefetch(3) == 3
    assert notification_prefetch(0, 1, None) == 256
    assert notification_prefetch(0, 1000, 64) == 2000
    assert notification_prefetch(0, None, 500) == 1000
    assert notification_prefetch(5, 1000, 500) == 5


def test_a_large_request_is_waited_for_until_a_worker_begins(monkeypatch):
    monkeypatch.setattr(_listener, "_AHEAD_S", 60.0)
    backlog = _listener.Backlog()
    begin = [backlog.add(_listener._AHEAD_BYTES) for _ in range(2)]
    thread = threading.Thread(target=backlog.wait)
    thread.start()
    eventually(lambda: backlog._room is not None)
    assert thread.is_alive()

    begin[0]()
    thread.join(10)
    assert not thread.is_alive()
    begin[1]()
    backlog.wait()  # nothing is ahead


def test_workers_who_never_begin_do_not_stop_a_listener(monkeypatch):
    monkeypatch.setattr(_listener, "_AHEAD_S", 0.01)
    backlog = _listener.Backlog()
    backlog.add(_listener._AHEAD_BYTES + 1)
    backlog.wait()
    backlog.wait()


def test_requests_count_as_ahead_by_their_size_until_acknowledged():
    class Incoming:
        on_begin = None

    with Harness() as it:
        it.listener._make = lambda delivery, payload: Incoming()
        it.consumer.deliver(Delivery({"n": 1}, size=_listener._LARGE - 1))
        it.consumer.deliver(Delivery({"n": 2}, size=_listener._LARGE))
        eventually(lambda: len(it.batches) == 2)
        small, large = [batch[0] for batch in it.batches]
        assert small.on_begin is None
        assert it.listener._backlog._bytes == _listener._LARGE
        large.on_begin()
        assert it.listener._backlog._bytes == 0
