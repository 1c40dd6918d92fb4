#!/usr/bin/env bash
#
# fuzz.sh: feed every decoder of foreign bytes with hostile ones, for a short while.
#
# usage: tests/stack/fuzz.sh [SECONDS [TARGET...]]
#
# Builds the targets in fuzz/ and runs each for SECONDS (3 by default). What it learns is kept in
# fuzz/corpus and used by the next run. Where one fails, the input that made it fail is kept in
# fuzz/artifacts, and how to repeat it is printed. cargo-fuzz is built once, below target/, where it is
# not installed; any Rust compiler that builds the program will do.

set -euo pipefail
cd "$(dirname "$0")/../.."

readonly CARGO_FUZZ=0.13.2
# Our decoders are Rust without `unsafe`, those of LZ4 and Zstandard are fuzzed by their makers: a sanitizer
# would find nothing, and needs a nightly compiler.
readonly BUILD=(--sanitizer none --target-dir "${CARGO_TARGET_DIR:-target}/fuzz")

main() {
    if [[ ${1-} == -* ]]; then
        sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"
        exit
    fi
    local seconds=${1:-3} target targets
    shift $(($# ? 1 : 0))
    have_cargo_fuzz
    targets=("$@")
    (($#)) || mapfile -t targets < <(cargo fuzz list)
    cargo fuzz build "${BUILD[@]}"
    for target in "${targets[@]}"; do
        run "$target" "$seconds"
    done
}

have_cargo_fuzz() {
    local tools=$PWD/target/tools
    PATH=$tools/bin:$PATH
    [[ $(cargo fuzz --version 2>/dev/null) == *" $CARGO_FUZZ" ]] && return
    cargo install -q --locked --root "$tools" "cargo-fuzz@$CARGO_FUZZ" || {
        echo "fuzz: cargo-fuzz $CARGO_FUZZ is neither installed nor can it be built here:" \
            "run 'cargo install --locked cargo-fuzz@$CARGO_FUZZ' where crates.io can be reached" >&2
        exit 1
    }
}

run() {
    local log status=0
    log=$(mktemp)
    # Edits need no long inputs, and all lengths from the start; none may take ten seconds.
    cargo fuzz run "${BUILD[@]}" "$1" -- -max_total_time="$2" -max_len=600 -len_control=0 \
        -timeout=10 >"$log" 2>&1 || status=$?
    if ((status)); then
        cat "$log" >&2
        rm -f "$log"
        exit 1
    fi
    printf '%-14s%s\n' "$1" "$(sed -n 's/^Done //p' "$log")"
    rm -f "$log"
}

main "$@"
