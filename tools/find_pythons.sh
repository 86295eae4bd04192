#!/bin/sh
# Print the CPythons of this machine, a line each: tools/find_pythons.sh [VERSION...]
#
# Those on the PATH and those of pyenv, the newest of each version. VERSION is 3.12 or
# the like, or 3.13t for a free-threaded one; without any: those the package is for.
set -eu

test $# -gt 0 || set -- 3.10 3.11 3.12 3.13
for version; do
	for python in $(ls -vr "${PYENV_ROOT:-$HOME/.pyenv}"/versions/${version%t}.*/bin/python$version 2>/dev/null) \
		$(command -v python$version 2>/dev/null); do
		# One of pyenv's stand-ins may be there for a version that is not.
		if "$python" -c 'import venv' 2>/dev/null; then
			echo "$python"
			break
		fi
	done
done
