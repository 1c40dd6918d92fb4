#!/usr/bin/env bash
#
# guest.sh: a small Linux guest with a guest agent, for tests and the demo.
#
# usage: tests/stack/guest.sh build                       build it; prints its directory
#        tests/stack/guest.sh disk FILE SIZE [CONTENT]    make FILE a qcow2 disk with an ext4 file
#                                                         system that holds the directory CONTENT
#        tests/stack/guest.sh bootable FILE               make FILE a raw disk that boots the guest by
#                                                         itself: boot loader, kernel, initramfs
#        tests/stack/guest.sh wait DOMAIN [SECONDS]       until its agent answers (default 60)
#        tests/stack/guest.sh run DOMAIN COMMAND          run a shell command in the guest: its output
#                                                         and exit code become this program's
#
# The guest is Debian's kernel for the cloud with an initramfs of busybox, qemu-ga and the scripts
# in tests/stack/guest: what it does with its disks is told there. `domain-xml --boot DIR` prints
# the domain. It is kept in $VIRTKEEP_TEST_CACHE (default: target/stack) and rebuilt when its
# scripts change; the packages are downloaded once. Needs no root.

set -euo pipefail

STACK=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${VIRTKEEP_TEST_CACHE:-$STACK/../../target/stack}
readonly STACK CACHE MODULES=(virtio_pci virtio_blk virtio_console virtio_rng efivarfs)

usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; }
fail() { echo "guest: $*" >&2; exit 1; }

# --- building ------------------------------------------------------------------------------------

build() {
    local directory stamp
    mkdir -p "$CACHE"
    directory=$(cd "$CACHE" && pwd)/guest
    exec {lock}>"$CACHE/lock"
    flock "$lock"
    stamp=$(cat "$STACK"/guest/* "$STACK/guest.sh" | sha256sum)
    if [[ $(cat "$directory/stamp" 2>/dev/null) != "$stamp" ]]; then
        mkdir -p "$directory"
        download_packages
        initramfs "$directory/initrd"
        cp "$(one_file "$CACHE"/packages/boot/vmlinuz-*)" "$directory/vmlinuz"
        cp "$(one_file "$CACHE"/packages/usr/share/OVMF/OVMF_CODE_4M.fd)" "$directory/firmware.fd"
        cp "$(one_file "$CACHE"/packages/usr/share/OVMF/OVMF_VARS_4M.fd)" "$directory/variables.fd"
        echo "$stamp" >"$directory/stamp"
    fi
    echo "$directory"
}

# The kernel, the agent and the firmware are unpacked, not installed: this machine neither boots the first
# nor runs the others.
download_packages() {
    local kernel unpacked=$CACHE/packages
    [[ ! -e $unpacked/usr/share/OVMF ]] || return 0
    kernel=$(kernel_package) || fail "apt knows no package linux-image-cloud-$(dpkg --print-architecture): run 'apt-get update'"
    rm -rf "$unpacked.new"
    mkdir -p "$unpacked.new/debs"
    (cd "$unpacked.new/debs" && apt-get download -qq "$kernel" qemu-guest-agent ovmf 2>/dev/null) ||
        fail "cannot download $kernel, qemu-guest-agent and ovmf" \
            "(needs a network, which with-libvirt has not; 'apt-get update' may help)"
    local package
    for package in "$unpacked.new"/debs/*.deb; do
        dpkg -x "$package" "$unpacked.new"
    done
    # /lib is a link to /usr/lib in later packages; both are looked for in one place.
    [[ -d $unpacked.new/lib/modules ]] || ln -s usr/lib "$unpacked.new/lib"
    rm -rf "$unpacked.new/debs" "$unpacked"
    mv "$unpacked.new" "$unpacked"
}

kernel_package() {
    apt-cache depends "linux-image-cloud-$(dpkg --print-architecture)" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | grep -m1 .
}

initramfs() {
    local root unpacked=$CACHE/packages
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$root'" EXIT
    mkdir -p "$root"/{bin,sbin,modules}
    cp /bin/busybox "$root/bin/"
    ln -s busybox "$root/bin/sh"
    cp "$STACK"/guest/{busy,verify} "$root/bin/"
    cp "$STACK/guest/init" "$root/init"
    cp "$STACK/guest/shutdown" "$root/sbin/shutdown"
    modules "$unpacked" "$root/modules"

    local agent library
    agent=$(one_file "$unpacked"/usr/*bin/qemu-ga)
    cp "$agent" "$root/bin/"
    ! ldd "$agent" | grep 'not found' >&2 || fail "qemu-ga lacks the libraries above: run tests/stack/install.sh"
    for library in $(ldd "$agent" | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$1.new"
    mv "$1.new" "$1"
}

# Copies the modules and all that they need, and their names in the order of insertion.
modules() {
    local from=$1 to=$2 version module line file
    version=$(basename "$(one_file "$from"/lib/modules/*)")
    depmod -b "$from" "$version"
    for module in "${MODULES[@]}"; do
        modprobe -d "$from" -S "$version" --show-depends "$module"
    done | while read -r line file _; do
        [[ $line == insmod ]] || continue # what is built in needs nothing
        module=$(basename "$file")
        case $module in
            *.xz) module=${module%.xz}; xz -dc "$file" >"$to/$module" ;;
            *) cp "$file" "$to/" ;;
        esac
        grep -qsx "$module" "$to/order" || echo "$module" >>"$to/order"
    done
}

one_file() {
    [[ -e $1 ]] || fail "nothing matches $1"
    echo "$1"
}

# --- disks ---------------------------------------------------------------------------------------

disk() {
    local file=$1 size=$2 content=${3-} raw
    raw=$(mktemp -p "$(dirname "$file")" .disk.XXXXXX)
    # shellcheck disable=SC2064 # the file of now
    trap "rm -f '$raw'" EXIT
    truncate -s "$size" "$raw"
    PATH=$PATH:/sbin mkfs.ext4 -q ${content:+-d "$content"} "$raw"
    qemu-img convert -f raw -O qcow2 "$raw" "$file"
}

bootable() {
    local file=$1 directory
    directory=$(build)
    (
        PATH=$PATH:/usr/sbin:/sbin
        mkfs.vfat -C "$file" 32768 >/dev/null
        printf '%s\n' 'DEFAULT guest' 'LABEL guest' 'LINUX vmlinuz' 'INITRD initrd' \
            'APPEND console=ttyS0 quiet panic=1' | mcopy -i "$file" - ::syslinux.cfg
        mcopy -i "$file" "$directory"/{vmlinuz,initrd} ::
        syslinux --install "$file"
    )
}

# --- talking to it -------------------------------------------------------------------------------

# A guest may have to wait for its disk, or for a core, before it answers.
agent() { virsh qemu-agent-command "$1" --timeout "${3:-60}" "$2"; }

wait_for_agent() {
    local deadline=$((SECONDS + ${2:-60}))
    until agent "$1" '{"execute":"guest-ping"}' 10 >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "no guest agent answers in $1"
        sleep 0.2
    done
}

run() {
    local request reply pid
    request=$(jq -nc --arg command "$2" '{execute: "guest-exec",
        arguments: {path: "/bin/sh", arg: ["-c", $command], "capture-output": true}}')
    pid=$(agent "$1" "$request" | jq .return.pid)
    request='{"execute":"guest-exec-status","arguments":{"pid":'$pid'}}'
    reply=$(agent "$1" "$request")
    until jq -e .return.exited <<<"$reply" >/dev/null; do
        sleep 0.1
        reply=$(agent "$1" "$request")
    done
    jq -r '.return["out-data"] // empty' <<<"$reply" | base64 -d
    jq -r '.return["err-data"] // empty' <<<"$reply" | base64 -d >&2
    return "$(jq '.return.exitcode // 1' <<<"$reply")"
}

case ${1-}/$# in
    --help/* | -h/*) usage ;;
    build/1) build ;;
    disk/[34]) disk "${@:2}" ;;
    bootable/2) bootable "$2" ;;
    wait/[23]) wait_for_agent "${@:2}" ;;
    run/3) run "${@:2}" ;;
    *) usage >&2; exit 2 ;;
esac
