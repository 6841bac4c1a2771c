// The gradients of keys and values, of flash.cuh. A warp has 32 keys, a block 128, and meets the queries in
// tiles of 64. Products are transposed here, their rows keys.
#include "flash.cuh"

namespace attention_cu::flash {

/// Times 16 rows of a warp: what it reads of the queries serves each, and shared memory bounds this kernel.
constexpr int M = 2;
constexpr int KEYS = 16 * M * WARPS;
static_assert(KEYS == GROUP, "all draws of a block of Philox decide on keys of one block of threads");

/// What keys need to know of each of 64 queries. A thread meets queries 2t, 2t + 1, 2t + 8, 2t + 9 of each
/// 16, which `place_of` makes neighbours.
struct QueryFacts {
    /// lse, to base 2.
    float logs[TILE];
    float deltas[TILE];
    /// kept[lane][place]: bit d tells whether this query's probability for the key `16 d + lane` is kept.
    /// Rows are padded so that the eight that a warp reads at once meet in no bank.
    uint8_t kept[16][TILE + 16];
};
static_assert(2 * sizeof(QueryFacts) == 3584, "as the table above says");

__device__ __forceinline__ int place_of(int query) {
    return query / 16 * 16 + query % 8 / 2 * 4 + query % 16 / 8 * 2 + query % 2;
}

/// A thread's part in making a tile's facts: read early, finished after the tile before.
struct FactMaker {
    float number;
    uint64_t row_key;

    /// The first half of the threads reads lse, the others delta; two share a query's decisions.
    template <bool DROPOUT>
    __device__ __forceinline__ void read(const float* lse, const float* delta, const Call& call,
                                         const Place& place, int tile) {
        const int query = tile + threadIdx.x % TILE, decided = tile + threadIdx.x / 2;
        const bool reads_lse = threadIdx.x < TILE;
        // Queries beyond the end have zeros in all tiles, and here: they give keys nothing.
        number = 0.0f;
        if (query < place.length) {
            number = reads_lse ? *place.number(lse, query) * LOG2_E : *place.number(delta, query);
        }
        if (DROPOUT && decided < place.length) {
            row_key = call.row_key(place, decided);
        }
    }

    template <bool DROPOUT>
    __device__ __forceinline__ void finish(QueryFacts& facts, const Call& call, const Place& place,
                                           int tile) const {
        (threadIdx.x < TILE ? facts.logs : facts.deltas)[place_of(threadIdx.x % TILE)] = number;
        const int decided = threadIdx.x / 2;
        if (DROPOUT && tile + decided < place.length) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const unsigned lane = threadIdx.x % 2 * 8 + i;
                const uint4 draws = philox(call.dropout, row_key, 16 * (place.first / GROUP) + lane);
                facts.kept[lane][place_of(decided)] = static_cast<uint8_t>(kept_bits(call.dropout, draws));
            }
        }
    }
};
static_assert(THREADS == 2 * TILE, "as FactMaker shares out its work");

template <int HD, bool DROPOUT>
__device__ __forceinline__ void backward_dkdv(bf16* memory, const bf16* dctx, const bf16* q, const bf16* k,
                                              const bf16* v, const float* lse, const float* delta, bf16* dk,
                                              bf16* dv, const Call& call) {
    const Place place(call, KEYS);
    if (place.first >= place.length) {
        return;
    }
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const int own = 16 * M * warp, mine = place.first + own;
    const size_t stride = row_stride<HD>();
    bf16* const keys = memory;
    bf16* const values = keys + KEYS * HD;
    bf16* const queries = values + KEYS * HD;
    bf16* const gradients = queries + 2 * TILE * HD;
    QueryFacts* const facts = reinterpret_cast<QueryFacts*>(gradients + 2 * TILE * HD);
    const auto fetch = [&](int stage, int query) {
        const int there = place.length - query, at = stage * TILE * HD;
        fetch_rows<HD, TILE, THREADS>(queries + at, place.row<HD>(q, query), stride, there);
        fetch_rows<HD, TILE, THREADS>(gradients + at, place.row<HD>(dctx, query), stride, there);
    };
    const int there = place.length - place.first;
    fetch_rows<HD, KEYS, THREADS>(keys, place.row<HD>(k, place.first), stride, there);
    fetch_rows<HD, KEYS, THREADS>(values, place.row<HD>(v, place.first), stride, there);
    fetch(0, 0);
    cp_async_commit();
    FactMaker maker;
    maker.read<DROPOUT>(lse, delta, call, place, 0);
    maker.finish<DROPOUT>(facts[0], call, place, 0);

    constexpr float base = SCALE<HD> * LOG2_E;
    const float kept_scale = DROPOUT ? call.dropout.scale : 1.0f;
    const bool asked = mine < place.length;
    Accumulator<HD> dk_out[M], dv_out[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
        dk_out[m].clear();
        dv_out[m].clear();
    }
    for (int tile = 0; tile < place.length; tile += TILE) {
        const int stage = tile / TILE % 2;
        const bool more = tile + TILE < place.length;
        cp_async_wait<0>();
        // This tile and its facts are there for all, and all are done with the one before.
        __syncthreads();
        if (more) {
            fetch(1 - stage, tile + TILE);
            cp_async_commit();
            maker.read<DROPOUT>(lse, delta, call, place, tile + TILE);
        }
        if (asked) {
            bf16* const q_tile = queries + stage * TILE * HD;
            bf16* const dctx_tile = gradients + stage * TILE * HD;
            const QueryFacts& known = facts[stage];
#pragma unroll 1
            for (int c = 0; c < TILE; c += 16) {
                float p[M][2][4] = {}, ds[M][2][4] = {};
                unsigned left[M][4];
#pragma unroll
                for (int x = 0; x < HD / 16; ++x) {
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        left_fragment<HD>(left[m], keys, own + 16 * m, x);
                    }
                    add_by_rows<HD>(p, left, q_tile, c, x);
                }
                unsigned kept[2];
                if (DROPOUT) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        kept[r] = *reinterpret_cast<const unsigned*>(known.kept[g + 8 * r] + c + 4 * t);
                        kept[r] >>= M * warp;
                    }
                }
                const auto keeps = [&](int m, int half, int e) {
                    return !DROPOUT || (kept[e / 2] & 1u << (8 * (2 * half + e % 2) + m)) != 0;
                };
                const float4 four_logs = load4(known.logs + c + 4 * t);
                const float logs[4] = {four_logs.x, four_logs.y, four_logs.z, four_logs.w};
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    float dropped[2][4];
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        const int half = i / 4, e = i % 4;
                        p[m][half][e] = fast_exp2(p[m][half][e] * base - logs[2 * half + e % 2]);
                        dropped[half][e] = keeps(m, half, e) ? p[m][half][e] : 0.0f;
                    }
                    as_left(left[m], dropped);
                }
                add_by_columns(dv_out, left, dctx_tile, c);

#pragma unroll
                for (int x = 0; x < HD / 16; ++x) {
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        left_fragment<HD>(left[m], values, own + 16 * m, x);
                    }
                    add_by_rows<HD>(ds, left, dctx_tile, c, x);
                }
                const float4 four_deltas = load4(known.deltas + c + 4 * t);
                const float deltas[4] = {four_deltas.x, four_deltas.y, four_deltas.z, four_deltas.w};
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        const int half = i / 4, e = i % 4;
                        const float dp = keeps(m, half, e) ? ds[m][half][e] * kept_scale : 0.0f;
                        ds[m][half][e] = p[m][half][e] * (dp - deltas[2 * half + e % 2]);
                    }
                    as_left(left[m], ds[m]);
                }
                add_by_columns(dk_out, left, q_tile, c);
            }
        }
        if (more) {
            maker.finish<DROPOUT>(facts[1 - stage], call, place, tile + TILE);
        }
    }
    if (!asked) {
        return;
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const int row = own + 16 * m, first = mine + 16 * m, left = place.length - first;
        dk_out[m].scale(SCALE<HD>, SCALE<HD>);
        dv_out[m].scale(kept_scale, kept_scale);
        dk_out[m].write(keys, row, place.row<HD>(dk, first), stride, left);
        dv_out[m].write(values, row, place.row<HD>(dv, first), stride, left);
    }
}

}  // namespace attention_cu::flash

// Overwrite dk and dv. Without dropout, code without decisions
// runs. BLOCKS: how many are to fit on a multiprocessor, which bounds their registers.
#define BACKWARD_DKDV(name, HD, BLOCKS)                                                                   \
    extern "C" __global__ void __launch_bounds__(attention_cu::flash::THREADS, BLOCKS)                    \
        name(const bf16* dctx, const bf16* q, const bf16* k, const bf16* v, const float* lse,             \
             const float* delta, bf16* dk, bf16* dv, const unsigned* cu_seqlens,                          \
             const uint64_t* token_keys, Dropout dropout) {                                               \
        DYNAMIC_SHARED(bf16, memory);                                                                     \
        const attention_cu::flash::Call call{cu_seqlens, token_keys, dropout};                            \
        if (dropout.threshold == 0) {                                                                     \
            attention_cu::flash::backward_dkdv<HD, false>(memory, dctx, q, k, v, lse, delta, dk, dv, call);\
        } else {                                                                                          \
            attention_cu::flash::backward_dkdv<HD, true>(memory, dctx, q, k, v, lse, delta, dk, dv, call);\
        }                                                                                                 \
    }                                                                                                     \
    EXPORT_KERNEL(name)
BACKWARD_DKDV(attention_backward_dkdv_bf16_hd32, 32, 3)
BACKWARD_DKDV(attention_backward_dkdv_bf16_hd64, 64, 2)
#undef BACKWARD_DKDV
