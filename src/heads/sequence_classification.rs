//! One label for a text or a pair (HF `BertForSequenceClassification`): the first token's hidden state,
//! pooled (dense and tanh), dropped out, classified; cross-entropy.

use std::path::Path;

use candle_core::{Result, Tensor};
use serde_json::Value;

use crate::kernels::activation::Activation;
use crate::kernels::attention::Queries;
use crate::kernels::cross_entropy::cross_entropy;
use crate::kernels::linear::Precision;
use crate::kernels::{first_rows, view};
use crate::layers::{Buffer, Linear, Loaded, Parameter, ParameterSource, Parameters};
use crate::models::{Bert, BertConfig, Checkpoint, DropoutSeed, Input, ModelError};

/// What loading found.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Parameters the checkpoint lacks.
    pub newly_initialized: Vec<String>,
    /// Tensors of the checkpoint that nothing asked for.
    pub ignored: Vec<String>,
}

/// How the loss is computed.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// ε of label smoothing.
    pub label_smoothing: f32,
    /// Factor of the gradients: 1 / items of the whole optimizer step.
    pub scale: f32,
}

/// Encoder, pooler and classifier.
pub struct SequenceClassifier {
    config: Value,
    sizes: BertConfig,
    encoder: Bert,
    pooler: Linear,
    classifier: Linear,
    parameters: Parameters,
    num_labels: usize,
    head: HeadBuffers,
}

/// Workspace of the head; [B, D] unless noted.
struct HeadBuffers {
    dense: Buffer,
    pooled: Buffer,
    d_pooled: Buffer,
    /// [B, C]
    logits: Buffer,
    /// [B, C]
    d_logits: Buffer,
}

impl std::fmt::Debug for SequenceClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SequenceClassifier")
            .field("sizes", &self.sizes)
            .field("num_labels", &self.num_labels)
            .finish_non_exhaustive()
    }
}

/// The head's layers: what the checkpoint has not is made fresh.
struct OrInitialize<'a>(&'a mut Checkpoint);

impl ParameterSource for OrInitialize<'_> {
    type Error = ModelError;

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Loaded<Parameter, Self> {
        self.0.or_initialize(name, shape)
    }
}

impl SequenceClassifier {
    /// Loads a model folder. Parameters of the head that it lacks, or has for another number of labels, are
    /// drawn from N(0, `initializer_range`) by `seed`.
    ///
    /// # Errors
    /// If a file is missing or corrupt, or the family is not supported.
    pub fn load(
        dir: &Path,
        num_labels: usize,
        seed: u64,
        precision: Precision,
    ) -> std::result::Result<(Self, LoadReport), ModelError> {
        let config = read_config(dir)?;
        let sizes = BertConfig::parse(&config)?;
        let mut source = Checkpoint::open(dir, seed, sizes.initializer_range)?;
        let encoder = Bert::load(&mut source, &sizes, precision)?;
        let width = sizes.hidden_size;
        let mut fresh = OrInitialize(&mut source);
        let pooler = Linear::load(&mut fresh, "bert.pooler.dense", width, width, precision)?;
        // A handful of columns: f32 costs nothing and keeps the logits exact.
        let classifier =
            Linear::load(&mut fresh, "classifier", num_labels, width, Precision::F32)?;
        let mut parameters = Parameters::default();
        encoder.parameters(&mut parameters);
        pooler.parameters(&mut parameters);
        classifier.parameters(&mut parameters);
        let report = LoadReport {
            newly_initialized: source.newly_initialized().to_vec(),
            ignored: source.ignored()?,
        };
        let model = Self {
            config,
            encoder,
            pooler,
            classifier,
            parameters,
            num_labels,
            head: HeadBuffers {
                dense: Buffer::new(width),
                pooled: Buffer::new(width),
                d_pooled: Buffer::new(width),
                logits: Buffer::new(num_labels),
                d_logits: Buffer::new(num_labels),
            },
            sizes,
        };
        Ok((model, report))
    }

    /// The base model's `config.json` as it was read.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Tokens of the longest sequence.
    pub fn max_positions(&self) -> usize {
        self.sizes.max_position_embeddings
    }

    /// Rows of the word table.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    /// Rows of the token type table.
    pub fn type_vocab_size(&self) -> usize {
        self.sizes.type_vocab_size
    }

    /// C.
    pub fn num_labels(&self) -> usize {
        self.num_labels
    }

    /// All parameters, in HF's `named_parameters` order. The tensors are the model's own.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds the gradients of `loss.scale` times the sum of item losses; answers that sum, unscaled.
    ///
    /// # Errors
    /// If the input does not fit the model.
    pub fn forward_backward(
        &mut self,
        input: &Input<'_>,
        labels: &[u32],
        dropout: Option<DropoutSeed>,
        loss: &LossOptions,
    ) -> Result<f64> {
        let hidden = self.encoder.forward(input, Queries::First, dropout)?;
        let rows = hidden.dim(0)?;
        let logits = self.classify(&hidden)?;
        let d_logits = self.head.d_logits.rows(rows)?;
        let sum = cross_entropy(
            &logits,
            labels,
            loss.label_smoothing,
            Some((&d_logits, loss.scale)),
        )?;
        let (dense, pooled) = (self.head.dense.rows(rows)?, self.head.pooled.rows(rows)?);
        let d_pooled = self.head.d_pooled.rows(rows)?;
        self.classifier
            .backward(&d_logits, &pooled, &d_pooled, false)?;
        self.drop_out(&d_pooled)?;
        Activation::Tanh.backward(&dense, &d_pooled)?;
        let d_hidden = self.encoder.output_gradient(rows)?;
        self.pooler.backward(&d_pooled, &hidden, &d_hidden, false)?;
        self.encoder.backward()?;
        Ok(sum)
    }

    /// Sum of item losses and logits [B, C] in row order, without dropout.
    ///
    /// # Errors
    /// If the input does not fit the model.
    pub fn forward_loss(
        &mut self,
        input: &Input<'_>,
        labels: &[u32],
        label_smoothing: f32,
    ) -> Result<(f64, Vec<f32>)> {
        let hidden = self.encoder.forward(input, Queries::First, None)?;
        let logits = self.classify(&hidden)?;
        let sum = cross_entropy(&logits, labels, label_smoothing, None)?;
        Ok((sum, view::read(&logits, <[f32]>::to_vec)?))
    }

    /// Logits [B, C] in row order, without dropout.
    ///
    /// # Errors
    /// If the input does not fit the model.
    pub fn logits(&mut self, input: &Input<'_>) -> Result<Vec<f32>> {
        let hidden = self.encoder.forward(input, Queries::First, None)?;
        let logits = self.classify(&hidden)?;
        view::read(&logits, <[f32]>::to_vec)
    }

    /// Repacks weights after the optimizer changed them.
    ///
    /// # Errors
    /// If a weight is not what it was loaded as.
    pub fn weights_changed(&mut self) -> Result<()> {
        self.encoder.weights_changed()?;
        self.pooler.weights_changed()?;
        self.classifier.weights_changed()
    }

    /// [B, C] from first tokens' hidden states [B, D].
    fn classify(&mut self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        let (dense, pooled) = (self.head.dense.rows(rows)?, self.head.pooled.rows(rows)?);
        self.pooler.forward(hidden, &dense)?;
        Activation::Tanh.forward(&dense, &pooled)?;
        self.drop_out(&pooled)?;
        let logits = self.head.logits.rows(rows)?;
        self.classifier.forward(&pooled, &logits)?;
        Ok(logits)
    }

    /// The dropout before the classifier, forward and backward alike.
    fn drop_out(&self, rows: &Tensor) -> Result<()> {
        let p = self
            .sizes
            .classifier_dropout
            .unwrap_or(self.sizes.hidden_dropout_prob);
        let batch = self.encoder.batch();
        let dropout = batch.dropout(p, Bert::sites(&self.sizes));
        first_rows::drop_out(rows, dropout, batch.keys(Queries::First))
    }
}

fn read_config(dir: &Path) -> std::result::Result<Value, ModelError> {
    let bytes = std::fs::read(dir.join("config.json")).map_err(|source| ModelError::Io {
        file: "config.json",
        source,
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::Invalid(format!("config.json is not JSON: {error}")))
}
