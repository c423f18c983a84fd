#!/usr/bin/env bash
# Builds some test programs with a sanitizer, in a build of their own, and runs them: the part of ./run asan and
# ./run tsan that ./run test has time for.
# Usage: run.sh SOURCE_DIR BUILD_DIR address|thread PROGRAM...
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: run.sh SOURCE_DIR BUILD_DIR address|thread PROGRAM..." >&2
  exit 2
fi
source=$1
build=$2
sanitizer=$3
shift 3

# Most of the time goes into compiling. The checks of pointers for null and alignment, and those of vtables, double it;
# ./run asan has them.
without=
if [ "$sanitizer" = address ]; then without=null,alignment,vptr; fi
cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDUNNOCK_SANITIZE="$sanitizer" \
  -DDUNNOCK_SANITIZE_WITHOUT="$without" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -DNDEBUG" \
  -DDUNNOCK_CUDA=OFF -DDUNNOCK_MPI=OFF -DDUNNOCK_TOOLS=OFF -DDUNNOCK_BENCH=OFF -DDUNNOCK_EXAMPLES=OFF \
  > "$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" --target "$@" > "$build.log" 2>&1 || { tail -60 "$build.log"; exit 1; }

# ThreadSanitizer needs its shadow addresses free, which address randomisation may prevent.
fixed=()
if [ "$sanitizer" = thread ] && setarch -R true 2>/dev/null; then fixed=(setarch -R); fi
export TSAN_OPTIONS="suppressions=$source/tests/support/tsan.supp"
for program in "$@"; do
  "${fixed[@]}" "$build/bin/$program"
done
