// Self-attention over packed bf16 rows with head sizes 32 and 64 on tensor cores (sm_80 and newer): the
// same function as attention.cu for queries of all tokens. After Dao et al. 2022, "FlashAttention", and
// Dao 2023, "FlashAttention-2": scores stay in registers, the softmax is taken as keys go by, and the
// backward pass computes probabilities again from lse.
//
// Tensors, row-major and contiguous: q, k, v, ctx and gradients bf16 [T, H * HD], aligned to 16 bytes; lse,
// delta f32 [T, H]; cu_seqlens [B + 1]; token_keys [T]. longest = the longest sequence's length:
//
//     kernel                            grid                          block   dynamic shared bytes
//     attention_forward_bf16_hd*        (ceil(longest / 64), H, B)    128     640 * HD
//     attention_backward_dq_bf16_hd*    (ceil(longest / 64), H, B)    128     768 * HD
//     attention_backward_dkdv_bf16_hd*  (ceil(longest / 128), H, B)   128     1024 * HD + 3584
//
// The last needs 69120 bytes for HD = 64: the host must allow these first, as they are more than 48 KiB. B
// and H are at most 65535. Blocks beyond a sequence's end return at once. dq runs before dkdv, which reads
// the delta that it writes. Every output has one owner, which adds in the order of the sequence: the same
// bits in every run, whatever else is in the batch.
#pragma once

#include "tiles.cuh"

namespace attention_cu::flash {

/// Keys (or, for dk and dv, queries) met at a time.
constexpr int TILE = 64;
/// Keys on which one block of Philox decides, 16 apart.
constexpr int GROUP = 128;

template <int HD>
constexpr float SCALE = HD == 64 ? 0.125f : 0.17677669529663687f;

struct Call;

/// A block's place: this head's rows from `first` on of a sequence of `length`, counted from its own start.
struct Place {
    int length;
    int first;
    unsigned start;

    __device__ __forceinline__ Place(const Call& call, int rows);

    template <int HD, typename T>
    __device__ __forceinline__ T* row(T* tensor, int row) const {
        return tensor + head_offset(start + row, HD);
    }
    template <typename T>
    __device__ __forceinline__ T* number(T* per_row, int row) const {
        return per_row + head_index(start + row);
    }
};

/// What a call knows besides its tensors.
struct Call {
    const unsigned* cu_seqlens;
    const uint64_t* token_keys;
    const Dropout& dropout;

    /// The dropout key of this head's row of probabilities.
    __device__ __forceinline__ uint64_t row_key(const Place& place, int query) const {
        return attention_key(token_keys[place.start + query], blockIdx.y);
    }
};

__device__ __forceinline__ Place::Place(const Call& call, int rows) {
    const Sequence sequence = this_sequence(call.cu_seqlens, false);
    start = sequence.start;
    length = static_cast<int>(sequence.length);
    first = static_cast<int>(blockIdx.x) * rows;
}

/// Elements from one row of a packed tensor to the next.
template <int HD>
__device__ __forceinline__ size_t row_stride() {
    return static_cast<size_t>(gridDim.y) * HD;
}

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;

// --- Of the kernels over queries: a warp has 16, a block 64, and meets the keys in tiles of 64 ---

constexpr int QUERIES = 16 * WARPS;

/// Keys and values in shared memory, two tiles of each: one is multiplied while the next arrives.
template <int HD>
struct KeyTiles {
    bf16* keys[2];
    bf16* values[2];

    __device__ __forceinline__ explicit KeyTiles(bf16* memory) {
#pragma unroll
        for (int stage = 0; stage < 2; ++stage) {
            keys[stage] = memory + stage * TILE * HD;
            values[stage] = memory + (2 + stage) * TILE * HD;
        }
    }

    __device__ __forceinline__ void fetch(int stage, const bf16* k, const bf16* v, const Place& place,
                                          int key) const {
        const int there = place.length - key;
        const size_t stride = row_stride<HD>();
        fetch_rows<HD, TILE, THREADS>(keys[stage], place.row<HD>(k, key), stride, there);
        fetch_rows<HD, TILE, THREADS>(values[stage], place.row<HD>(v, key), stride, there);
    }
};

/// Calls `meet(stage, key, kept)` for every tile of keys, in order, with the dropout's decisions on its group: the
/// tile is in `tiles.keys[stage]` and `tiles.values[stage]`, its first key is `key`. The first tile was fetched
/// before; the next arrives meanwhile. A warp that does not ask helps to fetch and meets nothing.
template <int HD, bool DROPOUT, typename Meet>
__device__ __forceinline__ void for_each_tile(const KeyTiles<HD>& tiles, const bf16* k, const bf16* v,
                                              const Place& place, const Call& call,
                                              const uint64_t (&row_keys)[2], bool asks, Meet meet) {
    for (int group = 0; group < place.length; group += GROUP) {
        Kept kept;
        if (DROPOUT && asks) {
            kept.decide(call.dropout, row_keys, group / GROUP);
        }
#pragma unroll
        for (int stage = 0; stage < GROUP / TILE; ++stage) {
            const int key = group + stage * TILE;
            if (key >= place.length) {
                break;
            }
            cp_async_wait<0>();
            // This tile is there for all, and all are done with the one before, whose place the next takes.
            __syncthreads();
            if (key + TILE < place.length) {
                tiles.fetch(1 - stage, k, v, place, key + TILE);
                cp_async_commit();
            }
            if (asks) {
                meet(stage, key, kept);
            }
        }
    }
}

/// The dropout keys of queries `row` and `row + 8`; 0 beyond the sequence's end.
__device__ __forceinline__ void read_row_keys(uint64_t (&row_keys)[2], const Call& call, const Place& place,
                                              int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        row_keys[r] = row + 8 * r < place.length ? call.row_key(place, row + 8 * r) : 0;
    }
}

}  // namespace attention_cu::flash
