//! Word, position and token type embeddings, summed, normalised, dropped out (HF `BertEmbeddings`).

use candle_core::Result;

use super::{Buffer, Loaded, MicroBatch, Norm, Parameter, ParameterSource, Parameters};
use crate::kernels::attention::Queries;
use crate::kernels::device::Compute;
use crate::kernels::embedding::{self, Scatter};
use crate::kernels::first_rows;
use crate::kernels::numbers::Array;
use crate::kernels::tensor::Tensor;

/// Sizes of [`Embeddings`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingsShape {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// D
    pub hidden_size: usize,
    /// Of the normalisation.
    pub eps: f32,
    /// Of the output's dropout.
    pub dropout: f32,
    /// Number of the dropout layer.
    pub site: u32,
}

/// `dropout(LN(word + position + token type))`.
pub struct Embeddings {
    shape: EmbeddingsShape,
    word: Parameter,
    position: Parameter,
    token_type: Parameter,
    norm: Norm,
    /// [T, D]: the sum, then its gradient.
    sum: Buffer,
    /// [T] each: what the forward gathers from, and the backward scatters to.
    input_ids: Array<u32>,
    token_type_ids: Array<u32>,
    scatter: Scatter,
}

impl Embeddings {
    /// Takes the tables and the norm under `name`.
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        name: &str,
        shape: EmbeddingsShape,
        compute: &Compute,
    ) -> Loaded<Self, S> {
        let width = shape.hidden_size;
        let mut table = |table: &str, rows| {
            let name = format!("{name}.{table}_embeddings.weight");
            let table = source.parameter(&name, &[rows, width])?;
            Ok::<_, S::Error>(table.by_rows()?)
        };
        let word = table("word", shape.vocab_size)?;
        let position = table("position", shape.max_positions)?;
        let token_type = table("token_type", shape.type_vocab_size)?;
        Ok(Self {
            shape,
            word,
            position,
            token_type,
            norm: Norm::load(
                source,
                &format!("{name}.LayerNorm"),
                width,
                shape.eps,
                compute,
            )?,
            sum: Buffer::new(&compute.in_f32(), width),
            input_ids: Array::default(),
            token_type_ids: Array::default(),
            scatter: Scatter::default(),
        })
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.norm.release();
        self.sum.release();
    }

    /// [T, D] from ids [T] each.
    ///
    /// # Errors
    /// If an id is not in its table.
    pub fn forward(
        &mut self,
        input_ids: &[u32],
        token_type_ids: &[u32],
        batch: &MicroBatch,
    ) -> Result<Tensor> {
        let sum = self.sum.rows(batch.tokens())?;
        let tables = [
            &self.word.value,
            &self.position.value,
            &self.token_type.value,
        ];
        let device = sum.device();
        self.input_ids.set(input_ids.iter().copied(), &device)?;
        self.token_type_ids
            .set(token_type_ids.iter().copied(), &device)?;
        let ids = [
            self.input_ids.all(),
            batch.positions(),
            self.token_type_ids.all(),
        ];
        embedding::gather_sum(tables, ids, &sum)?;
        let out = self.norm.forward(&sum, None)?;
        self.drop_out(&out, batch)?;
        Ok(out)
    }

    /// Adds to the parameter gradients. `d_out` [T, D] is used up.
    ///
    /// # Errors
    /// If shapes do not fit the last forward's.
    pub fn backward(&mut self, d_out: &Tensor, batch: &MicroBatch) -> Result<()> {
        self.drop_out(d_out, batch)?;
        let d_sum = self.sum.rows(batch.tokens())?;
        self.norm.backward(d_out, &d_sum, None)?;
        for (ids, table) in [
            (&*self.input_ids, &self.word),
            (batch.positions().host(), &self.position),
            (&self.token_type_ids, &self.token_type),
        ] {
            table.rows.iter().for_each(|rows| rows.mark(ids));
            embedding::scatter_add(&d_sum, ids, &mut self.scatter, &table.grad)?;
        }
        Ok(())
    }

    fn drop_out(&self, rows: &Tensor, batch: &MicroBatch) -> Result<()> {
        let dropout = batch.dropout(self.shape.dropout, self.shape.site);
        first_rows::drop_out(rows, dropout, batch.keys(Queries::All))
    }

    /// Appends tables, then the norm.
    pub fn parameters(&self, into: &mut Parameters) {
        into.extend([&self.word, &self.position, &self.token_type].map(Parameter::clone));
        self.norm.parameters(into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::device::Device;
    use crate::layers::DropoutSeed;
    use crate::layers::testing::{
        NoiseSource, Oracle, assert_close, everywhere, factors, in_f64, noise_rows, on_cpu,
    };

    #[test]
    fn gradients_with_dropout_are_the_autograds() {
        everywhere().iter().for_each(check_gradients);
    }

    fn check_gradients(compute: &Compute) {
        let device = &compute.device;
        let shape = EmbeddingsShape {
            vocab_size: 9,
            max_positions: 4,
            type_vocab_size: 2,
            hidden_size: 6,
            eps: 1e-5,
            dropout: 0.3,
            site: 2,
        };
        let mut source = NoiseSource(device.clone());
        let mut layer = Embeddings::load(&mut source, "e", shape, compute).unwrap();
        let mut parameters = Parameters::default();
        layer.parameters(&mut parameters);
        let mut batch = MicroBatch::on(device);
        let seed = Some(DropoutSeed { seed: 1, step: 2 });
        batch.set(&[0, 4, 7], &[5, 6], 4, seed).unwrap();
        let (ids, types) = ([1, 8, 1, 3, 1, 0, 8], [0, 0, 1, 1, 0, 1, 1]);

        let out = layer.forward(&ids, &types, &batch).unwrap().copy().unwrap();
        let weights = noise_rows("w", 7, 6);
        layer
            .backward(&weights.copy().unwrap().to_device(device).unwrap(), &batch)
            .unwrap();

        let oracle = Oracle::new(&parameters);
        let rows: Vec<candle_core::Tensor> = [0..4, 4..7]
            .map(|at| {
                oracle
                    .embeddings("e", &ids[at.clone()], &types[at], 1e-5)
                    .unwrap()
            })
            .into();
        let masks = factors(batch.dropout(0.3, 2), &batch.token_keys(), 6).unwrap();
        let expected = (candle_core::Tensor::cat(&rows, 0).unwrap() * masks).unwrap();
        assert_close("output", &out, &expected);
        let loss = (expected * in_f64(&weights)).unwrap().sum_all().unwrap();
        oracle.assert_gradients(&loss.backward().unwrap(), &parameters);
    }

    #[test]
    fn ids_outside_the_tables_are_refused() {
        let shape = EmbeddingsShape {
            vocab_size: 2,
            max_positions: 2,
            type_vocab_size: 1,
            hidden_size: 2,
            eps: 1e-5,
            dropout: 0.0,
            site: 0,
        };
        let mut layer =
            Embeddings::load(&mut NoiseSource(Device::Cpu), "e", shape, &on_cpu()).unwrap();
        let mut batch = MicroBatch::default();
        batch.set(&[0, 1], &[0], 2, None).unwrap();
        assert!(layer.forward(&[2], &[0], &batch).is_err());
        assert!(layer.forward(&[1], &[1], &batch).is_err());
        assert!(layer.forward(&[1, 1], &[0, 0], &batch).is_err());
    }
}
