"""Fixtures of the tests that end, pause and cut what the driver talks to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_driver import *  # noqa: F403
from fix_peer import Peers
from private_broker import PrivateCluster


@pytest.fixture
def peers(cluster: PrivateCluster, tmp_path: Path) -> Iterator[Peers]:
    """Start peers on the run's cluster: their URL has three hosts."""
    with contextlib.closing(Peers(cluster, tmp_path)) as it:
        yield it
