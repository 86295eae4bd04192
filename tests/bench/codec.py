"""The envelopes alone: the driver's codec against ``json`` twice, and its own other.

Stock writes an envelope by dumping the message and then dumping the text
within a second document, and reads one the other way round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cases

TURNS = 9  # of each contender, interleaved
TURN_S = 0.02


def json_encode(message: dict[str, Any]) -> bytes:
    """Write an envelope with two dumps."""
    return cases.envelope(message)


def json_decode(body: bytes) -> Any:
    """Read an envelope with two loads."""
    return json.loads(json.loads(body)["oslo.message"])


def measure() -> dict[str, dict[str, float]]:
    """Return microseconds and bytes by size and step; without a built core, json's
    alone.
    """
    steps: dict[str, Callable[[Any], Any]] = {
        "json_encode": json_encode,
        "json_decode": json_decode,
    }
    try:
        from oslo_fastmsg import _core
    except ImportError:
        pass
    else:
        steps |= {"fastmsg_encode": _core.encode, "fastmsg_decode": _core.decode}
        steps |= {"msgpack_encode": _core.pack, "msgpack_decode": _core.unpack}

    results = {}
    for size in cases.SIZES:
        message = cases.request(size)
        bodies = {"json": json_encode(message)}
        bodies["fastmsg"] = bodies["json"]
        if "msgpack_encode" in steps:
            bodies["msgpack"] = steps["msgpack_encode"](message)
        turns: dict[str, list[float]] = {step: [] for step in steps}
        for step, work in steps.items():
            # Also makes both sides equally warm.
            body = bodies[step.partition("_")[0]]
            given = body if step.endswith("decode") else message
            right = message if step.endswith("decode") else body
            if work(given) != right:
                raise RuntimeError(f"{step} of the {size} request is wrong")
        for _ in range(TURNS):
            for step, work in steps.items():
                body = bodies[step.partition("_")[0]]
                given = body if step.endswith("decode") else message
                turns[step].append(_time_us(work, given))
        results[size] = {
            f"{step}_us": statistics.median(times) for step, times in turns.items()
        } | {f"{name}_bytes": len(body) for name, body in bodies.items()}
    return results


def _time_us(work: Callable[[Any], Any], given: Any) -> float:
    """Return microseconds for one piece of work, over a turn's worth of them."""
    count = 0
    started = now = time.perf_counter()
    while now - started < TURN_S:
        for _ in range(10):
            work(given)
        count += 10
        now = time.perf_counter()
    return (now - started) / count * 1e6
