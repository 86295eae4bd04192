"""Several interpreters in one process: each has its own module, all one core.

The interpreters of 3.12 and later can have a GIL each. What versions there are on
this machine is looked up in PATH and among those of pyenv; the core is built for
each of them.
"""

import functools
import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fix_peer import TestEndpoint
from private_broker import free_port

ROOT = Path(__file__).resolve().parents[2]
SCENES = Path(__file__).with_name("interpreters_scenes.py")
OWN = f"3.{sys.version_info.minor}"
OTHERS = [each for each in ("3.12", "3.13") if each != OWN]


def succeed(command, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


ASK = """
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
print(sys.executable if os.path.exists(header) else "", sys.version_info.minor)
"""

WHERE = """
import sysconfig
print(sysconfig.get_path("include"), sysconfig.get_config_var("EXT_SUFFIX"))
"""


@functools.cache
def interpreter(version):
    """Find one with its headers: the path of its executable, or why there is none."""
    name = f"python{version}"
    found = [shutil.which(name)]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True)
        found += sorted(glob.glob(f"{root.stdout.strip()}/versions/*/bin/{name}"))
    for path in filter(None, found):
        # A shim of pyenv's may only say that it is not active.
        asked = subprocess.run([path, "-c", ASK], capture_output=True, text=True)
        executable, _, minor = asked.stdout.strip().rpartition(" ")
        if asked.returncode == 0 and executable and f"3.{minor}" == version:
            return executable, ""
    return None, f"no {name} with its headers, neither in PATH nor in pyenv"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Give a function: the interpreter of a version, and where its package is."""

    @functools.cache
    def build(version):
        if version == OWN:
            return sys.executable, ROOT
        executable, why = interpreter(version)
        if executable is None:
            pytest.skip(why)
        package = tmp_path_factory.mktemp(f"python{version}") / "oslo_fastmsg"
        package.mkdir()
        for path in (ROOT / "oslo_fastmsg").glob("*.py"):
            shutil.copy(path, package)
        # By hand, for it may have no setuptools, and those here may be too old.
        include, suffix = succeed([executable, "-c", WHERE]).split()
        libraries = ["librabbitmq", "libssl", "libcrypto"]
        flags = succeed(["pkg-config", "--cflags", "--libs", *libraries]).split()
        command = ["gcc", "-shared", "-fPIC", "-pthread", "-std=c11", "-O0", "-Werror"]
        command += ["-D_GNU_SOURCE", "-fvisibility=hidden", f"-I{include}", "-Icsrc"]
        sources = sorted(ROOT.glob("csrc/*/*.c"))
        succeed([*command, *sources, "-o", package / f"_core{suffix}", *flags])
        return executable, package.parent

    return build


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
        *([(OWN, "isolated")] if OWN >= "3.12" else []),
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


def test_services_in_other_interpreters_call_beside_ours(
    play, fast, peers, broker, topic
):
    peers.server(fast, TestEndpoint(), topic=topic)

    play(OWN, "service", "legacy", broker.url("fastmsg"), topic)


# In isolated ones no thread can be a daemon, and the one that logs is.
@pytest.mark.parametrize("version", [OWN, *OTHERS])
def test_an_interpreter_that_ends_its_log_leaves_the_others_theirs(play, fast, version):
    play(version, "events", "legacy", free_port())
