// Zeroing and measuring gradients, all in one launch each. Entries (see cuda/table.rs): address, elements.
#include "prelude.cuh"

namespace gradient_cu {

constexpr uint64_t CHUNK = 16384;
constexpr int THREADS = 256;

struct Entry {
    float* x;
    uint64_t n;
};

}  // namespace gradient_cu

// A block of 256 threads per chunk.
extern "C" __global__ void zero_gradients(const gradient_cu::Entry* entries, const uint64_t* blocks) {
    using namespace gradient_cu;
    const Entry entry = entries[blocks[blockIdx.x] >> 32];
    const uint64_t begin = (blocks[blockIdx.x] & 0xFFFFFFFFu) * CHUNK;
    const uint64_t end = min(entry.n, begin + CHUNK);
    for (uint64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        entry.x[i] = 0.0f;
    }
}
EXPORT_KERNEL(zero_gradients)

// sums[block] = the sum of the squares of its chunk, in f64, where squares of finite numbers cannot overflow.
extern "C" __global__ void sums_of_squares(const gradient_cu::Entry* entries, const uint64_t* blocks, double* sums) {
    using namespace gradient_cu;
    __shared__ double shared[THREADS / WARP];
    const Entry entry = entries[blocks[blockIdx.x] >> 32];
    const uint64_t begin = (blocks[blockIdx.x] & 0xFFFFFFFFu) * CHUNK;
    const uint64_t end = min(entry.n, begin + CHUNK);
    double sum = 0.0;
    for (uint64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        const double x = entry.x[i];
        sum += x * x;
    }
    sum = block_sum<THREADS>(sum, shared);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}
EXPORT_KERNEL(sums_of_squares)
