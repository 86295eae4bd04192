#!/bin/sh
# Make a virtual environment, or bring it up to date:
# tools/make_venv.sh FOLDER REQUIREMENTS...
set -eu

python=${PYTHON:-python3}
folder=$1
shift

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "oslo-fastmsg: $("$python" --version) is too old," \
        "name one from 3.10 on: make PYTHON=..." >&2
    exit 1
fi
# One that was moved, or whose interpreter is gone, is of no use.
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
fi
for file; do
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$file"
done
