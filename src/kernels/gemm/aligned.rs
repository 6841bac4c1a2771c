//! Memory that starts at a cache line, so that no vector load straddles two.

use half::bf16;

/// A growing buffer whose contents are only meant to last until it is asked for again.
#[derive(Debug, Default)]
pub struct Aligned(Vec<Line>);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u32; WORDS]);

const WORDS: usize = 16;

impl Aligned {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// `len` words, holding whatever they held.
    pub fn words(&mut self, len: usize) -> &mut [u32] {
        let lines = len.div_ceil(WORDS);
        if lines > self.0.len() {
            self.0 = vec![Line([0; WORDS]); lines];
        }
        // SAFETY: a `Line` is 16 words without padding, and there are enough lines.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }

    /// `len` numbers, each some number or other.
    pub fn floats(&mut self, len: usize) -> &mut [f32] {
        as_numbers(self.words(len))
    }

    /// The first `len` words.
    ///
    /// # Panics
    /// If it never had so many.
    pub fn get(&self, len: usize) -> &[u32] {
        assert!(len <= self.0.len() * WORDS);
        // SAFETY: a `Line` is 16 words without padding, and there are enough lines.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), len) }
    }
}

/// Pairs of neighbours as words, where they lie; nothing if a word would not be aligned or lack its second.
pub fn as_pairs(numbers: &[bf16]) -> Option<&[u32]> {
    let start = numbers.as_ptr();
    if !numbers.len().is_multiple_of(2) || !start.addr().is_multiple_of(align_of::<u32>()) {
        return None;
    }
    // SAFETY: aligned as just checked, and two bf16 are as long as a u32, of which any bits are valid.
    Some(unsafe { std::slice::from_raw_parts(start.cast(), numbers.len() / 2) })
}

/// Words as pairs of bf16, the low half first, where they lie.
pub fn as_bf16(words: &mut [u32]) -> &mut [bf16] {
    // SAFETY: a u32 is as long as two bf16 and at least as aligned, and any bits are a valid bf16. (The low
    // half comes first on the only processors that have pairs.)
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}

/// The bits of numbers, where they lie.
pub fn as_words(numbers: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have one size and alignment, and any bits are a valid u32.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// Words as numbers, where they lie.
pub fn as_numbers(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: f32 and u32 have one size and alignment, and any bits are a valid f32.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}
