//! Tiles in software, for tests on CPUs that have none: what the manual's pseudo-code says, with its
//! faults as panics. Slow.

use std::cell::RefCell;

use super::{Shapes, Tiles};

/// A thread's tiles.
#[derive(Default)]
pub struct State {
    tiles: [Tile; 8],
    configured: bool,
}

#[derive(Clone, Copy, Default)]
struct Tile {
    rows: usize,
    /// Bytes of a row.
    colsb: usize,
    data: [[u32; 16]; 16],
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Calls `f` with this thread's tiles.
pub fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(f)
}

impl State {
    /// LDTILECFG.
    pub fn configure(&mut self, bytes: &[u8; 64]) {
        assert_eq!(bytes[0], 1, "#GP: the only palette is 1");
        let reserved = [&bytes[1..16], &bytes[32..48], &bytes[56..]].concat();
        assert!(reserved.iter().all(|&b| b == 0), "#GP: reserved bytes");
        for (t, tile) in self.tiles.iter_mut().enumerate() {
            let colsb = u16::from_le_bytes([bytes[16 + 2 * t], bytes[17 + 2 * t]]);
            let (rows, colsb) = (usize::from(bytes[48 + t]), usize::from(colsb));
            assert!(rows <= 16 && colsb <= 64, "#GP: tile {t} is too large");
            assert_eq!(rows == 0, colsb == 0, "#GP: half of tile {t}'s shape");
            let data = [[0; 16]; 16];
            *tile = Tile { rows, colsb, data };
        }
        self.configured = true;
    }

    /// TILERELEASE.
    pub fn release(&mut self) {
        *self = Self::default();
    }

    fn shaped(&mut self, tile: usize) -> &mut Tile {
        assert!(self.configured, "#UD: no shapes");
        let tile = &mut self.tiles[tile];
        assert!(tile.rows > 0, "#UD: a tile without a shape");
        tile
    }

    /// TILEZERO.
    pub fn zero(&mut self, tile: usize) {
        self.shaped(tile).data = [[0; 16]; 16];
    }

    /// TILELOADD.
    ///
    /// # Safety
    /// The tile's rows must be readable, `stride` bytes apart.
    pub unsafe fn load(&mut self, tile: usize, from: *const u8, stride: usize) {
        let tile = self.shaped(tile);
        tile.data = [[0; 16]; 16];
        for (r, row) in tile.data.iter_mut().enumerate().take(tile.rows) {
            for (w, word) in row.iter_mut().enumerate().take(tile.colsb / 4) {
                let at = from.wrapping_add(r * stride + 4 * w);
                // SAFETY: the caller's promise.
                *word = unsafe { at.cast::<u32>().read_unaligned() };
            }
        }
    }

    /// TILESTORED.
    ///
    /// # Safety
    /// The tile's rows must be writable, `stride` bytes apart.
    pub unsafe fn store(&mut self, tile: usize, to: *mut u8, stride: usize) {
        let tile = self.shaped(tile);
        for (r, row) in tile.data.iter().enumerate().take(tile.rows) {
            for (w, &word) in row.iter().enumerate().take(tile.colsb / 4) {
                let at = to.wrapping_add(r * stride + 4 * w);
                // SAFETY: the caller's promise.
                unsafe { at.cast::<u32>().write_unaligned(word) };
            }
        }
    }

    /// TDPBF16PS.
    pub fn multiply(&mut self, result: usize, left: usize, right: usize) {
        let distinct = result != left && result != right && left != right;
        assert!(distinct, "#UD: one tile twice");
        let (a, b) = (*self.shaped(left), *self.shaped(right));
        let c = self.shaped(result);
        assert_eq!(c.rows, a.rows, "#UD: rows");
        assert_eq!(c.colsb, b.colsb, "#UD: columns");
        assert_eq!(a.colsb / 4, b.rows, "#UD: depths");
        for (c, a) in c.data.iter_mut().zip(&a.data).take(c.rows) {
            let mut sums = [[0f32; 2]; 16];
            for (left, right) in a.iter().zip(&b.data).take(b.rows) {
                for (sums, right) in sums.iter_mut().zip(right).take(b.colsb / 4) {
                    sums[0] = multiply_add(low(*left), low(*right), sums[0]);
                    sums[1] = multiply_add(high(*left), high(*right), sums[1]);
                }
            }
            for (c, [even, odd]) in c.iter_mut().zip(sums).take(b.colsb / 4) {
                let total = flushed(even + odd);
                *c = flushed(flushed(f32::from_bits(*c)) + total).to_bits();
            }
        }
    }
}

fn low(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

fn high(word: u32) -> f32 {
    f32::from_bits(word & 0xFFFF_0000)
}

/// Denormals count as zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    flushed(flushed(a).mul_add(flushed(b), c))
}

pub struct Model;

// SAFETY of the blocks in this impl: the trait's users promise that rows are readable or writable.
impl Tiles for Model {
    unsafe fn configure(shapes: &Shapes) {
        with(|state| state.configure(&shapes.0));
    }
    unsafe fn release() {
        with(State::release);
    }
    unsafe fn zero<const T: usize>() {
        with(|state| state.zero(T));
    }
    unsafe fn load<const T: usize>(from: *const u32, stride: usize) {
        // SAFETY: see above.
        with(|state| unsafe { state.load(T, from.cast(), stride) });
    }
    unsafe fn store<const T: usize>(to: *mut f32, stride: usize) {
        // SAFETY: see above.
        with(|state| unsafe { state.store(T, to.cast(), stride) });
    }
    unsafe fn multiply<const RESULT: usize, const LEFT: usize, const RIGHT: usize>() {
        with(|state| state.multiply(RESULT, LEFT, RIGHT));
    }
}
