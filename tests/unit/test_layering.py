"""Each layer of the core includes itself and lower ones, and nothing else."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LAYERS = ["base", "wire", "io", "py"]

# Who alone opens the door to what lies outside.
DOORS = {
    "amqp.h": {"io/amqp.c"},
    "amqp_framing.h": {"io/amqp.c"},
    "pthread.h": {"base/sync.h"},
    "linux/futex.h": {"base/sync.c"},
}
DOOR_FOLDERS = {
    "openssl": {"io/tls.c"},
    "rabbitmq-c": {"io/amqp.c"},
    "msgpack": {"wire/msgpack.h", "wire/msgpack.c", "py/unpack.c"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

FILES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*.[ch]"))


def includes(name: str) -> tuple[list[str], list[str]]:
    """Give what a file includes: of the project, and of the system."""
    found = INCLUDE.findall((CSRC / name).read_text())
    own = [target for mark, target in found if mark == '"']
    others = [target for mark, target in found if mark == "<"]
    return own, others


def violations(name: str, own: list[str], others: list[str]) -> list[str]:
    layer = LAYERS.index(name.split("/")[0])
    allowed = LAYERS[: layer + 1]
    found = []
    for target in own:
        if target.split("/")[0] not in allowed:
            found.append(f"{name} includes {target} of a layer above it")
        elif not (CSRC / target).is_file():
            found.append(f"{name} includes {target}, which is not under csrc/")
        if not target.endswith(".h"):
            found.append(f"{name} includes {target}, which is no header")
    for target in others:
        doors = DOORS.get(target) or DOOR_FOLDERS.get(target.split("/")[0])
        if doors is not None and name not in doors:
            found.append(f"{name} includes <{target}>, as only {doors} may")
        if target == "Python.h" and layer < LAYERS.index("py"):
            found.append(f"{name} includes <Python.h> below csrc/py")
    return found


def test_every_layer_has_files() -> None:
    assert {name.split("/")[0] for name in FILES} == set(LAYERS)


@pytest.mark.parametrize("name", FILES)
def test_file_includes_its_own_and_lower_layers_only(name: str) -> None:
    assert violations(name, *includes(name)) == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".c")])
def test_source_includes_its_own_header_first(name: str) -> None:
    own = name[: -len("c")] + "h"
    if not (CSRC / own).exists():
        # A type of csrc/py that nobody else refers to needs no header.
        assert name.startswith("py/")
        return
    first = INCLUDE.search((CSRC / name).read_text())
    assert first is not None
    assert first.group(2) == own


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".h")])
def test_header_is_guarded_by_its_name(name: str) -> None:
    guard = "FM_" + re.sub(r"\W", "_", name).upper()
    text = (CSRC / name).read_text()
    assert f"#ifndef {guard}\n#define {guard}\n" in text
    assert text.endswith("#endif\n")


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("base/buf.c", ["wire/json.h"], []),
        ("wire/json.c", ["io/loop.h"], []),
        ("io/loop.c", ["py/module.h"], []),
        ("io/loop.c", ["loop.h"], []),
        ("io/loop.c", ["io/no_such_file.h"], []),
        ("io/loop.c", ["io/socket.c"], []),
        ("io/loop.c", [], ["Python.h"]),
        ("io/loop.c", [], ["amqp.h"]),
        ("io/loop.c", [], ["openssl/ssl.h"]),
        ("py/module.c", [], ["rabbitmq-c/amqp.h"]),
        ("wire/json.c", [], ["pthread.h"]),
        ("py/pack.c", [], ["msgpack/pack.h"]),
    ],
)
def test_a_wrong_include_is_found(name: str, own: list[str], others: list[str]) -> None:
    assert len(violations(name, own, others)) == 1
