//! The global gradient norm, and the gate of the first step.

use candle_core::Result;

use crate::layers::Parameters;

/// The L2 norm over all gradients. Not finite if any gradient is not: sums are in f64, where squares of finite
/// f32 numbers cannot overflow.
///
/// # Errors
/// If a gradient is not a contiguous f32 tensor, or the GPU fails.
pub fn global_grad_norm(parameters: &Parameters) -> Result<f64> {
    Ok(parameters
        .grad_sums_of_squares()?
        .iter()
        .sum::<f64>()
        .sqrt())
}

/// Names of the parameters whose gradient is zero throughout, or has an element that is not finite: parts of the
/// model that the loss does not reach, or that are broken.
///
/// # Errors
/// If a gradient is not a contiguous f32 tensor, or the GPU fails.
pub fn missing_gradients(parameters: &Parameters) -> Result<Vec<String>> {
    let sums = parameters.grad_sums_of_squares()?;
    let named = parameters.iter().zip(sums);
    let missing = named.filter(|&(_, sum)| sum == 0.0 || !sum.is_finite());
    Ok(missing
        .map(|(parameter, _)| parameter.name.clone())
        .collect())
}

#[cfg(test)]
mod tests {
    use crate::kernels::device::Device;
    use crate::kernels::tensor::Tensor;

    use super::*;
    use crate::layers::Parameter;

    /// Longer than what one task sums.
    const CHUNK: usize = 1 << 16;

    fn parameters(grads: &[(&str, Vec<f32>)]) -> Parameters {
        let mut parameters = Parameters::default();
        for (name, grad) in grads {
            let value = Tensor::zeros(grad.len(), candle_core::DType::F32, &Device::Cpu).unwrap();
            let parameter = Parameter {
                name: (*name).to_owned(),
                value,
                grad: Tensor::from_slice(grad, grad.len(), &Device::Cpu).unwrap(),
                rounded: None,
                rows: None,
                stale: None,
            };
            parameters.push(parameter);
        }
        parameters
    }

    #[test]
    fn long_gradients_are_summed_in_full_and_without_overflow() {
        let n = 3 * CHUNK + 5;
        let norm = global_grad_norm(&parameters(&[("a", vec![2.0; n])])).unwrap();
        assert!((norm - 2.0 * (n as f64).sqrt()).abs() < 1e-9);
        let norm = global_grad_norm(&parameters(&[("a", vec![f32::MAX; 4])])).unwrap();
        assert!((norm / f64::from(f32::MAX) - 2.0).abs() < 1e-12);
        assert_eq!(global_grad_norm(&Parameters::default()).unwrap(), 0.0);
    }

    #[test]
    fn anything_not_finite_shows_in_the_norm() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, CHUNK, CHUNK + 20] {
                let mut grad = vec![1.0; CHUNK + 21];
                grad[at] = bad;
                let norm = global_grad_norm(&parameters(&[("a", grad)])).unwrap();
                assert!(!norm.is_finite());
            }
        }
    }

    #[test]
    fn the_gate_names_zero_and_broken_gradients() {
        let grads = [
            ("fine", vec![0.0, 1e-20]),
            ("detached", vec![0.0, -0.0]),
            ("nan", vec![1.0, f32::NAN]),
            ("infinite", vec![f32::INFINITY, 0.0]),
            ("also.fine", vec![-3.0]),
        ];
        let missing = missing_gradients(&parameters(&grads)).unwrap();
        assert_eq!(missing, ["detached", "nan", "infinite"]);
    }
}
