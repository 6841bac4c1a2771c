//! One post-norm transformer layer (HF `BertLayer`; Vaswani et al. 2017).
//!
//! A last layer whose reader pools first tokens may run for those rows only ([`Queries::First`]): keys and
//! values need every token, all else needs the asking rows. The result is exact.

use candle_core::{Result, bail};

use super::{
    Buffer, FeedForward, Loaded, MicroBatch, Norm, ParameterSource, Parameters, SelfAttention,
    Workspace,
};
use crate::kernels::activation::Activation;
use crate::kernels::attention::Queries;
use crate::kernels::device::Compute;
use crate::kernels::first_rows;
use crate::kernels::layer_norm::{Dropped, Residual};
use crate::kernels::tensor::Tensor;

/// Sizes and settings of one layer.
#[derive(Clone, Copy, Debug)]
pub struct EncoderLayerShape {
    /// D
    pub hidden_size: usize,
    /// I
    pub intermediate_size: usize,
    /// H, a divisor of D.
    pub num_heads: usize,
    /// Between the dense layers.
    pub activation: Activation,
    /// Of both normalisations.
    pub eps: f32,
    /// Of attention probabilities.
    pub attention_dropout: f32,
    /// Of both branches before they join the residual.
    pub hidden_dropout: f32,
    /// Number of the first of the layer's [`EncoderLayer::SITES`] dropout layers.
    pub first_site: u32,
}

/// What a family calls the parts of a layer, without `.weight` and `.bias`.
#[derive(Clone, Debug)]
pub struct Names {
    /// Projection of queries.
    pub query: String,
    /// Projection of keys.
    pub key: String,
    /// Projection of values.
    pub value: String,
    /// Projection of the heads' result.
    pub attention_output: String,
    /// Normalisation behind attention.
    pub attention_norm: String,
    /// First dense layer of the feed-forward half.
    pub intermediate: String,
    /// Second dense layer.
    pub output: String,
    /// Normalisation behind the feed-forward half.
    pub output_norm: String,
}

/// `m = LN(x + dropout(attention(x)))`, `y = LN(m + dropout(feed_forward(m)))`.
pub struct EncoderLayer {
    attention: SelfAttention,
    attention_norm: Norm,
    feed_forward: FeedForward,
    output_norm: Norm,
    hidden_dropout: f32,
    first_site: u32,
    /// [B, D]: the first tokens' rows of the input.
    first: Buffer,
    saved: Option<SavedInputs>,
}

/// Views of what the last forward read.
struct SavedInputs {
    /// [T, D], another layer's output buffer.
    x: Tensor,
    /// The rows of `x` that ask.
    rows: Tensor,
    /// Between the halves; as many rows as `rows`.
    middle: Tensor,
    queries: Queries,
}

impl EncoderLayer {
    /// Dropout layers of one encoder layer.
    pub const SITES: u32 = 3;

    /// Takes all parameters of the layer, in HF's order.
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        names: &Names,
        shape: &EncoderLayerShape,
        compute: &Compute,
    ) -> Loaded<Self, S> {
        let (width, eps) = (shape.hidden_size, shape.eps);
        Ok(Self {
            attention: SelfAttention::load(source, names, shape, compute)?,
            attention_norm: Norm::load(source, &names.attention_norm, width, eps, compute)?,
            feed_forward: FeedForward::load(source, names, shape, compute)?,
            output_norm: Norm::load(source, &names.output_norm, width, eps, compute)?,
            hidden_dropout: shape.hidden_dropout,
            first_site: shape.first_site,
            first: Buffer::new(compute, width),
            saved: None,
        })
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.saved = None;
        self.attention.release();
        self.attention_norm.release();
        self.feed_forward.release();
        self.output_norm.release();
        self.first.release();
    }

    /// Exchanges the memory of all but the output (and of the feed-forward half, which takes none without a backward)
    /// with a layer of the same shape. No backward can follow what either computed. In evaluation, where none does, one
    /// layer's memory serves all.
    pub fn swap_buffers(&mut self, other: &mut Self) {
        (self.saved, other.saved) = (None, None);
        self.attention.swap_buffers(&mut other.attention);
        self.attention_norm.swap_buffers(&mut other.attention_norm);
        self.output_norm.swap_buffers(&mut other.output_norm);
    }

    /// The layer's output for the rows that `queries` selects, [T, D] or [B, D], from `x` [T, D]. A backward may
    /// follow if `keep`; until then the contents of `x` must stay.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &mut self,
        x: &Tensor,
        batch: &MicroBatch,
        queries: Queries,
        keep: bool,
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        let keys = batch.keys(queries);
        let rows = match queries {
            Queries::All => x.clone(),
            Queries::First => {
                let first = self.first.rows(batch.sequences())?;
                first_rows::gather(x, batch.cu_seqlens(), &first)?;
                first
            }
        };
        let branch = workspace.branch.rows(keys.len())?;
        let residual = |tensor, site| Residual {
            tensor,
            dropout: batch.dropout(self.hidden_dropout, self.first_site + site),
            keys,
        };
        self.attention.forward(x, &rows, batch, queries, &branch)?;
        let middle = self
            .attention_norm
            .forward(&branch, Some(&residual(&rows, 1)))?;
        self.feed_forward
            .forward(&middle, &branch, keep, workspace)?;
        let out = self
            .output_norm
            .forward(&branch, Some(&residual(&middle, 2)))?;
        self.saved = keep.then(|| SavedInputs {
            x: x.clone(),
            rows,
            middle,
            queries,
        });
        Ok(out)
    }

    /// Adds to the parameter gradients. Reads the gradient of the output from `workspace.hidden` (as many
    /// rows as the output had) and leaves that of the input [T, D] there.
    ///
    /// # Errors
    /// If there was no forward, or shapes do not fit it.
    pub fn backward(&mut self, batch: &MicroBatch, workspace: &mut Workspace) -> Result<()> {
        let Some(SavedInputs {
            x,
            rows,
            middle,
            queries,
        }) = self.saved.take()
        else {
            bail!("backward without forward")
        };
        let keys = batch.keys(queries);
        let d_middle = workspace.middle.rows(keys.len())?;
        let d_branch = workspace.branch.rows(keys.len())?;
        let dropped = |site| Dropped {
            d_x: &d_branch,
            dropout: batch.dropout(self.hidden_dropout, self.first_site + site),
            keys,
        };
        let d_out = workspace.hidden.rows(keys.len())?;
        self.output_norm
            .backward(&d_out, &d_middle, Some(&dropped(2)))?;
        self.feed_forward
            .backward(&d_branch, &middle, &d_middle, workspace)?;

        // From here on the output's gradient is used up, and its buffer takes the input's.
        let d_x = workspace.hidden.rows(batch.tokens())?;
        let d_rows = match queries {
            Queries::All => d_x.clone(),
            Queries::First => workspace.first.rows(keys.len())?,
        };
        self.attention_norm
            .backward(&d_middle, &d_rows, Some(&dropped(1)))?;
        self.attention.backward(
            &d_branch, &x, &rows, batch, queries, &d_rows, &d_x, workspace,
        )?;
        match queries {
            Queries::All => Ok(()),
            Queries::First => first_rows::scatter_add(&d_rows, batch.cu_seqlens(), &d_x),
        }
    }

    /// To be called after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// As [`super::Linear::weights_changed`].
    pub fn weights_changed(&self) -> Result<()> {
        self.attention.weights_changed()?;
        self.feed_forward.weights_changed()
    }

    /// Appends attention, its norm, feed-forward, its norm.
    pub fn parameters(&self, into: &mut Parameters) {
        self.attention.parameters(into);
        self.attention_norm.parameters(into);
        self.feed_forward.parameters(into);
        self.output_norm.parameters(into);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::device::Device;
    use crate::kernels::linear::Precision;
    use crate::kernels::view;
    use crate::layers::DropoutSeed;
    use crate::layers::testing::{
        NoiseSource, Oracle, assert_close, everywhere, in_f64, noise_rows, on_cpu, set,
    };

    const CU_SEQLENS: [u32; 4] = [0, 5, 6, 13];

    fn shape(activation: Activation) -> EncoderLayerShape {
        EncoderLayerShape {
            hidden_size: 12,
            intermediate_size: 20,
            num_heads: 3,
            activation,
            eps: 1e-5,
            attention_dropout: 0.2,
            hidden_dropout: 0.3,
            first_site: 4,
        }
    }

    fn names() -> Names {
        Names {
            query: "q".into(),
            key: "k".into(),
            value: "v".into(),
            attention_output: "o".into(),
            attention_norm: "1.LayerNorm".into(),
            intermediate: "i".into(),
            output: "f".into(),
            output_norm: "2.LayerNorm".into(),
        }
    }

    fn batch(device: &Device, dropout: bool) -> MicroBatch {
        let mut batch = MicroBatch::on(device);
        let seed = dropout.then_some(DropoutSeed { seed: 3, step: 8 });
        batch.set(&CU_SEQLENS, &[40, 7, 1000], 7, seed).unwrap();
        batch
    }

    /// Runs forward and backward of `Σ weights * out` and compares output, input gradient and parameter
    /// gradients with the oracle's.
    fn check(activation: Activation, queries: Queries, dropout: bool) {
        for compute in everywhere() {
            check_on(
                &compute,
                activation,
                queries,
                &batch(&compute.device, dropout),
            );
        }
    }

    fn check_on(compute: &Compute, activation: Activation, queries: Queries, batch: &MicroBatch) {
        let shape = shape(activation);
        let mut source = NoiseSource(compute.device.clone());
        let mut layer = EncoderLayer::load(&mut source, &names(), &shape, compute).unwrap();
        let mut parameters = Parameters::default();
        layer.parameters(&mut parameters);
        let x = noise_rows("x", batch.tokens(), shape.hidden_size);
        let weights = noise_rows("w", batch.keys(queries).len(), shape.hidden_size);

        let mut workspace = Workspace::new(compute, shape.hidden_size, shape.intermediate_size);
        let input = x.to_device(&compute.device).unwrap();
        let out = layer
            .forward(&input, batch, queries, true, &mut workspace)
            .unwrap();
        let d_out = workspace.hidden.rows(out.dim(0).unwrap()).unwrap();
        set(&d_out, &view::read(&weights, <[f32]>::to_vec).unwrap());
        layer.backward(batch, &mut workspace).unwrap();
        let d_x = workspace.hidden.rows(batch.tokens()).unwrap();

        let oracle = Oracle::new(&parameters);
        let x = Var::from_tensor(&in_f64(&x)).unwrap();
        let outs: Vec<candle_core::Tensor> = CU_SEQLENS
            .windows(2)
            .map(|w| {
                let (start, end) = (w[0] as usize, w[1] as usize);
                let x = x.narrow(0, start, end - start).unwrap();
                let keys = &batch.token_keys()[start..end];
                let out = oracle
                    .encoder_layer(&names(), &shape, &x, keys, batch)
                    .unwrap();
                match queries {
                    Queries::All => out,
                    Queries::First => out.narrow(0, 0, 1).unwrap(),
                }
            })
            .collect();
        let expected = candle_core::Tensor::cat(&outs, 0).unwrap();
        assert_close("output", &out, &expected);
        let loss = (expected * in_f64(&weights)).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert_close("input", &d_x, grads.get(&x).unwrap());
        oracle.assert_gradients(&grads, &parameters);
    }

    #[test]
    fn gradients_are_the_autograds_with_and_without_dropout() {
        check(Activation::Gelu, Queries::All, false);
        check(Activation::Gelu, Queries::All, true);
        check(Activation::GeluTanh, Queries::All, true);
        check(Activation::Relu, Queries::All, true);
    }

    #[test]
    fn first_tokens_alone_give_the_same_gradients() {
        check(Activation::Gelu, Queries::First, false);
        check(Activation::Gelu, Queries::First, true);
    }

    /// With bf16 activations the numbers are those of f32 within bf16's precision, and so are the gradients.
    #[test]
    fn bf16_stays_close_to_f32() {
        let shape = shape(Activation::Gelu);
        let run = |compute: &Compute| {
            let batch = batch(&compute.device, true);
            let mut source = NoiseSource(compute.device.clone());
            let mut layer = EncoderLayer::load(&mut source, &names(), &shape, compute).unwrap();
            let mut parameters = Parameters::default();
            layer.parameters(&mut parameters);
            let dtype = compute.storage();
            let rows = |salt| {
                noise_rows(salt, batch.tokens(), shape.hidden_size)
                    .to_dtype(dtype)
                    .unwrap()
                    .to_device(&compute.device)
                    .unwrap()
            };
            let mut workspace = Workspace::new(compute, shape.hidden_size, shape.intermediate_size);
            let out = layer
                .forward(&rows("x"), &batch, Queries::All, true, &mut workspace)
                .unwrap();
            let d_out = workspace.hidden.rows(batch.tokens()).unwrap();
            first_rows::cast(&rows("w"), &d_out).unwrap();
            let out = out.copy().unwrap();
            layer.backward(&batch, &mut workspace).unwrap();
            let d_x = workspace.hidden.rows(batch.tokens()).unwrap();
            let mut all = vec![("out".to_owned(), out), ("d_x".to_owned(), d_x)];
            all.extend(parameters.iter().map(|p| (p.name.clone(), p.grad.clone())));
            all
        };
        let numbers = |t: &Tensor| {
            let t = in_f64(t).flatten_all().unwrap();
            t.to_vec1::<f64>().unwrap()
        };
        let long = run(&on_cpu());
        let short = everywhere().map(|compute| {
            run(&Compute {
                precision: Precision::Bf16,
                ..compute
            })
        });
        for ((name, long), (_, short)) in short.iter().flat_map(|short| long.iter().zip(short)) {
            let (long, short) = (numbers(long), numbers(short));
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut long.iter().zip(&short).map(|(x, y)| x - y));
            // A key's bias does not change a softmax: its gradient is rounding errors only.
            let size = norm(&mut long.iter().copied()).max(0.5);
            assert!(off <= 0.02 * size, "{name}: {off} of {size}");
        }
    }

    #[test]
    fn backward_needs_a_forward() {
        let shape = shape(Activation::Gelu);
        let mut layer =
            EncoderLayer::load(&mut NoiseSource(Device::Cpu), &names(), &shape, &on_cpu()).unwrap();
        let mut workspace = Workspace::new(&on_cpu(), shape.hidden_size, shape.intermediate_size);
        let batch = batch(&Device::Cpu, false);
        assert!(layer.backward(&batch, &mut workspace).is_err());
    }
}
