// The AdamW update of all parameters in one launch. Entries (see cuda/table.rs): value, gradient, both moments,
// elements, whether it decays, the value's copy in bf16 or null.
#include "prelude.cuh"

namespace adamw_cu {

constexpr uint64_t CHUNK = 16384;
constexpr unsigned THREADS = 256;

struct Entry {
    float* value;
    const float* grad;
    float* exp_avg;
    float* exp_avg_sq;
    uint64_t n;
    uint64_t decays;
    bf16* rounded;
};

/// Laid out as `AdamWUpdate` in adamw.rs, which says what they are.
struct Update {
    float grad_scale, decay, beta2, rest1, rest2, step_size, second_scale, epsilon;
};

/// The end of `Gate` in clip.cu.
struct Scale {
    float scale;
    unsigned stopped;
};

}  // namespace adamw_cu

// A block of 256 threads per chunk. Roundings are those of adamw.rs, one by one. `gate`, if there is one, says by how
// much gradients are scaled, or that nothing is to be done.
extern "C" __global__ void adamw(const adamw_cu::Entry* entries, const uint64_t* blocks, adamw_cu::Update u,
                                 const adamw_cu::Scale* gate) {
    using namespace adamw_cu;
    if (gate != nullptr) {
        if (gate->stopped != 0) {
            return;
        }
        u.grad_scale = gate->scale;
    }
    const Entry entry = entries[blocks[blockIdx.x] >> 32];
    const uint64_t begin = (blocks[blockIdx.x] & 0xFFFFFFFFu) * CHUNK;
    const uint64_t end = min(entry.n, begin + CHUNK);
    const float decay = entry.decays != 0 ? u.decay : 1.0f;
    for (uint64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        const float g = __fmul_rn(entry.grad[i], u.grad_scale);
        const float old = entry.exp_avg[i];
        const float m = fmaf(__fadd_rn(g, -old), u.rest1, old);
        const float v = fmaf(entry.exp_avg_sq[i], u.beta2, __fmul_rn(__fmul_rn(g, g), u.rest2));
        const float denominator = fmaf(__fsqrt_rn(v), u.second_scale, u.epsilon);
        const float change = __fdiv_rn(__fmul_rn(m, -u.step_size), denominator);
        const float value = fmaf(entry.value[i], decay, change);
        entry.value[i] = value;
        if (entry.rounded != nullptr) {
            entry.rounded[i] = from_float<bf16>(value);
        }
        entry.exp_avg[i] = m;
        entry.exp_avg_sq[i] = v;
    }
}
EXPORT_KERNEL(adamw)
