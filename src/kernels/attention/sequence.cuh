// What attention's kernels share: which sequence and head a block works on, and the softmax's constants.
#pragma once

#include "prelude.cuh"

namespace attention_cu {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

/// The sequence `blockIdx.z`: `length` rows of k and v from row `start` on, and `queries` rows of q from
/// row `first_query` on. Query i is the sequence's token i.
struct Sequence {
    unsigned start, length;
    unsigned first_query, queries;
};

/// With `first_only`, only the sequence's first token asks, from row `blockIdx.z` of q. It does so of an
/// empty sequence too: that row of the outputs is still to be written.
__device__ __forceinline__ Sequence this_sequence(const unsigned* cu_seqlens, bool first_only) {
    const unsigned start = cu_seqlens[blockIdx.z];
    const unsigned length = cu_seqlens[blockIdx.z + 1] - start;
    return first_only ? Sequence{start, length, blockIdx.z, 1} : Sequence{start, length, start, length};
}

/// Where this block's head begins in `row` of a packed tensor of gridDim.y heads.
__device__ __forceinline__ size_t head_offset(unsigned row, unsigned head_dim) {
    return (static_cast<size_t>(row) * gridDim.y + blockIdx.y) * head_dim;
}
/// The number of `row` and this block's head in lse and delta, [R, H].
__device__ __forceinline__ size_t head_index(unsigned row) {
    return static_cast<size_t>(row) * gridDim.y + blockIdx.y;
}

}  // namespace attention_cu
