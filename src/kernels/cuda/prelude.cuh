// What every kernel includes: elements, reductions in a fixed order, dropout, tensor cores.
//
// The same kernels are compiled twice: by nvcc for cards (sm_80 and newer), and by a C++ compiler with
// CHANDLER_EMULATED defined, so that tests run them without a card (tests/cuda/emulator.hpp). A kernel
// therefore uses only what this file and that header offer, takes its dynamic shared memory from
// DYNAMIC_SHARED, and is followed by EXPORT_KERNEL, by which the emulated driver finds it.
#pragma once

#include <cstdint>

#ifdef CHANDLER_EMULATED
#include "emulator.hpp"
#else
#include <cuda_bf16.h>

#include "instructions.cuh"

/// After each `extern "C" __global__` function. A real driver finds kernels in the module's own table.
#define EXPORT_KERNEL(name)

/// `type* name` = the block's dynamic shared memory, aligned to 128 bytes; once in a kernel. Its size is
/// an argument of the launch; above 48 KiB the host must allow it first
/// (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).
#define DYNAMIC_SHARED(type, name)                                      \
    extern __shared__ __align__(128) unsigned char dynamic_shared_[];   \
    type* const name = reinterpret_cast<type*>(dynamic_shared_)
#endif

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

// --- Elements: float or bf16 in memory, float in registers ---

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

/// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

template <typename T>
__device__ __forceinline__ float load(const T* p) {
    return to_float(*p);
}
template <typename T>
__device__ __forceinline__ void store(T* p, float x) {
    *p = from_float<T>(x);
}

/// Two neighbours as a tensor core takes them: `low` in the lower half, as it comes first in memory.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return static_cast<unsigned>(__bfloat16_as_ushort(pair.x)) |
           (static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16);
}
/// The first and the second of a pair.
__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xFFFF0000u); }

/// Four neighbours in one access. `p` is aligned to four elements: 16 bytes of float, 8 of bf16.
__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load4(const bf16* p) {
    const uint2 pairs = *reinterpret_cast<const uint2*>(p);
    return make_float4(low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y));
}
__device__ __forceinline__ void store4(float* p, float4 x) { *reinterpret_cast<float4*>(p) = x; }
__device__ __forceinline__ void store4(bf16* p, float4 x) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

// --- Reductions: the same order in every run, so the same bits ---

/// By halves: lanes i and i ^ 16, then i ^ 8, and so on. Called by all lanes of a warp; all get the result.
template <typename T>
__device__ __forceinline__ T warp_sum_of(T x) {
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, other);
    }
    return x;
}
__device__ __forceinline__ float warp_sum(float x) { return warp_sum_of(x); }
__device__ __forceinline__ double warp_sum(double x) { return warp_sum_of(x); }
/// The largest; where one is NaN, the others' (as `fmaxf`).
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, other));
    }
    return x;
}

/// What a warp has, combined over the warps of a block of THREADS threads in one dimension, in their order.
template <int THREADS, typename T, typename Combine>
__device__ __forceinline__ T over_warps(T x, T* shared, Combine combine) {
    static_assert(THREADS % WARP == 0 && THREADS <= 1024, "whole warps");
    if constexpr (THREADS > WARP) {
        if (threadIdx.x % WARP == 0) {
            shared[threadIdx.x / WARP] = x;
        }
        __syncthreads();
        x = shared[0];
#pragma unroll
        for (int warp = 1; warp < THREADS / WARP; ++warp) {
            x = combine(x, shared[warp]);
        }
        __syncthreads();
    }
    return x;
}

/// Over a block of THREADS threads in one dimension, all of which call it; all get the result. `shared`
/// holds THREADS / 32 numbers, and may be used again as soon as this returns.
template <int THREADS, typename T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
    return over_warps<THREADS>(warp_sum_of(x), shared, [](T a, T b) { return a + b; });
}
/// As `block_sum`; where one is NaN, the others' largest.
template <int THREADS>
__device__ __forceinline__ float block_max(float x, float* shared) {
    return over_warps<THREADS>(warp_max(x), shared, [](float a, float b) { return fmaxf(a, b); });
}

// --- Dropout: the decisions of src/kernels/dropout.rs, bit for bit ---

/// One dropout layer's masks at one step; a kernel's argument, laid out as `Dropout` in dropout.rs.
/// `threshold` 0 keeps everything (then `scale` is 1).
struct Dropout {
    /// A draw of 16 bits below it drops the element.
    unsigned threshold;
    /// What kept elements are multiplied by.
    float scale;
    unsigned key0, key1;
    unsigned site;
};

/// Philox4x32-10 (Salmon et al. 2011): `counter` enciphered with `key`.
__device__ __forceinline__ uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned first_high = __umulhi(0xD2511F53u, counter.x);
        const unsigned first_low = 0xD2511F53u * counter.x;
        const unsigned second_high = __umulhi(0xCD9E8D57u, counter.z);
        const unsigned second_low = 0xCD9E8D57u * counter.z;
        counter = make_uint4(second_high ^ counter.y ^ key.x, second_low,
                             first_high ^ counter.w ^ key.y, first_low);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

/// Eight draws of 16 bits: draw d is the half d % 2 (0: lower) of word d / 2. Block `16 * group + lane`
/// decides on columns `128 * group + 16 * d + lane`, d = 0..7, of the row that `token` names.
__device__ __forceinline__ uint4 philox(const Dropout& dropout, uint64_t token, unsigned block) {
    const uint4 counter = make_uint4(block, dropout.site, static_cast<unsigned>(token),
                                     static_cast<unsigned>(token >> 32));
    return philox4x32(counter, make_uint2(dropout.key0, dropout.key1));
}

/// The factors (0 or `scale`) of the eight columns that `block` decides on; see `philox`.
__device__ __forceinline__ void dropout_factors8(const Dropout& dropout, uint64_t token, unsigned block,
                                                 float out[8]) {
    if (dropout.threshold == 0) {
#pragma unroll
        for (int d = 0; d < 8; ++d) {
            out[d] = 1.0f;
        }
        return;
    }
    const uint4 draws = philox(dropout, token, block);
    const unsigned words[4] = {draws.x, draws.y, draws.z, draws.w};
#pragma unroll
    for (int d = 0; d < 8; ++d) {
        const unsigned draw = d % 2 == 0 ? words[d / 2] & 0xFFFFu : words[d / 2] >> 16;
        out[d] = draw >= dropout.threshold ? dropout.scale : 0.0f;
    }
}

/// The factor of one column. Eight times the work per column of `dropout_factors8`.
__device__ __forceinline__ float dropout_factor(const Dropout& dropout, uint64_t token, unsigned column) {
    if (dropout.threshold == 0) {
        return 1.0f;
    }
    const unsigned d = column / 16 % 8;
    const uint4 draws = philox(dropout, token, column / 128 * 16 + column % 16);
    const unsigned word = d < 4 ? (d < 2 ? draws.x : draws.y) : (d < 6 ? draws.z : draws.w);
    const unsigned draw = d % 2 == 0 ? word & 0xFFFFu : word >> 16;
    return draw >= dropout.threshold ? dropout.scale : 0.0f;
}

/// The key of a query row of attention: the token's key told apart by head (below 256).
__device__ __forceinline__ uint64_t attention_key(uint64_t token, unsigned head) {
    return (token & 0x00FFFFFFFFFFFFFFull) | (static_cast<uint64_t>(head) << 56);
}
