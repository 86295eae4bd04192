"""What the conftest.py of every folder with tests of the driver takes over."""

from fix_peer import (
    background,
    driver,
    fast,
    pairing,
    peers,
    pytest_collection_modifyitems,
    topic,
)
from fix_proxy import proxy
from fix_wire import spy

__all__ = [
    "background",
    "driver",
    "fast",
    "pairing",
    "peers",
    "proxy",
    "pytest_collection_modifyitems",
    "spy",
    "topic",
]
