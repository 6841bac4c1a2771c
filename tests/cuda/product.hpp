// A product as cuBLASLt describes it, and its arithmetic: column-major, added up in f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cublaslt_api.hpp"

namespace product {

struct Operation {
    int32_t compute, scale_type;
    int32_t pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    uint64_t bias = 0, aux = 0;
    int64_t bias_stride = 0, aux_ld = 0, aux_stride = 0;
    int32_t bias_type = -1, aux_type = -1;
};

struct Layout {
    int32_t type;
    int32_t order = 0, batches = 1;
    uint64_t rows, columns;
    int64_t ld, batch_stride = 0;
};

constexpr uint32_t RELU = 2, BIAS = 4, GELU = 32, AUX = 128;

size_t element_bytes(int32_t type) { return type == CUDA_R_16BF ? 2 : 4; }

/// One product, taken out of its descriptors; column-major throughout.
struct Problem {
    Operation operation;
    Layout a, b, c, d;
    uint64_t m, n, k;
};

inline float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/// Rounds to nearest, ties to even; a NaN stays one.
inline uint16_t bf16_bits(float x) {
    const uint32_t bits = bits_of(x);
    return x != x ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float load(const unsigned char* from, int32_t type, uint64_t i) {
    if (type == CUDA_R_16BF) {
        uint16_t bits;
        memcpy(&bits, from + 2 * i, 2);
        return of_bits(static_cast<uint32_t>(bits) << 16);
    }
    float x;
    memcpy(&x, from + 4 * i, 4);
    return x;
}

inline void store(unsigned char* to, int32_t type, uint64_t i, float x) {
    if (type == CUDA_R_16BF) {
        const uint16_t bits = bf16_bits(x);
        memcpy(to + 2 * i, &bits, 2);
    } else {
        memcpy(to + 4 * i, &x, 4);
    }
}

/// As the compute type takes an f32: whole, with ten bits behind the point, or as bf16.
inline float input(float x, int32_t compute) {
    switch (compute) {
        case CUBLAS_COMPUTE_32F_FAST_TF32:
            return of_bits((bits_of(x) + 0x1000) & ~0x1FFFu);
        case CUBLAS_COMPUTE_32F_FAST_16BF:
            return of_bits(static_cast<uint32_t>(bf16_bits(x)) << 16);
        default:
            return x;
    }
}

/// A matrix in f32, its rows together (element (i, j) at j + i * columns), or its columns.
inline std::vector<float> unpacked(const unsigned char* from, const Layout& layout, bool transposed, bool rows_together,
                            int32_t compute) {
    const uint64_t rows = transposed ? layout.columns : layout.rows;
    const uint64_t columns = transposed ? layout.rows : layout.columns;
    const auto ld = static_cast<uint64_t>(layout.ld);
    std::vector<float> out(rows * columns);
    for (uint64_t j = 0; j < columns; ++j) {
        for (uint64_t i = 0; i < rows; ++i) {
            const float x = load(from, layout.type, transposed ? j + i * ld : i + j * ld);
            out[rows_together ? j + i * columns : i + j * rows] = input(x, compute);
        }
    }
    return out;
}

inline float gelu(float x) {
    const float inner = 0.797884560802865f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

inline void multiply(const Problem& p, float alpha, float beta, const unsigned char* a_start, const unsigned char* b_start,
              const unsigned char* c_start, unsigned char* d_start, uint64_t batch) {
    const Operation& o = p.operation;
    const auto offset = [batch](const Layout& l) {
        return batch * static_cast<uint64_t>(l.batch_stride) * element_bytes(l.type);
    };
    const std::vector<float> a = unpacked(a_start + offset(p.a), p.a, o.transpose_a != 0, false, o.compute);
    const std::vector<float> b = unpacked(b_start + offset(p.b), p.b, o.transpose_b != 0, false, o.compute);
    const unsigned char* const c = c_start + offset(p.c);
    unsigned char* const d = d_start + offset(p.d);
    const auto* const bias =
        reinterpret_cast<const unsigned char*>(o.bias) + batch * static_cast<uint64_t>(o.bias_stride) * element_bytes(p.d.type);
    auto* const aux =
        reinterpret_cast<unsigned char*>(o.aux) + batch * static_cast<uint64_t>(o.aux_stride) * element_bytes(p.d.type);
    std::vector<float> sums(p.m);
    for (uint64_t j = 0; j < p.n; ++j) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (uint64_t l = 0; l < p.k; ++l) {
            const float factor = b[l + j * p.k];
            const float* const column = &a[l * p.m];
            for (uint64_t i = 0; i < p.m; ++i) {
                sums[i] += factor * column[i];
            }
        }
        for (uint64_t i = 0; i < p.m; ++i) {
            float x = alpha * sums[i];
            if (beta != 0.0f) {
                x += beta * load(c, p.c.type, i + j * static_cast<uint64_t>(p.c.ld));
            }
            if ((o.epilogue & BIAS) != 0) {
                x += load(bias, p.d.type, i);
            }
            if ((o.epilogue & AUX) != 0) {
                store(aux, p.d.type, i + j * static_cast<uint64_t>(o.aux_ld), x);
            }
            if ((o.epilogue & GELU) != 0) {
                x = gelu(x);
            } else if ((o.epilogue & RELU) != 0) {
                x = std::max(x, 0.0f);
            }
            store(d, p.d.type, i + j * static_cast<uint64_t>(p.d.ld), x);
        }
    }
}

}  // namespace product
