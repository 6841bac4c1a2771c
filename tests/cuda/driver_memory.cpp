// Device and pinned host memory, copies and fills.

#include <cstdlib>
#include <cstring>

#include "driver.hpp"

using namespace fake;

namespace {

/// Whether device memory is there; says so if not.
bool is_there(CUdeviceptr address, size_t bytes, const char* call) {
    if (bytes == 0 || find_allocation(address, bytes) != nullptr) {
        return true;
    }
    complain("%s: %zu bytes at %p are not (any more) within one piece of device memory", call, bytes,
             static_cast<void*>(bytes_at(address)));
    return false;
}

CUresult copy_between(const std::shared_ptr<Stream>& stream, CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    if (!is_there(to, bytes, "copy to") || !is_there(from, bytes, "copy from")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    issue(stream, [=] { memmove(bytes_at(to), bytes_at(from), bytes); });
    return CUDA_SUCCESS;
}

CUresult copy_to_device(const std::shared_ptr<Stream>& stream, CUdeviceptr to, const void* from, size_t bytes) {
    if (!is_there(to, bytes, "copy from the host")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (is_pinned(from, bytes)) {
        issue(stream, [=] { memcpy(bytes_at(to), from, bytes); });
    } else {
        // Pageable memory is staged before the call returns.
        const auto* const start = static_cast<const unsigned char*>(from);
        auto staged = std::make_shared<std::vector<unsigned char>>(start, start + bytes);
        issue(stream, [=] { memcpy(bytes_at(to), staged->data(), bytes); });
    }
    return CUDA_SUCCESS;
}

CUresult copy_to_host(const std::shared_ptr<Stream>& stream, void* to, CUdeviceptr from, size_t bytes) {
    if (!is_there(from, bytes, "copy to the host")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const bool in_background = is_pinned(to, bytes);
    if (in_background) {
        // From now until the stream has been waited for, what is there is anybody's guess.
        memset(to, 0xFF, bytes);
    }
    issue(stream, [=] { memcpy(to, bytes_at(from), bytes); });
    if (!in_background) {
        finish(stream);
    }
    return CUDA_SUCCESS;
}

CUresult fill(const std::shared_ptr<Stream>& stream, CUdeviceptr to, unsigned char value, size_t bytes) {
    if (!is_there(to, bytes, "fill")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    issue(stream, [=] { memset(bytes_at(to), value, bytes); });
    return CUDA_SUCCESS;
}

/// The device as a memory pool; there is one for each.
CUmemoryPool pool_of(Device& device) { return reinterpret_cast<CUmemoryPool>(&device); }
Device& device_of(CUmemoryPool pool) { return *reinterpret_cast<Device*>(pool); }

}  // namespace

extern "C" {

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
    return on_device([&](Device& device) {
        *free_bytes = device.memory_bytes - device.used_bytes;
        *total_bytes = device.memory_bytes;
        return CUDA_SUCCESS;
    });
}

// --- Device memory ---

CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
    return on_device([&](Device& device) {
        return bytes == 0 ? CUDA_ERROR_INVALID_VALUE : allocate(device, bytes, out);
    });
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    return on_device([&](Device& device) {
        if (address == 0) {
            return CUDA_SUCCESS;
        }
        device.run_all();
        if (!mark_freed(address)) {
            complain("free of %p, which is no piece of device memory (any more)",
                     static_cast<void*>(bytes_at(address)));
            return CUDA_ERROR_INVALID_VALUE;
        }
        release(address);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream handle) {
    return on_stream(handle, [&](Device& device, const std::shared_ptr<Stream>&) {
        return allocate(device, bytes, out);
    });
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr* out, size_t bytes, CUmemoryPool pool, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>&) {
        return allocate(device_of(pool), bytes, out);
    });
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        if (!mark_freed(address)) {
            complain("free of %p, which is no piece of device memory (any more)",
                     static_cast<void*>(bytes_at(address)));
            return CUDA_ERROR_INVALID_VALUE;
        }
        issue(stream, [address] { release(address); });
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        *pool = pool_of(device);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice ordinal) {
    return cuDeviceGetDefaultMemPool(pool, ordinal);
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    return on_device([&](Device&) {
        const Device& device = device_of(pool);
        auto* const out = static_cast<uint64_t*>(value);
        switch (attribute) {
            case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
                *out = device.release_threshold;
                return CUDA_SUCCESS;
            case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
            case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
                *out = device.used_bytes;
                return CUDA_SUCCESS;
            case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
            case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
                *out = device.most_used_bytes;
                return CUDA_SUCCESS;
            default:
                return CUDA_ERROR_NOT_SUPPORTED;
        }
    });
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    return on_device([&](Device&) {
        Device& device = device_of(pool);
        const uint64_t wanted = *static_cast<const uint64_t*>(value);
        switch (attribute) {
            case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
                device.release_threshold = wanted;
                return CUDA_SUCCESS;
            case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
            case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
                // Only a reset is allowed.
                device.most_used_bytes = device.used_bytes;
                return wanted == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
            default:
                return CUDA_ERROR_NOT_SUPPORTED;
        }
    });
}

CUresult cuMemPoolTrimTo(CUmemoryPool, size_t) {
    return on_device([](Device& device) {
        device.run_all();
        return CUDA_SUCCESS;
    });
}

// --- Pinned host memory ---

CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    return on_device([&](Device&) {
        void* const start = bytes == 0 ? nullptr : aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (start == nullptr) {
            return bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
        }
        memset(start, 0xFF, bytes);
        add_pinned(start, bytes);
        *out = start;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemFreeHost(void* start) {
    return on_device([&](Device& device) {
        // Copies may be under way.
        device.run_all();
        if (!remove_pinned(start)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        free(start);
        return CUDA_SUCCESS;
    });
}

// --- Copies and fills: those between host and device without a stream are done when the call returns ---

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        return copy_to_device(stream, to, from, bytes);
    });
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        return copy_to_host(stream, to, from, bytes);
    });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        return copy_between(stream, to, from, bytes);
    });
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream handle) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream handle) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        return fill(stream, to, value, bytes);
    });
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return on_device([&](Device& device) {
        const CUresult result = copy_to_device(device.default_stream, to, from, bytes);
        finish(device.default_stream);
        return result;
    });
}

CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return on_device([&](Device& device) {
        const CUresult result = copy_to_host(device.default_stream, to, from, bytes);
        finish(device.default_stream);
        return result;
    });
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return on_device([&](Device& device) { return copy_between(device.default_stream, to, from, bytes); });
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    return on_device([&](Device& device) { return fill(device.default_stream, to, value, bytes); });
}

}  // extern "C"
