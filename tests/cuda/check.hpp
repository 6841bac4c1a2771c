// A little harness: each TEST runs in a process of its own, as what a card or its settings have come to
// stays so for a process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace check {

struct Test {
    Test(const char* name, void (*body)());
    const char* name;
    void (*body)();
};

inline int failures = 0;

inline void expect(bool holds, const char* what, const char* file, int line) {
    if (!holds) {
        printf("    %s:%d: not so: %s\n", file, line, what);
        failures += 1;
    }
}

/// Numbers that are the same in every run.
struct Random {
    uint64_t state;

    uint32_t bits() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33) ^ static_cast<uint32_t>(state >> 11);
    }
    /// In [-1, 1).
    float number() { return static_cast<float>(static_cast<int32_t>(bits())) / 2147483648.0f; }
};

inline std::vector<float> numbers(size_t n, uint64_t seed) {
    Random random{seed};
    std::vector<float> out(n);
    for (float& x : out) {
        x = random.number();
    }
    return out;
}

}  // namespace check

#define TEST(name)                                        \
    static void name();                                   \
    static const check::Test test_##name { #name, name }; \
    static void name()
#define CHECK(condition) check::expect(condition, #condition, __FILE__, __LINE__)
