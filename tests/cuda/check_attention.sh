#!/usr/bin/env bash
# Compares attention's kernels with a plain reference in double precision, on the emulated device: more lengths,
# widths of heads and batches than the tests of the crate have time for.
#
#     tests/cuda/check_attention.sh OUT_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
out=${1:?"usage: tests/cuda/check_attention.sh OUT_DIR"}
"$here/build.sh" "$out"
"${CXX:-g++}" -std=c++17 -O2 -march=native -ffp-contract=fast -DCHANDLER_EMULATED -I"$here" \
    -I"$here/../../src/kernels/cuda" "$here/attention_check.cpp" -L"$out" -Wl,-rpath,'$ORIGIN' -lcuda \
    -o "$out/attention_check"
"$out/attention_check"
