use candle_core::DType;
use serde_json::json;

use super::*;
use crate::kernels::device::Device;
use crate::kernels::linear::Precision;
use crate::kernels::pool;
use crate::layers::testing::{Oracle, assert_close};
use crate::models::oracle::{TinyBert, fixture, logits, mean_loss};

const SEED: Option<DropoutSeed> = Some(DropoutSeed { seed: 3, step: 9 });
const MEAN: LossOptions = LossOptions {
    label_smoothing: 0.0,
    scale: 1.0 / 3.0,
};

fn load(dir: &Path) -> SequenceClassifier {
    SequenceClassifier::load(dir, 3, 0, &Precision::F32.into())
        .unwrap()
        .0
}

fn with_dropout() -> SequenceClassifier {
    let dir = TinyBert::folder_with(&json!({
        "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4
    }));
    load(dir.path())
}

fn gradients(model: &SequenceClassifier) -> Vec<Vec<f32>> {
    let flat = |p: &Parameter| p.grad.to_vec1().unwrap();
    model.parameters().iter().map(flat).collect()
}

#[test]
fn loss_logits_and_every_gradient_are_those_of_pytorch() {
    let tiny = TinyBert::read();
    let (mut model, report) =
        SequenceClassifier::load(&fixture("tiny-bert"), 3, 0, &Precision::F32.into()).unwrap();
    assert_eq!(report, LoadReport::default());
    let sum = model
        .forward_backward(&tiny.input(), &tiny.labels, SEED, &MEAN)
        .unwrap();
    let loss = tiny.expected["loss"]
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1::<f64>()
        .unwrap()[0];
    assert!((sum / 3.0 - loss).abs() < 1e-5, "{sum} {loss}");
    for parameter in model.parameters() {
        let expected = &tiny.expected[&format!("grad.{}", parameter.name)];
        assert_close(&parameter.name, &parameter.grad, expected);
    }
    let logits =
        Tensor::from_vec(model.logits(&tiny.input()).unwrap(), (3, 3), &Device::Cpu).unwrap();
    assert_close("logits", &logits, &tiny.expected["logits"]);
}

#[test]
fn parameters_come_in_the_order_of_named_parameters() {
    let model = load(&fixture("tiny-bert"));
    let names: Vec<&str> = model.parameters().iter().map(|p| p.name.as_str()).collect();
    let expected =
        std::fs::read_to_string(fixture("tiny-bert").join("named_parameters.txt")).unwrap();
    assert_eq!(names, expected.lines().collect::<Vec<_>>());
}

#[test]
fn with_dropout_and_label_smoothing_gradients_are_the_autograds() {
    let tiny = TinyBert::read();
    let mut model = with_dropout();
    let options = LossOptions {
        label_smoothing: 0.1,
        ..MEAN
    };
    let sum = model
        .forward_backward(&tiny.input(), &tiny.labels, SEED, &options)
        .unwrap();
    let oracle = Oracle::new(model.parameters());
    let logits = logits(&oracle, model.encoder.config(), &tiny.input(), SEED).unwrap();
    let loss = mean_loss(&logits, &tiny.labels, 0.1).unwrap();
    assert!((sum / 3.0 - loss.to_scalar::<f64>().unwrap()).abs() < 1e-5);
    oracle.assert_gradients(&loss.backward().unwrap(), model.parameters());
}

/// Along the gradient itself the loss must change by the gradient's square norm.
#[test]
fn the_loss_falls_along_the_gradient_as_fast_as_it_says() {
    let tiny = TinyBert::read();
    let mut model = with_dropout();
    model
        .forward_backward(&tiny.input(), &tiny.labels, SEED, &MEAN)
        .unwrap();
    let directions = gradients(&model);
    let square: f64 = directions
        .iter()
        .flatten()
        .map(|&g| f64::from(g).powi(2))
        .sum();
    let step = 1e-3 / square.sqrt();
    let mut loss_at = |by: f64| {
        for (parameter, direction) in model.parameters.iter().zip(&directions) {
            view::write(&parameter.value, |x| {
                for (x, d) in x.iter_mut().zip(direction) {
                    *x += (by * f64::from(*d)) as f32;
                }
                Ok(())
            })
            .unwrap();
        }
        model.weights_changed().unwrap();
        model
            .forward_backward(&tiny.input(), &tiny.labels, SEED, &MEAN)
            .unwrap()
            / 3.0
    };
    let slope = (loss_at(step) - loss_at(-2.0 * step)) / (2.0 * step);
    assert!((slope / square - 1.0).abs() < 5e-3, "{slope} {square}");
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let tiny = TinyBert::read();
    let (mut packed, mut alone) = (with_dropout(), with_dropout());
    let sum = packed
        .forward_backward(&tiny.input(), &tiny.labels, SEED, &MEAN)
        .unwrap();
    let packed_logits = packed.logits(&tiny.input()).unwrap();

    // One by one, into the same gradients and buffers: the sums must be those of the whole.
    let mut sum_alone = 0.0;
    let mut logits = Vec::new();
    for (b, w) in tiny.cu_seqlens.windows(2).enumerate() {
        let (at, all) = (w[0] as usize..w[1] as usize, tiny.input());
        let input = Input {
            input_ids: &all.input_ids[at.clone()],
            token_type_ids: &all.token_type_ids[at],
            cu_seqlens: &[0, w[1] - w[0]],
            sequence_keys: &all.sequence_keys[b..=b],
        };
        sum_alone += alone
            .forward_backward(&input, &tiny.labels[b..=b], SEED, &MEAN)
            .unwrap();
        logits.extend(alone.logits(&input).unwrap());
    }
    assert!((sum - sum_alone).abs() < 1e-5);
    for (a, b) in packed_logits.iter().zip(&logits) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    for (a, b) in packed.parameters().iter().zip(alone.parameters()) {
        assert_close(&a.name, &a.grad, &b.grad.to_candle().unwrap());
    }
}

#[test]
fn the_same_step_gives_the_same_bits_whatever_came_before() {
    let tiny = TinyBert::read();
    let (mut fresh, mut used) = (with_dropout(), with_dropout());
    let long = Input {
        input_ids: &[5; 1600],
        token_type_ids: &[0; 1600],
        cu_seqlens: &(0..=100).map(|i| i * 16).collect::<Vec<u32>>(),
        sequence_keys: &[1; 100],
    };
    used.forward_backward(&long, &[0; 100], None, &MEAN)
        .unwrap();
    used.parameters().zero_grad().unwrap();
    for model in [&mut fresh, &mut used] {
        model
            .forward_backward(&tiny.input(), &tiny.labels, SEED, &MEAN)
            .unwrap();
    }
    assert_eq!(gradients(&fresh), gradients(&used));
    let other = Some(DropoutSeed { seed: 3, step: 10 });
    used.parameters().zero_grad().unwrap();
    used.forward_backward(&tiny.input(), &tiny.labels, other, &MEAN)
        .unwrap();
    assert_ne!(gradients(&fresh), gradients(&used));
}

#[test]
fn evaluation_drops_nothing() {
    let tiny = TinyBert::read();
    let (sum, logits) = with_dropout()
        .forward_loss(&tiny.input(), &tiny.labels, 0.0)
        .unwrap();
    let mut plain = load(&fixture("tiny-bert"));
    assert_eq!(logits, plain.logits(&tiny.input()).unwrap());
    let same = plain
        .forward_backward(&tiny.input(), &tiny.labels, None, &MEAN)
        .unwrap();
    assert_eq!(sum, same);
}

#[test]
fn missing_heads_are_drawn_by_the_seed_and_reported() {
    let weights = candle_core::safetensors::load(
        fixture("tiny-bert").join("model.safetensors"),
        &candle_core::Device::Cpu,
    )
    .unwrap();
    let dir = TinyBert::folder_with(&json!({}));
    // A bare encoder, with TensorFlow's names and something else besides.
    let bare = weights
        .into_iter()
        .filter(|(name, _)| name.starts_with("bert.e"))
        .map(|(name, t)| {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (name.trim_start_matches("bert.").to_owned(), t)
        });
    let other = (
        "cls.seq_relationship.bias".to_owned(),
        candle_core::Tensor::new(&[0f32], &candle_core::Device::Cpu).unwrap(),
    );
    let bare: std::collections::HashMap<_, _> = bare.chain([other]).collect();
    candle_core::safetensors::save(&bare, dir.path().join("model.safetensors")).unwrap();

    let load =
        |seed| SequenceClassifier::load(dir.path(), 5, seed, &Precision::F32.into()).unwrap();
    let (model, report) = load(1);
    let head = [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    ];
    assert_eq!(report.newly_initialized, head);
    assert_eq!(report.ignored, ["cls.seq_relationship.bias"]);
    let values = |model: &SequenceClassifier, name: &str| -> Vec<f32> {
        let parameter = model.parameters().iter().find(|p| p.name == name).unwrap();
        parameter.value.to_vec1().unwrap()
    };
    assert_eq!(values(&model, "classifier.bias"), [0.0; 5]);
    let weight = values(&model, "classifier.weight");
    assert_eq!(weight, values(&load(1).0, "classifier.weight"));
    assert_ne!(weight, values(&load(2).0, "classifier.weight"));
    let deviation = (weight.iter().map(|x| x * x).sum::<f32>() / 160.0).sqrt();
    assert!((deviation - 0.02).abs() < 0.004, "{deviation}");
}

#[test]
fn a_classifier_for_other_labels_is_replaced_and_a_pooler_of_another_shape_refused() {
    let dir = fixture("tiny-bert");
    let (_, report) = SequenceClassifier::load(&dir, 4, 0, &Precision::F32.into()).unwrap();
    let classifier = ["classifier.weight", "classifier.bias"];
    assert_eq!(report.newly_initialized, classifier);
    let mut ignored = report.ignored;
    ignored.reverse();
    assert_eq!(ignored, classifier);
    for labels in [0, MAX_LABELS + 1] {
        assert!(SequenceClassifier::load(&dir, labels, 0, &Precision::F32.into()).is_err());
    }
    let dir = TinyBert::folder_with(&json!({ "intermediate_size": 47 }));
    let error = SequenceClassifier::load(dir.path(), 3, 0, &Precision::F32.into())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("intermediate.dense.weight"),
        "{error}"
    );
}

#[test]
fn input_that_does_not_fit_is_an_error() {
    let tiny = TinyBert::read();
    let mut model = load(&fixture("tiny-bert"));
    let good = tiny.input();
    let too_large = vec![100; good.input_ids.len()];
    for input in [
        Input {
            input_ids: &too_large,
            ..good
        },
        Input {
            token_type_ids: &too_large,
            ..good
        },
        Input {
            input_ids: &good.input_ids[1..],
            ..good
        },
        Input {
            token_type_ids: &[],
            ..good
        },
        Input {
            cu_seqlens: &[0, 7, 10],
            ..good
        },
        Input {
            cu_seqlens: &[],
            ..good
        },
        Input {
            cu_seqlens: &[0],
            sequence_keys: &[],
            ..good
        },
        Input {
            cu_seqlens: &[0, 2, 3, 22],
            ..good
        },
    ] {
        assert!(model.logits(&input).is_err());
    }
    assert!(model.forward_loss(&good, &[0, 1], 0.0).is_err());
    assert!(
        model
            .forward_backward(&good, &[0, 1, 3], None, &MEAN)
            .is_err()
    );
    assert!(model.forward_loss(&good, &[0, 1, 2], 0.0).is_ok());
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let lengths: Vec<u32> = (0..40).map(|i| 1 + i * 7 % 16).collect();
    let mut bounds = vec![0];
    bounds.extend(lengths.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    }));
    let tokens = bounds[40];
    let ids: Vec<u32> = (0..tokens).map(|t| t * 37 % 100).collect();
    let input = Input {
        input_ids: &ids,
        token_type_ids: &vec![0; ids.len()],
        cu_seqlens: &bounds,
        sequence_keys: &(0..40).collect::<Vec<u64>>(),
    };
    let run = |threads| {
        pool::set_threads(threads);
        let mut model = with_dropout();
        let sum = model
            .forward_backward(&input, &[1; 40], SEED, &MEAN)
            .unwrap();
        (sum, gradients(&model))
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn gradients_in_bf16_point_where_those_in_f32_do() {
    let tiny = TinyBert::read();
    let run = |precision: Precision| {
        let dir = fixture("tiny-bert");
        let (mut model, _) = SequenceClassifier::load(&dir, 3, 0, &precision.into()).unwrap();
        model
            .forward_backward(&tiny.input(), &tiny.labels, None, &MEAN)
            .unwrap();
        gradients(&model).concat()
    };
    let (a, b) = (run(Precision::F32), run(Precision::Bf16));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        products.sum()
    };
    let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!(cosine > 0.999, "{cosine}");
}
