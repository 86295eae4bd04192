"""TLS: what is trusted, what is refused, and that it carries everything."""

import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse

import oslo_messaging
import pytest
from fix_peer import Notes, TestEndpoint, stock_takes
from fix_tls import Authority, TlsRelay
from private_broker import PrivateBroker

pytestmark = pytest.mark.tls

SCHEMES = {"fast": "fastmsg", "stock": "rabbit"}


@pytest.fixture(scope="module")
def tls_broker():
    with PrivateBroker(tls=True) as node:
        yield node


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def certificates(authority, stranger):
    return {
        "good": authority.sign("good"),
        "another name": authority.sign("other", "DNS:other.example, IP:127.0.0.9"),
        "another authority": stranger.sign("strange"),
        "expired": authority.sign("old", days=0),
    }


def why_refused(peers, url):
    """Cast once; give the text of the error."""
    transport = peers.transport("fast", url=url)
    client = peers.client("fast", topic="t", transport=transport, retry=0)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo", arg=1)
    assert "guest:guest" not in str(caught.value)
    return str(caught.value)


def cast(peers, url):
    transport = peers.transport("fast", url=url)
    client = peers.client("fast", topic="t", transport=transport, retry=0)
    client.cast({}, "echo", arg=1)


@pytest.fixture
def over_tls(peers, pairing, tls_broker, topic):
    """A server and a client with both of their connections over TLS."""
    ends = {}
    for role, driver in (("server", pairing.receiver), ("client", pairing.sender)):
        url = tls_broker.tls_url(SCHEMES[driver])
        ends[role] = peers.transport(driver, url=url)
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic, transport=ends["server"])
    client = peers.client(pairing.sender, topic=topic, transport=ends["client"])
    return client, endpoint


@pytest.mark.options("ssl", "ssl_ca_file")
def test_calls_casts_and_fanouts_go_over_tls(over_tls):
    client, endpoint = over_tls

    assert client.call({}, "echo", arg={"é": [1]}) == {"é": [1]}
    client.cast({}, "echo", arg="cast")
    client.prepare(fanout=True).cast({}, "echo", arg="fanout")
    with pytest.raises(ValueError, match="bad x"):
        client.call({}, "fail", arg="x")
    seen = endpoint.seen.wait(3)
    assert "cast" in seen
    assert "fanout" in seen


def test_notifications_go_over_tls(peers, pairing, tls_broker, topic):
    notes = Notes()
    receiver, sender = (
        peers.transport(d, url=tls_broker.tls_url(SCHEMES[d]), notification=True)
        for d in (pairing.receiver, pairing.sender)
    )
    peers.listener(pairing.receiver, notes, topics=[topic], transport=receiver)
    notifier = peers.notifier(pairing.sender, topic, transport=sender)
    notifier.info({}, "event", {"a": 1})
    assert notes.seen.wait()[0]["payload"] == {"a": 1}


def test_a_megabyte_comes_back_from_sixteen_threads(over_tls, background):
    client, _ = over_tls
    texts = [chr(ord("a") + number) * 2**20 for number in range(16)]

    calls = [background(client.call, {}, "echo", arg=text) for text in texts]
    for call, text in zip(calls, texts, strict=True):
        assert call.result(60) == text


def test_the_scheme_may_say_tls(peers, tls_broker, topic):
    query = urllib.parse.urlencode({"ssl_ca_file": tls_broker.ca_file})
    login = f"guest:guest@127.0.0.1:{tls_broker.tls_port}"
    url = f"fastmsg+tls://{login}/?{query}"
    transport = peers.transport("fast", url=url)
    peers.server("fast", TestEndpoint(), topic=topic, transport=transport)
    client = peers.client("fast", topic=topic, transport=transport)
    assert client.call({}, "echo", arg=1) == 1


@pytest.mark.parametrize("scheme", ["fastmsg+ssl", "fastmsg+x"])
def test_any_other_scheme_is_refused(peers, scheme):
    with pytest.raises(oslo_messaging.InvalidTransportURL):
        peers.transport("fast", url=f"{scheme}://guest:guest@127.0.0.1/")


@pytest.mark.options("ssl", "ssl_ca_file")
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("another name", "certificate refused: .*mismatch"),
        ("another authority", "certificate refused: .*issuer"),
        ("expired", "certificate refused: certificate has expired"),
    ],
)
def test_a_wrong_certificate_is_refused(
    peers, broker, authority, certificates, kind, cause
):
    with TlsRelay(broker, certificates[kind]) as relay:
        url = relay.url("fastmsg", ssl="true", ssl_ca_file=authority.file)
        text = why_refused(peers, url)
    assert re.search(cause, text), text


@pytest.mark.options("ssl_version")
def test_a_private_authority_that_is_not_named_is_refused(peers, broker, certificates):
    """The system's authorities count then; also if a version is named."""
    with TlsRelay(broker, certificates["good"]) as relay:
        for more in ({}, {"ssl_version": "TLSv1_2"}, {"ssl_version": "SSLv23"}):
            text = why_refused(peers, relay.url("fastmsg", ssl="true", **more))
            assert "certificate refused" in text


SEND_ONE = """
import sys
import oslo_messaging
from oslo_config import cfg

transport = oslo_messaging.get_rpc_transport(cfg.CONF, sys.argv[1])
make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)  # 14.1
make(transport, oslo_messaging.Target(topic="t"), retry=0).cast({}, "echo", arg=1)
"""


def test_the_systems_authorities_count_when_none_is_named(
    broker, authority, stranger, certificates
):
    """SSL_CERT_FILE is where OpenSSL has the system's looked for."""
    with TlsRelay(broker, certificates["good"]) as relay:
        command = [sys.executable, "-c", SEND_ONE, relay.url("fastmsg", ssl="true")]
        ends = {
            name: subprocess.run(
                command,
                env={**os.environ, "SSL_CERT_FILE": who.file},
                capture_output=True,
                text=True,
            )
            for name, who in (("known", authority), ("unknown", stranger))
        }
    assert ends["known"].returncode == 0, ends["known"].stderr
    assert ends["unknown"].returncode != 0
    assert "certificate refused" in ends["unknown"].stderr


def test_a_host_is_asked_for_by_its_name(peers, broker, authority, certificates):
    """And by none if it is an address, which SNI has no room for (RFC 6066)."""
    ca = {"ssl": "true", "ssl_ca_file": authority.file}
    with TlsRelay(broker, certificates["good"]) as relay:
        cast(peers, relay.url("fastmsg", "localhost", **ca))
        cast(peers, relay.url("fastmsg", **ca))
        assert relay.names == ["localhost", None]


def test_a_message_is_one_record(peers, broker, authority, certificates):
    """Method, header and body are sealed and sent together."""
    with TlsRelay(broker, certificates["good"]) as relay:
        url = relay.url("fastmsg", ssl="true", ssl_ca_file=authority.file)
        transport = peers.transport("fast", url=url)
        client = peers.client("fast", topic="t", transport=transport, retry=0)
        client.cast({}, "echo", arg="first")
        before = len(relay.records)
        for _ in range(20):
            client.cast({}, "echo", arg="x" * 2048)
        records = relay.records[before:]
    assert len(records) == 20
    assert min(records) > 2048


@pytest.mark.options("ssl_verify", "ssl_enforce_hostname_verification")
def test_checks_can_be_switched_off_one_by_one(peers, broker, authority, certificates):
    with TlsRelay(broker, certificates["another name"]) as relay:
        ca = {"ssl": "true", "ssl_ca_file": authority.file}
        why_refused(peers, relay.url("fastmsg", **ca))
        cast(peers, relay.url("fastmsg", ssl_verify="chain", **ca))
        if stock_takes("ssl_enforce_hostname_verification", False):
            cast(
                peers,
                relay.url("fastmsg", ssl_enforce_hostname_verification="false", **ca),
            )
    with TlsRelay(broker, certificates["another authority"]) as relay:
        why_refused(peers, relay.url("fastmsg", ssl_verify="chain", **ca))
        cast(peers, relay.url("fastmsg", ssl_verify="none", **ca))


def test_names_and_addresses_are_both_checked(peers, broker, authority):
    ca = {"ssl": "true", "ssl_ca_file": authority.file}
    with TlsRelay(broker, authority.sign("dns", "DNS:localhost")) as relay:
        cast(peers, relay.url("fastmsg", "localhost", **ca))
        assert "mismatch" in why_refused(peers, relay.url("fastmsg", **ca))
    with TlsRelay(broker, authority.sign("ip", "IP:127.0.0.1")) as relay:
        cast(peers, relay.url("fastmsg", **ca))
        text = why_refused(peers, relay.url("fastmsg", "localhost", **ca))
        assert "mismatch" in text


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_both_versions_are_spoken(peers, broker, authority, certificates, version):
    only = ssl.TLSVersion[version]
    with TlsRelay(broker, certificates["good"], at_least=only, at_most=only) as relay:
        cast(peers, relay.url("fastmsg", ssl="true", ssl_ca_file=authority.file))
        assert relay.versions == [version.replace("_", ".")]


@pytest.mark.options("ssl_version")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_older_is_refused(peers, broker, authority, certificates):
    old = ssl.TLSVersion.TLSv1
    with TlsRelay(broker, certificates["good"], at_least=old, at_most=old) as relay:
        url = relay.url(
            "fastmsg", ssl="true", ssl_ca_file=authority.file, ssl_version="TLSv1"
        )
        assert "protocol version" in why_refused(peers, url).replace("_", " ")


def test_a_plain_port_is_recognised(peers, broker):
    text = why_refused(peers, broker.url("fastmsg", ssl="true"))
    assert "does this port speak TLS?" in text


def test_plain_amqp_to_a_port_with_tls_is_recognised(peers, tls_broker):
    url = tls_broker.url("fastmsg").replace(
        f":{tls_broker.port}/", f":{tls_broker.tls_port}/"
    )
    assert f"127.0.0.1:{tls_broker.tls_port}" in why_refused(peers, url)


def test_the_next_host_is_taken_when_the_first_is_not_trusted(
    peers, broker, authority, certificates, topic
):
    with (
        TlsRelay(broker, certificates["another authority"]) as bad,
        TlsRelay(broker, certificates["good"]) as good,
    ):
        url = good.url("fastmsg", ssl="true", ssl_ca_file=authority.file)
        hosts = f"guest:guest@127.0.0.1:{bad.port},guest:guest@127.0.0.1:{good.port}"
        url = url.replace(f"guest:guest@127.0.0.1:{good.port}", hosts)
        transport = peers.transport("fast", url=url)
        peers.server("fast", TestEndpoint(), topic=topic, transport=transport)
        client = peers.client("fast", topic=topic, transport=transport)
        assert client.call({}, "echo", arg=1) == 1


def test_files_are_read_again_at_each_connect(
    peers, broker, authority, stranger, certificates, topic, tmp_path
):
    """Certificates are replaced while services run."""
    ca_file = tmp_path / "trusted.pem"
    shutil.copy(authority.file, ca_file)
    with TlsRelay(broker, certificates["good"]) as relay:
        url = relay.url("fastmsg", ssl="true", ssl_ca_file=ca_file)
        transport = peers.transport("fast", url=url)
        peers.server("fast", TestEndpoint(), topic=topic, transport=transport)
        client = peers.client("fast", topic=topic, transport=transport)
        assert client.call({}, "echo", arg=1) == 1

        shutil.copy(stranger.file, ca_file)
        relay.show(certificates["another authority"])
        relay.cut()
        assert client.call({}, "echo", arg=2) == 2


def test_a_half_closed_connection_is_made_again(
    peers, broker, authority, certificates, topic
):
    with TlsRelay(broker, certificates["good"]) as relay:
        url = relay.url("fastmsg", ssl="true", ssl_ca_file=authority.file)
        transport = peers.transport("fast", url=url)
        peers.server("fast", TestEndpoint(), topic=topic, transport=transport)
        client = peers.client("fast", topic=topic, transport=transport)
        assert client.call({}, "echo", arg=1) == 1
        before = relay.accepted
        relay.half_close()
        assert client.call({}, "echo", arg=2) == 2
        assert relay.accepted > before


@pytest.mark.options("ssl_enforce_fips_mode")
def test_fips_mode_uses_a_fips_provider_or_fails(peers, tls_broker):
    command = ["openssl", "list", "-providers", "-provider", "fips"]
    has_provider = subprocess.run(command, capture_output=True).returncode == 0
    url = tls_broker.tls_url("fastmsg", ssl_enforce_fips_mode="true")
    if has_provider:
        cast(peers, url)
    else:
        assert "FIPS" in why_refused(peers, url)


@pytest.mark.timing
def test_throughput_is_above_seven_tenths_of_plain(peers, fast, tls_broker, topic):
    def rate(url):
        transport = peers.transport(fast, url=url)
        name = f"{topic}-{len(url)}"
        peers.server(fast, TestEndpoint(), topic=name, transport=transport)
        client = peers.client(fast, topic=name, transport=transport)
        client.call({}, "who")
        count = 0
        end = time.monotonic() + 1.5

        def work():
            nonlocal count
            while time.monotonic() < end:
                client.call({}, "echo", arg="x" * 2048)
                count += 1

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return count

    ratios = []
    for _ in range(5):
        plain = rate(tls_broker.url("fastmsg"))
        ratios.append(rate(tls_broker.tls_url("fastmsg")) / plain)
    print(f"calls/s over TLS / plain, 16 threads, 2 kB: {sorted(ratios)[2]:.2f}")
    assert sorted(ratios)[2] >= 0.7
