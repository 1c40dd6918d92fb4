#!/usr/bin/env bash
#
# mount.sh: `virtkeep mount` beside `virtkeep serve` and `virtkeep restore` on the same disk, and many points.
#
# usage: benches/mount.sh [DIRECTORY]     default: a new directory under /var/tmp, removed afterwards
#
# A tar archive of this machine's /usr, as a disk of 2 GiB, is read from front to back from a restore to
# standard output, from `serve` with nbdcopy, and from `mount` with dd, through the page cache and past it.
# Then at random with fio, 4 KiB, 16 requests in flight: from `serve`, and from `mount` past the page
# cache. They take turns, and every mount is a new one, so that none finds what another has read; packs
# are in the page cache. Last, a repository of 3,000 points is mounted and looked through. Needs root, or
# fusermount3.
#
# Set by the environment: VIRTKEEP, the program (default target/release/virtkeep); POINTS, the example of
# that name (default target/release/examples/points); ROUNDS (3); SECONDS_EACH, for each run of fio (5);
# FILES, what fills the disk (/usr).

set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
readonly ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-5} FILES=${FILES:-/usr}
VIRTKEEP=$(realpath "${VIRTKEEP:-$HERE/target/release/virtkeep}")
POINTS=$(realpath "${POINTS:-$HERE/target/release/examples/points}")
readonly HERE VIRTKEEP POINTS

case ${1:-} in --help | -h) sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; exit ;; esac
work=${1:-$(mktemp -d /var/tmp/virtkeep-mount.XXXXXX)}
mkdir -p "$work/mnt"
cd "$work"
running=

finish() {
    stop
    [ -n "${1:-}" ] || rm -rf "$work"
}
trap 'finish "${1:-}"' EXIT

stop() {
    if [ -n "$running" ]; then
        kill "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    fi
    running=
    rm -f socket ready
}

# Starts the program and waits until a line of JSON says that it is there.
start() {
    : >ready
    "$VIRTKEEP" --json "$@" >ready 2>log &
    running=$!
    until [ -s ready ]; do
        kill -0 "$running" || { cat log >&2; exit 1; }
        sleep 0.001
    done
}

since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%d ms", 1000 * (to - from) }'; }

# How long a command takes.
timed() {
    local started=$EPOCHREALTIME
    "$@" >/dev/null 2>&1
    since "$started"
}

peak_memory() { awk '/VmHWM/ { print int($2 / 1024) " MiB" }' "/proc/$running/status"; }

random() {
    fio --name=random --rw=randread --bs=4k --time_based --runtime="$SECONDS_EACH" --size=1G \
        --readonly --group_reporting --output-format=json --output=fio.json "$@" >fio.log 2>&1
    # The NBD engine writes lines of its own in front.
    sed -n '/^{/,$p' fio.json | jq -r '.jobs[0].read.iops | floor'
}

round() {
    local file=mnt/bench/latest/disk.raw uri="nbd+unix:///bench@latest?socket=$work/socket"
    echo "restore: sequential $(timed "$VIRTKEEP" restore bench@latest --to -)"
    start serve --listen "unix:$work/socket"
    echo "serve: sequential $(timed nbdcopy "$uri" null:), 4 KiB $(random --ioengine=nbd \
        --uri="$uri" --iodepth=16)/s, peak $(peak_memory)"
    stop
    start mount mnt
    echo "mount: sequential $(timed dd if=$file of=/dev/null bs=1M), 4 KiB $(random --ioengine=psync \
        --direct=1 --thread --numjobs=16 --filename=$file)/s, peak $(peak_memory)"
    stop
    start mount mnt
    echo "mount, past the page cache: sequential $(timed dd if=$file of=/dev/null bs=1M iflag=direct)"
    stop
}

export VIRTKEEP_REPO=$work/repo
"$VIRTKEEP" init >/dev/null
(tar -cf - -C / "${FILES#/}" 2>/dev/null || true) | head -c 1500M >disk.raw
truncate -s 2G disk.raw
"$VIRTKEEP" backup --image disk.raw --name bench 2>&1 | tail -n 1
rm disk.raw
for ((i = 0; i < ROUNDS; i++)); do round; done

export VIRTKEEP_REPO=$work/points
"$POINTS" "$VIRTKEEP_REPO" 3000
started=$EPOCHREALTIME
start mount mnt
echo "3,000 points: mounted in $(since "$started")"
echo "ls of all $(timed ls mnt/vm1), ls of one $(timed ls mnt/vm1/latest/)," \
    "first read $(timed head -c 4096 mnt/vm1/latest/vda.p1.raw)"
echo "find over everything $(timed find mnt), again $(timed find mnt), peak $(peak_memory)"
