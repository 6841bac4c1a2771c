// The emulated cuBLASLt against plain products, and what it refuses.

#include "check.hpp"
#include "cublaslt_api.hpp"
#include "driver_api.hpp"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuCtxSetCurrent(CUcontext);
CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
cublasStatus_t cublasLtCreate(cublasLtHandle_t*);
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t*, cublasComputeType_t, cudaDataType_t);
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void*,
                                              size_t);
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t*, cudaDataType, uint64_t, uint64_t, int64_t);
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, const void*,
                                                size_t);
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t*);
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t);
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t*, int*);
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t,
                              const void*, cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t,
                              void*, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t);
}

namespace {

#define OK(call) CHECK(static_cast<int>(call) == 0)

float to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
    memcpy(&x, &bits, 4);
    return x;
}

/// A column-major matrix: as the card has it, and as plain numbers.
struct Matrix {
    cudaDataType_t type;
    uint64_t rows, columns, ld;
    std::vector<float> values;
    CUdeviceptr device = 0;

    Matrix(cudaDataType_t type, uint64_t rows, uint64_t columns, uint64_t ld, uint64_t seed)
        : type(type), rows(rows), columns(columns), ld(ld), values(check::numbers(ld * columns, seed)) {
        if (type == CUDA_R_16BF) {
            for (float& x : values) {
                x = to_bf16(x);
            }
        }
        // Eight numbers more, so that a test can move it.
        OK(cuMemAlloc_v2(&device, bytes() + 32));
        write(device);
    }
    size_t bytes() const { return values.size() * (type == CUDA_R_16BF ? 2 : 4); }
    void write(CUdeviceptr to) const {
        std::vector<unsigned char> raw(bytes());
        for (size_t i = 0; i < values.size(); ++i) {
            const auto* const x = reinterpret_cast<const unsigned char*>(&values[i]);
            type == CUDA_R_16BF ? memcpy(&raw[2 * i], x + 2, 2) : memcpy(&raw[4 * i], x, 4);
        }
        OK(cuMemcpyHtoD_v2(to, raw.data(), raw.size()));
    }
    std::vector<float> read() const {
        std::vector<unsigned char> raw(bytes());
        OK(cuMemcpyDtoH_v2(raw.data(), device, raw.size()));
        std::vector<float> out(values.size());
        for (size_t i = 0; i < out.size(); ++i) {
            auto* const x = reinterpret_cast<unsigned char*>(&out[i]);
            type == CUDA_R_16BF ? memcpy(x + 2, &raw[2 * i], 2) : memcpy(x, &raw[4 * i], 4);
        }
        return out;
    }
    double at(uint64_t row, uint64_t column) const { return values[row + column * ld]; }
    cublasLtMatrixLayout_t layout() const {
        cublasLtMatrixLayout_t out = nullptr;
        OK(cublasLtMatrixLayoutCreate(&out, type, rows, columns, static_cast<int64_t>(ld)));
        return out;
    }
};

struct Call {
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    float alpha = 1.0f, beta = 0.0f;
    CUdeviceptr workspace = 0;

    explicit Call(cublasComputeType_t compute = CUBLAS_COMPUTE_32F) : compute(compute) {
        CUcontext context;
        OK(cuInit(0));
        OK(cuDevicePrimaryCtxRetain(&context, 0));
        OK(cuCtxSetCurrent(context));
        OK(cublasLtCreate(&handle));
        OK(cublasLtMatmulDescCreate(&operation, compute, CUDA_R_32F));
        OK(cublasLtMatmulPreferenceCreate(&preference));
        OK(cuMemAlloc_v2(&workspace, 1 << 20));
        const uint64_t bytes = 1 << 20;
        OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, 8));
    }
    template <typename T>
    void set(cublasLtMatmulDescAttributes_t attribute, T value) {
        OK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value));
    }
    /// The first that it says, whether of the choice or of the product.
    cublasStatus_t run(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
        cublasLtMatmulHeuristicResult_t chosen;
        const cublasStatus_t status = choose(a, b, c, d, &chosen);
        return status == CUBLAS_STATUS_SUCCESS ? multiply(a, b, c, d, &chosen.algo) : status;
    }
    cublasStatus_t choose(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d,
                          cublasLtMatmulHeuristicResult_t* chosen) {
        int count = 0;
        return cublasLtMatmulAlgoGetHeuristic(handle, operation, a.layout(), b.layout(), c.layout(), d.layout(),
                                              preference, 1, chosen, &count);
    }
    cublasStatus_t multiply(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d,
                            const cublasLtMatmulAlgo_t* algorithm, size_t workspace_bytes = 1 << 20) {
        const auto pointer = [](CUdeviceptr p) { return reinterpret_cast<void*>(p); };
        return cublasLtMatmul(handle, operation, &alpha, pointer(a.device), a.layout(), pointer(b.device), b.layout(),
                              &beta, pointer(c.device), c.layout(), pointer(d.device), d.layout(), algorithm,
                              pointer(workspace), workspace_bytes, nullptr);
    }
};

constexpr uint64_t M = 24, N = 7, K = 19;

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

}  // namespace

TEST(products_agree_with_plain_ones) {
    const cudaDataType_t types[][2] = {
        {CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}};
    for (const auto& [in, out] : types) {
        for (int variant = 0; variant < 8; ++variant) {
            const bool a_transposed = variant % 2 != 0, b_transposed = variant / 2 % 2 != 0, in_place = variant >= 4;
            Call call;
            call.set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{a_transposed});
            call.set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t{b_transposed});
            call.alpha = 0.5f;
            call.beta = variant == 0 ? 0.0f : 2.0f;
            const Matrix a(in, a_transposed ? K : M, a_transposed ? M : K, 26, 1);
            const Matrix b(in, b_transposed ? N : K, b_transposed ? K : N, 21, 2);
            const Matrix c(out, M, N, 25, 3), other(out, M, N, 32, 4);
            const Matrix& d = in_place ? c : other;
            OK(call.run(a, b, c, d));
            const std::vector<float> got = d.read();
            for (uint64_t j = 0; j < N; ++j) {
                for (uint64_t i = 0; i < d.ld; ++i) {
                    if (i >= M) {
                        CHECK(got[i + j * d.ld] == d.values[i + j * d.ld]);
                        continue;
                    }
                    double sum = call.beta * c.at(i, j);
                    for (uint64_t k = 0; k < K; ++k) {
                        sum += 0.5 * (a_transposed ? a.at(k, i) : a.at(i, k)) * (b_transposed ? b.at(j, k) : b.at(k, j));
                    }
                    const double error = std::abs(got[i + j * d.ld] - sum);
                    CHECK(error <= (out == CUDA_R_16BF ? std::abs(sum) / 256 + 1e-6 : 1e-5));
                }
            }
        }
    }
}

TEST(what_follows_a_product_is_applied) {
    for (const auto epilogue :
         {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_GELU,
          CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS}) {
        Call call;
        const Matrix a(CUDA_R_16BF, M, K, M, 1), b(CUDA_R_16BF, K, N, K, 2), d(CUDA_R_16BF, M, N, M, 3);
        const Matrix bias(CUDA_R_16BF, M, 1, M, 4), aux(CUDA_R_16BF, M, N, 32, 5);
        call.set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue));
        call.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.device);
        call.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.device);
        call.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t{32});
        OK(call.run(a, b, d, d));
        const std::vector<float> got = d.read(), kept = aux.read();
        for (uint64_t j = 0; j < N; ++j) {
            for (uint64_t i = 0; i < M; ++i) {
                double x = (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0 ? bias.at(i, 0) : 0;
                for (uint64_t k = 0; k < K; ++k) {
                    x += a.at(i, k) * b.at(k, j);
                }
                const bool keeps = (epilogue & 128) != 0;
                CHECK(keeps ? std::abs(kept[i + j * 32] - x) <= std::abs(x) / 256 + 1e-6
                            : kept[i + j * 32] == aux.values[i + j * 32]);
                const double expected = (epilogue & CUBLASLT_EPILOGUE_GELU) != 0   ? gelu(x)
                                        : (epilogue & CUBLASLT_EPILOGUE_RELU) != 0 ? std::fmax(x, 0)
                                                                                   : x;
                CHECK(std::abs(got[i + j * M] - expected) <= std::abs(expected) / 256 + 1e-6);
            }
        }
    }
}

TEST(batches_are_products_beside_each_other) {
    Call call;
    const Matrix a(CUDA_R_32F, 4, 3 * 2, 4, 1), b(CUDA_R_32F, 3, 5 * 2, 3, 2), d(CUDA_R_32F, 4, 5 * 2, 4, 3);
    const auto layout = [](const Matrix& matrix, uint64_t columns) {
        Matrix half = matrix;
        half.columns = columns;
        cublasLtMatrixLayout_t out = half.layout();
        const int32_t count = 2;
        const auto stride = static_cast<int64_t>(matrix.ld * columns);
        OK(cublasLtMatrixLayoutSetAttribute(out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, 4));
        OK(cublasLtMatrixLayoutSetAttribute(out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, 8));
        return out;
    };
    const cublasLtMatrixLayout_t d_layout = layout(d, 5);
    const auto pointer = [](CUdeviceptr p) { return reinterpret_cast<void*>(p); };
    OK(cublasLtMatmul(call.handle, call.operation, &call.alpha, pointer(a.device), layout(a, 3), pointer(b.device),
                      layout(b, 5), &call.beta, pointer(d.device), d_layout, pointer(d.device), d_layout, nullptr,
                      nullptr, 0, nullptr));
    const std::vector<float> got = d.read();
    for (uint64_t j = 0; j < 10; ++j) {
        for (uint64_t i = 0; i < 4; ++i) {
            double sum = 0;
            for (uint64_t k = 0; k < 3; ++k) {
                sum += a.at(i, j / 5 * 3 + k) * b.at(k, j);
            }
            CHECK(std::abs(got[i + j * 4] - sum) < 1e-6);
        }
    }
}

TEST(the_compute_type_says_how_exact_f32_is) {
    std::vector<double> errors;
    for (const auto compute : {CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_32F_FAST_16BF}) {
        Call call(compute);
        const Matrix a(CUDA_R_32F, M, K, M, 1), b(CUDA_R_32F, K, N, K, 2), d(CUDA_R_32F, M, N, M, 3);
        OK(call.run(a, b, d, d));
        const std::vector<float> got = d.read();
        double worst = 0;
        for (uint64_t j = 0; j < N; ++j) {
            double sum = 0;
            for (uint64_t k = 0; k < K; ++k) {
                sum += a.at(0, k) * b.at(k, j);
            }
            worst = std::fmax(worst, std::abs(got[j * M] - sum));
        }
        errors.push_back(worst);
    }
    CHECK(errors[0] < 1e-6);
    CHECK(errors[1] > 1e-5 && errors[1] < 1e-3);
    CHECK(errors[2] > 1e-3 && errors[2] < 1e-2);
}

TEST(what_the_library_does_not_offer_is_refused) {
    Call call;
    const Matrix a(CUDA_R_16BF, M, K, M, 1), b(CUDA_R_16BF, K, N, K, 2), d(CUDA_R_16BF, M, N, M, 3);
    const Matrix wide_b(CUDA_R_32F, K, N, K, 2), wide_a(CUDA_R_32F, M, K, M, 1), wide_d(CUDA_R_32F, M, N, M, 3);
    const Matrix short_b(CUDA_R_16BF, K - 1, N, K, 2), tight(CUDA_R_16BF, M, N, M - 1, 3);
    OK(call.run(a, b, d, d));
    CHECK(call.run(a, wide_b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.run(wide_a, wide_b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.run(a, b, wide_d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.run(a, short_b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.run(a, b, tight, tight) == CUBLAS_STATUS_NOT_SUPPORTED);
    Call fast(CUBLAS_COMPUTE_32F_FAST_TF32);
    CHECK(fast.run(a, b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    // The auxiliary buffer's columns must be multiples of eight apart.
    call.set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_GELU_AUX));
    call.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, d.device);
    call.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t{M + 4});
    CHECK(call.run(a, b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
    call.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{192});
    CHECK(call.run(a, b, d, d) == CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST(an_algorithm_is_good_for_what_it_was_chosen_for) {
    Call call;
    const Matrix a(CUDA_R_16BF, M, K, M, 1), b(CUDA_R_16BF, K, N, K, 2), d(CUDA_R_16BF, M, N, M, 3);
    const Matrix more_b(CUDA_R_16BF, K, N + 1, K, 2), more_d(CUDA_R_16BF, M, N + 1, M, 3);
    const Matrix wide_d(CUDA_R_32F, M, N, M, 3), sparse_d(CUDA_R_16BF, M, N, M + 1, 3);
    cublasLtMatmulHeuristicResult_t chosen;
    OK(call.choose(a, b, d, d, &chosen));
    CHECK(chosen.workspaceSize > 0);
    OK(call.multiply(a, b, d, d, &chosen.algo));
    // Other sizes are nothing to it; other types, and columns less aligned, are.
    OK(call.multiply(a, more_b, more_d, more_d, &chosen.algo));
    CHECK(call.multiply(a, b, wide_d, wide_d, &chosen.algo) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.multiply(a, b, sparse_d, sparse_d, &chosen.algo) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(call.multiply(a, b, d, d, &chosen.algo, 16) == CUBLAS_STATUS_INVALID_VALUE);
    // A matrix that begins 16 bytes further is less aligned than was promised, until that is promised.
    Matrix moved = a;
    moved.device += 16;
    moved.write(moved.device);
    CHECK(call.multiply(moved, b, d, d, &chosen.algo) == CUBLAS_STATUS_INVALID_VALUE);
    const uint32_t alignment = 16;
    OK(cublasLtMatmulPreferenceSetAttribute(call.preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, 4));
    OK(call.run(moved, b, d, d));
}

TEST(products_need_their_matrices) {
    Call call;
    const Matrix a(CUDA_R_16BF, M, K, M, 1), b(CUDA_R_16BF, K, N, K, 2);
    Matrix d(CUDA_R_16BF, M, N, M, 3);
    d.device += 256;
    CHECK(call.run(a, b, d, d) == CUBLAS_STATUS_INVALID_VALUE);
}
