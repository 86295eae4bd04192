#!/bin/sh
# Install what the system lacks: tools/install_packages.sh [lint|wsgi|rabbitmq4]
#
# Looks for the things themselves, not for packages, so that nothing is done
# twice and whatever came another way counts. Installs with apt, as root or
# with sudo; elsewhere it says in one line what is missing. The packages are
# those of bindep.txt.
set -eu

python=${PYTHON:-python3}
debian='' rpm=''

# needs DEBIAN-PACKAGE RPM-PACKAGE COMMAND...: missing unless COMMAND is true
needs() {
    packages=$1/$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        debian="$debian ${packages%/*}" rpm="$rpm ${packages#*/}"
    fi
}

has() { command -v "$1"; }
has_library() { pkg-config "--atleast-version=$2" "$1"; }
has_msgpack() { has_library msgpack 3.0 || has_library msgpack-c 3.0; }
has_python() { "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }
has_venv() { "$python" -c 'import ensurepip, venv'; }
has_python_header() {
    test -f "$("$python" -c 'import sysconfig
print(sysconfig.get_path("include"))')/Python.h"
}
# A test builds with the system's own interpreter, as services do: if there is
# one, or if it is about to be installed.
has_module() {
    if test -x /usr/bin/python3; then
        /usr/bin/python3 -c "import $1"
    else
        has_python
    fi
}
has_rabbitmq() {
    has erl && has erl_call &&
        test -x "$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server)"
}
has_libc() { printf '#include <stdlib.h>\n' | gcc -fsyntax-only -xc -; }

needs gcc gcc has gcc
needs libc6-dev glibc-devel has_libc
needs pkg-config pkgconf-pkg-config has pkg-config
needs librabbitmq-dev librabbitmq-devel has_library librabbitmq 0.10
needs libmsgpack-dev msgpack-devel has_msgpack
needs libssl-dev openssl-devel has_library libssl 3.0
needs python3 python3 has_python
needs python3-venv python3-pip has_venv
needs python3-dev python3-devel has_python_header
needs python3-setuptools python3-setuptools has_module setuptools
needs python3-wheel python3-wheel has_module wheel
needs rabbitmq-server rabbitmq-server has_rabbitmq
needs openssl openssl has openssl
needs faketime libfaketime has faketime
if test "${1-}" = wsgi; then
    needs apache2 httpd test -x /usr/sbin/apache2
    needs libapache2-mod-wsgi-py3 python3-mod_wsgi \
        test -e /usr/lib/apache2/modules/mod_wsgi.so
    needs uwsgi-plugin-python3 uwsgi-plugin-python3 has uwsgi_python3
fi
if test "${1-}" = rabbitmq4; then
    needs debootstrap debootstrap has debootstrap
fi
if test "${1-}" = lint; then
    needs clang clang has clang
    needs clang-format clang-tools-extra has clang-format
    needs clang-tidy clang-tools-extra has clang-tidy
fi
test -n "$debian" || exit 0

fail() {
    echo "oslo-fastmsg: $1; missing:$debian (RPM:$rpm)" >&2
    exit 1
}

has apt-get >/dev/null || fail "no apt here"
as_root=''
if test "$(id -u)" != 0; then
    has sudo >/dev/null || fail "neither root nor sudo"
    as_root=sudo
fi

# Debian starts what it installs. The tests have brokers of their own, so for
# the length of this installation nothing is started, unless the system has a
# policy of its own.
policy=/usr/sbin/policy-rc.d
if ! test -e "$policy"; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

echo "oslo-fastmsg: installing$debian"
$as_root apt-get update -q || fail "apt-get update failed"
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends $debian ||
    fail "apt-get install failed"

# Nor shall a server that only the tests wanted start with the machine.
for server in rabbitmq-server apache2; do
    case "$debian " in
    *" $server "*)
        if test -d /run/systemd/system; then
            $as_root systemctl disable --quiet $server.service || true
        fi
        ;;
    esac
done
