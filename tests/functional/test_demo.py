"""The demo's scenes, one by one and as its user runs them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo" / "run.py"


def load_demo():
    spec = importlib.util.spec_from_file_location("demo_run", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


demo = load_demo()


# A stock server is among those whom the demo calls.
STOCK_SERVES = pytest.mark.envelopes("json", "auto")


@STOCK_SERVES
@pytest.mark.parametrize("scene", demo.SCENES, ids=lambda scene: scene.__name__)
def test_scene_plays_on_a_private_broker(broker, scene):
    stage = demo.Stage(broker, "fastmsg", is_quick=True)

    assert demo.play(scene, stage) == "ok"


def run_demo(url):
    return subprocess.run(
        [sys.executable, str(DEMO), "--quick"],
        env={**os.environ, "TRANSPORT_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )


@STOCK_SERVES
def test_demo_leaves_nothing_on_a_broker_of_the_user(broker):
    done = run_demo(broker.url())

    assert done.returncode == 0, done.stdout
    # Reply queues are the driver's: they expire by themselves.
    names = [queue["name"] for queue in broker.queues()]
    assert [name for name in names if not name.startswith("reply_")] == []
    assert broker.exchanges() == []


def test_demo_refuses_a_broker_whose_queues_are_in_use(broker):
    stage = demo.Stage(broker, "fastmsg", is_quick=True)
    stage.serve("somebody", "server.py")
    try:
        done = run_demo(broker.url())
    finally:
        stage.clear()

    assert done.returncode == 2
    assert "Somebody else uses test" in done.stdout
