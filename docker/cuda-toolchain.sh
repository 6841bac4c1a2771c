#!/bin/sh
# Installs the CUDA 13 compiler and cuBLAS into a folder, from NVIDIA's packages in the Python package index:
#
#   docker/cuda-toolchain.sh DIR && export CUDA_HOME=DIR
#
# DIR/bin/nvcc compiles the feature `cuda`; it needs g++. DIR/lib64/libcublasLt.so.13 is what a program with that
# feature loads, next to the driver. 840 MB. Needs Python 3 with pip, and no GPU. Run again, it does nothing, or
# replaces what an older version of it installed.
set -eu

# One release of the toolkit, 13.0 Update 1: parts of different ones do not fit together.
packages='nvidia-cuda-nvcc==13.0.88
nvidia-nvvm==13.0.88
nvidia-cuda-crt==13.0.88
nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85
nvidia-cublas==13.0.2.14'

dir="${1:?usage: docker/cuda-toolchain.sh DIR}"
list="$dir/packages.txt"
if [ -e "$list" ] && [ "$(cat "$list")" = "$packages" ]; then
    echo "the CUDA toolchain is in $dir"
    exit 0
fi
if [ -e "$dir" ] && [ ! -e "$list" ]; then
    echo "$dir is there already, and not by this script: name a folder that is not" >&2
    exit 1
fi

mkdir -p "$(dirname "$dir")"
# Beside its place, so that it comes there whole or not at all.
new="$(mktemp -d "$dir.XXXXXX")"
trap 'rm -rf "$new"' EXIT
printf '%s\n' "$packages" > "$new/requirements.txt"
python3 -m pip install --quiet --no-deps --only-binary :all: --target "$new/python" --requirement "$new/requirements.txt"
tree="$new/python/nvidia/cu13"
# Where nvcc and the toolkits of other makers have the libraries.
ln -s lib "$tree/lib64"
"$tree/bin/nvcc" --version > /dev/null
mv "$new/requirements.txt" "$tree/packages.txt"
rm -rf "$dir"
mv "$tree" "$dir"
chmod 755 "$dir"
echo "the CUDA toolchain is in $dir"
