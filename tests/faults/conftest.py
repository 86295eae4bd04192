"""Fixtures of the tests that end, pause and cut what the driver talks to."""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_driver import *  # noqa: F403
from fix_faults import account, dice, figure, print_figures
from fix_faulty_proxy import proxy
from fix_peer import Peers
from private_broker import PrivateCluster

__all__ = ["account", "cluster_peers", "dice", "figure", "proxy"]


@pytest.fixture
def cluster_peers(cluster: PrivateCluster, tmp_path: Path) -> Iterator[Peers]:
    """Start peers on the run's cluster: their URL has three hosts."""
    with contextlib.closing(Peers(cluster, tmp_path)) as it:
        yield it


@pytest.fixture(autouse=True)
def _no_sockets_of_stock(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what a baseline's driver has not closed, or the next test fails."""
    _collect()  # what its threads had in use as its own test ended
    yield
    if "stock" in request.node.name:
        _collect()


def _collect() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    print_figures(terminalreporter)
