//! Lanes of AVX2: two registers.
//!
//! Loads and stores go through full masks: the direct intrinsics carry checks into builds with debug
//! assertions, which tests are, and both compile to the same instruction.

#![expect(
    clippy::cast_possible_wrap,
    reason = "bit patterns; the intrinsics take signed numbers"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, Lanes};

/// For CPUs with avx2 and fma.
#[derive(Clone, Copy)]
pub struct Avx2([__m256; 2]);

// SAFETY of all blocks in this impl: the trait's users compile it only into functions for a CPU with these
// features; pointers are those of the sixteen numbers' array.
impl Lanes for Avx2 {
    type Wide = [__m256i; 4];
    type Bits = [__m256i; 2];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { _mm256_set1_ps(x) }; 2])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let full = _mm256_set1_epi32(-1);
            let high = from.as_ptr().wrapping_add(8);
            Self([
                _mm256_maskload_ps(from.as_ptr(), full),
                _mm256_maskload_ps(high, full),
            ])
        }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe {
            let full = _mm256_set1_epi32(-1);
            let high = to.as_mut_ptr().wrapping_add(8);
            _mm256_maskstore_ps(to.as_mut_ptr(), full, self.0[0]);
            _mm256_maskstore_ps(high, full, self.0[1]);
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        // SAFETY: see above; a bf16 is 16 bits, and any 16 bytes may be loaded.
        unsafe { Self([bf16_8(from.as_ptr()), bf16_8(from.as_ptr().wrapping_add(8))]) }
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16; LANES]) {
        // SAFETY: see above; a bf16 is 16 bits, and there are 32 bytes.
        unsafe {
            let low = _mm256_srli_epi32::<16>(rounded_8(self.0[0]));
            let high = _mm256_srli_epi32::<16>(rounded_8(self.0[1]));
            let short = _mm256_packus_epi32(low, high);
            let short = _mm256_permute4x64_epi64::<0xD8>(short);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), short);
        }
    }
    #[inline(always)]
    fn store_pairs(first: Self, second: Self, to: &mut [u32; LANES]) {
        for (i, (low, high)) in first.0.into_iter().zip(second.0).enumerate() {
            // SAFETY: see above; eight words from `8 * i` are there.
            unsafe {
                let low = _mm256_srli_epi32::<16>(rounded_8(low));
                let high = _mm256_and_si256(rounded_8(high), _mm256_set1_epi32(-0x1_0000));
                let at = to.as_mut_ptr().wrapping_add(8 * i);
                _mm256_storeu_si256(at.cast(), _mm256_or_si256(low, high));
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_sub_ps(a, c), _mm256_sub_ps(b, d)] })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_mul_ps(a, c), _mm256_mul_ps(b, d)] })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_div_ps(a, c), _mm256_div_ps(b, d)] })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { [_mm256_sqrt_ps(self.0[0]), _mm256_sqrt_ps(self.0[1])] })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        let (a, b, c) = (self.0, b.0, c.0);
        // SAFETY: see above.
        Self(unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        })
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_max_ps(a, c), _mm256_max_ps(b, d)] })
    }
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        // SAFETY: see above.
        Self(unsafe { [_mm256_min_ps(a, c), _mm256_min_ps(b, d)] })
    }
    #[inline(always)]
    fn power_of_two(mut self) -> Self {
        for x in &mut self.0 {
            // SAFETY: see above.
            unsafe {
                let one = _mm256_set1_epi32(1f32.to_bits() as i32);
                let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(*x));
                *x = _mm256_castsi256_ps(_mm256_add_epi32(n, one));
            }
        }
        self
    }
    #[inline(always)]
    fn first(mut self, n: usize, rest: f32) -> Self {
        if n >= LANES {
            return self;
        }
        for (x, start) in self.0.iter_mut().zip([0, 8]) {
            // SAFETY: see above.
            unsafe {
                let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let n = _mm256_set1_epi32(n as i32 - start);
                let keep = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, lane));
                *x = _mm256_blendv_ps(_mm256_set1_ps(rest), *x, keep);
            }
        }
        self
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { sum_8(_mm256_add_ps(self.0[0], self.0[1])) }
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe { largest_8(_mm256_max_ps(self.0[0], self.0[1])) }
    }

    #[inline(always)]
    fn wide_splat(x: u64) -> Self::Wide {
        // SAFETY: see above.
        [unsafe { _mm256_set1_epi64x(x as i64) }; 4]
    }
    #[inline(always)]
    fn wide_count(first: u32) -> Self::Wide {
        let mut count = Self::wide_splat(u64::from(first));
        for (x, start) in count.iter_mut().zip([0, 4, 8, 12]) {
            // SAFETY: see above.
            unsafe {
                let step = _mm256_setr_epi64x(start, start + 1, start + 2, start + 3);
                *x = _mm256_add_epi64(*x, step);
            }
        }
        count
    }
    #[inline(always)]
    fn wide_mul(mut a: Self::Wide, factor: u32) -> Self::Wide {
        for x in &mut a {
            // SAFETY: see above.
            *x = unsafe { _mm256_mul_epu32(*x, _mm256_set1_epi64x(i64::from(factor))) };
        }
        a
    }
    #[inline(always)]
    fn wide_mix(mut a: Self::Wide, b: Self::Wide, key: u64) -> Self::Wide {
        for (a, b) in a.iter_mut().zip(b) {
            // SAFETY: see above.
            unsafe {
                let mixed = _mm256_xor_si256(b, _mm256_set1_epi64x(key as i64));
                *a = _mm256_xor_si256(_mm256_srli_epi64::<32>(*a), mixed);
            }
        }
        a
    }
    #[inline(always)]
    fn wide_lower(a: Self::Wide) -> Self::Bits {
        // SAFETY: see above.
        unsafe { [lower_8(a[0], a[1]), lower_8(a[2], a[3])] }
    }
    #[inline(always)]
    fn bits_select(a: Self::Bits, upper: bool, threshold: u32, value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe {
            [
                select_8(a[0], upper, threshold, value),
                select_8(a[1], upper, threshold, value),
            ]
        })
    }
}

// What a vector's two halves have in common. Functions, not closures: a closure does not have the target features of
// whom it is in, and each instruction in it may become a call.

/// # Safety
/// The CPU must have avx2, and eight numbers be readable.
#[inline(always)]
unsafe fn bf16_8(at: *const bf16) -> __m256 {
    // SAFETY: the caller's promise; a bf16 is 16 bits, and any 16 bytes may be loaded.
    unsafe {
        let short = _mm_loadu_si128(at.cast());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(short)))
    }
}

/// The lower halves of eight words of 64 bits.
///
/// # Safety
/// The CPU must have avx2.
#[inline(always)]
unsafe fn lower_8(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        let mixed = _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b));
        _mm256_permute4x64_epi64::<0xD8>(mixed)
    }
}

/// `value` where the upper or lower half of a word is at least `threshold`, else 0.
///
/// # Safety
/// The CPU must have avx2.
#[inline(always)]
unsafe fn select_8(words: __m256i, upper: bool, threshold: u32, value: f32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = if upper {
            _mm256_srli_epi32::<16>(words)
        } else {
            _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF))
        };
        // Signed comparison serves: both are below 2^16.
        let drop = _mm256_cmpgt_epi32(_mm256_set1_epi32(threshold as i32), bits);
        _mm256_andnot_ps(_mm256_castsi256_ps(drop), _mm256_set1_ps(value))
    }
}

/// The nearest bf16, ties to even, in the upper half of each lane.
///
/// # Safety
/// The CPU must have avx2.
#[inline(always)]
unsafe fn rounded_8(x: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        // Rounding could carry a NaN into infinity.
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_blendv_epi8(up, quiet, nan)
    }
}

/// # Safety
/// The CPU must have avx.
#[inline(always)]
pub(super) unsafe fn sum_8(x: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

/// # Safety
/// The CPU must have avx.
#[inline(always)]
pub(super) unsafe fn largest_8(x: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}
