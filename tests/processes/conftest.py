"""Fixtures of the tests of the driver with a broker."""

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
from fix_wsgi import wsgi_venv

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
    "wsgi_venv",
]
