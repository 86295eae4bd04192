"""What is taken from oslo.messaging's private modules, for 14.0 to 18.3.

No other module of the package imports a private name of oslo.messaging, so
that a new release is judged by reading this file alone. Differences between
releases are found by looking for the feature, never by comparing versions.
"""

import inspect
from typing import Any

from oslo_config import cfg
from oslo_messaging._drivers import amqp as _amqp
from oslo_messaging._drivers import amqpdriver as _amqpdriver
from oslo_messaging._drivers import base as _base
from oslo_messaging._drivers import common as _common
from oslo_messaging._drivers import impl_rabbit as _impl_rabbit
from oslo_messaging.rpc import client as _client

from oslo_fastmsg import _core

__all__ = [
    "RABBIT_GROUP",
    "BaseDriver",
    "ConfigOptsProxy",
    "IncomingMessage",
    "Listener",
    "client_opts",
    "deserialize_msg",
    "deserialize_remote_exception",
    "is_set",
    "queue_manager_name",
    "rabbit_opts",
    "serialize_remote_exception",
]

RABBIT_GROUP = "oslo_messaging_rabbit"

BaseDriver = _base.BaseDriver
Listener = _base.Listener
ConfigOptsProxy = _common.ConfigOptsProxy

#: The dict that an envelope holds, or the argument when it is no envelope;
#: any exception means that a stock receiver rejects the message.
deserialize_msg = _common.deserialize_msg
serialize_remote_exception = _common.serialize_remote_exception
deserialize_remote_exception = _common.deserialize_remote_exception


def rabbit_opts() -> list[cfg.Opt]:
    """Give the options of the stock driver's group, of this release.

    :returns: the very objects that the stock driver registers, so that both
        drivers can be loaded in one process: oslo.config refuses to register
        different options of one name, and accepts the same one twice.
    """
    opts = [*_impl_rabbit.rabbit_opts, *_amqp.amqp_opts]
    # Up to 14.x the three options of the connection pool lie elsewhere.
    opts += getattr(_base, "base_opts", [])
    return opts


def client_opts() -> list[cfg.Opt]:
    """Give the RPC client's options, ``rpc_response_timeout`` among them."""
    return list(_client._client_opts)


def is_set(conf: Any, name: str) -> bool:
    """Tell whether an operator has set an option of the stock driver's group.

    Its value alone does not tell when it is the default of one release.

    :param conf: a ``ConfigOptsProxy`` for that group.
    """
    if name in conf._url.query:
        return True
    place = conf.get_location(name, RABBIT_GROUP)
    return place.location not in (cfg.Locations.opt_default, cfg.Locations.set_default)


def queue_manager_name(hostname: str, processname: str) -> str:
    """Draw the next stable name of a reply or fanout queue.

    The stock driver's own: processes on either driver draw from one counter,
    which begins anew with each start of the service. Takes a lock of
    oslo.concurrency, between processes, and writes a file in memory. Only in
    releases that have the option (14.7).

    :returns: ``<hostname>:<processname>:<number>``.
    :raises oslo_config.cfg.RequiredOptError: oslo.concurrency has no
        ``lock_path``.
    """
    return str(_amqpdriver.QManager(hostname, processname).get())


# 14.9 began to give every incoming message an id of its own: the request's
# for a call, a random one (which never travels) for anything else. Before, a
# cast's is None.
_GIVES_MSG_ID = "msg_id" in inspect.signature(_base.IncomingMessage).parameters


class IncomingMessage(_base.RpcIncomingMessage):  # type: ignore[misc]
    """What the stock driver's incoming messages have in this release.

    Both kinds, requests and notifications, have the attributes of a request
    there, and here.
    """

    def __init__(
        self,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        msg_id: Any,
        client_timeout: Any,
    ) -> None:
        if _GIVES_MSG_ID:
            # Given an id, the base class does not make one (which takes as
            # long as all the rest of this).
            if msg_id is None:
                msg_id = _dashed(_core.new_id())
            super().__init__(ctxt, message, msg_id)
        else:
            super().__init__(ctxt, message)
            self.msg_id = msg_id
        self.client_timeout = client_timeout


def _dashed(hex_id: str) -> str:
    """Write 32 hexadecimal digits as ``str(uuid.UUID(...))`` does."""
    return f"{hex_id[:8]}-{hex_id[8:12]}-{hex_id[12:16]}-{hex_id[16:20]}-{hex_id[20:]}"
