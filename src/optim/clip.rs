//! Clipping by the global gradient norm: HF's `max_grad_norm`, `torch.nn.utils.clip_grad_norm_`.

use candle_core::Result;

use super::global_grad_norm;
use crate::kernels::clip::cuda::{Clip as GpuClip, Gate, Report};
use crate::kernels::clip::{self, Measures};
use crate::kernels::cross_entropy::Loss;
use crate::layers::Parameters;

/// Measures steps and clips their gradients.
#[derive(Debug)]
pub struct Clip {
    max_norm: f64,
    gpu: Option<GpuClip>,
}

/// What gradients are multiplied by in an update.
#[derive(Clone, Debug)]
pub enum GradScale {
    /// This.
    Known(f32),
    /// What a GPU will have found by then; nothing is updated if loss or norm is not finite, now or before.
    OnGpu(Gate),
}

impl From<f32> for GradScale {
    fn from(scale: f32) -> Self {
        Self::Known(scale)
    }
}

/// Loss and norm of a step.
#[derive(Debug)]
pub enum Measured {
    /// These.
    Known(Measures),
    /// A GPU may still be at it.
    UnderWay(Report),
}

impl Measured {
    /// Whether nobody has to wait for them.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// Waits for them.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn wait(&self) -> Result<Measures> {
        match self {
            Self::Known(measures) => Ok(*measures),
            Self::UnderWay(report) => report.wait(),
        }
    }
}

impl Clip {
    /// Clips to `max_norm`, or not at all if that is 0.
    ///
    /// # Errors
    /// If memory is short.
    pub fn new(parameters: &Parameters, max_norm: f64) -> Result<Self> {
        let gpu = parameters.gpu().map(GpuClip::new).transpose()?;
        Ok(Self { max_norm, gpu })
    }

    /// The sum of a step's losses times `share`, the norm of its gradients, and what the update multiplies them by.
    ///
    /// # Errors
    /// If a gradient is not a contiguous f32 tensor, or the GPU fails.
    pub fn measure(
        &self,
        parameters: &Parameters,
        losses: Vec<Loss>,
        share: f64,
    ) -> Result<(Measured, GradScale)> {
        if let (Some(gpu), Some(table)) = (&self.gpu, parameters.table()?) {
            let report = gpu.measure(table, losses, share, self.max_norm)?;
            return Ok((
                Measured::UnderWay(report),
                GradScale::OnGpu(gpu.gate().clone()),
            ));
        }
        let grad_norm = global_grad_norm(parameters)?;
        let losses = losses.into_iter().map(Loss::wait);
        let loss = losses.sum::<Result<f64>>()? * share;
        let measures = Measures { loss, grad_norm };
        let scale = clip::coefficient(grad_norm, self.max_norm);
        Ok((Measured::Known(measures), GradScale::Known(scale)))
    }
}

#[cfg(test)]
mod tests {
    use crate::kernels::device::Device;
    use crate::kernels::tensor::Tensor;
    use crate::kernels::view;
    use crate::layers::Parameter;

    use super::*;

    /// torch 2.15: `a.grad = [3, 4]; b.grad = [12]; clip_grad_norm_([a, b], 1.0)` returns 13 and leaves
    /// a.grad = [0.2307692170, 0.3076922894], b.grad = [0.9230768681].
    #[test]
    fn clipping_is_that_of_torch() {
        let mut parameters = Parameters::default();
        for (name, grad) in [("a", vec![3.0f32, 4.0]), ("b", vec![12.0])] {
            let value = Tensor::from_slice(&grad, grad.len(), &Device::Cpu).unwrap();
            let parameter = Parameter::new(name, value).unwrap();
            view::write(&parameter.grad, |g| {
                g.copy_from_slice(&grad);
                Ok(())
            })
            .unwrap();
            parameters.push(parameter);
        }
        let scale = |max_norm| {
            let clip = Clip::new(&parameters, max_norm).unwrap();
            let losses = vec![Loss::Known(1.0), Loss::Known(2.0)];
            let (measured, scale) = clip.measure(&parameters, losses, 0.5).unwrap();
            let Measures { loss, grad_norm } = measured.wait().unwrap();
            assert_eq!((loss, grad_norm), (1.5, 13.0));
            match scale {
                GradScale::Known(scale) => scale,
                GradScale::OnGpu(_) => panic!("there is no GPU"),
            }
        };
        assert_eq!(3.0 * scale(1.0), 0.230_769_22);
        assert_eq!(4.0 * scale(1.0), 0.307_692_3);
        assert_eq!(12.0 * scale(1.0), 0.923_076_87);
        assert_eq!(scale(20.0), 1.0);
        assert_eq!(scale(0.0), 1.0);
    }
}
