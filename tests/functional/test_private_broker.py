"""The broker that everything else is tested on: what it tells, what it leaves."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import amqp
import kombu
import private_broker
import pytest
from private_broker import NamedBroker, PrivateBroker, broker_from_environment

ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def channel(broker: PrivateBroker) -> Iterator[object]:
    with kombu.Connection(broker.url("amqp")) as connection:
        yield connection.channel()


def test_broker_tells_what_was_declared(broker: PrivateBroker, channel) -> None:
    channel.exchange_declare("x", "topic", durable=True, auto_delete=False)
    channel.queue_declare("qü", auto_delete=False, arguments={"x-expires": 60000})
    channel.queue_bind("qü", "x", "key")
    channel.basic_qos(0, 7, False)
    channel.basic_consume("qü", consumer_tag="1")

    assert broker.queue("qü") == {
        "name": "qü",
        "durable": False,
        "auto_delete": False,
        "exclusive": False,
        "arguments": {"x-expires": 60000},
        "messages": 0,
        "messages_ready": 0,
        "messages_unacknowledged": 0,
        "consumers": 1,
    }
    assert broker.exchanges() == [
        {
            "name": "x",
            "type": "topic",
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {},
        }
    ]
    (binding,) = broker.bindings()
    assert (binding["source_name"], binding["destination_name"]) == ("x", "qü")
    assert binding["routing_key"] == "key"
    (consumer,) = broker.consumers()
    assert (consumer["queue_name"], consumer["consumer_tag"]) == ("qü", "1")
    (connection,) = broker.connections()
    assert connection["client_properties"]["product"] == "py-amqp"
    assert connection["channels"] == 1
    (of_connection,) = broker.channels()
    assert of_connection["connection"] == connection["pid"]
    assert (of_connection["number"], of_connection["prefetch_count"]) == (1, 7)


def test_halted_broker_tells_who_logged_in(own_broker: PrivateBroker) -> None:
    host = f"{own_broker.host}:{own_broker.port}"
    for names in ({"connection_name": "one (1 -> 2): user"}, {}):
        with amqp.Connection(host, client_properties=names) as connection:
            connection.connect()
    with pytest.raises(amqp.AccessRefused):
        amqp.Connection(host, password="wrong").connect()

    own_broker.halt()

    assert own_broker.logins() == ["one (1 -> 2): user", ""]


def test_each_test_gets_an_empty_broker(broker: PrivateBroker) -> None:
    assert (broker.queues(), broker.exchanges()) == ([], [])
    assert broker.connections() == []


def test_broker_does_what_an_operator_would(broker: PrivateBroker, channel) -> None:
    channel.queue_declare("q", auto_delete=False)
    channel.basic_publish(amqp.Message("text"), "", "q")
    wait_until(lambda: broker.queue("q")["messages"] == 1, "no message")
    broker.purge_queue("q")
    assert broker.queue("q")["messages"] == 0
    broker.delete_queue("q")
    assert broker.queues() == []
    assert broker.close_connections("for a test") == 1
    with pytest.raises(amqp.exceptions.ConnectionForced, match="for a test"):
        channel.connection.drain_events(timeout=30)
    wait_until(lambda: broker.connections() == [], "still connected")


def test_connections_can_be_lost(broker: PrivateBroker, channel) -> None:
    channel.queue_declare("q", auto_delete=False)
    assert broker.drop_connections() == 1
    assert broker.connections() == []
    with pytest.raises(OSError, match=r"closed|reset"):
        channel.connection.drain_events(timeout=30)
    assert broker.queue("q") is not None


def test_users_and_virtual_hosts_can_be_added(broker: PrivateBroker) -> None:
    broker.add_vhost("other/host")
    broker.add_user("nova", "sécret", vhost="other/host")
    with kombu.Connection(
        hostname=broker.host,
        port=broker.port,
        userid="nova",
        password="sécret",
        virtual_host="other/host",
    ) as connection:
        connection.connect()
        (row,) = broker.connections()
    assert (row["user"], row["vhost"]) == ("nova", "other/host")
    broker.delete_vhost("other/host")
    assert "nova" in broker.rabbitmqctl("list_users")


def test_durable_things_survive_a_restart(own_broker: PrivateBroker) -> None:
    port = own_broker.port
    for end in (own_broker.halt, own_broker.kill):
        with kombu.Connection(own_broker.url("amqp")) as connection:
            connection.channel().queue_declare("q", durable=True, auto_delete=False)
        end()
        with pytest.raises(OSError, match="refused"):
            kombu.Connection(own_broker.url("amqp")).connect()
        own_broker.start()
        assert own_broker.port == port
        assert [queue["name"] for queue in own_broker.queues()] == ["q"]


def session_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_port_that_somebody_takes_in_between_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has it answers a probe, while our node still starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = iter([port])
        find = private_broker.free_port
        monkeypatch.setattr(
            private_broker, "free_port", lambda: next(ports, None) or find()
        )

        with PrivateBroker() as broker:
            assert broker.port != port
            assert broker.connections() == []

    assert list(ports) == []


def test_stopping_leaves_nothing() -> None:
    broker = PrivateBroker()
    broker.start()
    home = broker._home.path
    sessions = [int(file.read_text()) for file in home.glob("*.pid")]
    assert len(sessions) == 2
    assert all(map(session_members, sessions))
    broker.stop()
    assert not any(map(session_members, sessions))
    assert not home.exists()
    broker.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_end_of_its_user_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, str(ROOT / "tools/private_broker.py")]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # for it to be read again
    folder = private_broker.home_folder()
    before = set(folder.iterdir())
    with subprocess.Popen(
        [*command, "--scheme=fastmsg"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        url = process.stdout.readline()
        (home,) = set(folder.iterdir()) - before
        sessions = [int(file.read_text()) for file in home.glob("*.pid")]
        assert url.startswith("fastmsg://guest:guest@127.0.0.1:")
        assert len(sessions) == 2

        process.send_signal(number)

        assert process.wait(30) == (-9 if number == signal.SIGKILL else 0)
    wait_until(lambda: not any(map(session_members, sessions)), "processes left")
    wait_until(lambda: not home.exists(), "files left")


def test_environment_names_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSPORT_URL", "rabbit://u:p%40@h1:1,h2:2/v?ssl=1")
    broker = broker_from_environment()
    assert isinstance(broker, NamedBroker)
    assert broker.url("fastmsg") == "fastmsg://u:p%40@h1:1,h2:2/v?ssl=1"
    assert broker.url("fastmsg", a=2) == "fastmsg://u:p%40@h1:1,h2:2/v?ssl=1&a=2"
    monkeypatch.delenv("TRANSPORT_URL")
    assert isinstance(broker_from_environment(), PrivateBroker)
