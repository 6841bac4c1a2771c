// Whole rows: those of first tokens, dropout, other types of element.
#include "prelude.cuh"

// out[b] = x[starts[b]]. A block per sequence.
template <typename T>
__device__ void gather_rows(const T* x, const unsigned* starts, T* out, unsigned width) {
    const T* from = x + static_cast<size_t>(starts[blockIdx.x]) * width;
    T* to = out + static_cast<size_t>(blockIdx.x) * width;
    for (unsigned c = threadIdx.x; c < width; c += blockDim.x) {
        to[c] = from[c];
    }
}
extern "C" __global__ void gather_rows_f32(const float* x, const unsigned* starts, float* out, unsigned width) {
    gather_rows(x, starts, out, width);
}
EXPORT_KERNEL(gather_rows_f32)
extern "C" __global__ void gather_rows_bf16(const bf16* x, const unsigned* starts, bf16* out, unsigned width) {
    gather_rows(x, starts, out, width);
}
EXPORT_KERNEL(gather_rows_bf16)

// d_x[starts[b]] += d[b]. A block per sequence; no two start at the same row.
template <typename T>
__device__ void scatter_add_rows(const T* d, const unsigned* starts, T* d_x, unsigned width) {
    const T* from = d + static_cast<size_t>(blockIdx.x) * width;
    T* to = d_x + static_cast<size_t>(starts[blockIdx.x]) * width;
    for (unsigned c = threadIdx.x; c < width; c += blockDim.x) {
        store(to + c, load(to + c) + load(from + c));
    }
}
extern "C" __global__ void scatter_add_rows_f32(const float* d, const unsigned* starts, float* d_x, unsigned width) {
    scatter_add_rows(d, starts, d_x, width);
}
EXPORT_KERNEL(scatter_add_rows_f32)
extern "C" __global__ void scatter_add_rows_bf16(const bf16* d, const unsigned* starts, bf16* d_x, unsigned width) {
    scatter_add_rows(d, starts, d_x, width);
}
EXPORT_KERNEL(scatter_add_rows_bf16)

// Multiplies every row by its dropout factors. A block per row; a thread takes whole Philox blocks.
template <typename T>
__device__ void drop_out_rows(T* x, Dropout dropout, const uint64_t* keys, unsigned width) {
    T* row = x + static_cast<size_t>(blockIdx.x) * width;
    const unsigned blocks = (width + 127) / 128 * 16;
    for (unsigned b = threadIdx.x; b < blocks; b += blockDim.x) {
        float factors[8];
        dropout_factors8(dropout, keys[blockIdx.x], b, factors);
#pragma unroll
        for (unsigned d = 0; d < 8; ++d) {
            const unsigned c = b / 16 * 128 + d * 16 + b % 16;
            if (c < width) {
                store(row + c, load(row + c) * factors[d]);
            }
        }
    }
}
extern "C" __global__ void drop_out_rows_f32(float* x, Dropout dropout, const uint64_t* keys, unsigned width) {
    drop_out_rows(x, dropout, keys, width);
}
EXPORT_KERNEL(drop_out_rows_f32)
extern "C" __global__ void drop_out_rows_bf16(bf16* x, Dropout dropout, const uint64_t* keys, unsigned width) {
    drop_out_rows(x, dropout, keys, width);
}
EXPORT_KERNEL(drop_out_rows_bf16)

// out = x, of another type of element. Any grid.
template <typename From, typename To>
__device__ void cast(const From* x, To* out, uint64_t n) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
        store(out + i, load(x + i));
    }
}
extern "C" __global__ void cast_f32_bf16(const float* x, bf16* out, uint64_t n) { cast(x, out, n); }
EXPORT_KERNEL(cast_f32_bf16)
extern "C" __global__ void cast_bf16_f32(const bf16* x, float* out, uint64_t n) { cast(x, out, n); }
EXPORT_KERNEL(cast_bf16_f32)
extern "C" __global__ void cast_f32_f32(const float* x, float* out, uint64_t n) { cast(x, out, n); }
EXPORT_KERNEL(cast_f32_f32)
extern "C" __global__ void cast_bf16_bf16(const bf16* x, bf16* out, uint64_t n) { cast(x, out, n); }
EXPORT_KERNEL(cast_bf16_bf16)
