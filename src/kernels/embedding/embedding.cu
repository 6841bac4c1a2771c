// Embedding look-up and its gradient.
#include "prelude.cuh"

// out[t] = sum of the tables' rows; tables that are not there are null. A block per token.
extern "C" __global__ void embedding_gather(const float* first, const unsigned* first_ids, const float* second,
                                            const unsigned* second_ids, const float* third,
                                            const unsigned* third_ids, float* out, unsigned width) {
    const unsigned t = blockIdx.x;
    const float* a = first + static_cast<size_t>(first_ids[t]) * width;
    const float* b = second == nullptr ? nullptr : second + static_cast<size_t>(second_ids[t]) * width;
    const float* c = third == nullptr ? nullptr : third + static_cast<size_t>(third_ids[t]) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = a[i];
        if (b != nullptr) {
            sum += b[i];
        }
        if (c != nullptr) {
            sum += c[i];
        }
        out[static_cast<size_t>(t) * width + i] = sum;
    }
}
EXPORT_KERNEL(embedding_gather)

// Adds up the rows of d [T, D] whose tokens have one id. `tokens` are sorted by id; a chunk is (row of the
// table, its first and last + 1 place in `tokens`, place in `partials`): the only chunk of its id, whose place
// is 0xFFFFFFFF, adds to the table, others leave a partial sum. A block per chunk.
extern "C" __global__ void embedding_scatter(const float* d, const unsigned* tokens, const uint4* chunks,
                                             float* d_table, float* partials, unsigned width) {
    const uint4 chunk = chunks[blockIdx.x];
    const bool whole = chunk.w == 0xFFFFFFFFu;
    float* to = whole ? d_table + static_cast<size_t>(chunk.x) * width
                      : partials + static_cast<size_t>(chunk.w) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = whole ? to[i] : 0.0f;
        for (unsigned place = chunk.y; place < chunk.z; ++place) {
            sum += d[static_cast<size_t>(tokens[place]) * width + i];
        }
        to[i] = sum;
    }
}
EXPORT_KERNEL(embedding_scatter)

// Adds the partial sums of ids with several chunks: (row of the table, first and last + 1 partial sum, -).
// A block per id.
extern "C" __global__ void embedding_scatter_partials(const float* partials, const uint4* sums, float* d_table,
                                                      unsigned width) {
    const uint4 sum_of = sums[blockIdx.x];
    float* to = d_table + static_cast<size_t>(sum_of.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = to[i];
        for (unsigned p = sum_of.y; p < sum_of.z; ++p) {
            sum += partials[static_cast<size_t>(p) * width + i];
        }
        to[i] = sum;
    }
}
EXPORT_KERNEL(embedding_scatter_partials)
