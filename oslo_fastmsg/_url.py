"""Where the brokers are, and how to log in: what the transport URL says.

``fastmsg://[user:pass@]host[:port][,...]/vhost?option=value&...`` means what
the same text means behind ``rabbit://``. oslo.messaging has split it and has
undone the percent-encoding, once; nothing is decoded here again. (The stock
driver puts the parts into a URL of kombu's, which decodes the virtual host a
second time, cuts it at a question mark and breaks at a slash in a password.)
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from oslo_messaging import InvalidTransportURL, TransportURL

from oslo_fastmsg._options import Settings

__all__ = [
    "broker_hosts",
    "bus_arguments",
    "has_tls",
    "shown",
    "virtual_host",
    "warn_of_old_tls",
]

LOG = logging.getLogger(__name__)

_PORT = 5672
_TLS_PORT = 5671
_MAX_SHORTSTR = 255  # bytes, AMQP 0-9-1 section 4.2.5.3

# Choices of the stock driver's option, in any case. SSL 2 and 3 are in no
# Python that we run on.
_TLS_VERSIONS = frozenset({"tlsv1", "tlsv1_1", "tlsv1_2", "sslv23"})
# Those that mean, or allow, what is broken since long.
_OLD_TLS_VERSIONS = frozenset({"tlsv1", "tlsv1_1", "sslv23"})


def has_tls(url: TransportURL) -> bool:
    """Tell whether the scheme is ``fastmsg+tls``, which is ``?ssl=true``.

    :raises InvalidTransportURL: something else behind the plus sign.
    """
    name, _, more = str(url.transport).partition("+")
    if name != "fastmsg" or not more:
        return False
    if more != "tls":
        raise _invalid(url, f"the scheme is fastmsg or fastmsg+tls, not {name}+{more}")
    return True


def broker_hosts(url: TransportURL) -> list[tuple[str, int, str, str]]:
    """List the brokers in the order of the URL.

    :returns: (host, port, user, password) each; what the URL does not say is
        ``localhost``, 5672 (5671 for ``fastmsg+tls``), ``guest`` and ``guest``,
        each for itself.
    :raises InvalidTransportURL: a port that does not exist, or a name that
        does not fit into AMQP's fields. Its text has no password.
    """
    port = _TLS_PORT if has_tls(url) else _PORT
    hosts = [
        (
            host.hostname or "localhost",
            host.port or port,
            host.username or "guest",
            host.password or "guest",
        )
        for host in url.hosts
    ] or [("localhost", port, "guest", "guest")]
    for host, port, _, _ in hosts:
        if not 0 < port < 65536:
            raise _invalid(url, f"port {port} of host {host} is not in 1-65535")
        if "\0" in host:
            raise _invalid(url, "a host name with a NUL in it")
    return hosts


def warn_of_old_tls(settings: Settings) -> None:
    """Say what a version from long ago is taken for."""
    if settings.ssl and settings.ssl_version.lower() in _OLD_TLS_VERSIONS:
        LOG.warning(
            "ssl_version %s is taken for TLS 1.2 or newer", settings.ssl_version
        )


def virtual_host(url: TransportURL) -> str:
    """Give the virtual host; one that is missing or empty is ``/``.

    :raises InvalidTransportURL: more than 255 bytes of UTF-8.
    """
    name = url.virtual_host or "/"
    if len(name.encode(errors="surrogatepass")) > _MAX_SHORTSTR:
        raise _invalid(url, "the virtual host is longer than 255 bytes")
    return str(name)


def shown(hosts: Sequence[tuple[str, int, str, str]]) -> str:
    """Write the brokers for a log or an error: no user, no password."""
    return ", ".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port, _, _ in hosts
    )


def bus_arguments(
    hosts: Sequence[tuple[str, int, str, str]], vhost: str, settings: Settings
) -> dict[str, Any]:
    """Give the arguments of ``_core.Bus``.

    :raises RuntimeError: ``ssl_version`` is none that the stock driver knows.
    """
    return {
        "hosts": list(hosts),
        "virtual_host": vhost,
        "login_method": settings.rabbit_login_method,
        "heartbeat": max(0, settings.heartbeat_timeout_threshold),
        # The core appends pid and a random part: both differ after a fork.
        "name": os.path.basename(sys.argv[0]) if sys.argv else "",
        "shuffle": settings.kombu_failover_strategy == "shuffle",
        # Before 16.1 the option had no lower limit, and 0 acted as 1.
        "interval_start": float(settings.rabbit_retry_interval or 1),
        "interval_step": float(max(0, settings.rabbit_retry_backoff)),
        "interval_max": float(max(1, settings.rabbit_interval_max)),
        "reconnect_delay": float(settings.kombu_reconnect_delay),
        "reconnect_splay": float(settings.kombu_reconnect_splay),
        "tls": _tls(settings),
    }


def _tls(settings: Settings) -> dict[str, Any] | None:
    """Say how a broker's certificate is checked, and ours shown.

    Which version is spoken the two sides agree upon, whatever the option says;
    the core has none before 1.2. Unlike in the stock driver, naming one does
    not turn the check of the certificate off.
    """
    if not settings.ssl:
        return None
    version = settings.ssl_version.lower()
    if version and version not in _TLS_VERSIONS:
        raise RuntimeError(f"Invalid SSL version : {settings.ssl_version}")
    return {
        "ca_file": settings.ssl_ca_file or None,
        "cert_file": settings.ssl_cert_file or None,
        "key_file": settings.ssl_key_file or None,
        "verify_peer": settings.ssl_verify != "none",
        "verify_host": settings.ssl_verify == "host",
        "fips": settings.ssl_enforce_fips_mode,
    }


def _invalid(url: TransportURL, cause: str) -> InvalidTransportURL:
    # The exception keeps its first argument; the real one has the password.
    return InvalidTransportURL(f"{url.transport}://...", cause)
