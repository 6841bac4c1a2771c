//! The microkernels of x86-64. Their accumulators must stay in registers: 24 of 32 with AVX-512 (8 rows ×
//! 3 vectors of 16), 12 of 16 with AVX2 (6 rows × 2 vectors of 8).

#![expect(
    clippy::cast_possible_wrap,
    reason = "words are bit patterns; the intrinsics take signed ones"
)]

use std::arch::x86_64::{
    __m256, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_castsi512_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_ps, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::tile::{Tile, TileStart};

/// How many steps ahead the panel is fetched from the L2 cache.
const AHEAD: usize = 8;

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

/// f32 words with AVX2, 16 columns at a time.
///
/// # Safety
/// As for [`Tile::run`], on a CPU with avx2 and fma.
pub unsafe fn avx2(tile: &Tile, rows: usize, width: usize) {
    for column in (0..width).step_by(16) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                6 => narrow::<6>(tile, column),
                4 => narrow::<4>(tile, column),
                2 => narrow::<2>(tile, column),
                _ => narrow::<1>(tile, column),
            }
        }
    }
}

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
                for row in 0..ROWS {
                    for v in 0..VECTORS {
                        match tile.start {
                            TileStart::Zero => {}
                            TileStart::Out => {
                                let out = tile.out.add(row * tile.out_stride + 16 * v);
                                sums[row][v] = _mm512_loadu_ps(out);
                            }
                            TileStart::Bias(bias) => {
                                sums[row][v] = _mm512_loadu_ps(bias.add(16 * v));
                            }
                        }
                    }
                }
                let (mut left, mut right) = (tile.left, tile.right);
                for _ in 0..tile.depth {
                    let mut vectors: [__m512i; VECTORS] = [_mm512_setzero_si512(); VECTORS];
                    for v in 0..VECTORS {
                        vectors[v] = _mm512_loadu_si512(right.add(16 * v).cast());
                        let ahead = right.wrapping_add(AHEAD * 16 * VECTORS + 16 * v);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                    for row in 0..ROWS {
                        let $left = _mm512_set1_epi32(*left.add(row * tile.row_stride) as i32);
                        for v in 0..VECTORS {
                            let ($sum, $right) = (sums[row][v], vectors[v]);
                            sums[row][v] = $step;
                        }
                    }
                    right = right.wrapping_add(tile.right_stride);
                    left = left.wrapping_add(tile.depth_stride);
                }
                for row in 0..ROWS {
                    for v in 0..VECTORS {
                        let out = tile.out.add(row * tile.out_stride + 16 * v);
                        _mm512_storeu_ps(out, sums[row][v]);
                    }
                }
            }
        }
    };
}

wide!(floats, "avx512f", |sum, left, right| _mm512_fmadd_ps(
    _mm512_castsi512_ps(left),
    _mm512_castsi512_ps(right),
    sum
));
wide!(bf16_pairs, "avx512f,avx512bf16", |sum, left, right| {
    _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512i, __m512bh>(left),
        std::mem::transmute::<__m512i, __m512bh>(right),
    )
});

/// # Safety
/// As for [`Tile::run`], for the 16 columns from `column`, on a CPU with avx2 and fma.
#[target_feature(enable = "avx2,fma")]
unsafe fn narrow<const ROWS: usize>(tile: &Tile, column: usize) {
    // SAFETY: all accesses are to the tile's rows, depth and the 16 columns, as promised.
    unsafe {
        let mut sums: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
        for row in 0..ROWS {
            for v in 0..2 {
                let at = column + 8 * v;
                match tile.start {
                    TileStart::Zero => {}
                    TileStart::Out => {
                        sums[row][v] = _mm256_loadu_ps(tile.out.add(row * tile.out_stride + at));
                    }
                    TileStart::Bias(bias) => sums[row][v] = _mm256_loadu_ps(bias.add(at)),
                }
            }
        }
        let (mut left, mut right) = (tile.left, tile.right.add(column));
        for _ in 0..tile.depth {
            let vectors = [
                _mm256_loadu_ps(right.cast()),
                _mm256_loadu_ps(right.add(8).cast()),
            ];
            for row in 0..ROWS {
                let factor = _mm256_set1_ps(f32::from_bits(*left.add(row * tile.row_stride)));
                for v in 0..2 {
                    sums[row][v] = _mm256_fmadd_ps(factor, vectors[v], sums[row][v]);
                }
            }
            right = right.wrapping_add(tile.right_stride);
            left = left.wrapping_add(tile.depth_stride);
        }
        for row in 0..ROWS {
            for v in 0..2 {
                let out = tile.out.add(row * tile.out_stride + column + 8 * v);
                _mm256_storeu_ps(out, sums[row][v]);
            }
        }
    }
}

/// Transposes 16 × 16 words in four rounds of exchanges between pairs of rows.
#[target_feature(enable = "avx512f")]
pub fn transpose(square: &mut [[u32; 16]; 16]) {
    let mut r: [__m512i; 16] = [_mm512_setzero_si512(); 16];
    for (r, row) in r.iter_mut().zip(square.iter()) {
        // SAFETY: a row is 16 words.
        *r = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // Each 128-bit lane of r[4 i + j] now holds rows 4 i .. 4 i + 4 of one column; gather the lanes.
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
        t[i + 4] = _mm512_shuffle_i32x4::<0xDD>(r[i], r[i + 4]);
        t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
        t[i + 12] = _mm512_shuffle_i32x4::<0xDD>(r[i + 8], r[i + 12]);
    }
    for i in 0..8 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
        r[i + 8] = _mm512_shuffle_i32x4::<0xDD>(t[i], t[i + 8]);
    }
    for (r, row) in r.iter().zip(square) {
        // SAFETY: a row is 16 words.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *r) };
    }
}
