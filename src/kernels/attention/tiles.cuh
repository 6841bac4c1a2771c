// Tiles of bf16 rows in shared memory, and the fragments of them that tensor cores multiply. A tile has
// rows of HD = 32 or 64 numbers, one head's part of a token's row.
//
// In the names of fragments, lane = 4 g + t of a warp holds what mma_m16n8k16 gives it (instructions.cuh):
// of a product of 16 x 8 the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#pragma once

#include "sequence.cuh"

namespace attention_cu::flash {

/// 2^x, flushed to 0 below 2^-126; one instruction. The error is below 2^-22 of the result.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef CHANDLER_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/// Where 16 bytes (8 columns) of a row lie in a tile. They are turned about within 128 bytes by the row's
/// number, so that neither a row nor eight rows' same columns meet in a bank.
template <int HD>
__device__ __forceinline__ int piece_at(int row, int piece) {
    static_assert(HD == 32 || HD == 64, "the head sizes with fast kernels");
    const int turn = HD == 64 ? row % 8 : row / 2 % 4;
    return row * HD + 8 * (piece ^ turn);
}

/// Where piece `2 k + odd` of row `sixteen + row` lies, `sixteen` a multiple of 16. Written so that all but
/// an exclusive or with a constant is the same for every k and every 16 rows.
template <int HD>
__device__ __forceinline__ bf16* piece_of(bf16* tile, int sixteen, int row, int k, int odd) {
    return tile + sixteen * HD + (piece_at<HD>(row, odd) ^ (16 * k));
}

/// Starts to copy ROWS rows of `from`, `stride` elements apart, of which `there` exist; the others become
/// zeros. `from` is aligned to 16 bytes and `stride` a multiple of 8. All threads of the block.
template <int HD, int ROWS, int THREADS>
__device__ __forceinline__ void fetch_rows(bf16* tile, const bf16* from, size_t stride, int there) {
    constexpr int PIECES = HD / 8;
    static_assert(ROWS * PIECES % THREADS == 0 && THREADS % PIECES == 0, "all threads copy as many pieces");
    const int piece = threadIdx.x % PIECES;
#pragma unroll
    for (int i = 0; i < ROWS * PIECES / THREADS; ++i) {
        const int row = threadIdx.x / PIECES + i * (THREADS / PIECES);
        // A row that does not exist has no address either.
        const int named = row < there ? row : 0;
        cp_async_16(tile + piece_at<HD>(row, piece), from + named * stride + 8 * piece, row < there);
    }
}

/// The left factor: rows `row ..` (a multiple of 16) and columns `16 k ..` of a tile.
template <int HD>
__device__ __forceinline__ void left_fragment(unsigned (&a)[4], bf16* tile, int row, int k) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, piece_of<HD>(tile, row, lane % 16, k, lane / 16));
}

/// Accumulates M left factors times the transpose of a tile's rows `row ..+ 16`, over columns `16 k ..`:
/// what these rows give is 16 columns of the products, in two halves of 8.
template <int HD, int M>
__device__ __forceinline__ void add_by_rows(float (&sums)[M][2][4], const unsigned (&left)[M][4],
                                            bf16* tile, int row, int k) {
    const int lane = threadIdx.x % WARP;
    unsigned b[4];
    ldmatrix_x4(b, piece_of<HD>(tile, row, lane % 8 + lane / 16 * 8, k, lane / 8 % 2));
    const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
    for (int m = 0; m < M; ++m) {
        mma_m16n8k16_bf16(sums[m][0], left[m], first);
        mma_m16n8k16_bf16(sums[m][1], left[m], second);
    }
}

/// 16 rows of HD sums.
template <int HD>
struct Accumulator {
    float of[HD / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            of[j][0] = of[j][1] = of[j][2] = of[j][3] = 0.0f;
        }
    }

    /// Multiplies rows g and g + 8 by a factor each.
    __device__ __forceinline__ void scale(float upper, float lower) {
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            of[j][0] *= upper, of[j][1] *= upper;
            of[j][2] *= lower, of[j][3] *= lower;
        }
    }

    /// Writes the first `there` rows to `to`, `stride` elements apart, in whole pieces of 16 bytes. They
    /// pass through the tile's rows `row ..+ 16`, which no other warp may still read or write.
    __device__ __forceinline__ void write(bf16* tile, int row, bf16* to, size_t stride, int there) const {
        constexpr int PIECES = HD / 8;
        const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PIECES; ++j) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                *reinterpret_cast<unsigned*>(tile + piece_at<HD>(row + g + 8 * r, j) + 2 * t) =
                    pack_bf16(of[j][2 * r], of[j][2 * r + 1]);
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = lane; i < 16 * PIECES; i += WARP) {
            if (i / PIECES < there) {
                *reinterpret_cast<uint4*>(to + i / PIECES * stride + i % PIECES * 8) =
                    *reinterpret_cast<const uint4*>(tile + piece_at<HD>(row + i / PIECES, i % PIECES));
            }
        }
    }
};

/// Accumulates M left factors [16, 16] times a tile's rows `row ..+ 16`.
template <int HD, int M>
__device__ __forceinline__ void add_by_columns(Accumulator<HD> (&sums)[M], const unsigned (&left)[M][4],
                                               bf16* tile, int row) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < HD / 16; ++n) {
        unsigned b[4];
        ldmatrix_x4_trans(b, piece_of<HD>(tile, row, lane % 16, n, lane / 16));
        const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < M; ++m) {
            mma_m16n8k16_bf16(sums[m].of[2 * n], left[m], first);
            mma_m16n8k16_bf16(sums[m].of[2 * n + 1], left[m], second);
        }
    }
}

/// A 16 x 16 product, in two halves of 8 columns, as the left factor of the next.
__device__ __forceinline__ void as_left(unsigned (&a)[4], const float (&product)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        a[2 * half] = pack_bf16(product[half][0], product[half][1]);
        a[2 * half + 1] = pack_bf16(product[half][2], product[half][3]);
    }
}

/// The sum, or the largest, over the four lanes that share a row of a product.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/// Eight draws' decisions: bit d tells whether draw d keeps its element.
__device__ __forceinline__ unsigned kept_bits(const Dropout& dropout, const uint4& draws) {
    const unsigned words[4] = {draws.x, draws.y, draws.z, draws.w};
    // Draws are compared on top of 16 bits, where those below do not matter.
    const unsigned least = dropout.threshold << 16;
    unsigned bits = 0;
#pragma unroll
    for (int d = 0; d < 8; ++d) {
        bits |= (d % 2 == 0 ? words[d / 2] << 16 : words[d / 2]) >= least ? 1u << d : 0u;
    }
    return bits;
}

/// The decisions on a thread's elements of 128 keys, for products whose rows are queries.
///
/// A block of Philox decides on keys `16 d + lane`, d = 0..7 (prelude.cuh), and a thread has keys 2t,
/// 2t + 1, 2t + 8, 2t + 9 of each 16: four blocks for either of its rows, of which all draws are used.
struct Kept {
    unsigned bits[2];

    __device__ __forceinline__ void decide(const Dropout& dropout, const uint64_t (&row_keys)[2],
                                           unsigned group) {
        const unsigned first = 16 * group + threadIdx.x % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            bits[r] = 0;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint4 draws = philox(dropout, row_keys[r], first + c / 2 * 8 + c % 2);
                bits[r] |= kept_bits(dropout, draws) << 8 * c;
            }
        }
    }

    /// About element e of half `half` (0: columns 0..7) of the d-th 16 keys.
    __device__ __forceinline__ bool keeps(int d, int half, int e) const {
        return (bits[e / 2] & 1u << (16 * half + e % 2 * 8 + d)) != 0;
    }
};

}  // namespace attention_cu::flash
