"""The texts are valid, and say what the code says.

What a text repeats of the code (exceptions, options, messages, bounds, bytes) is
in tables or blocks that are read here and compared with it.
"""

import ast
import re
from pathlib import Path

import docutils.core
import fix_faults
import pytest
from docutils import nodes
from fix_looking import members

from oslo_fastmsg import _compat, _core, _errors, _looking, _options, _topology

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEXTS = [*sorted(DOCS.glob("*.rst")), ROOT / "README.rst", ROOT / "CHANGES.rst"]
FOLDERS = ("csrc", "demo", "docs", "oslo_fastmsg", "tests", "tools")

every_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


def read(path):
    """Parse a text; whatever docutils has to say of it is an error.

    The settings are those of ``rst2html --strict``.
    """
    return docutils.core.publish_doctree(
        path.read_text(),
        source_path=str(path),
        settings_overrides={
            "report_level": 1,
            "halt_level": 1,
            "_disable_config": True,
            "file_insertion_enabled": False,
        },
    )


def table(document, name):
    """Give the rows of a named table as (header -> cell)."""
    (found,) = [t for t in document.findall(nodes.table) if name in t["names"]]
    rows = [list(row.findall(nodes.entry)) for row in found.findall(nodes.row)]
    head = [entry.astext() for entry in rows[0]]
    return [dict(zip(head, row, strict=True)) for row in rows[1:]]


def literals(node):
    return [each.astext() for each in node.findall(nodes.literal)]


@pytest.fixture(scope="module")
def architecture():
    return read(DOCS / "architecture.rst")


@pytest.fixture(scope="module")
def operators():
    return read(DOCS / "operators.rst")


@pytest.fixture(scope="module")
def semantics():
    return read(DOCS / "semantics.rst")


@pytest.fixture(scope="module")
def wire():
    return read(DOCS / "wire.rst")


# --- form ---


@every_text
def test_text_is_valid(path):
    document = read(path)
    assert not list(document.findall(nodes.system_message))
    assert document.get("title")


def test_docutils_complains_of_a_bad_text(tmp_path):
    bad = tmp_path / "bad.rst"
    bad.write_text("Title\n==\n\n`nowhere`_\n")
    with pytest.raises(docutils.utils.SystemMessage):
        read(bad)


def paths_in(document):
    """Give what is written as a path of the project."""
    return [
        text
        for text in literals(document)
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", text)
    ]


@every_text
def test_paths_exist(path):
    missing = [text for text in paths_in(read(path)) if not list(ROOT.glob(text))]
    assert missing == []


def test_paths_are_found(wire):
    assert "oslo_fastmsg/_topology.py" in paths_in(wire)


@every_text
def test_links_lead_somewhere(path):
    for reference in read(path).findall(nodes.reference):
        target = reference.get("refuri")
        if target is not None and not target.startswith("https://"):
            assert (path.parent / target).is_file(), target


@every_text
def test_nothing_of_the_makers_workplace_is_cited(path):
    assert not re.search(r"\.\./|/work/|/tmp/|/root/", path.read_text())


def test_each_section_of_the_wire_names_its_code_and_tests(wire):
    leaves = [
        section
        for section in wire.findall(nodes.section)
        if not list(section.findall(nodes.section))[1:]
    ]
    assert len(leaves) > 20
    for section in leaves:
        title = section[0].astext()
        fields = {
            field[0].astext(): literals(field[1])
            for field in section.findall(nodes.field)
        }
        assert set(fields) == {"Code", "Tests"}, title
        for name, folders in (
            ("Code", ("csrc", "oslo_fastmsg")),
            ("Tests", ("tests",)),
        ):
            assert fields[name], title
            for path in fields[name]:
                assert path.startswith(folders), title
                assert (ROOT / path).is_file(), title


# --- wire.rst ---


def test_bodies_are_what_the_codec_writes(wire):
    bodies = [
        block.astext().encode()
        for block in wire.findall(nodes.literal_block)
        if block.astext().startswith("{")
    ]
    assert len(bodies) == 6
    for body in bodies:
        assert _core.encode(_core.decode(body)) == body


def test_flags_are_what_is_declared(wire):
    settings = _options.Settings()
    declared = {}
    for kind, name, *flags in [
        *_topology.server_queues(settings, "X", "T", "S", "T_fanout_<hex>")[0],
        *_topology.notified_queue(settings, "X", "T.P"),
        *_topology.listened_priorities(settings, [("X", "T.P")], "pool")[0],
        *_topology.reply_queue(settings, "reply_<hex>"),
    ]:
        if kind == "exchange":
            declared[f"{name} ({flags[0]})"] = (*flags[1:], {})
        elif kind == "queue":
            declared[name] = tuple(flags)

    documented = {}
    for row in table(wire, "flags"):
        arguments = row["arguments"].astext()
        for name in row["what"].astext().split(", "):
            documented[name] = (
                {"yes": True, "no": False}[row["durable"].astext()],
                {"yes": True, "no": False}[row["auto-delete"].astext()],
                {}
                if arguments == "none"
                else {arguments.split()[0]: int(arguments.split()[1])},
            )
    assert documented == declared


# --- semantics.rst ---

EXCEPTIONS = {
    name: kind
    for name, kind in vars(_core).items()
    if isinstance(kind, type)
    and issubclass(kind, _core.Error)
    and kind not in (_core.Error, _core.BadMessage)
}
RAISED = {"MessagingTimeout", "MessageDeliveryFailure", "MessageUndeliverable"}
OPERATIONS = ("call", "cast", "fanout", "notify", "reply")


def exception_for(kind, operation):
    error = kind("words")
    error.code, error.exchange, error.routing_key = 0, "X", "T"
    made = _errors.translate(error, "attempt", "host:5672", is_call=operation == "call")
    return type(made).__name__


def test_exceptions_are_those_of_the_driver(semantics):
    seen = set()
    for row in table(semantics, "exceptions"):
        core = row["core"].astext()
        if core == "none":
            continue
        seen.add(core)
        for operation in OPERATIONS:
            # Cells without any say that nothing is raised.
            for name in RAISED & set(literals(row[operation])):
                expected = exception_for(EXCEPTIONS[core], operation)
                assert name == expected, (row["phase"].astext(), operation)
    assert seen == set(EXCEPTIONS)


def test_each_exception_of_the_core_is_raised_by_call_and_cast(semantics):
    for name in EXCEPTIONS:
        rows = [r for r in table(semantics, "exceptions") if r["core"].astext() == name]
        for operation in ("call", "cast"):
            assert any(RAISED & set(literals(row[operation])) for row in rows), name


def test_nobody_is_told_of_a_reply(semantics):
    for row in table(semantics, "exceptions"):
        assert not RAISED & set(literals(row["reply"]))


def numbers_in(document):
    """Give the numbers of the promises, in their order."""
    return [
        int(node.astext()[:-1])
        for node in document.findall(nodes.strong)
        if re.fullmatch(r"\d+\.", node.astext())
    ]


def promised_tests(document):
    """Give the named tests of each number: path::name."""
    found = {}
    for field in document.findall(nodes.field):
        number = int(field[0].astext())
        assert number not in found
        found[number] = literals(field[1])
    return found


def names_in(path):
    """Give the tests of a file that are run: of Python or of C."""
    source = (ROOT / path).read_text()
    if path.endswith(".c"):
        return set(re.findall(r"^    RUN\((\w+)\);$", source, re.MULTILINE))
    return {
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def wrong_promises(document):
    """Tell what is wrong with the numbers of a text and their tests."""
    numbers, tests = numbers_in(document), promised_tests(document)
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the numbers are not 1 to {len(numbers)}, in order: {numbers}"
    for number in sorted(set(numbers) ^ set(tests)):
        yield f"{number} has no promise or no tests"
    for number, names in tests.items():
        if not names:
            yield f"{number} has no tests"
        for name in names:
            path, _, test = name.partition("::")
            if not path.startswith("tests/") or not (ROOT / path).is_file():
                yield f"{number}: there is no file of {name}"
            elif test not in names_in(path):
                yield f"{number}: there is no test {name}"


def unnumbered(document):
    """Give the prose that promises something without a number.

    Not what comes before the first section, and not what leads in to a list or says
    how the table of exceptions is to be read.
    """
    for section in document.findall(nodes.section):
        for node in section.children:
            items = [node]
            if isinstance(node, nodes.bullet_list):
                items = [item[0] for item in node.children]
            for item in items:
                if isinstance(item, nodes.paragraph):
                    text = item.astext()
                    is_lead = text.endswith(":") or text.startswith("Rows are what")
                    if not is_lead and not re.match(r"\d+\. ", text):
                        yield text


def test_each_promise_names_tests_that_exist(semantics):
    assert len(numbers_in(semantics)) > 60
    assert list(wrong_promises(semantics)) == []


def test_there_is_no_promise_without_a_number(semantics):
    assert list(unnumbered(semantics)) == []
    for found in semantics.findall(nodes.table):
        for row in list(found.findall(nodes.row))[1:]:
            assert re.match(r"\d+\. ", row[0].astext())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("**1.** A.\n\n:1: ``tests/unit/test_docs.py::test_text_is_valid``\n", 0),
        ("**1.** A.\n\n:1: ``tests/native/test_buf.c::main``\n", 1),
        ("**1.** A.\n\n:1: ``tests/unit/test_docs.py::test_of_nothing``\n", 1),
        ("**1.** A.\n\n:1: ``tests/unit/test_docs.py::read``\n", 1),
        ("**1.** A.\n\n:1: ``tests/unit/no_file.py::test_text_is_valid``\n", 1),
        ("**1.** A.\n\n:1: by and by\n", 1),
        ("**1.** A.\n", 1),
        ("**2.** A.\n\n:2: ``tests/unit/test_docs.py::test_text_is_valid``\n", 1),
        ("A.\n\n:1: ``tests/unit/test_docs.py::test_text_is_valid``\n", 1),
    ],
)
def test_a_promise_without_its_test_is_found(tmp_path, text, wrong):
    path = tmp_path / "promises.rst"
    path.write_text(f"Title\n=====\n\nA word before.\n\n{text}")
    assert len(list(wrong_promises(read(path)))) == wrong


def test_the_time_of_day_is_shown_and_never_waited_for():
    shown = {"csrc/py/look.c", "oslo_fastmsg/_looking.py"}
    words = r"CLOCK_REALTIME|gettimeofday|\btime\(|time\.time\(|datetime"
    found = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("csrc/*/*.[ch]", "oslo_fastmsg/*.py")
        for path in ROOT.glob(pattern)
        if re.search(words, path.read_text())
    }
    assert found == shown


# --- operators.rst ---


def options_in(operators, *verdicts):
    return {
        name
        for row in table(operators, "stock-options")
        if not verdicts or row["here"].astext() in verdicts
        for name in literals(row["option"])
    }


def test_every_option_of_the_installed_release_is_listed(operators):
    installed = {option.name for option in _compat.rabbit_opts()}
    assert installed - options_in(operators) == set()


def test_options_that_are_read_are_honoured_and_the_others_are_not(operators):
    read_by_us = set(_options.Settings.__dataclass_fields__) - {
        "rpc_response_timeout",
        *_options._FASTMSG_NAMES,
    }
    read_by_us |= set(_options._MISSPELT.values())
    assert options_in(operators, "honoured", "partly") == read_by_us
    assert not options_in(operators, "no meaning", "checked") & read_by_us


def test_every_verdict_is_one_of_those_explained(operators):
    verdicts = {row["here"].astext() for row in table(operators, "stock-options")}
    assert verdicts == {"honoured", "partly", "checked", "no meaning"}


def test_our_own_options_are_listed(operators):
    ((_, options),) = _options.list_opts()
    listed = [literals(row["option"])[0] for row in table(operators, "own-options")]
    assert listed == [option.name for option in options]


def test_faults_and_promises_are_those_of_the_rig():
    rows = table(read(DOCS / "faults.rst"), "promises")
    stated = {
        int(row["row"].astext()): (row["fault"].astext(), row["promise"].astext())
        for row in rows
    }
    assert stated == fix_faults.ROWS


def strings_of_the_sources():
    """Give all string literals, those that are written in pieces as one."""
    piece = r'"((?:[^"\\\n]|\\.)*)"'
    for path in sorted(ROOT.glob("csrc/*/*.c")):
        for group in re.finditer(rf"{piece}(?:\s*{piece})*", path.read_text()):
            yield "".join(re.findall(piece, group[0]))
    for path in sorted(ROOT.glob("oslo_fastmsg/*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in docstrings:
                yield str(node.value)


def test_messages_are_those_of_the_sources(operators):
    known = list(strings_of_the_sources())
    documented = [
        text for row in table(operators, "messages") for text in literals(row["text"])
    ]
    assert len(documented) > 30
    assert [text for text in documented if not any(text in k for k in known)] == []


LOOKS = {
    "health-process": _looking.Health,
    "health-broker": _looking.BrokerHealth,
    "health-connection": _looking.ConnectionHealth,
    "health-consumer": _looking.ConsumerHealth,
    "stats-process": _looking.Stats,
    "stats-broker": _looking.BrokerStats,
    "stats-connection": _looking.ConnectionStats,
    "stats-round-trips": _looking.RoundTrips,
}


@pytest.mark.parametrize("name", LOOKS)
def test_members_of_stats_and_health_are_those_of_the_sources(operators, name):
    documented = {
        literals(row["member"])[0]: row["type"].astext()
        for row in table(operators, name)
    }
    assert documented == members(LOOKS[name])


def test_states_are_those_of_the_sources(operators):
    source = (ROOT / "csrc/io/stats.c").read_text()
    for name, prefix in (
        ("health-connection", "CONN"),
        ("health-consumer", "CONSUMER"),
    ):
        (row,) = [
            row
            for row in table(operators, name)
            if literals(row["member"]) == ["state"]
        ]
        named = re.findall(rf'\[FM_{prefix}_\w+\] = "(\w+)"', source)
        assert len(named) > 5
        assert literals(row["meaning"]) == named


# --- architecture.rst ---

UNITS = {"": 1, "ms": 1e-3, "s": 1.0, "KiB": 1 << 10, "MiB": 1 << 20}


def documented_values(text):
    """Read ``250 ms, 4 s``."""
    for each in text.split(","):
        number, _, unit = each.strip().partition(" ")
        yield float(number) * UNITS[unit]


def value_in(source, name):
    """Evaluate a constant of C or Python; times are in seconds."""
    found = re.findall(
        rf"^#define {name} (.+)$|\b{name} = ([^,;}}\n]+)", source, re.MULTILINE
    )
    assert len(found) == 1, f"{name}: {found}"
    text = "".join(found[0])
    text = re.sub(r"/\*.*|\(size_t\)", "", text)
    text = re.sub(r"INT64_C\((\d+)\)", r"\1", text)
    assert re.fullmatch(r"[\w\s().*]+", text), text
    value = eval(text, {"FM_NS_PER_S": 10**9, "FM_NS_PER_MS": 10**6})
    return value / 1e9 if name.endswith("_NS") else float(value)


def test_constants_are_those_of_the_sources(architecture):
    rows = table(architecture, "constants")
    assert len(rows) > 20
    for row in rows:
        sources = [(ROOT / path).read_text() for path in literals(row["where"])]
        names = literals(row["name"])
        values = list(documented_values(row["value"].astext()))
        assert len(names) == len(values), names
        for name, value in zip(names, values, strict=True):
            assert value_in("\n".join(sources), name) == value, name
