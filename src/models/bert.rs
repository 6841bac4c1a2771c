//! BERT's encoder (Devlin et al. 2018; HF `BertModel`): embeddings and post-norm layers.

use candle_core::{Result, Tensor};

use super::{BertConfig, Checkpoint, DropoutSeed, Input, ModelError};
use crate::kernels::attention::Queries;
use crate::kernels::linear::Precision;
use crate::layers::{
    Embeddings, EmbeddingsShape, EncoderLayer, EncoderLayerShape, MicroBatch, Names, Parameters,
    Workspace,
};

/// The encoder, with the workspace of its last forward.
pub struct Bert {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    batch: MicroBatch,
    workspace: Workspace,
    max_positions: usize,
}

impl Bert {
    /// Dropout layers of the encoder: the head's own come behind them.
    pub fn sites(config: &BertConfig) -> u32 {
        let layers = u32::try_from(config.num_hidden_layers).unwrap_or(u32::MAX / 8);
        1 + layers * EncoderLayer::SITES
    }

    /// Takes all parameters of the encoder, in HF's order.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(
        source: &mut Checkpoint,
        config: &BertConfig,
        precision: Precision,
    ) -> std::result::Result<Self, ModelError> {
        let shape = EmbeddingsShape {
            vocab_size: config.vocab_size,
            max_positions: config.max_position_embeddings,
            type_vocab_size: config.type_vocab_size,
            hidden_size: config.hidden_size,
            eps: config.layer_norm_eps,
            dropout: config.hidden_dropout_prob,
            site: 0,
        };
        let embeddings = Embeddings::load(source, "bert.embeddings", shape)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for (index, site) in (0..config.num_hidden_layers).zip((1..).step_by(3)) {
            let shape = EncoderLayerShape {
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_heads: config.num_attention_heads,
                activation: config.activation()?,
                eps: config.layer_norm_eps,
                attention_dropout: config.attention_probs_dropout_prob,
                hidden_dropout: config.hidden_dropout_prob,
                first_site: site,
            };
            layers.push(EncoderLayer::load(source, &names(index), &shape, precision)?);
        }
        Ok(Self {
            embeddings,
            layers,
            batch: MicroBatch::default(),
            workspace: Workspace::new(config.hidden_size, config.intermediate_size),
            max_positions: config.max_position_embeddings,
        })
    }

    /// Hidden states of every token [T, D], or of each sequence's first [B, D]; the last layer computes
    /// those rows only. Valid until the next forward.
    ///
    /// # Errors
    /// If the input does not fit the model.
    pub fn forward(
        &mut self,
        input: &Input<'_>,
        queries: Queries,
        dropout: Option<DropoutSeed>,
    ) -> Result<Tensor> {
        let Self { batch, workspace, .. } = self;
        batch.set(input.cu_seqlens, input.sequence_keys, self.max_positions, dropout)?;
        let mut x = self
            .embeddings
            .forward(input.input_ids, input.token_type_ids, batch)?;
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let asked = if index == last { queries } else { Queries::All };
            x = layer.forward(&x, batch, asked, workspace)?;
        }
        Ok(x)
    }

    /// The micro-batch of the last forward.
    pub fn batch(&self) -> &MicroBatch {
        &self.batch
    }

    /// Where the gradient of [`Bert::forward`]'s output is to be written before [`Bert::backward`].
    ///
    /// # Errors
    /// If it cannot be allocated.
    pub fn output_gradient(&mut self, rows: usize) -> Result<Tensor> {
        self.workspace.hidden.rows(rows)
    }

    /// Adds to all parameter gradients.
    ///
    /// # Errors
    /// If there was no forward.
    pub fn backward(&mut self) -> Result<()> {
        for layer in self.layers.iter_mut().rev() {
            layer.backward(&self.batch, &mut self.workspace)?;
        }
        let d_embedded = self.workspace.hidden.rows(self.batch.tokens())?;
        self.embeddings.backward(&d_embedded, &self.batch)
    }

    /// Repacks weights after they have changed.
    ///
    /// # Errors
    /// If a weight is not what it was loaded as.
    pub fn weights_changed(&mut self) -> Result<()> {
        self.layers.iter_mut().try_for_each(EncoderLayer::weights_changed)
    }

    /// Appends all parameters, in HF's order.
    pub fn parameters(&self, into: &mut Parameters) {
        self.embeddings.parameters(into);
        for layer in &self.layers {
            layer.parameters(into);
        }
    }
}

/// What HF calls the parts of layer `index`.
fn names(index: usize) -> Names {
    let layer = format!("bert.encoder.layer.{index}");
    Names {
        query: format!("{layer}.attention.self.query"),
        key: format!("{layer}.attention.self.key"),
        value: format!("{layer}.attention.self.value"),
        attention_output: format!("{layer}.attention.output.dense"),
        attention_norm: format!("{layer}.attention.output.LayerNorm"),
        intermediate: format!("{layer}.intermediate.dense"),
        output: format!("{layer}.output.dense"),
        output_norm: format!("{layer}.output.LayerNorm"),
    }
}
