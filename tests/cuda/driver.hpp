// How the emulated driver's entry points begin: under the one lock, with the context's device or stream.
#pragma once

#include "device.hpp"

namespace fake {

/// Set by a successful cuInit.
extern bool initialised;

/// What a call does with the current context's device, unless that is broken.
template <typename Body>
CUresult on_device(Body body) {
    const std::lock_guard<std::mutex> lock(one_call);
    Device* const device = current_device();
    if (device == nullptr || device->contexts == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (device->broken != CUDA_SUCCESS) {
        return device->broken;
    }
    const CUresult result = body(*device);
    return result == CUDA_SUCCESS && device->broken != CUDA_SUCCESS ? device->broken : result;
}

/// What a call does with one of the current context's streams.
template <typename Body>
CUresult on_stream(CUstream handle, Body body) {
    return on_device([&](Device& device) {
        const auto stream = find_stream(device, handle);
        return stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : body(device, stream);
    });
}

/// What a call that names a device itself does, whatever has happened to that.
template <typename Body>
CUresult with_device(CUdevice ordinal, Body body) {
    const std::lock_guard<std::mutex> lock(one_call);
    if (!initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    auto& all = devices();
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= all.size()) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    return body(*all[static_cast<size_t>(ordinal)]);
}

inline unsigned char* bytes_at(CUdeviceptr address) { return reinterpret_cast<unsigned char*>(address); }

inline void finish(const std::shared_ptr<Stream>& stream) { stream->run_until(stream->issued()); }

}  // namespace fake
