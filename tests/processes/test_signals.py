"""Signals that come while the main thread waits in a call."""

import os
import signal
import time

import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint
from fix_scenes import Scene
from scenes import FUTEXES, POLLS, is_in


@pytest.mark.skipif(not POLLS, reason="system calls have unknown numbers here")
@pytest.mark.parametrize("leads", ["yes", "no"])
def test_ctrl_c_ends_a_call_at_once(peers, broker, fast, topic, leads):
    """Whether the thread that waits runs the core's loop, or another does."""
    peers.server(fast, TestEndpoint(), topic=topic)
    with Scene("interrupted", broker.url("fastmsg"), topic, leads) as it:
        main = it.expect("ready")
        sleeps_in = POLLS if leads == "yes" else FUTEXES
        wait_until(lambda: is_in(main, main, sleeps_in), what="the call")
        sent_at = time.monotonic()
        os.kill(main, signal.SIGINT)
        # Its clock is ours. The call would have gone on for a minute.
        interrupted_at = it.expect("result")
        assert it.end() == (0, "")
    assert interrupted_at - sent_at < 2


def test_a_signal_on_the_way_to_sleep_is_not_overslept(peers, broker, fast, topic):
    """It interrupts no system call then; somebody has to look for it."""
    peers.server(fast, TestEndpoint(), topic=topic)
    with Scene("alarms", broker.url("fastmsg"), topic, 500) as it:
        # The calls would have gone on for 8 seconds.
        assert it.expect("result") < 4
        assert it.end() == (0, "")
