// The block that is being run, shared by what runs it (emulator.cpp) and what says why it fails
// (failures.cpp).
#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "context.hpp"
#include "emulator.hpp"

namespace emulator {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t PAGE_BYTES = 4096;
constexpr unsigned THREADS_MAX = 1024;
constexpr size_t SHARED_BYTES_MAX = 227 << 10;
/// What DYNAMIC_SHARED promises, and no more.
constexpr size_t DYNAMIC_ALIGNMENT = 128;
/// Behind a block's dynamic shared memory; whoever writes there wrote past its end.
constexpr size_t GUARD_BYTES = 1024;
/// NaN as float and as bf16, -1 as an integer.
constexpr unsigned char GARBAGE = 0xFF;

/// A copy that a thread has asked for and not yet waited for.
struct Copy {
    void* shared;
    const void* global;
    bool valid;
};

struct Fiber {
    Context context;
    unsigned char* stack;
    uint3 index;
    unsigned number;
    bool returned;
    /// Where it waits; `function` is null while it can run.
    Place waits;
    std::vector<Copy> copies;
    /// How many of `copies` belong to each closed group, oldest first.
    std::vector<size_t> groups;
};

/// Lanes of one warp that wait for one another.
struct Meeting {
    unsigned mask, arrived;
    Together together;
    Place place;
    void* slots[LANES];
};

/// Half a warp at most can wait in meetings of two.
struct Warp {
    Meeting meetings[LANES / 2];
    unsigned count;
};

struct Block {
    Kernel kernel;
    void* const* arguments;
    unsigned threads;
    unsigned returned;
    unsigned at_barrier;
    Context scheduler;
    Fiber* running;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    Fiber* ready[THREADS_MAX];
    unsigned ready_count;
    size_t dynamic_bytes;
    uint64_t random;
    Wrong wrong;
    char message[1024];
    /// The OS thread that runs the grid, or 0.
    pid_t owner;
    unsigned char* dynamic;
    alignas(2 * DYNAMIC_ALIGNMENT) unsigned char dynamic_space[DYNAMIC_ALIGNMENT + SHARED_BYTES_MAX + GUARD_BYTES];
};

extern Block block;

/// Notes the first failure of a launch.
__attribute__((format(printf, 2, 3))) void note_failure(Wrong wrong, const char* format, ...);
/// Nobody can run and not everybody has returned: notes who waits, and for whom.
void note_deadlock();
/// Notes it if somebody wrote behind the dynamic shared memory.
void check_dynamic_guard();
/// From now on, signals that kernels cause fail their launch; others go where they went.
void catch_signals();

}  // namespace emulator
