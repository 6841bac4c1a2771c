//! Where and how precisely a model is computed.

use candle_core::{DType, Result};
use std::sync::Arc;

use super::cuda::Gpu;
use super::linear::Precision;

/// Where tensors are and ops run.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The host's processors.
    #[default]
    Cpu,
    /// A GPU.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The first GPU that this process may use.
    ///
    /// # Errors
    /// If there is no driver, no GPU, or no kernels for it in this program.
    pub fn first_gpu() -> Result<Self> {
        Ok(Self::Gpu(Gpu::open(0)?))
    }

    /// Whether it multiplies bf16 faster than f32.
    pub fn has_fast_bf16(&self) -> bool {
        match self {
            Self::Cpu => Precision::fast_bf16(),
            // Every card that can be opened does.
            Self::Gpu(_) => true,
        }
    }

    /// For logs: `cpu`, or the card's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(gpu) => gpu.name(),
        }
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu),
        }
    }
}

/// What layers are made for.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where parameters and buffers are.
    pub device: Device,
    /// What the factors of products are rounded to.
    pub precision: Precision,
}

impl Compute {
    /// What activations are kept as.
    pub fn storage(&self) -> DType {
        self.precision.storage()
    }

    /// The same in f32.
    #[must_use]
    pub fn in_f32(&self) -> Self {
        Self {
            device: self.device.clone(),
            precision: Precision::F32,
        }
    }
}

impl From<Precision> for Compute {
    /// On the CPU.
    fn from(precision: Precision) -> Self {
        Self {
            device: Device::Cpu,
            precision,
        }
    }
}
