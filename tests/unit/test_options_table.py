"""docs/options.rst is what tools/options_table.py makes of sources and tests."""

import ast
import re

import options_table
import pytest
from options_table import ROOT, TARGET

from oslo_fastmsg import _compat, _options

INSTALLED = {option.name for option in _compat.rabbit_opts()}
IS_NEWEST = "heartbeat_in_pthread" not in INSTALLED and INSTALLED > {
    "kombu_reconnect_splay",
    "rabbit_stream_fanout",
    "ssl_enforce_hostname_verification",
}


@pytest.mark.skipif(not IS_NEWEST, reason="made with a newer oslo.messaging")
def test_the_table_is_up_to_date():
    assert TARGET.read_text() == options_table.text(), "run tools/options_table.py"


def test_each_named_test_exists():
    named = re.findall(r"``(tests/[\w/.]+)(?:::(\w+))?``", TARGET.read_text())
    assert len(named) > 40
    for path, test in named:
        functions = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert not test or test in functions, f"{path}::{test}"


def test_each_option_of_this_release_has_a_test_and_a_meaning():
    tests = options_table.named_tests()
    for name in options_table.stock_options():
        assert tests.get(name), name
        assert options_table.ours_of(name) != "ignored", name
    for name in _options._FASTMSG_NAMES:
        assert tests.get(name), name


def test_each_name_in_a_mark_is_an_option():
    known = {*options_table.stock_options(), *_options._FASTMSG_NAMES}
    assert set(options_table.named_tests()) <= known


def test_the_operators_guide_says_the_same():
    guide = (ROOT / "docs" / "operators.rst").read_text()
    section = guide.split("   :name: stock-options\n")[1].split("\nOther groups:")[0]
    rows = re.findall(r"   \* - ((?:.|\n)*?)\n     - ([a-z ]+)\n     -", section)
    said = {name: verdict for names, verdict in rows for name in names_in(names)}
    assert len(said) > 30
    for name in options_table.stock_options():
        assert said[name] == options_table.ours_of(name), name


def names_in(text):
    return re.findall(r"``(\w+)``", text)


def test_marks_of_tests_and_of_modules_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(options_table, "ROOT", tmp_path)
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    (folder / "test_a.py").write_text(
        "pytestmark = [pytest.mark.slow, pytest.mark.options('all')]\n"
        "@pytest.mark.options('one', 'two')\n"
        "@pytest.mark.parametrize('x', [1])\n"
        "def test_one(): pass\n"
        "@pytest.mark.other('three')\n"
        "def test_two(): pass\n"
        "@pytest.mark.options('four')\n"
        "def no_test(): pass\n"
    )
    assert options_table.named_tests(tmp_path) == {
        "all": ["tests/unit/test_a.py"],
        "one": ["tests/unit/test_a.py::test_one"],
        "two": ["tests/unit/test_a.py::test_one"],
    }
