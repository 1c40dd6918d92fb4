#!/usr/bin/env bash
#
# licences.sh: may we use all our dependencies, and are any known to be vulnerable?
#
# usage: tests/stack/licences.sh
#
# Always checks, from what cargo knows, that every dependency has a licence that deny.toml allows
# and comes from crates.io. Where cargo-deny is installed, it checks the same its own way, and bans.
# Known vulnerabilities are checked where the advisory database can be reached (cargo-deny is then
# built once, below target/, in about two minutes); elsewhere it says that they were not.

set -euo pipefail
cd "$(dirname "$0")/../.."

readonly FETCH_SECONDS=60 ADVISORIES=https://github.com/RustSec/advisory-db
readonly CRATES_IO=registry+https://github.com/rust-lang/crates.io-index

main() {
    if (($#)); then
        sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"
        exit
    fi
    own_check

    local tools=$PWD/target/tools reachable=''
    PATH=$PATH:$tools/bin
    if timeout 10 git ls-remote -q "$ADVISORIES" HEAD >/dev/null 2>&1; then
        reachable=1
        command -v cargo-deny >/dev/null || cargo install -q --locked --root "$tools" cargo-deny
    fi
    if command -v cargo-deny >/dev/null; then
        cargo deny --offline --log-level error check bans licenses sources
    fi
    if [[ $reachable ]]; then
        timeout "$FETCH_SECONDS" cargo deny --log-level error fetch db
        cargo deny --log-level error check --disable-fetch advisories
    else
        echo "known vulnerabilities: NOT checked, the advisory database cannot be reached from here"
    fi
}

own_check() {
    local offending
    offending=$(cargo metadata --format-version 1 --locked | jq -r \
        --argjson allowed "$(allowed)" --argjson exceptions "$(exceptions)" \
        --arg registry "$CRATES_IO" '
        # The licence expression with every known licence 1 and every other 0, worked out step by
        # step: brackets, AND, OR.
        def value: . as $before
            | gsub("\\((?<x>[01])\\)"; .x)
            | gsub("1 AND 1"; "1") | gsub("0 AND [01]|1 AND 0"; "0")
            | gsub("(?<!AND )0 OR 0(?! AND)"; "0") | gsub("(?<!AND )(1 OR [01]|0 OR 1)(?! AND)"; "1")
            | if . == $before then . else value end;
        def permitted($allowed):
            gsub("/"; " OR ")
            | gsub("(?<id>\\b(?!AND\\b|OR\\b)[A-Za-z][A-Za-z0-9.+-]*( WITH [A-Za-z0-9.-]+)?)";
                if .id | IN($allowed[]) then "1" else "0" end)
            | value == "1";
        .packages[] | .name as $name
        | if (.license // "" | permitted($allowed + ($exceptions[$name] // [])) | not)
            then "\(.name) \(.version): licence \(.license // "unknown") is not allowed by deny.toml"
          elif .source != null and .source != $registry
            then "\(.name) \(.version): comes from \(.source)"
          else empty end')
    if [[ $offending ]]; then
        echo "$offending" >&2
        exit 1
    fi
    echo "licences and sources: all allowed by deny.toml"
}

# The lists in deny.toml, as JSON; only the form in which they are written there is understood.
allowed() {
    sed -n '/^allow = \[/,/^\]/p' deny.toml | grep -o '"[^"]*"' | jq -s .
}

exceptions() {
    sed -nE 's/^ *\{ crate = ("[^"]*"), allow = (\[.*\]) \},?$/{\1: \2}/p' deny.toml | jq -s add
}

main "$@"
