//! Launches of `cross_entropy.cu`.

use std::sync::Arc;

use candle_core::{DType, Result};

use crate::kernels::cuda::{Address, Gpu, Grid, Memory};
use crate::kernels::numbers::Numbers;
use crate::kernels::tensor::Tensor;

/// Items of one block.
const ITEMS: usize = 4;

/// The losses of a micro-batch, on their way.
#[derive(Debug)]
pub struct ItemLosses {
    /// f64 each.
    losses: Memory,
    items: usize,
}

impl ItemLosses {
    pub fn address(&self) -> Address {
        self.losses.address()
    }

    pub fn len(&self) -> usize {
        self.items
    }

    /// Their sum, in order.
    pub fn wait(&self) -> Result<f64> {
        let mut losses = vec![0f64; self.items];
        self.losses.read(0, &mut losses)?;
        Ok(losses.iter().sum())
    }
}

/// Item losses, and the gradient; labels and shapes are checked.
pub fn cross_entropy(
    gpu: &Arc<Gpu>,
    logits: &Tensor,
    labels: Numbers<'_, u32>,
    label_smoothing: f32,
    gradient: Option<(&Tensor, f32)>,
) -> Result<ItemLosses> {
    let (items, classes) = logits.dims2()?;
    let logits = gpu.address(logits, DType::F32)?;
    let (d_logits, scale) = match gradient {
        Some((d_logits, scale)) => (gpu.address(d_logits, DType::F32)?, scale),
        None => (Address::NULL, 0.0),
    };
    let losses = Memory::new(gpu, 8 * items)?;
    let labels = labels.on(gpu)?;
    let launch = gpu
        .launch("cross_entropy")
        .arg(logits)
        .arg(labels.address())
        .size(items)
        .size(classes);
    let launch = launch.arg(f64::from(label_smoothing)).arg(f64::from(scale));
    let launch = launch.arg(losses.address()).arg(d_logits);
    // SAFETY: labels are below `classes`; the shapes are the tensors'.
    unsafe { launch.run(Grid::line(items.div_ceil(ITEMS), 128)) }?;
    Ok(ItemLosses { losses, items })
}
