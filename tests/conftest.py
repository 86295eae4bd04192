"""What all tests share: the fixtures, and which build they run against."""

import importlib.util
import os
import signal
import sys
import sysconfig
import warnings

import pytest

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging._drivers.impl_rabbit  # noqa: F401

pytest_plugins = ["fix_broker"]

# A shell without job control has what it starts in the background ignore this, and so
# would each process that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BROKER_FIXTURES = {"broker", "broker_of_the_run", "own_broker", "cluster"}


def pytest_report_header() -> list[str]:
    lines = []
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        lines.append(f"GIL: {'on' if sys._is_gil_enabled() else 'off'}")
    try:
        spec = importlib.util.find_spec("oslo_fastmsg._core")
    except ModuleNotFoundError:
        return [*lines, "oslo_fastmsg: not installed"]
    return [*lines, f"oslo_fastmsg._core: {spec.origin if spec else 'not built'}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a broker by what it asks for, not by hand."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & BROKER_FIXTURES:
            item.add_marker(pytest.mark.broker)


@pytest.fixture(autouse=True)
def _no_broker_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests off the broker that demo and benchmark are told to use."""
    if "TRANSPORT_URL" in os.environ:
        monkeypatch.delenv("TRANSPORT_URL")
