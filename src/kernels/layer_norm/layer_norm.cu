// Layer normalisation, alone or as LN(residual + dropout(x)), forward and backward.
//
// A block per row (or per group of rows); thread i keeps the eight columns that Philox block i decides on,
// 128 (i / 16) + 16 d + i % 16, in registers. So blocks have (width / 128, rounded up) * 16 threads, rounded
// up to whole warps, and widths go up to 8192.
#include "prelude.cuh"

namespace layer_norm_cu {

constexpr unsigned COLUMNS = 8;

__device__ __forceinline__ unsigned column(unsigned d) {
    return threadIdx.x / 16 * 128 + d * 16 + threadIdx.x % 16;
}

/// Over all threads of the block, in a fixed order; all get the result.
__device__ __forceinline__ float sum_over_block(float x, float* shared) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) {
        shared[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) {
        sum += shared[warp];
    }
    __syncthreads();
    return sum;
}

template <typename X, typename T>
__device__ void forward(const X* x, const T* residual, const uint64_t* keys, const Dropout& dropout,
                        const float* gamma, const float* beta, float eps, T* normalised, float* rstd, T* out,
                        unsigned width) {
    __shared__ float sums[WARP];
    const size_t row = static_cast<size_t>(blockIdx.x) * width;
    float v[COLUMNS];
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        v[d] = column(d) < width ? load(x + row + column(d)) : 0.0f;
    }
    if (residual != nullptr) {
        float factors[COLUMNS];
        dropout_factors8(dropout, dropout.threshold == 0 ? 0 : keys[blockIdx.x], threadIdx.x, factors);
#pragma unroll
        for (unsigned d = 0; d < COLUMNS; ++d) {
            v[d] = column(d) < width ? v[d] * factors[d] + load(residual + row + column(d)) : 0.0f;
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        sum += v[d];
    }
    const float mean = sum_over_block(sum, sums) / static_cast<float>(width);
    float squares = 0.0f;
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        v[d] = column(d) < width ? v[d] - mean : 0.0f;
        squares += v[d] * v[d];
    }
    const float variance = sum_over_block(squares, sums) / static_cast<float>(width);
    const float scale = 1.0f / sqrtf(variance + eps);
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        const unsigned c = column(d);
        if (c < width) {
            const float n = v[d] * scale;
            store(normalised + row + c, n);
            store(out + row + c, fmaf(n, gamma[c], beta[c]));
        }
    }
    if (threadIdx.x == 0) {
        rstd[blockIdx.x] = scale;
    }
}

/// Block b takes rows b * ROWS ..; `partials` gets its sums of the gradients of gamma, then of beta.
constexpr unsigned ROWS = 16;

template <typename T, typename X>
__device__ void backward(const T* d_out, const T* normalised, const float* rstd, const float* gamma, X* d_sum,
                         X* d_x, const uint64_t* keys, const Dropout& dropout, float* partials, unsigned rows,
                         unsigned width) {
    __shared__ float sums[2][WARP];
    float d_gamma[COLUMNS] = {}, d_beta[COLUMNS] = {}, scale[COLUMNS];
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        scale[d] = column(d) < width ? gamma[column(d)] : 0.0f;
    }
    const unsigned end = min(rows, (blockIdx.x + 1) * ROWS);
    for (unsigned r = blockIdx.x * ROWS; r < end; ++r) {
        const size_t row = static_cast<size_t>(r) * width;
        float g[COLUMNS], n[COLUMNS], sum = 0.0f, along = 0.0f;
#pragma unroll
        for (unsigned d = 0; d < COLUMNS; ++d) {
            const bool inside = column(d) < width;
            const float x = inside ? load(d_out + row + column(d)) : 0.0f;
            n[d] = inside ? load(normalised + row + column(d)) : 0.0f;
            d_gamma[d] += x * n[d];
            d_beta[d] += x;
            g[d] = x * scale[d];
            sum += g[d];
            along += g[d] * n[d];
        }
        const float mean = sum_over_block(sum, sums[0]) / static_cast<float>(width);
        const float slope = sum_over_block(along, sums[1]) / static_cast<float>(width);
        float factors[COLUMNS];
        if (d_x != nullptr) {
            dropout_factors8(dropout, dropout.threshold == 0 ? 0 : keys[r], threadIdx.x, factors);
        }
#pragma unroll
        for (unsigned d = 0; d < COLUMNS; ++d) {
            if (column(d) < width) {
                const float y = rstd[r] * (g[d] - mean - n[d] * slope);
                store(d_sum + row + column(d), y);
                if (d_x != nullptr) {
                    store(d_x + row + column(d), y * factors[d]);
                }
            }
        }
    }
    float* partial = partials + static_cast<size_t>(blockIdx.x) * 2 * width;
#pragma unroll
    for (unsigned d = 0; d < COLUMNS; ++d) {
        if (column(d) < width) {
            partial[column(d)] = d_gamma[d];
            partial[width + column(d)] = d_beta[d];
        }
    }
}

}  // namespace layer_norm_cu

// x [T, D]; residual [T, D] or null; keys [T]; gamma, beta [D]; normalised, out [T, D]; rstd [T]. T blocks.
#define FORWARD(name, X, T)                                                                                    \
    extern "C" __global__ void name(const X* x, const T* residual, const uint64_t* keys, Dropout dropout,      \
                                    const float* gamma, const float* beta, float eps, T* normalised,           \
                                    float* rstd, T* out, unsigned width) {                                     \
        layer_norm_cu::forward<X, T>(x, residual, keys, dropout, gamma, beta, eps, normalised, rstd, out,      \
                                     width);                                                                   \
    }                                                                                                          \
    EXPORT_KERNEL(name)
FORWARD(layer_norm_f32_f32, float, float)
FORWARD(layer_norm_f32_bf16, float, bf16)
FORWARD(layer_norm_bf16_bf16, bf16, bf16)
#undef FORWARD

// d_out, normalised [T, D]; rstd [T]; gamma [D]; d_sum [T, D]; d_x [T, D] or null; partials [T / 16, 2 D].
#define BACKWARD(name, T, X)                                                                                   \
    extern "C" __global__ void name(const T* d_out, const T* normalised, const float* rstd, const float* gamma, \
                                    X* d_sum, X* d_x, const uint64_t* keys, Dropout dropout, float* partials,  \
                                    unsigned rows, unsigned width) {                                           \
        layer_norm_cu::backward<T, X>(d_out, normalised, rstd, gamma, d_sum, d_x, keys, dropout, partials,     \
                                      rows, width);                                                            \
    }                                                                                                          \
    EXPORT_KERNEL(name)
BACKWARD(layer_norm_backward_f32_f32, float, float)
BACKWARD(layer_norm_backward_bf16_f32, bf16, float)
BACKWARD(layer_norm_backward_bf16_bf16, bf16, bf16)
#undef BACKWARD
