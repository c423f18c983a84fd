#!/usr/bin/env bash
# Builds the fuzzers with clang and libFuzzer and runs each for some seconds, from the seeds that are kept here.
# Usage: run.sh SOURCE_DIR BUILD_DIR SECONDS. Without clang it says so and exits with 77 (ctest: skipped).
set -euo pipefail
source=$1
build=$2
seconds=$3
# To libFuzzer 0 is for ever, and what is no number is 0.
if ! [[ "$seconds" =~ ^[1-9][0-9]{0,6}$ ]]; then
  echo "usage: run.sh SOURCE_DIR BUILD_DIR SECONDS, a whole number from 1 on" >&2
  exit 2
fi

if ! command -v clang++ > /dev/null; then
  echo "skipped: clang++ is not installed (Debian: clang)"
  exit 77
fi

flags=(-std=c++20 -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
  -I"$source"/base/include -I"$source"/pmem/include -I"$source"/filter/include -I"$source"/index/include
  -I"$source"/tools/dunnock/src -I"$source"/pmem/src -I"$source"/training/include -I"$source"/training/src
  -I"$source"/data/include -I"$source"/data/src -I"$source"/model/include -I"$source"/base/src/json
  -I"$source"/gpu/device/include -I"$source"/gpu/kernels/include -I"$source"/gpu/schedule/include
  -I"$source"/gpu/ranks/include -I"$source"/tools/train/src)
at_once=$(nproc)

# What all of them are linked with.
mkdir -p "$build/base"
for file in "$source"/base/src/*.cpp; do
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
  clang++ "${flags[@]}" -c "$file" -o "$build/base/$(basename "$file" .cpp).o" &
done
wait

# build_and_run NAME SEEDS LONGEST SOURCES...
build_and_run() {
  local name=$1 seeds=$2 longest=$3
  shift 3
  mkdir -p "$build/corpus.$name"
  clang++ "${flags[@]}" -fsanitize=fuzzer "$source/tests/fuzz/${name}_fuzz.cpp" "$@" "$build"/base/*.o -lxxhash -lz \
    -o "$build/${name}_fuzz" || return
  "$build/${name}_fuzz" -max_total_time="$seconds" -max_len="$longest" -artifact_prefix="$build/" -print_final_stats=1 \
    "$build/corpus.$name" "$source/tests/fuzz/$seeds" || return
}

names=() failed=0
# fuzz NAME SEEDS LONGEST SOURCES...: as many at once as there are processors.
fuzz() {
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n || true; done
  names+=("$1")
  rm -f "$build/$1.passed"
  (build_and_run "$@" > "$build/$1.log" 2>&1 && touch "$build/$1.passed") &
}

fuzz safetensors seeds 600 "$source"/index/src/{safetensors,tensor,manifest}.cpp
# Of the index only the formats: the fuzzer compiles the structures for its own medium.
fuzz headers headers_seeds 60 "$source"/filter/src/*.cpp \
  "$source"/index/src/{checkpoint_format,chunk_references,index_format,index_header,log_format,manifest}.cpp \
  "$source"/index/src/{prefix_hash,tensor}.cpp \
  "$source"/pmem/src/{header,media,volatile_region,fork_mark}.cpp
fuzz dump dump_seeds 300 "$source"/tools/dunnock/src/dump_text.cpp
fuzz journal journal_seeds 1000 "$source"/pmem/src/{journal,fork_mark}.cpp
fuzz data data_seeds 1200 "$source"/data/src/{idx,token_file,llama2c_tokenizer}.cpp
fuzz bpe bpe_seeds 400 "$source"/data/src/{bpe,pieces}.cpp "$source"/base/src/json/json.cpp
fuzz tokenizer_json tokenizer_json_seeds 1200 "$source"/data/src/{bpe,pieces}.cpp "$source"/base/src/json/json.cpp
if [ -e /usr/include/toml++/toml.h ]; then
  fuzz config config_seeds 1500 "$source"/tools/train/src/config.cpp \
    "$source"/training/src/learning_rate.cpp "$source"/model/src/presets.cpp
else
  echo "config is left out: toml++ is not installed (Debian: libtomlplusplus-dev)"
fi

wait
for name in "${names[@]}"; do
  echo "----- $name"
  grep -v "NEW\|REDUCE\|pulse\|# Uses\|dictionary" "$build/$name.log" || true
  if [ ! -e "$build/$name.passed" ]; then
    failed=1
  elif ! grep -q '^stat::number_of_executed_units: *[1-9]' "$build/$name.log"; then
    echo "${name}_fuzz has run nothing"
    failed=1
  fi
done
exit "$failed"
