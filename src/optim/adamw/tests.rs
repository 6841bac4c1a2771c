#![expect(
    clippy::excessive_precision,
    reason = "numbers are quoted as torch prints them"
)]

use half::bf16;

use crate::kernels::clip;
use crate::kernels::cuda::emulated::{self, devices};
use crate::kernels::device::Device;
use crate::optim::{Clip, global_grad_norm};

use super::*;

const START: [f32; 3] = [1.0, -2.0, 0.5];
const GRADS: [[f32; 3]; 3] = [[0.1, -0.2, 0.0], [0.3, 0.1, -1e-4], [-0.05, 0.02, 2.0]];

fn options(weight_decay: f64) -> AdamWOptions {
    AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay,
    }
}

fn model(names: &[&str]) -> Parameters {
    let mut parameters = Parameters::default();
    for name in names {
        let value = Tensor::from_slice(&START, 3, &Device::Cpu).unwrap();
        parameters.push(Parameter::new(*name, value).unwrap());
    }
    parameters
}

fn set_grads(parameters: &Parameters, grad: &[f32; 3]) {
    for parameter in parameters {
        view::write(&parameter.grad, |g| {
            g.copy_from_slice(grad);
            Ok(())
        })
        .unwrap();
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec1().unwrap()
}

fn assert_close(actual: &[f32], expected: &[f32]) {
    for (a, e) in actual.iter().zip(expected) {
        assert!(
            (a - e).abs() <= 2e-7 * e.abs(),
            "{actual:?} is not {expected:?}"
        );
    }
}

/// Three steps at lr 0.01, recorded with torch 2.15:
/// ```python
/// p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
/// o = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=wd)
/// for g in ([0.1, -0.2, 0.0], [0.3, 0.1, -1e-4], [-0.05, 0.02, 2.0]):
///     p.grad = torch.tensor(g); o.step(); print(p.tolist())
/// print(o.state[p]["exp_avg"].tolist(), o.state[p]["exp_avg_sq"].tolist())
/// ```
#[test]
fn steps_are_those_of_torch() {
    let plain = [
        [0.990_000_01, -1.990_000_01, 0.5],
        [0.980_822_206, -1.987_336_64, 0.507_440_329],
        [0.974_813_044, -1.985_855_7, 0.501_052_499],
    ];
    let decayed = [
        [0.989_000_022, -1.988_000_04, 0.499_500_006],
        [0.978_833_258, -1.983_348_73, 0.506_440_818],
        [0.971_845_269, -1.979_884_51, 0.499_546_498],
    ];
    let parameters = model(&["dense.weight", "dense.bias"]);
    let mut optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
    for (grad, (decayed, plain)) in GRADS.iter().zip(decayed.iter().zip(&plain)) {
        set_grads(&parameters, grad);
        optimizer.step(0.01, 1.0).unwrap();
        let now: Vec<_> = parameters.iter().map(|p| values(&p.value)).collect();
        assert_close(&now[0], decayed);
        assert_close(&now[1], plain);
    }
    let (step, state) = optimizer.state();
    assert_eq!(step, 3);
    assert_close(
        &values(&state[0].1),
        &[0.030_100_004_7, -0.005_200_000_48, 0.199_991_003],
    );
    assert_close(
        &values(&state[1].1),
        &[0.000_102_390_019, 5.031_004_18e-5, 0.004_000_000_19],
    );
}

/// By hand: step 1 moves by lr · sign(g) (m̂ = g, √v̂ = |g|). Step 2 with g = 0: m = 0.09·g, m̂ = 0.09g/0.19,
/// v = 0.001·0.999·g², v̂ = 0.000999g²/0.001999; so the move is lr · 0.473684/0.706930 = 0.670058 lr.
#[test]
fn two_steps_by_hand() {
    let parameters = model(&["w"]);
    let mut optimizer = AdamW::new(&parameters, options(0.0)).unwrap();
    set_grads(&parameters, &[4.0, -4.0, 8.0]);
    optimizer.step(0.1, 1.0).unwrap();
    let value = &parameters.iter().next().unwrap().value;
    assert_close(&values(value), &[0.9, -1.9, 0.4]);
    set_grads(&parameters, &[0.0; 3]);
    optimizer.step(0.1, 1.0).unwrap();
    let expected = [0.9 - 0.067_005_8, -1.9 + 0.067_005_8, 0.4 - 0.067_005_8];
    for (a, e) in values(value).iter().zip(expected) {
        assert!((a - e).abs() < 1e-6);
    }
}

#[test]
fn scaling_in_the_step_is_scaling_the_gradient() {
    let (scaled, small) = (model(&["w"]), model(&["w"]));
    set_grads(&scaled, &[2.0, -1.0, 0.5]);
    set_grads(&small, &[0.5, -0.25, 0.125]);
    let mut first = AdamW::new(&scaled, options(0.01)).unwrap();
    let mut second = AdamW::new(&small, options(0.01)).unwrap();
    for _ in 0..3 {
        first.step(0.01, 0.25).unwrap();
        second.step(0.01, 1.0).unwrap();
    }
    let of = |p: &Parameters| values(&p.iter().next().unwrap().value);
    assert_eq!(of(&scaled), of(&small));
    let grad = &scaled.iter().next().unwrap().grad;
    assert_eq!(values(grad), [2.0, -1.0, 0.5]);
}

#[test]
fn a_learning_rate_of_zero_moves_only_the_moments() {
    let parameters = model(&["w"]);
    let mut optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
    set_grads(&parameters, &GRADS[0]);
    optimizer.step(0.0, 1.0).unwrap();
    assert_eq!(values(&parameters.iter().next().unwrap().value), START);
    assert_close(&values(&optimizer.state().1[0].1), &[0.01, -0.02, 0.0]);
}

#[test]
fn a_restored_optimizer_goes_on_bitwise_the_same() {
    let run = |interrupt: bool| {
        let parameters = model(&["a.weight", "a.bias"]);
        let mut optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
        for (i, grad) in GRADS.iter().enumerate() {
            if interrupt && i == 2 {
                let (step, state) = optimizer.state();
                let moments = state.into_iter().collect();
                optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
                optimizer.load_state(step, moments).unwrap();
            }
            set_grads(&parameters, grad);
            optimizer.step(0.01, 0.7).unwrap();
        }
        assert_eq!(optimizer.steps(), 3);
        parameters
            .iter()
            .map(|p| values(&p.value))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn loading_copies() {
    let parameters = model(&["w"]);
    let mut optimizer = AdamW::new(&parameters, options(0.0)).unwrap();
    let (_, state) = optimizer.state();
    let saved: HashMap<String, Tensor> = state.into_iter().collect();
    let mut other = AdamW::new(&parameters, options(0.0)).unwrap();
    other.load_state(0, saved.clone()).unwrap();
    set_grads(&parameters, &GRADS[0]);
    optimizer.step(0.1, 1.0).unwrap();
    assert_ne!(values(&saved["w.exp_avg"]), [0.0; 3]);
    assert_eq!(values(&other.state().1[0].1), [0.0; 3]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let parameters = model(&["a", "b"]);
    let mut optimizer = AdamW::new(&parameters, options(0.0)).unwrap();
    let saved: HashMap<String, Tensor> = optimizer.state().1.into_iter().collect();
    assert_eq!(saved.len(), 4);
    let mut refuse = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut moments = saved.clone();
        change(&mut moments);
        let error = optimizer.load_state(5, moments).unwrap_err();
        assert_eq!(optimizer.steps(), 0);
        error.to_string()
    };
    let missing = refuse(&|m| drop(m.remove("b.exp_avg_sq")));
    assert_eq!(missing, "optimizer state has no `b.exp_avg_sq`");
    let zeros = |n: usize, dtype| Tensor::zeros(n, dtype, &Device::Cpu).unwrap();
    let extra = refuse(&|m| drop(m.insert("c.exp_avg".into(), zeros(3, DType::F32))));
    assert!(extra.contains("`c.exp_avg`"));
    let shape = refuse(&|m| drop(m.insert("a.exp_avg".into(), zeros(4, DType::F32))));
    assert_eq!(
        shape,
        "optimizer state `a.exp_avg` is F32 [4], expected F32 [3]"
    );
    let dtype = refuse(&|m| drop(m.insert("a.exp_avg".into(), zeros(3, DType::F64))));
    assert!(dtype.contains("F64 [3]"));
}

#[test]
fn parameters_of_other_types_are_refused() {
    let mut parameters = Parameters::default();
    let value = Tensor::zeros(2, DType::F64, &Device::Cpu).unwrap();
    parameters.push(Parameter::new("w", value).unwrap());
    assert!(AdamW::new(&parameters, options(0.0)).is_err());
}

/// A GPU updates all parameters at once, with the same roundings: the same bits, over several chunks and steps,
/// and from a saved state.
#[test]
fn every_device_gives_the_same_bits() {
    let [cpu, gpu] = devices().map(|device| {
        let mut parameters = Parameters::default();
        for (name, len) in [
            ("a.weight", 40_000),
            ("a.bias", 3),
            ("LayerNorm.weight", 17),
        ] {
            let value = wave(len, 1.0);
            let value = Tensor::from_vec(value, len, &device).unwrap();
            parameters.push(Parameter::new(name, value).unwrap());
        }
        let mut optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
        for step in 1..=4 {
            parameters.zero_grad().unwrap();
            for parameter in &parameters {
                view::write(&parameter.grad, |g| {
                    assert!(g.iter().all(|&g| g == 0.0));
                    g.copy_from_slice(&wave(g.len(), 0.1 * step as f32));
                    Ok(())
                })
                .unwrap();
            }
            optimizer.step(0.01, 0.5).unwrap();
            if step == 2 {
                let (steps, moments) = optimizer.state();
                let host = moments.into_iter().map(|(name, moment)| {
                    let moment = moment.to_device(&Device::Cpu).unwrap().copy().unwrap();
                    (name, moment)
                });
                let saved = host.collect();
                optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
                optimizer.load_state(steps, saved).unwrap();
            }
        }
        let bits = |t: &Tensor| values(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let norm = global_grad_norm(&parameters).unwrap();
        let all: Vec<_> = parameters.iter().map(|p| bits(&p.value)).collect();
        let moments: Vec<_> = optimizer.state().1.iter().map(|(_, t)| bits(t)).collect();
        (all, moments, norm)
    });
    assert_eq!(cpu.0, gpu.0);
    assert_eq!(cpu.1, gpu.1);
    assert!((cpu.2 / gpu.2 - 1.0).abs() < 1e-12);
}

/// What products read is the rounded value, and behind a closed gate nothing changes any more.
#[test]
fn a_gpu_writes_rounded_copies_and_heeds_the_gate() {
    let gpu = emulated::device();
    let mut parameters = Parameters::default();
    for (name, len, rounded) in [("a.weight", 20_000, true), ("b.weight", 5, false)] {
        let value = Tensor::from_vec(wave(len, 1.0), len, &gpu).unwrap();
        let mut parameter = Parameter::new(name, value).unwrap();
        parameter.rounded = rounded.then(|| Tensor::zeros(len, DType::BF16, &gpu).unwrap());
        parameters.push(parameter);
    }
    let set = |gradient: f32| {
        for parameter in &parameters {
            let write = |g: &mut [f32]| {
                g.fill(gradient);
                Ok(())
            };
            view::write(&parameter.grad, write).unwrap();
        }
    };
    let clip = Clip::new(&parameters, 1.0).unwrap();
    let mut optimizer = AdamW::new(&parameters, options(0.1)).unwrap();
    let mut step = |gradient| {
        set(gradient);
        let (measured, scale) = clip.measure(&parameters, Vec::new(), 1.0).unwrap();
        optimizer.step(0.01, scale).unwrap();
        let moments = optimizer.state().1;
        let all = parameters.iter().map(|p| values(&p.value));
        let all = all.chain(moments.iter().map(|(_, moment)| values(moment)));
        (measured.wait().unwrap().grad_norm, all.collect::<Vec<_>>())
    };
    let (norm, first) = step(3.0);
    assert!((norm / (3.0 * f64::sqrt(20_005.0)) - 1.0).abs() < 1e-12);
    // The first moment is a tenth of the gradient, as clipping scaled it.
    let scaled = 0.1 * 3.0 * clip::coefficient(norm, 1.0);
    assert!((first[2][7] / scaled - 1.0).abs() < 1e-6, "{}", first[2][7]);
    let rounded = parameters.iter().next().unwrap().rounded.clone().unwrap();
    let expected: Vec<bf16> = first[0].iter().map(|&x| bf16::from_f32(x)).collect();
    assert_eq!(rounded.to_vec1::<bf16>().unwrap(), expected);

    let (norm, behind) = step(f32::NAN);
    assert!(norm.is_nan());
    assert_eq!(behind, first);
    let (norm, after) = step(3.0);
    assert!(norm.is_finite());
    assert_eq!(after, first, "an update behind one that could not be made");
}

fn wave(len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37).sin() * scale).collect()
}
