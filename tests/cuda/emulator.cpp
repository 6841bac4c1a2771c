// Runs grids: takes turns among a block's threads, lets them meet, and says what went wrong.

#include <link.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "block.hpp"

dim3 gridDim, blockDim;
uint3 blockIdx, threadIdx;

namespace emulator {

Block block;

namespace {

/// One grid at a time: `block` and the kernels' built-in variables are one for the process.
std::mutex one_grid;
uint64_t next_seed = 0;

/// Where this OS thread keeps the variables declared `__shared__`.
struct SharedVariables {
    unsigned char* start;
    size_t bytes;
};

std::vector<Kernel>& registry() {
    static std::vector<Kernel> kernels;
    return kernels;
}

uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

unsigned draw_below(unsigned n) {
    block.random = block.random * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<unsigned>(((block.random >> 32) * n) >> 32);
}

/// Lets another thread of the block run, any that can, or else the scheduler.
void give_way() {
    Fiber* const from = block.running;
    if (block.ready_count == 0) {
        Context::change(from->context, block.scheduler);
        return;
    }
    const unsigned pick = draw_below(block.ready_count);
    Fiber* const to = block.ready[pick];
    block.ready[pick] = block.ready[--block.ready_count];
    block.running = to;
    threadIdx = to->index;
    if (to != from) {
        Context::change(from->context, to->context);
    }
}

void wake(Fiber& fiber) {
    fiber.waits.function = nullptr;
    block.ready[block.ready_count++] = &fiber;
}

/// A fiber's life: one thread of one block.
void live() {
    block.kernel.invoke(block.kernel.function, block.arguments);
    block.running->returned = true;
    block.returned += 1;
    give_way();
    abort();
}

Fiber& fiber(unsigned number) {
    while (block.fibers.size() <= number) {
        auto made = std::make_unique<Fiber>();
        void* const stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) {
            perror("emulator: no memory for a thread's stack");
            abort();
        }
        mprotect(stack, PAGE_BYTES, PROT_NONE);
        made->stack = static_cast<unsigned char*>(stack);
        block.fibers.push_back(std::move(made));
    }
    return *block.fibers[number];
}

SharedVariables shared_variables() {
    SharedVariables found{nullptr, 0};
    dl_iterate_phdr(
        [](dl_phdr_info* module, size_t, void* out) {
            const auto here = reinterpret_cast<uintptr_t>(&block);
            bool ours = false;
            size_t bytes = 0;
            for (int i = 0; i < module->dlpi_phnum; ++i) {
                const auto& part = module->dlpi_phdr[i];
                const uintptr_t start = module->dlpi_addr + part.p_vaddr;
                ours = ours || (part.p_type == PT_LOAD && start <= here && here < start + part.p_memsz);
                bytes = part.p_type == PT_TLS ? part.p_memsz : bytes;
            }
            if (ours) {
                *static_cast<SharedVariables*>(out) = {static_cast<unsigned char*>(module->dlpi_tls_data), bytes};
            }
            return ours ? 1 : 0;
        },
        &found);
    return found;
}

/// Makes sure that this OS thread has its `__shared__` variables before they are looked for.
__attribute__((noinline)) void touch_shared_variables() {
    __shared__ unsigned char touched;
    volatile unsigned char* const place = &touched;
    *place = GARBAGE;
}

SharedVariables static_shared;

// --- Blocks ---

void run_block() {
    block.returned = 0;
    block.at_barrier = 0;
    for (Warp& warp : block.warps) {
        warp.count = 0;
    }
    memset(block.dynamic, GARBAGE, block.dynamic_bytes + GUARD_BYTES);
    memset(static_shared.start, GARBAGE, static_shared.bytes);
    block.ready_count = block.threads;
    for (unsigned i = 0; i < block.threads; ++i) {
        Fiber& fiber = *block.fibers[i];
        fiber.returned = false;
        fiber.waits.function = nullptr;
        fiber.copies.clear();
        fiber.groups.clear();
        // Stacks start at different places within a page, or they would all want the same cache lines.
        fiber.context.prepare(fiber.stack + PAGE_BYTES, fiber.stack + STACK_BYTES - i * 192 % PAGE_BYTES, live);
        block.ready[i] = &fiber;
    }
    const unsigned first = draw_below(block.ready_count);
    block.running = block.ready[first];
    block.ready[first] = block.ready[--block.ready_count];
    threadIdx = block.running->index;
    Context::change(block.scheduler, block.running->context);
    block.running = nullptr;
    if (block.wrong == Wrong::Nothing && block.returned < block.threads) {
        note_deadlock();
    }
    check_dynamic_guard();
}

/// A step that visits all of 0..n in an order of its own when added again and again, modulo n.
uint64_t step_through(uint64_t n, uint64_t random) {
    uint64_t step = random % n + 1;
    const auto common_divisor = [](uint64_t a, uint64_t b) {
        while (b != 0) {
            const uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    };
    while (common_divisor(step, n) != 1) {
        step += 1;
    }
    return step;
}

}  // namespace

// --- What kernels call ---

int lane() { return static_cast<int>(block.running->number % LANES); }

void meet(unsigned mask, Together together, void* mine, Place place) {
    Fiber& self = *block.running;
    const unsigned my_lane = self.number % LANES, my_bit = 1u << my_lane;
    if ((mask & my_bit) == 0) {
        fail(Wrong::Other, "calls %s (%s:%d) with a mask (%08x) that leaves it out", place.function, place.file,
             place.line, mask);
    }
    Warp& warp = block.warps[self.number / LANES];
    Meeting* meeting = nullptr;
    for (unsigned i = 0; i < warp.count && meeting == nullptr; ++i) {
        Meeting& other = warp.meetings[i];
        if (other.mask == mask && other.together == together) {
            meeting = &other;
        } else if ((other.mask & mask) != 0) {
            fail(Wrong::Other, "calls %s (%s:%d, mask %08x) while lanes of its warp are in %s (%s:%d, mask %08x)",
                 place.function, place.file, place.line, mask, other.place.function, other.place.file,
                 other.place.line, other.mask);
        }
    }
    if (meeting == nullptr) {
        meeting = &warp.meetings[warp.count++];
        meeting->mask = mask;
        meeting->arrived = 0;
        meeting->together = together;
        meeting->place = place;
        memset(meeting->slots, 0, sizeof meeting->slots);
    }
    meeting->slots[my_lane] = mine;
    meeting->arrived |= my_bit;
    if (meeting->arrived != mask) {
        self.waits = place;
        give_way();
        return;
    }
    together(meeting->slots);
    const unsigned first = self.number - my_lane;
    for (unsigned others = mask & ~my_bit; others != 0; others &= others - 1) {
        wake(*block.fibers[first + static_cast<unsigned>(__builtin_ctz(others))]);
    }
    // (The last meeting takes this one's place; slots are pointers, so it can move.)
    warp.count -= 1;
    if (meeting != &warp.meetings[warp.count]) {
        *meeting = warp.meetings[warp.count];
    }
}

void barrier(Place place) {
    Fiber& self = *block.running;
    self.waits = place;
    block.at_barrier += 1;
    if (block.at_barrier < block.threads) {
        give_way();
        return;
    }
    for (unsigned i = 0; i < block.threads; ++i) {
        const Fiber& other = *block.fibers[i];
        if (other.waits.line != place.line || strcmp(other.waits.file, place.file) != 0) {
            fail(Wrong::Other, "waits at the barrier %s:%d, thread (%u, %u, %u) at another, %s:%d", place.file,
                 place.line, other.index.x, other.index.y, other.index.z, other.waits.file, other.waits.line);
        }
    }
    block.at_barrier = 0;
    for (unsigned i = 0; i < block.threads; ++i) {
        wake(*block.fibers[i]);
    }
    give_way();
}

void require_shared(const void* p, size_t bytes, const char* function) {
    const auto* const address = static_cast<const unsigned char*>(p);
    const auto within = [&](const unsigned char* start, size_t length) {
        return start <= address && address + bytes <= start + length;
    };
    if (!within(block.dynamic, block.dynamic_bytes) && !within(static_shared.start, static_shared.bytes)) {
        fail(Wrong::IllegalAddress, "gives %s an address that is not shared memory: %p%s", function, p,
             within(block.dynamic, block.dynamic_bytes + GUARD_BYTES) ? " (just behind the dynamic shared memory)" : "");
    }
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
        fail(Wrong::Misaligned, "gives %s an address not aligned to %zu bytes: %p", function, bytes, p);
    }
}

void copy_later(void* shared, const void* global, bool valid) {
    require_shared(shared, 16, "cp_async_16");
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        fail(Wrong::Misaligned, "gives cp_async_16 a global address not aligned to 16 bytes: %p", global);
    }
    // From here on nobody may count on what is there.
    memset(shared, GARBAGE, 16);
    block.running->copies.push_back({shared, global, valid});
}

void close_copies() {
    Fiber& self = *block.running;
    size_t closed = 0;
    for (const size_t group : self.groups) {
        closed += group;
    }
    self.groups.push_back(self.copies.size() - closed);
}

void finish_copies(size_t groups_left) {
    Fiber& self = *block.running;
    if (self.groups.size() <= groups_left) {
        return;
    }
    const auto done = static_cast<std::ptrdiff_t>(self.groups.size() - groups_left);
    size_t arrived = 0;
    for (std::ptrdiff_t i = 0; i < done; ++i) {
        arrived += self.groups[static_cast<size_t>(i)];
    }
    for (size_t i = 0; i < arrived; ++i) {
        const Copy& copy = self.copies[i];
        if (copy.valid) {
            memcpy(copy.shared, copy.global, 16);
        } else {
            memset(copy.shared, 0, 16);
        }
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(arrived));
    self.groups.erase(self.groups.begin(), self.groups.begin() + done);
}

unsigned char* dynamic_shared_memory() { return block.dynamic; }

// --- What hosts call ---

void add_to_registry(const Kernel& kernel) { registry().push_back(kernel); }

const Kernel* find_kernel(const char* name) {
    for (const Kernel& kernel : registry()) {
        if (strcmp(kernel.name, name) == 0) {
            return &kernel;
        }
    }
    return nullptr;
}

const char* name_of(void (*function)()) {
    for (const Kernel& kernel : registry()) {
        if (kernel.function == function) {
            return kernel.name;
        }
    }
    return "(a kernel without EXPORT_KERNEL)";
}

bool a_card_takes(const Geometry& geometry) {
    const dim3 g = geometry.grid, b = geometry.block;
    const uint64_t threads = uint64_t{b.x} * b.y * b.z;
    return g.x > 0 && g.x < 1u << 31 && g.y > 0 && g.y < 65536 && g.z > 0 && g.z < 65536 && b.x <= 1024 &&
           b.y <= 1024 && b.z <= 64 && threads > 0 && threads <= THREADS_MAX &&
           geometry.dynamic_shared_bytes <= SHARED_BYTES_MAX;
}

void set_seed(uint64_t seed) {
    const std::lock_guard<std::mutex> lock(one_grid);
    next_seed = mix(seed + 0x9E3779B97F4A7C15ull);
}

Outcome run(const Kernel& kernel, const Geometry& geometry, void* const* arguments) {
    const std::lock_guard<std::mutex> lock(one_grid);
    if (next_seed == 0) {
        const char* const asked = getenv("CHANDLER_FAKE_GPU_SEED");
        next_seed = mix(0x9E3779B97F4A7C15ull + (asked == nullptr ? 1 : strtoull(asked, nullptr, 10)));
    }
    next_seed = mix(next_seed + 1);
    block.random = next_seed;
    block.kernel = kernel;
    block.arguments = arguments;
    block.wrong = Wrong::Nothing;
    block.message[0] = '\0';
    blockIdx = {0, 0, 0};
    if (!a_card_takes(geometry)) {
        const dim3 g = geometry.grid, b = geometry.block;
        note_failure(Wrong::Geometry, "no card takes grid (%u, %u, %u), block (%u, %u, %u), %zu bytes shared", g.x, g.y,
                     g.z, b.x, b.y, b.z, geometry.dynamic_shared_bytes);
        return {block.wrong, block.message};
    }
    gridDim = geometry.grid;
    blockDim = geometry.block;
    block.threads = blockDim.x * blockDim.y * blockDim.z;
    block.dynamic = block.dynamic_space + DYNAMIC_ALIGNMENT;
    block.dynamic_bytes = geometry.dynamic_shared_bytes;
    block.warps.resize((block.threads + LANES - 1) / LANES);
    for (unsigned i = 0; i < block.threads; ++i) {
        Fiber& thread = fiber(i);
        thread.number = i;
        thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    touch_shared_variables();
    static_shared = shared_variables();
    catch_signals();
    block.owner = static_cast<pid_t>(syscall(SYS_gettid));

    const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
    const uint64_t step = step_through(blocks, mix(block.random));
    uint64_t number = mix(block.random + 1) % blocks;
    for (uint64_t i = 0; i < blocks && block.wrong == Wrong::Nothing; ++i) {
        blockIdx = {static_cast<unsigned>(number % gridDim.x),
                    static_cast<unsigned>(number / gridDim.x % gridDim.y),
                    static_cast<unsigned>(number / gridDim.x / gridDim.y)};
        run_block();
        number = (number + step) % blocks;
    }
    block.owner = 0;
    return {block.wrong, block.message};
}

void require(Outcome outcome) {
    if (outcome.wrong != Wrong::Nothing) {
        fprintf(stderr, "%s\n", outcome.message);
        exit(1);
    }
}

}  // namespace emulator
