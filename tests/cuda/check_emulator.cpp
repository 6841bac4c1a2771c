// What the emulator computes, and what it catches.

#include <algorithm>

#include "check.hpp"
#include "prelude.cuh"

using check::numbers;
using emulator::Outcome;
using emulator::Wrong;
using emulator::launch;
using emulator::set_seed;
using emulator::try_launch;

extern "C" {
void reductions(const float*, double*);
void shuffles(int*);
void round_to_bf16(const float*, bf16*, float*, int);
void philox_of(uint4, uint2, uint4*);
void dropout_of_row(Dropout, unsigned long long, float*, float*, unsigned);
void mma_of_registers(const unsigned*, const unsigned*, float*);
void ldmatrix_of_rows(const bf16*, unsigned*);
void product_by_tiles(const bf16*, const bf16*, float*, int, int);
void copy_every_other(const float*, float*);
void reversed(const float*, float*);
void bad_reversed(const float*, float*);
void bad_neighbour(const float*, float*, int);
void bad_reuse(const float*, float*);
void bad_block_order(float*);
void bad_uninitialised(float*);
void bad_wait(const float*, float*, int);
void bad_access(float*, const float*, int, int);
void bad_meeting(float*, int);
void bad_depth(int*, int);
}

namespace {

constexpr uint64_t SEEDS = 20;

bool says(const Outcome& outcome, Wrong wrong, std::initializer_list<const char*> parts) {
    bool all = outcome.wrong == wrong;
    for (const char* part : parts) {
        all = all && strstr(outcome.message, part) != nullptr;
    }
    if (!all) {
        printf("    it said: %s\n", outcome.message);
    }
    return all;
}

struct alignas(16) Aligned {
    float x[256];
};

float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

}  // namespace

TEST(reductions_agree_with_plain_sums_and_give_the_same_bits_in_every_order) {
    const std::vector<float> x = numbers(3 * 256, 1);
    std::vector<double> first(18), out(18);
    launch(reductions, {3, 256}, x.data(), first.data());
    for (int block = 0; block < 3; ++block) {
        const float* const start = &x[256 * static_cast<size_t>(block)];
        double in_warp = 0, sum = 0;
        for (int i = 0; i < 256; ++i) {
            sum += start[i];
            in_warp += i >= 64 && i < 96 ? start[i] : 0;
        }
        const double* const got = &first[6 * static_cast<size_t>(block)];
        CHECK(std::abs(got[0] - in_warp) < 1e-5 && std::abs(got[3] - sum) < 1e-4);
        CHECK(std::abs(got[2] - in_warp) < 1e-12 && std::abs(got[5] - sum) < 1e-12);
        CHECK(got[1] == *std::max_element(start + 64, start + 96));
        CHECK(got[4] == *std::max_element(start, start + 256));
    }
    for (uint64_t seed = 0; seed < SEEDS; ++seed) {
        set_seed(seed);
        launch(reductions, {3, 256}, x.data(), out.data());
        CHECK(out == first);
    }
}

TEST(shuffles_read_the_lanes_that_the_manual_says) {
    int out[32][8];
    launch(shuffles, {1, 32}, out[0]);
    for (int lane = 0; lane < 32; ++lane) {
        const int* const got = out[lane];
        CHECK(got[0] == 5 && got[1] == (lane ^ 3));
        CHECK(got[2] == (lane + 4 < 32 ? lane + 4 : lane) && got[3] == (lane >= 4 ? lane - 4 : lane));
        CHECK(got[4] == lane / 8 * 8 + 1);
        CHECK(got[5] == (lane % 8 + 3 < 8 ? lane + 3 : lane));
        CHECK(static_cast<unsigned>(got[6]) == 0x49249249u && got[7] == (lane ^ 1));
    }
}

TEST(bf16_rounds_to_the_nearest_and_ties_to_even) {
    check::Random random{2};
    std::vector<float> x;
    for (const float special : {0.0f, -0.0f, INFINITY, -INFINITY, 3.4e38f, 1e-40f, 1.00390625f, 1.01171875f}) {
        x.push_back(special);
    }
    while (x.size() < 4096) {
        const float candidate = __uint_as_float(random.bits());
        x.push_back(std::isfinite(candidate) ? candidate : 1.0f);
    }
    std::vector<bf16> stored(x.size());
    std::vector<float> back(x.size());
    launch(round_to_bf16, {2, 64}, x.data(), stored.data(), back.data(), static_cast<int>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
        // The two neighbours in bf16, towards zero and away from it (infinity counts as 2^128 for distances).
        const unsigned below = __float_as_uint(x[i]) & 0xFFFF0000u, above = below + 0x10000u;
        const auto value = [](unsigned bits) {
            return (bits & 0x7FFFFFFFu) == 0x7F800000u ? std::copysign(std::ldexp(1.0, 128), __uint_as_float(bits))
                                                       : static_cast<double>(__uint_as_float(bits));
        };
        const double to_below = std::abs(x[i] - value(below)), to_above = std::abs(x[i] - value(above));
        const unsigned nearest = to_below < to_above || (to_below == to_above && below / 0x10000u % 2 == 0) ? below
                                                                                                          : above;
        const unsigned expected = std::isinf(x[i]) ? __float_as_uint(x[i]) : nearest;
        CHECK(__float_as_uint(back[i]) == expected && stored[i].bits == expected >> 16);
    }
    CHECK(std::isnan(rounded(NAN)));
    CHECK(pack_bf16(1.0f, 2.0f) == 0x40003F80u && low_bf16(0x40003F80u) == 1.0f && high_bf16(0x40003F80u) == 2.0f);
}

/// Published with the paper's reference implementation, Random123 (kat_vectors, philox4x32, 10 rounds).
TEST(philox_gives_the_published_answers) {
    struct Answer {
        uint4 counter;
        uint2 key;
        uint4 expected;
    };
    const unsigned f = 0xFFFFFFFFu;
    const Answer answers[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}},
        {{f, f, f, f}, {f, f}, {0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}},
        {{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344},
         {0xA4093822, 0x299F31D0},
         {0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}},
    };
    for (const Answer& answer : answers) {
        uint4 got;
        launch(philox_of, {1, 1}, answer.counter, answer.key, &got);
        CHECK(memcmp(&got, &answer.expected, sizeof got) == 0);
    }
}

/// The figures are those of `decisions_stay_what_they_are` in src/kernels/dropout.rs.
TEST(dropout_decides_as_the_cpu_does) {
    const uint64_t seed = 1, step = 2;
    const uint64_t mixed = ((seed ^ 0x6368616E646C6572ull) * 0x9E3779B97F4A7C15ull) ^ step;
    const Dropout dropout{32768, 2.0f, static_cast<unsigned>(mixed), static_cast<unsigned>(mixed >> 32), 3};
    std::vector<float> one_by_one(300), by_blocks(300);
    launch(dropout_of_row, {1, 32}, dropout, 4, one_by_one.data(), by_blocks.data(), 300);
    CHECK(one_by_one == by_blocks);
    std::vector<int> kept;
    int sum = 0;
    for (int i = 0; i < 300; ++i) {
        if (one_by_one[static_cast<size_t>(i)] != 0.0f) {
            CHECK(one_by_one[static_cast<size_t>(i)] == 2.0f);
            kept.push_back(i);
            sum += i;
        }
    }
    const std::vector<int> first(kept.begin(), kept.begin() + 8);
    CHECK(kept.size() == 157 && sum == 23514 && first == std::vector<int>({1, 6, 7, 8, 9, 10, 11, 13}));
    const Dropout none{0, 1.0f, 1, 2, 3};
    launch(dropout_of_row, {1, 32}, none, 4, one_by_one.data(), by_blocks.data(), 300);
    CHECK(one_by_one == std::vector<float>(300, 1.0f) && by_blocks == one_by_one);
    CHECK(attention_key(0xAB00000000000001ull, 7) == 0x0700000000000001ull);
}

/// The fragments are filled by the PTX manual's formulas for element i of a lane's fragment.
TEST(mma_is_a_plain_product_of_its_fragments) {
    const std::vector<float> x = numbers(16 * 16 + 16 * 8 + 16 * 8, 3);
    const auto a = [&](int row, int k) { return rounded(x[static_cast<size_t>(16 * row + k)]); };
    const auto b = [&](int k, int column) { return rounded(x[static_cast<size_t>(256 + 8 * k + column)]); };
    const auto c = [&](int row, int column) { return x[static_cast<size_t>(384 + 8 * row + column)]; };
    unsigned a_parts[32][4], b_parts[32][2];
    float d_parts[32][4];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane >> 2, in_group = lane % 4;
        for (int i = 0; i < 8; i += 2) {
            const int row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
            const int k = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            a_parts[lane][i / 2] = pack_bf16(a(row, k), a(row, k + 1));
        }
        for (int i = 0; i < 4; i += 2) {
            const int k = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
            b_parts[lane][i / 2] = pack_bf16(b(k, group), b(k + 1, group));
        }
        for (int i = 0; i < 4; ++i) {
            d_parts[lane][i] = c(i < 2 ? group : group + 8, in_group * 2 + (i & 1));
        }
    }
    launch(mma_of_registers, {1, 32}, a_parts[0], b_parts[0], d_parts[0]);
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + i % 2;
            double expected = c(row, column);
            for (int k = 0; k < 16; ++k) {
                expected += static_cast<double>(a(row, k)) * b(k, column);
            }
            CHECK(std::abs(d_parts[lane][i] - expected) < 1e-5);
        }
    }
}

TEST(ldmatrix_hands_rows_out_as_the_manual_says) {
    bf16 rows[32][8];
    unsigned out[32][12];
    for (unsigned row = 0; row < 32; ++row) {
        for (unsigned i = 0; i < 8; ++i) {
            rows[row][i] = __ushort_as_bfloat16(static_cast<unsigned short>(row * 8 + i));
        }
    }
    launch(ldmatrix_of_rows, {1, 32}, rows[0], out[0]);
    for (unsigned lane = 0; lane < 32; ++lane) {
        for (unsigned matrix = 0; matrix < 4; ++matrix) {
            const unsigned row = 64 * matrix + 8 * (lane / 4) + 2 * (lane % 4);
            const unsigned column = 64 * matrix + 8 * (2 * (lane % 4)) + lane / 4;
            const unsigned straight = row | (row + 1) << 16, transposed = column | (column + 8) << 16;
            CHECK(out[lane][matrix] == straight && out[lane][4 + matrix] == transposed);
            if (matrix < 2) {
                CHECK(out[lane][8 + matrix] == straight && out[lane][10 + matrix] == transposed);
            }
        }
    }
}

TEST(tiles_from_shared_memory_multiply_to_the_plain_product) {
    constexpr int K = 48;
    const std::vector<float> x = numbers(16 * K + K * 8, 4);
    alignas(16) bf16 a[16][K], b[K][8], b_transposed[8][K];
    for (int k = 0; k < K; ++k) {
        for (int row = 0; row < 16; ++row) {
            a[row][k] = from_float<bf16>(x[static_cast<size_t>(row * K + k)]);
        }
        for (int column = 0; column < 8; ++column) {
            b[k][column] = from_float<bf16>(x[static_cast<size_t>(16 * K + k * 8 + column)]);
            b_transposed[column][k] = b[k][column];
        }
    }
    for (uint64_t seed = 0; seed < SEEDS; ++seed) {
        set_seed(seed);
        float c[2][16][8];
        launch(product_by_tiles, {1, 32, 2048}, a[0], b[0], c[0][0], K, 0);
        launch(product_by_tiles, {1, 32, 2048}, a[0], b_transposed[0], c[1][0], K, 1);
        CHECK(memcmp(c[0], c[1], sizeof c[0]) == 0);
        for (int row = 0; row < 16; ++row) {
            for (int column = 0; column < 8; ++column) {
                double expected = 0;
                for (int k = 0; k < K; ++k) {
                    expected += static_cast<double>(to_float(a[row][k])) * to_float(b[k][column]);
                }
                CHECK(std::abs(c[0][row][column] - expected) < 1e-5);
            }
        }
    }
}

TEST(copies_that_are_not_valid_bring_zeros) {
    Aligned x{}, out{};
    for (int i = 0; i < 128; ++i) {
        x.x[i] = static_cast<float>(i + 1);
    }
    launch(copy_every_other, {1, 32, 512}, x.x, out.x);
    for (int i = 0; i < 128; ++i) {
        CHECK(out.x[i] == (i / 4 % 2 == 0 ? x.x[i] : 0.0f));
    }
}

TEST(a_missing_barrier_is_seen_in_some_order) {
    const std::vector<float> x = numbers(128, 5);
    std::vector<float> expected(128), right(128), wrong(128);
    for (size_t i = 0; i < 128; ++i) {
        expected[i] = x[i / 64 * 64 + 63 - i % 64];
    }
    uint64_t seen = 0, reuse_seen = 0, upwards_seen = 0, downwards_seen = 0;
    // (One of the two is right whenever threads run in the order of their numbers, or against it.)
    const auto neighbours_are_wrong = [&](int step) {
        launch(bad_neighbour, {1, 64}, x.data(), wrong.data(), step);
        for (int i = 0; i < 64; ++i) {
            if (wrong[static_cast<size_t>(i)] != x[static_cast<size_t>(std::clamp(i + step, 0, 63))]) {
                return 1;
            }
        }
        return 0;
    };
    for (uint64_t seed = 0; seed < SEEDS; ++seed) {
        set_seed(seed);
        launch(reversed, {2, 64}, x.data(), right.data());
        CHECK(right == expected);
        launch(bad_reversed, {2, 64}, x.data(), wrong.data());
        seen += wrong == expected ? 0 : 1;
        launch(bad_reuse, {1, 64}, x.data(), wrong.data());
        reuse_seen += std::equal(wrong.begin(), wrong.begin() + 64, x.begin()) ? 0 : 1;
        upwards_seen += neighbours_are_wrong(1);
        downwards_seen += neighbours_are_wrong(-1);
    }
    CHECK(seen == SEEDS && reuse_seen == SEEDS && upwards_seen == SEEDS && downwards_seen == SEEDS);
}

TEST(blocks_run_in_different_orders) {
    int early = 0, late = 0;
    for (uint64_t seed = 0; seed < SEEDS; ++seed) {
        set_seed(seed);
        float p[4] = {};
        launch(bad_block_order, {4, 1}, p);
        (p[1] == 1.0f ? late : early) += 1;
    }
    CHECK(early > 0 && late > 0);
}

TEST(shared_memory_starts_as_nan_in_every_block) {
    float out[2] = {};
    for (int i = 0; i < 2; ++i) {
        launch(bad_uninitialised, {2, 1, 64}, out);
        CHECK(std::isnan(out[0]) && std::isnan(out[1]));
    }
}

TEST(a_missing_wait_is_seen) {
    Aligned x{}, out{};
    for (int i = 0; i < 256; ++i) {
        x.x[i] = static_cast<float>(i + 1);
    }
    const auto wrong = [&](int from, int missing) {
        launch(bad_wait, {1, 32, 1024}, x.x, out.x, missing);
        return !std::equal(x.x + from, x.x + from + 128, out.x + from);
    };
    for (uint64_t seed = 0; seed < SEEDS; ++seed) {
        set_seed(seed);
        CHECK(!wrong(0, 0) && !wrong(128, 0));
        // One group too few: the older half is there, the newer is not.
        CHECK(!wrong(0, 1) && wrong(128, 1));
        CHECK(wrong(0, 2));
    }
}

TEST(bad_accesses_are_reported) {
    Aligned x{}, out{};
    const auto run = [&](const float* from, int how, int n) {
        return try_launch(bad_access, {1, 64, 64}, out.x, from, how, n);
    };
    CHECK(says(run(x.x, 0, 15), Wrong::Nothing, {}));
    CHECK(says(run(x.x, 0, 16), Wrong::IllegalAddress, {"kernel bad_access, block (0, 0, 0)", "past the end of the 64"}));
    CHECK(says(run(x.x, 1, 8), Wrong::IllegalAddress, {"thread (", "index 8", "check_kernels.cu:"}));
    CHECK(says(run(x.x, 1, -1), Wrong::IllegalAddress, {"index -1"}));
    CHECK(says(run(x.x, 2, 4), Wrong::Nothing, {}));
    CHECK(says(run(x.x, 2, 2), Wrong::Misaligned, {"misaligned", "prelude.cuh:"}));
    CHECK(says(run(nullptr, 3, 3), Wrong::IllegalAddress, {"memory that is not there", "0xc"}));
    CHECK(says(run(x.x, 4, 0), Wrong::Other, {"divides an integer by zero"}));
    CHECK(says(run(x.x, 5, 0), Wrong::IllegalAddress, {"ldmatrix_x2", "not shared memory"}));
    CHECK(says(run(x.x, 6, 0), Wrong::Misaligned, {"ldmatrix_x2", "16 bytes"}));
    CHECK(says(run(x.x, 7, 1), Wrong::Misaligned, {"cp_async_16", "16 bytes"}));
    // The process goes on, and so do later launches.
    CHECK(says(run(x.x, 7, 4), Wrong::Nothing, {}));
}

TEST(threads_that_do_not_meet_are_reported) {
    float out[64];
    const auto run = [&](int how) { return try_launch(bad_meeting, {1, 64}, out, how); };
    CHECK(says(run(0), Wrong::Other,
               {"kernel bad_meeting, block (0, 0, 0)", "thread (0, 0, 0) waits in __syncthreads (", "check_kernels.cu:",
                "thread (40, 0, 0) has returned"}));
    CHECK(says(run(1), Wrong::Other, {"waits at the barrier", "at another"}));
    CHECK(says(run(2), Wrong::Other, {"waits in __shfl_xor_sync", "has returned"}));
    CHECK(says(run(3), Wrong::Other, {"0000ffff", "leaves it out"}));
    CHECK(says(run(4), Wrong::Other, {"__shfl_sync", "__syncwarp", "while lanes of its warp"}));
    CHECK(says(run(5), Wrong::Other, {"__syncthreads"}));
    CHECK(says(run(6), Wrong::Nothing, {}));
    CHECK(says(try_launch(bad_meeting, {1, 40}, out, 2), Wrong::Other, {"thread (32, 0, 0) waits", "lanes that do not exist"}));
}

TEST(a_used_up_stack_is_reported) {
    int out = 1;
    CHECK(says(try_launch(bad_depth, {1, 32}, &out, 10), Wrong::Nothing, {}) && out == 10);
    CHECK(says(try_launch(bad_depth, {1, 32}, &out, 1 << 20), Wrong::IllegalAddress, {"not there"}));
}

TEST(geometries_that_no_card_takes_are_refused) {
    float out[64] = {};
    const auto run = [&](emulator::Geometry geometry) { return try_launch(bad_meeting, geometry, out, 9).wrong; };
    CHECK(run({1, 64}) == Wrong::Nothing);
    CHECK(run({0, 64}) == Wrong::Geometry && run({1, 0}) == Wrong::Geometry && run({1, 1025}) == Wrong::Geometry);
    CHECK(run({{1, 65536, 1}, 1}) == Wrong::Geometry && run({1, {1, 1, 65}}) == Wrong::Geometry);
    CHECK(run({1, 64, 228 << 10}) == Wrong::Geometry);
}
