"""What a broker holds, in a form that can be compared."""

import re
from typing import Any

from fix_objects import wait_until

__all__ = ["held_by", "named", "wait_for_consumers"]


def named(text: str) -> str:
    """Replace the random part of a name."""
    return re.sub(r"[0-9a-f]{32}", "<id>", text)


def wait_for_consumers(broker: Any, count: int) -> None:
    """Wait until a broker tells of so many, also where it lists its queues: of those of
    a quorum queue it knows there some seconds later."""
    wait_until(lambda: len(broker.consumers()) == count)
    wait_until(lambda: sum(row["consumers"] for row in broker.queues()) == count)


def held_by(broker: Any) -> dict[str, Any]:
    """Tell the queues, exchanges, bindings and consumers of a broker."""
    consumed = sorted(
        (
            (named(row["queue_name"]), row["ack_required"], row["arguments"])
            for row in broker.consumers()
        ),
        key=repr,
    )
    queues = [
        {
            "name": named(row["name"]),
            **{
                key: row[key]
                for key in (
                    "durable",
                    "auto_delete",
                    "exclusive",
                    "arguments",
                    "consumers",
                )
            },
        }
        for row in broker.queues()
    ]
    bindings = sorted(
        (row["source_name"], named(row["destination_name"]), row["routing_key"])
        for row in broker.bindings()
    )
    return {
        "queues": queues,
        "exchanges": broker.exchanges(),
        "bindings": bindings,
        "consumers": consumed,
    }
