// What the emulated driver does, and what it catches. CUDA calls are made as the crate `cudarc` makes them.

#include "check.hpp"
#include "driver_api.hpp"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDeviceGetCount(int*);
CUresult cuDeviceGetAttribute(int*, CUdevice_attribute, CUdevice);
CUresult cuDeviceTotalMem_v2(size_t*, CUdevice);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice);
CUresult cuCtxSetCurrent(CUcontext);
CUresult cuCtxSynchronize();
CUresult cuModuleLoadData(CUmodule*, const void*);
CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                        void**, void**);
CUresult cuMemGetInfo_v2(size_t*, size_t*);
CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemAllocAsync(CUdeviceptr*, size_t, CUstream);
CUresult cuMemFreeAsync(CUdeviceptr, CUstream);
CUresult cuMemHostAlloc(void**, size_t, unsigned);
CUresult cuMemFreeHost(void*);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream);
CUresult cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream);
CUresult cuStreamCreate(CUstream*, unsigned);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuEventCreate(CUevent*, unsigned);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent);
CUresult cuEventSynchronize(CUevent);
CUresult cuEventElapsedTime_v2(float*, CUevent, CUevent);
}

namespace {

#define OK(call) CHECK((call) == CUDA_SUCCESS)

/// A context on a card of 1 MiB, with two streams that wait for nobody.
struct Card {
    CUcontext context = nullptr;
    CUmodule module = nullptr;
    CUstream first = nullptr, second = nullptr;

    explicit Card(int ordinal = 0) {
        setenv("CHANDLER_FAKE_GPUS", "2", 1);
        setenv("CHANDLER_FAKE_GPU_MEMORY", "1048576", 1);
        OK(cuInit(0));
        OK(cuDevicePrimaryCtxRetain(&context, ordinal));
        OK(cuCtxSetCurrent(context));
        OK(cuModuleLoadData(&module, "anything"));
        OK(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
        OK(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    }
    CUfunction function(const char* name) const {
        CUfunction found = nullptr;
        OK(cuModuleGetFunction(&found, module, name));
        return found;
    }
    /// p[i] = x.
    CUresult put(CUdeviceptr p, long long i, float x, CUstream stream) const {
        void* arguments[] = {&p, &i, &x};
        return cuLaunchKernel(function("put"), 1, 1, 1, 1, 1, 1, 0, stream, arguments, nullptr);
    }
    /// out = x + 1, of n numbers.
    CUresult add_one(CUdeviceptr x, CUdeviceptr out, int n, CUstream stream) const {
        void* arguments[] = {&x, &out, &n};
        return cuLaunchKernel(function("add_one"), 2, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr);
    }
};

CUdeviceptr allocated(size_t bytes) {
    CUdeviceptr p = 0;
    OK(cuMemAlloc_v2(&p, bytes));
    return p;
}

std::vector<float> read(CUdeviceptr p, size_t n, CUstream stream) {
    std::vector<float> out(n);
    OK(cuMemcpyDtoHAsync_v2(out.data(), p, 4 * n, stream));
    OK(cuStreamSynchronize(stream));
    return out;
}

float* pinned(size_t n) {
    void* p = nullptr;
    OK(cuMemHostAlloc(&p, 4 * n, 0));
    return static_cast<float*>(p);
}

}  // namespace

TEST(there_are_as_many_cards_as_asked_for) {
    setenv("CHANDLER_FAKE_GPUS", "3", 1);
    setenv("CHANDLER_FAKE_GPU_MEMORY", "12345678", 1);
    setenv("CHANDLER_FAKE_GPU_CAPABILITY", "8.6", 1);
    int count = 0, major = 0, minor = 0, shared = 0;
    CHECK(cuDeviceGetCount(&count) == CUDA_ERROR_NOT_INITIALIZED);
    OK(cuInit(0));
    OK(cuDeviceGetCount(&count));
    size_t bytes = 0;
    OK(cuDeviceTotalMem_v2(&bytes, 2));
    OK(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 2));
    OK(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 2));
    OK(cuDeviceGetAttribute(&shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 2));
    CHECK(count == 3 && bytes == 12345678 && major == 8 && minor == 6 && shared == 99 << 10);
    CHECK(cuDeviceTotalMem_v2(&bytes, 3) == CUDA_ERROR_INVALID_DEVICE);
    CUdeviceptr p;
    CHECK(cuMemAlloc_v2(&p, 16) == CUDA_ERROR_INVALID_CONTEXT);
}

TEST(without_cards_the_driver_says_so) {
    setenv("CHANDLER_FAKE_GPUS", "0", 1);
    CHECK(cuInit(0) == CUDA_ERROR_NO_DEVICE);
}

TEST(kernels_compute_on_what_was_copied) {
    const Card card;
    const std::vector<float> x = check::numbers(100, 1);
    const CUdeviceptr dx = allocated(400), dy = allocated(400);
    OK(cuMemcpyHtoDAsync_v2(dx, x.data(), 400, card.first));
    OK(card.add_one(dx, dy, 100, card.first));
    const std::vector<float> y = read(dy, 100, card.first);
    for (size_t i = 0; i < 100; ++i) {
        CHECK(y[i] == x[i] + 1.0f);
    }
    CUfunction none;
    CHECK(cuModuleGetFunction(&none, card.module, "no_such_kernel") == CUDA_ERROR_NOT_FOUND);
    OK(cuMemFree_v2(dx));
    OK(cuMemFree_v2(dy));
    OK(cuDevicePrimaryCtxRelease_v2(0));
}

TEST(fresh_memory_is_nan) {
    const Card card;
    const CUdeviceptr p = allocated(400);
    for (const float x : read(p, 100, card.first)) {
        CHECK(std::isnan(x));
    }
}

TEST(memory_ends_and_comes_back) {
    const Card card;
    CUdeviceptr p = 0, q = 0;
    size_t free_bytes = 0, total = 0;
    CHECK(cuMemAlloc_v2(&p, 0) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemAlloc_v2(&p, (1 << 20) + 1) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAllocAsync(&p, 600 << 10, card.first));
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(free_bytes == 424 << 10 && total == 1 << 20);
    CHECK(cuMemAllocAsync(&q, 600 << 10, card.first) == CUDA_ERROR_OUT_OF_MEMORY);
    // Not yet given back, but a card waits for that rather than refuse.
    OK(cuMemFreeAsync(p, card.first));
    OK(cuMemAllocAsync(&q, 600 << 10, card.second));
    OK(cuMemFreeAsync(q, card.second));
    OK(cuCtxSynchronize());
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK(free_bytes == total);
}

TEST(writes_around_a_piece_of_memory_are_seen) {
    for (const long long place : {-1, 100}) {
        const Card card(place == 100 ? 1 : 0);
        const CUdeviceptr p = allocated(400);
        OK(card.put(p, 99, 1.0f, card.first));
        OK(cuStreamSynchronize(card.first));
        OK(card.put(p, place, 1.0f, card.first));
        CHECK(cuStreamSynchronize(card.first) == CUDA_ERROR_ILLEGAL_ADDRESS);
        CHECK(cuMemFree_v2(p) == CUDA_ERROR_ILLEGAL_ADDRESS);
    }
}

TEST(memory_given_back_must_not_be_used) {
    const Card card;
    const CUdeviceptr p = allocated(400);
    float x[100] = {};
    OK(cuMemFreeAsync(p, card.first));
    CHECK(cuMemcpyHtoDAsync_v2(p, x, 400, card.first) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemFreeAsync(p, card.first) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemFree_v2(p) == CUDA_ERROR_INVALID_VALUE);
    // A kernel that still has the address.
    OK(card.put(p, 5, 1.0f, card.first));
    OK(cuStreamSynchronize(card.first));
    CHECK(cuDevicePrimaryCtxRelease_v2(0) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(copies_beyond_the_end_are_refused) {
    const Card card;
    const CUdeviceptr p = allocated(400), q = allocated(4000);
    float x[101] = {};
    CHECK(cuMemcpyHtoDAsync_v2(p, x, 404, card.first) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyDtoHAsync_v2(x, p + 4, 400, card.first) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyDtoDAsync_v2(q, p, 404, card.first) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemsetD8Async(p, 0, 401, card.first) == CUDA_ERROR_INVALID_VALUE);
    OK(cuMemcpyDtoDAsync_v2(q + 3600, p, 400, card.first));
    OK(cuMemsetD8Async(p, 0, 400, card.first));
    CHECK(read(p, 100, card.first) == std::vector<float>(100, 0.0f));
}

TEST(pinned_memory_is_read_and_written_only_when_a_stream_gets_there) {
    const Card card;
    const CUdeviceptr p = allocated(4);
    float* const host = pinned(1);
    *host = 1.0f;
    OK(cuMemcpyHtoDAsync_v2(p, host, 4, card.first));
    // Too early: the copy takes this.
    *host = 2.0f;
    CHECK(read(p, 1, card.first)[0] == 2.0f);
    OK(cuMemcpyDtoHAsync_v2(host, p, 4, card.first));
    CHECK(std::isnan(*host));
    OK(cuStreamSynchronize(card.first));
    CHECK(*host == 2.0f);
    OK(cuMemFreeHost(host));
    // Pageable memory is free again when the call returns.
    float pageable = 3.0f;
    OK(cuMemcpyHtoDAsync_v2(p, &pageable, 4, card.first));
    pageable = 4.0f;
    CHECK(read(p, 1, card.first)[0] == 3.0f);
}

TEST(a_stream_sees_anothers_work_only_if_it_waits) {
    const Card card;
    const CUdeviceptr p = allocated(4), q = allocated(4);
    CUevent done = nullptr;
    OK(cuEventCreate(&done, CU_EVENT_DISABLE_TIMING));
    for (const bool waits : {false, true}) {
        OK(cuMemsetD8Async(p, 0xFF, 4, card.first));
        OK(cuStreamSynchronize(card.first));
        OK(card.put(p, 0, 1.0f, card.first));
        OK(cuEventRecord(done, card.first));
        if (waits) {
            OK(cuStreamWaitEvent(card.second, done, 0));
        }
        OK(card.add_one(p, q, 1, card.second));
        const float got = read(q, 1, card.second)[0];
        CHECK(waits ? got == 2.0f : std::isnan(got));
        OK(cuStreamSynchronize(card.first));
    }
    // What is recorded later is not waited for.
    OK(cuEventRecord(done, card.first));
    OK(card.put(p, 0, 7.0f, card.first));
    OK(cuStreamWaitEvent(card.second, done, 0));
    OK(card.add_one(p, q, 1, card.second));
    CHECK(read(q, 1, card.second)[0] == 2.0f);
}

TEST(the_default_stream_and_blocking_ones_wait_for_each_other) {
    const Card card;
    CUstream blocking = nullptr;
    OK(cuStreamCreate(&blocking, 0));
    const CUdeviceptr p = allocated(4), q = allocated(4);
    OK(card.put(p, 0, 1.0f, blocking));
    OK(card.add_one(p, q, 1, nullptr));
    OK(card.add_one(q, p, 1, blocking));
    CHECK(read(p, 1, blocking)[0] == 3.0f);
    OK(card.put(p, 0, 5.0f, blocking));
    float x = 0.0f;
    OK(cuMemcpyDtoH_v2(&x, p, 4));
    CHECK(x == 5.0f);
    // Not so the others.
    OK(card.put(p, 0, 6.0f, card.first));
    OK(cuMemcpyDtoH_v2(&x, p, 4));
    CHECK(x == 5.0f);
    OK(cuStreamDestroy_v2(card.first));
    OK(cuMemcpyDtoH_v2(&x, p, 4));
    CHECK(x == 6.0f);
    CHECK(cuStreamSynchronize(card.first) == CUDA_ERROR_INVALID_HANDLE);
}

TEST(events_tell_when_work_is_done) {
    const Card card;
    const CUdeviceptr p = allocated(4);
    CUevent start = nullptr, end = nullptr;
    float milliseconds = -1.0f;
    OK(cuEventCreate(&start, 0));
    OK(cuEventCreate(&end, 0));
    CHECK(cuEventElapsedTime_v2(&milliseconds, start, end) == CUDA_ERROR_INVALID_HANDLE);
    OK(cuEventRecord(start, card.first));
    OK(card.put(p, 0, 1.0f, card.first));
    OK(cuEventRecord(end, card.first));
    CHECK(cuEventElapsedTime_v2(&milliseconds, start, end) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventQuery(end) == CUDA_ERROR_NOT_READY);
    int asked = 1;
    while (cuEventQuery(end) == CUDA_ERROR_NOT_READY && asked < 10) {
        asked += 1;
    }
    CHECK(asked < 10);
    OK(cuEventElapsedTime_v2(&milliseconds, start, end));
    CHECK(milliseconds >= 0.0f);
    OK(cuEventSynchronize(end));
}

TEST(much_shared_memory_must_be_asked_for) {
    const Card card;
    const CUfunction function = card.function("add_one");
    CUdeviceptr p = allocated(4);
    int n = 0;
    void* arguments[] = {&p, &p, &n};
    const auto launch = [&](unsigned bytes) {
        return cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, bytes, card.first, arguments, nullptr);
    };
    OK(launch(48 << 10));
    CHECK(launch((48 << 10) + 1) == CUDA_ERROR_INVALID_VALUE);
    const auto attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    CHECK(cuFuncSetAttribute(function, attribute, 228 << 10) == CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(function, attribute, 227 << 10));
    OK(launch(227 << 10));
    CHECK(cuLaunchKernel(function, 1, 1, 1, 1025, 1, 1, 0, card.first, arguments, nullptr) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuLaunchKernel(function, 0, 1, 1, 1, 1, 1, 0, card.first, arguments, nullptr) == CUDA_ERROR_INVALID_VALUE);
    OK(cuCtxSynchronize());
}

TEST(a_kernel_that_fails_breaks_its_card_and_no_other) {
    const Card card, other(1);
    OK(cuCtxSetCurrent(card.context));
    OK(card.put(0, 3, 1.0f, card.first));
    // Nobody has waited for it yet.
    const CUdeviceptr p = allocated(4);
    CHECK(cuStreamSynchronize(card.first) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(cuStreamSynchronize(card.second) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(cuMemFree_v2(p) == CUDA_ERROR_ILLEGAL_ADDRESS);
    OK(cuCtxSetCurrent(other.context));
    OK(other.put(allocated(4), 0, 1.0f, other.first));
    OK(cuCtxSynchronize());
}

TEST(the_launch_asked_for_faults) {
    setenv("CHANDLER_FAKE_GPU_FAULT", "put:2", 1);
    const Card card;
    const CUdeviceptr p = allocated(400);
    OK(card.put(p, 0, 1.0f, card.first));
    OK(card.add_one(p, p, 1, card.first));
    OK(cuStreamSynchronize(card.first));
    OK(card.put(p, 0, 1.0f, card.first));
    CUdeviceptr q;
    CHECK(cuMemAlloc_v2(&q, 4) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(cuMemsetD8Async(p, 0, 4, card.first) == CUDA_ERROR_ILLEGAL_ADDRESS);
    CUfunction put = nullptr;
    CHECK(cuModuleGetFunction(&put, card.module, "put") == CUDA_ERROR_ILLEGAL_ADDRESS);
    CHECK(cuCtxSynchronize() == CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST(eager_streams_do_their_work_at_once) {
    setenv("CHANDLER_FAKE_GPU_EAGER", "1", 1);
    const Card card;
    const CUdeviceptr p = allocated(4);
    float* const host = pinned(1);
    OK(card.put(p, 0, 1.0f, card.first));
    OK(cuMemcpyDtoHAsync_v2(host, p, 4, card.first));
    CHECK(*host == 1.0f);
}
