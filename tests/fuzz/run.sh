#!/usr/bin/env bash
# Builds a fuzzer with clang and libFuzzer and runs it for some seconds, from the seeds that are kept here.
# Usage: run.sh SOURCE_DIR BUILD_DIR SECONDS. Without clang it says so and exits with 77 (ctest: skipped).
set -euo pipefail
source=$1
build=$2
seconds=$3

if ! command -v clang++ > /dev/null; then
  echo "skipped: clang++ is not installed (Debian: clang)"
  exit 77
fi
mkdir -p "$build"
clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  -I"$source"/base/include -I"$source"/pmem/include -I"$source"/filter/include -I"$source"/index/include \
  "$source"/tests/fuzz/safetensors_fuzz.cpp "$source"/index/src/safetensors.cpp "$source"/index/src/tensor.cpp \
  "$source"/index/src/manifest.cpp -lxxhash -o "$build"/safetensors_fuzz
mkdir -p "$build"/corpus
"$build"/safetensors_fuzz -max_total_time="$seconds" -max_len=600 -artifact_prefix="$build"/ -print_final_stats=1 \
  "$build"/corpus "$source"/tests/fuzz/seeds 2>&1 | grep -v "NEW\|REDUCE\|pulse\|# Uses\|dictionary"
