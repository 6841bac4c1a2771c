//! A sequence's logits, loss and gradient are the same bits, alone or packed between any others.
//!
//! Parameter gradients are sums over sequences; but the rows of the word embedding that only one sequence
//! uses have that sequence's gradient alone, and it has come through every layer.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use chandler::heads::{LossOptions, SequenceClassifier};
use chandler::kernels::linear::Precision;
use chandler::models::{DropoutSeed, Input};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use crate::support::tiny_bert;

const VOCABULARY: u32 = 100;
const LONGEST: usize = 64;
/// Token ids that only the sequence in question has.
const OWN: Range<u32> = 60..VOCABULARY;
const OTHERS: Range<u32> = 5..60;
const SEED: Option<DropoutSeed> = Some(DropoutSeed { seed: 11, step: 3 });
const LOSS: LossOptions = LossOptions {
    label_smoothing: 0.0,
    scale: 0.25,
};

#[derive(Clone, Debug)]
struct Sequence {
    ids: Vec<u32>,
    /// Its row in the dataset.
    key: u64,
    label: u32,
}

fn sequence(ids: Range<u32>) -> impl Strategy<Value = Sequence> {
    (vec(ids, 1..=LONGEST), 0u64..1000, 0u32..3).prop_map(|(ids, key, label)| Sequence {
        ids,
        key,
        label,
    })
}

/// A model with heads of this size, in a folder of its own.
fn model(head_size: u32, precision: Precision) -> SequenceClassifier {
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny_bert::config(VOCABULARY as usize);
    config["hidden_size"] = json!(2 * head_size);
    config["intermediate_size"] = json!(4 * head_size + 8);
    config["max_position_embeddings"] = json!(LONGEST);
    config["hidden_dropout_prob"] = json!(0.2);
    config["attention_probs_dropout_prob"] = json!(0.3);
    write(dir.path(), &config);
    SequenceClassifier::load(dir.path(), 3, 0, &precision.into())
        .unwrap()
        .0
}

fn write(dir: &Path, config: &serde_json::Value) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    tiny_bert::write_weights_of(dir, config);
}

/// What a model computes for a batch.
struct Computed {
    logits: Vec<Vec<u32>>,
    loss: f64,
    /// Bits of the gradient of the rows of [`OWN`].
    gradient: Vec<u32>,
}

fn compute(model: &mut SequenceClassifier, batch: &[Sequence]) -> Computed {
    let ids = batch.iter().flat_map(|s| s.ids.clone()).collect::<Vec<_>>();
    let ends = batch.iter().scan(0, |end, s| {
        *end += u32::try_from(s.ids.len()).unwrap();
        Some(*end)
    });
    let bounds = std::iter::once(0).chain(ends).collect::<Vec<_>>();
    let input = Input {
        input_ids: &ids,
        token_type_ids: &vec![0; ids.len()],
        cu_seqlens: &bounds,
        sequence_keys: &batch.iter().map(|s| s.key).collect::<Vec<_>>(),
    };
    let labels = batch.iter().map(|s| s.label).collect::<Vec<_>>();
    model.parameters().zero_grad().unwrap();
    let loss = model
        .forward_backward(&input, &labels, SEED, &LOSS)
        .unwrap();
    let embedding = model.parameters().iter().next().unwrap();
    assert_eq!(embedding.name, "bert.embeddings.word_embeddings.weight");
    let rows = embedding
        .grad
        .to_candle()
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let gradient = rows[OWN.start as usize..].concat();
    let logits = model.logits(&input).unwrap();
    Computed {
        logits: logits.chunks(3).map(bits).collect(),
        loss,
        gradient: bits(&gradient),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn check(head_size: u32, precision: Precision) {
    let model = RefCell::new(model(head_size, precision));
    let compute = |batch: &[Sequence]| compute(&mut model.borrow_mut(), batch);
    let cases = (
        sequence(OWN),
        vec(sequence(OTHERS), 0..8),
        any::<prop::sample::Index>(),
    );
    let config = ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&cases, |(own, others, place)| {
        let at = place.index(others.len() + 1);
        let mut batch = others.clone();
        batch.insert(at, own.clone());
        let packed = compute(&batch);
        let alone = compute(std::slice::from_ref(&own));
        prop_assert!(
            alone.gradient.iter().any(|g| g << 1 != 0),
            "no gradient at all"
        );
        prop_assert_eq!(&packed.logits[at], &alone.logits[0]);
        prop_assert!(packed.gradient == alone.gradient, "another gradient");
        let mut sum = 0.0;
        for sequence in &batch {
            sum += compute(std::slice::from_ref(sequence)).loss;
        }
        prop_assert!(
            (packed.loss - sum).abs() <= 1e-9 * sum,
            "{} {sum}",
            packed.loss
        );
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn with_heads_of_16_in_f32() {
    check(16, Precision::F32);
}

#[test]
fn with_heads_of_32_in_f32_and_bf16() {
    check(32, Precision::F32);
    check(32, Precision::Bf16);
}

#[test]
fn with_heads_of_64_in_f32_and_bf16() {
    check(64, Precision::F32);
    check(64, Precision::Bf16);
}

/// The control: what does change a sequence's gradient changes these bits.
#[test]
fn the_bits_change_with_the_sequence_itself() {
    let mut model = model(32, Precision::F32);
    let own = Sequence {
        ids: vec![60, 70, 80],
        key: 1,
        label: 0,
    };
    let before = compute(&mut model, std::slice::from_ref(&own)).gradient;
    let variants = [
        Sequence {
            key: 2,
            ..own.clone()
        },
        Sequence {
            label: 1,
            ..own.clone()
        },
        Sequence {
            ids: vec![60, 70, 80, 5],
            ..own
        },
    ];
    for variant in variants {
        let after = compute(&mut model, std::slice::from_ref(&variant)).gradient;
        assert!(before != after, "{variant:?}");
    }
}
