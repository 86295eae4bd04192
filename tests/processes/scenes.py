"""What the tests of this folder have done by processes of their own.

``python scenes.py SCENE URL TOPIC [ARGUMENT...]``, where the test serves TOPIC.
Questions and answers are lines of JSON. Nothing but oslo.messaging and this
driver is needed, so that any interpreter that has them will do.
"""

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg

CALL_S = 30


# --- with the test --------------------------------------------------------


def say(**answer):
    # One write: children say something, too.
    os.write(1, (json.dumps(answer) + "\n").encode())


def hear():
    """Wait for a line from the test."""
    return sys.stdin.readline().strip()


# --- helpers --------------------------------------------------------------


class Endpoint:
    def echo(self, ctxt, arg=None):
        return arg


class Notes:
    def __init__(self):
        self.count = 0

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.count += 1


def rpc_transport(url):
    return oslo_messaging.get_rpc_transport(cfg.CONF, url=url)


def client_of(transport, topic, timeout=CALL_S):
    # 14.0 as upstream published it has the class alone.
    make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
    return make(transport, oslo_messaging.Target(topic=topic), timeout=timeout)


def start_server(transport, topic):
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic=topic, server=f"s{os.getpid()}"),
        [Endpoint()],
        executor="threading",
    )
    server.start()
    return server


def start_listener(url, topic, notes):
    listener = oslo_messaging.get_notification_listener(
        oslo_messaging.get_notification_transport(cfg.CONF, url=url),
        [oslo_messaging.Target(topic=topic)],
        [notes],
        executor="threading",
    )
    listener.start()
    return listener


def notifier_of(url, topic):
    return oslo_messaging.Notifier(
        oslo_messaging.get_notification_transport(cfg.CONF, url=url),
        "publisher",
        driver="messagingv2",
        topics=[topic],
    )


class Traffic:
    """Threads that do something over and over."""

    def __init__(self):
        self.errors = []
        self._is_over = False
        self._threads = []
        self._counts = []

    def add(self, action):
        number = len(self._counts)
        self._counts.append(0)

        def work():
            try:
                while not self._is_over:
                    action(self._counts[number])
                    self._counts[number] += 1
            except Exception as error:
                self.errors.append(repr(error))

        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def wait_for_more(self, count):
        """Wait until each thread has done so much more."""
        goals = [before + count for before in self._counts]
        end_at = time.monotonic() + CALL_S
        while any(done < goal for done, goal in zip(self._counts, goals, strict=True)):
            assert not self.errors, self.errors
            assert time.monotonic() < end_at, (self._counts, goals)
            time.sleep(0.005)

    def end(self):
        self._is_over = True
        for thread in self._threads:
            thread.join(CALL_S)
            assert not thread.is_alive()
        return sum(self._counts)


def sockets(pid="self"):
    """Name the sockets that a process has open, by their inodes."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # of the listing itself
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("socket:"):
                found.add(target)
    return found


def connects(client):
    """Tell how often each of the two connections was made."""
    stats = client.transport._driver._share.core.stats()
    return [stats[role]["connects"] for role in ("publishing", "consuming")]


def checked_call(client):
    def call(number):
        assert client.call({}, "echo", arg=number) == number

    return call


# --- forks ----------------------------------------------------------------


def fork_by_os(function):
    pid = os.fork()
    if pid == 0:
        run_and_leave(function)
    return pid


def fork_by_multiprocessing(function):
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process.pid


def fork_in_c(function):
    """As C that knows of Python does: PyOS_AfterFork_Child() in the child.

    It is called in fork() itself: between that and the next line another
    thread's wish for the GIL could stop the child for ever.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        run_and_leave(function)
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def fork_in_c_unseen(function):
    """As C that knows nothing of Python does; Python goes on in the child.

    Which works as long as no other thread wants the GIL.
    """
    pid = ctypes.CDLL(None).fork()
    if pid == 0:
        run_and_leave(function)
    return pid


def run_and_leave(function):
    status = 1
    try:
        function()
        status = 0
    except BaseException as error:
        print(f"in a child: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


FORKS = {
    "os": fork_by_os,
    "multiprocessing": fork_by_multiprocessing,
    "c": fork_in_c,
    "c_unseen": fork_in_c_unseen,
}


def at_fork_in_child(function):
    """Have C run a function in each child, inside of fork()."""
    nothing = ctypes.c_void_p(None)
    ctypes.CDLL(None).__getattr__("__register_atfork")(
        nothing, nothing, function, nothing
    )


def wait_for(pid):
    """Wait for a child's end; give the exit status, or "hangs"."""
    watch = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    is_over = poll.poll(CALL_S * 1000)
    os.close(watch)
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if is_over else "hangs"


def fork_and_check(fork, client, shown):
    """Have a child call; give what it saw.

    :param shown: keep it until the test has looked at the broker.
    """
    parents = sockets()
    report_in, report_out = os.pipe()
    release_in, release_out = os.pipe()

    def child():
        os.close(release_out)
        inherited = sockets() & parents
        for number in range(3):
            assert client.call({}, "echo", arg=number) == number
        report = {
            "pid": os.getpid(),
            "inherited": sorted(inherited),
            "held": sorted(sockets() & parents),
            "own": len(sockets() - parents),
            "connects": connects(client),
        }
        os.write(report_out, json.dumps(report).encode())
        os.read(release_in, 1)

    pid = fork(child)
    os.close(report_out)
    os.close(release_in)
    poll = select.poll()
    poll.register(report_in, select.POLLIN)
    poll.poll(CALL_S * 1000)
    try:
        text = os.read(report_in, 10000) if poll.poll(0) else b""
        if shown and text:
            say(child=json.loads(text))
            hear()
    finally:
        os.close(release_out)  # it may leave
        os.close(report_in)
    status = wait_for(pid)
    assert status == 0, f"child {pid}: status {status}, said {text!r}"
    report = json.loads(text)
    assert report["pid"] == pid
    return report


def start_all_kinds(url, topic, client):
    """Start threads that call, and listeners that are called back."""
    traffic = Traffic()
    # Nobody else's: other processes do the same, and end.
    own_topic = f"{topic}-{os.getpid()}"
    server = start_server(rpc_transport(url), own_topic)
    notes = Notes()
    listener = start_listener(url, f"{topic}-notes", notes)
    notifier = notifier_of(url, f"{topic}-notes")
    own = client_of(client.transport, own_topic)
    traffic.add(checked_call(client))
    traffic.add(checked_call(client))
    traffic.add(checked_call(own))
    traffic.add(lambda number: notifier.info({}, "event", {"number": number}))
    traffic.wait_for_more(5)
    return traffic, notes, [server, listener]


def forks(url, topic, how, when, count):
    """Fork in one of several ways, before or in the midst of all that goes on.

    :param when: ``before`` the first use, ``idle``: after a call, with
        listeners, or ``amid`` the traffic of other threads.
    """
    client = client_of(rpc_transport(url), topic)
    traffic, notes, listeners = Traffic(), Notes(), []
    if when == "idle":
        checked_call(client)(0)
        listeners = [
            start_server(rpc_transport(url), f"{topic}-own"),
            start_listener(url, f"{topic}-notes", notes),
        ]
    elif when == "amid":
        traffic, notes, listeners = start_all_kinds(url, topic, client)
    if how == "c":
        at_fork_in_child(ctypes.pythonapi.PyOS_AfterFork_Child)
    say(ready=os.getpid())
    hear()
    reports = []
    for number in range(int(count)):
        if when == "amid":
            traffic.wait_for_more(1)
        reports.append(fork_and_check(FORKS[how], client, number < 2))
    checked_call(client)(0)
    if when == "amid":
        traffic.wait_for_more(5)
    say(over=True)  # the parent's connections can be looked at
    hear()
    done = traffic.end()
    result = {"connects": connects(client), "errors": traffic.errors, "done": done}
    for each in listeners:
        each.stop()
        each.wait()
    say(result={**result, "notes": notes.count, "children": reports})


def children_in_c(url, topic, count):
    """Fork as C does for itself: without the GIL, the child runs no Python.

    The children stop in fork(), after the driver's own handlers, and the
    parent looks at what they hold.
    """
    client = client_of(rpc_transport(url), topic)
    traffic, notes, _ = start_all_kinds(url, topic, client)
    libc = ctypes.CDLL(None)
    at_fork_in_child(libc.pause)
    say(ready=os.getpid())
    hear()
    held = []
    for _ in range(int(count)):
        traffic.wait_for_more(1)
        pid = libc.fork()
        # In pause(): its handlers are done.
        end_at = time.monotonic() + CALL_S
        while not is_in(pid, pid, PAUSES):
            assert time.monotonic() < end_at
            time.sleep(0.001)
        held += sorted(sockets(pid) & sockets())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    traffic.wait_for_more(5)
    say(over=True)
    hear()
    done = traffic.end()
    result = {"connects": connects(client), "errors": traffic.errors, "done": done}
    say(result={**result, "held": held, "notes": notes.count})
    os._exit(0)


def connecting(url, topic, far_port):
    """Fork while a connection is being made, by a server that says nothing."""
    before = sockets()
    client = client_of(rpc_transport(url), topic, timeout=CALL_S)
    thread = threading.Thread(target=lambda: swallow(client), daemon=True)
    thread.start()
    say(calling=True)
    hear()  # the test has accepted
    mine = sockets() - before
    in_end, out_end = os.pipe()

    def child():
        os.write(out_end, json.dumps(sorted(sockets() & mine)).encode())

    pid = fork_by_os(child)
    status = wait_for(pid)
    say(result={"status": status, "held": json.loads(os.read(in_end, 1000))})
    os._exit(0)


def swallow(client):
    """Call; at the end of the process that fails, as anything that waits does."""
    with contextlib.suppress(Exception):
        client.call({}, "echo")


def churn(url, topic, count):
    """Fork while other threads connect, log in and leave, over and over."""
    traffic = Traffic()
    bystander = client_of(rpc_transport(url), topic)
    checked_call(bystander)(0)

    def come_and_go(number):
        # A connection name of one's own would be shared, else.
        transport = rpc_transport(with_option(url, f"rabbit_retry_interval={number}"))
        checked_call(client_of(transport, topic))(number)
        transport.cleanup()

    numbers = itertools.count(2)
    for _ in range(2):
        traffic.add(lambda _: come_and_go(next(numbers)))
    traffic.add(checked_call(bystander))
    traffic.wait_for_more(1)
    reports = []
    for _ in range(int(count)):
        traffic.wait_for_more(1)
        reports.append(fork_and_check(fork_by_os, bystander, False))
    done = traffic.end()
    say(
        result={
            "connects": connects(bystander),
            "errors": traffic.errors,
            "done": done,
            "children": reports,
        }
    )


def with_option(url, option):
    return f"{url}{'&' if '?' in url else '?'}{option}"


# --- ends -----------------------------------------------------------------

AT_ONCE = 5


def busy(url, topic):
    """Have everything go on, in threads that nobody ends."""
    client = client_of(rpc_transport(url), topic)
    traffic, *_ = start_all_kinds(url, topic, client)
    for _ in range(3):
        start_waiting(client)
    traffic.add(lambda number: client.cast({}, "echo", arg=number))
    traffic.wait_for_more(2)
    return client


def start_waiting(client):
    """Start a daemon thread that calls, and is not answered."""
    nobody = client.prepare(server="nobody")
    thread = threading.Thread(target=swallow, args=(nobody,), daemon=True)
    thread.start()
    return thread


def end_idle(url, topic):
    checked_call(client_of(rpc_transport(url), topic))(1)
    sys.exit(7)


def end_by_exit(url, topic):
    busy(url, topic)
    sys.exit(7)


def end_by_return(url, topic):
    busy(url, topic)


def end_by_exception(url, topic):
    busy(url, topic)
    raise ValueError("on purpose")


def end_at_once(url, topic):
    busy(url, topic)
    os._exit(3)


def end_by_sigterm(url, topic):
    busy(url, topic)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CALL_S)


def end_by_sigint_in_a_call(url, topic):
    client = busy(url, topic)
    main = threading.get_native_id()

    def interrupt():
        while not is_in(os.getpid(), main, POLLS | FUTEXES):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    client.prepare(server="nobody").call({}, "echo")


def end_with_a_thread_that_counts(url, topic):
    """One thread is no daemon: its call is waited for."""
    client = busy(url, topic)

    def call():
        assert client.call({}, "last", seconds=0.2) == "done"
        say(answered=True)

    threading.Thread(target=call).start()


def end_without_a_broker(url, topic):
    """Calls, and a server that would begin, wait for a broker that is not there."""
    # What the process's first server imports, which must not happen at its end:
    # docs/operators.rst, "A process hangs as it ends".
    importlib.import_module("futurist")
    nowhere = url.replace(f":{url.rpartition(':')[2]}", ":1/")
    client = client_of(rpc_transport(nowhere), topic)
    for _ in range(2):
        threading.Thread(target=swallow, args=(client,), daemon=True).start()

    def serve():
        with contextlib.suppress(Exception):
            start_server(rpc_transport(nowhere), topic)

    threading.Thread(target=serve, daemon=True).start()
    core = client.transport._driver
    while core._share is None:
        time.sleep(0.005)
    sys.exit(7)


def ending(url, topic, name, count):
    """End so many times, each time in a child that has used nothing before.

    A few are under way at a time; what each says as it ends comes in one piece.
    Returns in the children: they end as a process does whose script ends.
    """
    children = {}

    def wait_for_the_first():
        pid = next(iter(children))
        say(status=wait_for(pid))
        with children.pop(pid) as words:
            words.seek(0)
            os.write(2, words.read())

    for _ in range(int(count)):
        if len(children) == AT_ONCE:
            wait_for_the_first()
        words = tempfile.TemporaryFile()
        pid = os.fork()
        if pid == 0:
            os.dup2(words.fileno(), 2)
            globals()[name](url, topic)
            return
        children[pid] = words
    while children:
        wait_for_the_first()
    say(result=True)


# --- signals --------------------------------------------------------------

# System calls of x86_64 and aarch64, by their numbers.
_MACHINE = os.uname().machine
POLLS = {"x86_64": {7, 271}, "aarch64": {73}}.get(_MACHINE, set())
FUTEXES = {"x86_64": {202}, "aarch64": {98}}.get(_MACHINE, set())
# pause(), where there is one.
PAUSES = {"x86_64": {34}, "aarch64": {73}}.get(_MACHINE, set())


def is_in(pid, thread, calls):
    """Tell whether a thread sleeps in one of these system calls."""
    text = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()[0]
    return text.lstrip("-").isdigit() and int(text) in calls


def make_lead(client):
    """Have the main thread lead while it waits.

    The I/O thread may have come first. It leaves when something has come, as here the
    replies of another one.
    """
    main = threading.main_thread().native_id
    while not is_in(os.getpid(), main, POLLS):
        checked_call(client)(0)


def interrupted(url, topic, leads):
    """Wait in a call until a signal, as the leader of the loop or not."""
    client = client_of(rpc_transport(url), topic, timeout=60)
    checked_call(client)(1)
    if leads == "no":
        # Somebody else came first, and leads.
        other = start_waiting(client)
        end_at = time.monotonic() + CALL_S
        while not is_in(os.getpid(), other.native_id, POLLS):
            assert time.monotonic() < end_at
            time.sleep(0.005)
    else:
        threading.Thread(target=make_lead, args=(client,), daemon=True).start()
    say(ready=os.getpid())
    try:
        client.prepare(server="nobody").call({}, "echo")
    except KeyboardInterrupt:
        at = time.monotonic()
    checked_call(client)(2)
    client.transport.cleanup()
    say(result=at)


# --- much work ------------------------------------------------------------


def resources():
    """Say what the process holds, when nothing is going on."""
    gc.collect()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGESIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sorted(
            (Path("/proc/self/task") / task / "comm").read_text().strip()
            for task in os.listdir("/proc/self/task")
        ),
        "objects": len(gc.get_objects()),
        # Of an interpreter built for debugging.
        "references": getattr(sys, "gettotalrefcount", int)(),
    }


def calm():
    """Let threads end that nobody waits for, such as idle workers."""
    end_at = time.monotonic() + 10
    before = -1
    while time.monotonic() < end_at:
        now = len(os.listdir("/proc/self/task"))
        if now == before:
            return
        before = now
        time.sleep(0.3)


def flat(url, topic, calls, deliveries, transports, servers):
    """Do a little, say what is held; do much, and say it again."""
    transport = rpc_transport(url)
    server = start_server(transport, topic)
    client = client_of(transport, topic)
    notes = Notes()
    listener = start_listener(url, f"{topic}-notes", notes)
    notifier = notifier_of(url, f"{topic}-notes")

    def work(calls, deliveries, transports, servers):
        def call():
            for number in range(calls // 4):
                client.call({}, "echo", arg=number)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        goal = notes.count + deliveries
        for number in range(deliveries):
            notifier.info({}, "event", {"number": number})
        end_at = time.monotonic() + CALL_S
        while notes.count < goal:
            assert time.monotonic() < end_at
            time.sleep(0.005)
        for number in range(transports):
            other = rpc_transport(url)
            checked_call(client_of(other, topic))(number)
            other.cleanup()
        for _ in range(servers):
            other = start_server(rpc_transport(url), f"{topic}-other")
            other.stop()
            other.wait()

    total = int(calls)
    # The ids that a listener remembers, 65536, belong to the warm-up.
    work(min(total, 80000), max(100, int(deliveries) // 10), 10, 10)
    calm()
    say(warm=resources())
    hear()
    work(total, int(deliveries), int(transports), int(servers))
    calm()
    say(done=resources())
    hear()
    for each in (server, listener):
        each.stop()
        each.wait()
    transport.cleanup()


class Alarm(Exception):
    pass


def alarms(url, topic, count):
    """Be interrupted soon after a call began, each time somewhat later.

    So some signals come while the thread is awake, on its way to sleep.
    """

    def ring(number, frame):
        raise Alarm

    client = client_of(rpc_transport(url), topic)
    nobody = client.prepare(server="nobody", timeout=8)
    checked_call(client)(1)
    signal.signal(signal.SIGALRM, ring)
    longest = 0
    for number in range(int(count)):
        delay = 1e-4 + number % 100 * 1e-5
        begin = time.monotonic()
        with contextlib.suppress(Alarm):
            signal.setitimer(signal.ITIMER_REAL, delay)
            nobody.call({}, "echo")
        longest = max(longest, time.monotonic() - begin)
    client.transport.cleanup()
    say(result=longest)


def main(name, url, topic, *arguments):
    logging.disable(logging.CRITICAL)
    cfg.CONF([], project="scenes", default_config_files=[], default_config_dirs=[])
    globals()[name](url, topic, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
