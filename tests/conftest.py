"""What all tests share: the fixtures, and which build they run against."""

import contextlib
import importlib.util
import os
import signal
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from typing import Any

import private_broker
import pytest
from fix_cells import note_cells, print_cells

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging._drivers.impl_rabbit  # noqa: F401

pytest_plugins = ["fix_broker"]

# A shell without job control has what it starts in the background ignore this, and so
# would each process that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BROKER_FIXTURES = {
    "broker",
    "broker_of_the_run",
    "own_broker",
    "cluster",
    "strict_broker",
    "strict_cluster",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rabbitmq-root",
        metavar="FOLDER",
        help="a root directory whose RabbitMQ is used (tools/make_rabbitmq_root.sh)",
    )
    parser.addoption(
        "--rabbitmq-strict",
        action="store_true",
        help="have all brokers deny transient queues that are not exclusive",
    )


def pytest_configure(config: pytest.Config) -> None:
    """By the environment: processes that tests start have brokers of their own."""
    if root := config.getoption("--rabbitmq-root"):
        os.environ[private_broker.ROOT_VARIABLE] = os.path.abspath(root)
    if config.getoption("--rabbitmq-strict"):
        os.environ[private_broker.STRICT_VARIABLE] = "1"


def _broker() -> str | None:
    """Name the RabbitMQ of this run; None: there is none."""
    with contextlib.suppress(private_broker.BrokerError):
        version = ".".join(map(str, private_broker.rabbitmq_version()))
        is_strict = os.environ.get(private_broker.STRICT_VARIABLE)
        return f"RabbitMQ {version}{', strict' if is_strict else ''}"
    return None


def pytest_report_header() -> list[str]:
    lines = []
    if broker := _broker():
        lines.append(f"broker: {broker}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        lines.append(f"GIL: {'on' if sys._is_gil_enabled() else 'off'}")
    try:
        spec = importlib.util.find_spec("oslo_fastmsg._core")
    except ModuleNotFoundError:
        return [*lines, "oslo_fastmsg: not installed"]
    return [*lines, f"oslo_fastmsg._core: {spec.origin if spec else 'not built'}"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    print_cells(terminalreporter, config, _broker() or "no broker")


def _has_rabbitmq_4() -> bool:
    try:
        return private_broker.rabbitmq_version() >= (4,)
    except private_broker.BrokerError:
        return False


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Mark what uses a broker by what it asks for, not by hand; leave out what the
    broker cannot be used for."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & BROKER_FIXTURES:
            item.add_marker(pytest.mark.broker)
    note_cells(items)
    if _has_rabbitmq_4():
        return
    needs_4 = [item for item in items if item.get_closest_marker("rabbitmq4")]
    if needs_4:
        config.hook.pytest_deselected(items=needs_4)
        items[:] = [item for item in items if item not in needs_4]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Write out what is no text in a report: processes of a run send it to each other."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    report.sections = [
        tuple(text.encode(errors="backslashreplace").decode() for text in section)
        for section in report.sections
    ]


@pytest.fixture(autouse=True)
def _no_broker_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests off the broker that demo and benchmark are told to use."""
    if "TRANSPORT_URL" in os.environ:
        monkeypatch.delenv("TRANSPORT_URL")
