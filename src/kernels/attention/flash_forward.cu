// The forward pass of flash.cuh.
#include "flash.cuh"

namespace attention_cu::flash {

template <int HD, bool DROPOUT>
__device__ __forceinline__ void forward(bf16* memory, const bf16* q, const bf16* k, const bf16* v,
                                        bf16* ctx, float* lse, const Call& call) {
    const Place place(call, QUERIES);
    if (place.first >= place.length) {
        return;
    }
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const int own = 16 * warp, mine = place.first + own, row = mine + g;
    bf16* const queries = memory;
    const KeyTiles<HD> tiles(memory + QUERIES * HD);
    fetch_rows<HD, QUERIES, THREADS>(queries, place.row<HD>(q, place.first), row_stride<HD>(),
                                     place.length - place.first);
    tiles.fetch(0, k, v, place, 0);
    cp_async_commit();
    uint64_t row_keys[2];
    read_row_keys(row_keys, call, place, row);

    constexpr float base = SCALE<HD> * LOG2_E;
    const bool asks = mine < place.length;
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    Accumulator<HD> out[1];
    out[0].clear();
    for_each_tile<HD, DROPOUT>(tiles, k, v, place, call, row_keys, asks,
                               [&](int stage, int key, const Kept& kept) {
        float s[TILE / 16][1][2][4] = {};
#pragma unroll
        for (int x = 0; x < HD / 16; ++x) {
            unsigned left[1][4];
            left_fragment<HD>(left[0], queries, own, x);
#pragma unroll
            for (int d = 0; d < TILE / 16; ++d) {
                add_by_rows<HD>(s[d], left, tiles.keys[stage], 16 * d, x);
            }
        }
        if (key + TILE > place.length) {
#pragma unroll
            for (int i = 0; i < TILE / 2; ++i) {
                // (d, half, e) are i's digits.
                const int column = key + i / 8 * 16 + i / 4 % 2 * 8 + 2 * t + i % 2;
                float& score = s[i / 8][0][i / 4 % 2][i % 4];
                score = column < place.length ? score : -INFINITY;
            }
        }
        float shift[2], shrink[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = most[r];
#pragma unroll
            for (int i = 0; i < TILE / 4; ++i) {
                top = fmaxf(top, s[i / 4][0][i / 2 % 2][2 * r + i % 2]);
            }
            top = row_max(top);
            shift[r] = top * base;
            shrink[r] = fast_exp2(most[r] * base - shift[r]);
            sum[r] *= shrink[r];
            most[r] = top;
        }
        out[0].scale(shrink[0], shrink[1]);
#pragma unroll
        for (int d = 0; d < TILE / 16; ++d) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float& p = s[d][0][half][e];
                    p = fast_exp2(p * base - shift[e / 2]);
                    sum[e / 2] += p;
                    if (DROPOUT) {
                        p = kept.keeps(TILE / 16 * stage + d, half, e) ? p : 0.0f;
                    }
                }
            }
            unsigned left[1][4];
            as_left(left[0], s[d][0]);
            add_by_columns(out, left, tiles.values[stage], 16 * d);
        }
    });
    if (!asks) {
        return;
    }
    float share[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float total = row_sum(sum[r]);
        share[r] = (DROPOUT ? call.dropout.scale : 1.0f) / total;
        if (t == 0 && row + 8 * r < place.length) {
            *place.number(lse, row + 8 * r) = (most[r] * base + log2f(total)) * LN_2;
        }
    }
    out[0].scale(share[0], share[1]);
    out[0].write(queries, own, place.row<HD>(ctx, mine), row_stride<HD>(), place.length - mine);
}

}  // namespace attention_cu::flash

// Overwrite ctx and lse, the natural log of each softmax's denominator. Without dropout, code without
// decisions runs. BLOCKS: how many are to fit on a multiprocessor, which bounds their registers.
#define FORWARD(name, HD, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(attention_cu::flash::THREADS, BLOCKS)                    \
        name(const bf16* q, const bf16* k, const bf16* v, bf16* ctx, float* lse,                          \
             const unsigned* cu_seqlens, const uint64_t* token_keys, Dropout dropout) {                   \
        DYNAMIC_SHARED(bf16, memory);                                                                     \
        const attention_cu::flash::Call call{cu_seqlens, token_keys, dropout};                            \
        if (dropout.threshold == 0) {                                                                     \
            attention_cu::flash::forward<HD, false>(memory, q, k, v, ctx, lse, call);                     \
        } else {                                                                                          \
            attention_cu::flash::forward<HD, true>(memory, q, k, v, ctx, lse, call);                      \
        }                                                                                                 \
    }                                                                                                     \
    EXPORT_KERNEL(name)
FORWARD(attention_forward_bf16_hd32, 32, 4)
FORWARD(attention_forward_bf16_hd64, 64, 4)
#undef FORWARD
