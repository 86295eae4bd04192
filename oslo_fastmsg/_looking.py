"""What this process does at its brokers, and whether it is well.

The core counts (``csrc/io/stats.h``); here the numbers get their types, and what
is not as it should be gets words. Nothing here waits, whatever the broker does.

What the dicts hold belongs to the *process*: its interpreters share the core's
connections, so each of them sees those of all. A forked child has its own.
"""

import os
import time
from collections.abc import Iterator
from typing import TypedDict, cast

from oslo_fastmsg import _core

__all__ = ["Health", "Stats", "health", "stats"]

# RabbitMQ sends a heartbeat after at most this many of its own intervals without
# another byte; two of them are the core's end of patience.
_SILENT_HEARTBEATS = 1.5

# Queues of replies are verified more often than that, those of servers are not.
_VERIFIED_S = 60.0

# For so long a refused login counts that nobody waits for any more.
_REFUSED_S = 60.0


class ConnectionStats(TypedDict):
    """One of the two connections to a broker."""

    state: str
    host: str | None
    since: float
    since_s: float
    connects: int
    reconnects: int
    bytes_sent: int
    bytes_received: int
    heartbeat: int


class RoundTrips(TypedDict):
    """How long calls took."""

    count: int
    sum_s: float
    buckets: list[int]


class BrokerStats(TypedDict):
    """What was done at one broker since it is in use."""

    hosts: list[str]
    virtual_host: str
    publishing: ConnectionStats
    consuming: ConnectionStats
    published: int
    confirmed: int
    nacked: int
    returned: int
    resent: int
    failed: int
    in_flight: int
    unsent: int
    parked: int
    blocked_s: float
    delivered: int
    duplicates: int
    rejected: int
    waiting_calls: int
    late_replies: int
    round_trips: RoundTrips


class Stats(TypedDict):
    """The counts of a process."""

    pid: int
    time: float
    events_lost: int
    brokers: list[BrokerStats]


class ConnectionHealth(TypedDict):
    """One of the two connections to a broker, now."""

    state: str
    host: str | None
    since_s: float
    heard_s: float | None
    heartbeat: int
    wanted: bool
    failures: int


class ConsumerHealth(TypedDict):
    """A server, a listener, or the reply queue of a transport, now."""

    queues: list[str]
    replies: bool
    state: str
    wanted: bool
    present: bool
    verified_s: float | None


class BrokerHealth(TypedDict):
    """What can be done at one broker, now."""

    ok: bool
    reasons: list[str]
    hosts: list[str]
    virtual_host: str
    publishing: ConnectionHealth
    consuming: ConnectionHealth
    blocked_s: float | None
    consumers: list[ConsumerHealth]


class Health(TypedDict):
    """Whether a process can call and be called."""

    ok: bool
    reasons: list[str]
    brokers: list[BrokerHealth]


def stats() -> Stats:
    """Count: see :func:`oslo_fastmsg.stats`."""
    return {
        "pid": os.getpid(),
        "time": time.time(),
        "events_lost": _core.events_lost(),
        "brokers": cast("list[BrokerStats]", _core.broker_stats()),
    }


def health() -> Health:
    """Judge: see :func:`oslo_fastmsg.health`."""
    brokers = [_judge(cast("BrokerHealth", each)) for each in _core.broker_health()]
    reasons = [
        f"{','.join(broker['hosts'])}: {reason}"
        for broker in brokers
        for reason in broker["reasons"]
    ]
    return {"ok": not reasons, "reasons": reasons, "brokers": brokers}


def _judge(broker: BrokerHealth) -> BrokerHealth:
    reasons = list(_reasons(broker))
    return {**broker, "ok": not reasons, "reasons": reasons}


def _reasons(broker: BrokerHealth) -> Iterator[str]:
    yield from _connection_reasons("publish", broker["publishing"])
    if broker["blocked_s"] is not None:
        yield f"the broker blocks publishers since {broker['blocked_s']:.1f} s"
    lost = list(_connection_reasons("consume", broker["consuming"]))
    yield from lost
    if not lost:  # else there is no consumer, and that is why
        for consumer in broker["consumers"]:
            yield from _consumer_reasons(consumer)


def _connection_reasons(role: str, it: ConnectionHealth) -> Iterator[str]:
    if it["state"] != "open":
        # Unwanted it may be as it likes, unless that is because nobody took us,
        # which is tried again when it is next used.
        is_refused = it["failures"] > 0 and it["since_s"] <= _REFUSED_S
        if it["wanted"] or is_refused:
            yield (
                f"the {role} connection is not open since {it['since_s']:.1f} s "
                f"({it['state']})"
            )
        return
    heard_s = it["heard_s"]
    limit_s = it["heartbeat"] * _SILENT_HEARTBEATS
    if heard_s is not None and 0 < limit_s < heard_s:
        yield (
            f"nothing heard on the {role} connection for {heard_s:.1f} s "
            f"(heartbeat {it['heartbeat']} s)"
        )


def _consumer_reasons(it: ConsumerHealth) -> Iterator[str]:
    if not it["wanted"]:
        return
    what = "the reply queue" if it["replies"] else "the consumer of"
    names = ", ".join(f"'{name}'" for name in it["queues"])
    if not it["present"]:
        yield f"{what} {names} is not there ({it['state']})"
    elif it["replies"] and (it["verified_s"] or 0.0) > _VERIFIED_S:
        yield f"{what} {names} is not verified since {it['verified_s']:.0f} s"
