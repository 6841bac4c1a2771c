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
    use candle_core::Var;
    use candle_nn::Module as _;

    use super::*;
    use crate::heads::{LossOptions, SequenceClassifier};
    use crate::kernels::device::Device;
    use crate::kernels::linear::Precision;
    use crate::kernels::tensor::Tensor;
    use crate::kernels::view;
    use crate::layers::Parameter;
    use crate::models::oracle::{TinyBert, fixture};

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

    /// A real backward passes the gate; with one layer's gradients left out, as a layer cut off from the
    /// loss leaves them, it does not, and exactly that layer is named.
    #[test]
    fn a_real_model_passes_and_a_layer_cut_off_from_the_loss_does_not() {
        let tiny = TinyBert::read();
        let (mut model, _) =
            SequenceClassifier::load(&fixture("tiny-bert"), 3, 1, &Precision::F32.into()).unwrap();
        let options = LossOptions {
            label_smoothing: 0.0,
            scale: 1.0,
        };
        model
            .forward_backward(&tiny.input(), &tiny.labels, None, &options)
            .unwrap();
        check(model.parameters()).unwrap();
        let cut = "bert.encoder.layer.0.";
        for parameter in model.parameters() {
            if parameter.name.starts_with(cut) {
                view::write(&parameter.grad, |g| {
                    g.fill(0.0);
                    Ok(())
                })
                .unwrap();
            }
        }
        let message = check(model.parameters()).unwrap_err().message;
        assert!(message.contains("bert.encoder.layer.0.attention.self.query.weight"));
        assert!(!message.contains("layer.1."), "{message}");
    }

    /// candle's own LayerNorm drops gradients without an error; the gate would have stopped that training.
    #[test]
    fn candles_stock_layer_norm_would_have_been_caught() {
        let var = |x: f32| {
            Var::from_tensor(&candle_core::Tensor::full(x, 4, &candle_core::Device::Cpu).unwrap())
                .unwrap()
        };
        let vars = [("LayerNorm.weight", var(1.0)), ("LayerNorm.bias", var(0.0))];
        let tensor = |i: usize| vars[i].1.as_tensor().clone();
        let norm = candle_nn::LayerNorm::new(tensor(0), tensor(1), 1e-5);
        let x =
            candle_core::Tensor::new(&[[1f32, 2.0, 4.0, 8.0]], &candle_core::Device::Cpu).unwrap();
        let loss = norm.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let mut parameters = Parameters::default();
        for (name, var) in &vars {
            let parameter = Parameter::new(*name, var.as_tensor().clone().into()).unwrap();
            if let Some(grad) = grads.get(var) {
                let grad = view::read(&grad.clone().into(), <[f32]>::to_vec).unwrap();
                view::write(&parameter.grad, |g| {
                    g.copy_from_slice(&grad);
                    Ok(())
                })
                .unwrap();
            }
            parameters.push(parameter);
        }
        let message = check(&parameters).unwrap_err().message;
        assert!(message.starts_with("2 of 2"), "{message}");
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
