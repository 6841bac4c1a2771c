// Softmax cross-entropy with label smoothing, in f64 as cross_entropy.rs: B and C are small.
#include "prelude.cuh"

// logits [B, C]; labels [B]; losses [B]; d_logits [B, C] or null: the gradient of `scale` times the sum of
// losses. A warp per item, in blocks of 128 threads.
extern "C" __global__ void cross_entropy(const float* logits, const unsigned* labels, unsigned items,
                                         unsigned classes, double smoothing, double scale, double* losses,
                                         float* d_logits) {
    const unsigned item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (item >= items) {
        return;
    }
    const float* x = logits + static_cast<size_t>(item) * classes;
    float largest = -INFINITY;
    for (unsigned c = lane; c < classes; c += WARP) {
        largest = fmaxf(largest, x[c]);
    }
    largest = warp_max(largest);
    double sum = 0.0, mean = 0.0;
    for (unsigned c = lane; c < classes; c += WARP) {
        sum += exp(static_cast<double>(x[c] - largest));
        mean += x[c];
    }
    const double log_sum = static_cast<double>(largest) + log(warp_sum(sum));
    mean = warp_sum(mean) / classes;
    const unsigned label = labels[item];
    if (lane == 0) {
        const double nll = log_sum - static_cast<double>(x[label]);
        const double smooth = smoothing > 0.0 ? smoothing * (log_sum - mean) : 0.0;
        losses[item] = (1.0 - smoothing) * nll + smooth;
    }
    if (d_logits != nullptr) {
        const double share = smoothing / classes;
        for (unsigned c = lane; c < classes; c += WARP) {
            const double hit = c == label ? 1.0 - smoothing : 0.0;
            d_logits[static_cast<size_t>(item) * classes + c] =
                static_cast<float>(scale * (exp(static_cast<double>(x[c]) - log_sum) - hit - share));
        }
    }
}
EXPORT_KERNEL(cross_entropy)
