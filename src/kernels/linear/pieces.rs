//! Pieces of a product's result: small enough to stay in the innermost cache until they are rounded, added or
//! sent through an activation on their way to memory.

use std::ops::Range;

use crate::kernels::cpu::multiversion;
use crate::kernels::element::Element;
use crate::kernels::lanes::LANES;
use crate::kernels::memory::{prefetch, prefetch_to_write};
use crate::kernels::pool::Disjoint;

/// Some rows of some columns, as f32: `data[row][stride]`.
pub struct Piece<'a> {
    /// Which of several results.
    pub sum: usize,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// The columns, rounded up to whole vectors.
    pub stride: usize,
    pub data: &'a mut [f32],
}

/// Rows that are asked for ahead of their use, as the processor does not foresee where the next one lies.
const AHEAD: usize = 8;

/// Where a row of the piece lies in a matrix of `width` columns.
#[inline(always)]
fn place(piece: &Piece<'_>, width: usize, row: usize) -> Range<usize> {
    let start = (piece.rows.start + row) * width;
    start + piece.columns.start..start + piece.columns.end
}

/// A row of the piece where it belongs in a matrix of `width` columns; a later one is asked for.
///
/// # Safety
/// As for [`Disjoint::slice`]: nobody else may use these numbers meanwhile.
#[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
#[inline(always)]
unsafe fn line<'a, T>(
    piece: &Piece<'_>,
    width: usize,
    row: usize,
    out: &'a Disjoint<'_, T>,
) -> &'a mut [T] {
    let place = place(piece, width, row);
    prefetch_to_write(
        out.pointer(place.start).wrapping_add(AHEAD * width),
        place.len(),
    );
    // SAFETY: the caller's promise.
    unsafe { out.slice(place) }
}

multiversion! {
    /// Writes a piece where it belongs in a matrix of `width` columns. Pieces do not overlap.
    pub fn store<S: Lanes, T: Element>(piece: &Piece<'_>, width: usize, out: &Disjoint<'_, T>) {
        for (row, data) in piece.data.chunks_exact(piece.stride).enumerate() {
            // SAFETY: pieces do not overlap, and each is finished once.
            let out = unsafe { line(piece, width, row, out) };
            for (data, out) in data.chunks_exact(LANES).zip(out.chunks_mut(LANES)) {
                T::store_part(S::load_part(data), out);
            }
        }
    }
}

multiversion! {
    /// As [`store`]; the piece then holds what was stored.
    pub fn store_rounding<S: Lanes, T: Element>(piece: &mut Piece<'_>, width: usize, out: &Disjoint<'_, T>) {
        for row in 0..piece.rows.len() {
            // SAFETY: pieces do not overlap, and each is finished once.
            let out = unsafe { line(piece, width, row, out) };
            let data = &mut piece.data[row * piece.stride..][..piece.stride];
            for (data, out) in data.chunks_exact_mut(LANES).zip(out.chunks_mut(LANES)) {
                T::store_part(S::load_part(data), out);
                T::load_part::<S>(out).store_part(data);
            }
        }
    }
}

multiversion! {
    /// Adds a piece to where it belongs.
    pub fn add_to<S: Lanes, T: Element>(piece: &Piece<'_>, width: usize, out: &Disjoint<'_, T>) {
        for (row, data) in piece.data.chunks_exact(piece.stride).enumerate() {
            // SAFETY: pieces do not overlap, and each is finished once.
            let out = unsafe { line(piece, width, row, out) };
            for (data, out) in data.chunks_exact(LANES).zip(out.chunks_mut(LANES)) {
                T::store_part(T::load_part::<S>(out).add(S::load_part(data)), out);
            }
        }
    }
}

multiversion! {
    /// Reads another matrix's numbers at the piece's place, in the piece's form.
    pub fn load<S: Lanes, T: Element>(from: &[T], piece: &Piece<'_>, width: usize, to: &mut [f32]) {
        for (row, to) in to.chunks_exact_mut(piece.stride).enumerate() {
            let place = place(piece, width, row);
            prefetch(from.as_ptr().wrapping_add(place.start + AHEAD * width), place.len());
            let from = &from[place];
            for (from, to) in from.chunks(LANES).zip(to.chunks_exact_mut(LANES)) {
                T::load_part::<S>(from).store_part(to);
            }
        }
    }
}
