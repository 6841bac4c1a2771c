// What the lanes of a warp do once all of them are there. Apart from the kernels, so that it is compiled
// once, and without their checks: tensor cores are most of an emulated run's time.

#include "emulator.hpp"

namespace emulator {

void shuffle_together(void* const* slots) {
    uint64_t values[LANES];
    for (int i = 0; i < LANES; ++i) {
        values[i] = slots[i] == nullptr ? ~0ull : static_cast<const Shuffle*>(slots[i])->value;
    }
    for (int i = 0; i < LANES; ++i) {
        if (slots[i] != nullptr) {
            Shuffle& mine = *static_cast<Shuffle*>(slots[i]);
            mine.value = values[mine.source];
        }
    }
}

void ballot_together(void* const* slots) {
    unsigned votes = 0;
    for (int i = 0; i < LANES; ++i) {
        votes |= slots[i] != nullptr && static_cast<const Ballot*>(slots[i])->yes ? 1u << i : 0;
    }
    for (int i = 0; i < LANES; ++i) {
        if (slots[i] != nullptr) {
            static_cast<Ballot*>(slots[i])->votes = votes;
        }
    }
}

static float lower(unsigned pair) { return __uint_as_float(pair << 16); }
static float upper(unsigned pair) { return __uint_as_float(pair & 0xFFFF0000u); }

void mma_together(void* const* slots) {
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < LANES; ++i) {
        const Product& mine = *static_cast<const Product*>(slots[i]);
        const int g = i / 4, t = i % 4;
        for (int part = 0; part < 4; ++part) {
            const int row = g + part % 2 * 8, column = 2 * t + part / 2 * 8;
            a[row][column] = lower(mine.a[part]);
            a[row][column + 1] = upper(mine.a[part]);
            d[g + part / 2 * 8][2 * t + part % 2] = mine.d[part];
        }
        for (int part = 0; part < 2; ++part) {
            b[2 * t + part * 8][g] = lower(mine.b[part]);
            b[2 * t + part * 8 + 1][g] = upper(mine.b[part]);
        }
    }
    // Products of two bf16 are exact in f32. A card adds in an order, and rounds in a way, of its own.
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) {
                d[row][column] += a[row][k] * b[k][column];
            }
        }
    }
    for (int i = 0; i < LANES; ++i) {
        const Product& mine = *static_cast<const Product*>(slots[i]);
        for (int part = 0; part < 4; ++part) {
            mine.d[part] = d[i / 4 + part / 2 * 8][2 * (i % 4) + part % 2];
        }
    }
}

template <int COUNT, bool TRANSPOSED>
void ldmatrix_together(void* const* slots) {
    for (int matrix = 0; matrix < COUNT; ++matrix) {
        unsigned short elements[8][8];
        for (int row = 0; row < 8; ++row) {
            memcpy(elements[row], static_cast<const Matrices*>(slots[8 * matrix + row])->row, 16);
        }
        for (int i = 0; i < LANES; ++i) {
            const int g = i / 4, t = i % 4;
            const unsigned first = TRANSPOSED ? elements[2 * t][g] : elements[g][2 * t];
            const unsigned second = TRANSPOSED ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
            static_cast<const Matrices*>(slots[i])->r[matrix] = first | (second << 16);
        }
    }
}

template void ldmatrix_together<2, false>(void* const*);
template void ldmatrix_together<2, true>(void* const*);
template void ldmatrix_together<4, false>(void* const*);
template void ldmatrix_together<4, true>(void* const*);

}  // namespace emulator
