"""Have ``rabbit://`` served by our driver, in this process."""

import importlib.metadata
from typing import Any

__all__ = ["serve_rabbit_ourselves"]


def serve_rabbit_ourselves() -> None:
    """Make the entry point of the stock driver load ours instead.

    oslo.messaging and what it says of the scheme stay as they are.
    """
    load = importlib.metadata.EntryPoint.load

    def load_ours(point: importlib.metadata.EntryPoint) -> Any:
        if (point.group, point.name) == ("oslo.messaging.drivers", "rabbit"):
            # Not before: the tests patch the standard library first.
            from oslo_fastmsg.driver import FastmsgDriver

            return FastmsgDriver
        return load(point)

    importlib.metadata.EntryPoint.load = load_ours  # type: ignore[method-assign]
