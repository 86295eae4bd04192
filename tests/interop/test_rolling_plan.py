"""The operator's guide's way from json to msgpack and back, under live traffic.

Each host has a process that serves and one that sends, and changes the option by
starting them anew, one after the other, as a package update does.
"""

import json

import pytest
from fix_account import Account
from fix_load import send_in_child, serve_in_child
from fix_wire import MSGPACK

PLAN = ["json", "auto", "msgpack", "auto", "json"]
KINDS = ["call", "cast", "fanout", "notification"]
RATE = 25  # of each kind and host, per second

#: Content type and header of a request, by option.
FORMS = {
    "json": ("application/json", None),
    "auto": ("application/json", "msgpack"),
    "msgpack": (MSGPACK["content_type"], None),
}


class Host:
    """Its two processes, with one value of the option at a time."""

    def __init__(self, name, peers, broker, topic, directory):
        self.name = name
        self._peers = peers
        self._broker = broker
        self._topic = topic
        self._directory = directory
        self._starts = 0
        self.journals = []
        self.server = self.client = None

    def _spec(self, role, **more):
        self._starts += 1
        journal = self._directory / f"{self.name}-{role}-{self._starts}.journal"
        self.journals.append(journal)
        base = (int(self.name) * 100 + self._starts) * 1_000_000
        return json.dumps(
            {"topic": self._topic, "journal": str(journal), "base": base, **more}
        )

    def _child(self, function, envelope, spec, hello):
        url = self._broker.url(envelope=envelope)
        child = self._peers.child(function, "fast", url, str(self._directory), spec)
        assert child.receive(60) == hello
        return child

    def serve(self, envelope):
        """Start the new server, then stop the old one, which finishes its work."""
        spec = self._spec(
            "server",
            # Each has a queue of its own, which is no part of this.
            name=f"server-{self.name}-{self._starts}",
            notifications=self._topic,
            threads=4,
        )
        old = self.server
        self.server = self._child(serve_in_child, envelope, spec, "serving")
        if old is not None:
            old.send("stop")
            assert old.join(60) == 0

    def send(self, envelope):
        """Stop the old sender, when its last messages have ended; start the new."""
        self.stop_sending()
        spec = self._spec("client", kinds=KINDS, rate=RATE)
        self.client = self._child(send_in_child, envelope, spec, "sending")

    def stop_sending(self):
        if self.client is None:
            return
        self.client.send("stop")
        assert self.client.receive(60) == "ended"
        self.client.send("end")
        assert self.client.join(60) == 0


def forms(messages):
    return {
        (
            message.properties["content_type"],
            message.properties["application_headers"].get("x-fastmsg-reads"),
        )
        for message in messages
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rolling_plan_loses_nothing(peers, broker, topic, tmp_path, spy, fast):
    hosts = [Host(str(n), peers, broker, topic, tmp_path) for n in (1, 2)]
    for host in hosts:
        host.serve("json")
    for host in hosts:
        host.send("json")
    tap = spy.tap_exchange("openstack", topic)
    seen_before = FORMS["json"]
    assert forms(tap.take(100)) == {FORMS["json"]}

    for envelope in PLAN[1:]:
        for number, host in enumerate(hosts):
            # Either order may happen: servers first here, clients first there.
            steps = [host.serve, host.send]
            for step in steps if number == 0 else reversed(steps):
                step(envelope)
                mixed = forms(tap.take(50))
                assert mixed <= {seen_before, FORMS[envelope]}
        # Until what was sent before is through.
        while forms(tap.take(50)) != {FORMS[envelope]}:
            pass
        assert forms(tap.take(100)) == {FORMS[envelope]}
        seen_before = FORMS[envelope]

    account = Account()
    for host in hosts:
        host.stop_sending()
    for host in hosts:
        host.server.send("stop")
        assert host.server.join(60) == 0
        for journal in host.journals:
            account.read(journal)
    print(account.balance())
    assert account.count("sent") > 1000
    assert account.count("raised") == 0
    assert broker.queue(topic)["messages"] == 0
    assert broker.queue(f"{topic}.info")["messages"] == 0
