#!/usr/bin/env bash
#
# serve.sh: `virtkeep serve` beside qemu-nbd and nbdkit on the same disk.
#
# usage: benches/serve.sh [DIRECTORY]     default: a new directory under /var/tmp, removed afterwards
#
# An ext4 file system full of this machine's /usr, in a disk of 8 GiB, is served by `virtkeep serve`
# from a point, by qemu-nbd from a compressed qcow2 and from the raw file, and by nbdkit from the raw
# file. The servers take turns. Each is read from front to back with nbdcopy, twice, then at random
# with fio: 4 KiB and 64 KiB, 16 requests in flight. Everything is in the page cache. The point is read
# by its id, with as many connections as nbdcopy likes, and once as `latest`, which allows for one. Last
# comes the time from the start of a server to the first bytes of a sparse disk of 1 TiB: of its first
# point, and of the last of many.
#
# Set by the environment: VIRTKEEP, the program (default target/release/virtkeep); ROUNDS (3);
# SECONDS_EACH, for each run of fio (5); SIZE, of the disk (8G); FILES, what fills it (/usr); POINTS, of
# the sparse disk (1000).

set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
readonly ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-5} SIZE=${SIZE:-8G} FILES=${FILES:-/usr}
readonly POINTS=${POINTS:-1000}
VIRTKEEP=$(realpath "${VIRTKEEP:-$HERE/target/release/virtkeep}")
readonly HERE VIRTKEEP

case ${1:-} in --help | -h) sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; exit ;; esac
work=${1:-$(mktemp -d /var/tmp/virtkeep-serve.XXXXXX)}
mkdir -p "$work"
cd "$work"
export VIRTKEEP_REPO=$work/repo
server=

finish() {
    stop_server
    [ -n "${1:-}" ] || rm -rf "$work"
}
trap 'finish "${1:-}"' EXIT

say() { printf '%-38s %s\n' "$1" "$2"; }

stop_server() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    server=
    rm -f socket
}

# The first or last point of a domain.
point() { "$VIRTKEEP" list "$1" --json | jq -rs 'map(.point) | '"$2"; }

# Starts a server of the disk on `socket` and sets `uri`.
start_server() {
    case $1 in
    virtkeep) "$VIRTKEEP" serve "$(point bench last)" --listen "unix:$work/socket" >serve.log 2>&1 & ;;
    virtkeep-latest) "$VIRTKEEP" serve bench@latest --listen "unix:$work/socket" >serve.log 2>&1 & ;;
    qemu-nbd-compressed) qemu-nbd -r -t -e 16 -f qcow2 -k "$work/socket" disk.qcow2 & ;;
    qemu-nbd-raw) qemu-nbd -r -t -e 16 -f raw -k "$work/socket" disk.raw & ;;
    nbdkit-raw) nbdkit -f -r -U "$work/socket" file disk.raw & ;;
    esac
    server=$!
    uri="nbd+unix:///?socket=$work/socket"
    until nbdinfo --size "$uri" >/dev/null 2>&1; do
        kill -0 "$server" || { echo "$1 does not run" >&2; exit 1; }
        sleep 0.02
    done
}

peak_memory() { awk '/VmHWM/ { print int($2 / 1024) " MiB" }' "/proc/$server/status"; }

# Seconds for the whole disk.
sequential() {
    local started=$EPOCHREALTIME
    nbdcopy "$uri" null:
    awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'
}

random() {
    fio --name=random --ioengine=nbd --uri="$uri" --rw=randread --bs="$1" --iodepth=16 \
        --time_based --runtime="$SECONDS_EACH" --size="$SIZE" --randrepeat=1 \
        --output-format=json --output=fio.json >fio.log 2>&1
    # The engine writes lines of its own in front.
    sed -n '/^{/,$p' fio.json | jq -r '.jobs[0].read.iops | floor'
}

measure() {
    start_server "$1"
    say "$1" "sequential $(sequential) s, again $(sequential) s   4 KiB $(random 4k)/s   64 KiB $(random 64k)/s   peak $(peak_memory)"
    stop_server
}

# Seconds from the command to the first bytes of a point.
first_byte() {
    local started=$EPOCHREALTIME
    "$VIRTKEEP" serve "$1" --listen "unix:$work/socket" >serve.log 2>&1 &
    server=$!
    until [ -S socket ]; do
        kill -0 "$server" || { echo "virtkeep does not run" >&2; exit 1; }
        sleep 0.001
    done
    qemu-io -r -f raw -c "read 512G 4k" "nbd+unix:///?socket=$work/socket" >/dev/null
    awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.3f s", to - from }'
    stop_server
}

if [ ! -e repo ]; then
    truncate -s "$SIZE" disk.raw
    mke2fs -q -t ext4 -d "$FILES" disk.raw
    qemu-img convert -c -O qcow2 disk.raw disk.qcow2
    "$VIRTKEEP" init >/dev/null
    "$VIRTKEEP" backup --image disk.raw --name bench >/dev/null 2>&1
    truncate -s 1T large.raw
    for at in 0 300 512 1000; do
        dd if=disk.raw of=large.raw bs=1M count=16 seek=$((at * 1024)) conv=notrunc status=none
    done
    for ((number = 0; number < POINTS; number++)); do
        dd if=/dev/urandom of=large.raw bs=4k count=1 seek=$((number * 16)) conv=notrunc status=none
        "$VIRTKEEP" backup --image large.raw --name large >/dev/null 2>&1
    done
fi
say "data on the disk" "$(du -B1 disk.raw | cut -f1) bytes"
say "compressed qcow2" "$(stat -c %s disk.qcow2) bytes"
for ((round = 1; round <= ROUNDS; round++)); do
    echo "== round $round of $ROUNDS"
    for name in virtkeep virtkeep-latest qemu-nbd-compressed qemu-nbd-raw nbdkit-raw; do
        measure "$name"
    done
    say "1 TiB disk, first bytes, first point" "$(first_byte "$(point large first)")"
    say "1 TiB disk, first bytes, point $POINTS" "$(first_byte "$(point large last)")"
done
