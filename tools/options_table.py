#!/usr/bin/env python3
"""Write docs/options.rst: option, stock, ours, tested by.

What stock has comes from the options of the installed oslo.messaging, what becomes
of it here from the tables of ``oslo_fastmsg/_options.py``, and the tests from the
marker ``options`` in ``tests/``, whose arguments are the names of options. Run it
with the newest oslo.messaging:

    .venv/bin/python tools/options_table.py
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from oslo_fastmsg import _compat, _options  # noqa: E402

TARGET = ROOT / "docs" / "options.rst"

HEAD = """\
=======
Options
=======

.. Made by tools/options_table.py from the sources and the tests: not to be edited.

What each option is, what becomes of it here, and the tests that show it. Words and
remarks are explained in `the operator's guide <operators.rst>`__. ``make test-options``
runs all of these tests, the slow ones too; where a file is named without a test, all
of it. Whether a test needs a release of oslo.messaging, it says itself.
"""


def marked(node: ast.expr) -> Iterator[str]:
    """Give the names in each ``pytest.mark.options(...)`` of an expression."""
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "options"
            and ast.unparse(call.func.value) == "pytest.mark"
        ):
            for argument in call.args:
                yield str(ast.literal_eval(argument))


def tests_in(path: Path) -> Iterator[tuple[str, str]]:
    """Give (option, test) of a file; a mark of the module names the file alone."""
    name = path.relative_to(ROOT).as_posix()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                for option in marked(decorator):
                    yield option, f"{name}::{node.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets) == "pytestmark":
            for option in marked(node.value):
                yield option, name


def named_tests(root: Path = ROOT) -> dict[str, list[str]]:
    """Give the tests of each option that any names."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob("tests/*/test_*.py")):
        for option, test in tests_in(path):
            found.setdefault(option, []).append(test)
    return found


def stock_of(option: Any) -> str:
    """Tell type, default and limits."""
    kind = type(option).__name__.removesuffix("Opt").lower()
    default = getattr(option, "sample_default", None) or option.default
    words = [kind, "unset" if default in (None, "") else str(default)]
    choices = getattr(option.type, "choices", None)
    if choices:
        words.append(f"one of {', '.join(map(str, choices))}")
    for word, limit in (
        ("from", getattr(option.type, "min", None)),
        ("to", getattr(option.type, "max", None)),
    ):
        if limit is not None:
            words.append(f"{word} {limit:g}")
    if option.deprecated_for_removal:
        words.append("deprecated")
    return ", ".join(words)


def ours_of(name: str) -> str:
    """Tell what becomes of a stock option."""
    if name in _options._CHECKED:
        return "checked"
    if name in _options._WITHOUT_MEANING:
        return "no meaning"
    if name in _options._IN_PART:
        return "partly"
    read = set(_options.Settings.__dataclass_fields__) | {*_options._MISSPELT.values()}
    return "honoured" if name in read else "ignored"


def stock_options() -> dict[str, str]:
    """Give the options of this release, and those that we know of others."""
    installed = {option.name: stock_of(option) for option in _compat.rabbit_opts()}
    known = {
        *_options._WITHOUT_MEANING,
        *_options._MISSPELT.values(),
        *_options.Settings.__dataclass_fields__,
    }
    own = {*_options._FASTMSG_NAMES, "rpc_response_timeout"}
    for name in known - own:
        installed.setdefault(name, "not in this release")
    return dict(sorted(installed.items()))


def table(name: str, group: str, rows: list[tuple[str, str, str, list[str]]]) -> str:
    lines = [
        "",
        f"``[{group}]``",
        "=" * (len(group) + 6),
        "",
        ".. list-table::",
        f"   :name: {name}",
        "   :header-rows: 1",
        "   :widths: 20 25 10 45",
        "",
    ]
    for cells in [("option", "stock", "ours", ["tested by"]), *rows]:
        option, stock, ours, tests = cells
        is_head = option == "option"
        lines += [
            f"   * - {option if is_head else f'``{option}``'}",
            f"     - {stock}",
            f"     - {ours}",
        ]
        texts = tests if is_head else [f"``{test}``" for test in tests]
        lines.append(f"     - {texts[0]}{',' if len(texts) > 1 else ''}")
        for number, text in enumerate(texts[1:], 2):
            lines.append(f"       {text}{',' if number < len(texts) else ''}")
    return "\n".join(lines) + "\n"


def text() -> str:
    """Make the whole of it.

    :raises KeyError: an option without a test.
    """
    tests = named_tests()
    stock = [
        (name, what, ours_of(name), tests[name])
        for name, what in stock_options().items()
    ]
    ((group, options),) = _options.list_opts()
    own = [
        (option.name, "none", stock_of(option), tests[option.name])
        for option in options
    ]
    return (
        HEAD
        + table("options-of-stock", _compat.RABBIT_GROUP, stock)
        + table("options-of-ours", group, own)
    )


if __name__ == "__main__":
    TARGET.write_text(text())
