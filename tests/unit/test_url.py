import pytest
from fix_core import make_conf
from oslo_messaging import InvalidTransportURL, TransportURL

from oslo_fastmsg import _url
from oslo_fastmsg._options import Settings


def parse(text):
    return TransportURL.parse(make_conf(), text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("fastmsg://", [("localhost", 5672, "guest", "guest")]),
        ("fastmsg:///v", [("localhost", 5672, "guest", "guest")]),
        ("fastmsg://h", [("h", 5672, "guest", "guest")]),
        ("fastmsg://u@h:1", [("h", 1, "u", "guest")]),
        ("fastmsg://:p@h:1", [("h", 1, "guest", "p")]),
        ("fastmsg://u:p@", [("localhost", 5672, "u", "p")]),
        ("fastmsg://u:p:q@h", [("h", 5672, "u", "p:q")]),
        ("fastmsg://u@x:p@h", [("h", 5672, "u@x", "p")]),
        ("fastmsg://u%2F:p%2F%40@h", [("h", 5672, "u/", "p/@")]),
        ("fastmsg://u:p@[::1]:7", [("::1", 7, "u", "p")]),
        (
            "fastmsg://a:b@h1:1,c:d@h2:2",
            [("h1", 1, "a", "b"), ("h2", 2, "c", "d")],
        ),
    ],
)
def test_hosts_are_those_of_the_url(text, hosts):
    assert _url.broker_hosts(parse(text)) == hosts


@pytest.mark.parametrize(
    ("path", "vhost"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("/%2F", "/"),
        ("/v", "v"),
        ("/a/b", "a/b"),
        ("/a%2Fb", "a/b"),
        ("/v%2525", "v%25"),  # stock decodes twice
        ("/v%3Fx", "v?x"),  # stock cuts at the question mark
        ("/%C3%A9", "é"),
    ],
)
def test_virtual_host_is_decoded_once(path, vhost):
    assert _url.virtual_host(parse(f"fastmsg://h{path}")) == vhost


@pytest.mark.parametrize(
    ("read", "text", "part"),
    [
        (_url.broker_hosts, "fastmsg://u:secret@h:70000/", "70000"),
        (_url.virtual_host, "fastmsg://u:secret@h/" + "é" * 128, "virtual host"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(read, text, part):
    url = parse(text)
    with pytest.raises(InvalidTransportURL, match=part) as caught:
        read(url)
    assert "secret" not in repr(caught.value)
    assert "secret" not in caught.value.url


def test_shown_hosts_have_no_credentials():
    hosts = _url.broker_hosts(parse("fastmsg://u:secret@h:1,u:secret@[::1]:2"))
    assert _url.shown(hosts) == "h:1, [::1]:2"


def arguments(**settings):
    return _url.bus_arguments([("h", 1, "u", "p")], "/", Settings(**settings))


def test_bus_arguments_follow_the_options():
    made = arguments(
        rabbit_login_method="EXTERNAL",
        heartbeat_timeout_threshold=-3,
        kombu_failover_strategy="shuffle",
        rabbit_retry_interval=0,
        rabbit_retry_backoff=5,
        rabbit_interval_max=9,
        kombu_reconnect_delay=0.25,
        kombu_reconnect_splay=0.5,
    )
    name = made.pop("name")
    assert name
    assert "/" not in name
    assert made == {
        "hosts": [("h", 1, "u", "p")],
        "virtual_host": "/",
        "login_method": "EXTERNAL",
        "heartbeat": 0,
        "shuffle": True,
        "interval_start": 1.0,
        "interval_step": 5.0,
        "interval_max": 9.0,
        "reconnect_delay": 0.25,
        "reconnect_splay": 0.5,
        "tls": None,
    }


@pytest.mark.parametrize(
    ("settings", "verify_peer", "verify_host"),
    [
        ({}, True, True),
        ({"ssl_version": "SSLv23"}, True, True),
        ({"ssl_version": "TLSv1_2"}, True, True),
        ({"ssl_ca_file": "ca"}, True, True),
        ({"ssl_ca_file": "ca", "ssl_verify": "chain"}, True, False),
        ({"ssl_ca_file": "ca", "ssl_verify": "none"}, False, False),
    ],
)
def test_tls_checks_more_than_stock(settings, verify_peer, verify_host):
    tls = arguments(ssl=True, **settings)["tls"]
    assert tls["verify_peer"] is verify_peer
    assert tls["verify_host"] is verify_host
    assert tls["ca_file"] == settings.get("ssl_ca_file")


def test_old_tls_versions_are_taken_for_new_ones(caplog):
    for version in ("TLSv1", "SSLv23", "TLSv1_1"):
        _url.warn_of_old_tls(Settings(ssl=True, ssl_version=version))
        assert f"ssl_version {version} is taken for TLS 1.2 or newer" in caplog.text
    assert len(caplog.records) == 3
    _url.warn_of_old_tls(Settings(ssl=True, ssl_version="TLSv1_2"))
    _url.warn_of_old_tls(Settings(ssl=False, ssl_version="TLSv1"))
    assert len(caplog.records) == 3


def test_a_scheme_may_say_tls():
    url = parse("fastmsg+tls://h,g:1/")
    assert _url.has_tls(url)
    assert [host[:2] for host in _url.broker_hosts(url)] == [("h", 5671), ("g", 1)]
    assert _url.broker_hosts(parse("fastmsg+tls:///"))[0][1] == 5671
    assert not _url.has_tls(parse("fastmsg://h/"))
    with pytest.raises(InvalidTransportURL, match=r"not fastmsg\+ssl"):
        _url.has_tls(parse("fastmsg+ssl://u:secret@h/"))


def test_an_unknown_tls_version_is_refused():
    with pytest.raises(RuntimeError, match="Invalid SSL version : SSLv9"):
        arguments(ssl=True, ssl_version="SSLv9")
    assert arguments(ssl=False, ssl_version="SSLv9")["tls"] is None
