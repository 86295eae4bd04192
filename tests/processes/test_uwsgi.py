"""uWSGI: it forks without telling Python, and keeps the GIL while it idles.

Without ``enable-threads`` no Python thread runs but during a request, and
without ``lazy-apps`` the application is loaded in the master, which forks then.
The newest uWSGI always has threads; that of Debian 12 (2.0.21) has the choice.
"""

import itertools
import signal

import pytest
from fix_objects import wait_until
from fix_processes import connections_of, settled_connections
from fix_wsgi import APPLICATION, BEAT, Meeting, check_after_idle, check_quick, running
from private_broker import free_port

pytestmark = pytest.mark.wsgi

WORKERS = 2
# Which uWSGI, and what it says of it.
THREADS = {
    "no-threads": ("debian", [], "Python threads support is disabled"),
    "threads": ("debian", ["--enable-threads"], "threads support enabled"),
    "newest": ("pypi", ["--enable-threads"], "threads support enabled"),
}
# Who loads the application, and when its transport is used first.
LOADING = {
    "lazy": (["--lazy-apps"], False),
    "preforking": ([], False),
    "preforking-in-use": ([], True),
}


every_way = pytest.mark.parametrize(
    "uwsgi", list(itertools.product(THREADS, LOADING)), indirect=True, ids="-".join
)
two_ways = pytest.mark.parametrize(
    "uwsgi",
    [("no-threads", "preforking-in-use"), ("newest", "lazy")],
    indirect=True,
    ids="-".join,
)


@pytest.fixture
def uwsgi(request, broker, peers, topic, wsgi_venv, tmp_path):
    """A master with two workers, ready."""
    threads, loading = request.param
    binary, thread_options, said = THREADS[threads]
    options, is_used = LOADING[loading]
    peers.server("fast", Meeting(WORKERS), topic=topic, threads=2 * WORKERS)
    port = free_port()
    binaries = {"debian": "uwsgi_python3", "pypi": wsgi_venv / "bin/uwsgi"}
    command = [binaries[binary], "--http-socket", f"127.0.0.1:{port}"]
    command += ["--home", wsgi_venv, "--wsgi-file", APPLICATION, "--need-app"]
    command += ["--master", "--workers", WORKERS, "--no-orphans"]
    environment = {
        "WSGI_TEST_URL": broker.url("fastmsg", heartbeat_timeout_threshold=BEAT),
        "WSGI_TEST_TOPIC": topic,
    }
    if is_used:
        environment["WSGI_TEST_CALLS_AT_IMPORT"] = "1"
    with running(
        [*command, *thread_options, *options],
        environment,
        tmp_path / "uwsgi.log",
        ["/"] * WORKERS,
        port,
    ) as host:
        host.wait_for_log(f"spawned uWSGI worker {WORKERS} ")
        assert said in host.log()
        host.is_used_by_master = is_used
        yield host


def pids_of(answers):
    pids = sorted(answer["pid"] for answer in answers)
    assert len(set(pids)) == WORKERS
    return pids


@every_way
def test_workers_keep_their_connections_while_they_idle(fast, uwsgi, broker):
    pids = pids_of(uwsgi.ask("hello", 5))
    if uwsgi.is_used_by_master:
        pids.append(uwsgi.pid)
    for pid in pids:
        settled_connections(broker, pid)

    check_after_idle(
        uwsgi, broker, lambda: {pid: connections_of(broker, pid) for pid in pids}
    )

    assert uwsgi.end(signal.SIGINT) == 0
    wait_until(
        lambda: not any(connections_of(broker, pid) for pid in pids),
        what="closed connections",
    )
    assert "Traceback" not in uwsgi.log()


@pytest.mark.timing
@two_ways
def test_the_first_call_after_idling_is_as_quick_as_a_warm_one(fast, uwsgi, broker):
    pids = pids_of(uwsgi.ask("hello", 5))

    check_quick(
        *check_after_idle(
            uwsgi, broker, lambda: {pid: connections_of(broker, pid) for pid in pids}
        )
    )
