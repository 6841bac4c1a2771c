//! The activations an HF config can name in `hidden_act`, forward and backward.

mod cuda;

use std::sync::Arc;

use candle_core::Result;

use super::cpu::Cpu;
use super::cuda::Gpu;
use super::gelu::{gelu, gelu_backward, gelu_both, gelu_tanh, gelu_tanh_backward};
use super::rows::{check_lens, for_blocks};
use super::{profile, view};
use crate::kernels::tensor::Tensor;

/// Elements of one task.
const BLOCK: usize = 8192;

/// A function applied to every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Names accepted in `hidden_act`.
    pub const NAMES: &[&str] = &[
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "relu",
        "tanh",
    ];

    /// By the name in `hidden_act` (transformers' `activations.py`, `ACT2FN`).
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    /// `out = f(x)`, of one shape.
    ///
    /// # Errors
    /// If shapes differ.
    pub fn forward(self, x: &Tensor, out: &Tensor) -> Result<()> {
        if let Some(gpu) = x.gpu() {
            return cuda::forward(gpu, self, x, out);
        }
        let _op = profile::op("activation", 0, 8 * x.elem_count());
        run(x, out, |cpu, x, out| {
            out.copy_from_slice(x);
            self.apply(cpu, out);
        })
    }

    /// `d *= f'(x)`: turns the gradient of the output into that of the input, in place.
    ///
    /// # Errors
    /// If shapes differ.
    pub fn backward(self, x: &Tensor, d: &Tensor) -> Result<()> {
        if let Some(gpu) = x.gpu() {
            return cuda::backward(gpu, self, x, d, None);
        }
        let _op = profile::op("activation backward", 0, 12 * x.elem_count());
        run(x, d, |cpu, x, d| self.apply_backward(cpu, x, d))
    }

    /// [`Self::backward`], and `out = f(x)` again, on a GPU.
    ///
    /// # Errors
    /// If shapes differ.
    pub(super) fn backward_again(
        self,
        gpu: &Arc<Gpu>,
        x: &Tensor,
        d: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        cuda::backward(gpu, self, x, d, Some(out))
    }

    /// `x = f(x)`.
    pub(super) fn apply(self, cpu: Cpu, x: &mut [f32]) {
        match self {
            Self::Gelu => gelu(cpu, x),
            Self::GeluTanh => gelu_tanh(cpu, x),
            Self::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
            Self::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
        }
    }

    /// [`Self::backward`] and then `x = f(x)`, on slices of one length.
    pub(super) fn apply_both(self, cpu: Cpu, x: &mut [f32], d: &mut [f32]) {
        if self == Self::Gelu {
            return gelu_both(cpu, x, d);
        }
        self.apply_backward(cpu, x, d);
        self.apply(cpu, x);
    }

    /// [`Self::backward`] on slices of one length.
    fn apply_backward(self, cpu: Cpu, x: &[f32], d: &mut [f32]) {
        match self {
            Self::Gelu => gelu_backward(cpu, x, d),
            Self::GeluTanh => gelu_tanh_backward(cpu, x, d),
            Self::Relu => zip(x, d, |x, d| if x > 0.0 { d } else { 0.0 }),
            Self::Tanh => zip(x, d, |x, d| d * (1.0 - x.tanh() * x.tanh())),
        }
    }
}

fn zip(x: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x, *y);
    }
}

fn run(x: &Tensor, y: &Tensor, op: impl Fn(Cpu, &[f32], &mut [f32]) + Sync) -> Result<()> {
    let cpu = Cpu::best();
    view::read(x, |x| {
        view::write(y, |y| {
            check_lens("activation", x.len(), &[y.len()])?;
            for_blocks(x.len().div_ceil(BLOCK), [(y, BLOCK)], |i, [y]| {
                op(cpu, &x[i * BLOCK..][..y.len()], y);
            });
            Ok(())
        })
    })?
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use crate::kernels::cuda::emulated::{device, devices};
    use crate::kernels::device::Device;

    use super::*;

    /// Backward against central differences of the forward, over more than one block.
    #[test]
    fn every_named_activation_has_the_derivative_of_its_forward() {
        for device in devices() {
            for &name in Activation::NAMES {
                check_slopes(name, &device);
            }
        }
    }

    fn check_slopes(name: &str, device: &Device) {
        let activation = Activation::from_name(name).unwrap();
        let at = |shift: f32| {
            let x: Vec<f32> = (0..9001)
                .map(|i| (i as f32 - 4500.5) * 1e-3 + shift)
                .collect();
            Tensor::from_vec(x, 9001, device).unwrap()
        };
        let value = |shift| {
            let (x, y) = (at(shift), at(0.0));
            activation.forward(&x, &y).unwrap();
            y.to_vec1::<f32>().unwrap()
        };
        let h = 1.0 / 256.0;
        let d = Tensor::full(1.0, 9001, device).unwrap();
        activation.backward(&at(0.0), &d).unwrap();
        let (up, down) = (value(h), value(-h));
        for (i, d) in d.to_vec1::<f32>().unwrap().iter().enumerate() {
            let kink = name == "relu" && i.abs_diff(4500) < 8;
            let slope = (up[i] - down[i]) / (2.0 * h);
            assert!(kink || (d - slope).abs() < 3e-4, "{name} {i} on {device:?}");
        }
    }

    /// Values and slopes are the CPU's, in f32 and in bf16.
    #[test]
    fn devices_agree() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.01).collect();
        for &name in Activation::NAMES {
            let activation = Activation::from_name(name).unwrap();
            let run = |device: &Device, dtype| {
                let x = Tensor::from_slice(&x, x.len(), &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap().to_device(device).unwrap();
                let out = x.zeros_like().unwrap();
                let d = x.copy().unwrap();
                activation.forward(&x, &out).unwrap();
                activation.backward(&x, &d).unwrap();
                [out, d].map(|t| {
                    let t = t.to_dtype(DType::F32).unwrap();
                    t.to_vec1::<f32>().unwrap()
                })
            };
            let expected = run(&Device::Cpu, DType::F32).concat();
            for (dtype, share) in [(DType::F32, 1e-5), (DType::BF16, 0.02)] {
                let actual = run(&device(), dtype).concat();
                for (a, e) in actual.iter().zip(&expected) {
                    assert!(
                        (a - e).abs() <= share * e.abs().max(0.3),
                        "{name} {dtype:?}: {a} {e}"
                    );
                }
            }
        }
    }

    /// What a layer does not keep: the value that its backward pass computes again, and the gradient beside it.
    #[test]
    fn values_again_are_those_of_the_forward_to_the_bit() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.01).collect();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for &name in Activation::NAMES {
            let activation = Activation::from_name(name).unwrap();
            for cpu in Cpu::each() {
                let (mut value, mut again) = (x.clone(), x.clone());
                let (mut alone, mut d) = (vec![0.7; x.len()], vec![0.7; x.len()]);
                activation.apply(cpu, &mut value);
                activation.apply_backward(cpu, &x, &mut alone);
                activation.apply_both(cpu, &mut again, &mut d);
                assert_eq!(bits(&again), bits(&value), "{name} {cpu:?}");
                assert_eq!(bits(&d), bits(&alone), "{name} {cpu:?}");
            }
            for dtype in [DType::F32, DType::BF16] {
                let x = Tensor::from_slice(&x, x.len(), &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap().to_device(&device()).unwrap();
                let [value, again] = [0; 2].map(|_| x.zeros_like().unwrap());
                let [alone, d] = [0; 2].map(|_| x.copy().unwrap());
                activation.forward(&x, &value).unwrap();
                activation.backward(&x, &alone).unwrap();
                let gpu = x.gpu().unwrap();
                activation.backward_again(gpu, &x, &d, &again).unwrap();
                let f32s = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&f32s(&again)), bits(&f32s(&value)), "{name} {dtype:?}");
                assert_eq!(bits(&f32s(&d)), bits(&f32s(&alone)), "{name} {dtype:?}");
            }
        }
    }

    #[test]
    fn shapes_must_agree() {
        let x = Tensor::full(1.0, 2, &Device::Cpu).unwrap();
        let y = Tensor::full(1.0, 1, &Device::Cpu).unwrap();
        assert!(Activation::Relu.forward(&x, &y).is_err());
    }
}
