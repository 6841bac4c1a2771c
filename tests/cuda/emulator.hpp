// The part of CUDA C++ that our kernels use, for a C++ compiler: with it they run on a CPU, in tests.
//
// A block's threads are fibers on one OS thread. Between barriers they run one after the other in an order
// drawn from a seed, and blocks in another, so that code which needs an order that CUDA does not promise
// gives other numbers, or NaN: shared memory starts as NaN, and so does what `cp_async_16` has yet to
// bring. What goes wrong fails the launch with the kernel, block and thread: a barrier that some threads
// never reach, lanes that meet in different functions, accesses to memory that is not there, misaligned
// ones, indices beyond an array's end.
//
// Not shown: races between accesses that the order of whole threads cannot tell apart, and anything about
// time. A card has the last word.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// --- Qualifiers ---

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
/// Thread-local only so that all of it lies in one piece that can be found, and filled before each block.
#define __shared__ static thread_local

/// After each `extern "C" __global__` function, so that it is found by name. (A semicolon may follow.)
#define EXPORT_KERNEL(name) static const emulator::Registered registered_##name{#name, name};
#define DYNAMIC_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(emulator::dynamic_shared_memory())

// --- Types ---

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATED_VECTORS(scalar, name, bytes)                                                          \
    struct alignas(2 * bytes) name##2 { scalar x, y; };                                                \
    struct name##3 { scalar x, y, z; };                                                                \
    struct alignas(bytes == 8 ? 16 : 4 * bytes) name##4 { scalar x, y, z, w; };                        \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                               \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                  \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float, 4)
EMULATED_VECTORS(double, double, 8)
EMULATED_VECTORS(int, int, 4)
EMULATED_VECTORS(unsigned, uint, 4)
EMULATED_VECTORS(unsigned short, ushort, 2)
#undef EMULATED_VECTORS

struct alignas(2) __nv_bfloat16 { unsigned short bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

// --- Where a thread is; set as fibers take turns ---

extern dim3 gridDim, blockDim;
extern uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

// --- Arithmetic ---

inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline int __float_as_int(float x) { int bits; memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (x != x) {
        return {0x7FFF};
    }
    const unsigned bits = __float_as_uint(x);
    return {static_cast<unsigned short>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
    return {__bfloat162float(pair.x), __bfloat162float(pair.y)};
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// (The fast variants are exact here: an error bound that holds with them need not hold on a card.)
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }

namespace emulator {
/// A number that the compiler cannot fuse with what is done before or after.
inline float apart(float x) { volatile float kept = x; return kept; }
}  // namespace emulator
inline float __fmul_rn(float x, float y) { return emulator::apart(x * y); }
inline float __fadd_rn(float x, float y) { return emulator::apart(emulator::apart(x) + emulator::apart(y)); }
inline float __fsub_rn(float x, float y) { return emulator::apart(emulator::apart(x) - emulator::apart(y)); }
inline float __fdiv_rn(float x, float y) { return x / y; }

#define EMULATED_MIN_MAX(type)                                      \
    constexpr type min(type a, type b) { return b < a ? b : a; }    \
    constexpr type max(type a, type b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// --- Memory ---

template <typename T>
inline T __ldg(const T* p) { return *p; }
template <typename T>
inline T __ldcs(const T* p) { return *p; }
template <typename T>
inline void __stcs(T* p, T x) { *p = x; }
inline void __threadfence() {}
inline void __threadfence_block() {}

/// Only of integers: the order in which a card adds floats is nobody's to choose.
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T atomicAdd(T* p, T x) { const T old = *p; *p = old + x; return old; }
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T atomicMax(T* p, T x) { const T old = *p; *p = old < x ? x : old; return old; }
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T atomicOr(T* p, T x) { const T old = *p; *p = old | x; return old; }

// --- Kernels and launches ---

namespace emulator {

/// A kernel whose argument types are forgotten.
struct Kernel {
    const char* name;
    void (*function)();
    /// Calls `function` with the arguments that `arguments` point to.
    void (*invoke)(void (*function)(), void* const* arguments);
    const size_t* argument_bytes;
    size_t argument_count;
};

struct Geometry {
    dim3 grid, block;
    size_t dynamic_shared_bytes = 0;
};

template <typename... P>
struct Arguments {
    static inline const size_t bytes[sizeof...(P) + 1] = {sizeof(P)...};

    template <size_t... I>
    static void call(void (*function)(P...), void* const* arguments, std::index_sequence<I...>) {
        function(*static_cast<const std::remove_const_t<P>*>(arguments[I])...);
    }
    static void invoke(void (*function)(), void* const* arguments) {
        call(reinterpret_cast<void (*)(P...)>(function), arguments, std::index_sequence_for<P...>());
    }
};

template <typename... P>
Kernel describe(const char* name, void (*function)(P...)) {
    return {name, reinterpret_cast<void (*)()>(function), Arguments<P...>::invoke,
            Arguments<P...>::bytes, sizeof...(P)};
}

void add_to_registry(const Kernel& kernel);
/// The kernel that EXPORT_KERNEL named, or null.
const Kernel* find_kernel(const char* name);
/// The name under which a function is registered, or "(a kernel without EXPORT_KERNEL)".
const char* name_of(void (*function)());

struct Registered {
    template <typename... P>
    Registered(const char* name, void (*function)(P...)) {
        add_to_registry(describe(name, function));
    }
};

/// Whether some card can run blocks and grids of these sizes.
bool a_card_takes(const Geometry& geometry);

/// From now on orders are drawn from `seed` (at first from CHANDLER_FAKE_GPU_SEED, or 1).
void set_seed(uint64_t seed);

/// What a launch that failed did wrong, as a card's driver tells it apart.
enum class Wrong { Nothing, Geometry, IllegalAddress, Misaligned, Other };
struct Outcome {
    Wrong wrong;
    /// For people; "" if nothing. Valid until the next launch.
    const char* message;
};
/// Runs a whole grid. Launches of several OS threads wait for one another.
Outcome run(const Kernel& kernel, const Geometry& geometry, void* const* arguments);

/// Launches a kernel with checked arguments, for test programs.
template <typename... P>
Outcome try_launch(void (*kernel)(P...), Geometry geometry, std::common_type_t<P>... arguments) {
    void* const pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
    const auto function = reinterpret_cast<void (*)()>(kernel);
    return run(describe(name_of(function), kernel), geometry, pointers);
}
/// As `try_launch`; ends the program if the launch fails.
template <typename... P>
void launch(void (*kernel)(P...), Geometry geometry, std::common_type_t<P>... arguments) {
    void require(Outcome outcome);
    require(try_launch(kernel, geometry, arguments...));
}
/// Prints the message and ends the program, unless nothing is wrong.
void require(Outcome outcome);

unsigned char* dynamic_shared_memory();

}  // namespace emulator

#include "warp.hpp"
