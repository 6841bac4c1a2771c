//! Products of bf16 pairs on the matrix units of x86-64 (AMX): eight registers called *tiles*, each up to 16
//! rows of 64 bytes, and one instruction that multiplies two of them and adds the product to a third.
//!
//! A left tile is 16 rows × 16 words along the depth; a right one 16 words of depth × 16 columns, as a panel
//! has them; a result is 16 rows × 16 columns of f32. The kernel keeps two rows of three results, so that a
//! step of the depth takes eight loads to six products, of which a load costs half.
//!
//! An instruction adds up 16 words in two sums from zero, one of the pairs' low halves and one of their high
//! halves, and adds the total to the result. So depths are whole numbers of such steps, padded with zeros,
//! and an element depends on nothing but its row and its column.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 ("Programming
//! with Intel AMX") and volume 2 (the instructions).

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_variables,
        unused_macros,
        reason = "no other CPU has tiles"
    )
)]

use std::cell::Cell;

use super::tile::{Tile, TileStart};
use crate::kernels::cpu::{Cpu, Level};

#[cfg(target_arch = "x86_64")]
mod hardware;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// Words of depth in a tile: what depths are padded to.
pub const STEP: usize = 16;
/// Rows in a tile.
pub const HEIGHT: usize = 16;
/// The most rows the kernel takes at a time.
pub const MAX_ROWS: usize = 2 * HEIGHT;
/// Columns in a tile.
const COLUMNS: usize = 16;
/// Results are tiles `VECTORS * row + column`.
const VECTORS: usize = 3;
const LEFT: usize = 6;
const RIGHT: usize = 7;

/// What the kernel does with tiles: in hardware, or in the model that tests have.
///
/// # Safety
/// Of all but `release`: the CPU must have the instructions and the process the permission to use them
/// ([`Level::Amx`] says both), and all but `configure` need that to have come before on this thread.
trait Tiles {
    /// Gives all tiles their shapes, and makes them zero.
    unsafe fn configure(shapes: &Shapes);
    /// Leaves the tiles without shapes, so that the system need not save them.
    unsafe fn release();
    unsafe fn zero<const T: usize>();
    /// Rows `stride` bytes apart, which must be readable.
    unsafe fn load<const T: usize>(from: *const u32, stride: usize);
    /// Rows `stride` bytes apart, which must be writable.
    unsafe fn store<const T: usize>(to: *mut f32, stride: usize);
    /// Result += left · right.
    unsafe fn multiply<const RESULT: usize, const LEFT: usize, const RIGHT: usize>();
}

/// The shapes of the tiles as LDTILECFG reads them: palette 1; bytes of a row, 16 bits each, from byte 16
/// on; rows, a byte each, from byte 48 on.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Shapes([u8; 64]);

impl Shapes {
    /// Results and left tiles of `rows` rows.
    fn of_rows(rows: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for tile in 0..8 {
            bytes[16 + 2 * tile] = 64;
            #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
            let height = (if tile == RIGHT { STEP } else { rows }) as u8;
            bytes[48 + tile] = height;
        }
        Self(bytes)
    }
}

thread_local! {
    /// The rows of this thread's result tiles; 0 while tiles have no shapes. Giving them shapes takes the
    /// CPU as long as several products.
    static SHAPED: Cell<usize> = const { Cell::new(0) };
}

/// How many of `left` rows the next call takes.
pub fn rows(left: usize) -> usize {
    if left >= MAX_ROWS {
        MAX_ROWS
    } else {
        left.min(HEIGHT)
    }
}

/// # Safety
/// As for [`Tile::run`]; the depth must be a multiple of [`STEP`] and the left words of a row neighbours.
/// [`release`] must follow.
pub unsafe fn run(cpu: Cpu, tile: &Tile, rows: usize, width: usize) {
    // SAFETY: the caller's promise; the level proves that tiles may be used.
    unsafe {
        match cpu.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => run_on::<hardware::Hardware>(tile, rows, width),
            #[cfg(test)]
            _ => run_on::<model::Model>(tile, rows, width),
            #[cfg(not(test))]
            _ => unreachable!("only CPUs with tiles have engines with tiles"),
        }
    }
}

/// Ends a series of calls of [`run`].
pub fn release(cpu: Cpu) {
    if SHAPED.replace(0) > 0 {
        match cpu.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level proves that the instruction exists.
            Level::Amx => unsafe { <hardware::Hardware as Tiles>::release() },
            #[cfg(test)]
            // SAFETY: the model needs nothing.
            _ => unsafe { <model::Model as Tiles>::release() },
            #[cfg(not(test))]
            _ => {}
        }
    }
}

/// # Safety
/// As for [`run`].
unsafe fn run_on<T: Tiles>(tile: &Tile, rows: usize, width: usize) {
    debug_assert!(tile.depth.is_multiple_of(STEP) && tile.depth_stride == 1);
    // SAFETY: the caller's promise.
    unsafe {
        let height = rows.min(HEIGHT);
        if SHAPED.replace(height) != height {
            T::configure(&Shapes::of_rows(height));
        }
        match (rows > HEIGHT, width / COLUMNS) {
            (true, 3) => block::<T, 2, 3>(tile),
            (true, 2) => block::<T, 2, 2>(tile),
            (true, _) => block::<T, 2, 1>(tile),
            (false, 3) => block::<T, 1, 3>(tile),
            (false, 2) => block::<T, 1, 2>(tile),
            (false, _) => block::<T, 1, 1>(tile),
        }
    }
}

/// Runs a block for each of the result tiles: `$r` and `$v` are its row and column, constants as the names
/// of tiles are part of an instruction.
macro_rules! each {
    ($r:ident < $rows:expr, $v:ident < $vectors:expr, $block:block) => {
        each!(@one $r, $rows, $v, $vectors, $block, (0 0) (0 1) (0 2) (1 0) (1 1) (1 2))
    };
    (@one $r:ident, $rows:expr, $v:ident, $vectors:expr, $block:block, $(($row:literal $vector:literal))*) => {$({
        const $r: usize = $row;
        const $v: usize = $vector;
        if $r < $rows && $v < $vectors $block
    })*};
}

/// `ROWS` × `COLS` result tiles.
///
/// # Safety
/// As for [`run`], with tiles that have their shapes.
#[inline(always)]
unsafe fn block<T: Tiles, const ROWS: usize, const COLS: usize>(tile: &Tile) {
    const WORD: usize = size_of::<u32>();
    let out_stride = WORD * tile.out_stride;
    let out = |row: usize, column: usize| {
        let first = HEIGHT * row * tile.out_stride + COLUMNS * column;
        tile.out.wrapping_add(first)
    };
    // SAFETY: all accesses are to the tile's rows, depth and 16 × `COLS` columns, as promised.
    unsafe {
        each!(R < ROWS, V < COLS, {
            const RESULT: usize = VECTORS * R + V;
            match tile.start {
                TileStart::Zero => T::zero::<RESULT>(),
                TileStart::Out => T::load::<RESULT>(out(R, V).cast(), out_stride),
                // The same numbers for each row.
                TileStart::Bias(bias) => {
                    T::load::<RESULT>(bias.wrapping_add(COLUMNS * V).cast(), 0);
                }
            }
        });
        for step in (0..tile.depth).step_by(STEP) {
            let left = tile.left.wrapping_add(step);
            let right = tile.right.wrapping_add(step * tile.right_stride);
            each!(R < ROWS, V < COLS, {
                const RESULT: usize = VECTORS * R + V;
                if V == 0 {
                    let rows = left.wrapping_add(HEIGHT * R * tile.row_stride);
                    T::load::<LEFT>(rows, WORD * tile.row_stride);
                }
                T::load::<RIGHT>(right.wrapping_add(COLUMNS * V), WORD * tile.right_stride);
                T::multiply::<RESULT, LEFT, RIGHT>();
            });
        }
        each!(R < ROWS, V < COLS, {
            const RESULT: usize = VECTORS * R + V;
            T::store::<RESULT>(out(R, V), out_stride);
        });
    }
}

/// Multiplies tiles of zeros on this thread, as fast as the unit can; answers the floating-point operations.
/// For CPUs of [`Level::Amx`].
#[cfg(target_arch = "x86_64")]
pub fn products(cpu: Cpu, rounds: u64) -> u64 {
    assert!(cpu.level() == Level::Amx);
    // SAFETY: the level proves that tiles may be used, and no other code of this thread uses them meanwhile.
    unsafe {
        hardware::Hardware::configure(&Shapes::of_rows(HEIGHT));
        for _ in 0..rounds {
            each!(R < 2, V < 3, {
                hardware::Hardware::multiply::<{ VECTORS * R + V }, LEFT, RIGHT>();
            });
        }
        hardware::Hardware::release();
    }
    SHAPED.set(0);
    rounds * 6 * 2 * (HEIGHT * COLUMNS * 2 * STEP) as u64
}
