#!/usr/bin/env bash
# Builds the emulated driver: OUT_DIR/libcuda.so, with our kernels in it, and OUT_DIR/libcublasLt.so.
#
#     tests/cuda/build.sh OUT_DIR [file.cu ...]      (without files: all below src/kernels)
#
# Loaded by path, they answer a later dlopen of the names without a path. Compiles only what has changed;
# prints nothing if all goes well. CXX names another compiler than g++.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd)
out=${1:?"usage: tests/cuda/build.sh OUT_DIR [file.cu ...]"}
shift
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)

# Builds of several test processes wait for one another.
exec 9>"$out/lock"
flock 9

if (($# > 0)); then
    kernels=("$@")
else
    mapfile -t kernels < <(find "$root/src/kernels" -name '*.cu' | sort)
fi

host_flags=(-std=c++17 -O2 -march=native -fPIC -I"$here")
# As nvcc does, a product and a sum are rounded once. The checks call into failures.cpp, no library.
kernel_flags=("${host_flags[@]}" -ffp-contract=fast -I"$root/src/kernels/cuda" -DCHANDLER_EMULATED
    -fsanitize=alignment,bounds -fno-sanitize-recover=all -x c++)

# Whether the object $1 is older than the source $2 or any header.
stale() {
    [[ ! -e $1 || $2 -nt $1 || $0 -nt $1 ]] && return 0
    [[ -n $(find "$here" "$root/src/kernels" \( -name '*.hpp' -o -name '*.cuh' \) -newer "$1" -print -quit) ]]
}

driver=() product=() commands=()
compile() { # OBJECT SOURCE FLAGS...: adds a command if it is needed
    local object=$1 source=$2
    shift 2
    if stale "$object" "$source"; then
        commands+=("$(printf '%q ' "${CXX:-g++}" "$@" -c "$source" -o "$object")")
    fi
}
for name in emulator failures warp device driver driver_memory driver_streams; do
    driver+=("$out/objects/$name.o")
    compile "$out/objects/$name.o" "$here/$name.cpp" "${host_flags[@]}"
done
for kernel in "${kernels[@]}"; do
    kernel=$(realpath "$kernel")
    object="$out/objects/$(tr / _ <<<"${kernel#"$root"/}").o"
    driver+=("$object")
    compile "$object" "$kernel" "${kernel_flags[@]}"
done
product=("$out/objects/cublaslt.o")
compile "${product[0]}" "$here/cublaslt.cpp" "${host_flags[@]}"

if ((${#commands[@]} > 0)); then
    printf '%s\0' "${commands[@]}" | xargs -0 -P "$(nproc)" -I '{}' bash -c '{}'
fi

# A library that some process has loaded is replaced, not written over.
link() { # NAME ARGUMENTS...
    local name=$1
    shift
    "${CXX:-g++}" -shared -Wl,-soname,"$name" -Wl,-z,defs -o "$out/$name.new" "$@"
    mv "$out/$name.new" "$out/$name"
}
objects=$(printf '%s\n' "${driver[@]}")
if ((${#commands[@]} > 0)) || [[ ! -e $out/libcublasLt.so || $(cat "$out/objects/list" 2>/dev/null) != "$objects" ]]; then
    link libcuda.so "${driver[@]}"
    link libcublasLt.so "${product[@]}" -L"$out" -Wl,-rpath,'$ORIGIN' -lcuda
    printf '%s\n' "$objects" >"$out/objects/list"
fi
