//! Copies to the GPU that the host does not wait for. The driver may wait for all work before it copies from ordinary
//! memory, which would end the overlap of one step's work with the preparation of the next.

use std::sync::Arc;

use candle_core::Result;
use cudarc::driver::result;

use super::event::Event;
use super::gpu::{Gpu, failed};
use super::memory::Address;
use super::pinned::Pinned;

/// More at once (weights, when a model is loaded) goes directly.
const BLOCK_BYTES: usize = 4 << 20;
/// Some are being copied from while the next is filled.
const BLOCKS: usize = 4;
/// Pieces begin at multiples of this.
const ALIGNMENT: usize = 64;

/// Pinned memory that uploads pass through, block after block.
#[derive(Debug)]
pub(super) struct Staging {
    blocks: Vec<Block>,
    current: usize,
    used: usize,
}

#[derive(Debug)]
struct Block {
    memory: Pinned,
    /// Behind the last copy from it, once it is full.
    copied: Event,
}

impl Staging {
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            current: 0,
            used: 0,
        }
    }

    /// Puts a copy of `from` into the stream. The caller may change it as soon as this returns.
    ///
    /// # Safety
    /// There are as many bytes at `to`.
    ///
    /// # Errors
    /// If memory is short, or earlier work went wrong.
    pub unsafe fn write(&mut self, gpu: &Arc<Gpu>, to: Address, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        if from.len() > BLOCK_BYTES {
            // SAFETY: the caller's. Memory of the host that is not pinned is copied before the call returns.
            let copied = unsafe { result::memcpy_htod_async(to.0, from, gpu.stream()) };
            return copied.map_err(failed("copying to the GPU"));
        }
        let start = self.room(gpu, from.len())?;
        // SAFETY: `room` found as many bytes that no copy is reading, and nobody else has them; the caller answers
        // for `to`.
        let copied = unsafe {
            start.copy_from_nonoverlapping(from.as_ptr(), from.len());
            let staged = std::slice::from_raw_parts(start, from.len());
            result::memcpy_htod_async(to.0, staged, gpu.stream())
        };
        copied.map_err(failed("copying to the GPU"))
    }

    /// The next so many bytes, at most a block.
    fn room(&mut self, gpu: &Arc<Gpu>, bytes: usize) -> Result<*mut u8> {
        if self.blocks.is_empty() {
            self.blocks.push(Block::new(gpu)?);
        } else if self.used + bytes > BLOCK_BYTES {
            self.blocks[self.current].copied.record()?;
            let next = (self.current + 1) % BLOCKS;
            match self.blocks.get(next) {
                Some(block) => block.copied.wait()?,
                None => self.blocks.push(Block::new(gpu)?),
            }
            (self.current, self.used) = (next, 0);
        }
        let start = self.used;
        self.used = (start + bytes).next_multiple_of(ALIGNMENT);
        Ok(self.blocks[self.current].memory.part(start, bytes))
    }
}

impl Block {
    fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(Self {
            memory: Pinned::new(gpu, BLOCK_BYTES)?,
            copied: Event::new(gpu)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::kernels::cuda::Memory;
    use crate::kernels::cuda::emulated;

    use super::*;

    /// The emulated GPU copies from pinned memory only when it is waited for: a block that is filled again too early
    /// shows.
    #[test]
    fn what_was_written_arrives_however_much_is_under_way() {
        let gpu = emulated::another();
        let piece = BLOCK_BYTES / 3 + 5;
        let pieces = 7 * BLOCKS;
        let memories: Vec<Memory> = (0..pieces)
            .map(|n| {
                let memory = Memory::new(&gpu, piece).unwrap();
                memory.write(0, &vec![n as u8; piece]).unwrap();
                memory
            })
            .collect();
        for (n, memory) in memories.iter().enumerate() {
            let mut back = vec![0xFFu8; piece];
            memory.read(0, &mut back).unwrap();
            assert!(back.iter().all(|&byte| byte == n as u8), "piece {n}");
        }
        let long = vec![3u8; BLOCK_BYTES + 1];
        let memory = Memory::new(&gpu, long.len()).unwrap();
        memory.write(0, &long).unwrap();
        let mut back = vec![0u8; long.len()];
        memory.read(0, &mut back).unwrap();
        assert!(back == long);
    }
}
