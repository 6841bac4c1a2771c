//! One tile: a few rows times one panel, with the accumulators in registers.

use super::{Engine, Format, amx};
use crate::kernels::cpu::Level;

/// The most rows and columns a tile has.
pub const MAX_ROWS: usize = amx::MAX_ROWS;
pub const MAX_WIDTH: usize = 48;

/// Columns of a tile where registers are few: AVX2 has sixteen of eight numbers.
pub const NARROW: usize = 16;

/// The most columns that one tile takes.
pub fn width(engine: Engine) -> usize {
    match engine.cpu.level() {
        Level::Avx2 => NARROW,
        _ => MAX_WIDTH,
    }
}

/// The arguments of a microkernel. `right` is a panel: `right_stride` words for each step of the depth.
pub struct Tile {
    pub left: *const u32,
    pub row_stride: usize,
    pub depth_stride: usize,
    pub right: *const u32,
    pub right_stride: usize,
    pub depth: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    pub start: TileStart,
}

/// What the accumulators start with; the bias has the tile's padded width.
#[derive(Clone, Copy)]
pub enum TileStart {
    Zero,
    Out,
    Bias(*const f32),
}

/// How many of `left` rows the next tile takes.
pub fn rows(engine: Engine, left: usize) -> usize {
    if engine.format == Format::Tiles {
        return amx::rows(left);
    }
    let most = match engine.cpu.level() {
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => 8,
        Level::Avx2 => 6,
        Level::Portable => 4,
    };
    match left {
        _ if left >= most => most,
        4.. => 4,
        2.. => 2,
        _ => left,
    }
}

impl Tile {
    /// # Safety
    /// All pointers must be valid: `left` for `rows` × depth words at its strides, `right` for
    /// depth × `right_stride` words, `out` for `rows` × `width` elements, the bias for `width`.
    /// `rows` must come from [`rows`], and `width` be 16, 32 or 48, at most [`width`]. With the format `Tiles`, the depth is
    /// whole steps and `depth_stride` 1, and [`amx::release`] must follow.
    pub unsafe fn run(&self, engine: Engine, rows: usize, width: usize) {
        // SAFETY: the caller's promise; an engine proves that the CPU has its level, and has the formats
        // `Pairs` and `Tiles` only at levels with such products.
        unsafe {
            match (engine.cpu.level(), engine.format) {
                (_, Format::Tiles) => amx::run(engine.cpu, self, rows, width),
                #[cfg(target_arch = "x86_64")]
                (_, Format::Pairs) => super::x86::pairs(self, rows, width),
                #[cfg(target_arch = "x86_64")]
                (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, _) => {
                    super::x86::avx512(self, rows, width);
                }
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2, _) => super::x86::avx2(self, rows),
                _ => match rows {
                    4 => self.portable::<4>(width),
                    2 => self.portable::<2>(width),
                    _ => self.portable::<1>(width),
                },
            }
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn portable<const ROWS: usize>(&self, width: usize) {
        /// Columns at a time; four rows of them fit the sixteen registers of SSE2 with room to spare.
        const LANES: usize = 8;
        for column in (0..width).step_by(LANES) {
            // SAFETY: `column + LANES <= width`, so all accesses are within what the caller promised.
            unsafe {
                let mut sums = [[0f32; LANES]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    match self.start {
                        TileStart::Zero => {}
                        TileStart::Out => {
                            *sums = load(self.out.add(row * self.out_stride + column))
                        }
                        TileStart::Bias(bias) => *sums = load(bias.add(column)),
                    }
                }
                for step in 0..self.depth {
                    let right: [f32; LANES] =
                        load(self.right.add(step * self.right_stride + column).cast());
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let at = row * self.row_stride + step * self.depth_stride;
                        let left = f32::from_bits(*self.left.add(at));
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum += left * right;
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    let out = self.out.add(row * self.out_stride + column);
                    out.cast::<[f32; LANES]>().write_unaligned(*sums);
                }
            }
        }
    }
}

/// # Safety
/// `N` numbers must be readable.
#[inline(always)]
unsafe fn load<const N: usize>(from: *const f32) -> [f32; N] {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe { from.cast::<[f32; N]>().read_unaligned() }
}
