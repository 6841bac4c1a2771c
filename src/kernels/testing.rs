//! What tests of several ops share.

/// Numbers in [-1, 1) that depend on the seed only.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(seed | 1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
