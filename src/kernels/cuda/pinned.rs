//! The host's memory that a GPU reaches by itself, so that copies go on while the host does other things.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::Result;
use cudarc::driver::result;

use super::gpu::{Gpu, failed};

/// A piece of such memory.
#[derive(Debug)]
pub struct Pinned {
    gpu: Arc<Gpu>,
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: memory of the process, with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Whatever was there before.
    ///
    /// # Errors
    /// If the system does not give as much.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: the memory is ours until `drop`.
        let start = unsafe { result::malloc_host(bytes.max(16), 0) };
        Ok(Self {
            start: start.map_err(failed("memory of the host"))?,
            gpu: gpu.clone(),
            bytes,
        })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes from `offset` on, to be written and read by the host and the GPU.
    ///
    /// # Panics
    /// If it has no such part.
    pub fn part(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset + bytes <= self.bytes,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        // SAFETY: it lies inside.
        unsafe { self.start.cast::<u8>().add(offset) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: nobody has it any more; the driver waits for copies under way.
            let _ = unsafe { result::free_host(self.start) };
        }
    }
}
