#!/usr/bin/env bash
#
# vm.sh: virtkeep on a real domain, beside plain reading and the tools people use today.
#
# usage: benches/vm.sh [DIRECTORY]     default: a new directory under /var/tmp, removed afterwards
#
# A paused domain without operating system holds an 8 GiB qcow2 disk with an ext4 file system full
# of this machine's /usr. Every tool reads it through a backup job of the same kind; the rounds of
# all tools take turns, and each figure is printed as it comes: seconds, peak memory, bytes stored.
# VIRTKEEP names the program (default target/release/virtkeep), ROUNDS the number of rounds (3).
# virtnbdbackup, restic and borg take part where they are installed.

set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
readonly HERE
readonly ROUNDS=${ROUNDS:-3}
readonly VIRTKEEP=${VIRTKEEP:-$HERE/target/release/virtkeep}

if [ "${1:-}" != --inside ]; then
    if [ "${1:-}" = --help ]; then
        sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"
        exit
    fi
    work=${1:-$(mktemp -d /var/tmp/virtkeep-bench.XXXXXX)}
    mkdir -p "$work"
    [ -n "${1:-}" ] || trap 'rm -rf "$work"' EXIT
    "$HERE/tests/stack/with-libvirt" "$0" --inside "$work"
    exit
fi

readonly WORK=$2
readonly DOMAIN=bench
cd "$WORK"

# Runs a command and prints its seconds and peak memory.
measure() {
    local name=$1
    shift
    if ! /usr/bin/time -o time.txt -f '%e s %M KiB' "$@" >output.txt 2>&1; then
        tail -n 5 output.txt >&2
        echo "$name failed" >&2
        return 1
    fi
    printf '%-44s %s\n' "$name" "$(cat time.txt)"
}

say() { printf '%-44s %s\n' "$1" "$2"; }

bytes_in() { du -sB1 --apparent-size "$1" | cut -f1; }

make_disk() {
    [ -e disk.raw ] || { truncate -s 8G disk.raw && mke2fs -q -t ext4 -d /usr disk.raw; }
    qemu-img convert -O qcow2 disk.raw disk.qcow2
    say "data on the disk" "$(du -B1 disk.raw | cut -f1) bytes"
}

# Writes chunks of 64 KiB at scattered places of the domain's disk.
dirty() {
    local count=$1 at
    for ((at = 0; at < count; at++)); do
        virsh -q qemu-monitor-command "$DOMAIN" --hmp \
            "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P $((RANDOM % 255 + 1)) $(((at * 397 + 11) % 8000))M 64k\"" \
            >/dev/null
    done
}

job_begin() {
    cat >job.xml <<XML
<domainbackup mode='pull'><server transport='unix' socket='$WORK/job.sock'/>
<disks><disk name='vda' backup='yes' type='file'><scratch file='$WORK/job.scratch'/></disk></disks></domainbackup>
XML
    virsh -q backup-begin "$DOMAIN" job.xml >/dev/null
}

job_end() {
    virsh -q domjobabort "$DOMAIN"
    while virsh domjobinfo "$DOMAIN" | grep -q 'Backup'; do sleep 0.05; done
    rm -f job.sock job.scratch
}

# What the libvirt calls of an incremental take without reading anything.
job_alone() {
    job_begin
    job_end
}

virtkeep() { "$VIRTKEEP" -r "$WORK/repo" "$@"; }

round() {
    rm -rf repo repo-zstd vnb restic borg
    job_begin
    measure "nbdcopy to null" nbdcopy "nbd+unix:///vda?socket=$WORK/job.sock" null:
    job_end

    virtkeep init >/dev/null
    measure "virtkeep full, lz4" "$VIRTKEEP" -r repo backup "$DOMAIN"
    say "  stored" "$(bytes_in repo/packs) bytes"
    measure "virtkeep incremental, nothing changed" "$VIRTKEEP" -r repo backup "$DOMAIN"
    dirty 20
    measure "virtkeep incremental, 20 dirty chunks" "$VIRTKEEP" -r repo --json backup "$DOMAIN"
    say "  of which" "$(grep '"type":"point"' output.txt | jq -c '.disks[0] | {read_bytes,new_bytes,stored_bytes}')"
    measure "libvirt's calls alone" bash -c "$(declare -f job_begin job_end job_alone); DOMAIN=$DOMAIN WORK=$WORK job_alone"
    measure "virtkeep full again, nothing changed" "$VIRTKEEP" -r repo backup --full "$DOMAIN"
    virtkeep release "$DOMAIN" >/dev/null 2>&1
    rm -rf restored
    measure "virtkeep restore, raw" "$VIRTKEEP" -r repo restore "$DOMAIN@latest" --to restored --format raw
    rm -rf restored
    measure "virtkeep restore, qcow2" "$VIRTKEEP" -r repo restore "$DOMAIN@latest" --to restored
    rm -rf restored
    measure "virtkeep check --read-data" "$VIRTKEEP" -r repo check --read-data
    rm -rf repo
    "$VIRTKEEP" -r repo-zstd init --codec zstd:1 >/dev/null
    measure "virtkeep full, zstd:1" "$VIRTKEEP" -r repo-zstd backup "$DOMAIN" --no-checkpoint
    say "  stored" "$(bytes_in repo-zstd/packs) bytes"
    rm -rf repo-zstd

    if command -v virtnbdbackup >/dev/null; then
        measure "virtnbdbackup full, lz4" virtnbdbackup -z -d "$DOMAIN" -l full -o "$WORK/vnb"
        say "  stored" "$(bytes_in vnb) bytes"
        dirty 20
        measure "virtnbdbackup incremental, 20 dirty chunks" virtnbdbackup -z -d "$DOMAIN" -l inc -o "$WORK/vnb"
        mkdir -p restored
        measure "virtnbdrestore" virtnbdrestore -i "$WORK/vnb" -o "$WORK/restored"
        rm -rf restored vnb
        virsh -q checkpoint-list "$DOMAIN" --name | xargs -r -n1 virsh -q checkpoint-delete "$DOMAIN" >/dev/null
    fi
    if command -v restic >/dev/null; then
        RESTIC_PASSWORD=bench restic -q -r restic init >/dev/null
        RESTIC_PASSWORD=bench measure "restic full (image at rest)" restic -r restic backup disk.raw
        say "  stored" "$(bytes_in restic) bytes"
        RESTIC_PASSWORD=bench measure "restic again" restic -r restic backup --force disk.raw
        rm -rf restic
    fi
    if command -v borg >/dev/null; then
        borg init -e none borg >/dev/null 2>&1
        measure "borg full, lz4 (image at rest)" borg create -C lz4 borg::one disk.raw
        say "  stored" "$(bytes_in borg) bytes"
        rm -rf borg
    fi
}

make_disk
virsh -q define <("$HERE/tests/stack/domain-xml" "$DOMAIN" "$WORK/disk.qcow2")
virsh -q start "$DOMAIN" --paused
for ((number = 1; number <= ROUNDS; number++)); do
    echo "== round $number of $ROUNDS"
    round
done
