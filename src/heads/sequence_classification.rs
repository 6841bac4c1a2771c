//! One label per sequence (HF `BertForSequenceClassification`): the first token's last hidden state, pooled
//! by a dense layer and tanh, dropped out, classified; softmax cross-entropy.
//!
//! Only the first token's row is read, so the encoder's last layer runs for those rows only.

use std::path::Path;

use crate::kernels::device::Compute;
use candle_core::Result;
use serde_json::Value;

use super::initial;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Queries;
use crate::kernels::cross_entropy::{Loss, cross_entropy};
use crate::kernels::tensor::Tensor;
use crate::kernels::{first_rows, view};
use crate::layers::{Buffer, Linear, Parameter, ParameterSource, Parameters};
use crate::models::{
    Bert, BertConfig, Checkpoint, DropoutSeed, Input, ModelError, ModelType, read_config,
};

/// Labels a classifier may have.
const MAX_LABELS: usize = 1 << 16;

/// An encoder with a pooler and a classifier.
pub struct SequenceClassifier {
    config: Value,
    encoder: Bert,
    pooler: Linear,
    classifier: Linear,
    num_labels: usize,
    dropout: f32,
    parameters: Parameters,
    /// [B, D] each: what the encoder says of the first tokens, as f32, and its gradient.
    first: Buffer,
    d_first: Buffer,
    /// [B, D]: the pooler before tanh.
    dense: Buffer,
    /// [B, D]: behind tanh and dropout.
    pooled: Buffer,
    d_pooled: Buffer,
    /// [B, C]
    logits: Buffer,
    d_logits: Buffer,
}

/// What became of a checkpoint's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters the checkpoint does not have (or has for other labels).
    pub newly_initialized: Vec<String>,
    /// Tensors of the checkpoint that the model does not use.
    pub ignored: Vec<String>,
}

/// How item losses become one number.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// HF's `label_smoothing_factor`.
    pub label_smoothing: f32,
    /// What the gradient is multiplied by: 1 / items of the whole accumulated batch.
    pub scale: f32,
}

impl std::fmt::Debug for SequenceClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SequenceClassifier")
            .field("encoder", self.encoder.config())
            .field("num_labels", &self.num_labels)
            .finish_non_exhaustive()
    }
}

impl SequenceClassifier {
    /// Loads the encoder in `dir`; the pooler too, and the classifier if it has as many labels, else both
    /// are new, drawn by `seed`. Pooler and classifier are computed in f32: they are small, and their
    /// gradients nearly cancel.
    ///
    /// # Errors
    /// If the folder holds no model of a supported type.
    pub fn load(
        dir: &Path,
        num_labels: usize,
        seed: u64,
        compute: &Compute,
    ) -> std::result::Result<(Self, LoadReport), ModelError> {
        Self::load_for(dir, num_labels, true, seed, compute)
    }

    /// The same; unless `keep_classifier`, the classifier is new even if it would fit.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_for(
        dir: &Path,
        num_labels: usize,
        keep_classifier: bool,
        seed: u64,
        compute: &Compute,
    ) -> std::result::Result<(Self, LoadReport), ModelError> {
        if num_labels == 0 || num_labels > MAX_LABELS {
            let why = format!("a classifier has 1 to {MAX_LABELS} labels, not {num_labels}");
            return Err(ModelError::Invalid(why));
        }
        let config = read_config(dir)?;
        let (bert, mut checkpoint) = match ModelType::of(&config)? {
            ModelType::Bert => (
                BertConfig::parse(&config)?,
                Checkpoint::open(dir, Bert::PREFIX)?.on(&compute.device),
            ),
        };
        let encoder = Bert::load(&mut checkpoint, bert, compute)?;
        let width = encoder.config().hidden_size;
        let mut source = HeadSource {
            checkpoint: &mut checkpoint,
            deviation: encoder.config().initializer_range,
            seed,
            compute: compute.in_f32(),
            new: Vec::new(),
        };
        let pooler = source.linear("bert.pooler.dense", width, width, Saved::MustFit)?;
        let saved = if keep_classifier {
            Saved::IfItFits
        } else {
            Saved::Never
        };
        let classifier = source.linear("classifier", num_labels, width, saved)?;
        let head = source.compute;
        let report = LoadReport {
            newly_initialized: source.new,
            ignored: checkpoint.ignored(),
        };
        Ok((
            Self::new(config, encoder, pooler, classifier, num_labels, &head),
            report,
        ))
    }

    fn new(
        config: Value,
        encoder: Bert,
        pooler: Linear,
        classifier: Linear,
        num_labels: usize,
        compute: &Compute,
    ) -> Self {
        let mut parameters = Parameters::default();
        encoder.parameters(&mut parameters);
        pooler.parameters(&mut parameters);
        classifier.parameters(&mut parameters);
        let settings = encoder.config();
        let width = settings.hidden_size;
        Self {
            dropout: settings
                .classifier_dropout
                .unwrap_or(settings.hidden_dropout_prob),
            config,
            encoder,
            pooler,
            classifier,
            num_labels,
            parameters,
            first: Buffer::new(compute, width),
            d_first: Buffer::new(compute, width),
            dense: Buffer::new(compute, width),
            pooled: Buffer::new(compute, width),
            d_pooled: Buffer::new(compute, width),
            logits: Buffer::new(compute, num_labels),
            d_logits: Buffer::new(compute, num_labels),
        }
    }

    /// The base model's config.json, with fields unknown here.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The longest sequence.
    pub fn max_positions(&self) -> usize {
        self.encoder.config().max_position_embeddings
    }

    /// Token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.encoder.config().vocab_size
    }

    /// Token type ids are below this.
    pub fn type_vocab_size(&self) -> usize {
        self.encoder.config().type_vocab_size
    }

    /// C
    pub fn num_labels(&self) -> usize {
        self.num_labels
    }

    /// In HF's `named_parameters` order: embeddings, layers, pooler, classifier. Clones share storage with
    /// the layers; after writing to values other than by an optimizer, call [`Self::weights_changed`].
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The sum of item losses of a micro-batch; adds the gradients of `loss.scale *` that sum to the
    /// parameters'. `labels` [B]. A loss that is not finite comes back as it is.
    ///
    /// # Errors
    /// If the input's lengths do not agree, or a token or label is unknown.
    pub fn forward_backward(
        &mut self,
        input: &Input,
        labels: &[u32],
        dropout: Option<DropoutSeed>,
        loss: &LossOptions,
    ) -> Result<f64> {
        self.start_forward_backward(input, labels, dropout, loss)?
            .wait()
    }

    /// The same, without waiting for a GPU: it need not run dry between micro-batches.
    ///
    /// # Errors
    /// As [`Self::forward_backward`].
    pub fn start_forward_backward(
        &mut self,
        input: &Input,
        labels: &[u32],
        dropout: Option<DropoutSeed>,
        loss: &LossOptions,
    ) -> Result<Loss> {
        let hidden = self.encoder.forward(input, dropout, Queries::First)?;
        let (first, logits) = self.classify(&hidden)?;
        let items = first.dim(0)?;
        let d_logits = self.d_logits.rows(items)?;
        let gradient = Some((&d_logits, loss.scale));
        let sum = cross_entropy(&logits, labels, loss.label_smoothing, gradient)?;

        let (dense, pooled) = (self.dense.rows(items)?, self.pooled.rows(items)?);
        let d_pooled = self.d_pooled.rows(items)?;
        self.classifier
            .backward(&d_logits, &pooled, &d_pooled, false)?;
        self.drop_out(&d_pooled)?;
        Activation::Tanh.backward(&dense, &d_pooled)?;
        let d_first = self.d_first.rows(items)?;
        self.pooler.backward(&d_pooled, &first, &d_first, false)?;
        first_rows::cast(&d_first, &self.encoder.output_gradient()?)?;
        self.encoder.backward()?;
        Ok(sum)
    }

    /// Evaluation, without dropout: the sum of item losses, and logits [B, C] row by row.
    ///
    /// # Errors
    /// As [`Self::forward_backward`].
    pub fn forward_loss(
        &mut self,
        input: &Input,
        labels: &[u32],
        label_smoothing: f32,
    ) -> Result<(f64, Vec<f32>)> {
        let logits = self.evaluate(input)?;
        let sum = cross_entropy(&logits, labels, label_smoothing, None)?.wait()?;
        Ok((sum, view::read(&logits, <[f32]>::to_vec)?))
    }

    /// Logits [B, C] row by row, without dropout.
    ///
    /// # Errors
    /// If the input's lengths do not agree, or a token is unknown.
    pub fn logits(&mut self, input: &Input) -> Result<Vec<f32>> {
        let logits = self.evaluate(input)?;
        view::read(&logits, <[f32]>::to_vec)
    }

    /// To be called after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// As [`Linear::weights_changed`].
    pub fn weights_changed(&self) -> Result<()> {
        self.encoder.weights_changed()?;
        self.pooler.weights_changed()?;
        self.classifier.weights_changed()
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.encoder.release();
        for buffer in [
            &mut self.first,
            &mut self.d_first,
            &mut self.dense,
            &mut self.pooled,
            &mut self.d_pooled,
            &mut self.logits,
            &mut self.d_logits,
        ] {
            buffer.release();
        }
    }

    /// Logits [B, C].
    fn evaluate(&mut self, input: &Input) -> Result<Tensor> {
        let hidden = self.encoder.evaluate(input, Queries::First)?;
        Ok(self.classify(&hidden)?.1)
    }

    /// (first tokens' hidden states [B, D] as f32, logits [B, C]).
    fn classify(&mut self, hidden: &Tensor) -> Result<(Tensor, Tensor)> {
        let items = hidden.dim(0)?;
        let first = self.first.rows(items)?;
        first_rows::cast(hidden, &first)?;
        let (dense, pooled) = (self.dense.rows(items)?, self.pooled.rows(items)?);
        self.pooler.forward(&first, &dense)?;
        Activation::Tanh.forward(&dense, &pooled)?;
        self.drop_out(&pooled)?;
        let logits = self.logits.rows(items)?;
        self.classifier.forward(&pooled, &logits)?;
        Ok((first, logits))
    }

    /// The dropout before the classifier, forward and backward.
    fn drop_out(&self, rows: &Tensor) -> Result<()> {
        let batch = self.encoder.batch();
        let dropout = batch.dropout(self.dropout, self.encoder.next_site());
        first_rows::drop_out(rows, dropout, batch.keys(Queries::First))
    }
}

/// A checkpoint that may lack the head.
struct HeadSource<'a> {
    checkpoint: &'a mut Checkpoint,
    /// Standard deviation of new weights.
    deviation: f32,
    seed: u64,
    /// Of the head's own layers.
    compute: Compute,
    new: Vec<String>,
}

/// Whether a layer of the checkpoint is used.
#[derive(Clone, Copy)]
enum Saved {
    /// If it is there; another shape is an error.
    MustFit,
    /// If it is there with the right shape.
    IfItFits,
    Never,
}

impl HeadSource<'_> {
    /// A dense layer from the checkpoint if it is there and wanted, else new.
    fn linear(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        saved: Saved,
    ) -> std::result::Result<Linear, ModelError> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let shapes = (self.checkpoint.shape(&weight), self.checkpoint.shape(&bias));
        let fits = shapes == (Some(&[outputs, inputs]), Some(&[outputs]));
        let new = match saved {
            Saved::MustFit => shapes == (None, None),
            Saved::IfItFits => !fits,
            Saved::Never => true,
        };
        if new {
            let compute = self.compute.clone();
            Linear::load(self, name, outputs, inputs, &compute)
        } else {
            Linear::load(self.checkpoint, name, outputs, inputs, &self.compute)
        }
    }
}

/// New parameters: weights by chance, biases 0.
impl ParameterSource for HeadSource<'_> {
    type Error = ModelError;

    fn parameter(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> std::result::Result<Parameter, ModelError> {
        self.new.push(name.to_owned());
        let len = shape.iter().product();
        let values = if name.ends_with(".bias") {
            vec![0.0; len]
        } else {
            initial::normal(self.seed, name, len, self.deviation)
        };
        Ok(Parameter::new(
            name,
            Tensor::from_vec(values, shape, &self.compute.device)?,
        )?)
    }
}

#[cfg(test)]
mod tests;
