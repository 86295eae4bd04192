"""What the benchmark sends, and the rows that it measures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

SIZES = ("200", "2k", "64k")
THREADS = (1, 16, 64)

CONTEXT = {"request_id": "req-5b0a3f8c-52f1-4c0e-9d0c-0c4f8c1c2f6e"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result: an operation, by how many threads, of which size."""

    operation: str  # "call", "cast" or "notify"
    threads: int
    size: str  # one of SIZES

    @property
    def name(self) -> str:
        """The row's name on the command line and in the JSON: ``call-16-2k``."""
        return f"{self.operation}-{self.threads}-{self.size}"

    @property
    def title(self) -> str:
        """The row's name for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        size = {"200": "200 B", "2k": "2 kB", "64k": "64 kB"}[self.size]
        return f"{self.operation}, {threads}, {size}"


# Calls come first: the memory of the processes is read after them, before the
# casts leave queues of requests in the servers.
ROWS = tuple(
    [Row("call", threads, size) for size in SIZES for threads in THREADS]
    + [Row("cast", threads, "2k") for threads in (1, 16)]
    + [Row("notify", threads, "2k") for threads in (1, 16)]
)


def instance(name: str) -> dict[str, Any]:
    """Return an object as services send it: versioned and nested, 0.8 kB of JSON."""
    return {
        "nova_object.name": "Instance",
        "nova_object.namespace": "nova",
        "nova_object.version": "2.8",
        "nova_object.data": {
            "uuid": "7a2f4ce5-0f45-4b8e-9d3c-3b7f0d0f6a11",
            "display_name": name,
            "project_id": "0c2f7f0a1d9e4f0a8a7f9f6f2b7c1d3e",
            "user_id": "f1d8a4f5b2e34c6f9b0a7c8d9e0f1a2b",
            "vcpus": 4,
            "memory_mb": 8192,
            "root_gb": 40,
            "ephemeral_gb": 0,
            "host": None,
            "locked": False,
            "created_at": "2026-11-21T03:00:00Z",
            "metadata": {"role": "web", "tier": "front", "note": 'say "hi"'},
            "system_metadata": {"image_min_disk": "20", "image_os": "linux"},
            "flavor": {
                "nova_object.name": "Flavor",
                "nova_object.version": "1.2",
                "nova_object.data": {
                    "id": 7,
                    "name": "m1.large",
                    "rxtx_factor": 1.0,
                    "extra_specs": {"hw:cpu_policy": "shared"},
                },
                "nova_object.changes": ["extra_specs"],
            },
        },
        "nova_object.changes": ["host", "metadata", "vcpus"],
    }


def payload(size: str) -> Any:
    """Return the argument of a row.

    A text of 200 B, or as many nested objects as make a request of about 2 kB
    or 64 kB on the wire.
    """
    if size == "200":
        return "x" * 200
    objects = {"2k": 2, "64k": 67}[size]
    return {"instances": [instance(f"web-{n:04}") for n in range(objects)]}


def request(size: str) -> dict[str, Any]:
    """Return the message of a call with such an argument, ids included."""
    return {
        "method": "echo",
        "args": {"arg": payload(size)},
        "_msg_id": "8d76912c1b264d539c825e3654be6866",
        "_reply_q": "reply_cb67037c75054449a24700b6a16fa875",
        "_timeout": None,
        "_unique_id": "397de6e91f3a462ea1dbbcd175c58345",
        **{f"_context_{key}": value for key, value in CONTEXT.items()},
    }


def envelope(message: dict[str, Any]) -> bytes:
    """Return the message as it travels: JSON in JSON."""
    document = {"oslo.version": "2.0", "oslo.message": json.dumps(message)}
    return json.dumps(document).encode()
