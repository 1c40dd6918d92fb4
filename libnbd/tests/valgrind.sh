#!/bin/sh
# Runs the tests of this crate under valgrind: any invalid access or definite leak fails.
#
#   libnbd/tests/valgrind.sh [TEST-NAME-FILTER…]
#
# Children (the servers) are not traced. The walks over very many extents are left out: they do
# what the other walks do, for minutes.
set -eu

command -v valgrind >/dev/null || {
    echo "valgrind is missing: apt install valgrind / dnf install valgrind" >&2
    exit 1
}
cd "$(dirname "$0")/.."

# Paths of the test binaries, out of cargo's JSON lines.
binaries=$(cargo test --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1/p')
[ -n "$binaries" ] || { echo "the tests do not build" >&2; exit 1; }

for binary in $binaries; do
    valgrind --quiet --trace-children=no --error-exitcode=99 --child-silent-after-fork=yes \
        --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        "$binary" --test-threads=1 \
        --skip a_bitmap_with_more_extents --skip a_disk_of_terabytes "$@"
done
echo "valgrind: clean"
