//! Softmax cross-entropy with label smoothing, as transformers' `LabelSmoother`: an item's loss is
//! `(1-ε) nll + ε mean over classes of -log p`.

mod cuda;

use candle_core::{Result, bail};

use super::numbers::Numbers;
use super::rows::check_lens;
use super::view;
use crate::kernels::tensor::Tensor;

/// A sum of item losses, which a GPU may still be computing.
#[derive(Debug)]
pub enum Loss {
    /// It is known.
    Known(f64),
    /// It is under way.
    UnderWay(cuda::ItemLosses),
}

impl Loss {
    /// What a GPU may still be computing.
    pub fn under_way(&self) -> Option<&cuda::ItemLosses> {
        match self {
            Self::Known(_) => None,
            Self::UnderWay(losses) => Some(losses),
        }
    }

    /// The sum; waits for it.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn wait(self) -> Result<f64> {
        match self {
            Self::Known(loss) => Ok(loss),
            Self::UnderWay(losses) => losses.wait(),
        }
    }
}

/// Sum of item losses of `logits` [B, C]. With `gradient = (d_logits, scale)`, `d_logits` is overwritten with
/// the gradient of `scale *` that sum. Computed in f64: B and C are small, and the sum is what users see.
///
/// # Errors
/// If a label is not a class, or shapes do not fit.
pub fn cross_entropy<'a>(
    logits: &Tensor,
    labels: impl Into<Numbers<'a, u32>>,
    label_smoothing: f32,
    gradient: Option<(&Tensor, f32)>,
) -> Result<Loss> {
    let labels = labels.into();
    let (items, classes) = logits.dims2()?;
    check_lens("cross_entropy", items, &[labels.len()])?;
    if let Some(label) = labels.iter().find(|&&l| l as usize >= classes) {
        bail!("cross_entropy: label {label} is not below {classes}")
    }
    if let Some((d_logits, _)) = gradient {
        let len = logits.elem_count();
        check_lens("cross_entropy", len, &[d_logits.elem_count()])?;
    }
    if let Some(gpu) = logits.gpu() {
        let losses = cuda::cross_entropy(gpu, logits, labels, label_smoothing, gradient)?;
        return Ok(Loss::UnderWay(losses));
    }
    let labels = labels.host();
    let smoothing = f64::from(label_smoothing);
    let sum = view::read(logits, |logits| {
        let rows = logits.chunks_exact(classes).zip(labels);
        let Some((d_logits, scale)) = gradient else {
            return Ok(rows.map(|(x, &label)| item(x, label, smoothing).0).sum());
        };
        view::write(d_logits, |d_logits| {
            let mut sum = 0.0;
            for ((x, &label), d) in rows.zip(d_logits.chunks_exact_mut(classes)) {
                let (loss, log_sum) = item(x, label, smoothing);
                sum += loss;
                item_gradient(x, label, smoothing, log_sum, f64::from(scale), d);
            }
            Ok(sum)
        })
    })??;
    Ok(Loss::Known(sum))
}

/// (loss, log of the sum of exponentials) of one item.
fn item(x: &[f32], label: u32, smoothing: f64) -> (f64, f64) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    #[expect(clippy::cast_precision_loss, reason = "classes are few")]
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
    let nll = log_sum - f64::from(x[label as usize]);
    let smooth = if smoothing > 0.0 {
        smoothing * (log_sum - mean)
    } else {
        0.0
    };
    ((1.0 - smoothing) * nll + smooth, log_sum)
}

fn item_gradient(x: &[f32], label: u32, smoothing: f64, log_sum: f64, scale: f64, d: &mut [f32]) {
    #[expect(clippy::cast_precision_loss, reason = "classes are few")]
    let share = smoothing / x.len() as f64;
    for (class, (d, &x)) in d.iter_mut().zip(x).enumerate() {
        let hit = if class == label as usize {
            1.0 - smoothing
        } else {
            0.0
        };
        let gradient = scale * ((f64::from(x) - log_sum).exp() - hit - share);
        #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
        {
            *d = gradient as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kernels::cuda::emulated::devices;
    use crate::kernels::device::Device;

    use super::*;

    const LOGITS: [f32; 6] = [1.0, -2.0, 0.5, 0.0, 3.0, -1.0];
    const LABELS: [u32; 2] = [2, 1];

    fn tensor(x: &[f32]) -> Tensor {
        tensor_on(&Device::Cpu, x)
    }

    fn tensor_on(device: &Device, x: &[f32]) -> Tensor {
        Tensor::from_slice(x, (x.len() / 3, 3), device).unwrap()
    }

    /// Straight from the definition.
    fn reference(x: &[f64], epsilon: f64) -> f64 {
        let rows = x.chunks(3).zip(LABELS);
        rows.map(|(x, label)| {
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            let log_p: Vec<f64> = x.iter().map(|x| (x.exp() / sum).ln()).collect();
            -(1.0 - epsilon) * log_p[label as usize] - epsilon * log_p.iter().sum::<f64>() / 3.0
        })
        .sum()
    }

    #[test]
    fn loss_and_gradient_match_the_definition_and_its_differences() {
        for device in devices() {
            check(&device, 0.0);
            check(&device, 0.1);
        }
    }

    fn check(device: &Device, epsilon: f32) {
        {
            let (logits, d) = (tensor_on(device, &LOGITS), tensor_on(device, &[9.0; 6]));
            let loss = cross_entropy(&logits, &LABELS, epsilon, Some((&d, 0.25)));
            let loss = loss.unwrap().wait().unwrap();
            let x: Vec<f64> = LOGITS.iter().map(|&x| f64::from(x)).collect();
            assert!((loss - reference(&x, epsilon.into())).abs() < 1e-9);
            let alone = cross_entropy(&logits, &LABELS, epsilon, None).unwrap();
            let alone = alone.wait().unwrap();
            assert_eq!(loss, alone);
            for (i, d) in d.to_vec1::<f32>().unwrap().iter().enumerate() {
                let at = |h: f64| {
                    let mut x = x.clone();
                    x[i] += h;
                    reference(&x, epsilon.into())
                };
                let slope = 0.25 * (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((f64::from(*d) - slope).abs() < 1e-7, "{i}: {d} {slope}");
            }
        }
    }

    #[test]
    fn huge_logits_stay_finite_and_nan_shows() {
        for device in devices() {
            let logits = tensor_on(&device, &[1e4, -1e4, 0.0]);
            let loss = cross_entropy(&logits, &[0], 0.0, None).unwrap();
            assert_eq!(loss.wait().unwrap(), 0.0);
            let logits = tensor_on(&device, &[f32::NAN, 0.0, 0.0]);
            let loss = cross_entropy(&logits, &[1], 0.0, None).unwrap();
            assert!(loss.wait().unwrap().is_nan());
        }
    }

    #[test]
    fn a_label_that_is_no_class_is_refused() {
        assert!(cross_entropy(&tensor(&[0.0; 3]), &[3], 0.0, None).is_err());
        assert!(cross_entropy(&tensor(&[0.0; 3]), &[0, 0], 0.0, None).is_err());
    }
}
