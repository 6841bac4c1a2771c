// The activations of activation.rs, forward and backward, element by element.
#include "prelude.cuh"

namespace activation_cu {

// Numbered as `Activation::number` does.
enum Kind : unsigned { GELU, GELU_TANH, RELU, TANH };

constexpr float SQRT_HALF = 0.70710678118654752f;
constexpr float INV_SQRT_2PI = 0.39894228040143268f;
constexpr float SQRT_2_OVER_PI = 0.79788456080286536f;
constexpr float CUBIC = 0.044715f;

__device__ __forceinline__ float value(unsigned kind, float x) {
    switch (kind) {
        case GELU:
            return 0.5f * x * (1.0f + erff(x * SQRT_HALF));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)));
        case RELU:
            return x > 0.0f ? x : 0.0f * x;  // NaN stays NaN.
        default:
            return tanhf(x);
    }
}

__device__ __forceinline__ float slope(unsigned kind, float x) {
    switch (kind) {
        case GELU:
            return 0.5f * (1.0f + erff(x * SQRT_HALF)) + x * INV_SQRT_2PI * expf(-0.5f * x * x);
        case GELU_TANH: {
            const float t = tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
            const float inner = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * x * x);
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
        }
        case RELU:
            return x > 0.0f ? 1.0f : 0.0f;
        default: {
            const float t = tanhf(x);
            return 1.0f - t * t;
        }
    }
}

/// `y = f(x)`; or `y *= f'(x)`, and `again = f(x)` if it is not null. Four elements at a time, then what is left; any grid.
template <bool BACKWARD, typename T>
__device__ void apply(unsigned kind, const T* x, T* y, T* again, uint64_t n) {
    const uint64_t first = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    // Views of rows may begin anywhere; whole tensors are aligned.
    const uint64_t addresses =
        reinterpret_cast<uint64_t>(x) | reinterpret_cast<uint64_t>(y) | reinterpret_cast<uint64_t>(again);
    const bool aligned = addresses % (4 * sizeof(T)) == 0;
    const uint64_t quads = aligned ? n / 4 : 0;
    for (uint64_t i = first; i < quads; i += step) {
        const float4 v = load4(x + 4 * i);
        if (BACKWARD) {
            const float4 d = load4(y + 4 * i);
            store4(y + 4 * i, make_float4(d.x * slope(kind, v.x), d.y * slope(kind, v.y),
                                          d.z * slope(kind, v.z), d.w * slope(kind, v.w)));
        }
        T* values = BACKWARD ? again : y;
        if (values != nullptr) {
            store4(values + 4 * i, make_float4(value(kind, v.x), value(kind, v.y), value(kind, v.z),
                                               value(kind, v.w)));
        }
    }
    for (uint64_t i = 4 * quads + first; i < n; i += step) {
        const float v = load(x + i);
        if (BACKWARD) store(y + i, load(y + i) * slope(kind, v));
        T* values = BACKWARD ? again : y;
        if (values != nullptr) store(values + i, value(kind, v));
    }
}

}  // namespace activation_cu

extern "C" __global__ void activation_f32(unsigned kind, const float* x, float* out, uint64_t n) {
    activation_cu::apply<false>(kind, x, out, static_cast<float*>(nullptr), n);
}
EXPORT_KERNEL(activation_f32)
extern "C" __global__ void activation_bf16(unsigned kind, const bf16* x, bf16* out, uint64_t n) {
    activation_cu::apply<false>(kind, x, out, static_cast<bf16*>(nullptr), n);
}
EXPORT_KERNEL(activation_bf16)
extern "C" __global__ void activation_backward_f32(unsigned kind, const float* x, float* d, float* again,
                                                   uint64_t n) {
    activation_cu::apply<true>(kind, x, d, again, n);
}
EXPORT_KERNEL(activation_backward_f32)
extern "C" __global__ void activation_backward_bf16(unsigned kind, const bf16* x, bf16* d, bf16* again,
                                                    uint64_t n) {
    activation_cu::apply<true>(kind, x, d, again, n);
}
EXPORT_KERNEL(activation_backward_bf16)
