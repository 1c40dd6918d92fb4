#!/usr/bin/env bash
#
# check.sh: all that is checked before a change goes in; `make test` and `make lint` call it.
#
# usage: tests/stack/check.sh [SECTION...]
#
#   install    what is missing on this machine
#   format     rustfmt
#   clippy     the lints, warnings are errors
#   docs       the crates' documentation builds without a warning
#   licences   licences and sources of all dependencies; known vulnerabilities where possible
#   scripts    shellcheck, where it is installed
#   stack      the private libvirtd and the guest that the tests stand on
#   test       all tests of the workspace, beside a private libvirtd
#   fuzz       hostile bytes for every decoder, a few seconds each
#   memory     the tests of the unsafe crate under valgrind
#
# Without a SECTION: all of them, in this order. It stops at the first that fails.

set -euo pipefail
cd "$(dirname "$0")/../.."

readonly SECTIONS=(install format clippy docs licences scripts stack test fuzz memory)

usage() { sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; }

section_install() { tests/stack/install.sh test; }

section_format() {
    if ! cargo fmt --all --check -- -l || ! cargo fmt --manifest-path fuzz/Cargo.toml --check -- -l; then
        echo "the files above are not formatted: run cargo fmt" >&2
        return 1
    fi
}

section_clippy() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    # What others may want without TLS and systemd.
    cargo clippy -p nbd-server --no-default-features --locked -- -D warnings
}

section_docs() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked; }

section_licences() { tests/stack/licences.sh; }

section_scripts() {
    if ! command -v shellcheck >/dev/null; then
        echo "skipped: shellcheck is not installed"
        return
    fi
    shellcheck tests/stack/*.sh tests/stack/with-libvirt tests/stack/domain-xml .ci/run \
        benches/*.sh libnbd/tests/*.sh
    shellcheck --shell=dash tests/stack/guest/*
}

section_stack() { tests/stack/selftest.sh; }

section_test() {
    # All that needs the network comes first: beside the private libvirtd there is none.
    tests/stack/guest.sh build
    cargo test --workspace --locked --no-run
    CARGO_NET_OFFLINE=true tests/stack/with-libvirt cargo test --workspace --locked
}

section_fuzz() { tests/stack/fuzz.sh; }

section_memory() { CARGO_NET_OFFLINE=true libnbd/tests/valgrind.sh; }

main() {
    local section started seconds done=()
    case ${1-} in --help | -h) usage; exit 0 ;; esac
    (($#)) || set -- "${SECTIONS[@]}"
    for section; do
        declare -F "section_$section" >/dev/null || { usage >&2; exit 2; }
    done
    for section; do
        printf '\n── %s\n' "$section"
        started=$SECONDS
        # Not `if section_...`: that would switch off `set -e` in it.
        current=$section
        "section_$section"
        seconds=$((SECONDS - started))
        echo "── $section: fine, $seconds s"
        done+=("$section $seconds s")
    done
    current=
    printf '\nAll fine after %s s:' "$SECONDS"
    printf ' %s,' "${done[@]}" | sed 's/,$/.\n/'
}

current=
trap '[[ ! $current ]] || printf "\nFAILED: %s\n" "$current" >&2' EXIT
main "$@"
