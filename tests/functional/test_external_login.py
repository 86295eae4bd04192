"""SASL EXTERNAL: who logs in is who the client's certificate says."""

import oslo_messaging
import pytest
from fix_peer import TestEndpoint
from private_broker import PrivateBroker

pytestmark = pytest.mark.tls

CONFIG = """
auth_mechanisms.1 = EXTERNAL
ssl_cert_login_from = common_name
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


@pytest.fixture(scope="module")
def strict_broker():
    """A broker that asks for certificates, and takes no passwords."""
    plugins = ["rabbitmq_auth_mechanism_ssl"]
    with PrivateBroker(tls=True, config=CONFIG, plugins=plugins) as node:
        yield node


def url(broker, scheme):
    return broker.tls_url(
        scheme, rabbit_login_method="EXTERNAL", **broker.client_files
    ).replace("guest:guest@", "nobody:wrong@")


SCHEMES = {"fast": "fastmsg", "stock": "rabbit"}


@pytest.mark.options("rabbit_login_method", "ssl_cert_file", "ssl_key_file")
def test_calls_are_answered_by_who_logs_in_by_certificate(
    peers, pairing, strict_broker, topic
):
    server, client = (
        peers.transport(driver, url=url(strict_broker, SCHEMES[driver]))
        for driver in (pairing.receiver, pairing.sender)
    )
    peers.server(pairing.receiver, TestEndpoint(), topic=topic, transport=server)
    rpc = peers.client(pairing.sender, topic=topic, transport=client)
    assert rpc.call({}, "echo", arg=1) == 1
    for connection in strict_broker.connections():
        assert connection["auth_mechanism"] == "EXTERNAL"
        assert connection["user"] == "guest"


def test_a_password_is_refused_with_what_to_check(peers, fast, strict_broker, topic):
    with_password = strict_broker.tls_url("fastmsg", **strict_broker.client_files)
    transport = peers.transport(fast, url=with_password)
    rpc = peers.client(fast, topic=topic, transport=transport)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        rpc.cast({}, "echo", arg=1)
    assert "EXTERNAL" in str(caught.value)
    assert "guest:guest" not in str(caught.value)
