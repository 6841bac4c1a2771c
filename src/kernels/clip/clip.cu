// From the sums of a step to what its update is to do, by one block of 256 threads.
#include "prelude.cuh"

namespace clip_cu {

constexpr unsigned THREADS = 256;

/// Laid out as cuda.rs reads it; zeros before the first step.
struct Gate {
    /// Sum of the step's item losses so far.
    double losses;
    double loss, grad_norm;
    /// What the update multiplies gradients by.
    float scale;
    /// Once a loss or a norm was not finite: no update is made any more.
    unsigned stopped;
};

/// The sum of x[0..n], in an order of its own that never changes; only thread 0's is whole.
__device__ double total(const double* x, unsigned n, double* shared) {
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < n; i += THREADS) {
        sum += x[i];
    }
    return block_sum<THREADS>(sum, shared);
}

}  // namespace clip_cu

// Adds the losses [n] of a micro-batch.
extern "C" __global__ void add_losses(const double* losses, unsigned n, clip_cu::Gate* gate) {
    using namespace clip_cu;
    __shared__ double shared[THREADS / WARP];
    const double sum = total(losses, n, shared);
    if (threadIdx.x == 0) {
        gate->losses += sum;
    }
}
EXPORT_KERNEL(add_losses)

// squares [n]: sums of squares of pieces of the gradients. The formula is `coefficient` in mod.rs.
extern "C" __global__ void clip(const double* squares, unsigned n, double share, double max_norm,
                                clip_cu::Gate* gate) {
    using namespace clip_cu;
    __shared__ double shared[THREADS / WARP];
    const double norm = sqrt(total(squares, n, shared));
    if (threadIdx.x != 0) {
        return;
    }
    const double loss = gate->losses * share;
    gate->losses = 0.0;
    gate->loss = loss;
    gate->grad_norm = norm;
    // A number that is not finite has no distance from itself.
    if (!(loss - loss == 0.0) || !(norm - norm == 0.0)) {
        gate->stopped = 1;
    }
    const double coefficient = max_norm > 0.0 ? fmin(max_norm / (norm + 1e-6), 1.0) : 1.0;
    gate->scale = gate->stopped != 0 ? 0.0f : static_cast<float>(coefficient);
}
EXPORT_KERNEL(clip)
