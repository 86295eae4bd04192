"""The codec alone, against ``json`` twice and the stock driver's path.

``python tests/bench/bench_codec.py`` prints a table: microseconds for one
message, medians of interleaved turns of one run, and how many times faster
the codec is. Needs neither a broker nor anything of the benchmark's own
requirements. Sizes are bytes on the wire.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu import serialization
from oslo_messaging._drivers import common

from oslo_fastmsg import _core

sys.path.append(str(Path(__file__).resolve().parents[1]))
from fix_request import INSTANCE, REQUEST

TURNS = 15  # of each contender, interleaved
TURN_S = 0.03

TRACEBACK = 'File "driver.py", line 31, in boom\n    raise ValueError("bad")\n'
SAMPLES: dict[str, dict[str, Any]] = {
    "request": REQUEST,
    "objects": {**REQUEST, "args": {"instances": [INSTANCE] * 62}},
    "text": {**REQUEST, "args": {"text": TRACEBACK * 1000}},
}


def json_encode(message: Any) -> bytes:
    envelope = {"oslo.version": "2.0", "oslo.message": json.dumps(message)}
    return json.dumps(envelope).encode()


def json_decode(body: bytes) -> Any:
    return json.loads(json.loads(body)["oslo.message"])


def stock_encode(message: Any) -> bytes:
    _, encoding, text = serialization.dumps(common.serialize_msg(message), "json")
    return text.encode(encoding)


def stock_decode(body: bytes) -> Any:
    outer = serialization.loads(
        body, "application/json", "utf-8", accept={"application/json"}
    )
    return common.deserialize_msg(outer)


STEPS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "encode": {"json": json_encode, "stock": stock_encode, "core": _core.encode},
    "decode": {"json": json_decode, "stock": stock_decode, "core": _core.decode},
}


def time_us(work: Callable[[Any], Any], given: Any) -> float:
    count = 0
    started = now = time.perf_counter()
    while now - started < TURN_S:
        for _ in range(10):
            work(given)
        count += 10
        now = time.perf_counter()
    return (now - started) / count * 1e6


def medians(
    contenders: dict[str, Callable[[Any], Any]], given: Any
) -> dict[str, float]:
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, work in contenders.items():
            turns[name].append(time_us(work, given))
    return {name: statistics.median(times) for name, times in turns.items()}


def main() -> None:
    gc.freeze()
    print(f"Python {sys.version.split()[0]}, us for one message")
    print(f"{'':24}{'json':>9}{'stock':>9}{'core':>9}{'x json':>9}{'x stock':>9}")
    for sample, message in SAMPLES.items():
        body = stock_encode(message)
        for step, contenders in STEPS.items():
            given, right = (message, body) if step == "encode" else (body, message)
            for name, work in contenders.items():
                if work(given) != right:
                    sys.exit(f"{name} {step}s the {sample} wrongly")
            us = medians(contenders, given)
            print(
                f"{step} {sample:8} {len(body):7}  "
                f"{us['json']:9.2f}{us['stock']:9.2f}{us['core']:9.2f}"
                f"{us['json'] / us['core']:9.1f}{us['stock'] / us['core']:9.1f}"
            )


if __name__ == "__main__":
    main()
