"""Compare oslo-fastmsg with the stock driver and with what cannot be beaten.

All contenders keep their processes for the whole run and take turns row by
row, so that whatever else the machine does meets them alike. Without
TRANSPORT_URL a private RabbitMQ is started, and stopped at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools"))

import cases  # noqa: E402 - their path is known only now
import codec  # noqa: E402
import contenders  # noqa: E402
import processes  # noqa: E402
import report  # noqa: E402
from private_broker import NamedBroker, PrivateBroker  # noqa: E402

WARM_UP_S = 0.3
SETTLE_S = 0.05

Samples = dict[str, dict[str, list[contenders.Sample]]]


NAMES = (
    "floor",
    "floor-safe",
    "layer-client",
    "layer",
    "stock",
    "stock-blocking",
    "fastmsg",
    "fastmsg-auto",
    "fastmsg-msgpack",
)


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        say("using your broker" if options.url else "starting the broker")
        node = NamedBroker(options.url) if options.url else PrivateBroker()
        broker = contenders.Broker(stack.enter_context(node))
        started: list[contenders.Contender] = []
        stack.callback(contenders.close_all, started, broker)
        notes = start_contenders(options, broker, started)
        meter = CpuMeter(broker, started)
        samples, resources = measure_rounds(options, broker, started)
        add_channels(resources, broker.channels())
        cpus_of_others = meter.cpus_of_others()
    if cpus_of_others > 0.05:
        notes.append(
            f"other programs used {cpus_of_others:.2f} CPUs during the run, which"
            " changes the figures, and not those of all contenders alike"
        )

    labels = {each.name: each.label for each in started}
    reference = "stock-blocking" if "stock-blocking" in labels else "stock"
    envelopes = codec.measure() if options.codec else {}
    medians = report.medians(samples)
    figures = report.figures(medians, reference, envelopes, resources)
    result = {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "machine": describe_machine(),
        "cpus_of_others": cpus_of_others,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "wire_bytes": {
            size: len(cases.envelope(cases.request(size))) for size in cases.SIZES
        },
        "labels": labels,
        "reference": reference,
        "notes": notes,
        "samples": samples,
        "medians": medians,
        "resources": resources,
        "envelope": envelopes,
        "figures": [
            dataclasses.asdict(figure) | {"met": figure.verdict} for figure in figures
        ],
    }
    path = options.out / "bench.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if not options.brief:
        print_report(result, figures)
    for note in notes:
        say(f"note: {note}")
    if not options.brief:
        say(f"\nwritten: {path}")
        draw_plot(medians, labels, options.out / "bench.png")

    missed = [figure for figure in figures if not figure.is_met(figure.must)]
    if options.check and missed:
        say(f"{len(missed)} of {len(figures)} figures are not reached")
        return 1
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--url", default=os.environ.get("TRANSPORT_URL"), help="a broker of yours")
    add("--rounds", type=int, help="turns of each contender in each row (3)")
    add("--seconds", type=float, help="duration of one turn (1.0)")
    add("--rows", default="*", help="names or patterns: call-1-200,call-*-2k,cast-*")
    add("--drivers", default=",".join(NAMES), help=f"of {', '.join(NAMES)} (all)")
    add("--quick", action="store_true", help="one round of 0.4 s each")
    add("--check", action="store_true", help="fail when a figure misses its must")
    add("--brief", action="store_true", help="no tables, no plot: see the JSON")
    add("--no-codec", dest="codec", action="store_false", help="skip the envelope")
    add("--out", type=pathlib.Path, default=HERE / "out", help="directory of results")
    add("--fast-scheme", default="fastmsg", help="URL scheme of the driver on trial")
    add(
        "--stock-python",
        default=sys.executable,
        help="an interpreter with another release of oslo.messaging, for stock",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.4 if options.quick else 1.0)
    patterns = options.rows.split(",")
    options.rows = [
        row
        for row in cases.ROWS
        if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)
    ]
    if not options.rows:
        parser.error("no such rows; there are " + ", ".join(r.name for r in cases.ROWS))
    options.drivers = options.drivers.split(",")
    for name in options.drivers:
        if name not in NAMES:
            parser.error(f"no such driver: {name}")
    return options


def make_contender(name: str, options: argparse.Namespace) -> contenders.Contender:
    """Return one of NAMES, not started."""
    if name == "floor":
        return contenders.FloorContender(name, "echo over rabbitmq-c")
    if name == "floor-safe":
        label = "the echo with confirms and acks"
        return contenders.FloorContender(name, label, safe=True)
    if name == "layer-client":
        label = "oslo.messaging's client alone"
        return contenders.LayerContender(name, label, "null://client")
    if name == "layer":
        label = "oslo.messaging's client and server alone"
        return contenders.LayerContender(name, label, "null://server")
    if name == "fastmsg":
        return contenders.OsloContender(name, name, options.fast_scheme)
    if name.startswith("fastmsg-"):
        return contenders.EnvelopeContender(
            name, options.fast_scheme, name.removeprefix("fastmsg-")
        )
    is_patched = name == "stock-blocking"
    return contenders.OsloContender(
        name,
        "stock, blocking reply wait (patched)" if is_patched else "stock as installed",
        "rabbit",
        python=options.stock_python,
        blocking_wait=is_patched,
    )


class CpuMeter:
    """Tells how much of the machine went to programs that are not measured."""

    def __init__(
        self, broker: contenders.Broker, started: list[contenders.Contender]
    ) -> None:
        self._broker = broker
        self._started = started
        self._since_s = time.monotonic()
        self._before_s = self._read_s()

    def cpus_of_others(self) -> float:
        """Return it in CPUs, since this object was made."""
        used_s = self._read_s() - self._before_s
        return used_s / (time.monotonic() - self._since_s)

    def _read_s(self) -> float:
        """Return the CPU time of everybody less that of ours."""
        pids = [peer.pid for each in self._started for peer in each.peers().values()]
        if self._broker.pid is not None:
            pids.append(self._broker.pid)
        ours_s = sum(processes.cpu_s(pid) for pid in pids) + time.process_time()
        return processes.machine_cpu_s() - ours_s


def start_contenders(
    options: argparse.Namespace,
    broker: contenders.Broker,
    started: list[contenders.Contender],
) -> list[str]:
    """Start whom the options name; return what the reader has to know about them."""
    notes = []
    polls = None  # not known yet
    for name in options.drivers:
        if name == "stock-blocking" and polls is False:
            continue  # it would be the same thing twice
        contender = make_contender(name, options)
        say(f"starting {contender.label}")
        try:
            contender.start(broker, options.out)
        except contenders.MissingError as error:
            notes.append(str(error))
            continue
        started.append(contender)
        if name == "stock" and isinstance(contender, contenders.OsloContender):
            polls = contender.polls
            contender.label = f"stock as installed ({contender.release})"
            if not polls:
                notes.append(
                    f"oslo.messaging {contender.release} waits for replies without"
                    " polling: as installed it is the stock driver with a blocking"
                    " wait, so there is no patched one"
                )
    if broker.pid is None:
        notes.append("the broker's process is not to be seen: no CPU figures of it")
    return notes


def measure_rounds(
    options: argparse.Namespace,
    broker: contenders.Broker,
    started: list[contenders.Contender],
) -> tuple[Samples, dict[str, Any]]:
    """Run all rows for each contender, round by round, and show what comes."""
    for contender in started:
        for operation in contender.operations:
            row = cases.Row(operation, 4, "200")
            contender.measure(row, WARM_UP_S, broker)

    samples: Samples = {row.name: {} for row in options.rows}
    resources: dict[str, Any] = {}
    last_call = [row for row in options.rows if row.operation == "call"][-1:]
    for turn in range(options.rounds):
        for row in options.rows:
            here = [contender for contender in started if contender.takes(row)]
            # Each is the first once in a while, so none always follows the same.
            here = here[turn % len(here) :] + here[: turn % len(here)]
            rates = measure_turn(here, row, options.seconds, broker, samples[row.name])
            say(f"round {turn + 1}/{options.rounds}  {row.title}: {rates}")
            if turn == 0 and [row] == last_call:
                look_at_resources(started, broker, resources)
    in_order = {
        row: {each.name: by_name[each.name] for each in started if each.name in by_name}
        for row, by_name in samples.items()
    }
    return in_order, resources


def measure_turn(
    here: list[contenders.Contender],
    row: cases.Row,
    seconds: float,
    broker: contenders.Broker,
    samples: dict[str, list[contenders.Sample]],
) -> str:
    """Let the contenders have a turn each at a row; return the rates as text.

    A lone call is quick or slow by where the scheduler puts its three
    processes, and that changes from second to second. So these rows alternate
    more often, for as long in all.
    """
    parts = 3 if row.threads == 1 and row.operation == "call" else 1
    for _ in range(parts):
        for contender in here:
            sample = contender.measure(row, seconds / parts, broker)
            samples.setdefault(contender.name, []).append(sample)
            time.sleep(SETTLE_S)
    return ", ".join(
        f"{each.name} {samples[each.name][-1]['rate']:,.0f}/s" for each in here
    )


def look_at_resources(
    started: list[contenders.Contender],
    broker: contenders.Broker,
    resources: dict[str, Any],
) -> None:
    """Note memory, threads and connections of each driver's processes."""
    for contender in started:
        if not isinstance(contender, contenders.OsloContender):
            continue
        for role, peer in contender.peers().items():
            ports = processes.local_ports(peer.pid, broker.port)
            resources.setdefault(contender.name, {})[role] = {
                **processes.memory_kib(peer.pid),
                "threads": processes.threads(peer.pid),
                "tcp": len(ports),
                "ports": ports,
            }


def add_channels(resources: dict[str, Any], channels: dict[int, int] | None) -> None:
    """Add to each process the number of its channels, as the broker sees them."""
    for by_role in resources.values():
        for peer in by_role.values():
            ports = peer.pop("ports")
            if channels is not None:
                peer["channels"] = sum(channels.get(port, 0) for port in ports)


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def print_report(result: dict[str, Any], figures: list[report.Figure]) -> None:
    """Print all tables."""
    machine, labels = result["machine"], result["labels"]
    reference = result["reference"]
    say(
        f"\n{machine['cpus']} x {machine['cpu']}, Python {machine['python']};"
        " client, server and broker share them. Medians over the rounds; client,"
        " server, broker: CPU us per message."
    )
    say("\n" + report.rows_table(result["medians"], labels, reference))
    if result["resources"]:
        say("\n" + report.resources_table(result["resources"], labels))
    if result["envelope"]:
        say("\n" + report.codec_table(result["envelope"]))
    say(
        f"\n'stock' below is: {labels.get(reference, 'not measured')}. The floor is"
        " the echo over rabbitmq-c plus oslo.messaging's client and server alone; of a"
        " cast, a publication and its confirm over rabbitmq-c plus the client alone."
    )
    most = report.floor_over_stock(result["medians"], "cast-1-2k", reference)
    if most is not None:
        say(f"At the floor, 1 thread would make {most:.2f} x the casts/s of stock.")
    say("")
    say(report.figures_table(figures))


def draw_plot(
    measured: report.Medians, labels: dict[str, str], path: pathlib.Path
) -> None:
    """Draw the plot, if this environment can."""
    if importlib.util.find_spec("matplotlib") is None:
        say("no plot: matplotlib is missing (tests/bench/requirements.txt)")
        return
    import plot  # slow to import, and absent from other environments

    plot.draw(measured, labels, path)
    say(f"written: {path}")


def say(text: str) -> None:
    """Print at once, so that progress is seen through a pipe as well."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
