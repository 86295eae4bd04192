"""Several interpreters in one process: each has its own module, all one core.

The interpreters of 3.12 and later can have a GIL each. What versions there are on
this machine is looked up in PATH and among those of pyenv; the core is built for
each of them.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest
from fix_peer import TestEndpoint
from fix_pythons import OWN, succeed
from private_broker import free_port

SCENES = Path(__file__).with_name("interpreters_scenes.py")
OTHERS = [each for each in ("3.12", "3.13") if each != OWN]


@pytest.fixture
def play(built):
    """Play a scene in a process of an interpreter's."""

    def scene(version, name, kind, *arguments):
        executable, path = built(version)
        said = succeed(
            [executable, SCENES, name, kind, *arguments], PYTHONPATH=str(path)
        )
        assert said == "done\n"

    return scene


def has_them():
    """Tell whether this interpreter can make another one; some builds cannot."""
    return any(map(importlib.util.find_spec, ("_interpreters", "_xxsubinterpreters")))


kinds = pytest.mark.parametrize(
    ("version", "kind"),
    [
        (OWN, "legacy"),
        *([(OWN, "isolated")] if sys.version_info >= (3, 12) else []),
        *[(other, kind) for other in OTHERS for kind in ("legacy", "isolated")],
    ],
)
pytestmark = pytest.mark.skipif(
    not has_them(), reason=f"{sysconfig.get_platform()}: no module of interpreters"
)


@kinds
def test_all_interpreters_encode_and_decode_at_once(play, version, kind):
    play(version, "codec", kind, 2000)


@kinds
def test_all_interpreters_call_at_once(play, fast, broker, version, kind):
    play(version, "call", kind, broker.port)


@kinds
def test_counts_and_health_are_of_the_process(play, fast, broker, version, kind):
    play(version, "look", kind, broker.port)


def test_services_in_other_interpreters_call_beside_ours(
    play, fast, peers, broker, topic
):
    peers.server(fast, TestEndpoint(), topic=topic)

    play(OWN, "service", "legacy", broker.url("fastmsg"), topic)


# In isolated ones no thread can be a daemon, and the one that logs is.
@pytest.mark.parametrize("version", [OWN, *OTHERS])
def test_an_interpreter_that_ends_its_log_leaves_the_others_theirs(play, fast, version):
    play(version, "events", "legacy", free_port())
