//! The microkernels of x86-64. Their accumulators must stay in registers: 24 of 32 with AVX-512 (8 rows ×
//! 3 vectors of 16), 12 of 16 with AVX2 (6 rows × 2 vectors of 8).

use std::arch::x86_64::{
    __m256, __m512, __m512bh, _MM_HINT_T0, _mm_load_ss, _mm_prefetch, _mm256_broadcastss_ps,
    _mm256_fmadd_ps, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_set1_epi32, _mm256_setzero_ps,
    _mm512_broadcastss_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_setzero_ps,
};

use super::tile::{Tile, TileStart};

/// How many steps ahead the panel is fetched from the L2 cache.
const AHEAD: usize = 16;

/// f32 words with AVX-512.
///
/// # Safety
/// As for [`Tile::run`], on a CPU with avx512f.
pub unsafe fn avx512(tile: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match (rows, width / 16) {
            (8, 3) => floats::<8, 3>(tile),
            (4, 3) => floats::<4, 3>(tile),
            (2, 3) => floats::<2, 3>(tile),
            (_, 3) => floats::<1, 3>(tile),
            (8, 2) => floats::<8, 2>(tile),
            (4, 2) => floats::<4, 2>(tile),
            (2, 2) => floats::<2, 2>(tile),
            (_, 2) => floats::<1, 2>(tile),
            (8, _) => floats::<8, 1>(tile),
            (4, _) => floats::<4, 1>(tile),
            (2, _) => floats::<2, 1>(tile),
            (_, _) => floats::<1, 1>(tile),
        }
    }
}

/// bf16 pairs.
///
/// # Safety
/// As for [`Tile::run`], on a CPU with avx512f and avx512bf16.
pub unsafe fn pairs(tile: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match (rows, width / 16) {
            (8, 3) => bf16_pairs::<8, 3>(tile),
            (4, 3) => bf16_pairs::<4, 3>(tile),
            (2, 3) => bf16_pairs::<2, 3>(tile),
            (_, 3) => bf16_pairs::<1, 3>(tile),
            (8, 2) => bf16_pairs::<8, 2>(tile),
            (4, 2) => bf16_pairs::<4, 2>(tile),
            (2, 2) => bf16_pairs::<2, 2>(tile),
            (_, 2) => bf16_pairs::<1, 2>(tile),
            (8, _) => bf16_pairs::<8, 1>(tile),
            (4, _) => bf16_pairs::<4, 1>(tile),
            (2, _) => bf16_pairs::<2, 1>(tile),
            (_, _) => bf16_pairs::<1, 1>(tile),
        }
    }
}

/// f32 words with AVX2, 16 columns.
///
/// # Safety
/// As for [`Tile::run`], on a CPU with avx2 and fma.
pub unsafe fn avx2(tile: &Tile, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            6 => narrow::<6>(tile),
            4 => narrow::<4>(tile),
            2 => narrow::<2>(tile),
            _ => narrow::<1>(tile),
        }
    }
}

/// Repeats a block for `$i` = 0, 1, … below `$n`, at most eight times. A `for` loop would leave it to the
/// optimiser whether to unroll, and the accumulators are in registers only if it does.
macro_rules! unrolled {
    ($i:ident < $n:expr, $body:block) => {
        unrolled!(@each $i, $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@each $i:ident, $n:expr, $body:block, $($value:literal)*) => {{
        $({
            const $i: usize = $value;
            if $i < $n $body
        })*
    }};
}

/// Loads through a full mask, and broadcasts through `_mm_load_ss`, compile to the plain instructions; the
/// direct forms would carry pointer checks into builds with debug assertions, which tests are.
const FULL: u16 = u16::MAX;

/// Defines a microkernel for 512-bit vectors around one way to multiply words and add.
macro_rules! wide {
    ($name:ident, $features:literal, |$sum:ident, $left:ident, $right:ident| $step:expr) => {
        /// # Safety
        /// As for [`Tile::run`], on a CPU with the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
            // SAFETY: all accesses are to the tile's rows, depth and 16 × VECTORS columns, as promised;
            // prefetching is harmless anywhere.
            unsafe {
                let mut sums: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
                match tile.start {
                    TileStart::Zero => {}
                    TileStart::Out => unrolled!(R < ROWS, {
                        let out = tile.out.wrapping_add(R * tile.out_stride);
                        unrolled!(V < VECTORS, {
                            sums[R][V] = _mm512_maskz_loadu_ps(FULL, out.wrapping_add(16 * V));
                        });
                    }),
                    TileStart::Bias(bias) => unrolled!(V < VECTORS, {
                        let bias = _mm512_maskz_loadu_ps(FULL, bias.wrapping_add(16 * V));
                        unrolled!(R < ROWS, {
                            sums[R][V] = bias;
                        });
                    }),
                }
                let (mut left, mut right) = (tile.left.cast::<f32>(), tile.right.cast::<f32>());
                for _ in 0..tile.depth {
                    let mut vectors: [__m512; VECTORS] = [_mm512_setzero_ps(); VECTORS];
                    unrolled!(V < VECTORS, {
                        vectors[V] = _mm512_maskz_loadu_ps(FULL, right.wrapping_add(16 * V));
                        let ahead = right.wrapping_add(AHEAD * 16 * VECTORS + 16 * V);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    });
                    unrolled!(R < ROWS, {
                        let word = _mm_load_ss(left.wrapping_add(R * tile.row_stride));
                        let $left = _mm512_broadcastss_ps(word);
                        unrolled!(V < VECTORS, {
                            let ($sum, $right) = (sums[R][V], vectors[V]);
                            sums[R][V] = $step;
                        });
                    });
                    right = right.wrapping_add(tile.right_stride);
                    left = left.wrapping_add(tile.depth_stride);
                }
                unrolled!(R < ROWS, {
                    let out = tile.out.wrapping_add(R * tile.out_stride);
                    unrolled!(V < VECTORS, {
                        _mm512_mask_storeu_ps(out.wrapping_add(16 * V), FULL, sums[R][V]);
                    });
                });
            }
        }
    };
}

wide!(floats, "avx512f", |sum, left, right| _mm512_fmadd_ps(
    left, right, sum
));
wide!(bf16_pairs, "avx512f,avx512bf16", |sum, left, right| {
    _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(left),
        std::mem::transmute::<__m512, __m512bh>(right),
    )
});

/// # Safety
/// As for [`Tile::run`], for 16 columns, on a CPU with avx2 and fma.
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow<const ROWS: usize>(tile: &Tile) {
    // SAFETY: all accesses are to the tile's rows, depth and 16 columns, as promised.
    unsafe {
        let full = _mm256_set1_epi32(-1);
        let load = |at: *const f32| _mm256_maskload_ps(at, full);
        let mut sums: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
        match tile.start {
            TileStart::Zero => {}
            TileStart::Out => unrolled!(R < ROWS, {
                let out = tile.out.wrapping_add(R * tile.out_stride);
                sums[R] = [load(out), load(out.wrapping_add(8))];
            }),
            TileStart::Bias(bias) => {
                sums = [[load(bias), load(bias.wrapping_add(8))]; ROWS];
            }
        }
        let (mut left, mut right) = (tile.left.cast::<f32>(), tile.right.cast::<f32>());
        for _ in 0..tile.depth {
            let vectors = [load(right), load(right.wrapping_add(8))];
            unrolled!(R < ROWS, {
                let word = _mm_load_ss(left.wrapping_add(R * tile.row_stride));
                let factor = _mm256_broadcastss_ps(word);
                sums[R][0] = _mm256_fmadd_ps(factor, vectors[0], sums[R][0]);
                sums[R][1] = _mm256_fmadd_ps(factor, vectors[1], sums[R][1]);
            });
            right = right.wrapping_add(tile.right_stride);
            left = left.wrapping_add(tile.depth_stride);
        }
        unrolled!(R < ROWS, {
            let out = tile.out.wrapping_add(R * tile.out_stride);
            _mm256_maskstore_ps(out, full, sums[R][0]);
            _mm256_maskstore_ps(out.wrapping_add(8), full, sums[R][1]);
        });
    }
}
