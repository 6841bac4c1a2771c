// What threads of a block or a warp do together: barriers, shuffles, tensor cores, background copies.
// The functions have the names, and the fragments the layouts, of src/kernels/cuda/instructions.cuh.
#pragma once

namespace emulator {

constexpr int LANES = 32;

/// Where in a kernel's source a thread stands; for messages.
struct Place {
    const char* function;
    const char* file;
    int line;
};

/// What the last lane to come does for all of them: `slots[i]` is what lane i handed to `meet`, or null.
using Together = void (*)(void* const* slots);
/// Waits for the lanes in `mask`, of which the caller is one. `mine` is read and written by `together`.
void meet(unsigned mask, Together together, void* mine, Place place);
/// Waits for all threads of the block, which must stand at the same place.
void barrier(Place place);
/// The caller's place in its warp.
int lane();
/// Ends the launch: the running thread has done what a card does not allow.
[[noreturn]] void fail(Wrong wrong, const char* format, ...) __attribute__((format(printf, 2, 3)));

void copy_later(void* shared, const void* global, bool valid);
void close_copies();
void finish_copies(size_t groups_left);
/// Fails unless `bytes` at `p` are shared memory, aligned to `bytes`.
void require_shared(const void* p, size_t bytes, const char* function);

/// What the source says: this place is where the caller was called.
#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// --- What lanes hand to `meet`, and what is then done with it (warp.cpp) ---

struct Shuffle {
    uint64_t value;
    int source;
};

struct Ballot {
    bool yes;
    unsigned votes;
};

struct Product {
    float* d;
    const unsigned* a;
    const unsigned* b;
};

struct Matrices {
    unsigned* r;
    const void* row;
};

/// Each lane gets the value of its source; all bits set where the source does not take part.
void shuffle_together(void* const* slots);
void ballot_together(void* const* slots);
void mma_together(void* const* slots);
template <int COUNT, bool TRANSPOSED>
void ldmatrix_together(void* const* slots);
inline void nothing_together(void* const*) {}

template <typename T>
inline T shuffle(unsigned mask, T value, int source, Place place) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what __shfl_sync takes");
    Shuffle mine{0, source};
    memcpy(&mine.value, &value, sizeof value);
    meet(mask, shuffle_together, &mine, place);
    memcpy(&value, &mine.value, sizeof value);
    return value;
}

template <int COUNT, bool TRANSPOSED>
inline void ldmatrix(unsigned* r, const void* row, Place place) {
    if (lane() < 8 * COUNT) {
        require_shared(row, 16, place.function);
    }
    Matrices mine{r, row};
    meet(~0u, ldmatrix_together<COUNT, TRANSPOSED>, &mine, place);
}

}  // namespace emulator

inline void __syncthreads(EMULATED_HERE) { emulator::barrier({"__syncthreads", file, line}); }
inline void __syncwarp(unsigned mask = ~0u, EMULATED_HERE) {
    emulator::meet(mask, emulator::nothing_together, nullptr, {"__syncwarp", file, line});
}

/// (The width, which divides a warp into parts that do not see one another, is a power of two.)
template <typename T>
inline T __shfl_sync(unsigned mask, T x, int source, int width = 32, EMULATED_HERE) {
    const int first = emulator::lane() & ~(width - 1);
    return emulator::shuffle(mask, x, first | (source & (width - 1)), {"__shfl_sync", file, line});
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, EMULATED_HERE) {
    const int lane = emulator::lane(), source = lane ^ bits;
    const bool within = source < (lane & ~(width - 1)) + width;
    return emulator::shuffle(mask, x, within ? source : lane, {"__shfl_xor_sync", file, line});
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
    const int lane = emulator::lane();
    const bool within = (lane & (width - 1)) + static_cast<int>(by) < width;
    return emulator::shuffle(mask, x, within ? lane + static_cast<int>(by) : lane,
                             {"__shfl_down_sync", file, line});
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, EMULATED_HERE) {
    const int lane = emulator::lane();
    const bool within = (lane & (width - 1)) >= static_cast<int>(by);
    return emulator::shuffle(mask, x, within ? lane - static_cast<int>(by) : lane,
                             {"__shfl_up_sync", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int yes, EMULATED_HERE) {
    emulator::Ballot mine{yes != 0, 0};
    emulator::meet(mask, emulator::ballot_together, &mine, {"__ballot_sync", file, line});
    return mine.votes;
}
inline int __any_sync(unsigned mask, int yes, EMULATED_HERE) {
    return __ballot_sync(mask, yes, file, line) != 0;
}
inline int __all_sync(unsigned mask, int yes, EMULATED_HERE) {
    return __ballot_sync(mask, !yes, file, line) == 0;
}

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                              EMULATED_HERE) {
    emulator::Product mine{d, a, b};
    emulator::meet(~0u, emulator::mma_together, &mine, {"mma_m16n8k16_bf16", file, line});
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* shared_row, EMULATED_HERE) {
    emulator::ldmatrix<4, false>(r, shared_row, {"ldmatrix_x4", file, line});
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row, EMULATED_HERE) {
    emulator::ldmatrix<4, true>(r, shared_row, {"ldmatrix_x4_trans", file, line});
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* shared_row, EMULATED_HERE) {
    emulator::ldmatrix<2, false>(r, shared_row, {"ldmatrix_x2", file, line});
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared_row, EMULATED_HERE) {
    emulator::ldmatrix<2, true>(r, shared_row, {"ldmatrix_x2_trans", file, line});
}

inline void cp_async_16(void* shared, const void* global, bool valid) {
    emulator::copy_later(shared, global, valid);
}
inline void cp_async_commit() { emulator::close_copies(); }
template <int N>
inline void cp_async_wait() { emulator::finish_copies(N); }

#undef EMULATED_HERE
