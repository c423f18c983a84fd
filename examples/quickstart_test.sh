#!/usr/bin/env bash
# Runs the quickstart twice on one pool: the second run must know what the first one did.
# Usage: quickstart_test.sh PROGRAM
set -euo pipefail
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$program" "$folder/seen.pool" | tee "$folder/first"
"$program" "$folder/seen.pool" | tee "$folder/second"
grep -qx 'robin: certainly new' "$folder/first"
grep -qx 'items: 1' "$folder/first"
grep -qx 'robin: probably seen before' "$folder/second"
grep -qx 'items: 2' "$folder/second"

# A file that is not a pool is refused with a sentence, and left as it is.
echo 'not a pool' > "$folder/text"
if "$program" "$folder/text" 2> "$folder/error"; then echo "a text file was opened"; exit 1; fi
grep -q 'NotADunnockPool' "$folder/error"
grep -qx 'not a pool' "$folder/text"
