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

# fuzz NAME SEEDS LONGEST SOURCES...
fuzz() {
  local name=$1 seeds=$2 longest=$3
  shift 3
  mkdir -p "$build/corpus.$name"
  clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -I"$source"/base/include -I"$source"/pmem/include -I"$source"/filter/include -I"$source"/index/include \
    -I"$source"/tools/dunnock/src -I"$source"/pmem/src -I"$source"/training/include -I"$source"/training/src \
    -I"$source"/gpu/include -I"$source"/tools/train/src \
    "$source/tests/fuzz/${name}_fuzz.cpp" "$@" -lxxhash -lz -o "$build/${name}_fuzz"
  "$build/${name}_fuzz" -max_total_time="$seconds" -max_len="$longest" -artifact_prefix="$build/" -print_final_stats=1 \
    "$build/corpus.$name" "$source/tests/fuzz/$seeds" 2>&1 | grep -v "NEW\|REDUCE\|pulse\|# Uses\|dictionary" |
    tee "$build/$name.log"
  if ! grep -q '^stat::number_of_executed_units: *[1-9]' "$build/$name.log"; then
    echo "${name}_fuzz has run nothing" >&2
    exit 1
  fi
}

fuzz safetensors seeds 600 "$source"/index/src/{safetensors,tensor,manifest}.cpp "$source"/base/src/*.cpp
fuzz headers headers_seeds 60 "$source"/{base,filter,index}/src/*.cpp \
  "$source"/pmem/src/{media,volatile_region,fork_mark}.cpp
fuzz dump dump_seeds 300 "$source"/tools/dunnock/src/dump_text.cpp "$source"/base/src/*.cpp
fuzz journal journal_seeds 1000 "$source"/pmem/src/{journal,fork_mark}.cpp "$source"/base/src/*.cpp
fuzz data data_seeds 1200 "$source"/training/src/{idx,token_file,llama2c_tokeniser,files}.cpp "$source"/base/src/*.cpp
fuzz bpe bpe_seeds 400 "$source"/training/src/{bpe,pieces,json,files}.cpp "$source"/base/src/*.cpp
fuzz tokenizer_json tokenizer_json_seeds 1200 "$source"/training/src/{bpe,pieces,json,files}.cpp \
  "$source"/base/src/*.cpp
if [ -e /usr/include/toml++/toml.h ]; then
  fuzz config config_seeds 1500 "$source"/tools/train/src/config.cpp "$source"/training/src/{files,learning_rate}.cpp \
    "$source"/base/src/*.cpp
else
  echo "config is left out: toml++ is not installed (Debian: libtomlplusplus-dev)"
fi
