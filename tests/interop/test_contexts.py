"""The request context, on its way from the caller to the endpoint."""

import pytest
from fix_peer import Notes, TestEndpoint


class Context:
    """As services have it: an object that can tell its contents."""

    def __init__(self, **items):
        self.items = items

    def to_dict(self):
        return dict(self.items)

    @classmethod
    def from_dict(cls, items):
        """What a 14.0 notifier makes its safe copy with."""
        return cls(**items)

    def redacted_copy(self):
        """What a newer one asks for."""
        return Context(user_id=self.items["user_id"])


@pytest.fixture
def context_of(peers, pairing, topic):
    """Call with a context; give what the endpoint got."""

    def call_with(context, **options):
        endpoint = TestEndpoint()
        peers.server(pairing.receiver, endpoint, topic=topic)
        client = peers.client(pairing.sender, topic=topic, **options)
        client.call(context, "echo")
        return endpoint.contexts.wait()[0]

    return call_with


def test_a_context_arrives_with_client_timeout(context_of):
    context = {"user": "u", "roles": ["a", "b"], "nothing": None, "é": {"deep": [1.5]}}

    assert context_of(context) == {**context, "client_timeout": None}


def test_client_timeout_is_the_monitor_timeout(context_of):
    assert context_of({"user": "u"}, monitor=7) == {"user": "u", "client_timeout": 7}


def test_a_context_object_is_asked_for_its_dict(context_of):
    assert context_of(Context(user="u", token="t")) == {
        "user": "u",
        "token": "t",
        "client_timeout": None,
    }


def test_context_keys_become_text_and_reserved_ones_are_lost(context_of):
    context = {"a": 1, 1: 2, "msg_id": "x", "reply_q": "y", "client_timeout": 9}

    assert context_of(context) == {"a": 1, "1": 2, "client_timeout": None}


def test_an_empty_context_is_no_problem(context_of):
    assert context_of({}) == {"client_timeout": None}


def test_underscore_keys_of_arguments_stay_arguments(peers, pairing, topic):
    class Endpoint:
        def give(self, ctxt, **kwargs):
            return kwargs

    peers.server(pairing.receiver, Endpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    args = {"_msg_id": 1, "_context_user": 2, "_unique_id": 3}

    assert client.call({}, "give", **args) == args


@pytest.mark.parametrize("version", [1, 2])
def test_a_notifications_context_is_redacted(peers, pairing, topic, version):
    notes = Notes(["info"])
    peers.listener(pairing.receiver, notes, topics=[topic])

    peers.notifier(pairing.sender, topic, version=version).info(
        Context(user_id="u", token="secret"), "event", {}
    )

    assert notes.seen.wait()[0]["ctxt"] == {"user_id": "u", "client_timeout": None}


def test_each_request_has_a_context_of_its_own(peers, pairing, topic):
    class Endpoint:
        def change(self, ctxt):
            before = list(ctxt["roles"])
            ctxt["roles"].append("changed")
            return before

    peers.server(pairing.receiver, Endpoint(), topic=topic)
    client = peers.client(pairing.sender, topic=topic)
    context = {"roles": ["a"]}

    assert client.call(context, "change") == ["a"]
    assert client.call(context, "change") == ["a"]
    assert context == {"roles": ["a"]}


def test_a_fanouts_context_is_not_shared_between_servers(peers, pairing, topic):
    endpoints = [TestEndpoint(), TestEndpoint()]
    for number, endpoint in enumerate(endpoints):
        peers.server(pairing.receiver, endpoint, topic=topic, server=f"s{number}")
    client = peers.client(pairing.sender, topic=topic)

    client.prepare(fanout=True).cast({"roles": ["a"]}, "echo")

    contexts = [endpoint.contexts.wait()[0] for endpoint in endpoints]
    assert contexts[0] == contexts[1]
    assert contexts[0]["roles"] is not contexts[1]["roles"]
