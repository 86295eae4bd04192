"""The core in a Python without a GIL, if there is one: python3.13t, PATH or pyenv."""

from pathlib import Path

import pytest
from fix_pythons import succeed
from private_broker import free_port

SCENES = Path(__file__).with_name("free_threading_scenes.py")


@pytest.fixture
def play(built):
    """Play a scene in a process of its own."""

    def scene(name, *arguments):
        executable, path = built("3.13t")
        command = [executable, "-X", "faulthandler", SCENES, name, *arguments]
        assert succeed(command, PYTHONPATH=str(path)) == "done\n"

    return scene


def test_payloads_may_change_while_they_are_encoded(play):
    play("codec")


def test_declarations_may_change_while_they_are_read(play):
    play("declare")


def test_a_bus_may_be_closed_while_others_use_it(play):
    play("close", free_port())


def test_several_may_cancel_at_once(play):
    play("cancel", free_port())


def test_threads_call_at_once(play, broker):
    play("call", broker.port)


def test_several_may_settle_a_delivery_at_once(play, broker):
    play("settle", broker.port)
