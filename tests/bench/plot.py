"""The benchmark's result as a picture."""

from __future__ import annotations

import pathlib

import cases
import matplotlib as mpl
import report

mpl.use("Agg")

from matplotlib import pyplot as plt


def draw(measured: report.Medians, labels: dict[str, str], path: pathlib.Path) -> None:
    """Write four groups of bars: latency, calls, one-way messages, CPU of a call.

    All axes are logarithmic: the contenders lie orders of magnitude apart.
    """
    rows = [row for row in cases.ROWS if row.name in measured]
    calls = [row for row in rows if row.operation == "call"]
    one_way = [row for row in rows if row.operation != "call"]
    panels = [
        ("call: p50, us", calls, ("p50_us",)),
        ("calls/s", calls, ("rate",)),
        ("one-way messages/s, 2 kB, to the last one handled", one_way, ("rate",)),
        (
            "CPU us per call, client and server",
            calls,
            ("client_cpu_us", "server_cpu_us"),
        ),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = plt.subplots(
        -(-len(panels) // 2), 2, figsize=(13, 9), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, rows, keys) in zip(axes.flat, panels, strict=False):
        width = 0.8 / len(labels)
        for place, (name, label) in enumerate(labels.items()):
            heights = [
                sum(measured[row.name].get(name, {}).get(key, 0) for key in keys)
                for row in rows
            ]
            if any(heights):
                positions = [at + place * width for at in range(len(rows))]
                axis.bar(positions, heights, width, label=label, color=f"C{place}")
        axis.set_title(title)
        axis.set_yscale("log")
        axis.grid(axis="y", alpha=0.3)
        middle = 0.4 - width / 2
        axis.set_xticks(
            [at + middle for at in range(len(rows))],
            [row.title.replace(", ", "\n") for row in rows],
            fontsize=7,
        )
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
