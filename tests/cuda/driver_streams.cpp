// Streams and events.

#include "driver.hpp"

using namespace fake;

namespace {

/// What a call does with one of the current context's events.
template <typename Body>
CUresult on_event(CUevent handle, Body body) {
    return on_device([&](Device& device) {
        const auto found = device.events.find(handle);
        return found == device.events.end() ? CUDA_ERROR_INVALID_HANDLE : body(device, found->second);
    });
}

}  // namespace

extern "C" {

// --- Streams ---

CUresult cuStreamCreate(CUstream* handle, unsigned flags) {
    return on_device([&](Device& device) {
        auto stream = std::make_shared<Stream>(Stream{device, (flags & CU_STREAM_NON_BLOCKING) != 0, {}});
        *handle = reinterpret_cast<CUstream>(stream.get());
        device.streams[*handle] = std::move(stream);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

CUresult cuStreamDestroy_v2(CUstream handle) {
    return on_device([&](Device& device) {
        const auto found = device.streams.find(handle);
        if (found == device.streams.end()) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        // What it was given is still done.
        const std::shared_ptr<Stream> stream = found->second;
        finish(stream);
        device.streams.erase(found);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamSynchronize(CUstream handle) {
    return on_stream(handle, [](Device& device, const std::shared_ptr<Stream>& stream) {
        // (An empty piece, so that what the default stream must wait for is waited for.)
        issue(stream, [] {});
        finish(stream);
        check_guards(device);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamQuery(CUstream handle) {
    return on_stream(handle, [](Device&, const std::shared_ptr<Stream>& stream) {
        // One piece of work a question, so that who asks until it is done gets there.
        stream->run_until(stream->done + 1);
        return stream->pending.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>&) {
        *status = CU_STREAM_CAPTURE_STATUS_NONE;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
    return on_event(handle, [&](Device& device, const std::shared_ptr<Event>& event) {
        const auto stream = find_stream(device, stream_handle);
        if (stream == nullptr) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        if (!event->done()) {
            wait_for(stream, event->stream, event->ticket);
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
    return on_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        issue(stream, [=] { function(data); });
        return CUDA_SUCCESS;
    });
}

// --- Events ---

CUresult cuEventCreate(CUevent* handle, unsigned flags) {
    return on_device([&](Device& device) {
        auto event = std::make_shared<Event>();
        event->timed = (flags & CU_EVENT_DISABLE_TIMING) == 0;
        *handle = reinterpret_cast<CUevent>(event.get());
        device.events[*handle] = std::move(event);
        return CUDA_SUCCESS;
    });
}

CUresult cuEventDestroy_v2(CUevent handle) {
    return on_device([&](Device& device) {
        return device.events.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    return on_event(handle, [&](Device& device, const std::shared_ptr<Event>& event) {
        const auto stream = find_stream(device, stream_handle);
        if (stream == nullptr) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        issue(stream, [event] { event->when = std::chrono::steady_clock::now(); });
        event->stream = stream;
        event->ticket = stream->issued();
        return CUDA_SUCCESS;
    });
}

CUresult cuEventQuery(CUevent handle) {
    return on_event(handle, [](Device&, const std::shared_ptr<Event>& event) {
        if (event->done()) {
            return CUDA_SUCCESS;
        }
        // One piece of work a question, so that who asks until it is done gets there.
        event->stream->run_until(event->stream->done + 1);
        return event->done() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

CUresult cuEventSynchronize(CUevent handle) {
    return on_event(handle, [](Device& device, const std::shared_ptr<Event>& event) {
        if (event->stream != nullptr) {
            event->stream->run_until(event->ticket);
        }
        check_guards(device);
        return CUDA_SUCCESS;
    });
}

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    return on_event(start_handle, [&](Device& device, const std::shared_ptr<Event>& start) {
        const auto found = device.events.find(end_handle);
        if (found == device.events.end()) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        const Event& end = *found->second;
        if (!start->timed || !end.timed || start->stream == nullptr || end.stream == nullptr) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        if (!start->done() || !end.done()) {
            return CUDA_ERROR_NOT_READY;
        }
        *milliseconds = std::chrono::duration<float, std::milli>(end.when - start->when).count();
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
