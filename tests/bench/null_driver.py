"""A driver without a wire: what is left is oslo.messaging's own layer.

The URL says who answers a call. ``null://client``: the driver itself, at once,
so a call costs what the RPC client costs. ``null://server``: the RPC server of
the same process, through its dispatcher and its pool of threads, which is the
whole layer, with both ends sharing one interpreter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any

from oslo_messaging._drivers import base
from stevedore import extension

NAMESPACE = "oslo.messaging.drivers"


def register() -> None:
    """Make ``null://`` a transport of this process."""
    installed = extension.ExtensionManager(NAMESPACE).list_entry_points()
    extension.ExtensionManager.ENTRY_POINT_CACHE[NAMESPACE] = [
        *installed,
        metadata.EntryPoint("null", f"{__name__}:NullDriver", NAMESPACE),
    ]


class _Incoming(base.RpcIncomingMessage):
    """A request on its way to a dispatcher; wakes its caller with the reply."""

    def __init__(self, ctxt: dict[str, Any], message: dict[str, Any]) -> None:
        super().__init__(ctxt, message)
        self._replied = threading.Lock()
        self._replied.acquire()
        self._result: Any = None

    def wait(self, timeout: float) -> Any:
        if not self._replied.acquire(timeout=timeout):
            raise TimeoutError("the null driver's server did not reply")
        return self._result

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if failure is not None:
            raise RuntimeError(f"an endpoint of the benchmark failed: {failure[1]}")
        self._result = reply
        self._replied.release()

    def acknowledge(self) -> None:
        pass

    def requeue(self) -> None:
        raise NotImplementedError

    def heartbeat(self) -> None:
        pass


class _Listener(base.Listener):
    """Hands each request to the dispatcher in the thread that sent it."""

    def __init__(self) -> None:
        super().__init__(batch_size=1, batch_timeout=None)
        self.callback: Callable[[list[_Incoming]], None] | None = None

    def start(self, on_incoming_callback: Callable[[list[_Incoming]], None]) -> None:
        super().start(on_incoming_callback)
        self.callback = on_incoming_callback

    def cleanup(self) -> None:
        self.callback = None


class NullDriver(base.BaseDriver):
    """What oslo.messaging asks of a driver, less everything that costs."""

    def __init__(self, conf: Any, url: Any, **names: Any) -> None:
        super().__init__(conf, url, **names)
        self._listener: _Listener | None = None
        self._answer = url.hosts[0].hostname

    def send(
        self,
        target: Any,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Any:
        if self._answer == "client":
            return message["args"]["arg"] if wait_for_reply else None
        if self._listener is None or self._listener.callback is None:
            raise RuntimeError("no server listens in this process")
        incoming = _Incoming(ctxt, message)
        self._listener.callback([incoming])
        return incoming.wait(timeout or 60) if wait_for_reply else None

    def send_notification(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def listen(self, *args: Any, **kwargs: Any) -> _Listener:
        self._listener = _Listener()
        return self._listener

    def listen_for_notifications(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def cleanup(self) -> None:
        self._listener = None
