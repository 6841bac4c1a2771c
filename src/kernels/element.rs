//! What activations are kept as: f32, or bf16 where products are of bf16 anyway.

use candle_core::{CpuStorage, WithDType};
use half::bf16;

use super::gemm;
use super::lanes::{LANES, Lanes};

/// A number as it lies in memory. All arithmetic is f32.
pub trait Element: WithDType + Send + Sync {
    const ZERO: Self;

    fn load<S: Lanes>(from: &[Self; LANES]) -> S;
    fn store<S: Lanes>(lanes: S, to: &mut [Self; LANES]);
    /// The elements of a storage of this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// As bf16, rounded to the nearest.
    fn narrow<S: Lanes>(from: &[Self; LANES], to: &mut [bf16; LANES]);
    /// Words of two bf16, those of `first` in the low halves.
    fn zip<S: Lanes>(first: &[Self; LANES], second: &[Self; LANES], to: &mut [u32; LANES]);
    /// Numbers that are pairs of neighbours as they lie.
    fn as_pairs(numbers: &[Self]) -> Option<&[u32]>;
    /// Numbers that are f32.
    fn as_f32(numbers: &[Self]) -> Option<&[f32]>;

    /// The first numbers of a slice, zeros where it has none.
    #[inline(always)]
    fn load_part<S: Lanes>(from: &[Self]) -> S {
        if let Some(full) = from.first_chunk() {
            Self::load(full)
        } else {
            let mut padded = [Self::ZERO; LANES];
            padded[..from.len()].copy_from_slice(from);
            Self::load(&padded)
        }
    }

    /// Into a slice's first places, as many as there are.
    #[inline(always)]
    fn store_part<S: Lanes>(lanes: S, to: &mut [Self]) {
        if let Some(full) = to.first_chunk_mut() {
            Self::store(lanes, full);
        } else {
            let mut padded = [Self::ZERO; LANES];
            Self::store(lanes, &mut padded);
            to.copy_from_slice(&padded[..to.len()]);
        }
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<S: Lanes>(from: &[Self; LANES]) -> S {
        S::load(from)
    }
    #[inline(always)]
    fn store<S: Lanes>(lanes: S, to: &mut [Self; LANES]) {
        lanes.store(to);
    }
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(data) => Some(data),
            _ => None,
        }
    }
    #[inline(always)]
    fn narrow<S: Lanes>(from: &[Self; LANES], to: &mut [bf16; LANES]) {
        S::load(from).store_bf16(to);
    }
    #[inline(always)]
    fn zip<S: Lanes>(first: &[Self; LANES], second: &[Self; LANES], to: &mut [u32; LANES]) {
        S::store_pairs(S::load(first), S::load(second), to);
    }
    fn as_pairs(_: &[Self]) -> Option<&[u32]> {
        None
    }
    fn as_f32(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }
}

impl Element for bf16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    fn load<S: Lanes>(from: &[Self; LANES]) -> S {
        S::load_bf16(from)
    }
    #[inline(always)]
    fn store<S: Lanes>(lanes: S, to: &mut [Self; LANES]) {
        lanes.store_bf16(to);
    }
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(data) => Some(data),
            _ => None,
        }
    }
    #[inline(always)]
    fn narrow<S: Lanes>(from: &[Self; LANES], to: &mut [bf16; LANES]) {
        *to = *from;
    }
    #[inline(always)]
    fn zip<S: Lanes>(first: &[Self; LANES], second: &[Self; LANES], to: &mut [u32; LANES]) {
        S::zip_bf16(first, second, to);
    }
    fn as_pairs(numbers: &[Self]) -> Option<&[u32]> {
        gemm::as_pairs(numbers)
    }
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// Calls a generic function with the element type of a tensor.
macro_rules! for_dtype {
    ($tensor:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $tensor.dtype() {
            candle_core::DType::BF16 => $f::<half::bf16>($($arg),*),
            _ => $f::<f32>($($arg),*),
        }
    };
}
pub(crate) use for_dtype;
