//! What lies between a step's gradients and its update: mean loss, gradient norm, and the number that gradients are
//! multiplied by. On a GPU all three are computed there, and the update reads the last one there, so that the host need
//! not wait for one step before it starts the next.

pub mod cuda;

/// What is known of a step once its gradients are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measures {
    /// Mean over the step's samples.
    pub loss: f64,
    /// Global L2 norm before clipping.
    pub grad_norm: f64,
}

impl Measures {
    /// Whether an update may be made by these gradients.
    pub fn are_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// What clipping multiplies gradients by (`torch.nn.utils.clip_grad_norm_`); 1 if `max_norm` is 0, which turns
/// clipping off. `norm` must be finite: a step with another must not be taken.
pub fn coefficient(norm: f64, max_norm: f64) -> f32 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
    let coefficient = (max_norm / (norm + 1e-6)).min(1.0) as f32;
    coefficient
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::cuda::Clip;
    use super::*;
    use crate::kernels::cross_entropy::{Loss, cross_entropy};
    use crate::kernels::cuda::emulated;
    use crate::kernels::cuda::{Gpu, Table};
    use crate::kernels::device::Device;
    use crate::kernels::tensor::Tensor;
    use std::sync::Arc;

    fn losses(gpu: &Arc<Gpu>, logits: &[f32]) -> Loss {
        let device = Device::Gpu(gpu.clone());
        let logits = Tensor::from_slice(logits, (logits.len() / 2, 2), &device).unwrap();
        let labels = vec![0; logits.dims()[0]];
        cross_entropy(&logits, &labels, 0.0, None).unwrap()
    }

    fn table(gpu: &Arc<Gpu>, gradients: &[&[f32]]) -> (Table, Vec<Tensor>) {
        let device = Device::Gpu(gpu.clone());
        let tensors: Vec<Tensor> = gradients
            .iter()
            .map(|g| Tensor::from_slice(g, g.len(), &device).unwrap())
            .collect();
        let groups = tensors.iter().map(|tensor| ([tensor.clone()], []));
        (Table::new(gpu, groups).unwrap(), tensors)
    }

    #[test]
    fn a_gpu_measures_as_the_host() {
        let gpu = emulated::another();
        let long: Vec<f32> = (0..70_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let (gradients, _tensors) = table(&gpu, &[&long, &[3.0, -4.0]]);
        let clip = Clip::new(&gpu).unwrap();
        let batches = [vec![0.5f32, -1.0, 2.0, 0.0], vec![-3.0, 1.0]];
        for max_norm in [1.0, 0.0, 1e9] {
            let under_way = batches.iter().map(|logits| losses(&gpu, logits)).collect();
            let report = clip
                .measure(&gradients, under_way, 1.0 / 3.0, max_norm)
                .unwrap();
            let scale = clip.gate().read().unwrap();
            let measured = report.wait().unwrap();
            let squares: f64 = long.iter().map(|&x| f64::from(x).powi(2)).sum();
            let norm = (squares + 25.0).sqrt();
            assert!(
                (measured.grad_norm / norm - 1.0).abs() < 1e-12,
                "{measured:?}"
            );
            let loss: f64 = batches
                .iter()
                .map(|l| losses(&gpu, l).wait().unwrap())
                .sum();
            assert!(
                (measured.loss * 3.0 / loss - 1.0).abs() < 1e-12,
                "{measured:?}"
            );
            assert_eq!(scale, (coefficient(measured.grad_norm, max_norm), false));
        }
    }

    #[test]
    fn nothing_is_clipped_below_the_limit_or_without_one() {
        assert_eq!(coefficient(13.0, 20.0), 1.0);
        assert_eq!(coefficient(13.0, 0.0), 1.0);
        assert_eq!(coefficient(0.0, 1.0), 1.0);
        assert_eq!(coefficient(2.0, 1.0), 0.499_999_76);
    }

    #[test]
    fn reports_stay_apart_while_several_are_under_way() {
        let gpu = emulated::another();
        let clip = Clip::new(&gpu).unwrap();
        let steps: Vec<_> = (1..=5u8)
            .map(|n| {
                let (gradients, tensors) = table(&gpu, &[&[f32::from(n)]]);
                let report = clip.measure(&gradients, Vec::new(), 1.0, 1.0).unwrap();
                (f64::from(n), report, gradients, tensors)
            })
            .collect();
        for (n, report, ..) in steps {
            assert_eq!(report.wait().unwrap().grad_norm, n);
        }
    }

    #[test]
    fn the_gate_closes_at_the_first_number_that_is_not_finite_and_stays_closed() {
        let gpu = emulated::another();
        for bad in [f32::NAN, f32::INFINITY] {
            for (loss, gradient) in [(1.0, bad), (bad, 1.0)] {
                let clip = Clip::new(&gpu).unwrap();
                let (fine, _tensors) = table(&gpu, &[&[1.0]]);
                let (gradients, _tensors) = table(&gpu, &[&[1.0, gradient]]);
                clip.measure(&fine, vec![losses(&gpu, &[0.0, 1.0])], 1.0, 1.0)
                    .unwrap();
                assert!(!clip.gate().read().unwrap().1);
                let report = clip
                    .measure(&gradients, vec![losses(&gpu, &[0.0, loss])], 1.0, 1.0)
                    .unwrap();
                assert!(!report.wait().unwrap().are_finite(), "{loss} {gradient}");
                assert_eq!(clip.gate().read().unwrap(), (0.0, true));
                let after = clip.measure(&fine, Vec::new(), 1.0, 1.0).unwrap();
                assert!(after.wait().unwrap().are_finite());
                assert_eq!(clip.gate().read().unwrap(), (0.0, true));
            }
        }
    }

    #[test]
    fn tables_of_other_types_are_refused() {
        let gpu = emulated::another();
        let short = Tensor::zeros(3, DType::BF16, &Device::Gpu(gpu.clone())).unwrap();
        assert!(Table::new(&gpu, [([short], [])]).is_err());
    }
}
