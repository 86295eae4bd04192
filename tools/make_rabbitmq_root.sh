#!/bin/sh
# Make a root directory with another Debian's RabbitMQ in it:
# tools/make_rabbitmq_root.sh FOLDER [SUITE]
#
# Debian 13 (trixie) has RabbitMQ 4.0. The packages come from where this machine
# gets its own; some 300 MB are fetched. Nothing is mounted in there afterwards and
# nothing runs, so it may be removed like any folder. What is there already is kept.
# tools/private_broker.py uses it.
set -eu

folder=$1
suite=${2:-trixie}

fail() {
    echo "oslo-fastmsg: $1" >&2
    exit 1
}

test ! -e "$folder/made" || exit 0
command -v debootstrap >/dev/null || fail "no debootstrap: apt install debootstrap"
as_root=''
if test "$(id -u)" != 0; then
    command -v sudo >/dev/null || fail "debootstrap needs root, or sudo"
    as_root=sudo
fi

# The first mirror that has Debian itself: neither updates nor somebody else's.
mirror=$(apt-get indextargets \
    --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' |
    while read -r made_by component release uri; do
        case "$made_by $component $release" in
        "Packages main "*[-/]*) ;;
        "Packages main bookworm" | "Packages main trixie" | "Packages main forky" | \
            "Packages main sid" | "Packages main unstable" | "Packages main testing" | \
            "Packages main stable" | "Packages main oldstable")
            echo "$uri"
            break
            ;;
        esac
    done)
test -n "$mirror" || fail "no Debian mirror among the sources of apt"

# apt may know a proxy of its own.
proxy=''
eval "$(apt-config shell proxy Acquire::http::Proxy)"
test -z "$proxy" || export http_proxy="$proxy"

# Beside it until it is complete: whoever is interrupted begins again.
part=$folder.part
trap 'exit 1' INT TERM HUP
$as_root rm -rf "$part" "$folder"
mkdir -p "$(dirname "$folder")"
echo "oslo-fastmsg: making $folder ($suite)"
log=$part.log
$as_root env http_proxy="${http_proxy-}" debootstrap --variant=minbase \
    --include=rabbitmq-server "$suite" "$part" "$mirror" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2 && fail "debootstrap failed, see $log"; }
! grep -q " $(realpath "$part")/" /proc/mounts ||
    fail "something is still mounted in $part"

# Erlang looks for its own name, and df, which RabbitMQ asks for the disk's room,
# complains of a missing list of mounts.
printf '127.0.0.1 localhost\n' | $as_root tee "$part/etc/hosts" >/dev/null
$as_root rm -f "$part/etc/mtab"
printf 'rootfs / rootfs rw 0 0\n' | $as_root tee "$part/etc/mtab" >/dev/null
$as_root rm -rf "$part/var/cache/apt/archives" "$part/var/lib/apt/lists"
$as_root touch "$part/made"
$as_root mv "$part" "$folder"
rm -f "$log"
