// Sums of columns in a fixed order: chunk by chunk of rows, then over the chunks.
#include "prelude.cuh"

namespace column_sums_cu {

constexpr unsigned LANES = 8;

/// A block of 256 threads takes 32 columns of one chunk; every eighth row goes to the same lane.
template <typename T>
__device__ void column_sums(const T* x, unsigned stride, unsigned rows, unsigned width, unsigned chunk_rows,
                            float* out, unsigned accumulate) {
    __shared__ float sums[LANES][WARP];
    const unsigned column = blockIdx.x * WARP + threadIdx.x % WARP;
    const unsigned lane = threadIdx.x / WARP;
    const unsigned begin = blockIdx.y * chunk_rows;
    const unsigned end = min(rows, begin + chunk_rows);
    float sum = 0.0f;
    if (column < width) {
        for (unsigned r = begin + lane; r < end; r += LANES) {
            sum += load(x + static_cast<size_t>(r) * stride + column);
        }
    }
    sums[lane][threadIdx.x % WARP] = sum;
    __syncthreads();
    if (lane == 0 && column < width) {
        float total = 0.0f;
#pragma unroll
        for (unsigned i = 0; i < LANES; ++i) {
            total += sums[i][threadIdx.x];
        }
        float* to = out + static_cast<size_t>(blockIdx.y) * width + column;
        *to = accumulate != 0 ? *to + total : total;
    }
}

}  // namespace column_sums_cu

// x: rows of `width` elements, `stride` apart; out [chunks, width]. Grid: (width / 32, chunks).
extern "C" __global__ void column_sums_f32(const float* x, unsigned stride, unsigned rows, unsigned width,
                                           unsigned chunk_rows, float* out, unsigned accumulate) {
    column_sums_cu::column_sums(x, stride, rows, width, chunk_rows, out, accumulate);
}
EXPORT_KERNEL(column_sums_f32)
extern "C" __global__ void column_sums_bf16(const bf16* x, unsigned stride, unsigned rows, unsigned width,
                                            unsigned chunk_rows, float* out, unsigned accumulate) {
    column_sums_cu::column_sums(x, stride, rows, width, chunk_rows, out, accumulate);
}
EXPORT_KERNEL(column_sums_bf16)
