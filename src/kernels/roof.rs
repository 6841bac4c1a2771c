//! The most that the processor's multiply-add units do: products on registers, without memory. Benches hold
//! everything else against it.

use super::cpu::{Cpu, Level};
use super::linear::Precision;

/// Multiplies and adds on this thread as fast as this CPU can in the given precision; answers the
/// floating-point operations done, and something that depends on all results.
pub fn products(precision: Precision, rounds: u64) -> (u64, f32) {
    #[cfg(target_arch = "x86_64")]
    match (Cpu::best().level(), precision) {
        (Level::Amx, Precision::Bf16) => {
            return (super::gemm::tile_products(Cpu::best(), rounds), 0.0);
        }
        // SAFETY: the CPU has the features, says its level.
        (Level::Avx512Bf16, Precision::Bf16) => return unsafe { x86::bf16_pairs(rounds) },
        // SAFETY: as above.
        (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, _) => {
            return unsafe { x86::avx512(rounds) };
        }
        // SAFETY: as above.
        (Level::Avx2, _) => return unsafe { x86::avx2(rounds) },
        (Level::Portable, _) => {}
    }
    portable(rounds)
}

fn portable(rounds: u64) -> (u64, f32) {
    let mut sums = [[0f32; 4]; 8];
    let factor = std::hint::black_box([1.0f32, 0.5, 0.25, 0.125]);
    for _ in 0..rounds {
        for sum in &mut sums {
            for (sum, factor) in sum.iter_mut().zip(factor) {
                *sum += factor * factor;
            }
        }
    }
    (rounds * 8 * 4 * 2, sums.as_flattened().iter().sum())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// A loop over as many independent sums as hide the latency of a multiply-add and fit the registers.
    /// They are written out: in an array they would be kept in memory.
    macro_rules! sums {
        ($rounds:expr, $zero:expr, $add:expr, $total:expr, $($sum:ident)*) => {{
            $(let mut $sum = $zero;)*
            for _ in 0..$rounds {
                $($sum = $add($sum);)*
            }
            [$($total($sum)),*].iter().sum::<f32>()
        }};
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16_pairs(rounds: u64) -> (u64, f32) {
        // SAFETY: 64 bytes either way, every value allowed.
        let factor: __m512bh =
            unsafe { std::mem::transmute(_mm512_set1_epi32(std::hint::black_box(0x3F80_3F80))) };
        let add = |sum| _mm512_dpbf16_ps(sum, factor, factor);
        let total = |sum| _mm512_reduce_add_ps(sum);
        let sum = sums!(rounds, _mm512_setzero_ps(), add, total, a b c d e f g h i j k l m n o p);
        (rounds * 16 * 64, sum)
    }

    #[target_feature(enable = "avx512f")]
    pub fn avx512(rounds: u64) -> (u64, f32) {
        let factor = _mm512_set1_ps(std::hint::black_box(0.5));
        let add = |sum| _mm512_fmadd_ps(factor, factor, sum);
        let total = |sum| _mm512_reduce_add_ps(sum);
        let sum = sums!(rounds, _mm512_setzero_ps(), add, total, a b c d e f g h i j k l m n o p);
        (rounds * 16 * 32, sum)
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(rounds: u64) -> (u64, f32) {
        let factor = _mm256_set1_ps(std::hint::black_box(0.5));
        let add = |sum| _mm256_fmadd_ps(factor, factor, sum);
        let total = |sum| {
            let mut lanes = [0f32; 8];
            // SAFETY: room for eight numbers.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            lanes.iter().sum::<f32>()
        };
        let sum = sums!(rounds, _mm256_setzero_ps(), add, total, a b c d e f g h i j k l);
        (rounds * 12 * 16, sum)
    }
}
