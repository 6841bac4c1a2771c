// Kernels for check.cpp: some right, some wrong on purpose (their names begin with `bad_`).

#include "prelude.cuh"

// --- Right ---

/// out[0..5] of each block = its sums, largest and double sums of 256 numbers. Block: 256 threads.
extern "C" __global__ void __launch_bounds__(256) reductions(const float* x, double* out) {
    __shared__ float parts[8];
    __shared__ double wide_parts[8];
    const float mine = load(x + 256 * blockIdx.x + threadIdx.x);
    const float in_warp = warp_sum(mine), largest_in_warp = warp_max(mine);
    const double wide_in_warp = warp_sum(static_cast<double>(mine));
    const float sum = block_sum<256>(mine, parts), largest = block_max<256>(mine, parts);
    const double wide = block_sum<256>(static_cast<double>(mine), wide_parts);
    if (threadIdx.x == 64) {
        double* const to = out + 6 * blockIdx.x;
        to[0] = in_warp, to[1] = largest_in_warp, to[2] = wide_in_warp;
        to[3] = sum, to[4] = largest, to[5] = wide;
    }
}
EXPORT_KERNEL(reductions);

/// What lane i gets from each shuffle of its number, in out[8 * i ..]. Block: a warp.
extern "C" __global__ void shuffles(int* out) {
    const int lane = static_cast<int>(threadIdx.x);
    int* const to = out + 8 * lane;
    to[0] = __shfl_sync(ALL_LANES, lane, 5);
    to[1] = __shfl_xor_sync(ALL_LANES, lane, 3);
    to[2] = __shfl_down_sync(ALL_LANES, lane, 4);
    to[3] = __shfl_up_sync(ALL_LANES, lane, 4);
    to[4] = __shfl_sync(ALL_LANES, lane, 1, 8);
    to[5] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
    to[6] = static_cast<int>(__ballot_sync(ALL_LANES, lane % 3 == 0));
    // Halves of a warp, each among itself.
    to[7] = __shfl_xor_sync(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u, lane, 1);
}
EXPORT_KERNEL(shuffles);

/// out = x rounded to bf16 and back, four at a time. n % 4 == 0.
extern "C" __global__ void round_to_bf16(const float* x, bf16* rounded, float* out, int n) {
    for (int i = 4 * static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
         i += 4 * static_cast<int>(gridDim.x * blockDim.x)) {
        store4(rounded + i, load4(x + i));
        store4(out + i, load4(rounded + i));
    }
}
EXPORT_KERNEL(round_to_bf16);

/// Philox of one counter and key.
extern "C" __global__ void philox_of(uint4 counter, uint2 key, uint4* out) { *out = philox4x32(counter, key); }
EXPORT_KERNEL(philox_of);

/// The factors of a row, one by one and by blocks. Block: any.
extern "C" __global__ void dropout_of_row(Dropout dropout, unsigned long long token, float* one_by_one,
                                          float* by_blocks, unsigned columns) {
    for (unsigned column = threadIdx.x; column < columns; column += blockDim.x) {
        one_by_one[column] = dropout_factor(dropout, token, column);
    }
    for (unsigned block = threadIdx.x; block < (columns + 127) / 128 * 16; block += blockDim.x) {
        float factors[8];
        dropout_factors8(dropout, token, block, factors);
        for (unsigned d = 0; d < 8; ++d) {
            const unsigned column = block / 16 * 128 + 16 * d + block % 16;
            if (column < columns) {
                by_blocks[column] = factors[d];
            }
        }
    }
}
EXPORT_KERNEL(dropout_of_row);

/// d += a b on registers as they come: lane i's are a[4 i ..], b[2 i ..], d[4 i ..]. Block: a warp.
extern "C" __global__ void mma_of_registers(const unsigned* a, const unsigned* b, float* d) {
    unsigned mine_a[4], mine_b[2];
    float mine_d[4];
    for (unsigned i = 0; i < 4; ++i) {
        mine_a[i] = a[4 * threadIdx.x + i];
        mine_d[i] = d[4 * threadIdx.x + i];
    }
    mine_b[0] = b[2 * threadIdx.x];
    mine_b[1] = b[2 * threadIdx.x + 1];
    mma_m16n8k16_bf16(mine_d, mine_a, mine_b);
    for (unsigned i = 0; i < 4; ++i) {
        d[4 * threadIdx.x + i] = mine_d[i];
    }
}
EXPORT_KERNEL(mma_of_registers);

/// The registers that each ldmatrix gives of 32 rows of 8 elements: lane i's in out[12 * i ..]. Block: a
/// warp.
extern "C" __global__ void ldmatrix_of_rows(const bf16* rows, unsigned* out) {
    __shared__ __align__(16) bf16 tile[32][8];
    for (int i = 0; i < 8; ++i) {
        tile[threadIdx.x][i] = rows[8 * threadIdx.x + i];
    }
    __syncwarp();
    unsigned four[4], two[2];
    unsigned* const to = out + 12 * threadIdx.x;
    ldmatrix_x4(four, tile[threadIdx.x]);
    to[0] = four[0], to[1] = four[1], to[2] = four[2], to[3] = four[3];
    ldmatrix_x4_trans(four, tile[threadIdx.x]);
    to[4] = four[0], to[5] = four[1], to[6] = four[2], to[7] = four[3];
    // (The last 16 lanes' addresses are not looked at.)
    ldmatrix_x2(two, threadIdx.x < 16 ? tile[threadIdx.x] : nullptr);
    to[8] = two[0], to[9] = two[1];
    ldmatrix_x2_trans(two, threadIdx.x < 16 ? tile[threadIdx.x] : nullptr);
    to[10] = two[0], to[11] = two[1];
}
EXPORT_KERNEL(ldmatrix_of_rows);

/// c (16 x 8, f32) = a (16 x k) b, with b (k x 8), or its transpose (8 x k), row-major; k % 16 == 0.
/// Tiles of 16 columns of `a` come in the background, one ahead. Block: a warp; 2 * 1024 bytes shared.
extern "C" __global__ void product_by_tiles(const bf16* a, const bf16* b, float* c, int k, int b_transposed) {
    DYNAMIC_SHARED(bf16, shared);
    const int lane = static_cast<int>(threadIdx.x), tiles = k / 16;
    // 256 elements of a, then 128 of b.
    const auto fetch = [&](int tile, bf16* to) {
        cp_async_16(to + lane / 2 * 16 + lane % 2 * 8, a + lane / 2 * k + tile * 16 + lane % 2 * 8, true);
        const bf16* const from = b_transposed != 0 ? b + lane / 2 * k + tile * 16 + lane % 2 * 8
                                                   : b + (tile * 16 + lane) * 8;
        bf16* const place = b_transposed != 0 ? to + 256 + lane / 2 * 16 + lane % 2 * 8 : to + 256 + lane * 8;
        if (lane < 16) {
            cp_async_16(place, from, true);
        }
        cp_async_commit();
    };
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    fetch(0, shared);
    for (int tile = 0; tile < tiles; ++tile) {
        if (tile + 1 < tiles) {
            fetch(tile + 1, shared + (tile + 1) % 2 * 512);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncwarp();
        const bf16* const now = shared + tile % 2 * 512;
        unsigned a_part[4], b_part[2];
        ldmatrix_x4(a_part, now + lane % 16 * 16 + lane / 16 * 8);
        if (b_transposed != 0) {
            ldmatrix_x2(b_part, now + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
        } else {
            ldmatrix_x2_trans(b_part, now + 256 + lane % 16 * 8);
        }
        mma_m16n8k16_bf16(d, a_part, b_part);
        __syncwarp();
    }
    const int row = lane / 4, column = 2 * (lane % 4);
    c[row * 8 + column] = d[0], c[row * 8 + column + 1] = d[1];
    c[(row + 8) * 8 + column] = d[2], c[(row + 8) * 8 + column + 1] = d[3];
}
EXPORT_KERNEL(product_by_tiles);

/// out[i] = bytes of x where i is a copy that is wanted, zeros elsewhere. Block: 32; 512 bytes shared.
extern "C" __global__ void copy_every_other(const float* x, float* out) {
    DYNAMIC_SHARED(float, shared);
    cp_async_16(shared + 4 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x % 2 == 0);
    cp_async_commit();
    cp_async_wait<0>();
    store4(out + 4 * threadIdx.x, load4(shared + 4 * threadIdx.x));
}
EXPORT_KERNEL(copy_every_other);

/// out = x, reversed within each block of 64. Block: 64.
extern "C" __global__ void reversed(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[64 * blockIdx.x + threadIdx.x];
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[63 - threadIdx.x];
}
EXPORT_KERNEL(reversed);

/// p[i] = x, from wherever a test wants. One thread.
extern "C" __global__ void put(float* p, long long i, float x) { p[i] = x; }
EXPORT_KERNEL(put);

/// out = x + 1, n of them. Any geometry.
extern "C" __global__ void add_one(const float* x, float* out, int n) {
    for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
         i += static_cast<int>(gridDim.x * blockDim.x)) {
        out[i] = x[i] + 1.0f;
    }
}
EXPORT_KERNEL(add_one);

// --- Wrong ---

/// `reversed` without its barrier.
extern "C" __global__ void bad_reversed(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[64 * blockIdx.x + threadIdx.x];
    out[64 * blockIdx.x + threadIdx.x] = tile[63 - threadIdx.x];
}
EXPORT_KERNEL(bad_reversed);

/// out = x of the neighbour `step` further, or its own at the ends, without a barrier. Block: 64.
extern "C" __global__ void bad_neighbour(const float* x, float* out, int step) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = tile[max(0, min(63, static_cast<int>(threadIdx.x) + step))];
}
EXPORT_KERNEL(bad_neighbour);

/// Reverses 64 numbers twice, and may overwrite what a slower thread has yet to read.
extern "C" __global__ void bad_reuse(const float* x, float* out) {
    __shared__ float tile[64];
    float mine = x[threadIdx.x];
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = mine;
        __syncthreads();
        mine = tile[63 - threadIdx.x];
    }
    out[threadIdx.x] = mine;
}
EXPORT_KERNEL(bad_reuse);

/// Block 1 reads what block 0 writes.
extern "C" __global__ void bad_block_order(float* p) {
    if (blockIdx.x == 0) {
        p[0] = 1.0f;
    } else {
        p[blockIdx.x] = p[0];
    }
}
EXPORT_KERNEL(bad_block_order);

/// Uses shared memory that nobody has written.
extern "C" __global__ void bad_uninitialised(float* out) {
    DYNAMIC_SHARED(float, dynamic);
    __shared__ float fixed[4];
    out[0] = dynamic[0];
    out[1] = fixed[0];
    dynamic[0] = fixed[0] = 1.0f;
}
EXPORT_KERNEL(bad_uninitialised);

/// Copies through shared memory, waiting for too few groups (missing = 1), not for the other threads (2), or
/// for all (0). Block: 32; 1024 bytes shared.
extern "C" __global__ void bad_wait(const float* x, float* out, int missing) {
    DYNAMIC_SHARED(float, shared);
    const unsigned other = 31 - threadIdx.x;
    for (unsigned half = 0; half < 2; ++half) {
        cp_async_16(shared + 128 * half + 4 * threadIdx.x, x + 128 * half + 4 * threadIdx.x, true);
        cp_async_commit();
    }
    if (missing == 1) {
        cp_async_wait<1>();
    } else {
        cp_async_wait<0>();
    }
    if (missing != 2) {
        __syncthreads();
    }
    for (unsigned half = 0; half < 2; ++half) {
        store4(out + 128 * half + 4 * other, load4(shared + 128 * half + 4 * other));
    }
}
EXPORT_KERNEL(bad_wait);

/// What goes wrong is in `how`; see check.cpp. Block: 64; 64 bytes shared.
extern "C" __global__ void bad_access(float* out, const float* x, int how, int n) {
    DYNAMIC_SHARED(float, dynamic);
    __shared__ float fixed[8];
    __shared__ __align__(16) bf16 tile[8][9];
    fixed[threadIdx.x % 8] = 0.0f;
    tile[threadIdx.x % 8][0] = from_float<bf16>(0.0f);
    unsigned two[2];
    switch (how) {
        case 0:
            dynamic[n] = 1.0f;
            break;
        case 1:
            fixed[n] = 1.0f;
            out[0] = fixed[0];
            break;
        case 2:
            store4(out, load4(x + n));
            break;
        case 3:
            out[0] = x[n];
            break;
        case 4:
            out[0] = static_cast<float>(100 / n);
            break;
        case 5:
            ldmatrix_x2(two, x);
            break;
        case 6:
            ldmatrix_x2(two, tile[threadIdx.x % 8]);
            break;
        case 7:
            cp_async_16(dynamic, x + n, true);
            break;
        default:
            break;
    }
}
EXPORT_KERNEL(bad_access);

/// Threads that do not come together; how is in `how`. Block: 64.
extern "C" __global__ void bad_meeting(float* out, int how) {
    const bool some = threadIdx.x < 40;
    float x = 1.0f;
    switch (how) {
        case 0:
            if (some) {
                __syncthreads();
            }
            break;
        case 1:
            if (some) {
                __syncthreads();
            } else {
                __syncthreads();
            }
            break;
        case 2:
            if (some) {
                x = warp_sum(x);
            }
            break;
        case 3:
            x = __shfl_sync(0x0000FFFFu, x, 0);
            break;
        case 4:
            if (some) {
                x = __shfl_sync(ALL_LANES, x, 0);
            } else {
                __syncwarp();
            }
            break;
        case 5:
            if (some) {
                __syncthreads();
            } else {
                __syncwarp(0x0000FFFFu << (threadIdx.x / 16 % 2 * 16));
                return;
            }
            break;
        default:
            break;
    }
    out[threadIdx.x] = x;
}
EXPORT_KERNEL(bad_meeting);

__device__ int depth_of(int n) {
    // (Read after the call, so that no compiler makes a loop of it.)
    volatile int here[64];
    here[n % 64] = 1;
    const int below = n == 0 ? 0 : depth_of(n - 1);
    return n == 0 ? 0 : below + here[n % 64];
}
/// Calls itself n times.
extern "C" __global__ void bad_depth(int* out, int n) { out[0] = depth_of(n); }
EXPORT_KERNEL(bad_depth);
