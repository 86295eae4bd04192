"""The options that the driver reads, and what it makes of them.

Everything that has a name in ``[oslo_messaging_rabbit]`` is taken from there,
as the stock driver does, so that an operator changes the scheme of the URL
and nothing else. What the stock driver has no word for is in
``[oslo_messaging_fastmsg]``. Both groups may be overridden by the query part
of the transport URL.
"""

import copy
import dataclasses
import logging
from typing import Any

from oslo_config import cfg
from oslo_messaging import TransportURL

from oslo_fastmsg import _compat, _envelope

__all__ = ["FASTMSG_GROUP", "Settings", "list_opts", "overlay", "register"]

LOG = logging.getLogger(__name__)

FASTMSG_GROUP = "oslo_messaging_fastmsg"

_fastmsg_opts: list[cfg.Opt] = [
    cfg.FloatOpt(
        "send_timeout",
        min=0.1,
        help="How many seconds a cast, a fanout, a notification or a "
        "heartbeat may wait for the broker's confirmation, or for the end of "
        "a memory or disk alarm of the broker, before it fails with "
        "MessageDeliveryFailure. The loss of the connection is not counted "
        "here: how long that is borne is said by the retry argument. Unset, "
        "it is rpc_response_timeout.",
    ),
    cfg.IntOpt(
        "compression_threshold",
        default=1024,
        min=0,
        help="With kombu_compression set, bodies of so many bytes and more are "
        "compressed. Small ones cost more time than they save; receivers read "
        "both.",
    ),
    cfg.StrOpt(
        "envelope",
        default="json",
        choices=[
            ("json", "what the stock driver sends, to the byte"),
            (
                "auto",
                "requests are JSON and say that MessagePack is read as well: servers "
                "with this driver answer in it, those with the stock driver in JSON",
            ),
            (
                "msgpack",
                "requests and notifications are MessagePack, which peers with the "
                "stock driver reject: only where there is none of them",
            ),
        ],
        help="What messages are written in. Whatever it says, a reply is in what its "
        "caller reads, both are read, and notifications of version 1 are JSON. "
        "MessagePack is shorter and costs less CPU time. Change it in steps, see the "
        "operator's guide.",
    ),
    cfg.IntOpt(
        "rpc_intake",
        default=0,
        min=0,
        max=65535,
        help="How many requests an RPC server may hold that no worker has begun. "
        "Above 0 a request is acknowledged when a worker begins it, not when it is "
        "received: the rest stays in its queue, for other servers or for the next "
        "start, instead of filling the memory of a slow server. Twice "
        "executor_thread_pool_size keeps the workers busy. 0: no bound, as with "
        "the stock driver.",
    ),
    cfg.StrOpt(
        "ssl_verify",
        choices=[
            ("host", "signed by a known authority, and for this host"),
            ("chain", "signed by a known authority"),
            ("none", "anything: whoever is in between can read and change all"),
        ],
        help="With TLS, what the broker's certificate must be. Unset, it is host, "
        "or chain if ssl_enforce_hostname_verification is set to false. Known are the "
        "authorities of ssl_ca_file, or those of the system without one.",
    ),
]
_FASTMSG_NAMES = frozenset(opt.name for opt in _fastmsg_opts)

#: Settings that are read, and mean less than they say.
_IN_PART = frozenset({"ssl_version"})

#: Settings of the stock driver about what this driver does not have.
_WITHOUT_MEANING = frozenset(
    {
        "conn_pool_min_size",
        "conn_pool_ttl",
        "heartbeat_in_pthread",
        "heartbeat_rate",
        "rpc_conn_pool_size",
    }
)
#: Of those, the ones of which an impossible value is refused.
_CHECKED = frozenset({"conn_pool_min_size", "rpc_conn_pool_size"})


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Give the options of this driver alone (entry point oslo.config.opts)."""
    return [(FASTMSG_GROUP, copy.deepcopy(_fastmsg_opts))]


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option that the driver reads; twice is allowed."""
    conf.register_group(
        cfg.OptGroup(_compat.RABBIT_GROUP, title="RabbitMQ driver options")
    )
    conf.register_opts(_compat.rabbit_opts(), group=_compat.RABBIT_GROUP)
    conf.register_group(cfg.OptGroup(FASTMSG_GROUP, title="fastmsg driver options"))
    conf.register_opts(_fastmsg_opts, group=FASTMSG_GROUP)
    conf.register_opts(_compat.client_opts())


def overlay(conf: cfg.ConfigOpts, url: TransportURL) -> Any:
    """Lay the query of the transport URL over the configuration.

    :returns: an object to read options from, of the stock driver's class.
    :raises oslo_config.cfg.NoSuchOptError: an option of neither group.
    :raises ValueError: a value that is not of the option's type.
    """
    own = {k: v for k, v in url.query.items() if k in _FASTMSG_NAMES}
    if own:
        # The stock class knows one group. It reads nothing of a URL but the
        # query, and each layer costs at every later look at an option.
        conf = _compat.ConfigOptsProxy(conf, _Query(own), FASTMSG_GROUP)
    rest = {k: v for k, v in url.query.items() if k not in own}
    return _compat.ConfigOptsProxy(conf, _Query(rest), _compat.RABBIT_GROUP)


@dataclasses.dataclass(frozen=True)
class _Query:
    query: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the options said when the transport was made.

    The first part has the stock options that this driver reads, by their own
    names; options of later releases have the value that means "as before".
    """

    amqp_durable_queues: bool = False
    amqp_auto_delete: bool = False
    ssl: bool = False
    ssl_version: str = ""
    ssl_key_file: str = ""
    ssl_cert_file: str = ""
    ssl_ca_file: str = ""
    ssl_enforce_hostname_verification: bool = True
    ssl_enforce_fips_mode: bool = False
    kombu_compression: str | None = None
    kombu_reconnect_delay: float = 1.0
    kombu_reconnect_splay: float = 0.0
    kombu_missing_consumer_retry_timeout: int = 60
    kombu_failover_strategy: str = "round-robin"
    rabbit_login_method: str = "AMQPLAIN"
    rabbit_retry_interval: int = 1
    rabbit_retry_backoff: int = 2
    rabbit_interval_max: int = 30
    rabbit_ha_queues: bool = False
    rabbit_quorum_queue: bool = False
    rabbit_transient_quorum_queue: bool = False
    rabbit_quorum_delivery_limit: int = 0
    rabbit_quorum_max_memory_length: int = 0
    rabbit_quorum_max_memory_bytes: int = 0
    rabbit_transient_queues_ttl: int = 1800
    rabbit_qos_prefetch_count: int = 0
    rabbit_stream_fanout: bool = False
    heartbeat_timeout_threshold: int = 60
    direct_mandatory_flag: bool = True
    enable_cancel_on_failover: bool = False
    use_queue_manager: bool = False
    hostname: str = ""
    processname: str = ""

    #: Seconds; the client's default for ``timeout``.
    rpc_response_timeout: float = 60
    #: Seconds; never None, see the option.
    send_timeout: float = 60
    #: Bytes.
    compression_threshold: int = 1024
    #: "json", "auto" or "msgpack".
    envelope: str = "json"
    #: Requests; 0 without a bound.
    rpc_intake: int = 0
    #: "host", "chain" or "none"; never None, see the option.
    ssl_verify: str = "host"

    @classmethod
    def read(cls, conf: Any) -> "Settings":
        """Read them from what :func:`overlay` gave, and say what means nothing.

        :raises RuntimeError: options that the stock driver refuses together;
            oslo.messaging makes a ``DriverLoadFailure`` of it.
        """
        rabbit = conf[_compat.RABBIT_GROUP]
        values = {
            field.name: rabbit[field.name]
            for field in dataclasses.fields(cls)
            if field.name in rabbit
        }
        for name, misspelt in _MISSPELT.items():
            if name not in values:
                values[name] = rabbit[misspelt]
        timeout = conf.rpc_response_timeout
        own = conf[FASTMSG_GROUP]
        _refuse_what_stock_refuses(rabbit)
        if rabbit.kombu_compression:
            _envelope.check_compression(rabbit.kombu_compression)
        in_vain = _set_in_vain(rabbit)
        if in_vain:
            LOG.info(
                "[%s] has options that mean nothing to the fastmsg driver: %s",
                _compat.RABBIT_GROUP,
                ", ".join(in_vain),
            )
        return cls(
            rpc_response_timeout=timeout,
            send_timeout=timeout if own.send_timeout is None else own.send_timeout,
            compression_threshold=own.compression_threshold,
            envelope=own.envelope,
            rpc_intake=own.rpc_intake,
            ssl_verify=own.ssl_verify or _stock_verifies(conf),
            **values,
        )


# Until 14.2.4 two options had a letter too many elsewhere.
_MISSPELT = {
    "rabbit_quorum_max_memory_length": "rabbit_quroum_max_memory_length",
    "rabbit_quorum_max_memory_bytes": "rabbit_quroum_max_memory_bytes",
}


def _stock_verifies(conf: Any) -> str:
    """Give what the option of the stock driver means for ``ssl_verify``.

    It is missing in 14.0 as upstream published it, and false by default in releases
    of stable branches: nobody has asked for less there.
    """
    name = "ssl_enforce_hostname_verification"
    rabbit = conf[_compat.RABBIT_GROUP]
    if name in rabbit and not rabbit[name] and _compat.is_set(conf, name):
        return "chain"
    return "host"


def _set_in_vain(rabbit: Any) -> list[str]:
    """List what an operator has set, as far as it differs from the default."""
    return sorted(
        opt.name
        for opt in _compat.rabbit_opts()
        if opt.name in _WITHOUT_MEANING and rabbit[opt.name] != opt.default
    )


def _refuse_what_stock_refuses(rabbit: Any) -> None:
    if rabbit.rpc_conn_pool_size < rabbit.conn_pool_min_size:
        # There is no such pool here, but a service must not start with this
        # driver and fail when it goes back to the stock one.
        raise RuntimeError(
            f"rpc_conn_pool_size: {rabbit.rpc_conn_pool_size} must be greater than "
            f"or equal to conn_pool_min_size: {rabbit.conn_pool_min_size}"
        )
