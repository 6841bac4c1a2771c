// libcublasLt.so without a card: matrix products as cuBLASLt defines them, on the streams of the emulated
// driver. There is one algorithm.
//
// Refused, with a line on stderr: what the library's documentation leaves out of its tables, and what this
// file does not compute. An algorithm is good for other sizes too, but only for the types, epilogue and
// alignments, of pointers and of leading dimensions, that it was chosen for.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cublaslt_api.hpp"
#include "device.hpp"
#include "product.hpp"

namespace {

using fake::complain;
using namespace product;

struct Preference {
    uint64_t workspace_bytes_max = 0;
    uint32_t reduction_schemes = 0;
    /// Of A, B, C and D.
    uint32_t alignments[4] = {256, 256, 256, 256};
};

template <typename T, typename Handle>
T& behind(Handle handle) { return *reinterpret_cast<T*>(handle); }

template <typename T>
cublasStatus_t set(T& attribute, const void* value, size_t bytes) {
    if (value == nullptr || bytes != sizeof(T)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(&attribute, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/// Why a product cannot be computed, or null.
const char* objection(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    const auto is_float = [](int32_t type) { return type == CUDA_R_32F || type == CUDA_R_16BF; };
    const bool fast = o.compute == CUBLAS_COMPUTE_32F_FAST_TF32 || o.compute == CUBLAS_COMPUTE_32F_FAST_16BF;
    if (!fast && o.compute != CUBLAS_COMPUTE_32F && o.compute != CUBLAS_COMPUTE_32F_PEDANTIC) {
        return "only computing in f32 is emulated";
    }
    if (o.scale_type != CUDA_R_32F || o.pointer_mode != 0) {
        return "alpha and beta must be f32 on the host";
    }
    if (!is_float(a.type) || a.type != b.type || !is_float(c.type) || c.type != d.type) {
        return "A and B must be of one type, C and D of one, each f32 or bf16";
    }
    if (a.type == CUDA_R_32F && c.type != CUDA_R_32F) {
        return "products of f32 are f32";
    }
    if (fast && a.type != CUDA_R_32F) {
        return "the FAST compute types are for f32";
    }
    if (a.order != 0 || b.order != 0 || c.order != 0 || d.order != 0 || o.transpose_c != 0) {
        return "only column-major matrices are emulated, and C is never transposed";
    }
    if (o.transpose_a > 1 || o.transpose_b > 1) {
        return "a transpose is 0 or 1 for real numbers";
    }
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->rows == 0 || layout->columns == 0 || layout->ld < static_cast<int64_t>(layout->rows)) {
            return "matrices have rows, columns, and columns that do not overlap";
        }
        if (layout->batches != d.batches || layout->batches < 1) {
            return "all matrices must come in batches of the same size";
        }
    }
    const uint64_t m = o.transpose_a ? a.columns : a.rows, k = o.transpose_a ? a.rows : a.columns;
    const uint64_t n = o.transpose_b ? b.rows : b.columns, k_of_b = o.transpose_b ? b.columns : b.rows;
    if (k != k_of_b || c.rows != m || c.columns != n || d.rows != m || d.columns != n) {
        return "the sizes of the matrices do not fit one another";
    }
    switch (o.epilogue) {
        case CUBLASLT_EPILOGUE_DEFAULT:
        case CUBLASLT_EPILOGUE_RELU:
        case CUBLASLT_EPILOGUE_BIAS:
        case CUBLASLT_EPILOGUE_RELU_BIAS:
        case CUBLASLT_EPILOGUE_GELU:
        case CUBLASLT_EPILOGUE_GELU_BIAS:
        case CUBLASLT_EPILOGUE_GELU_AUX:
        case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
            break;
        default:
            return "this epilogue is not emulated";
    }
    if ((o.epilogue & BIAS) != 0 && o.bias_type != -1 && o.bias_type != d.type) {
        return "a bias is of D's type";
    }
    if ((o.epilogue & AUX) != 0) {
        if (o.aux_type != -1 && o.aux_type != d.type) {
            return "what GELU keeps is of D's type";
        }
        if (o.aux_ld % 8 != 0 || o.aux_ld < static_cast<int64_t>(m) || o.aux_stride % 8 != 0) {
            return "CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD must be a multiple of 8, and at least D's rows";
        }
    }
    return nullptr;
}

uint32_t alignment_of(uint64_t address) {
    return address == 0 ? 256 : static_cast<uint32_t>(std::min<uint64_t>(256, address & (~address + 1)));
}

// --- Algorithms: what they were chosen for ---

constexpr uint64_t ALGORITHM = 0x656D756C61746564;
constexpr uint64_t WORKSPACE_WANTED = 64 << 10;

/// What must not change between an algorithm's choice and its use.
uint64_t fingerprint(const Problem& p) {
    uint64_t hash = 0xCBF29CE484222325;
    const auto add = [&](int64_t x) { hash = (hash ^ static_cast<uint64_t>(x)) * 0x100000001B3 ^ hash >> 29; };
    const Operation& o = p.operation;
    for (const int64_t x : {o.compute, o.transpose_a, o.transpose_b}) {
        add(x);
    }
    add(o.epilogue);
    for (const Layout* l : {&p.a, &p.b, &p.c, &p.d}) {
        add(l->type);
        add(l->batches);
        // Vectors are read along columns: these must begin at multiples of 16 bytes, or of less.
        add(std::min(16u, alignment_of(static_cast<uint64_t>(l->ld) * element_bytes(l->type))));
    }
    return hash;
}

/// Why an algorithm cannot be used with these pointers (of A, B, C, D, the bias, the auxiliary buffer) and this
/// workspace, or null.
const char* objection_to(const cublasLtMatmulAlgo_t& algorithm, const uint64_t (&pointers)[6], size_t workspace_bytes) {
    for (int i = 0; i < 6; ++i) {
        const uint64_t promised = algorithm.data[2] >> (10 * i) & 0x3FF;
        if (pointers[i] != 0 && alignment_of(pointers[i]) < promised) {
            return "a matrix, the bias or the auxiliary buffer is less aligned than the algorithm was promised "
                   "(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES and its like are 256 unless set)";
        }
    }
    return workspace_bytes < algorithm.data[3] ? "the workspace is smaller than the algorithm wants" : nullptr;
}

/// From the first to the last byte of a batch of matrices.
size_t extent(const Layout& l) {
    const auto elements = static_cast<uint64_t>(l.batches - 1) * static_cast<uint64_t>(l.batch_stride) +
                          (l.columns - 1) * static_cast<uint64_t>(l.ld) + l.rows;
    return elements * element_bytes(l.type);
}

bool all_there(const Problem& p, const uint64_t (&pointers)[6], bool reads_c) {
    const Operation& o = p.operation;
    const auto last = static_cast<uint64_t>(p.d.batches - 1);
    const size_t bias = (last * static_cast<uint64_t>(o.bias_stride) + p.m) * element_bytes(p.d.type);
    const size_t aux = (last * static_cast<uint64_t>(o.aux_stride) + (p.n - 1) * static_cast<uint64_t>(o.aux_ld) + p.m) *
                       element_bytes(p.d.type);
    const size_t sizes[6] = {extent(p.a),
                             extent(p.b),
                             reads_c ? extent(p.c) : 0,
                             extent(p.d),
                             (o.epilogue & BIAS) != 0 ? bias : 0,
                             (o.epilogue & AUX) != 0 ? aux : 0};
    const char* const names[6] = {"A", "B", "C", "D", "the bias", "the auxiliary buffer"};
    for (int i = 0; i < 6; ++i) {
        if (sizes[i] > 0 && fake::find_allocation(pointers[i], sizes[i]) == nullptr) {
            complain("cublasLtMatmul: %s (%zu bytes at %p) is not (any more) within one piece of device memory",
                     names[i], sizes[i], reinterpret_cast<void*>(pointers[i]));
            return false;
        }
    }
    return true;
}

Problem problem_of(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    return {o, a, b, c, d, d.rows, d.columns, o.transpose_a ? a.rows : a.columns};
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    *handle = reinterpret_cast<cublasLtHandle_t>(new char);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete reinterpret_cast<char*>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion() { return 130000; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* out, cublasComputeType_t compute, cudaDataType_t scale) {
    *out = reinterpret_cast<cublasLtMatmulDesc_t>(new Operation{compute, scale});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t handle) {
    delete &behind<Operation>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
    auto& o = behind<Operation>(handle);
    switch (attribute) {
        case CUBLASLT_MATMUL_DESC_POINTER_MODE:
            return set(o.pointer_mode, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return set(o.transpose_a, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return set(o.transpose_b, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSC:
            return set(o.transpose_c, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return set(o.epilogue, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return set(o.bias, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
            return set(o.bias_stride, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return set(o.bias_type, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
            return set(o.aux, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
            return set(o.aux_ld, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
            return set(o.aux_stride, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
            return set(o.aux_type, value, bytes);
        default:
            complain("cublasLtMatmulDescSetAttribute: attribute %d is not emulated", attribute);
            return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* out, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    *out = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, 0, 1, rows, columns, ld});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t handle) {
    delete &behind<Layout>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
    auto& layout = behind<Layout>(handle);
    switch (attribute) {
        case CUBLASLT_MATRIX_LAYOUT_ORDER:
            return set(layout.order, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return set(layout.batches, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return set(layout.batch_stride, value, bytes);
        default:
            complain("cublasLtMatrixLayoutSetAttribute: attribute %d is not emulated", attribute);
            return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* out) {
    *out = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t handle) {
    delete &behind<Preference>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
    auto& preference = behind<Preference>(handle);
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        return set(preference.workspace_bytes_max, value, bytes);
    }
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
        return set(preference.reduction_schemes, value, bytes);
    }
    if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES) {
        return set(preference.alignments[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    }
    complain("cublasLtMatmulPreferenceSetAttribute: attribute %d is not emulated", attribute);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation_handle,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference_handle, int requested,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
    *count = 0;
    const auto& o = behind<Operation>(operation_handle);
    const Problem p = problem_of(o, behind<Layout>(a), behind<Layout>(b), behind<Layout>(c), behind<Layout>(d));
    if (const char* const wrong = objection(o, p.a, p.b, p.c, p.d)) {
        complain("cublasLtMatmulAlgoGetHeuristic: %s", wrong);
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (requested < 1) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const auto& preference = behind<Preference>(preference_handle);
    cublasLtMatmulHeuristicResult_t& result = results[0];
    memset(&result, 0, sizeof result);
    result.workspaceSize = std::min(preference.workspace_bytes_max, WORKSPACE_WANTED);
    uint64_t alignments = 0;
    for (int i = 0; i < 4; ++i) {
        alignments |= std::min<uint64_t>(256, preference.alignments[i]) << (10 * i);
    }
    // (The values of these two stand for their alignment.)
    alignments |= uint64_t{alignment_of(o.bias)} << 40 | uint64_t{alignment_of(o.aux)} << 50;
    result.algo.data[0] = ALGORITHM;
    result.algo.data[1] = fingerprint(p);
    result.algo.data[2] = alignments;
    result.algo.data[3] = result.workspaceSize;
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1.0f;
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation_handle, const void* alpha_pointer,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta_pointer, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream_handle) {
    const std::lock_guard<std::mutex> lock(fake::one_call);
    fake::Device* const device = fake::current_device();
    if (device == nullptr || device->broken != CUDA_SUCCESS) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    const auto stream = fake::find_stream(*device, reinterpret_cast<CUstream>(stream_handle));
    const auto& o = behind<Operation>(operation_handle);
    const Problem p = problem_of(o, behind<Layout>(a_layout), behind<Layout>(b_layout), behind<Layout>(c_layout),
                                 behind<Layout>(d_layout));
    float alpha, beta;
    memcpy(&alpha, alpha_pointer, sizeof alpha);
    memcpy(&beta, beta_pointer, sizeof beta);
    const auto address = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
    const bool has_bias = (o.epilogue & BIAS) != 0, has_aux = (o.epilogue & AUX) != 0;
    const uint64_t pointers[6] = {address(a), address(b), address(c), address(d), has_bias ? o.bias : 0,
                                  has_aux ? o.aux : 0};
    const char* wrong = objection(o, p.a, p.b, p.c, p.d);
    if (wrong == nullptr && algorithm != nullptr) {
        if (algorithm->data[0] != ALGORITHM || algorithm->data[1] != fingerprint(p)) {
            complain("cublasLtMatmul: the algorithm was chosen for another kind of problem");
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
        wrong = objection_to(*algorithm, pointers, workspace_bytes);
    }
    if (wrong == nullptr && c == d && (p.c.ld != p.d.ld || p.c.batch_stride != p.d.batch_stride)) {
        wrong = "C and D are one matrix with two layouts";
    }
    if (wrong == nullptr && has_aux && o.aux % 16 != 0) {
        wrong = "the auxiliary buffer must be aligned to 16 bytes";
    }
    if (wrong == nullptr && stream == nullptr) {
        wrong = "there is no such stream";
    }
    if (wrong != nullptr) {
        complain("cublasLtMatmul: %s", wrong);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!all_there(p, pointers, beta != 0.0f)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (workspace_bytes > 0 && fake::find_allocation(address(workspace), workspace_bytes) == nullptr) {
        complain("cublasLtMatmul: the workspace is not (any more) within one piece of device memory");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const auto bytes = [](uint64_t pointer) { return reinterpret_cast<unsigned char*>(pointer); };
    const uint64_t a_address = pointers[0], b_address = pointers[1], c_address = pointers[2], d_address = pointers[3];
    fake::issue(stream, [=] {
        // Whatever else is kept in the workspace is lost, as with the real library.
        memset(workspace, 0xFF, std::min<size_t>(workspace_bytes, WORKSPACE_WANTED));
        for (uint64_t batch = 0; batch < static_cast<uint64_t>(p.d.batches); ++batch) {
            multiply(p, alpha, beta, bytes(a_address), bytes(b_address), bytes(c_address), bytes(d_address), batch);
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
