"""What the benchmark concludes from its samples, and how it prints it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

import cases

# Figures of one run: medians[row name][contender name][key].
Medians = dict[str, dict[str, dict[str, float]]]

RESULT_KEYS = ("rate", "p50_us", "p99_us", "client_cpu_us", "server_cpu_us")


def medians(samples: dict[str, dict[str, list[dict[str, float]]]]) -> Medians:
    """Return the median over the rounds of each figure of each row."""
    return {
        row: {
            name: {
                key: statistics.median(sample[key] for sample in rounds)
                for key in rounds[0]
            }
            for name, rounds in by_name.items()
        }
        for row, by_name in samples.items()
    }


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of what must be reached; the ratio of two measurements, or a count."""

    title: str
    at_most: bool  # else at least
    must: float
    aim: float
    measured: float | None  # None: this run has not measured it

    def is_met(self, bound: float) -> bool:
        """Tell whether the measured value is on the right side of a bound."""
        if self.measured is None:
            return False
        if self.at_most:
            return self.measured <= bound
        return self.measured >= bound

    @property
    def verdict(self) -> str:
        """Tell in a word or two what was met."""
        if self.measured is None:
            return "not measured"
        if self.is_met(self.aim):
            return "aim"
        return "must" if self.is_met(self.must) else "MISSED"


def figures(
    measured: Medians,
    reference: str,
    codec: dict[str, dict[str, float]],
    resources: dict[str, Any],
) -> list[Figure]:
    """Compare fastmsg with the reference, the floor and json.

    :param reference: the stock contender that waits without polling.
    """

    def ratio(row: str, key: str, other: str) -> float | None:
        ours = measured.get(row, {}).get("fastmsg", {}).get(key)
        theirs = measured.get(row, {}).get(other, {}).get(key)
        return ours / theirs if ours is not None and theirs else None

    def over_the_floor(row: str) -> float | None:
        ours = measured.get(row, {}).get("fastmsg", {}).get("p50_us")
        floor_us = floor(row, measured.get(row, {}))
        return ours / floor_us if ours is not None and floor_us else None

    def worst(key: str) -> float | None:
        rows = (f"call-{threads}-2k" for threads in cases.THREADS)
        ratios = [ratio(row, key, reference) for row in rows]
        known = [each for each in ratios if each is not None]
        return max(known) if len(known) == len(ratios) else None

    def speed_up(step: str) -> float | None:
        times = codec.get("2k", {})
        if f"fastmsg_{step}_us" not in times:
            return None
        return times[f"json_{step}_us"] / times[f"fastmsg_{step}_us"]

    def connections() -> float | None:
        if not any(row.startswith("call-64-") for row in measured):
            return None
        counts = [peer["tcp"] for peer in resources.get("fastmsg", {}).values()]
        return max(counts, default=None)

    def rss(role: str) -> float | None:
        try:
            return resources["fastmsg"][role]["rss"] / resources[reference][role]["rss"]
        except KeyError:
            return None

    def packed(key: str) -> float | None:
        """What the binary envelope has of a 2 kB request, to what JSON has."""
        times = codec.get("2k", {})
        if "msgpack_bytes" not in times:
            return None
        if key == "bytes":
            return times["msgpack_bytes"] / times["fastmsg_bytes"]
        ours, json = (
            times[f"{name}_encode_us"] + times[f"{name}_decode_us"]
            for name in ("msgpack", "fastmsg")
        )
        return ours / json

    def slowest_call(name: str) -> float | None:
        """How long a lone call takes with another envelope, to JSON's, at worst."""
        ratios = []
        for size in cases.SIZES:
            by_name = measured.get(f"call-1-{size}", {})
            if name not in by_name or "fastmsg" not in by_name:
                return None
            ratios.append(by_name[name]["p50_us"] / by_name["fastmsg"]["p50_us"])
        return max(ratios)

    lone = "call-1-200"
    p50 = "call p50, 1 thread, 200 B"
    return [
        Figure(f"{p50} / floor", True, 1.6, 1.3, over_the_floor(lone)),
        Figure(f"{p50} / stock", True, 0.40, 0.30, ratio(lone, "p50_us", reference)),
        *(
            Figure(
                f"calls/s, {threads} threads, 2 kB / stock",
                False,
                5,
                8,
                ratio(f"call-{threads}-2k", "rate", reference),
            )
            for threads in (16, 64)
        ),
        *(
            Figure(
                f"casts/s to the last handled, {threads} / stock",
                False,
                must,
                aim,
                ratio(row, "rate", reference),
            )
            for row, threads, must, aim in (
                ("cast-1-2k", "1 thread", 2.5, 3.5),
                ("cast-16-2k", "16 threads", 3.5, 6),
            )
        ),
        Figure(
            "client CPU per call, 2 kB, worst of 1, 16, 64 threads / stock",
            True,
            1 / 5,
            1 / 8,
            worst("client_cpu_us"),
        ),
        Figure(
            "server CPU per call, 2 kB, worst of 1, 16, 64 threads / stock",
            True,
            1 / 3,
            1 / 4,
            worst("server_cpu_us"),
        ),
        Figure("encode 2 kB, speed / json twice", False, 5, 8, speed_up("encode")),
        Figure("decode 2 kB, speed / json twice", False, 3.5, 4.5, speed_up("decode")),
        Figure(
            "msgpack, encode and decode 2 kB / our JSON", True, 0.95, 0.8, packed("us")
        ),
        Figure("msgpack, bytes of 2 kB / JSON", True, 0.75, 0.7, packed("bytes")),
        # Never slower; a twentieth is what such runs differ by.
        *(
            Figure(
                f"call p50, 1 thread, worst size, {envelope} / json",
                True,
                1.05,
                1,
                slowest_call(f"fastmsg-{envelope}"),
            )
            for envelope in ("auto", "msgpack")
        ),
        Figure("TCP connections, 64 threads calling", True, 2, 2, connections()),
        Figure("RSS of the client / stock", True, 1, 0.7, rss("client")),
        Figure("RSS of the server / stock", True, 1, 0.7, rss("server")),
    ]


def floor(row: str, by_name: dict[str, dict[str, float]]) -> float | None:
    """Return the p50 of a row that no driver can be below, in microseconds.

    Of a call: the echo over the broker, and oslo.messaging's own client and
    server, which come before and after it. Of a cast: a publication and its
    confirm, and oslo.messaging's own client.
    """
    is_cast = row.startswith("cast-")
    names = ("floor-safe", "layer-client") if is_cast else ("floor", "layer")
    parts = [by_name.get(name, {}).get("p50_us") for name in names]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def floor_over_stock(measured: Medians, row: str, reference: str) -> float | None:
    """Return how often a driver at the floor would do what stock does once."""
    floor_us = floor(row, measured.get(row, {}))
    stock_us = measured.get(row, {}).get(reference, {}).get("p50_us")
    return stock_us / floor_us if stock_us and floor_us else None


def table(header: list[str], lines: Iterable[list[str]]) -> str:
    """Return a table: the first column to the left, the others to the right."""
    rows = [header, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]

    def fit(row: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([fit(header), rule, *(fit(row) for row in rows[1:])])


def figures_table(all_figures: list[Figure]) -> str:
    """Return what must be reached and what was."""
    return table(
        ["figure", "must", "aim", "measured", "met"],
        (
            [
                figure.title,
                _bound(figure, figure.must),
                _bound(figure, figure.aim),
                "-" if figure.measured is None else f"{figure.measured:.2f}",
                figure.verdict,
            ]
            for figure in all_figures
        ),
    )


def _bound(figure: Figure, bound: float) -> str:
    return f"{'<=' if figure.at_most else '>='} {bound:.3g}"


def rows_table(measured: Medians, labels: dict[str, str], reference: str) -> str:
    """Return the medians of all rows, with their ratios.

    To the rate of the reference; to the p50 of the echo over rabbitmq-c alone;
    and to the floor, which is that and oslo.messaging's own layer.
    """
    lines: list[list[str]] = []
    for row in cases.ROWS:
        by_name = measured.get(row.name)
        if by_name is None:
            continue
        lines.append([row.title] + [""] * 9)
        for name, figure in by_name.items():
            lines.append(
                [
                    f"  {labels[name]}",
                    f"{figure['rate']:,.0f}",
                    f"{figure['p50_us']:,.0f}",
                    f"{figure['p99_us']:,.0f}",
                    _number(figure.get("client_cpu_us")),
                    _number(figure.get("server_cpu_us")),
                    _number(figure.get("broker_cpu_us")),
                    _times(figure["rate"], by_name.get(reference, {}).get("rate")),
                    _times(figure["p50_us"], by_name.get("floor", {}).get("p50_us")),
                    _times(figure["p50_us"], floor(row.name, by_name)),
                ]
            )
    header = ["", "per s", "p50 us", "p99 us", "client", "server", "broker"]
    return table([*header, "rate/stock", "p50/echo", "p50/floor"], lines)


def resources_table(
    resources: dict[str, dict[str, dict[str, Any]]], labels: dict[str, str]
) -> str:
    """Return memory, threads and connections of each driver's two processes."""
    header = ["", "RSS MiB", "threads", "TCP connections", "channels"]
    return table(
        header,
        (
            [
                f"{labels[name]}, {role}",
                f"{peer['rss'] / 1024:.1f}",
                str(peer["threads"]),
                str(peer["tcp"]),
                str(peer.get("channels", "?")),
            ]
            for name, by_role in resources.items()
            for role, peer in by_role.items()
        ),
    )


def codec_table(codec: dict[str, dict[str, float]]) -> str:
    """Return the cost of the envelope alone."""
    header = ["envelope, us", "json twice", "fastmsg", "json/fastmsg"]
    header += ["msgpack", "msgpack/fastmsg"]
    lines = []
    for size, times in codec.items():
        for step in ("encode", "decode"):
            theirs = times[f"json_{step}_us"]
            ours = times.get(f"fastmsg_{step}_us")
            ratio = "-" if ours is None else f"{theirs / ours:.1f}"
            cells = [f"{step} {size}", _number(theirs, 2), _number(ours, 2), ratio]
            packed = times.get(f"msgpack_{step}_us")
            part = "-" if packed is None or ours is None else f"{packed / ours:.2f}"
            lines.append([*cells, _number(packed, 2), part])
        of_json, packed = times["json_bytes"], times.get("msgpack_bytes")
        cells = [f"bytes {size}", _number(of_json), _number(of_json), "1.0"]
        part = "-" if packed is None else f"{packed / of_json:.2f}"
        lines.append([*cells, _number(packed), part])
    return table(header, lines)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _times(value: float, other: float | None) -> str:
    return "-" if not other else f"{value / other:.2f}"
