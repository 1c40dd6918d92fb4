#!/usr/bin/env bash
#
# demo.sh: virtkeep at work on a real virtual machine; `make demo` calls it.
#
# usage: tests/stack/demo.sh [--keep]
#
#   --keep   leave the repository and the restored disks behind, to look at them
#   --help   show this text
#
# Installs what is missing, builds virtkeep, boots a Linux guest with two disks beside a private
# libvirtd, backs it up three times while it keeps writing, loses it, and restores the first and
# the last point. That both are right is proved with checksums that the guest itself has taken.
# Everything happens in one directory below target/, which is removed in the end, also after Ctrl-C.

set -euo pipefail

STACK=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly STACK VM=web1

usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; }

# --- what is seen ----------------------------------------------------------------------------------

if [[ -t 1 ]]; then bold=$'\e[1m' faint=$'\e[2m' plain=$'\e[0m'; else bold='' faint='' plain=''; fi

step() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
say() { printf '%s%s%s\n' "$faint" "$*" "$plain"; }

# Shows a command as it would be typed, and runs it; sets `took` to its seconds.
typed() {
    local from=$EPOCHREALTIME
    printf '%s$ %s%s\n' "$bold" "$*" "$plain"
    "$@"
    took=$(seconds_since "$from")
    [[ $1 != virtkeep ]] || say "($took s)"
}

seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'; }
size() { numfmt --to=iec-i --suffix=B --format=%.1f "$@"; }

# --- outside: everything that needs the network, and the cleaning up -----------------------------

outside() {
    local keep='' work code=0
    while (($#)); do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --keep) keep=1; shift ;;
            *) usage >&2; exit 2 ;;
        esac
    done
    cd "$STACK/../.."

    step 'Getting ready'
    "$STACK/install.sh" demo
    say 'building virtkeep ...'
    cargo build --quiet --release --locked --package virtkeep
    "$STACK/guest.sh" build >/dev/null

    work=$(mktemp -d "$PWD/target/demo.XXXXXX")
    # shellcheck disable=SC2064 # the directory of now
    [[ $keep ]] || trap "rm -rf '$work'" EXIT
    PATH=${CARGO_TARGET_DIR:-$PWD/target}/release:$PATH \
        setpriv --pdeathsig TERM env --default-signal=INT,QUIT \
        "$STACK/with-libvirt" "$STACK/demo.sh" --inside "$work" <&0 &
    local pid=$!
    trap 'kill -TERM "$pid"' TERM HUP
    trap : INT # it reaches the demo directly, which then ends
    while kill -0 "$pid" 2>/dev/null; do
        code=0
        wait "$pid" || code=$?
    done
    if [[ $keep ]]; then
        echo "Kept: the repository in $work/repo, the restored disks in $work/first and $work/last"
    elif ((code)); then
        echo 'The demo did not reach its end; everything it started or wrote is removed.' >&2
    else
        say 'The private libvirtd, its guests and their files are gone again.'
    fi
    exit "$code"
}

# --- inside: the demo ------------------------------------------------------------------------------

inside() {
    work=$1
    cd "$work"
    trap 'exit 130' INT
    trap 'exit 143' TERM
    export VIRTKEEP_REPO=$work/repo

    step '1. A virtual machine that is never idle'
    boot_guest

    step '2. An empty repository'
    typed virtkeep init

    step '3. The first backup reads everything, while the guest keeps writing'
    backup first
    step '4. The second reads only what has changed since'
    live_on
    backup second
    step '5. The third: files deleted, trimmed and overwritten with zeroes in between'
    in_guest 'rm -r /disks/vdb/content; fstrim /disks/vdb'
    in_guest 'dd if=/dev/zero of=/disks/vda/proof/1 bs=64k count=16 conv=notrunc,fsync' 2>/dev/null
    live_on
    backup third
    typed virtkeep list
    typed virsh --quiet checkpoint-list $VM

    step '6. The worst happens'
    typed virsh --quiet destroy $VM
    typed virsh --quiet undefine $VM --checkpoints-metadata
    typed rm vda.qcow2 vdb.qcow2

    step '7. The first and the last point, restored'
    typed virtkeep restore "$VM@latest~2" --to first --format raw
    prove first first
    typed virtkeep restore "$VM@latest" --to last --format raw
    prove last third

    step '8. And the machine itself, from its last point'
    typed virtkeep restore "$VM@latest" --to reborn --define --name $VM-reborn --start
    "$STACK/guest.sh" wait $VM-reborn
    say 'its console says:'
    sed 's/^/    /' reborn/$VM.console
    prove_in_guest

    step '9. What it cost'
    tell_costs
}

boot_guest() {
    local guest content
    guest=$("$STACK/guest.sh" build)
    content=$(dirname "$guest")/packages
    mkdir tree
    cp -r "$content" tree/content
    "$STACK/guest.sh" disk vda.qcow2 8G tree
    "$STACK/guest.sh" disk vdb.qcow2 4G tree
    rm -rf tree
    "$STACK/domain-xml" --boot "$guest" --busy $VM "$work/vda.qcow2" "$work/vdb.qcow2" >$VM.xml
    virsh --quiet define $VM.xml
    typed virsh --quiet start $VM
    "$STACK/guest.sh" wait $VM
    sed 's/^/    /' $VM.console
    typed virsh --quiet domblklist $VM
}

# The number of the newest file that the guest has written on vda.
last_file() {
    local line
    line=$(in_guest 'tail -n 1 /disks/vda/sums')
    echo $((10#${line##*/}))
}

in_guest() { "$STACK/guest.sh" run $VM "$1"; }

# Lets the guest write on for a while.
live_on() {
    local before after
    before=$(last_file)
    sleep 6
    after=$(last_file)
    say "meanwhile the guest has written $((after - before)) more files on vda alone"
}

# The guest writes new content into the same few files, and hands out their sums; then a backup is
# taken. Meanwhile it goes on writing its other files, whose sums it keeps on the disk itself.
backup() {
    local point=$1 disk
    for disk in vda vdb; do
        in_guest "cd /disks/$disk && mkdir -p proof
            for i in 2 3 4; do dd if=/dev/urandom of=proof/\$i bs=64k count=8 conv=notrunc,fsync; done
            [ -e proof/1 ] || dd if=/dev/urandom of=proof/1 bs=64k count=16 conv=fsync" 2>/dev/null
        in_guest "cd /disks/$disk && sha256sum proof/*" >"$point.$disk.sums"
    done
    local before after
    before=$(repository_bytes)
    typed virtkeep backup $VM
    after=$(repository_bytes)
    costs+=("$(printf '    %-8s %6s s %11s' "$point" "$took" "$(size $((after - before)))")")
}

repository_bytes() { du -sb repo | cut -f1; }

# proof of a restored directory: the file systems are in order; the files whose sums the guest handed
# out before the backup have these sums; and so has every file that it recorded on the disk.
prove() {
    local directory=$1 point=$2 disk image files
    for disk in vda vdb; do
        image=$(echo "$directory"/*"$disk"*)
        /sbin/e2fsck -fn "$image" >/dev/null 2>&1 || die "$image: the file system is damaged"
        files=$directory/$disk.files
        mkdir "$files"
        for tree in /proof /files /sums; do
            /sbin/debugfs -R "rdump $tree $files" "$image" 2>/dev/null
        done
        (cd "$files" && sha256sum --quiet --strict -c "../../$point.$disk.sums") ||
            die "$image: not what the guest wrote before the $point backup"
        (cd "$files" && sha256sum --quiet --strict -c sums) ||
            die "$image: not what the guest had recorded"
        say "    $disk: proved by $(wc -l <"$point.$disk.sums") sums handed out before the backup," \
            "and $(wc -l <"$files/sums") recorded on the disk until that moment"
        rm -rf "$files"
    done
}

prove_in_guest() {
    local disk
    for disk in vda vdb; do
        "$STACK/guest.sh" run $VM-reborn "cd /disks/$disk && sha256sum -c <<END
$(<"third.$disk.sums")
END" >/dev/null || die "$disk: not what was backed up, says the restored guest"
        say "    $disk: right, says the restored guest itself"
    done
}

tell_costs() {
    local bytes
    say "the two disks of $VM: $(du -cB1 first/*vd* | awk 'END { print $1 }' | size) of data"
    say 'backup, time, growth of the repository:'
    printf '%s\n' "${costs[@]}"
    bytes=$(repository_bytes)
    say "three points in $(size "$bytes")"
    typed virtkeep stats
}

die() { echo "demo: $*" >&2; exit 1; }

costs=()
if [[ ${1-} == --inside ]]; then
    inside "$2"
else
    outside "$@"
fi
