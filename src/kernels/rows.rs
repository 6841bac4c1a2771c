//! How ops split their work: outputs are cut into blocks of rows, and each block has one owner, so neither
//! the number of threads nor their order changes a result.

use candle_core::{Result, bail};

use super::cpu::multiversion;
use super::element::Element;
pub(super) use super::lanes::LANES;
use super::pool::{Disjoint, parallel_for};

/// Refuses slices that do not all have `len` elements.
///
/// # Errors
/// Names the op whose shapes do not fit.
pub(super) fn check_lens(op: &str, len: usize, lens: &[usize]) -> Result<()> {
    if lens.iter().any(|&l| l != len) {
        bail!("{op}: expected {len} elements, got {lens:?}")
    }
    Ok(())
}

multiversion! {
    /// `x += y`.
    pub(super) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

multiversion! {
    /// `to = from`, as f32.
    pub(super) fn widen<S: Lanes, T: Element>(from: &[T], to: &mut [f32]) {
        for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
            T::load_part::<S>(from).store_part(to);
        }
    }
}

multiversion! {
    /// `to = from`, rounded to the nearest.
    pub(super) fn narrow<S: Lanes, T: Element>(from: &[f32], to: &mut [T]) {
        for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
            T::store_part(S::load_part(from), to);
        }
    }
}

multiversion! {
    /// `to += from`, rounded to the nearest.
    pub(super) fn add_narrow<S: Lanes, T: Element>(from: &[f32], to: &mut [T]) {
        for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
            T::store_part(T::load_part::<S>(to).add(S::load_part(from)), to);
        }
    }
}

/// Cuts every output into blocks of its own length and calls `f(i, [block i of each])` for all
/// `i < blocks`, possibly side by side. The last block may be shorter.
pub(super) fn for_blocks<const N: usize, T: Send>(
    blocks: usize,
    outputs: [(&mut [T], usize); N],
    f: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let outputs = outputs.map(|(slice, block)| (Disjoint::new(slice), block));
    parallel_for(blocks, |i| {
        let parts = std::array::from_fn(|n| {
            let (shared, block) = &outputs[n];
            let start = (i * block).min(shared.len());
            // SAFETY: `parallel_for` runs each `i` once, and blocks of different `i` do not overlap.
            unsafe { shared.slice(start..(start + block).min(shared.len())) }
        });
        f(i, parts);
    });
}

/// Calls `f(i, row rows[i] of out)` for every `i`, possibly side by side.
///
/// # Errors
/// If `rows` does not increase strictly or leaves the table.
pub(super) fn for_listed_rows(
    out: &mut [f32],
    width: usize,
    rows: &[u32],
    f: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    /// Rows a task does: enough to outweigh handing it out.
    const ROWS: usize = 16;
    let inside = |row: u32| (row as usize + 1) * width <= out.len();
    if !rows.iter().all(|&r| inside(r)) || !rows.windows(2).all(|w| w[0] < w[1]) {
        bail!("row numbers must increase strictly and lie in the table")
    }
    let shared = Disjoint::new(out);
    parallel_for(rows.len().div_ceil(ROWS), |task| {
        let first = task * ROWS;
        for (i, &row) in rows.iter().enumerate().skip(first).take(ROWS) {
            let start = row as usize * width;
            // SAFETY: row numbers are distinct, so rows of different `i` do not overlap.
            f(i, unsafe { shared.slice(start..start + width) });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_their_outputs_once() {
        let (mut a, mut b) = (vec![0f32; 10], vec![0f32; 4]);
        for_blocks(4, [(&mut a, 3), (&mut b, 1)], |i, [a, b]| {
            a.iter_mut()
                .chain(b)
                .for_each(|x| *x += 1.0 + f32::from(u8::try_from(i).unwrap()));
        });
        assert_eq!(a, [1., 1., 1., 2., 2., 2., 3., 3., 3., 4.]);
        assert_eq!(b, [1., 2., 3., 4.]);
    }

    #[test]
    fn listed_rows_must_increase_and_lie_inside() {
        let mut table = vec![0f32; 6];
        let touch = |_: usize, row: &mut [f32]| row.fill(1.0);
        for_listed_rows(&mut table, 2, &[0, 2], touch).unwrap();
        assert_eq!(table, [1., 1., 0., 0., 1., 1.]);
        for bad in [&[1, 1][..], &[2, 1], &[3]] {
            assert!(for_listed_rows(&mut table, 2, bad, touch).is_err());
        }
    }
}
