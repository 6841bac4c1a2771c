#include "device.hpp"

#include <pthread.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fake {

std::mutex one_call;

namespace {

/// Around each piece of memory; as wide as pieces are aligned.
constexpr size_t GUARD_BYTES = 256;
/// NaN in all our element types; fills memory that nobody has written.
constexpr unsigned char GARBAGE = 0xFF;
/// Memory given back is kept this long, so that late writes are seen.
constexpr size_t QUARANTINE_BYTES = 16 << 20;
/// A stream with more pending work does it, so that a long run does not fill the host's memory.
constexpr size_t PENDING_MAX = 4096;

struct Settings {
    int devices;
    size_t memory_bytes;
    int major, minor;
    bool eager;
    std::string fault_kernel;
    uint64_t fault_launch = 0;
};

/// - CHANDLER_FAKE_GPUS: how many cards (default 1)
/// - CHANDLER_FAKE_GPU_MEMORY: bytes of each (default 8 GiB)
/// - CHANDLER_FAKE_GPU_CAPABILITY: such as 8.0 (default 9.0)
/// - CHANDLER_FAKE_GPU_EAGER=1: work is done when it is issued
/// - CHANDLER_FAKE_GPU_FAULT=kernel:n: the kernel's n-th launch, counted from 1, breaks the card
/// - CHANDLER_FAKE_GPU_SEED: of the order in which threads run (emulator.cpp)
const Settings& settings() {
    static const Settings read = [] {
        const auto text = [](const char* name, const char* otherwise) {
            const char* const set = getenv(name);
            return std::string(set == nullptr ? otherwise : set);
        };
        Settings s;
        s.devices = atoi(text("CHANDLER_FAKE_GPUS", "1").c_str());
        s.memory_bytes = strtoull(text("CHANDLER_FAKE_GPU_MEMORY", "8589934592").c_str(), nullptr, 10);
        const std::string capability = text("CHANDLER_FAKE_GPU_CAPABILITY", "9.0");
        if (sscanf(capability.c_str(), "%d.%d", &s.major, &s.minor) != 2) {
            complain("CHANDLER_FAKE_GPU_CAPABILITY is \"%s\"; it must look like 8.0", capability.c_str());
            abort();
        }
        s.eager = text("CHANDLER_FAKE_GPU_EAGER", "0") == "1";
        const std::string fault = text("CHANDLER_FAKE_GPU_FAULT", "");
        const size_t colon = fault.rfind(':');
        s.fault_kernel = fault.substr(0, colon);
        if (!fault.empty()) {
            s.fault_launch = colon == std::string::npos ? 0 : strtoull(fault.c_str() + colon + 1, nullptr, 10);
            if (s.fault_launch == 0) {
                complain("CHANDLER_FAKE_GPU_FAULT is \"%s\"; it must look like kernel:1", fault.c_str());
                abort();
            }
        }
        return s;
    }();
    return read;
}

std::map<uint64_t, Allocation> allocations;
std::deque<std::pair<unsigned char*, size_t>> quarantine;
size_t quarantined_bytes = 0;
std::map<uintptr_t, size_t> pinned;

/// Not a thread_local: those of this library are the kernels' shared memory.
pthread_key_t current_key() {
    static const pthread_key_t key = [] {
        pthread_key_t made;
        if (pthread_key_create(&made, nullptr) != 0) {
            abort();
        }
        return made;
    }();
    return key;
}

size_t block_bytes(size_t bytes) { return GUARD_BYTES + (bytes + 255) / 256 * 256 + GUARD_BYTES; }

bool is_garbage(const unsigned char* start, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) {
        if (start[i] != GARBAGE) {
            return false;
        }
    }
    return true;
}

bool guards_are_whole(const Allocation& piece) {
    const size_t behind = GUARD_BYTES + piece.bytes;
    return is_garbage(piece.block, GUARD_BYTES) &&
           is_garbage(piece.block + behind, block_bytes(piece.bytes) - behind);
}

std::string hexadecimal(const void* p) {
    char text[32];
    snprintf(text, sizeof text, "%p", p);
    return text;
}

void fault_guard(const Allocation& piece, const char* writer) {
    piece.device->fault(CUDA_ERROR_ILLEGAL_ADDRESS,
                        std::string(writer) + " wrote before or behind a piece of " +
                            std::to_string(piece.bytes) + " bytes of device memory at " +
                            hexadecimal(piece.data()));
}

/// Makes room in the quarantine; what leaves it must be as it went in.
void shrink_quarantine(Device& device, size_t bytes) {
    while (quarantined_bytes > bytes) {
        const auto [block, size] = quarantine.front();
        quarantine.pop_front();
        quarantined_bytes -= size;
        if (!is_garbage(block, size)) {
            device.fault(CUDA_ERROR_ILLEGAL_ADDRESS, "device memory at " + hexadecimal(block + GUARD_BYTES) +
                                                         " was written after it had been given back");
        }
        free(block);
    }
}

}  // namespace

unsigned char* Allocation::data() const { return block + GUARD_BYTES; }

size_t Allocation::taken() const { return (bytes + 511) / 512 * 512; }

void complain(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("emulated GPU: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

bool is_to_fault(const char* kernel, uint64_t launch) {
    return launch == settings().fault_launch && settings().fault_kernel == kernel;
}

// --- Devices ---

std::vector<std::unique_ptr<Device>>& devices() {
    // Never destroyed: a host's own destructors may call the driver at the process's end.
    static auto& all = *[] {
        auto* const made = new std::vector<std::unique_ptr<Device>>;
        for (int i = 0; i < settings().devices; ++i) {
            auto device = std::make_unique<Device>();
            device->ordinal = i;
            device->memory_bytes = settings().memory_bytes;
            device->major = settings().major;
            device->minor = settings().minor;
            device->default_stream = std::make_shared<Stream>(Stream{*device, false, {}});
            device->thread_stream = std::make_shared<Stream>(Stream{*device, false, {}});
            made->push_back(std::move(device));
        }
        return made;
    }();
    return all;
}

Device* current_device() { return static_cast<Device*>(pthread_getspecific(current_key())); }

void set_current_device(Device* device) { pthread_setspecific(current_key(), device); }

size_t Device::shared_bytes_max() const {
    if (major < 8) {
        return 64 << 10;
    }
    if (major == 8) {
        return minor == 0 || minor == 7 ? 163 << 10 : 99 << 10;
    }
    return major == 12 ? 99 << 10 : 227 << 10;
}

void Device::fault(CUresult error, const std::string& message) {
    complain("device %d: %s", ordinal, message.c_str());
    if (broken == CUDA_SUCCESS) {
        broken = error;
    }
}

void Device::run_all() {
    default_stream->run_until(default_stream->issued());
    thread_stream->run_until(thread_stream->issued());
    for (const auto& [handle, stream] : streams) {
        stream->run_until(stream->issued());
    }
}

// --- Streams ---

void Stream::run_until(uint64_t ticket) {
    while (done < ticket && !pending.empty()) {
        const Work work = std::move(pending.front());
        pending.pop_front();
        // Work may run other streams, which may look at this one: it counts as done only afterwards.
        if (device.broken == CUDA_SUCCESS) {
            pending.emplace_front();
            work();
            pending.pop_front();
        }
        done += 1;
    }
}

std::shared_ptr<Stream> find_stream(Device& device, CUstream handle) {
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        return device.default_stream;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        return device.thread_stream;
    }
    const auto found = device.streams.find(handle);
    return found == device.streams.end() ? nullptr : found->second;
}

namespace {

void add(const std::shared_ptr<Stream>& stream, Work work) {
    stream->pending.push_back(std::move(work));
    if (settings().eager || stream->pending.size() > PENDING_MAX) {
        stream->run_until(stream->issued());
    }
}

}  // namespace

void wait_for(const std::shared_ptr<Stream>& stream, std::shared_ptr<Stream> other, uint64_t ticket) {
    if (stream != other && other->done < ticket) {
        add(stream, [other, ticket] { other->run_until(ticket); });
    }
}

void issue(const std::shared_ptr<Stream>& stream, Work work) {
    Device& device = stream->device;
    if (stream == device.default_stream) {
        wait_for(stream, device.thread_stream, device.thread_stream->issued());
        for (const auto& [handle, other] : device.streams) {
            if (!other->independent) {
                wait_for(stream, other, other->issued());
            }
        }
    } else if (!stream->independent) {
        wait_for(stream, device.default_stream, device.default_stream->issued());
    }
    add(stream, std::move(work));
}

// --- Memory ---

CUresult allocate(Device& device, size_t bytes, CUdeviceptr* out) {
    Allocation piece{&device, nullptr, bytes, false};
    if (device.used_bytes + piece.taken() > device.memory_bytes) {
        // Frees may be pending; a real card would wait for them too.
        device.run_all();
        if (device.broken != CUDA_SUCCESS) {
            return device.broken;
        }
    }
    if (bytes > device.memory_bytes || device.used_bytes + piece.taken() > device.memory_bytes) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    piece.block = static_cast<unsigned char*>(aligned_alloc(256, block_bytes(bytes)));
    if (piece.block == nullptr) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memset(piece.block, GARBAGE, block_bytes(bytes));
    device.used_bytes += piece.taken();
    device.most_used_bytes = std::max(device.most_used_bytes, device.used_bytes);
    *out = reinterpret_cast<CUdeviceptr>(piece.data());
    allocations[*out] = piece;
    return CUDA_SUCCESS;
}

namespace {

/// The piece that starts at or before `address`, or null.
Allocation* piece_before(uint64_t address) {
    auto next = allocations.upper_bound(address);
    return next == allocations.begin() ? nullptr : &(--next)->second;
}

}  // namespace

const Allocation* find_allocation(CUdeviceptr address, size_t bytes) {
    const Allocation* const piece = piece_before(address);
    if (piece == nullptr || piece->freed) {
        return nullptr;
    }
    const uint64_t offset = address - reinterpret_cast<uint64_t>(piece->data());
    return offset <= piece->bytes && bytes <= piece->bytes - offset ? piece : nullptr;
}

bool mark_freed(CUdeviceptr address) {
    const auto found = allocations.find(address);
    if (found == allocations.end() || found->second.freed) {
        return false;
    }
    found->second.freed = true;
    return true;
}

void release(CUdeviceptr address) {
    const auto found = allocations.find(address);
    const Allocation piece = found->second;
    allocations.erase(found);
    if (!guards_are_whole(piece)) {
        fault_guard(piece, "something");
    }
    piece.device->used_bytes -= piece.taken();
    const size_t size = block_bytes(piece.bytes);
    memset(piece.block, GARBAGE, size);
    quarantine.emplace_back(piece.block, size);
    quarantined_bytes += size;
    shrink_quarantine(*piece.device, QUARANTINE_BYTES);
}

void release_all(Device& device) {
    for (auto next = allocations.begin(); next != allocations.end();) {
        const auto here = next++;
        if (here->second.device == &device) {
            release(here->first);
        }
    }
    shrink_quarantine(device, 0);
}

void check_guards(Device& device) {
    for (const auto& [address, piece] : allocations) {
        if (piece.device == &device && !guards_are_whole(piece)) {
            fault_guard(piece, "something");
            return;
        }
    }
}

void check_guards_at(uint64_t address, const char* writer) {
    const Allocation* const piece = piece_before(address);
    if (piece != nullptr && address - reinterpret_cast<uint64_t>(piece->data()) <= piece->bytes &&
        !guards_are_whole(*piece)) {
        fault_guard(*piece, writer);
    }
}

void add_pinned(void* start, size_t bytes) { pinned[reinterpret_cast<uintptr_t>(start)] = bytes; }

bool remove_pinned(void* start) { return pinned.erase(reinterpret_cast<uintptr_t>(start)) == 1; }

bool is_pinned(const void* start, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(start);
    auto next = pinned.upper_bound(address);
    if (next == pinned.begin()) {
        return false;
    }
    --next;
    return address + bytes <= next->first + next->second;
}

}  // namespace fake
