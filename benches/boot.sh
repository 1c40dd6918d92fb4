#!/usr/bin/env bash
#
# boot.sh: how long `virtkeep boot` takes, from Enter to a running guest.
#
# usage: benches/boot.sh [DIRECTORY]     default: a new directory under /var/tmp, removed afterwards
#
# Two points are recovered in turn, of a disk of 10 GiB and of a sparse one of 1 TiB, both with the same
# files on it, by a libvirtd of its own. Told are the seconds until libvirt calls the guest running: with
# `--no-pull`, and while the data is moved in; for the small disk also those until all of it has been. The
# guest has no operating system: when one is up is no matter of ours.
#
# Set by the environment: VIRTKEEP, the program (default target/release/virtkeep); ROUNDS (3); FILES, what
# fills the disks (/usr/lib).

set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
readonly ROUNDS=${ROUNDS:-3} FILES=${FILES:-/usr/lib}
VIRTKEEP=$(realpath "${VIRTKEEP:-$HERE/target/release/virtkeep}")
readonly HERE VIRTKEEP
export VIRTKEEP

if [ "${1:-}" != --inside ]; then
    case ${1:-} in --help | -h) sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; exit ;; esac
    work=${1:-$(mktemp -d /var/tmp/virtkeep-boot.XXXXXX)}
    mkdir -p "$work"
    [ -n "${1:-}" ] || trap 'rm -rf "$work"' EXIT
    "$HERE/tests/stack/with-libvirt" "$0" --inside "$work"
    exit
fi

cd "$2"
export VIRTKEEP_REPO=$PWD/repo

say() { printf '%-44s %s\n' "$1" "$2"; }
since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f s", to - from }'; }

# A point of a machine with a disk of this size.
make_point() {
    local name=$1 size=$2
    cp --sparse=always files.raw "$name.raw"
    truncate -s "$size" "$name.raw"
    virsh -q define <("$HERE/tests/stack/domain-xml" "$name" "$PWD/$name.raw")
    "$VIRTKEEP" backup "$name" >backup.log 2>&1 || { cat backup.log >&2; exit 1; }
    virsh -q undefine "$name"
    rm "$name.raw"
}

# Boots the point of a machine; prints after how long the guest ran.
running() {
    local name=$1 started=$EPOCHREALTIME
    shift
    "$VIRTKEEP" boot "$name@latest" --name booted --to "$PWD/booted" "$@" </dev/null >boot.log 2>&1 &
    command=$!
    until [ "$(virsh domstate booted 2>/dev/null | head -n 1)" = running ]; do
        kill -0 "$command" 2>/dev/null || wait "$command" || { cat boot.log >&2; exit 1; }
        sleep 0.005
    done
    say "$name: running${*:+, $*}" "$(since "$started")"
}

abort() {
    wait "$command" || true
    "$VIRTKEEP" boot --abort booted --yes >abort.log 2>&1 || { cat abort.log >&2; exit 1; }
}

if [ ! -e repo ]; then
    truncate -s 10G files.raw
    mke2fs -q -t ext4 -d "$FILES" files.raw
    "$VIRTKEEP" init >/dev/null
    make_point disk-of-10-GiB 10G
    make_point disk-of-1-TiB 1T
fi
say "data on the disks" "$(du -B1 files.raw | cut -f1) bytes"
for ((round = 1; round <= ROUNDS; round++)); do
    echo "== round $round of $ROUNDS"
    for name in disk-of-10-GiB disk-of-1-TiB; do
        running "$name" --no-pull
        abort
    done
    started=$EPOCHREALTIME
    running disk-of-10-GiB
    wait "$command" || { cat boot.log >&2; exit 1; }
    say "disk-of-10-GiB: all moved in" "$(since "$started")"
    virsh -q destroy booted
    virsh -q undefine booted
    rm -r booted
done
