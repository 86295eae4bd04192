#!/bin/sh
# Everything that looks at the sources without running them. All of it is
# done, whatever fails; the status tells whether anything did.
set -u

cd "$(dirname "$0")/.." || exit 1
bin=${1:-.venv/bin}
status=0

check() {
    echo "lint: $1"
    shift
    "$@" || status=1
}

core=$(ls csrc/base/*.c csrc/wire/*.c csrc/io/*.c)
binding=$(ls csrc/py/*.c)
formatted=$(ls csrc/*/*.[ch] tests/*/*.[ch])
flags="-std=c11 -D_GNU_SOURCE -Icsrc -fvisibility=hidden -pthread
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
    $(pkg-config --cflags librabbitmq libssl)
    $(pkg-config --cflags msgpack || pkg-config --cflags msgpack-c)"
python_include=$("$bin/python" -c 'import sysconfig
print("-I" + sysconfig.get_path("include"))')

# Each file in a process of its own, two at a time.
each() {
    files=$1
    shift
    printf '%s\n' $files | xargs -n 1 -P 2 "$@"
}

# clang-format's own complaint is a page for each line.
is_formatted() {
    unformatted=0
    for file; do
        if ! clang-format "$file" | cmp -s - "$file"; then
            echo "not formatted (make format): $file"
            unformatted=1
        fi
    done
    return $unformatted
}

# shellcheck disable=SC2086
{
    check "ruff" "$bin/ruff" check .
    check "ruff format" "$bin/ruff" format --check .
    check "codespell" "$bin/codespell"
    check "mypy" "$bin/mypy"
    check "stubtest" "$bin/stubtest" --mypy-config-file pyproject.toml oslo_fastmsg._core
    check "clang-format" is_formatted $formatted
    check "gcc" each "$core" gcc $flags -Wconversion -fsyntax-only
    check "gcc, binding" each "$binding" gcc $flags $python_include -fsyntax-only
    check "clang" each "$core" \
        clang $flags -Wconversion -Wthread-safety -fsyntax-only
    check "clang, binding" each "$binding" \
        clang $flags $python_include -Wthread-safety -fsyntax-only
}
exit $status
