"""Rows 3 and 4: a host of the URL that is not there, or falls silent."""

import contextlib
import time

import pytest
from fix_account import Account
from fix_faults import QUICK, bounds
from fix_faulty_proxy import FaultyProxy
from fix_load import Accounting, Load, sender

# Which host comes first is chance: with so many it is the bad one in one at
# least, but once in 4,000 runs.
TRIES = 12


def url_of(scheme, *hosts):
    netloc = ",".join(f"guest:guest@{it.host}:{it.port}" for it in hosts)
    return f"{scheme}://{netloc}/"


# --- row 3 ---


FAULTS = {
    "refuses": lambda proxy: proxy.refuse(),
    "resets": lambda proxy: proxy.slam(),
    "black hole": lambda proxy: proxy.black_hole(),
}


def use_the_second(driver, peers, proxy, broker, topic, account, fault, tries):
    """Give how long each first cast took whose URL has a bad host in it."""
    url = url_of({"fast": "fastmsg", "stock": "rabbit"}[driver], proxy, broker)
    FAULTS[fault](proxy)
    for _ in range(tries):
        transport = peers.transport(driver, url=url)
        client = peers.client(driver, topic=topic, transport=transport)
        sender(account, "cast", client)()
        peers.clean(transport)
    return [it.at("confirmed") - it.at("sent") for it in account.entries()]


@pytest.mark.parametrize(
    ("fault", "promised_s"),
    [("refuses", 0.2), ("resets", 0.2), ("black hole", 3.0)],
    ids=["refuses", "resets", "black-hole"],
)
@bounds(promised=1, generous=10)
def test_the_second_host_is_used_when_the_first_one_is_away(
    fast, peers, proxy, broker, topic, account, figure, fault, promised_s, bound
):
    """``bound`` is in times of what is promised."""
    peers.server(fast, Accounting(account, "server"), topic=topic)
    tries = 6 if fault == "black hole" else TRIES

    times = use_the_second(fast, peers, proxy, broker, topic, account, fault, tries)

    account.balance()
    figure(3, fault, f"{max(times):.3f} s at most, {min(times):.3f} at least")
    assert max(times) < promised_s * bound


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_baseline_of_stock_when_the_first_host_is_away(
    peers, proxy, broker, topic, figure, fault
):
    account = Account()
    peers.server("stock", Accounting(account, "server"), topic=topic)
    times = use_the_second("stock", peers, proxy, broker, topic, account, fault, 4)

    figure(3, fault, f"{max(times):.3f} s at most, {min(times):.3f} at least", "stock")


def test_the_bad_host_of_a_url_is_tried_first_now_and_then(
    fast, peers, proxy, broker, topic
):
    """Or else the tests above would measure nothing."""
    proxy.slam()
    for _ in range(TRIES):
        transport = peers.transport(fast, url=url_of("fastmsg", proxy, broker))
        peers.client(fast, topic=topic, transport=transport).cast({}, "take")
        peers.clean(transport)
    assert proxy.slammed > 0


# --- row 4 ---


@pytest.fixture
def second(broker):
    with FaultyProxy(broker) as it:
        yield it


def fall_silent(fast, peers, topic, account, hosts, heartbeat, threads, of, caplog):
    """Have the host to which messages are sent take nothing any more, under
    load or not. Give how long it took until that was noticed, until a cast was
    confirmed, and until a call was answered that were sent after it."""
    peers.server(fast, Accounting(account, "server"), topic=topic)
    client = peers.client(
        fast,
        topic=topic,
        url=url_of("fastmsg", *hosts),
        rabbit={**QUICK, "heartbeat_timeout_threshold": heartbeat},
    )
    call = sender(account, "call", client, timeout=8 * heartbeat)
    cast = sender(account, "cast", client)
    call()
    with contextlib.ExitStack() as stack:
        if threads:
            stack.enter_context(Load(call, threads=threads))
            account.wait("answered", 100)
        (bad,) = [
            host
            for host in hosts
            if any(link.publications() for link in host.open_links())
        ]
        moment, wall = time.monotonic(), time.time()
        bad.silence(*of)
        cast()
        confirmed_s = account.wait_after("confirmed", moment, 60)
        call()
        answered_s = account.wait_after("answered", moment, 60)
        account.wait("answered", account.count("answered") + 10 * threads)
    bad.resume()
    (noticed, *_) = [
        record.created - wall
        for record in caplog.records
        if "nothing heard for two heartbeats" in record.getMessage()
    ]
    return noticed, confirmed_s, answered_s


# Silence of the client alone is for the broker to notice.
@pytest.mark.parametrize("of", [(), ("broker",)], ids=["both", "broker"])
@bounds(promised=2.0, generous=4.0)
def test_silence_is_noticed_within_two_heartbeats(
    fast, peers, proxy, second, topic, account, figure, of, bound, caplog
):
    """``bound`` is in heartbeats of 1 s.

    A call may take one more: a broker that hears nothing of its consumer keeps
    what it has sent to it for so long.
    """
    hosts = [proxy, second]
    times = fall_silent(fast, peers, topic, account, hosts, 1, 0, of, caplog)

    sums = account.balance()
    figure(4, f"{' '.join(of) or 'both'} silent, heartbeat 1 s", in_words(*times))
    noticed_s, confirmed_s, answered_s = times
    assert noticed_s < bound + 0.2, sums
    assert confirmed_s < bound + 0.5, sums
    assert answered_s < bound + 2, sums


def in_words(noticed_s, confirmed_s, answered_s):
    return f"noticed {noticed_s:.1f}, cast {confirmed_s:.1f}, call {answered_s:.1f} s"


@pytest.mark.slow
@bounds(promised=2.0, generous=4.0)
def test_silence_is_noticed_within_two_heartbeats_under_load(
    fast, peers, proxy, second, topic, account, figure, bound, caplog
):
    hosts = [proxy, second]
    times = fall_silent(fast, peers, topic, account, hosts, 5, 16, (), caplog)

    sums = account.balance()
    figure(4, "both silent, heartbeat 5 s, load", in_words(*times))
    noticed_s, confirmed_s, answered_s = times
    assert noticed_s < bound * 5 + 0.5, sums
    assert confirmed_s < bound * 5 + 1, sums
    assert answered_s < bound * 5 + 7, sums


@pytest.mark.slow
def test_a_heartbeat_of_5_s_lasts_under_load(
    fast, peers, proxy, topic, account, figure
):
    """Nobody takes a busy connection for a silent one, at either end."""
    options = {"via": proxy, "rabbit": {"heartbeat_timeout_threshold": 5}}
    transport = peers.transport(fast, **options)
    peers.server(fast, Accounting(account, "server"), topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport)
    start = time.monotonic()
    with Load(sender(account, "call", client, padding=2000), threads=16):
        while time.monotonic() - start < 16:
            account.wait("answered", account.count("answered") + 50)
    sums = account.balance()
    figure(4, "16 s of load, heartbeat 5 s", f"connection kept ({sums})")
    assert len(proxy.links()) == 2
