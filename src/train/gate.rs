//! The gradient gate: at the first step every trainable parameter must have a gradient, else training
//! would go on with part of the model silently frozen while the loss falls.

use crate::domain::{ErrorCode, JobError};
use crate::layers::Parameters;
use crate::optim;

/// In exact arithmetic a key bias has no gradient: it adds the same number to all scores of a query, which
/// softmax cancels. Rounding leaves some noise, or nothing.
const MAY_BE_ZERO: &str = ".attention.self.key.bias";

/// Checks the gradients of the first step, before they are used.
///
/// # Errors
/// `gradient_missing`, naming the parameters whose gradient is zero throughout or not finite.
pub fn check(parameters: &Parameters) -> Result<(), JobError> {
    let missing: Vec<String> = optim::missing_gradients(parameters)
        .map_err(|error| JobError::new(ErrorCode::InternalError, error.to_string()))?
        .into_iter()
        .filter(|name| !name.ends_with(MAY_BE_ZERO))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let shown = missing
        .iter()
        .take(10)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    Err(JobError::new(
        ErrorCode::GradientMissing,
        format!(
            "{} of {} parameters got no gradient at the first step: {shown}",
            missing.len(),
            parameters.len()
        ),
    )
    .hint("this is a defect of the engine, not of the job: report it with the model's config.json"))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kernels::view;
    use crate::layers::Parameter;

    fn parameter(name: &str, grad: f32) -> Parameter {
        let p = Parameter::new(
            name,
            Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
        )
        .unwrap();
        view::write(&p.grad, |g| {
            g[1] = grad;
            Ok(())
        })
        .unwrap();
        p
    }

    #[test]
    fn a_detached_layer_is_named() {
        let mut parameters = Parameters::default();
        parameters.push(parameter("bert.encoder.layer.0.output.dense.weight", 0.5));
        assert!(check(&parameters).is_ok());
        parameters.push(parameter("bert.encoder.layer.1.output.dense.weight", 0.0));
        let error = check(&parameters).unwrap_err();
        assert_eq!(error.code, ErrorCode::GradientMissing);
        assert!(
            error
                .message
                .contains("bert.encoder.layer.1.output.dense.weight")
        );
        assert!(!error.message.contains("layer.0"));
    }

    #[test]
    fn an_infinite_gradient_is_no_gradient() {
        let mut parameters = Parameters::default();
        parameters.push(parameter("classifier.weight", f32::INFINITY));
        assert!(check(&parameters).is_err());
    }

    #[test]
    fn a_key_bias_may_be_zero() {
        let mut parameters = Parameters::default();
        parameters.push(parameter(
            "bert.encoder.layer.0.attention.self.key.bias",
            0.0,
        ));
        assert!(check(&parameters).is_ok());
    }
}
