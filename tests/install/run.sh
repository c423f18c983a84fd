#!/usr/bin/env bash
# Installs the build into a temporary prefix and builds and runs a consumer against it, by CMake and by pkg-config.
# Usage: run.sh BUILD_DIR COMPILER
set -euo pipefail
build=$1
compiler=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" > "$work/install.log"
cmake -S "$here" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$compiler" \
  -DCMAKE_BUILD_TYPE=Release > "$work/configure.log"
cmake --build "$work/consumer" > "$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/consumer/consumer" | grep -x 'found 1'

pc=$(dirname "$(find "$work/prefix" -name dunnock.pc)")
# shellcheck disable=SC2046
PKG_CONFIG_PATH=$pc "$compiler" -O2 -march=x86-64-v3 "$here/consumer.cpp" -o "$work/by_pkg_config" \
  $(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs --static dunnock) -lpthread
"$work/by_pkg_config" | grep -x 'found 1'
echo "installed, found by CMake and by pkg-config"
