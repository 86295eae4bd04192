"""What compilers make of csrc/py: no warnings, no static objects, with or without a GIL.

The sources of the core below need no Python; ``make lint`` compiles those.
"""

import concurrent.futures
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_pythons import OWN, flags, include_of, interpreter, succeed

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("csrc/py/*.c"))
WARNINGS = "-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror"


def complaints(command: list[object], sources: list[Path]) -> list[str]:
    """Compile each source, two at a time; give what was said of those that failed."""

    def one(source: Path) -> str:
        done = subprocess.run(
            [*map(str, command), str(source)], cwd=ROOT, capture_output=True, text=True
        )
        return "" if done.returncode == 0 else f"{source.name}: {done.stderr}"

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [text for text in pool.map(one, sources) if text]


@pytest.fixture
def command(request: pytest.FixtureRequest) -> list[object]:
    """A compiler that only looks, with the headers of a version."""
    compiler, version = request.param
    # The same headers serve both kinds of build.
    executable, why = interpreter(
        version if version == OWN else version.removesuffix("t")
    )
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}, which make lint installs")
    if executable is None:
        pytest.skip(why)
    command = [compiler, "-c", "-O2", "-o", "/dev/null", *WARNINGS.split(), *flags()]
    if compiler == "clang":
        command.append("-Wthread-safety")
    if version.endswith("t"):
        command.append("-DPy_GIL_DISABLED=1")
    return [*command, f"-I{include_of(executable)}"]


VERSIONS = list(dict.fromkeys([OWN, "3.13t"]))
commands = pytest.mark.parametrize(
    "command",
    [(compiler, version) for version in VERSIONS for compiler in ("gcc", "clang")],
    indirect=True,
    ids=lambda value: "-".join(value),
)


@commands
def test_binding_compiles_without_a_warning(command: list[object]) -> None:
    assert len(SOURCES) > 8
    assert complaints(command, SOURCES) == []


@commands
def test_a_warning_of_the_compiler_would_be_seen(
    command: list[object], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text(
        "#include <Python.h>\n"
        "#ifdef Py_GIL_DISABLED\n"
        "static PyMutex unused;\n"
        "#else\n"
        "static PyObject *unused;\n"
        "#endif\n"
    )

    (said,) = complaints(command, [wrong])

    assert "unused" in said


# --- what an object file keeps for all interpreters ---

# What Python only reads, or makes an object of in each interpreter.
TABLE = re.compile(r"(\w+_)?(methods|getset|slots|spec)|functions|\w*names(\.\d+)?")
# Multi-phase initialisation: no module, but what modules are made from.
DEFINITION = "module_def"


def static_objects(source: Path, folder: Path) -> list[str]:
    """Name what a source keeps in memory that can be written, and is none of those."""
    executable, why = interpreter(OWN)
    if executable is None:
        pytest.skip(why)
    target = folder / f"{source.stem}.o"
    include = f"-I{include_of(executable)}"
    succeed(["gcc", "-c", "-O0", "-fPIC", *flags(), include, source, "-o", target])
    found = []
    for line in succeed(["nm", "--format=sysv", "--defined-only", target]).splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 7:
            continue
        name, _, _, kind, _, _, section = fields
        is_constant = section.startswith((".rodata", ".data.rel.ro", ".text"))
        if kind == "OBJECT" and not is_constant:
            if not TABLE.fullmatch(name) and name != DEFINITION:
                found.append(name)
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_binding_keeps_no_python_object_outside_of_modules(
    source: Path, tmp_path: Path
) -> None:
    assert static_objects(source, tmp_path) == []


def test_a_static_python_object_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text(
        "#include <Python.h>\n"
        "PyTypeObject Wrong_type = { PyVarObject_HEAD_INIT(NULL, 0) };\n"
        "static PyObject *cache;\n"
        "static PyMethodDef methods[] = { { 0 } };\n"
        'static const char *const texts[] = { "a", "b" };\n'
        "PyObject *use(int at);\n"
        "PyObject *use(int at)\n"
        "{\n"
        "    static PyObject *hidden;\n"
        "    if (at == 3)\n"
        "        hidden = cache = PyCFunction_New(methods, NULL);\n"
        "    return at == 2 ? hidden : PyUnicode_FromString(texts[at]);\n"
        "}\n"
    )

    found = static_objects(wrong, tmp_path)

    assert sorted(re.sub(r"\.\d+$", "", name) for name in found) == [
        "Wrong_type",
        "cache",
        "hidden",
    ]
