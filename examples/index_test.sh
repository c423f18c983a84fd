#!/usr/bin/env bash
# Runs the examples of the index layer, each again on the pool that the first run has left.
# Usage: index_test.sh OBJECT_INDEX VALUE_STORE RESUME_TRAINING PREFIX_CACHE
set -euo pipefail
object_index=$1
value_store=$2
resume_training=$3
prefix_cache=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

says() {  # says FILE LINE: the file has this line
  grep -qxF "$2" "$1" || { echo "'$2' is missing in:"; cat "$1"; exit 1; }
}

"$object_index" "$folder/index.pool" > "$folder/first"
"$object_index" "$folder/index.pool" > "$folder/second"
says "$folder/first" '0 objects'
says "$folder/first" 'objects/7: 4096 bytes at 4124672'
says "$folder/first" 'erased objects/8'
says "$folder/second" '999 objects'
says "$folder/second" 'objects/7: 4096 bytes at 8220672'
says "$folder/second" 'objects/8: not there'

head -c 1000000 /dev/urandom > "$folder/large"
"$value_store" "$folder/values.pool" put large < "$folder/large"
printf 'tiny' | "$value_store" "$folder/values.pool" put small
"$value_store" "$folder/values.pool" get large | cmp - "$folder/large"
[ "$("$value_store" "$folder/values.pool" get small)" = tiny ]
"$value_store" "$folder/values.pool" erase small
if "$value_store" "$folder/values.pool" get small 2> "$folder/error"; then echo "an erased value"; exit 1; fi
says "$folder/error" 'the key does not exist'
"$value_store" "$folder/values.pool" stats | grep -q '^1 values'

# One run that is left alone, and one that is killed again and again: the same weights.
"$resume_training" "$folder/whole.pool" 120 5 > "$folder/whole"
kills=0
while true; do
  "$resume_training" "$folder/killed.pool" 120 5 > "$folder/killed" 2>&1 &
  child=$!
  sleep "0.$((RANDOM % 7))"
  if [ "$kills" -lt 5 ] && kill -9 "$child" 2> "$folder/ignored"; then
    kills=$((kills + 1))
    wait "$child" 2> "$folder/ignored" || true
  else
    wait "$child" || { cat "$folder/killed"; exit 1; }
    break
  fi
done
echo "resume_training: $kills kills"
[ "$(grep '^weights' "$folder/whole")" = "$(grep '^weights' "$folder/killed")" ]

"$prefix_cache" "$folder/prefix.pool" > "$folder/first"
"$prefix_cache" "$folder/prefix.pool" > "$folder/second"
says "$folder/first" '164 of 240 blocks reused, all right'
says "$folder/second" '240 of 240 blocks reused, all right'
