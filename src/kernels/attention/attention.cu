// Self-attention over packed rows for any head size up to 128, f32 or bf16 in memory and f32 in between.
// The same function as mod.rs beside this computes on the CPU; flash.cu is the fast way for bf16 and head
// sizes 32 and 64.
//
// All kernels: block (128, 1, 1), grid (tiles, H, B), `shared_bytes(head_dim)` bytes of dynamic shared
// memory (above 48 KiB from head_dim = 117 on: the host must allow it first). tiles = ceil(longest / 16),
// where longest is the longest sequence's length; 1 for kernels over queries when only first tokens ask.
// Tiles beyond a sequence's end return at once. B and H are at most 65535.
//
// R, the rows of q: T, or B with `first_only`. Row-major, contiguous: q, ctx, dctx, dq [R, H * head_dim];
// k, v, dk, dv [T, H * head_dim]; lse, delta [R, H] (f32). cu_seqlens [B + 1], token_keys [T].
//
// Each warp owns four rows (queries, or keys for dk and dv) and meets the sequence's other rows in tiles
// of 32, one in each lane. A row's sums are taken in the order of its sequence, by one warp: the same bits
// in every run, whatever else is in the batch.
#include "sequence.cuh"

namespace attention_cu::generic {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
/// Rows that a warp owns, and a block.
constexpr int OWN = 4;
constexpr int ROWS = WARPS * OWN;
/// Rows met at a time: one per lane.
constexpr int TILE = WARP;
/// Columns of an owned row in a lane, at most: lane, lane + 32, …
constexpr int PARTS = 4;

/// A block's shared memory, in floats:
///     shared_bytes(head_dim) = 4 * (2 * 16 * width + 2 * 16 * 32 + 2 * 32 * (width + 1))
///                            = 384 * width + 4352, width = head_dim rounded up to a multiple of 4.
/// Rows are padded with zeros to whole groups of four columns, so that all four can be read at once; rows
/// of tiles to an odd number, so that a column is read without bank conflicts.
struct Shared {
    int head_dim;
    int width;
    int stride;
    float* own[2];
    float* weights[2];
    float* tiles[2];

    __device__ Shared(float* memory, int columns) {
        head_dim = columns;
        width = (columns + 3) / 4 * 4;
        stride = width + 1;
        own[0] = memory;
        own[1] = own[0] + ROWS * width;
        weights[0] = own[1] + ROWS * width;
        weights[1] = weights[0] + ROWS * TILE;
        tiles[0] = weights[1] + ROWS * TILE;
        tiles[1] = tiles[0] + TILE * stride;
    }

    /// The block's own rows: this head's columns of `valid` rows from `first` on, then zeros. All threads.
    template <typename T>
    __device__ void load_own(int which, const T* from, unsigned first, int valid) const {
        load_rows(own[which], width, ROWS, from, first, valid);
    }
    /// Both tiles: `valid` rows from `first` on. Waits until all threads are done with what was there, and until
    /// all of it is there.
    template <typename T>
    __device__ void load_tiles(const T* one, const T* other, unsigned first, int valid) const {
        __syncthreads();
        load_rows(tiles[0], stride, TILE, one, first, valid);
        load_rows(tiles[1], stride, TILE, other, first, valid);
        __syncthreads();
    }

private:
    template <typename T>
    __device__ void load_rows(float* to, int to_stride, int count, const T* from, unsigned first,
                              int valid) const {
        for (int i = threadIdx.x; i < count * width; i += THREADS) {
            const int row = i / width, column = i % width;
            const bool there = row < valid && column < head_dim;
            to[row * to_stride + column] =
                there ? load(from + head_offset(first + row, head_dim) + column) : 0.0f;
        }
    }
};

/// The inner products of a warp's own rows with the lane's row of a tile.
__device__ __forceinline__ void products(float (&out)[OWN], const float* own, const float* row, int width) {
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        out[r] = 0.0f;
    }
    for (int d = 0; d < width; d += 4) {
        const float x = row[d], y = row[d + 1], z = row[d + 2], w = row[d + 3];
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            const float4 mine = load4(own + r * width + d);
            out[r] += mine.x * x;
            out[r] += mine.y * y;
            out[r] += mine.z * z;
            out[r] += mine.w * w;
        }
    }
}

/// A warp's own rows of an output, a lane's columns of each.
struct Sums {
    float of[OWN][PARTS];

    __device__ Sums() {
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                of[r][p] = 0.0f;
            }
        }
    }

    /// Adds the first `count` rows of a tile, each times its weight for the own row; weights [OWN, TILE],
    /// zeros from `count` on.
    __device__ void add(const float* weights, const float* tile, int count, const Shared& shared) {
        const int lane = threadIdx.x % WARP;
        for (int j = 0; j < count; j += 4) {
            float w[OWN][4];
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
                const float4 four = load4(weights + r * TILE + j);
                w[r][0] = four.x, w[r][1] = four.y, w[r][2] = four.z, w[r][3] = four.w;
            }
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const int column = lane + p * WARP;
                if (column < shared.width) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float x = tile[(j + i) * shared.stride + column];
#pragma unroll
                        for (int r = 0; r < OWN; ++r) {
                            of[r][p] += w[r][i] * x;
                        }
                    }
                }
            }
        }
    }

    __device__ void scale(int row, float factor) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            of[row][p] *= factor;
        }
    }

    /// Writes own row r to row `first + r` of `out`, for r below `valid`.
    template <typename T>
    __device__ void write(T* out, unsigned first, int valid, int head_dim) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const int column = lane + p * WARP;
                if (r < valid && column < head_dim) {
                    store(out + head_offset(first + r, head_dim) + column, of[r][p]);
                }
            }
        }
    }
};

/// What a call knows besides its tensors.
struct Call {
    const unsigned* cu_seqlens;
    const uint64_t* token_keys;
    int head_dim;
    bool first_only;
    Dropout dropout;

    __device__ float scale() const { return 1.0f / sqrtf(static_cast<float>(head_dim)); }

    /// One probability's dropout factor; `query` counts from the sequence's first token.
    __device__ float factor(const Sequence& sequence, unsigned query, unsigned key) const {
        if (dropout.threshold == 0) {
            return 1.0f;
        }
        const uint64_t row_key = attention_key(token_keys[sequence.start + query], blockIdx.y);
        return dropout_factor(dropout, row_key, key);
    }
};

template <typename T>
__device__ void forward(const T* q, const T* k, const T* v, T* ctx, float* lse, const Call& call) {
    DYNAMIC_SHARED(float, memory);
    const Shared shared(memory, call.head_dim);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Sequence sequence = this_sequence(call.cu_seqlens, call.first_only);
    const unsigned block = blockIdx.x * ROWS, first = block + warp * OWN;
    if (block >= sequence.queries) {
        return;
    }
    const int asking = sequence.queries - block;
    shared.load_own(0, q, sequence.first_query + block, asking);
    const float* const own = shared.own[0] + warp * OWN * shared.width;
    float* const weights = shared.weights[0] + warp * OWN * TILE;
    const int valid = min(OWN, asking - warp * OWN);

    // Exponents to base 2: e^(s scale) = 2^(s base).
    const float base = call.scale() * LOG2_E;
    float most[OWN], sum[OWN];
    for (int r = 0; r < OWN; ++r) {
        most[r] = -INFINITY, sum[r] = 0.0f;
    }
    Sums sums;
    for (unsigned tile = 0; tile < sequence.length; tile += TILE) {
        const int count = min(TILE, static_cast<int>(sequence.length - tile));
        shared.load_tiles(k, v, sequence.start + tile, count);
        if (valid <= 0) {
            continue;
        }
        float scores[OWN];
        products(scores, own, shared.tiles[0] + lane * shared.stride, shared.width);
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            const float score = lane < count ? scores[r] * base : -INFINITY;
            const float top = fmaxf(most[r], warp_max(score));
            const float shrink = exp2f(most[r] - top);
            float e = exp2f(score - top);
            sum[r] = sum[r] * shrink + e;
            most[r] = top;
            sums.scale(r, shrink);
            if (r < valid && lane < count) {
                e *= call.factor(sequence, first + r, tile + lane);
            }
            weights[r * TILE + lane] = e;
        }
        __syncwarp();
        sums.add(weights, shared.tiles[1], count, shared);
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        const float total = warp_sum(sum[r]);
        const bool empty = sequence.length == 0;
        sums.scale(r, empty ? 0.0f : 1.0f / total);
        if (r < valid && lane == 0) {
            lse[head_index(sequence.first_query + first + r)] =
                empty ? 0.0f : (most[r] + log2f(total)) * LN_2;
        }
    }
    sums.write(ctx, sequence.first_query + first, valid, shared.head_dim);
}

/// dq, and delta: each query's product of ctx with its gradient.
template <typename T>
__device__ void backward_dq(const T* dctx, const T* q, const T* k, const T* v, const T* ctx,
                            const float* lse, float* delta, T* dq, const Call& call) {
    DYNAMIC_SHARED(float, memory);
    const Shared shared(memory, call.head_dim);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Sequence sequence = this_sequence(call.cu_seqlens, call.first_only);
    const unsigned block = blockIdx.x * ROWS, first = block + warp * OWN;
    if (block >= sequence.queries) {
        return;
    }
    const int asking = sequence.queries - block;
    const unsigned row = sequence.first_query + block;
    shared.load_own(0, q, row, asking);
    shared.load_own(1, dctx, row, asking);
    const float* const own_q = shared.own[0] + warp * OWN * shared.width;
    const float* const own_dctx = shared.own[1] + warp * OWN * shared.width;
    float* const weights = shared.weights[0] + warp * OWN * TILE;
    const int valid = min(OWN, asking - warp * OWN);
    __syncthreads();

    float deltas[OWN], logs[OWN];
    for (int r = 0; r < OWN; ++r) {
        deltas[r] = logs[r] = 0.0f;
        if (r < valid) {
            const unsigned query = sequence.first_query + first + r;
            float sum = 0.0f;
            for (int column = lane; column < call.head_dim; column += WARP) {
                sum += own_dctx[r * shared.width + column] *
                       load(ctx + head_offset(query, call.head_dim) + column);
            }
            deltas[r] = warp_sum(sum);
            logs[r] = lse[head_index(query)] * LOG2_E;
            if (lane == 0) {
                delta[head_index(query)] = deltas[r];
            }
        }
    }

    const float scale = call.scale();
    Sums sums;
    for (unsigned tile = 0; tile < sequence.length; tile += TILE) {
        const int count = min(TILE, static_cast<int>(sequence.length - tile));
        shared.load_tiles(k, v, sequence.start + tile, count);
        if (valid <= 0) {
            continue;
        }
        float scores[OWN], gradients[OWN];
        products(scores, own_q, shared.tiles[0] + lane * shared.stride, shared.width);
        products(gradients, own_dctx, shared.tiles[1] + lane * shared.stride, shared.width);
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            float ds = 0.0f;
            if (r < valid && lane < count) {
                const float p = exp2f(scores[r] * (scale * LOG2_E) - logs[r]);
                const float factor = call.factor(sequence, first + r, tile + lane);
                ds = p * scale * (gradients[r] * factor - deltas[r]);
            }
            weights[r * TILE + lane] = ds;
        }
        __syncwarp();
        sums.add(weights, shared.tiles[0], count, shared);
    }
    sums.write(dq, sequence.first_query + first, valid, shared.head_dim);
}

/// dk and dv, from the delta that `backward_dq` left.
template <typename T>
__device__ void backward_dkdv(const T* dctx, const T* q, const T* k, const T* v, const float* lse,
                              const float* delta, T* dk, T* dv, const Call& call) {
    DYNAMIC_SHARED(float, memory);
    const Shared shared(memory, call.head_dim);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Sequence sequence = this_sequence(call.cu_seqlens, call.first_only);
    const unsigned block = blockIdx.x * ROWS, first = block + warp * OWN;
    if (block >= sequence.length) {
        return;
    }
    const int there = sequence.length - block;
    shared.load_own(0, k, sequence.start + block, there);
    shared.load_own(1, v, sequence.start + block, there);
    const float* const own_k = shared.own[0] + warp * OWN * shared.width;
    const float* const own_v = shared.own[1] + warp * OWN * shared.width;
    float* const p_weights = shared.weights[0] + warp * OWN * TILE;
    float* const ds_weights = shared.weights[1] + warp * OWN * TILE;
    const int valid = min(OWN, there - warp * OWN);

    const float scale = call.scale();
    Sums dk_sums, dv_sums;
    for (unsigned tile = 0; tile < sequence.queries; tile += TILE) {
        const int count = min(TILE, static_cast<int>(sequence.queries - tile));
        const unsigned row = sequence.first_query + tile;
        shared.load_tiles(q, dctx, row, count);
        if (valid <= 0) {
            continue;
        }
        float scores[OWN], gradients[OWN];
        products(scores, own_k, shared.tiles[0] + lane * shared.stride, shared.width);
        products(gradients, own_v, shared.tiles[1] + lane * shared.stride, shared.width);
        const float log = lane < count ? lse[head_index(row + lane)] * LOG2_E : 0.0f;
        const float of_ctx = lane < count ? delta[head_index(row + lane)] : 0.0f;
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            float dropped = 0.0f, ds = 0.0f;
            if (r < valid && lane < count) {
                const float p = exp2f(scores[r] * (scale * LOG2_E) - log);
                const float factor = call.factor(sequence, tile + lane, first + r);
                dropped = p * factor;
                ds = p * scale * (gradients[r] * factor - of_ctx);
            }
            p_weights[r * TILE + lane] = dropped;
            ds_weights[r * TILE + lane] = ds;
        }
        __syncwarp();
        dk_sums.add(ds_weights, shared.tiles[0], count, shared);
        dv_sums.add(p_weights, shared.tiles[1], count, shared);
    }
    dk_sums.write(dk, sequence.start + first, valid, shared.head_dim);
    dv_sums.write(dv, sequence.start + first, valid, shared.head_dim);
}

}  // namespace attention_cu::generic

// Overwrite ctx and lse (the natural log of each softmax's denominator; 0, and ctx zeros, for the first
// token of an empty sequence). `first_only` is 0 or 1.
#define FORWARD(name, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(attention_cu::generic::THREADS)                            \
        name(const T* q, const T* k, const T* v, T* ctx, float* lse, const unsigned* cu_seqlens,            \
             const uint64_t* token_keys, int head_dim, int first_only, Dropout dropout) {                   \
        attention_cu::generic::forward<T>(q, k, v, ctx, lse,                                                \
                                          {cu_seqlens, token_keys, head_dim, first_only != 0, dropout});    \
    }                                                                                                       \
    EXPORT_KERNEL(name)
FORWARD(attention_forward_f32, float)
FORWARD(attention_forward_bf16, bf16)
#undef FORWARD

// Overwrite dq and delta; they run before `attention_backward_dkdv_*`, which reads delta.
#define BACKWARD_DQ(name, T)                                                                                \
    extern "C" __global__ void __launch_bounds__(attention_cu::generic::THREADS)                            \
        name(const T* dctx, const T* q, const T* k, const T* v, const T* ctx, const float* lse,             \
             float* delta, T* dq, const unsigned* cu_seqlens, const uint64_t* token_keys, int head_dim,     \
             int first_only, Dropout dropout) {                                                             \
        attention_cu::generic::backward_dq<T>(dctx, q, k, v, ctx, lse, delta, dq,                           \
                                              {cu_seqlens, token_keys, head_dim, first_only != 0, dropout});\
    }                                                                                                       \
    EXPORT_KERNEL(name)
BACKWARD_DQ(attention_backward_dq_f32, float)
BACKWARD_DQ(attention_backward_dq_bf16, bf16)
#undef BACKWARD_DQ

// Overwrite dk and dv. Tiles are of keys, with `first_only` too.
#define BACKWARD_DKDV(name, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(attention_cu::generic::THREADS)                            \
        name(const T* dctx, const T* q, const T* k, const T* v, const float* lse, const float* delta,       \
             T* dk, T* dv, const unsigned* cu_seqlens, const uint64_t* token_keys, int head_dim,            \
             int first_only, Dropout dropout) {                                                             \
        attention_cu::generic::backward_dkdv<T>(                                                            \
            dctx, q, k, v, lse, delta, dk, dv,                                                              \
            {cu_seqlens, token_keys, head_dim, first_only != 0, dropout});                                  \
    }                                                                                                       \
    EXPORT_KERNEL(name)
BACKWARD_DKDV(attention_backward_dkdv_f32, float)
BACKWARD_DKDV(attention_backward_dkdv_bf16, bf16)
#undef BACKWARD_DKDV
