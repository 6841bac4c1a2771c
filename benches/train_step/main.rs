//! The speed of whole training steps on a model of random weights and rows of random tokens, the roof that
//! the processor's matrix products set, and where the time goes.
//!
//!     cargo bench --bench train_step -- --shape minilm --batch 32 --tokens 24 --spread 0.8
//!
//! With `--cuda` on the first GPU; the table by op is then that of launches, as work goes on behind them.
//!
//! Prints one line of totals and a table by op, or all of it as JSON. The roof is measured between the steps:
//! on a shared machine it moves.

mod model;
mod report;
mod roof;

use std::time::Instant;

use chandler::heads::{LossOptions, SequenceClassifier};
use chandler::kernels::device::{Compute, Device};
use chandler::kernels::linear::Precision;
use chandler::kernels::memory::HugePages;
use chandler::kernels::{pool, profile};
use chandler::models::{DropoutSeed, Input};
use chandler::optim::{self, AdamW, AdamWOptions, Clip};
use model::{Batch, Shape};
use report::Measured;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

struct Args {
    shape: Shape,
    batch: usize,
    tokens: usize,
    spread: f64,
    steps: usize,
    precision: Precision,
    device: Device,
    threads: usize,
    evaluate: bool,
    json: bool,
}

impl Args {
    fn parse() -> Self {
        let mut args = Self {
            shape: Shape::MINILM,
            batch: 32,
            tokens: 24,
            spread: 0.8,
            steps: 20,
            precision: Precision::Bf16,
            device: Device::Cpu,
            threads: pool::threads(),
            evaluate: false,
            json: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .unwrap_or_else(|| panic!("{word} needs a value"))
            };
            match word.as_str() {
                "--shape" => args.shape = Shape::named(&value()),
                "--batch" => args.batch = value().parse().expect("a number"),
                "--tokens" => args.tokens = value().parse().expect("a number"),
                "--spread" => args.spread = value().parse().expect("a number"),
                "--steps" => args.steps = value().parse().expect("a number"),
                "--threads" => args.threads = value().parse().expect("a number"),
                "--cuda" => args.device = Device::first_gpu().expect("a GPU"),
                "--f32" => args.precision = Precision::F32,
                "--evaluate" => args.evaluate = true,
                "--json" => args.json = true,
                "--bench" => {}
                _ => panic!("unknown argument {word}"),
            }
        }
        args
    }
}

struct Learner {
    model: SequenceClassifier,
    clip: Clip,
    optimizer: AdamW,
    before: Option<optim::Measured>,
}

impl Learner {
    /// Starts a step, and waits for the one before: so the trainer does.
    fn step(&mut self, batch: &Batch, step: u64) {
        let input = Input {
            input_ids: &batch.input_ids,
            token_type_ids: &batch.token_type_ids,
            cu_seqlens: &batch.cu_seqlens,
            sequence_keys: &batch.keys,
        };
        let options = LossOptions {
            label_smoothing: 0.0,
            scale: 1.0 / batch.labels.len() as f32,
        };
        let dropout = Some(DropoutSeed { seed: 1, step });
        self.model.parameters().zero_grad().unwrap();
        let loss = self
            .model
            .start_forward_backward(&input, &batch.labels, dropout, &options)
            .unwrap();
        let share = f64::from(options.scale);
        let (measured, scale) = self
            .clip
            .measure(self.model.parameters(), vec![loss], share)
            .unwrap();
        self.optimizer.step(5e-5, scale).unwrap();
        if let Some(before) = self.before.replace(measured) {
            assert!(before.wait().unwrap().are_finite());
        }
    }

    fn evaluate(&mut self, batch: &Batch) -> f64 {
        let input = Input {
            input_ids: &batch.input_ids,
            token_type_ids: &batch.token_type_ids,
            cu_seqlens: &batch.cu_seqlens,
            sequence_keys: &batch.keys,
        };
        self.model
            .forward_loss(&input, &batch.labels, 0.0)
            .unwrap()
            .0
    }
}

fn main() {
    let args = Args::parse();
    pool::set_threads(args.threads);
    pool::flush_denormals();
    let folder = args.shape.folder();
    let compute = Compute {
        device: args.device.clone(),
        precision: args.precision,
    };
    let (model, _) = SequenceClassifier::load(folder.path(), 2, 1, &compute).unwrap();
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
    };
    let optimizer = AdamW::new(model.parameters(), options).unwrap();
    let clip = Clip::new(model.parameters(), 1.0).unwrap();
    let mut learner = Learner {
        model,
        clip,
        optimizer,
        before: None,
    };
    let batches: Vec<Batch> = (0..8)
        .map(|seed| Batch::random(args.batch, args.tokens, args.spread, seed))
        .collect();
    let mut one = |step: usize| {
        let batch = &batches[step % batches.len()];
        if args.evaluate {
            learner.evaluate(batch);
        } else {
            learner.step(batch, step as u64);
        }
        (batch.labels.len(), batch.input_ids.len())
    };
    let (mut times, mut roofs, mut samples, mut tokens) = (Vec::new(), Vec::new(), 0, 0);
    let mut measure_roof = || roofs.push(roof::gflops(&args.device, args.precision));
    measure_roof();
    // On a GPU the last of these is still under way when the first that counts is started, as the last of those will
    // be at the end.
    for step in 0..batches.len() {
        one(step);
    }
    profile::start();
    for step in 0..args.steps {
        if step % 4 == 0 && args.device.gpu().is_none() {
            measure_roof();
        }
        let started = Instant::now();
        let (rows, count) = one(step);
        times.push(started.elapsed().as_secs_f64());
        samples += rows;
        tokens += count;
    }
    let measured = Measured {
        totals: profile::stop(),
        times,
        roofs,
        samples,
        tokens,
        device_memory_bytes: args.device.gpu().map(|gpu| {
            let (free, all) = gpu.memory().unwrap();
            all - free
        }),
    };
    if args.json {
        println!("{}", measured.json());
    } else {
        measured.print();
    }
}
