// The gradient of queries, of flash.cuh.
#include "flash.cuh"

namespace attention_cu::flash {

template <int HD, bool DROPOUT>
__device__ __forceinline__ void backward_dq(bf16* memory, const bf16* dctx, const bf16* q, const bf16* k,
                                            const bf16* v, const bf16* ctx, const float* lse, float* delta,
                                            bf16* dq, const Call& call) {
    const Place place(call, QUERIES);
    if (place.first >= place.length) {
        return;
    }
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const int own = 16 * warp, mine = place.first + own, row = mine + g;
    const size_t stride = row_stride<HD>();
    bf16* const queries = memory;
    bf16* const gradients = memory + QUERIES * HD;
    const KeyTiles<HD> tiles(memory + 2 * QUERIES * HD);
    // ctx waits where the second tile of keys will.
    bf16* const outputs = tiles.keys[1];
    const int there = place.length - place.first;
    fetch_rows<HD, QUERIES, THREADS>(queries, place.row<HD>(q, place.first), stride, there);
    fetch_rows<HD, QUERIES, THREADS>(gradients, place.row<HD>(dctx, place.first), stride, there);
    fetch_rows<HD, QUERIES, THREADS>(outputs, place.row<HD>(ctx, place.first), stride, there);
    tiles.fetch(0, k, v, place, 0);
    cp_async_commit();
    uint64_t row_keys[2];
    read_row_keys(row_keys, call, place, row);
    float logs[2], deltas[2] = {0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        logs[r] = row + 8 * r < place.length ? *place.number(lse, row + 8 * r) * LOG2_E : 0.0f;
    }
    cp_async_wait<0>();
    __syncthreads();

    unsigned q_left[HD / 16][1][4], dctx_left[HD / 16][1][4];
#pragma unroll
    for (int x = 0; x < HD / 16; ++x) {
        unsigned ctx_left[4];
        left_fragment<HD>(q_left[x][0], queries, own, x);
        left_fragment<HD>(dctx_left[x][0], gradients, own, x);
        left_fragment<HD>(ctx_left, outputs, own, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            deltas[i % 2] += low_bf16(dctx_left[x][0][i]) * low_bf16(ctx_left[i]);
            deltas[i % 2] += high_bf16(dctx_left[x][0][i]) * high_bf16(ctx_left[i]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        deltas[r] = row_sum(deltas[r]);
        if (t == 0 && row + 8 * r < place.length) {
            *place.number(delta, row + 8 * r) = deltas[r];
        }
    }

    constexpr float base = SCALE<HD> * LOG2_E;
    const bool asks = mine < place.length;
    Accumulator<HD> out[1];
    out[0].clear();
    for_each_tile<HD, DROPOUT>(tiles, k, v, place, call, row_keys, asks,
                               [&](int stage, int key, const Kept& kept) {
#pragma unroll
        for (int d = 0; d < TILE / 16; ++d) {
            float s[1][2][4] = {}, dp[1][2][4] = {};
#pragma unroll
            for (int x = 0; x < HD / 16; ++x) {
                add_by_rows<HD>(s, q_left[x], tiles.keys[stage], 16 * d, x);
                add_by_rows<HD>(dp, dctx_left[x], tiles.values[stage], 16 * d, x);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int column = key + 16 * d + 8 * half + 2 * t + e % 2;
                    float p = fast_exp2(s[0][half][e] * base - logs[e / 2]);
                    // Beyond the end, scores of 0 have an exponent too: it could be infinite.
                    p = column < place.length ? p : 0.0f;
                    float gradient = dp[0][half][e];
                    if (DROPOUT) {
                        const bool keeps = kept.keeps(TILE / 16 * stage + d, half, e);
                        gradient = keeps ? gradient * call.dropout.scale : 0.0f;
                    }
                    s[0][half][e] = p * (gradient - deltas[e / 2]);
                }
            }
            unsigned left[1][4];
            as_left(left[0], s[0]);
            add_by_columns(out, left, tiles.keys[stage], 16 * d);
        }
    });
    if (asks) {
        out[0].scale(SCALE<HD>, SCALE<HD>);
        out[0].write(queries, own, place.row<HD>(dq, mine), stride, place.length - mine);
    }
}

}  // namespace attention_cu::flash

// Overwrite dq, and delta: each row's product of ctx with its gradient. Without dropout, code without
// decisions runs. BLOCKS: how many are to fit on a multiprocessor, which bounds their registers.
#define BACKWARD_DQ(name, HD, BLOCKS)                                                                     \
    extern "C" __global__ void __launch_bounds__(attention_cu::flash::THREADS, BLOCKS)                    \
        name(const bf16* dctx, const bf16* q, const bf16* k, const bf16* v, const bf16* ctx,              \
             const float* lse, float* delta, bf16* dq, const unsigned* cu_seqlens,                        \
             const uint64_t* token_keys, Dropout dropout) {                                               \
        DYNAMIC_SHARED(bf16, memory);                                                                     \
        const attention_cu::flash::Call call{cu_seqlens, token_keys, dropout};                            \
        if (dropout.threshold == 0) {                                                                     \
            attention_cu::flash::backward_dq<HD, false>(memory, dctx, q, k, v, ctx, lse, delta, dq, call);\
        } else {                                                                                          \
            attention_cu::flash::backward_dq<HD, true>(memory, dctx, q, k, v, ctx, lse, delta, dq, call); \
        }                                                                                                 \
    }                                                                                                     \
    EXPORT_KERNEL(name)
BACKWARD_DQ(attention_backward_dq_bf16_hd32, 32, 4)
BACKWARD_DQ(attention_backward_dq_bf16_hd64, 64, 3)
#undef BACKWARD_DQ
