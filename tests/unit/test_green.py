"""Stations: greenthreads wait for objects of the core.

Each test runs in a native thread of its own, with a hub of its own, in a
process that only seems to be patched. test_eventlet.py patches for real.
"""

import functools
import os
import threading
import time

import eventlet
import pytest

from oslo_fastmsg import _core, _green, _waiting


def green(test):
    """Run a test in a thread that has a hub."""

    @functools.wraps(test)
    def run(**fixtures):
        failures = []

        def body():
            try:
                eventlet.hubs.get_hub()
                test(**fixtures)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    return run


@pytest.fixture(autouse=True)
def patched(monkeypatch):
    monkeypatch.setattr(_green, "is_patched", lambda: True)


def set_from_a_thread(*flags):
    """Set flags as the core does, from a native thread, a moment later."""
    threading.Timer(0.02, lambda: [flag.set() for flag in flags]).start()


def is_idle(station):
    return not station._waiters and not station._ready and station._core.drain() == []


# --- who waits how --------------------------------------------------------


def test_without_patched_threads_nobody_is_green(monkeypatch):
    monkeypatch.undo()
    assert not _green.is_patched()
    eventlet.hubs.get_hub()
    assert _green.here() is None
    assert _green.hub_here() is None
    assert _green.original("threading") is threading


def test_a_thread_without_a_hub_stays_without():
    seen = []

    def look():
        seen.append(_green.here())
        seen.append(getattr(eventlet.hubs._threadlocal, "hub", None))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [None, None]


@green
def test_a_hub_has_one_station():
    station = _green.here()
    assert _green.here() is station
    assert eventlet.spawn(_green.here).wait() is station
    eventlet.hubs.use_hub()
    eventlet.hubs.get_hub()
    assert _green.here() not in (None, station)


@green
def test_a_thread_has_its_own_station():
    stations = []

    def look():
        eventlet.hubs.get_hub()
        stations.append(_green.here())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert stations[0] not in (None, _green.here())


@green
def test_the_hub_itself_waits_natively():
    seen = []
    hub = eventlet.hubs.get_hub()
    hub.schedule_call_global(0, lambda: seen.append(_green.here()))
    eventlet.sleep(0)
    assert seen == [None]


@green
def test_without_greenlets_nobody_is_green(monkeypatch):
    """As when the interpreter ends, and an object cleans up behind it."""

    def refuse():
        raise RuntimeError("greenlet is being finalized")

    task = _waiting.spawn(lambda: None, "x")
    monkeypatch.setattr(_green, "current", refuse)
    assert _green.here() is None
    _waiting.join(task)  # nobody runs it any more


@green
def test_a_child_leaves_the_parents_station_alone():
    station = _green.here()
    flag = _core.Flag()
    waiter = eventlet.spawn(station.wait, flag, flag.is_set, 20)
    eventlet.sleep(0)
    station.pid = 1  # as a child sees it
    flag.set()
    for _ in range(3):
        eventlet.sleep(0.01)
    assert not waiter.dead
    assert _green.here() is not station

    station.pid = os.getpid()
    assert waiter.wait() is True


# --- waiting --------------------------------------------------------------


@green
def test_a_wait_ends_when_the_flag_is_set_and_others_run_meanwhile():
    station = _green.here()
    ticks = []

    def tick():
        while True:
            ticks.append(1)
            eventlet.sleep(0.001)

    ticker = eventlet.spawn(tick)
    flag = _core.Flag()
    set_from_a_thread(flag)
    assert station.wait(flag, flag.is_set, 20)
    assert len(ticks) > 3
    ticker.kill()
    assert is_idle(station)


@green
def test_what_is_ready_is_not_waited_for():
    station = _green.here()
    flag = _core.Flag()
    flag.set()
    assert station.wait(flag, flag.is_set, 0)
    assert station.wait(flag, flag.is_set, None)
    assert is_idle(station)


@green
def test_a_wait_has_an_end():
    station = _green.here()
    flag = _core.Flag()
    start = time.monotonic()
    assert not station.wait(flag, flag.is_set, 0.05)
    assert time.monotonic() - start >= 0.05
    assert not station.wait(flag, flag.is_set, 0)
    assert is_idle(station)


@green
def test_a_wait_may_be_longer_than_a_timer(monkeypatch):
    monkeypatch.setattr(_green, "_LONGEST_TIMER_S", 0.01)
    flag = _core.Flag()
    start = time.monotonic()
    assert not _green.here().wait(flag, flag.is_set, 0.1)
    assert time.monotonic() - start >= 0.1
    set_from_a_thread(flag)
    assert _green.here().wait(flag, flag.is_set, 1e9)


@green
def test_a_wait_takes_its_timer_along():
    """Or a busy service would have one for each call of the last minute."""
    hub = eventlet.hubs.get_hub()
    flag = _core.Flag()
    set_from_a_thread(flag)
    assert _green.here().wait(flag, flag.is_set, 60)
    assert all(timer.called for _, timer in hub.timers + hub.next_timers)


@pytest.mark.timing
@green
def test_a_greenthread_wakes_within_two_milliseconds():
    """Counted from the sign to its return, with the hub asleep."""
    station = _green.here()
    delays = []

    def give(flag, times):
        time.sleep(0.005)
        times.append(time.monotonic())
        flag.set()

    for _ in range(100):
        flag = _core.Flag()
        times = []
        thread = threading.Thread(target=give, args=(flag, times))
        thread.start()
        assert station.wait(flag, flag.is_set, 20)
        delays.append(time.monotonic() - times[0])
        thread.join()
    delays.sort()
    # What is slower is the scheduler of a busy machine.
    assert delays[90] < 0.002, delays[80:]


@green
def test_being_woken_for_nothing_does_not_end_a_wait():
    station = _green.here()
    flag = _core.Flag()
    answers = iter((False, False, False, True))
    waiter = eventlet.spawn(station.wait, flag, lambda: next(answers), 20)
    eventlet.sleep(0)
    hub = eventlet.hubs.get_hub()
    for _ in range(2):
        hub.schedule_call_global(0, waiter.switch)  # another's left-over timer
        eventlet.sleep(0)
    assert waiter.wait() is True
    assert next(answers, None) is None


@green
@pytest.mark.parametrize("limit", [None, 20.0])
def test_who_is_killed_leaves_nothing_behind(limit):
    station = _green.here()
    flags = [_core.Flag() for _ in range(3)]
    waiters = [eventlet.spawn(station.wait, flag, flag.is_set, limit) for flag in flags]
    eventlet.sleep(0)
    assert len(station._waiters) == 3
    waiters[1].kill()
    assert len(station._waiters) == 2
    for flag in flags:
        flag.set()
    assert [waiters[0].wait(), waiters[2].wait()] == [True, True]
    assert is_idle(station)


@green
def test_a_timeout_of_eventlets_ends_a_wait():
    station = _green.here()
    flag = _core.Flag()
    with pytest.raises(eventlet.Timeout), eventlet.Timeout(0.02):
        station.wait(flag, flag.is_set, None)
    flag.set()
    assert is_idle(station)


@green
def test_what_the_question_raises_ends_the_wait():
    station = _green.here()
    flag = _core.Flag()
    with pytest.raises(ZeroDivisionError):
        station.wait(flag, lambda: 1 / 0, None)
    answers = iter((0, 0))
    set_from_a_thread(flag)
    with pytest.raises(StopIteration):
        station.wait(flag, lambda: next(answers), None)
    assert is_idle(station)


@green
def test_a_greenlet_that_dies_does_not_take_the_others_along(capsys):
    station = _green.here()
    flags = [_core.Flag() for _ in range(3)]
    done = []

    def die():
        station.wait(flags[1], flags[1].is_set, 20)
        raise ValueError("dies in the hub")

    def live(flag):
        done.append(station.wait(flag, flag.is_set, 20))

    # Unlike spawn(), spawn_n() lets the hub have what a greenlet dies of.
    for function, args in ((live, flags[:1]), (die, ()), (live, flags[2:])):
        eventlet.spawn_n(function, *args)
    eventlet.sleep(0)
    for flag in flags:
        flag.set()
    with eventlet.Timeout(20):
        while len(done) < 2:
            eventlet.sleep(0.001)
    assert done == [True, True]
    assert "dies in the hub" in capsys.readouterr().err

    again = _core.Flag()
    set_from_a_thread(again)
    assert station.wait(again, again.is_set, 20)


@green
def test_an_exit_by_way_of_the_hub_loses_nobody():
    station = _green.here()
    flags = [_core.Flag() for _ in range(3)]
    done = []

    def leave():
        station.wait(flags[0], flags[0].is_set, 20)
        raise KeyboardInterrupt

    def live(flag):
        done.append(station.wait(flag, flag.is_set, 20))

    eventlet.spawn_n(leave)
    for flag in flags[1:]:
        eventlet.spawn_n(live, flag)
    eventlet.sleep(0)
    for flag in flags:
        flag.set()
    with pytest.raises(KeyboardInterrupt):
        eventlet.sleep(20)
    eventlet.sleep(0.01)
    assert done == [True, True]
    assert is_idle(station)


@green
def test_many_who_are_ready_take_turns_with_others():
    station = _green.here()
    flag = _core.Flag()
    order = []

    def work(number):
        station.wait(flag, flag.is_set, 20)
        end_at = time.monotonic() + 0.001
        while time.monotonic() < end_at:
            pass
        order.append(number)

    def tick():
        while len(order) < 50:
            eventlet.sleep(0.001)
            order.append("tick")

    workers = [eventlet.spawn(work, i) for i in range(50)]
    ticker = eventlet.spawn(tick)
    eventlet.sleep(0)
    flag.set()
    for worker in workers:
        worker.wait()
    ticker.kill()
    assert order.index("tick") < 20
    assert order.count("tick") > 5
    assert is_idle(station)


@green
def test_a_pause_lets_others_run():
    order = []
    eventlet.spawn_n(order.append, "other")
    _green.here().pause()
    order.append("after")
    assert order == ["other", "after"]


class Plenty:
    """A consumer that has always something."""

    def take(self, limit, timeout):
        return [limit]


@green
def test_a_flood_of_requests_leaves_others_their_turn(monkeypatch):
    served = []

    def work():
        served.append(1)

    for _ in range(3):
        (limit,) = _waiting.take(Plenty(), 7, None)
        assert limit == 7
        eventlet.spawn_n(work)
    assert len(served) == 2

    monkeypatch.setattr(_core, "next_event", lambda timeout: (10, "text"))
    assert _waiting.next_event() == (10, "text")
    assert len(served) == 3


# --- what a native thread does --------------------------------------------


@green
def test_what_sleeps_runs_in_a_thread_that_ends():
    station = _green.here()
    ticks = []
    before = threading.active_count()
    ticker = eventlet.spawn(lambda: [ticks.append(eventlet.sleep(0)) for _ in range(9)])

    def sleep(seconds, answer):
        time.sleep(seconds)
        return threading.get_ident(), answer

    ident, answer = station.run(sleep, 0.05, answer=42)
    assert answer == 42
    assert ident != threading.get_ident()
    assert len(ticks) == 9
    ticker.wait()
    assert threading.active_count() == before
    assert is_idle(station)


@green
def test_what_a_thread_raises_its_caller_gets():
    with pytest.raises(ValueError, match="invalid literal"):
        _green.here().run(int, "x")


@green
def test_who_is_killed_does_not_wait_for_his_thread():
    station = _green.here()
    gate = threading.Event()
    waiter = eventlet.spawn(station.run, gate.wait, 20)
    eventlet.sleep(0.01)
    waiter.kill()
    assert is_idle(station)
    gate.set()


@green
def test_without_threads_it_is_done_here(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_green.original("threading").Thread, "start", refuse)
    assert _green.here().run(threading.get_ident) == threading.get_ident()


# --- signals and tasks ----------------------------------------------------


@green
def test_a_signal_lets_others_run():
    signal = _waiting.Signal()
    eventlet.spawn_n(signal.set)
    assert signal.wait()
    assert not _waiting.Signal().wait(0.01)


@green
def test_a_signal_is_for_native_threads_and_greenthreads():
    signal = _waiting.Signal()
    native = []
    thread = threading.Thread(target=lambda: native.append(signal.wait(20)))
    thread.start()
    waiter = eventlet.spawn(signal.wait, 20)
    eventlet.sleep(0)
    signal.set()
    thread.join()
    assert waiter.wait()
    assert native == [True]


@green
def test_a_task_is_a_greenthread_of_the_callers_hub():
    seen = []
    task = _waiting.spawn(
        lambda: seen.append((threading.get_ident(), _green.current())), "x"
    )
    assert seen == []  # it starts without a switch
    _waiting.join(task)
    assert seen[0][0] == threading.get_ident()
    assert seen[0][1] is not _green.current()


@green
def test_a_join_waits_for_others_only():
    order = []

    def join_myself():
        _waiting.join(task)
        order.append("myself")

    task = _waiting.spawn(join_myself, "x")
    # The hub cannot wait for those whom it runs.
    sleeper = _waiting.spawn(lambda: eventlet.sleep(0.02), "y")
    hub = eventlet.hubs.get_hub()
    hub.schedule_call_global(0, lambda: order.append(_waiting.join(sleeper)))
    _waiting.join(task, 20)
    _waiting.join(sleeper)
    assert sorted(map(str, order)) == ["None", "myself"]


@green
def test_a_join_may_have_a_limit():
    task = _waiting.spawn(lambda: eventlet.sleep(20), "x")
    start = time.monotonic()
    _waiting.join(task, 0.03)
    assert 0.03 <= time.monotonic() - start < 10
    task._greenlet.kill()
    _waiting.join(task)


@green
def test_a_native_thread_joins_a_greenthread():
    task = _waiting.spawn(lambda: eventlet.sleep(0.05), "x")
    ended = []
    thread = threading.Thread(
        target=lambda: (_waiting.join(task), ended.append(task._ended.is_set()))
    )
    thread.start()
    while not ended:
        eventlet.sleep(0.01)
    thread.join()
    assert ended == [True]


@green
def test_nobody_joins_what_runs_in_the_parent():
    task = _waiting.spawn(lambda: eventlet.sleep(20), "x")
    task._pid = 1
    _waiting.join(task)
    task._greenlet.kill()


def test_a_native_thread_has_independent_tasks_in_native_threads():
    """Or they would end with it, since nobody would run its hub."""
    gate = threading.Event()
    seen = []

    def work():
        seen.append(threading.get_ident())
        gate.wait(20)

    tasks = []
    thread = threading.Thread(
        target=lambda: tasks.append(_waiting.spawn(work, "x", is_independent=True))
    )
    thread.start()
    thread.join()

    @green
    def join():
        _waiting.join(tasks[0], 0.01)
        assert not tasks[0]._ended.is_set()
        gate.set()
        _waiting.join(tasks[0])

    join()
    assert len(seen) == 1
    assert tasks[0]._ended.is_set()


@green
def test_a_thread_with_a_hub_has_independent_tasks_in_it():
    seen = []
    task = _waiting.spawn(
        lambda: seen.append(threading.get_ident()), "x", is_independent=True
    )
    _waiting.join(task)
    assert seen == [threading.get_ident()]


# --- events ---------------------------------------------------------------


@green
def test_events_end_when_they_are_stopped():
    _core.resume_events()  # those of another test may have ended
    listener = eventlet.spawn(_waiting.next_event)
    eventlet.sleep(0.01)
    while listener.dead:  # it has got an event of another test
        assert listener.wait() is not None
        listener = eventlet.spawn(_waiting.next_event)
        eventlet.sleep(0.01)
    _core.stop_events()
    try:
        assert listener.wait() is None
    finally:
        _core.resume_events()
    assert is_idle(_green.here())
