#!/usr/bin/env bash
#
# install.sh: install on a Debian machine what virtkeep's build, tests and demo need.
#
# usage: tests/stack/install.sh [--check] [build|demo|test]
#
#   build     what compiling needs: C and Rust toolchains, libvirt, libnbd
#   demo      build, and QEMU, the libvirt daemon and the tools that make a small guest
#   test      demo, and the programs that the tests compare virtkeep with (the default)
#   --check   install nothing; say what is missing, and fail if anything is
#   --help    show this text
#
# Does nothing, and quickly, when all is there. Uses sudo when not root. A Rust toolchain that is
# there and recent enough is used as it is. On Debian 12 with parts of QEMU or libvirt from
# backports the rest must come from there too: then, and only then, the backports suite is added
# to Debian's own entry in apt's sources (the old file is kept as *.before-virtkeep).

set -euo pipefail

# The minor version in `rust-version = "1.90"`.
RUST_MIN=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' "$(dirname "$0")/../../Cargo.toml")
readonly RUST_MIN

build=(ca-certificates make gcc libc6-dev pkg-config libvirt-dev libnbd-dev)
demo=(libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils iproute2 busybox-static
    cpio kmod xz-utils e2fsprogs jq)
test=(nbdkit libnbd-bin nbd-client openssl valgrind g++ python3 fio fuse3 systemd fdisk xfsprogs
    dosfstools mtools syslinux)

usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; }
say() { echo "install: $*"; }
fail() { echo "install: $*" >&2; exit 1; }

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi
}

main() {
    local check='' packages=() profile=test
    while (($#)); do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --check) check=1 ;;
            build | demo | test) profile=$1 ;;
            *) usage >&2; exit 2 ;;
        esac
        shift
    done
    case $profile in
        build) packages=("${build[@]}") ;;
        demo) packages=("${build[@]}" "${demo[@]}") ;;
        test) packages=("${build[@]}" "${demo[@]}" "${test[@]}") ;;
    esac

    command -v dpkg-query >/dev/null || fail "only Debian and its kin are known here;" \
        "elsewhere install the equivalents of: ${packages[*]}, and Rust 1.$RUST_MIN or newer"
    local missing
    mapfile -t missing < <(missing_packages "${packages[@]}")
    if [[ $check ]]; then
        have_rust || missing+=("rust>=1.$RUST_MIN")
        ((${#missing[@]} == 0)) || fail "missing: ${missing[*]}"
        return
    fi
    ((${#missing[@]} == 0)) && have_rust && return

    say "updating apt's lists"
    as_root apt-get update -qq
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
    have_rust || install_rust
}

missing_packages() {
    local installed package
    installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' 2>/dev/null) "
    for package; do
        [[ $installed == *" installed=$package "* ]] || echo "$package"
    done
}

# Quiet unless it fails.
apt_install() {
    local output
    output=$(as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-remove --no-install-recommends "$@" 2>&1) || fail "apt failed:"$'\n'"$output"
}

# Whether apt finds a way that removes nothing.
would_install() {
    apt-get install -s --no-remove --no-install-recommends "$@" >/dev/null 2>&1
}

install_packages() {
    say "installing $*"
    if would_install "$@"; then
        apt_install "$@"
    elif has_backports_installed; then
        add_backports
        apt_install -t bookworm-backports "$@"
    else
        apt-get install -s --no-remove --no-install-recommends "$@" >&2 || true
        fail "apt cannot install these packages; its reasons are above"
    fi
}

# --- backports -----------------------------------------------------------------------------------

has_backports_installed() {
    dpkg-query -W -f '${Version} ${db:Status-Status}\n' | grep -q '~bpo12+.* installed$'
}

add_backports() {
    apt-cache policy | grep -q 'n=bookworm-backports' && return
    say "adding the suite bookworm-backports, because parts of QEMU or libvirt came from there"
    local file
    for file in /etc/apt/sources.list.d/*.sources; do
        if grep -qsE '^Suites:.*\bbookworm-updates\b' "$file"; then
            edit_sources "$file" '/^Suites:.*\bbookworm-updates\b/ s/$/ bookworm-backports/'
            return
        fi
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        if grep -qsE '^deb .* bookworm-updates ' "$file"; then
            edit_sources "$file" \
                '/^deb .* bookworm-updates / { p; s/ bookworm-updates / bookworm-backports / }'
            return
        fi
    done
    fail "found no entry with bookworm-updates in apt's sources to add bookworm-backports to"
}

edit_sources() {
    # apt reads no file with such an ending.
    as_root sed -i.before-virtkeep -E "$2" "$1"
    as_root apt-get update -qq
}

# --- Rust ----------------------------------------------------------------------------------------

have_rust() {
    local version
    command -v cargo >/dev/null && command -v rustfmt >/dev/null &&
        command -v cargo-clippy >/dev/null || return 1
    version=$(rustc --version 2>/dev/null) || return 1 # "rustc 1.90.0 (...)"
    version=${version#rustc 1.}
    ((${version%%.*} >= RUST_MIN))
}

# Debian's own packages where they are new enough: since Debian 13 the plain ones; on Debian 12 the
# ones kept up to date for building web browsers.
install_rust() {
    local packages
    if command -v rustup >/dev/null; then
        fail "the Rust toolchain is older than 1.$RUST_MIN or lacks rustfmt or clippy:" \
            "run 'rustup update stable && rustup component add rustfmt clippy'"
    elif (($(candidate_minor cargo) >= RUST_MIN)); then
        packages=(cargo rustc rustfmt rust-clippy)
    elif (($(candidate_minor cargo-web) >= RUST_MIN)); then
        packages=(cargo-web rustc-web rustfmt-web rust-web-clippy)
    else
        fail "no Rust 1.$RUST_MIN or newer in Debian's packages here: install it from rustup.rs"
    fi
    would_install "${packages[@]}" || fail "the Rust from Debian's packages here is older than" \
        "1.$RUST_MIN; this puts a newer one in its place: apt-get install ${packages[*]}"
    say "installing Rust: ${packages[*]}"
    apt_install "${packages[@]}"
    have_rust || fail "installed ${packages[*]}, but cargo is still not a recent one: see PATH"
}

# The Rust minor version of a package: rustc's, since cargo had a numbering of its own.
candidate_minor() {
    local version
    version=$(apt-cache policy "${1/cargo/rustc}" | sed -n 's/^ *Candidate: 1\.\([0-9]*\).*/\1/p')
    echo "${version:-0}"
}

main "$@"
