//! Fresh weights: normal numbers that depend on the seed and the parameter's name alone, so that neither
//! the order of loading nor the number of layers changes them.

use crate::kernels::dropout::uniform_words;

/// `count` numbers of N(0, `std`), by Box and Muller's method.
pub fn normal(seed: u64, name: &str, count: usize, std: f64) -> Vec<f32> {
    let words = uniform_words(seed, fnv1a(name), count.next_multiple_of(2));
    let unit = |word: u32| (f64::from(word) + 0.5) / (f64::from(u32::MAX) + 1.0);
    let mut values = Vec::with_capacity(words.len());
    for pair in words.chunks_exact(2) {
        let radius = (-2.0 * unit(pair[0]).ln()).sqrt() * std;
        let angle = std::f64::consts::TAU * unit(pair[1]);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    values
}

/// Fowler, Noll and Vo's hash, 64 bits: stable across builds, unlike the standard library's.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_moments_of_a_normal_distribution() {
        let x = normal(42, "classifier.weight", 100_001, 0.02);
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        assert_eq!(x.len(), 100_001);
        assert!(mean.abs() < 2e-4, "{mean}");
        assert!((var.sqrt() - 0.02).abs() < 2e-4, "{}", var.sqrt());
        let beyond = x.iter().filter(|v| v.abs() > 0.04).count() as f64 / n;
        assert!((beyond - 0.0455).abs() < 0.003, "{beyond}");
    }

    #[test]
    fn seed_and_name_decide() {
        let a = normal(1, "a", 8, 1.0);
        assert_eq!(a, normal(1, "a", 8, 1.0));
        assert_ne!(a, normal(2, "a", 8, 1.0));
        assert_ne!(a, normal(1, "b", 8, 1.0));
        assert_eq!(a[..3], normal(1, "a", 3, 1.0));
    }
}
