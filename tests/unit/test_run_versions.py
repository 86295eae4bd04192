"""What `make test-versions` says at its end."""

import pytest
import run_versions

OUTPUT = """\
=========================== short test summary info ============================
SKIPPED [2] tests/unit/test_a.py:7: no streams
SKIPPED [1] tests/unit/test_b.py: no streams
{failed}===== {counts}, 40 deselected in 592.73s (0:09:52) =====
"""


def entry(version, release, counts, failed=""):
    """What tox writes of an environment."""
    return {
        "python": {"version_info": [*map(int, version.split(".")), "final", 0]},
        "installed_packages": ["oslo-fastmsg==0.1.0", f"oslo.messaging=={release}"],
        "test": [
            {"output": OUTPUT.format(counts=counts, failed=failed), "elapsed": 592.9}
        ],
        "result": {"success": not failed},
    }


@pytest.fixture
def versions(monkeypatch, capsys):
    """Give a function: run with so many Pythons; its status and what it said."""

    def play(pythons, entries, *words, status=0):
        asked = []

        def run(environments, paths, arguments):
            asked.append((environments, paths, arguments))
            return status, entries

        monkeypatch.setattr(run_versions, "run", run)
        monkeypatch.setattr(
            run_versions, "find", lambda v: f"/bin/python{v}" if v in pythons else None
        )
        result = run_versions.main(list(words))
        return result, capsys.readouterr().out.splitlines(), asked

    return play


def test_each_environment_is_told_with_its_versions_and_counts(versions):
    entries = {
        "py313-oldest": entry("3.13.0", "14.0.3", "1979 passed, 3 skipped"),
        "py313-newest": entry(
            "3.13.0", "18.3.1", "2 failed, 1973 passed, 3 skipped, 1 error", "FAILED\n"
        ),
    }

    status, lines, asked = versions(
        ["3.13"], entries, "-e", "py313-oldest,py313-newest", "-x", status=1
    )

    assert status == 1
    assert asked == [(["py313-oldest", "py313-newest"], ["/bin/python3.13"], ["-x"])]
    words = [line.split() for line in lines]
    assert ["py313-oldest", "3.13.0", "14.0.3", "1979", "0", "3", "0", "593", "ok"] in (
        words
    )
    newest = ["py313-newest", "3.13.0", "18.3.1", "1973", "2", "3", "1", "593"]
    assert [*newest, "FAILED"] in words
    assert "    6  no streams" in lines
    assert ["py312-middle", "not", "asked", "for"] in words


def test_a_python_that_is_missing_is_named_with_all_its_environments(versions):
    found = ["3.10", "3.11", "3.13"]
    entries = {
        f"py{version.replace('.', '')}-{release}": entry(
            f"{version}.1", "1", "1 passed"
        )
        for version in found
        for release in run_versions.RELEASES
    }

    status, lines, asked = versions(found, entries)

    assert status == 0
    ((environments, paths, arguments),) = asked
    assert len(environments) == 9
    assert paths == [f"/bin/python{version}" for version in found]
    assert arguments == []
    missing = lines[lines.index("Not run:") + 1 :]
    assert missing == [
        f"py312-{release}  no python3.12 on the PATH or under pyenv"
        for release in ("oldest", "middle", "newest")
    ]


@pytest.mark.parametrize(
    ("entries", "verdict"),
    [
        ({}, "NO TESTS RAN"),
        ({"py310-newest": {"result": {"success": True}}}, "NO TESTS RAN"),
    ],
)
def test_an_environment_without_tests_has_not_passed(versions, entries, verdict):
    status, lines, _ = versions(["3.10"], entries, "-e", "py310-newest")

    assert status == 1
    (line,) = [line for line in lines if line.startswith("py310-newest")]
    assert line.endswith(verdict)


def test_without_any_python_nothing_has_passed(versions):
    status, lines, asked = versions([], {})

    assert status == 1
    assert asked == []
    assert len(lines[lines.index("Not run:") + 1 :]) == 12


def test_an_environment_that_does_not_exist_is_refused(versions, capsys):
    with pytest.raises(SystemExit):
        versions(["3.10"], {}, "-e", "py39-newest")

    assert "py39-newest" in capsys.readouterr().err
