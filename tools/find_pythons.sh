#!/bin/sh
# Print the CPythons of this machine that the package is for, a line each: those on
# the PATH and those of pyenv, the newest of each version.
set -eu

for version in 3.10 3.11 3.12 3.13; do
	for python in $(ls -vr "${PYENV_ROOT:-$HOME/.pyenv}"/versions/$version.*/bin/python$version 2>/dev/null) \
		$(command -v python$version 2>/dev/null); do
		# One of pyenv's stand-ins may be there for a version that is not.
		if "$python" -c 'import venv' 2>/dev/null; then
			echo "$python"
			break
		fi
	done
done
