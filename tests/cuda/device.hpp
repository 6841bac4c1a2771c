// Emulated cards: memory with guards around each piece, and streams whose work is put off.
//
// A stream does nothing until something waits for it: a host that reads too early, reuses a buffer too
// early, or forgets to let one stream wait for another gets garbage instead of luck. Work of one stream
// is done in order, on the OS thread that waits. Everything here is called under `one_call`.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver_api.hpp"

namespace emulator {
struct Kernel;
}

namespace fake {

struct Device;

using Work = std::function<void()>;

struct Stream {
    Device& device;
    /// Does not wait for the default stream's work, nor that for its.
    bool independent;
    std::deque<Work> pending;
    uint64_t done = 0;

    /// The number of the last piece of work given to it; the first has number 1.
    uint64_t issued() const { return done + pending.size(); }
    void run_until(uint64_t ticket);
};

struct Event {
    bool timed;
    /// What was recorded last: the stream and the number of its piece of work. Null before that.
    std::shared_ptr<Stream> stream;
    uint64_t ticket = 0;
    std::chrono::steady_clock::time_point when;

    bool done() const { return stream == nullptr || stream->done >= ticket; }
};

struct Allocation {
    Device* device;
    /// What the host's allocator gave: a guard, the data, and a guard.
    unsigned char* block;
    size_t bytes;
    /// A free has been asked for.
    bool freed;

    unsigned char* data() const;
    /// What it counts as, against the card's memory.
    size_t taken() const;
};

struct Device {
    int ordinal;
    size_t memory_bytes;
    size_t used_bytes = 0, most_used_bytes = 0;
    uint64_t release_threshold = 0;
    int major, minor;
    unsigned contexts = 0;
    /// Once set, what every call answers: a card that has faulted is of no use to its process.
    CUresult broken = CUDA_SUCCESS;
    std::shared_ptr<Stream> default_stream, thread_stream;
    std::unordered_map<CUstream, std::shared_ptr<Stream>> streams;
    std::unordered_map<CUevent, std::shared_ptr<Event>> events;

    size_t shared_bytes_max() const;
    /// Says what happened, and breaks the card.
    void fault(CUresult error, const std::string& message);
    void run_all();
};

/// A function of a loaded module; found again as long as the process lives, as its handle is its address.
struct Function {
    const emulator::Kernel* kernel;
    int dynamic_shared_bytes_max = 48 << 10;
    uint64_t launches = 0;
};

extern std::mutex one_call;

/// The cards there are, as the environment asks: see `settings` in device.cpp.
std::vector<std::unique_ptr<Device>>& devices();
/// The device whose context is current on this OS thread, or null.
Device* current_device();
void set_current_device(Device* device);

/// The stream of a handle, or null if there is none.
std::shared_ptr<Stream> find_stream(Device& device, CUstream handle);
/// Adds work to a stream.
void issue(const std::shared_ptr<Stream>& stream, Work work);
/// Lets what comes later in `stream` wait for `other`'s work up to `ticket`.
void wait_for(const std::shared_ptr<Stream>& stream, std::shared_ptr<Stream> other, uint64_t ticket);

CUresult allocate(Device& device, size_t bytes, CUdeviceptr* out);
/// The piece of memory that holds `bytes` at `address` and has not been freed, or null.
const Allocation* find_allocation(CUdeviceptr address, size_t bytes);
/// Marks it as freed, so that nothing asked for later may use it; false if there is none.
bool mark_freed(CUdeviceptr address);
/// Gives it back.
void release(CUdeviceptr address);
void release_all(Device& device);
/// Breaks the device if something has written around its memory.
void check_guards(Device& device);
/// Whether the guards of the piece that `address` is in, if any, are whole; faults otherwise.
void check_guards_at(uint64_t address, const char* writer);

void add_pinned(void* start, size_t bytes);
bool remove_pinned(void* start);
bool is_pinned(const void* start, size_t bytes);

/// The launch of `CHANDLER_FAKE_GPU_FAULT`, told by the kernel's name and the number of its launch.
bool is_to_fault(const char* kernel, uint64_t launch);

/// Prints to stderr what was wrong with a call that answers an error.
__attribute__((format(printf, 1, 2))) void complain(const char* format, ...);

}  // namespace fake
