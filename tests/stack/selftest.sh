#!/usr/bin/env bash
#
# selftest.sh: do the scripts here keep what they promise?
#
# usage: tests/stack/selftest.sh
#
# Tries with-libvirt (exit codes, two at once, nothing left behind however it ends) and the Linux
# guest (agent, freeze, files that are right after a crash).

set -euo pipefail

STACK=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly STACK

fail() { echo "FAILED: $current" "$@" >&2; exit 1; }
case_of() { current=$*; echo "  $current"; }

outside() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    local code pid other
    for disk in one two; do
        qemu-img create -q -f qcow2 "$work/$disk.qcow2" 1M
        "$STACK/domain-xml" same "$work/$disk.qcow2" >"$work/$disk.xml"
    done

    case_of 'the exit code of with-libvirt is that of the command'
    code=0
    stack sh -c 'exit 7' || code=$?
    ((code == 7)) || fail "$code"

    case_of 'two private libvirtds at once do not see each other'
    start_in_background one
    pid=$!
    start_in_background two
    other=$!
    wait_until exists "$work/one.started"
    wait_until exists "$work/two.started"
    (($(guests) == 2)) || fail "$(guests) guests"

    case_of 'nothing runs on after with-libvirt was told to stop'
    kill -TERM "$pid"
    wait "$pid" && fail 'exit code 0'
    (($(guests) == 1)) || fail "$(guests) guests"

    case_of 'nothing runs on after with-libvirt was killed'
    kill -KILL "$other"
    wait "$other" 2>/dev/null && fail 'exit code 0'
    wait_until no_guests

    "$STACK/guest.sh" build >/dev/null
    stack "$STACK/selftest.sh" --inside "$work"
}

stack() { "$STACK/with-libvirt" "$@"; }

start_in_background() {
    bash "$STACK/with-libvirt" sh -c \
        "virsh --quiet create --paused '$work/$1.xml' && touch '$work/$1.started' && sleep 600" &
}

exists() { [[ -e $1 ]]; }
no_guests() { (($(guests) == 0)); }

# How many QEMUs have a disk in our directory.
guests() {
    local count=0 file
    for file in /proc/[0-9]*/cmdline; do
        # Some end while we look.
        if { tr '\0' ' ' <"$file" | grep -q "^[^ ]*qemu-system.*$work/"; } 2>/dev/null; then
            count=$((count + 1))
        fi
    done
    echo "$count"
}

wait_until() {
    local deadline=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < deadline)) || fail "waited for: $*"
        sleep 0.1
    done
}

inside() {
    cd "$1"
    local guest frozen
    guest=$("$STACK/guest.sh" build)
    "$STACK/guest.sh" disk vda.qcow2 256M
    "$STACK/guest.sh" disk vdb.qcow2 256M
    "$STACK/domain-xml" --boot "$guest" --busy writer vda.qcow2 vdb.qcow2 >writer.xml

    case_of 'the guest keeps writing on both disks'
    virsh --quiet create writer.xml
    "$STACK/guest.sh" wait writer
    wait_until has_written 10 vda
    wait_until has_written 10 vdb

    case_of 'its agent freezes and thaws both file systems'
    frozen=$(virsh domfsfreeze writer)
    [[ $frozen == *2* ]] || fail "$frozen"
    virsh --quiet domfsthaw writer

    case_of 'it notices a file that is not what it recorded'
    "$STACK/guest.sh" run writer \
        'mkdir /run/t && cp -r /disks/vda/sums /disks/vda/files /run/t && sed -i s/./x/ /run/t/files/*9'
    if "$STACK/guest.sh" run writer 'verify /run/t' >verdict; then fail "$(<verdict)"; fi

    case_of 'after a crash all recorded files are right'
    virsh --quiet destroy writer
    virsh --quiet create writer.xml
    "$STACK/guest.sh" wait writer
    (($(grep -cE 'vd[ab]: all [0-9]+ recorded files are right' writer.console) == 2)) ||
        fail "$(<writer.console)"
}

has_written() {
    local lines
    lines=$("$STACK/guest.sh" run writer "grep -c . /disks/$2/sums") || return 1
    ((lines >= $1))
}

if [[ ${1-} == --inside ]]; then
    inside "$2"
elif (($#)); then
    sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"
else
    outside
fi
