#!/usr/bin/env bash
#
# compare.sh: how fast a raw image is served by this crate, by qemu-nbd and by nbdkit.
#
# usage: server/benches/compare.sh [--mib N] [--rounds N] [--seconds N]
#
#   --mib N       size of the image, random bytes (default 2048)
#   --rounds N    how often each figure is taken; the median is printed (default 5)
#   --seconds N   how long each round of random reads takes (default 3)
#
# All of it in one run, the servers taking turns, so that they meet the same machine. The image is
# in the page cache; what is compared is the way from there to a client. Needs nbdcopy, fio with
# the nbd engine, qemu-nbd and nbdkit; builds the example serve-file in release mode.

set -euo pipefail
cd "$(dirname "$0")/.."

readonly SERVERS=(ours qemu-nbd nbdkit)
mib=2048 rounds=5 seconds=3

main() {
    while (($#)); do
        case $1 in
            --mib) mib=$2 ;;
            --rounds) rounds=$2 ;;
            --seconds) seconds=$2 ;;
            *) sed -n '3,/^$/{s/^# \{0,1\}//;p}' "$0"; exit ;;
        esac
        shift 2
    done
    cargo build --quiet --release --example serve-file
    local target=${CARGO_TARGET_DIR:-../target}

    dir=$(mktemp -d)
    trap cleanup EXIT
    head -c "${mib}M" /dev/urandom >"$dir/disk"
    "$target/release/examples/serve-file" "$dir/disk" "$dir/ours" 2>"$dir/log" &
    pids+=($!)
    qemu-nbd -r -f raw -e 16 -t -k "$dir/qemu-nbd" "$dir/disk" &
    pids+=($!)
    nbdkit -f -r -U "$dir/nbdkit" file "$dir/disk" &
    pids+=($!)
    local server round
    for server in "${SERVERS[@]}"; do
        until [[ -S $dir/$server ]]; do sleep 0.05; done
        nbdcopy "$(uri "$server")" null:
    done

    for ((round = 0; round < rounds; round++)); do
        for server in "${SERVERS[@]}"; do
            sequential "$server" >>"$dir/$server.sequential"
            random "$server" 4k >>"$dir/$server.4k"
            random "$server" 64k >>"$dir/$server.64k"
        done
    done
    printf '%-10s %22s %22s %22s\n' '' 'nbdcopy to null: MiB/s' \
        '4 KiB, 16 deep: IOPS' '64 KiB, 16 deep: IOPS'
    for server in "${SERVERS[@]}"; do
        printf '%-10s %22s %22s %22s\n' "$server" "$(median "$server.sequential")" \
            "$(median "$server.4k")" "$(median "$server.64k")"
    done
}

uri() { echo "nbd+unix:///?socket=$dir/$1"; }

sequential() {
    local start=$EPOCHREALTIME end
    nbdcopy "$(uri "$1")" null:
    end=$EPOCHREALTIME
    echo $((mib * 1000000 / (${end/./} - ${start/./})))
}

random() {
    (cd "$dir" && fio --name=read --ioengine=nbd --uri="$(uri "$1")" --rw=randread --bs="$2" \
        --iodepth=16 --time_based --runtime="$seconds" --size="${mib}M" --output-format=json --output="$dir/fio" >/dev/null)
    jq '.jobs[0].read.iops | floor' "$dir/fio"
}

median() { sort -n "$dir/$1" | sed -n "$(((rounds + 1) / 2))p"; }

pids=()
cleanup() {
    kill "${pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$dir"
}

main "$@"
