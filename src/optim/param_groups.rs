//! HF Trainer's two parameter groups: weights decay, biases and normalisation parameters do not.

use crate::layers::Parameters;

/// Indexes into a model's parameters, each group in the model's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamGroups {
    /// Parameters that weight decay applies to.
    pub decay: Vec<usize>,
    /// The others.
    pub no_decay: Vec<usize>,
}

impl ParamGroups {
    /// Sorts a model's parameters by [`decays`].
    pub fn new(parameters: &Parameters) -> Self {
        let mut groups = Self::default();
        for (index, parameter) in parameters.iter().enumerate() {
            if decays(&parameter.name) {
                groups.decay.push(index);
            } else {
                groups.no_decay.push(index);
            }
        }
        groups
    }
}

/// Whether weight decay applies to the parameter of this name: not if it matches, in any case,
/// `bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)` (`Trainer.get_decay_parameter_names`, transformers 5.23).
/// Embeddings and classifier weights do decay.
pub fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let anywhere = ["bias", "layernorm", "rmsnorm"];
    let norm = |part: &str| part == "norm" || part.ends_with("_norm");
    !anywhere.iter().any(|word| name.contains(word)) && !name.split('.').any(norm)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::kernels::device::Device;
    use crate::kernels::tensor::Tensor;
    use crate::layers::Parameter;

    #[test]
    fn weights_and_embeddings_decay() {
        for name in [
            "bert.embeddings.word_embeddings.weight",
            "bert.embeddings.position_embeddings.weight",
            "bert.encoder.layer.0.attention.self.query.weight",
            "bert.encoder.layer.11.output.dense.weight",
            "bert.pooler.dense.weight",
            "classifier.weight",
            "encoder.normal.weight",
            "encoder.norms.weight",
        ] {
            assert!(decays(name), "{name}");
        }
    }

    #[test]
    fn biases_and_norms_do_not() {
        for name in [
            "classifier.bias",
            "bert.encoder.layer.0.attention.self.query.bias",
            "bert.embeddings.LayerNorm.weight",
            "bert.encoder.layer.0.output.LayerNorm.gamma",
            "distilbert.transformer.layer.0.sa_layer_norm.weight",
            "lm_head.layer_norm.weight",
            "head.norm.weight",
            "norm.weight",
            "final_norm",
            "model.RMSNorm.weight",
        ] {
            assert!(!decays(name), "{name}");
        }
    }

    #[test]
    fn groups_keep_the_models_order() {
        let mut parameters = Parameters::default();
        for name in ["a.weight", "a.bias", "LayerNorm.weight", "b.weight"] {
            let value = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
            parameters.push(Parameter::new(name, value).unwrap());
        }
        let groups = ParamGroups::new(&parameters);
        assert_eq!((groups.decay, groups.no_decay), (vec![0, 3], vec![1, 2]));
    }
}
