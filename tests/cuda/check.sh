#!/usr/bin/env bash
# Proves the emulator: builds it with the kernels of check_kernels.cu into OUT_DIR and runs every check, or
# those named.
#
#     tests/cuda/check.sh OUT_DIR [name ...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?"usage: tests/cuda/check.sh OUT_DIR [name ...]"}
shift
"$here/build.sh" "$out" "$here/check_kernels.cu"
program="$out/check"
if [[ ! -e $program || -n $(find "$here" "$out/libcuda.so" -newer "$program" -print -quit) ]]; then
    "${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -Wno-unknown-pragmas -DCHANDLER_EMULATED -I"$here" \
        -I"$here/../../src/kernels/cuda" "$here"/check*.cpp -L"$out" -Wl,-rpath,'$ORIGIN' -lcublasLt -lcuda \
        -o "$program"
fi
"$program" "$@"
