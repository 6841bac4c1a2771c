//! The oracle of gradient tests: the same layers written once more, plainly, in f64 on candle's autograd
//! over differentiable ops, one sequence at a time; and parameters out of thin air to compare them with.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Var};
use candle_nn::ops::{layer_norm_slow, softmax};

use super::{EncoderLayerShape, MicroBatch, Names, Parameter, ParameterSource, Parameters};
use crate::kernels::activation::Activation;
use crate::kernels::device::{Compute, Device};
use crate::kernels::dropout::{Dropout, attention_key};
use crate::kernels::linear::Precision;
use crate::kernels::{cuda, tensor};

/// Numbers in [-1, 1) that depend on `salt` and their index only.
pub fn noise(salt: &str, len: usize) -> Vec<f32> {
    let start = salt.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)
    });
    (1..=len as u64)
        .map(|i| {
            let mut x = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (x >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A noise matrix.
pub fn noise_rows(salt: &str, rows: usize, width: usize) -> tensor::Tensor {
    tensor::Tensor::from_vec(noise(salt, rows * width), (rows, width), &Device::Cpu).unwrap()
}

/// f32 on the CPU.
pub fn on_cpu() -> Compute {
    Precision::F32.into()
}

/// All kinds of device, in f32: a test's body runs on each.
pub fn everywhere() -> [Compute; 2] {
    [Device::Cpu, cuda::emulated::device()].map(|device| Compute {
        device,
        precision: Precision::F32,
    })
}

/// Overwrites a tensor.
pub fn set(tensor: &tensor::Tensor, values: &[f32]) {
    crate::kernels::view::write(tensor, |x| {
        x.copy_from_slice(values);
        Ok(())
    })
    .unwrap();
}

/// Gives every layer noise on this device, with the scale of normalisations around 1.
pub struct NoiseSource(pub Device);

impl ParameterSource for NoiseSource {
    type Error = candle_core::Error;

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Parameter> {
        let scale = name.contains("LayerNorm.weight");
        let values = noise(name, shape.iter().product());
        let values = values
            .iter()
            .map(|x| if scale { 1.0 + 0.3 * x } else { 0.4 * x });
        Parameter::new(
            name,
            tensor::Tensor::from_vec(values.collect(), shape, &self.0)?,
        )
    }
}

/// f64 copies of parameters, as variables of candle's autograd.
pub struct Oracle(BTreeMap<String, Var>);

impl Oracle {
    pub fn new(parameters: &Parameters) -> Self {
        let var = |p: &Parameter| Var::from_tensor(&in_f64(&p.value)).unwrap();
        Self(
            parameters
                .iter()
                .map(|p| (p.name.clone(), var(p)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    pub fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let w = self.get(&format!("{name}.weight")).t()?;
        x.matmul(&w)?
            .broadcast_add(self.get(&format!("{name}.bias")))
    }

    pub fn norm(&self, name: &str, x: &Tensor, eps: f32) -> Result<Tensor> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        layer_norm_slow(x, self.get(&weight), self.get(&bias), eps)
    }

    /// One sequence's embeddings.
    pub fn embeddings(&self, name: &str, ids: &[u32], types: &[u32], eps: f32) -> Result<Tensor> {
        let rows = |table: &str, ids: &[u32]| {
            let table = self.get(&format!("{name}.{table}_embeddings.weight"));
            table.index_select(&Tensor::new(ids, &candle_core::Device::Cpu)?, 0)
        };
        let positions: Vec<u32> = (0..).take(ids.len()).collect();
        let sum =
            ((rows("word", ids)? + rows("position", &positions)?)? + rows("token_type", types)?)?;
        self.norm(&format!("{name}.LayerNorm"), &sum, eps)
    }

    /// One sequence through one layer; `keys` name its tokens.
    pub fn encoder_layer(
        &self,
        names: &Names,
        shape: &EncoderLayerShape,
        x: &Tensor,
        keys: &[u64],
        batch: &MicroBatch,
    ) -> Result<Tensor> {
        let dropout = |p, site| batch.dropout(p, shape.first_site + site);
        let masked = |x: &Tensor, site| {
            x * factors(dropout(shape.hidden_dropout, site), keys, shape.hidden_size)?
        };
        let (len, heads) = (keys.len(), shape.num_heads);
        let size = shape.hidden_size / heads;
        let split = |name| {
            let rows = self.linear(name, x)?.reshape((len, heads, size))?;
            rows.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (
            split(&names.query)?,
            split(&names.key)?,
            split(&names.value)?,
        );
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / (size as f64).sqrt())?;
        let masks: Vec<Tensor> = (0..heads as u32)
            .map(|head| {
                let keys: Vec<u64> = keys.iter().map(|&key| attention_key(key, head)).collect();
                factors(dropout(shape.attention_dropout, 0), &keys, len)
            })
            .collect::<Result<_>>()?;
        let p = (softmax(&scores, 2)? * Tensor::stack(&masks, 0)?)?;
        let context = p
            .matmul(&v)?
            .transpose(0, 1)?
            .reshape((len, shape.hidden_size))?;
        let branch = masked(&self.linear(&names.attention_output, &context)?, 1)?;
        let middle = self.norm(&names.attention_norm, &(x + branch)?, shape.eps)?;
        let inner = self.linear(&names.intermediate, &middle)?;
        let inner = match shape.activation {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
            Activation::Tanh => inner.tanh()?,
        };
        let branch = masked(&self.linear(&names.output, &inner)?, 2)?;
        self.norm(&names.output_norm, &(middle + branch)?, shape.eps)
    }

    /// Asserts that every parameter's gradient is the autograd's.
    pub fn assert_gradients(&self, grads: &GradStore, parameters: &Parameters) {
        for parameter in parameters {
            let expected = grads.get(&self.0[&parameter.name]);
            let expected = expected.unwrap_or_else(|| panic!("{} has no gradient", parameter.name));
            assert_close(&parameter.name, &parameter.grad, expected);
        }
    }
}

/// Dropout factors of rows, [keys, width], as constants.
pub fn factors(dropout: Dropout, keys: &[u64], width: usize) -> Result<Tensor> {
    let mut all = vec![1f32; keys.len() * width];
    for (row, &key) in all.chunks_exact_mut(width).zip(keys) {
        dropout.factors(key, row);
    }
    Tensor::from_vec(all, (keys.len(), width), &candle_core::Device::Cpu)?.to_dtype(DType::F64)
}

/// A copy for the oracle.
pub fn in_f64(tensor: &tensor::Tensor) -> Tensor {
    tensor.to_candle().unwrap().to_dtype(DType::F64).unwrap()
}

/// Asserts that two tensors of one shape differ by at most 1e-5 of the largest element (or of 0.1, where
/// all elements nearly cancel).
pub fn assert_close(what: &str, a: &tensor::Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let flat = |t: &Tensor| {
        let t = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        t.to_vec1::<f64>().unwrap()
    };
    let (a, b) = (flat(&a.to_candle().unwrap()), flat(b));
    let scale = b.iter().fold(0.1, |m: f64, x| m.max(x.abs()));
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let off = (x - y).abs() / scale;
        // Written so that NaN fails too.
        assert!(off <= 1e-5, "{what}[{i}]: {x} instead of {y}");
    }
}
