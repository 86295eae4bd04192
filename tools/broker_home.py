"""Where private nodes live: their RabbitMQ, directory, port mapper and keeper.

For ``private_broker.py``, whose docstring says what the environment may name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "COMMAND_S",
    "HOST",
    "ROOT_VARIABLE",
    "STARTUP_S",
    "USER",
    "BrokerError",
    "Home",
    "free_port",
    "home_folder",
    "make_certificates",
    "rabbitmq_version",
    "wait_until",
]

USER = "guest"
HOST = "127.0.0.1"
SCRIPTS = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
STARTUP_S = 120.0
COMMAND_S = 60.0

ROOT_VARIABLE = "FASTMSG_RABBITMQ_ROOT"
PATH_IN_ROOT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Ends every process group whose id is in a *.pid file, then the directory,
# when its standard input ends: when the process that made it is gone.
KEEPER = """
trap '' INT TERM HUP
cat >/dev/null
for file in "$1"/*.pid; do
    test -s "$file" && kill -s KILL -- "-$(cat "$file")" 2>/dev/null
done
while ! rm -rf "$1" 2>/dev/null && test -e "$1"; do :; done
"""


class BrokerError(Exception):
    """The broker could not be started, or did not do what it was asked."""


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on.

    From below the range that the kernel gives to clients, so that no
    connection takes it before its server does.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def _root() -> Path | None:
    """Where the RabbitMQ is that is to be used; None: in this system."""
    name = os.environ.get(ROOT_VARIABLE)
    return Path(name).resolve() if name else None


def _scripts(root: Path | None) -> str:
    """Give the directory of RabbitMQ's commands, as seen from within the root."""
    found = sorted(glob.glob(f"{root or ''}{SCRIPTS}"))
    if root is not None:
        if not found or not (root / "usr/bin/erl_call").exists():
            raise BrokerError(f"no RabbitMQ in {root}: tools/make_rabbitmq_root.sh")
        return found[-1].removeprefix(str(root))
    if not found or shutil.which("erl") is None or shutil.which("erl_call") is None:
        raise BrokerError("no RabbitMQ here: apt install rabbitmq-server")
    return found[-1]


def rabbitmq_version() -> tuple[int, ...]:
    """Tell the version of the RabbitMQ that is used, by its directory."""
    folder = Path(_scripts(_root())).parent.name
    return tuple(int(part) for part in re.findall(r"\d+", folder.partition("-")[2]))


def home_folder() -> Path:
    """Tell where nodes have their directories."""
    root = _root()
    return root / "tmp" if root is not None else Path(tempfile.gettempdir())


def make_certificates(folder: Path) -> None:
    """Make a CA (``ca.pem``) and what it has signed: for 127.0.0.1 (``server.pem``
    and ``.key``), and for the user guest (``client.pem`` and ``.key``)."""
    names = folder / "server.ext"
    names.write_text(f"subjectAltName = IP:{HOST}, DNS:localhost\n")
    make_key = ["req", "-newkey", "rsa:2048", "-nodes", "-keyout"]
    for arguments in (
        [*make_key, "ca.key", "-x509", "-days", "2", "-subj", "/CN=CA", "-out"]
        + ["ca.pem"],
        [*make_key, "server.key", "-subj", "/CN=localhost", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]
        + ["-set_serial", "1", "-days", "2", "-extfile", names.name]
        + ["-out", "server.pem"],
        [*make_key, "client.key", "-subj", f"/CN={USER}", "-out", "client.csr"],
        ["x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]
        + ["-set_serial", "2", "-days", "2", "-out", "client.pem"],
    ):
        try:
            subprocess.run(
                ["openssl", *arguments],
                cwd=folder,
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_S,
            )
        except FileNotFoundError:
            raise BrokerError("no openssl here: apt install openssl") from None
        except subprocess.CalledProcessError as error:
            raise BrokerError(f"openssl {arguments[0]}: {error.stderr!r}") from None


def _children(pid: int) -> list[int]:
    """Tell who descends from a process, itself not included."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            for child in map(int, text.split()):
                found += [child, *_children(child)]
    return found


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Any, timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.01)


class Home:
    """The directory, the port mapper and the keeper of one or more nodes."""

    def __init__(self) -> None:
        self.root = _root()
        self.scripts = _scripts(self.root)
        self.path = Path(tempfile.mkdtemp(prefix="oslo-fastmsg-", dir=home_folder()))
        self.epmd_port = free_port()
        self.users = 0
        self._lock = threading.Lock()  # the nodes of a cluster start at once
        cookie = self.path / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16).upper())
        cookie.chmod(0o400)
        self.environment = {
            "HOME": self.inside(self.path),
            "PATH": PATH_IN_ROOT if self.root else os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
        }
        # A child that was forked, and did not exec, holds the pipe as well:
        # so it ends the keeper's wait, but nobody here waits for that.
        self.owner_pid = os.getpid()
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(self.path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
        self._epmd: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        with self._lock:
            self.users += 1
            if self._epmd is None:
                self._epmd = self.spawn("epmd", ["epmd"], {})
                wait_until(self._epmd_answers, 20, "start of epmd")

    def _epmd_answers(self) -> bool:
        assert self._epmd is not None
        if self._epmd.poll() is not None:
            raise BrokerError(f"epmd ended: {self.tail('epmd')}")
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.epmd_port)) == 0

    def inside(self, path: Path) -> str:
        """Tell what processes of the node call a path."""
        if self.root is None:
            return str(path)
        return f"/{path.relative_to(self.root)}"

    def command(self, words: Sequence[str]) -> list[str]:
        """Give the command that runs one of the node's, in the same process."""
        if self.root is None:
            return list(words)
        if os.geteuid() == 0:
            return ["chroot", str(self.root), *words]
        return ["unshare", "--map-root-user", f"--root={self.root}", *words]

    def spawn(
        self, name: str, command: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process with a group of its own that the keeper knows."""
        with open(self.path / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                # The pid file is there before the process is: nothing can be
                # started and not known.
                ["/bin/sh", "-c", 'echo $$ >"$0"; exec "$@"']
                + [str(self.path / f"{name}.pid"), *self.command(command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                cwd=self.path,
                start_new_session=True,
            )
        return process

    def end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that descends from it; wait for them."""
        family = _children(process.pid)
        for pid in [process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until(
            lambda: not any(map(_is_alive, family)), 20, f"end of {name}'s children"
        )
        (self.path / f"{name}.pid").unlink(missing_ok=True)

    def tail(self, name: str) -> str:
        text = (self.path / f"{name}.out").read_text(errors="replace")
        return "\n".join(text.strip().splitlines()[-25:])

    def close(self) -> None:
        """One node less; after the last one nothing is left."""
        with self._lock:
            self.users -= 1
            if self.users > 0:
                return
        if self._epmd is not None:
            self.end("epmd", self._epmd)
            self._epmd = None
        shutil.rmtree(self.path, ignore_errors=True)
        self._keeper.kill()
        self._keeper.communicate()
