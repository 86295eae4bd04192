"""Apache's mod_wsgi: two applications in two interpreters of one process.

Each interpreter has a module of its own, and a driver; the core below them is
one per process, and so are the connections. The process is a daemon of mod_wsgi's,
which is not forked after its Python began, and leaves the GIL while it idles.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from fix_objects import wait_until
from fix_processes import connections_of, settled_connections
from fix_wsgi import APPLICATION, BEAT, Meeting, check_after_idle, check_quick, running
from private_broker import free_port

pytestmark = pytest.mark.wsgi

GROUPS = ["one", "two"]
MODULES = "/usr/lib/apache2/modules"
SERVER_USER = "www-data"

CONFIGURATION = """
ServerRoot "{folder}"
DefaultRuntimeDir "{folder}"
PidFile "{folder}/apache.pid"
ErrorLog "{folder}/error.log"
LogLevel warn wsgi:info
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
{user}
WSGIRestrictEmbedded On
WSGISocketPrefix "{folder}/wsgi"
WSGIDaemonProcess daemon processes=1 threads=4 python-home="{venv}"
{aliases}
<Directory "{folder}">
    Require all granted
</Directory>
"""


@pytest.fixture(scope="module")
def public_folder(wsgi_venv):
    """Give a folder that the server's user may enter, with all it runs.

    Apache does not run applications as root. A checkout may be in a home that
    nobody else enters, and so may be pytest's own folders.
    """
    folder = Path(tempfile.mkdtemp(prefix="oslo-fastmsg-wsgi-"))
    try:
        shutil.copytree(
            wsgi_venv / "lib",
            folder / "venv/lib",
            symlinks=True,
            ignore=shutil.ignore_patterns("tests", "pip", "setuptools"),
        )
        shutil.copy(wsgi_venv / "pyvenv.cfg", folder / "venv")
        shutil.copy(APPLICATION, folder)
        for parent, _, files in os.walk(folder):
            os.chmod(parent, 0o755)
            for name in files:
                path = Path(parent, name)
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o444)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def apache(broker, peers, topic, public_folder):
    """A server with one process for two applications, ready."""
    folder = public_folder
    peers.server("fast", Meeting(len(GROUPS)), topic=topic, threads=4)
    port = free_port()
    user = f"User {SERVER_USER}\nGroup {SERVER_USER}" if os.getuid() == 0 else ""
    aliases = "\n".join(
        f'WSGIScriptAlias /{group} "{folder / APPLICATION.name}"'
        f" process-group=daemon application-group={group}"
        for group in GROUPS
    )
    (folder / "apache.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            port=port,
            modules=MODULES,
            user=user,
            venv=folder / "venv",
            aliases=aliases,
        )
    )
    log = folder / "error.log"
    log.write_text("")
    environment = {
        "WSGI_TEST_URL": broker.url("fastmsg", heartbeat_timeout_threshold=BEAT),
        "WSGI_TEST_TOPIC": topic,
    }
    with running(
        ["/usr/sbin/apache2", "-f", folder / "apache.conf", "-D", "FOREGROUND"],
        environment,
        log,
        [f"/{group}" for group in GROUPS],
        port,
    ) as host:
        host.wait_for_log("resuming normal operations")
        yield host


def pid_of(answers):
    assert sorted(answer["interpreter"] for answer in answers) == GROUPS
    (pid,) = {answer["pid"] for answer in answers}
    return pid


def test_two_interpreters_share_connections_and_keep_them(fast, apache, broker):
    pid = pid_of(apache.ask("hello", 5))
    assert pid != apache.pid
    settled_connections(broker, pid)

    check_after_idle(apache, broker, lambda: {pid: connections_of(broker, pid)})

    assert apache.end(signal.SIGTERM) == 0
    wait_until(lambda: not connections_of(broker, pid), what="closed connections")
    assert "Traceback" not in apache.log()
    assert "Fatal Python error" not in apache.log()
    assert "killing" not in apache.log().lower()


@pytest.mark.timing
def test_the_first_call_after_idling_is_as_quick_as_a_warm_one(fast, apache, broker):
    pid = pid_of(apache.ask("hello", 5))

    check_quick(
        *check_after_idle(apache, broker, lambda: {pid: connections_of(broker, pid)})
    )
