//! Tables are zeroed, summed and updated by the rows that had gradients: bit by bit what whole passes give.

use super::*;
use crate::kernels::clip;
use crate::layers::testing::{NoiseSource, noise_rows, on_cpu};
use crate::layers::{DropoutSeed, Embeddings, EmbeddingsShape, MicroBatch};
use crate::optim::global_grad_norm;

const STEPS: u64 = 60;
const MAX_NORM: f64 = 2.0;
const SHAPE: EmbeddingsShape = EmbeddingsShape {
    vocab_size: 300,
    max_positions: 12,
    type_vocab_size: 2,
    hidden_size: 20,
    eps: 1e-5,
    dropout: 0.1,
    site: 0,
};

#[derive(Clone, Copy, PartialEq)]
enum Passes {
    Rows,
    Whole,
}

/// Everything that training leaves behind, in bits.
#[derive(Debug, PartialEq)]
struct Outcome {
    norms: Vec<u64>,
    gradients: Vec<Vec<u32>>,
    values: Vec<Vec<u32>>,
    moments: Vec<Vec<u32>>,
}

struct Training {
    layer: Embeddings,
    /// As the layer has them.
    by_rows: Parameters,
    /// The same tensors, as if they were no tables.
    whole: Parameters,
    optimizer: AdamW,
    passes: Passes,
    weight_decay: f64,
    norms: Vec<u64>,
}

impl Training {
    fn new(passes: Passes, weight_decay: f64) -> Self {
        let layer = Embeddings::load(&mut NoiseSource(Device::Cpu), "e", SHAPE, &on_cpu()).unwrap();
        let (mut by_rows, mut whole) = (Parameters::default(), Parameters::default());
        layer.parameters(&mut by_rows);
        let plain = |p: &Parameter| Parameter {
            rounded: None,
            rows: None,
            ..p.clone()
        };
        whole.extend(by_rows.iter().map(plain));
        let mut this = Self {
            optimizer: AdamW::new(&by_rows, options(weight_decay)).unwrap(),
            layer,
            by_rows,
            whole,
            passes,
            weight_decay,
            norms: Vec::new(),
        };
        this.optimizer = this.fresh_optimizer();
        this
    }

    fn fresh_optimizer(&self) -> AdamW {
        AdamW::new(self.passed(), options(self.weight_decay)).unwrap()
    }

    fn passed(&self) -> &Parameters {
        match self.passes {
            Passes::Rows => &self.by_rows,
            Passes::Whole => &self.whole,
        }
    }

    /// Three micro-batches of words that drift through the vocabulary, so that rows come, stay away for many
    /// steps and come back.
    fn step(&mut self, step: u64) {
        self.passed().zero_grad().unwrap();
        for part in 0..3u64 {
            let mut batch = MicroBatch::default();
            let seed = Some(DropoutSeed { seed: 1, step });
            batch.set(&[0, 4, 12], &[step, part], 12, seed).unwrap();
            let word = |i: u64| (step % 23 * 11 + part * 5 + i * i) % 300;
            let ids: Vec<u32> = (0..12).map(|i| u32::try_from(word(i)).unwrap()).collect();
            let types = [u32::from(step.is_multiple_of(2)); 12];
            self.layer.forward(&ids, &types, &batch).unwrap();
            let d_out = noise_rows(&format!("{step} {part}"), 12, SHAPE.hidden_size);
            self.layer.backward(&d_out, &batch).unwrap();
        }
        if self.passes == Passes::Whole {
            // Sums of tables go row by row: all rows, then.
            for parameter in &self.by_rows {
                let rows: Vec<u32> = (0..).take(parameter.value.dims()[0]).collect();
                parameter
                    .rows
                    .iter()
                    .for_each(|touched| touched.mark(&rows));
            }
        }
        let norm = global_grad_norm(&self.by_rows).unwrap();
        assert!(norm > 0.0);
        self.norms.push(norm.to_bits());
        // Clipping is on in two steps of three.
        let clip = clip::coefficient(
            norm,
            if step.is_multiple_of(3) {
                0.0
            } else {
                MAX_NORM
            },
        );
        self.optimizer.step(0.01, clip).unwrap();
    }

    /// As a new process after a checkpoint.
    fn resume(&mut self) {
        let (step, moments) = self.optimizer.state();
        self.optimizer = self.fresh_optimizer();
        let moments = moments.into_iter().collect();
        self.optimizer.load_state(step, moments).unwrap();
    }

    fn outcome(&self) -> Outcome {
        let all = |f: fn(&Parameter) -> &Tensor| self.by_rows.iter().map(|p| bits(f(p))).collect();
        Outcome {
            norms: self.norms.clone(),
            gradients: all(|p| &p.grad),
            values: all(|p| &p.value),
            moments: self
                .optimizer
                .state()
                .1
                .iter()
                .map(|(_, m)| bits(m))
                .collect(),
        }
    }
}

fn options(weight_decay: f64) -> AdamWOptions {
    AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay,
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    view::read(tensor, |x| x.iter().map(|x| x.to_bits()).collect()).unwrap()
}

fn train(passes: Passes, weight_decay: f64, resume_at: &[u64]) -> Training {
    let mut training = Training::new(passes, weight_decay);
    for step in 0..STEPS {
        if resume_at.contains(&step) {
            training.resume();
        }
        training.step(step);
    }
    training
}

#[test]
fn rows_give_the_bits_of_whole_passes() {
    for weight_decay in [0.0, 0.1] {
        let rows = train(Passes::Rows, weight_decay, &[]);
        let whole = train(Passes::Whole, weight_decay, &[]);
        assert_eq!(rows.outcome(), whole.outcome(), "decay {weight_decay}");
        let clips = |&bits: &u64| f64::from_bits(bits) > MAX_NORM;
        assert!(rows.norms.iter().all(clips));
    }
}

#[test]
fn a_resumed_training_goes_on_with_the_same_rows_and_bits() {
    for weight_decay in [0.0, 0.1] {
        let straight = train(Passes::Rows, weight_decay, &[]);
        let resumed = train(Passes::Rows, weight_decay, &[1, 9, 30]);
        assert_eq!(straight.outcome(), resumed.outcome());
        let alive = |t: &Training| t.optimizer.slots.iter().map(|s| s.alive.clone()).collect();
        let (a, b): (Vec<_>, Vec<_>) = (alive(&straight), alive(&resumed));
        assert_eq!(a, b);
    }
}

/// Else the tests above would compare whole passes with themselves.
#[test]
fn only_tables_without_decay_go_by_rows() {
    let rows = |weight_decay| {
        let training = train(Passes::Rows, weight_decay, &[]);
        let slots = training.optimizer.slots.iter();
        slots
            .map(|slot| slot.alive.as_ref().map(|rows| rows.to_vec().len()))
            .collect::<Vec<_>>()
    };
    let [words, positions, types, weight, bias] = rows(0.0)[..] else {
        panic!("five parameters");
    };
    assert!(words.is_some_and(|n| n > 100 && n < 300), "{words:?}");
    assert_eq!((positions, types), (Some(8), Some(2)));
    assert_eq!((weight, bias), (None, None));
    assert_eq!(rows(0.1), [None; 5]);
}

/// A moment of -0 is no row of zeros: the next update makes it 0, in a run that was never interrupted.
#[test]
fn a_negative_zero_keeps_its_row_alive() {
    let zero = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
    let first = zero.copy().unwrap();
    view::write(&first, |x| {
        x[3] = -0.0;
        Ok(())
    })
    .unwrap();
    assert_eq!(alive_rows(&first, &zero, 2).unwrap().to_vec(), [1]);
    assert_eq!(alive_rows(&zero, &first, 2).unwrap().to_vec(), [1]);
}
