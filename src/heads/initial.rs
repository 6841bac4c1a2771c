//! Values of layers that no checkpoint has: drawn from a generator that depends on the job's seed and the
//! parameter's name only, so that adding one parameter does not change another's values.

/// `len` draws from N(0, `deviation`²): Box and Muller's transform of SplitMix64 (Steele et al. 2014).
pub fn normal(seed: u64, name: &str, len: usize, deviation: f32) -> Vec<f32> {
    let mut uniform = Uniform::new(seed, name);
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        let radius = (-2.0 * uniform.next().ln()).sqrt() * f64::from(deviation);
        let (sin, cos) = (uniform.next() * std::f64::consts::TAU).sin_cos();
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(len);
    values
}

/// Uniform draws from (0, 1].
struct Uniform(u64);

impl Uniform {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a of the name, started from the seed.
        let start = 0xCBF2_9CE4_8422_2325 ^ mix(seed);
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3);
        Self(name.bytes().fold(start, hash))
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        {
            ((mix(self.0) >> 11) + 1) as f64 / (1u64 << 53) as f64
        }
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal() {
        let x: Vec<f64> = normal(42, "w", 100_001, 0.02)
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        assert_eq!(x.len(), 100_001);
        let moment = |n| x.iter().map(|x| (x / 0.02).powi(n)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.02);
        assert!((moment(2) - 1.0).abs() < 0.02);
        assert!((moment(4) - 3.0).abs() < 0.15);
        let within_one = x.iter().filter(|x| x.abs() < 0.02).count() as f64 / x.len() as f64;
        assert!((within_one - 0.6827).abs() < 0.01);
    }

    #[test]
    fn seed_and_name_decide() {
        assert_eq!(normal(1, "a", 5, 1.0), normal(1, "a", 9, 1.0)[..5]);
        assert_ne!(normal(1, "a", 5, 1.0), normal(2, "a", 5, 1.0));
        assert_ne!(normal(1, "a", 5, 1.0), normal(1, "b", 5, 1.0));
    }
}
