//! Multi-head self-attention with its four projections (HF `BertSelfAttention` and the dense half of
//! `BertSelfOutput`).

use candle_core::Result;

use super::{
    Buffer, EncoderLayerShape, Linear, Loaded, MicroBatch, Names, ParameterSource, Parameters,
    Workspace,
};
use crate::kernels::attention::{Attention, Queries};
use crate::kernels::device::Compute;
use crate::kernels::linear::Precision;
use crate::kernels::tensor::Tensor;

/// `output(attention(query(x), key(x), value(x)))`.
pub struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    num_heads: usize,
    dropout: f32,
    site: u32,
    precision: Precision,
    /// [T, D] each; `q` and `context` [B, D] when only first tokens ask.
    q: Buffer,
    k: Buffer,
    v: Buffer,
    context: Buffer,
    /// [T, H]: log of the sum of exponentials of each query's scores.
    lse: Buffer,
}

impl SelfAttention {
    /// Takes the four projections.
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        names: &Names,
        shape: &EncoderLayerShape,
        compute: &Compute,
    ) -> Loaded<Self, S> {
        let width = shape.hidden_size;
        let mut linear = |name: &str| Linear::load(source, name, width, width, compute);
        Ok(Self {
            query: linear(&names.query)?,
            key: linear(&names.key)?,
            value: linear(&names.value)?,
            output: linear(&names.attention_output)?,
            num_heads: shape.num_heads,
            dropout: shape.attention_dropout,
            site: shape.first_site,
            precision: compute.precision,
            q: Buffer::new(compute, width),
            k: Buffer::new(compute, width),
            v: Buffer::new(compute, width),
            context: Buffer::new(compute, width),
            lse: Buffer::new(&compute.in_f32(), shape.num_heads),
        })
    }

    fn attention<'a>(&self, batch: &'a MicroBatch, queries: Queries) -> Attention<'a> {
        Attention {
            cu_seqlens: batch.cu_seqlens(),
            token_keys: batch.token_keys(),
            num_heads: self.num_heads,
            dropout: batch.dropout(self.dropout, self.site),
            queries,
            precision: self.precision,
        }
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.buffers().into_iter().for_each(Buffer::release);
    }

    /// Exchanges memory with a layer of the same shape; what either saved is lost to it.
    pub fn swap_buffers(&mut self, other: &mut Self) {
        for (own, other) in self.buffers().into_iter().zip(other.buffers()) {
            std::mem::swap(own, other);
        }
    }

    fn buffers(&mut self) -> [&mut Buffer; 5] {
        [
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.context,
            &mut self.lse,
        ]
    }

    /// `out` from `x` [T, D]; `rows` are the rows of `x` that ask, [T, D] or [B, D] like `out`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &mut self,
        x: &Tensor,
        rows: &Tensor,
        batch: &MicroBatch,
        queries: Queries,
        out: &Tensor,
    ) -> Result<()> {
        let (tokens, asking) = (x.dim(0)?, rows.dim(0)?);
        let (q, k, v) = (
            self.q.rows(asking)?,
            self.k.rows(tokens)?,
            self.v.rows(tokens)?,
        );
        match queries {
            Queries::All => {
                Linear::forward_all(&[(&self.query, &q), (&self.key, &k), (&self.value, &v)], x)?;
            }
            Queries::First => {
                self.query.forward(rows, &q)?;
                Linear::forward_all(&[(&self.key, &k), (&self.value, &v)], x)?;
            }
        }
        let (context, lse) = (self.context.rows(asking)?, self.lse.rows(asking)?);
        self.attention(batch, queries)
            .forward(&q, &k, &v, &context, &lse)?;
        self.output.forward(&context, out)
    }

    /// Adds to the parameter gradients and to `d_rows`. When all tokens ask, `d_x` is `d_rows`; otherwise
    /// it is overwritten with the gradient that comes through keys and values.
    ///
    /// # Errors
    /// If shapes do not fit the last forward's.
    #[expect(clippy::too_many_arguments, reason = "an op's inputs and outputs")]
    pub fn backward(
        &mut self,
        d_out: &Tensor,
        x: &Tensor,
        rows: &Tensor,
        batch: &MicroBatch,
        queries: Queries,
        d_rows: &Tensor,
        d_x: &Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let (tokens, asking) = (x.dim(0)?, rows.dim(0)?);
        let (q, k, v) = (
            self.q.rows(asking)?,
            self.k.rows(tokens)?,
            self.v.rows(tokens)?,
        );
        let (context, lse) = (self.context.rows(asking)?, self.lse.rows(asking)?);
        let d_context = workspace.d_context.rows(asking)?;
        self.output.backward(d_out, &context, &d_context, false)?;

        let d_q = workspace.d_query.rows(asking)?;
        let (d_k, d_v) = (
            workspace.d_key.rows(tokens)?,
            workspace.d_value.rows(tokens)?,
        );
        self.attention(batch, queries)
            .backward(&d_context, &q, &k, &v, &context, &lse, &d_q, &d_k, &d_v)?;

        let (query, key, value) = ((&self.query, &d_q), (&self.key, &d_k), (&self.value, &d_v));
        match queries {
            Queries::All => Linear::backward_all(&[query, key, value], x, d_x, true),
            Queries::First => {
                Linear::backward_all(&[query], rows, d_rows, true)?;
                Linear::backward_all(&[key, value], x, d_x, false)
            }
        }
    }

    /// To be called after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// As [`Linear::weights_changed`].
    pub fn weights_changed(&self) -> Result<()> {
        [&self.query, &self.key, &self.value, &self.output]
            .into_iter()
            .try_for_each(Linear::weights_changed)
    }

    /// Appends query, key, value, output.
    pub fn parameters(&self, into: &mut Parameters) {
        for linear in [&self.query, &self.key, &self.value, &self.output] {
            linear.parameters(into);
        }
    }
}
