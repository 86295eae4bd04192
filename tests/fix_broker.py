"""Fixtures: a broker of our own (``tools/private_broker.py``).

``broker`` is one node for the whole run, started by the first test that asks
for it and empty for each test. ``own_broker`` is a node that the test may
stop, kill and pause; it costs some four seconds.

``cluster`` is three nodes, which the test may treat like that too. They are
started once for the whole run, which takes some 15 s on two cores; a node
that was killed takes 4 s to come back.

Which RabbitMQ that is the options ``--rabbitmq-root`` and ``--rabbitmq-strict`` say
(``tests/conftest.py``). ``strict_broker`` and ``strict_cluster`` are strict in any
case, which needs RabbitMQ 4: their tests are marked ``rabbitmq4``, and not collected
where there is another one.
"""

from collections.abc import Iterator

import pytest
from private_broker import STRICT, PrivateBroker, PrivateCluster

__all__ = [
    "broker",
    "broker_of_the_run",
    "cluster",
    "cluster_of_the_run",
    "own_broker",
    "strict_broker",
    "strict_broker_of_the_run",
    "strict_cluster",
]


@pytest.fixture(scope="session")
def broker_of_the_run() -> Iterator[PrivateBroker]:
    with PrivateBroker() as node:
        yield node


@pytest.fixture
def broker(broker_of_the_run: PrivateBroker) -> Iterator[PrivateBroker]:
    """Give the run's broker: no connection, queue or exchange, no alarm.

    What a test leaves is removed afterwards, with its connections.
    """
    yield broker_of_the_run
    broker_of_the_run.reset()


@pytest.fixture
def own_broker() -> Iterator[PrivateBroker]:
    with PrivateBroker() as node:
        yield node


@pytest.fixture(scope="session")
def cluster_of_the_run() -> Iterator[PrivateCluster]:
    with PrivateCluster() as nodes:
        yield nodes


@pytest.fixture
def cluster(cluster_of_the_run: PrivateCluster) -> Iterator[PrivateCluster]:
    """Give the run's cluster: all nodes run, and there is nothing in it.

    What a test kills is started again afterwards, and what it leaves removed.
    """
    yield cluster_of_the_run
    cluster_of_the_run.reset()


@pytest.fixture(scope="session")
def strict_broker_of_the_run() -> Iterator[PrivateBroker]:
    with PrivateBroker(config=STRICT) as node:
        yield node


@pytest.fixture
def strict_broker(strict_broker_of_the_run: PrivateBroker) -> Iterator[PrivateBroker]:
    """Give a broker that denies queues that are neither durable nor exclusive."""
    yield strict_broker_of_the_run
    strict_broker_of_the_run.reset()


@pytest.fixture
def strict_cluster() -> Iterator[PrivateCluster]:
    with PrivateCluster(config=STRICT) as nodes:
        yield nodes
