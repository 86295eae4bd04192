"""WSGI hosts: what uWSGI and Apache have in common for a test.

Their virtual environment is made by ``make test-wsgi``, which installs this
package there: they run Debian's interpreter, not the one of the tests.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fix_objects import wait_until
from fix_processes import Connections, bound_ms, missed_heartbeats

__all__ = [
    "APPLICATION",
    "BEAT",
    "Answer",
    "Meeting",
    "WsgiHost",
    "check_after_idle",
    "check_quick",
    "running",
    "wsgi_venv",
]

ROOT = Path(__file__).resolve().parents[1]
APPLICATION = ROOT / "tests/processes/wsgi_app.py"

BEAT = 2  # seconds, heartbeat_timeout_threshold
# The broker closes at the third look at a silent connection at the latest, and
# looks once per heartbeat.
IDLE_S = 3.25 * BEAT

Answer = dict[str, Any]


@pytest.fixture(scope="session")
def wsgi_venv() -> Path:
    """Give the virtual environment with uWSGI and the driver."""
    folder = Path(os.environ.get("FASTMSG_WSGI_VENV", ROOT / ".venv-wsgi"))
    if not (folder / "bin/uwsgi").exists():
        pytest.fail(f"there is no {folder}: run make test-wsgi", pytrace=False)
    return folder


class Meeting:
    """An endpoint; `meet` answers when so many are there at the same time."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties)
        self.pid = os.getpid()

    def echo(self, ctxt: dict[str, Any], arg: Any) -> Any:
        return arg

    def meet(self, ctxt: dict[str, Any]) -> str:
        self._barrier.wait(20)
        return "all here"


class WsgiHost:
    """A running host; ended by its process id."""

    def __init__(
        self,
        command: Sequence[object],
        environment: dict[str, str],
        log: Path,
        paths: Sequence[str],
        port: int,
    ) -> None:
        """:param paths: asked at the same time; each has its own part of the host."""
        self._log = log
        self._urls = [f"http://127.0.0.1:{port}{path}" for path in paths]
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, text: str) -> None:
        def is_there() -> bool:
            assert self._process.poll() is None, self.log()
            return text in self.log()

        wait_until(is_there, 30, f"{text!r} in {self._log}")

    def ask(self, word: str, count: int) -> list[Answer]:
        """Have all parts of the host make calls at once; check the results.

        They wait for each other at the end, so nobody can answer for two.
        """
        answers: list[Answer | Exception] = []

        def one(url: str, own_word: str) -> None:
            try:
                with self._opener.open(
                    f"{url}?word={own_word}&count={count}", timeout=60
                ) as reply:
                    answer = json.load(reply)
                assert answer["results"] == [[own_word, i] for i in range(count)]
                assert answer["met"] == "all here"
                answers.append(answer)
            except Exception as error:
                answers.append(error)

        threads = [
            threading.Thread(target=one, args=(url, f"{word}-{number}"))
            for number, url in enumerate(self._urls)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            assert not isinstance(answer, Exception), f"{answer!r}\n{self.log()}"
        return answers  # type: ignore[return-value]

    def end(self, signal_number: int) -> int:
        """Have it end in its own way; give the status."""
        self._process.send_signal(signal_number)
        return self._process.wait(20)

    def kill(self) -> None:
        """End what is left: it leads a process group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(*args: Any, **more: Any) -> Iterator[WsgiHost]:
    host = WsgiHost(*args, **more)
    try:
        yield host
    finally:
        host.kill()


def check_after_idle(
    host: WsgiHost, broker: Any, connections: Callable[[], dict[int, Connections]]
) -> tuple[list[float], list[float]]:
    """Let the host idle for three heartbeats, and see that nothing was lost.

    :param connections: tells those of each process, by pid.
    :returns: times of warm calls and of the first ones after it, in ms.
    """
    warm_ms = [t for a in host.ask("warm", 100) for t in a["times_ms"][10:]]
    before = connections()
    end_at = time.monotonic() + IDLE_S
    while time.monotonic() < end_at:
        assert connections() == before
        time.sleep(0.2)  # between two looks at a process that idles
    first_ms = [t for a in host.ask("first", 1) for t in a["times_ms"]]

    assert connections() == before
    log = broker.log(100_000)
    for pid in before:
        assert missed_heartbeats(log, pid) == []
    return warm_ms, first_ms


def check_quick(warm_ms: list[float], first_ms: list[float]) -> None:
    """Bound the first calls; print what they took."""
    bound = bound_ms(warm_ms)
    print(
        f"warm {statistics.median(warm_ms):.2f} ms (median of {len(warm_ms)}), "
        f"first after {IDLE_S} s idle {', '.join(f'{t:.2f}' for t in first_ms)} ms, "
        f"bound {bound:.1f} ms"
    )
    assert max(first_ms) < bound
