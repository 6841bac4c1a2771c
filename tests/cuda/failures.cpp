// Says what a kernel did wrong, and ends its launch.

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "block.hpp"

namespace emulator {
namespace {

const char* state_of(const Fiber& fiber, char (&text)[256]) {
    if (fiber.returned) {
        snprintf(text, sizeof text, "thread (%u, %u, %u) has returned", fiber.index.x, fiber.index.y,
                 fiber.index.z);
    } else {
        snprintf(text, sizeof text, "thread (%u, %u, %u) waits in %s (%s:%d)", fiber.index.x, fiber.index.y,
                 fiber.index.z, fiber.waits.function, fiber.waits.file, fiber.waits.line);
    }
    return text;
}

struct sigaction previous_actions[NSIG];

void on_signal(int number, siginfo_t* info, void*) {
    if (block.owner == 0 || block.owner != static_cast<pid_t>(syscall(SYS_gettid)) || block.running == nullptr) {
        // Not a kernel: whoever handled it before handles it, when the instruction is tried again.
        sigaction(number, &previous_actions[number], nullptr);
        return;
    }
    if (number == SIGFPE) {
        fail(Wrong::Other, "divides an integer by zero");
    }
    if (number == SIGILL) {
        fail(Wrong::Other, "runs into a trap (an assertion, or code that cannot be reached)");
    }
    fail(Wrong::IllegalAddress, "touches memory that is not there, at %p", info->si_addr);
}

/// Gives this OS thread a stack for signals if it has none: a fiber's stack may be what is used up.
void have_signal_stack() {
    stack_t now;
    if (sigaltstack(nullptr, &now) != 0 || (now.ss_flags & SS_DISABLE) == 0) {
        return;
    }
    // Never freed: an OS thread keeps it for good, and few launch kernels.
    stack_t fresh{};
    fresh.ss_size = 64 << 10;
    fresh.ss_sp = malloc(fresh.ss_size);
    sigaltstack(&fresh, nullptr);
}

}  // namespace

void note_failure(Wrong wrong, const char* format, ...) {
    if (block.wrong != Wrong::Nothing) {
        return;
    }
    block.wrong = wrong;
    const int start = snprintf(block.message, sizeof block.message, "kernel %s, block (%u, %u, %u): ",
                               block.kernel.name, blockIdx.x, blockIdx.y, blockIdx.z);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(block.message + start, sizeof block.message - static_cast<size_t>(start), format, arguments);
    va_end(arguments);
}

void fail(Wrong wrong, const char* format, ...) {
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    note_failure(wrong, "thread (%u, %u, %u) %s", threadIdx.x, threadIdx.y, threadIdx.z, what);
    // Nobody comes back to this block: its fibers are prepared afresh.
    Context::change(block.running->context, block.scheduler);
    abort();
}

void note_deadlock() {
    unsigned waiting = 0;
    while (block.fibers[waiting]->returned) {
        waiting += 1;
    }
    const Place place = block.fibers[waiting]->waits;
    // A barrier wants all threads of the block, everything else those of a warp.
    const bool for_all = strcmp(place.function, "__syncthreads") == 0;
    const unsigned first = for_all ? 0 : waiting / LANES * LANES;
    const unsigned end = for_all || first + LANES > block.threads ? block.threads : first + LANES;
    unsigned missing = first;
    while (missing < end && !block.fibers[missing]->returned &&
           block.fibers[missing]->waits.function == place.function && block.fibers[missing]->waits.line == place.line) {
        missing += 1;
    }
    char who[256], whom[256] = "lanes that do not exist, or that it leaves out, never come";
    note_failure(Wrong::Other, "%s, for ever: %s", state_of(*block.fibers[waiting], who),
                 missing == end ? whom : state_of(*block.fibers[missing], whom));
}

void check_dynamic_guard() {
    const unsigned char* const end = block.dynamic + block.dynamic_bytes;
    for (size_t i = 0; i < GUARD_BYTES; ++i) {
        if (end[i] != GARBAGE) {
            note_failure(Wrong::IllegalAddress,
                         "a thread wrote past the end of the %zu bytes of dynamic shared memory, %zu behind it",
                         block.dynamic_bytes, i);
            return;
        }
    }
}

void catch_signals() {
    have_signal_stack();
    static bool done = false;
    if (done) {
        return;
    }
    done = true;
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    // The handler never returns to the kernel, so the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (const int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) {
        sigaction(number, &action, &previous_actions[number]);
    }
}

}  // namespace emulator

// --- What the compiler's checks call (-fsanitize=alignment,bounds without its library) ---

namespace {
/// How the compiler describes a place in the source; the start of what it hands over.
struct Where {
    const char* file;
    unsigned line, column;
};
}  // namespace

extern "C" [[noreturn]] __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(
    const Where* where, uintptr_t address) {
    emulator::fail(emulator::Wrong::Misaligned, "accesses a misaligned address at %s:%u: %p", where->file,
                   where->line, reinterpret_cast<void*>(address));
}

extern "C" [[noreturn]] __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds_abort(
    const Where* where, uintptr_t index) {
    emulator::fail(emulator::Wrong::IllegalAddress, "uses index %lld of an array that ends before it, at %s:%u",
                   static_cast<long long>(index), where->file, where->line);
}
