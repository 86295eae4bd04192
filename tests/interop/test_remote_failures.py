"""Exceptions of endpoints, as the caller gets them."""

import oslo_messaging
import pytest
from fix_peer import TestEndpoint
from oslo_messaging.rpc import dispatcher


class Broken(Exception):
    """An exception that callers may be allowed to have rebuilt."""

    def __init__(self, what, *, hint=None):
        super().__init__(what)
        self.kwargs = {"hint": hint}
        self.hint = hint


class BrokenEndpoint(TestEndpoint):
    def broken(self, ctxt):
        raise Broken("pipe", hint="seal it")

    def missing_key(self, ctxt):
        raise KeyError("absent")

    @oslo_messaging.expected_exceptions(Broken)
    def expected(self, ctxt):
        raise Broken("expected")

    def _hidden(self, ctxt):
        return "not to be seen"


@pytest.fixture
def server(peers, pairing, topic):
    return peers.server(pairing.receiver, BrokenEndpoint(), topic=topic)


@pytest.mark.usefixtures("server")
def test_a_failure_of_an_allowed_module_comes_as_its_class(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic, exmods=[__name__])

    with pytest.raises(Broken) as caught:
        client.call({}, "broken")

    error = caught.value
    assert type(error).__name__ == "Broken_Remote"
    assert type(error).__module__ == f"{__name__}_Remote"
    assert error.args == ("pipe",)
    assert error.hint == "seal it"
    assert str(error).startswith("pipe\nTraceback (most recent call last):\n")
    assert "raise Broken(" in str(error)


@pytest.mark.usefixtures("server")
def test_a_failure_of_another_module_comes_as_remote_error(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.call({}, "broken")

    assert caught.value.exc_type == "Broken"
    assert caught.value.value == "pipe"
    assert "raise Broken(" in "".join(caught.value.traceback)


@pytest.mark.usefixtures("server")
def test_a_builtin_failure_needs_no_allowance(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(KeyError) as caught:
        client.call({}, "missing_key")
    assert "absent" in str(caught.value)

    with pytest.raises(ValueError, match=r"^bad thing") as caught:
        client.call({}, "fail", arg="thing")
    assert "Traceback (most recent call last)" in str(caught.value)


@pytest.mark.usefixtures("server")
def test_an_expected_failure_arrives_as_any_other(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic, exmods=[__name__])

    with pytest.raises(Broken, match="expected"):
        client.call({}, "expected")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("method", ["absent", "_hidden"])
def test_a_method_that_is_not_there_is_no_such_method(peers, pairing, topic, method):
    transport = peers.transport(pairing.sender, exmods=[dispatcher.__name__])
    client = peers.client(pairing.sender, topic=topic, transport=transport)

    with pytest.raises(oslo_messaging.NoSuchMethod) as caught:
        client.call({}, method)
    assert f"does not support RPC method {method}" in str(caught.value)


@pytest.mark.usefixtures("server")
def test_without_allowance_no_such_method_is_a_remote_error(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.call({}, "absent")
    assert caught.value.exc_type == "NoSuchMethod"


@pytest.mark.usefixtures("server")
def test_a_namespace_that_is_not_there_is_an_unsupported_version(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.prepare(namespace="absent").call({}, "echo")
    assert caught.value.exc_type == "UnsupportedVersion"


@pytest.mark.usefixtures("server")
def test_wrong_arguments_are_a_type_error(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(TypeError, match="surplus"):
        client.call({}, "echo", surplus=1)


def test_a_failing_cast_leaves_the_server_well(peers, pairing, topic):
    endpoint = TestEndpoint()
    peers.server(pairing.receiver, endpoint, topic=topic)
    client = peers.client(pairing.sender, topic=topic)

    client.cast({}, "fail", arg="cast")
    endpoint.seen.wait()

    assert client.call({}, "echo", arg="call") == "call"


def test_a_returned_exception_arrives_as_its_repr(peers, pairing, topic):
    class Endpoint:
        def give(self, ctxt):
            return ValueError("x", 1)

    peers.server(pairing.receiver, Endpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)

    assert client.call({}, "give") == "ValueError('x', 1)"


class Locked:
    """Nothing of oslo.serialization's can write it."""

    __slots__ = ()


class UnwritableEndpoint:
    def give(self, ctxt):
        return Locked()

    def throw(self, ctxt):
        raise ValueError("cannot be written", Locked())


def test_an_unserialisable_result_becomes_a_failure(fast, peers, topic, caplog):
    peers.server(fast, UnwritableEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=5)

    with pytest.raises(ValueError, match="Locked"):
        client.call({}, "give")


def test_an_unserialisable_argument_of_an_exception_becomes_text(fast, peers, topic):
    peers.server(fast, UnwritableEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=5)

    with pytest.raises(ValueError, match="cannot be written"):
        client.call({}, "throw")


def test_a_stock_caller_gets_the_failure_of_an_unserialisable_result(
    fast, peers, topic
):
    peers.server(fast, UnwritableEndpoint(), topic=topic)
    client = peers.client("stock", topic=topic, timeout=5)

    with pytest.raises(ValueError, match="Locked"):
        client.call({}, "give")


def test_a_service_can_pass_a_remote_error_on(peers, pairing, topic):
    class Middle:
        def relay(self, ctxt):
            return inner.call(ctxt, "broken")

    peers.server(pairing.receiver, BrokenEndpoint(), topic=f"{topic}-inner")
    inner = peers.client(pairing.sender, topic=f"{topic}-inner")
    peers.server(pairing.receiver, Middle(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)

    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.call({}, "relay")
    assert caught.value.exc_type == "RemoteError"
    assert "pipe" in caught.value.value
