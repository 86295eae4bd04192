"""Runs a scene of ``tests/processes/scenes.py`` in a process of its own."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["Scene"]

SCENES = Path(__file__).parent / "processes" / "scenes.py"


class Scene:
    """A process that plays a scene, talked with in lines of JSON."""

    def __init__(
        self,
        name: str,
        url: str,
        topic: str,
        *arguments: object,
        python: str = sys.executable,
        script: Path = SCENES,
        **environment: str,
    ) -> None:
        """:param python: the interpreter; with any other one than ours the
        environment names its modules.
        """
        # A file: nobody reads a pipe meanwhile, and one that is full would
        # stop who writes.
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [python, "-W", "ignore::DeprecationWarning", str(script), name, url]
            + [topic, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid
        self._heard = b""

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()

    def tell(self, text: str = "go on") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def hear(self, timeout: float = 60.0) -> Any:
        """Wait for the scene's next line."""
        assert self._process.stdout is not None
        end_at = time.monotonic() + timeout
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._heard:
            left = end_at - time.monotonic()
            ready = left > 0 and select.select([pipe], [], [], left)[0]
            more = os.read(pipe, 1 << 16) if ready else b""
            if not more:
                self._process.kill()
                self._process.wait()
                what = "ended" if ready else f"said nothing for {timeout} s"
                raise AssertionError(f"the scene {what}:\n{self._said()}")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def expect(self, key: str, timeout: float = 60.0) -> Any:
        """Wait for the scene's next line, which has to be about `key`."""
        answer = self.hear(timeout)
        assert list(answer) == [key], answer
        return answer[key]

    def end(self, timeout: float = 30.0) -> tuple[int, str]:
        """Wait for the end; give the exit status and what went to stderr."""
        self._process.communicate(timeout=timeout)
        return self._process.returncode, self._said()
