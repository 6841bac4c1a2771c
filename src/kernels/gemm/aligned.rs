//! Memory that starts at a cache line, so that no vector load straddles two.

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
        let words = self.words(len);
        // SAFETY: every word is a valid f32 of the same size and alignment.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
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

/// The bits of numbers, where they lie.
pub fn as_words(numbers: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have one size and alignment, and any bits are a valid u32.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}
