#!/usr/bin/env bash
# Compares attention's kernels with a reference in double precision, on the emulated device.
#
#     tests/cuda/attention_check.sh OUT_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?"usage: tests/cuda/attention_check.sh OUT_DIR"}
"$here/build.sh" "$out" "$here"/../../src/kernels/attention/*.cu
program="$out/attention_check"
if [[ ! -e $program || -n $(find "$here" "$out/libcuda.so" -newer "$program" -print -quit) ]]; then
    "${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -DCHANDLER_EMULATED -I"$here" \
        -I"$here/../../src/kernels/cuda" "$here/attention_check.cpp" -L"$out" -Wl,-rpath,'$ORIGIN' -lcuda \
        -o "$program"
fi
"$program"
