//! BERT (Devlin et al. 2018): embeddings and a stack of post-norm layers, with HF's tensor names
//! (<https://github.com/huggingface/transformers/blob/main/src/transformers/models/bert/modeling_bert.py>).

use candle_core::Result;

use super::{BertConfig, Input, ModelError};
use crate::kernels::attention::Queries;
use crate::kernels::device::Compute;
use crate::kernels::tensor::Tensor;
use crate::layers::{
    DropoutSeed, Embeddings, EmbeddingsShape, EncoderLayer, EncoderLayerShape, MicroBatch, Names,
    ParameterSource, Parameters, Workspace,
};

/// The encoder, without pooler.
pub struct Bert {
    config: BertConfig,
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    batch: MicroBatch,
    workspace: Workspace,
    /// Rows of the last forward's output.
    output_rows: usize,
}

impl Bert {
    /// What HF puts before the encoder's names in a model with a head.
    pub const PREFIX: &'static str = "bert.";

    /// Takes all parameters.
    ///
    /// # Errors
    /// The source's, and a config that was not checked.
    pub fn load<S>(
        source: &mut S,
        config: BertConfig,
        compute: &Compute,
    ) -> std::result::Result<Self, ModelError>
    where
        S: ParameterSource<Error = ModelError>,
    {
        let Some(activation) = config.activation() else {
            let found = &config.hidden_act;
            return Err(ModelError::Invalid(format!(
                "hidden_act {found:?} is not supported"
            )));
        };
        let shape = EncoderLayerShape {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_heads: config.num_attention_heads,
            activation,
            eps: config.layer_norm_eps,
            attention_dropout: config.attention_probs_dropout_prob,
            hidden_dropout: config.hidden_dropout_prob,
            first_site: 1,
        };
        let embeddings = Embeddings::load(
            source,
            "bert.embeddings",
            embeddings_shape(&config),
            compute,
        )?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for (index, site) in
            (0..config.num_hidden_layers).zip((1..).step_by(EncoderLayer::SITES as usize))
        {
            let shape = EncoderLayerShape {
                first_site: site,
                ..shape
            };
            layers.push(EncoderLayer::load(
                source,
                &layer_names(index),
                &shape,
                compute,
            )?);
        }
        Ok(Self {
            workspace: Workspace::new(compute, config.hidden_size, config.intermediate_size),
            config,
            embeddings,
            layers,
            batch: MicroBatch::on(&compute.device),
            output_rows: 0,
        })
    }

    /// What it was made from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The micro-batch of the last forward.
    pub fn batch(&self) -> &MicroBatch {
        &self.batch
    }

    /// Number of the first dropout layer that is not the encoder's.
    pub fn next_site(&self) -> u32 {
        let layers = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        layers.saturating_mul(EncoderLayer::SITES).saturating_add(1)
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.embeddings.release();
        self.layers.iter_mut().for_each(EncoderLayer::release);
        self.workspace.release();
    }

    /// The last hidden states of the rows that `queries` selects, [T, D] or [B, D], of the precision's type of
    /// element; without a seed nothing is dropped. [`Bert::backward`] may follow.
    ///
    /// # Errors
    /// If the input's lengths do not agree, a sequence is too long or an id unknown.
    pub fn forward(
        &mut self,
        input: &Input,
        dropout: Option<DropoutSeed>,
        queries: Queries,
    ) -> Result<Tensor> {
        self.run(input, dropout, queries, true)
    }

    /// The same without dropout, and without keeping what a backward would need.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn evaluate(&mut self, input: &Input, queries: Queries) -> Result<Tensor> {
        self.run(input, None, queries, false)
    }

    fn run(
        &mut self,
        input: &Input,
        dropout: Option<DropoutSeed>,
        queries: Queries,
        keep: bool,
    ) -> Result<Tensor> {
        let max_positions = self.config.max_position_embeddings;
        self.batch.set(
            input.cu_seqlens,
            input.sequence_keys,
            max_positions,
            dropout,
        )?;
        let mut hidden =
            self.embeddings
                .forward(input.input_ids, input.token_type_ids, &self.batch)?;
        let last = self.layers.len().saturating_sub(1);
        for index in 0..self.layers.len() {
            let queries = if index == last { queries } else { Queries::All };
            let layer = &mut self.layers[index];
            hidden = layer.forward(&hidden, &self.batch, queries, keep, &mut self.workspace)?;
            if !keep {
                self.hand_on(index);
            }
        }
        self.output_rows = hidden.dim(0)?;
        Ok(hidden)
    }

    /// A layer's memory goes to the next one, the last one's to the first.
    fn hand_on(&mut self, index: usize) {
        let next = (index + 1) % self.layers.len();
        if let Ok([layer, next]) = self.layers.get_disjoint_mut([index, next]) {
            layer.swap_buffers(next);
        }
    }

    /// Where the gradient of the last forward's output belongs before [`Bert::backward`]: overwrite all.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn output_gradient(&mut self) -> Result<Tensor> {
        self.workspace.hidden.rows(self.output_rows)
    }

    /// Adds to all parameter gradients.
    ///
    /// # Errors
    /// If there was no forward.
    pub fn backward(&mut self) -> Result<()> {
        for layer in self.layers.iter_mut().rev() {
            layer.backward(&self.batch, &mut self.workspace)?;
        }
        let d_embeddings = self.workspace.hidden.rows(self.batch.tokens())?;
        self.embeddings.backward(&d_embeddings, &self.batch)
    }

    /// To be called after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// As [`crate::layers::Linear::weights_changed`].
    pub fn weights_changed(&self) -> Result<()> {
        self.layers
            .iter()
            .try_for_each(EncoderLayer::weights_changed)
    }

    /// Appends all parameters in HF's order.
    pub fn parameters(&self, into: &mut Parameters) {
        self.embeddings.parameters(into);
        for layer in &self.layers {
            layer.parameters(into);
        }
    }
}

fn embeddings_shape(config: &BertConfig) -> EmbeddingsShape {
    EmbeddingsShape {
        vocab_size: config.vocab_size,
        max_positions: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        hidden_size: config.hidden_size,
        eps: config.layer_norm_eps,
        dropout: config.hidden_dropout_prob,
        site: 0,
    }
}

/// HF's names of one layer.
pub(super) fn layer_names(index: usize) -> Names {
    let name = |part: &str| format!("bert.encoder.layer.{index}.{part}");
    Names {
        query: name("attention.self.query"),
        key: name("attention.self.key"),
        value: name("attention.self.value"),
        attention_output: name("attention.output.dense"),
        attention_norm: name("attention.output.LayerNorm"),
        intermediate: name("intermediate.dense"),
        output: name("output.dense"),
        output_norm: name("output.LayerNorm"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;
    use candle_transformers::models::bert as stock;
    use serde_json::json;

    use super::*;
    use crate::layers::testing::{assert_close, noise_rows, on_cpu, set};
    use crate::models::oracle::{TinyBert, fixture};
    use crate::models::{Checkpoint, read_config};

    fn load(dir: &std::path::Path) -> (Bert, Parameters) {
        let config = BertConfig::parse(&read_config(dir).unwrap()).unwrap();
        let mut checkpoint = Checkpoint::open(dir, Bert::PREFIX).unwrap();
        let bert = Bert::load(&mut checkpoint, config, &on_cpu()).unwrap();
        let mut parameters = Parameters::default();
        bert.parameters(&mut parameters);
        (bert, parameters)
    }

    #[test]
    fn hidden_states_are_those_of_candle_transformers() {
        let dir = fixture("tiny-bert");
        let (mut bert, parameters) = load(&dir);
        let tiny = TinyBert::read();
        let hidden = bert.forward(&tiny.input(), None, Queries::All).unwrap();

        let config = serde_json::from_value(read_config(&dir).unwrap()).unwrap();
        let named = parameters
            .iter()
            .map(|p| (p.name.clone(), p.value.to_candle().unwrap()));
        let builder = VarBuilder::from_tensors(named.collect(), DType::F32, &Device::Cpu);
        let stock = stock::BertModel::load(builder, &config).unwrap();
        for w in tiny.cu_seqlens.windows(2) {
            let at = w[0] as usize..w[1] as usize;
            let row = |ids: &[u32]| {
                candle_core::Tensor::new(&ids[at.clone()], &Device::Cpu)
                    .unwrap()
                    .unsqueeze(0)
                    .unwrap()
            };
            let (ids, types) = (row(&tiny.input_ids), row(&tiny.token_type_ids));
            let expected = stock
                .forward(&ids, &types, None)
                .unwrap()
                .squeeze(0)
                .unwrap();
            let rows = hidden.rows(at.start, at.len()).unwrap();
            assert_close("hidden", &rows, &expected);
        }
    }

    #[test]
    fn evaluation_gives_the_same_and_leaves_nothing_for_a_backward() {
        let dir = fixture("tiny-bert");
        let tiny = TinyBert::read();
        for queries in [Queries::All, Queries::First] {
            let (mut bert, _) = load(&dir);
            let expected = bert.forward(&tiny.input(), None, queries).unwrap();
            let expected = expected.to_vec2::<f32>().unwrap();
            for _ in 0..3 {
                let hidden = bert.evaluate(&tiny.input(), queries).unwrap();
                assert_eq!(hidden.to_vec2::<f32>().unwrap(), expected);
                assert!(bert.backward().is_err());
            }
            bert.forward(&tiny.input(), None, queries).unwrap();
            bert.output_gradient().unwrap();
            bert.backward().unwrap();
        }
    }

    /// The last layer for first tokens only, with dropout, against all of it: outputs, and gradients when
    /// only first tokens have one.
    #[test]
    fn the_shortcut_for_first_tokens_is_exact() {
        let fields = json!({ "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3 });
        let dir = TinyBert::folder_with(&fields);
        let tiny = TinyBert::read();
        let seed = Some(DropoutSeed { seed: 5, step: 6 });
        let d_first = noise_rows("d", 3, 32);

        let (mut short, short_parameters) = load(dir.path());
        let first = short.forward(&tiny.input(), seed, Queries::First).unwrap();
        let d_out = short.output_gradient().unwrap();
        first_rows_copy(&d_first, &d_out, &[0, 1, 2]);
        short.backward().unwrap();

        let (mut full, full_parameters) = load(dir.path());
        let all = full.forward(&tiny.input(), seed, Queries::All).unwrap();
        let d_out = full.output_gradient().unwrap();
        set(&d_out, &vec![0.0; d_out.elem_count()]);
        first_rows_copy(&d_first, &d_out, &tiny.cu_seqlens[..3]);
        full.backward().unwrap();

        for (b, &start) in tiny.cu_seqlens[..3].iter().enumerate() {
            let (a, b) = (first.rows(b, 1), all.rows(start as usize, 1));
            assert_close("output", &a.unwrap(), &b.unwrap().to_candle().unwrap());
        }
        for (a, b) in short_parameters.iter().zip(&full_parameters) {
            assert_close(&a.name, &a.grad, &b.grad.to_candle().unwrap());
        }
    }

    fn first_rows_copy(from: &Tensor, to: &Tensor, rows: &[u32]) {
        let from = from.to_vec2::<f32>().unwrap();
        for (values, &row) in from.iter().zip(rows) {
            let row = to.rows(row as usize, 1).unwrap();
            set(&row, values);
        }
    }
}
