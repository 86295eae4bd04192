"""The source distribution, the build, and what both say when they cannot."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(600)


def run(
    command: list[object], *, cwd: Path = ROOT, **environment: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def succeed(command: list[object], **options: object) -> str:
    done = run(command, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- the source distribution ---


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "--quiet"]
    # Metadata elsewhere, too: one in the checkout would add what it lists.
    command += ["egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    succeed(command)
    (path,) = folder.glob("*.tar.gz")
    return path


def test_sdist_holds_what_the_checkout_holds(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    patterns = ["csrc/*/*.[ch]", "oslo_fastmsg/*.py*", "oslo_fastmsg/py.typed"]
    patterns += ["tests/**/*.py", "tests/**/*.[ch]", "tests/**/*.txt"]
    patterns += ["demo/**/*.py", "docs/**/*.rst", "tools/*", ".ci/run", "*.rst"]
    patterns += ["LICENSE", "Makefile", "bindep.txt", "pyproject.toml", "setup.py"]
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
        and "__pycache__" not in path.parts
        # What a run of the tests or of the benchmark wrote.
        and not {"build", "out"} & set(path.relative_to(ROOT).parts)
    }
    assert len(expected) > 100
    assert expected - names == set()


def test_sdist_holds_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert [name for name in names if re.search(r"\.(so|o|a|pyc|png)$", name)] == []


# --- installing it, as services do ---

INSPECT = """
import importlib.metadata, json, sys
from oslo_fastmsg import _core
distribution = importlib.metadata.distribution("oslo-fastmsg")
print(json.dumps({
    "core": _core.__file__,
    "version": distribution.version,
    "license": distribution.metadata["License"]
        or distribution.metadata["License-Expression"],
    "python": distribution.metadata["Requires-Python"],
    "requires": distribution.requires,
    "files": sorted(str(file) for file in distribution.files),
    "entry_points": sorted(
        f"{point.group}: {point.name} = {point.value}"
        for point in distribution.entry_points
    ),
}))
"""

LOAD = """
import oslo_messaging
from oslo_config import cfg
conf = cfg.ConfigOpts()
conf([])
transport = oslo_messaging.get_rpc_transport(conf, "fastmsg://guest:guest@h:1/")
print(type(transport._driver).__module__, type(transport._driver).__name__)
"""


def is_new_enough(python: str) -> bool:
    code = "import sys; sys.exit(sys.version_info < (3, 10))"
    return (
        os.path.exists(python)
        and subprocess.run([python, "-c", code], check=False).returncode == 0
    )


# The one of this environment with its newest setuptools, and the system's
# own with the one that the system ships: services use that.
INTERPRETERS = [sys.executable, *filter(is_new_enough, ["/usr/bin/python3"])]


@pytest.mark.parametrize("python", INTERPRETERS)
def test_sdist_installs_without_build_isolation(
    python: str, sdist: Path, tmp_path: Path
) -> None:
    here = tmp_path / "venv"
    own = python == sys.executable
    succeed([python, "-m", "venv", *([] if own else ["--system-site-packages"]), here])
    (site,) = here.glob("lib/python3*/site-packages")
    neighbours = next(path for path in sys.path if path.endswith("site-packages"))
    if own:
        # What is installed here, but not this package: an editable install
        # is a .pth file, and those count in the first folder only.
        (site / "neighbours.pth").write_text(f"{neighbours}\n")
    command = [here / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", sdist]

    succeed(command, cwd=tmp_path, PYTHONPATH="", PIP_FIND_LINKS="")

    found = json.loads(
        succeed([here / "bin/python", "-c", INSPECT], cwd=tmp_path, PYTHONPATH="")
    )
    assert Path(found["core"]).is_relative_to(site)
    assert found["license"] == "Apache-2.0"
    assert found["python"] == ">=3.10"
    # Older versions of setuptools write a blank and brackets.
    requires = [re.sub("[ ()]", "", text) for text in found["requires"]]
    assert requires == ["oslo.messaging>=14.0"]
    assert found["entry_points"] == [
        "oslo.config.opts: oslo_fastmsg = oslo_fastmsg._options:list_opts",
        "oslo.messaging.drivers: fastmsg = oslo_fastmsg.driver:FastmsgDriver",
    ]
    assert "oslo_fastmsg/py.typed" in found["files"]
    assert "oslo_fastmsg/_core.pyi" in found["files"]
    assert not [name for name in found["files"] if name.startswith("tests")]
    if own:
        driver = succeed(
            # stevedore keeps a cache of entry points under HOME.
            [here / "bin/python", "-c", LOAD],
            cwd=tmp_path,
            HOME=tmp_path,
            PYTHONPATH="",
        )
        assert driver.split() == ["oslo_fastmsg.driver", "FastmsgDriver"]


# --- what is missing is said in one line ---

FAKE_PKG_CONFIG = """\
#!/bin/sh
# Knows the version of each module, and nothing about flags.
case "$*" in
--version) echo 1.8.1 ;;
{known}
*) exit 1 ;;
esac
"""


@pytest.fixture
def pkg_config(tmp_path: Path) -> Path:
    return tmp_path / "pkg-config"


def knows(pkg_config: Path, *modules: str) -> None:
    known = "\n".join(
        f"--atleast-version=*\\ {module}) exit 0 ;;" for module in modules
    )
    pkg_config.write_text(FAKE_PKG_CONFIG.format(known=known))
    pkg_config.chmod(0o755)


def complaint(tmp_path: Path, **environment: object) -> str:
    """Build, expect it to fail, and give the one line that it says."""
    # What setuptools warns of is another matter.
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", "build_ext"]
    command += ["--force", "--build-lib", tmp_path, "--build-temp", tmp_path]
    done = run(command, **environment)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("known", "what", "debian", "rpm"),
    [
        (
            ["libssl", "libcrypto", "msgpack"],
            "librabbitmq >= 0.10",
            "librabbitmq-dev",
            "librabbitmq-devel",
        ),
        (
            ["librabbitmq", "msgpack-c"],
            "libssl >= 3.0, libcrypto >= 3.0",
            "libssl-dev",
            "openssl-devel",
        ),
        (
            ["librabbitmq", "libssl", "libcrypto"],
            "msgpack or msgpack-c >= 3.0",
            "libmsgpack-dev",
            "msgpack-devel",
        ),
        (
            [],
            "librabbitmq >= 0.10, libssl >= 3.0, libcrypto >= 3.0, "
            "msgpack or msgpack-c >= 3.0",
            "librabbitmq-dev libssl-dev libmsgpack-dev",
            "librabbitmq-devel openssl-devel msgpack-devel",
        ),
    ],
)
def test_missing_library_is_named_with_its_package(
    known: list[str],
    what: str,
    debian: str,
    rpm: str,
    pkg_config: Path,
    tmp_path: Path,
) -> None:
    knows(pkg_config, *known)

    line = complaint(tmp_path, PKG_CONFIG=pkg_config)

    assert line == (
        f"oslo-fastmsg: cannot build without {what}: "
        f"apt install {debian} (Debian), dnf install {rpm} (RPM)"
    )


def test_no_source_needs_a_lenient_compiler() -> None:
    """What is a warning up to GCC 13 is an error since, in a library's header, too."""
    errors = ["implicit-function-declaration", "implicit-int", "int-conversion"]
    errors += ["incompatible-pointer-types"]

    succeed(
        [os.environ.get("CC", "cc"), "-fsyntax-only", "-D_GNU_SOURCE"]
        + ['-DFM_VERSION="0"', "-Icsrc", f"-I{sysconfig.get_path('include')}"]
        + ["-Wsystem-headers", *(f"-Werror={error}" for error in errors)]
        + sorted(ROOT.glob("csrc/*/*.c"))
    )


def test_missing_pkg_config_is_named_with_its_package(tmp_path: Path) -> None:
    line = complaint(tmp_path, PKG_CONFIG=tmp_path / "nothing")

    assert "without pkg-config: apt install pkg-config " in line
    assert "dnf install pkgconf-pkg-config " in line


def test_missing_compiler_is_named_with_its_package(tmp_path: Path) -> None:
    line = complaint(tmp_path, CC=tmp_path / "nothing")

    assert "a C compiler" in line
    assert "apt install gcc " in line


def test_missing_python_header_is_named_with_its_package(tmp_path: Path) -> None:
    # An interpreter whose headers are elsewhere, which starts setup.py.
    (tmp_path / "sitecustomize.py").write_text(
        "import sysconfig\n"
        "get_path = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name, *rest, **more: (\n"
        "    '/nowhere' if name == 'include' else get_path(name, *rest, **more))\n"
    )

    line = complaint(tmp_path, PYTHONPATH=tmp_path)

    assert "without Python.h: apt install python3-dev " in line
    assert "dnf install python3-devel " in line


# --- tools/install_packages.sh ---


def packages_of(pattern: str, path: str) -> set[str]:
    return set(re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE))


def test_bindep_names_every_package_that_is_asked_for() -> None:
    script = "tools/install_packages.sh"
    asked = packages_of(r"^ *needs (\S+) \S+", script)
    asked |= packages_of(r"^ *needs \S+ (\S+)", script)
    asked |= packages_of(r'"(\S+-dev(?:el)?)"', "setup.py")
    named = packages_of(r"^([a-z]\S*)", "bindep.txt")
    assert len(asked) > 15
    assert asked == named


def test_without_apt_one_line_says_what_is_missing(tmp_path: Path) -> None:
    done = run(
        ["tools/install_packages.sh"], PATH=tmp_path, PYTHON=tmp_path / "python3"
    )

    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("oslo-fastmsg: no apt here; missing: gcc libc6-dev ")
    assert " librabbitmq-dev libmsgpack-dev libssl-dev " in line
    assert " librabbitmq-devel msgpack-devel openssl-devel " in line


def test_nothing_is_installed_twice(tmp_path: Path) -> None:
    """What the tests run on is installed, so apt has nothing to do."""
    apt = tmp_path / "apt-get"
    apt.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    apt.chmod(0o755)

    done = run(
        ["tools/install_packages.sh"],
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHON=sys.executable,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "called").exists()
