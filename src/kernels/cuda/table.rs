//! Several tensors for one launch: most parameters are small, and a launch costs as much as 100,000 elements.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::{Address, Gpu, GpuArray};
use crate::kernels::tensor::Tensor;

/// Elements of one block: `CHUNK` in the kernels. Changing it changes the bits of norms.
const CHUNK: usize = 16384;

/// Groups of N f32 tensors of one shape, such as a parameter with its gradient, and how blocks share them out.
///
/// A kernel gets `entries`, N + 1 + M words each: the addresses, the number of elements, M words of its own; and for
/// every block a word: the number of its entry above, that of its chunk below.
#[derive(Debug)]
pub struct Table {
    gpu: Arc<Gpu>,
    entries: Option<GpuArray>,
    blocks: Option<GpuArray>,
    /// Blocks before each entry, and all of them.
    starts: Vec<usize>,
}

impl Table {
    /// The tensors must live as long as the table.
    ///
    /// # Errors
    /// If tensors are not f32, not on this GPU, or a group's not of one size.
    pub fn new<const N: usize, const M: usize>(
        gpu: &Arc<Gpu>,
        groups: impl IntoIterator<Item = ([Tensor; N], [u64; M])>,
    ) -> Result<Self> {
        let (mut entries, mut blocks, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for (index, (tensors, words)) in (0u64..).zip(groups) {
            let n = tensors.first().map_or(0, Tensor::elem_count);
            for tensor in &tensors {
                if tensor.elem_count() != n {
                    bail!("tensors of a group differ in size")
                }
                entries.push(gpu.address(tensor, DType::F32)?.0);
            }
            entries.push(n as u64);
            entries.extend(words);
            blocks.extend((0..n.div_ceil(CHUNK) as u64).map(|chunk| index << 32 | chunk));
            starts.push(blocks.len());
        }
        let mut this = Self {
            gpu: gpu.clone(),
            entries: None,
            blocks: None,
            starts,
        };
        GpuArray::refill(&mut this.entries, gpu, &entries)?;
        GpuArray::refill(&mut this.blocks, gpu, &blocks)?;
        Ok(this)
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub fn entries(&self) -> Address {
        self.entries
            .as_ref()
            .map_or(Address::NULL, GpuArray::address)
    }

    pub fn blocks(&self) -> Address {
        self.blocks
            .as_ref()
            .map_or(Address::NULL, GpuArray::address)
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Where each entry's blocks are.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.starts.windows(2).map(|w| w[0]..w[1])
    }
}
