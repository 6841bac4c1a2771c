//! Launching kernels.

use std::sync::Arc;

use candle_core::{Result, bail};
use cudarc::driver::result;

use super::gpu::{Gpu, failed};
use super::memory::Address;
use crate::kernels::dropout::Dropout;

/// How many blocks of how many threads, each block with how much dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
}

impl Grid {
    /// One block after the other.
    pub fn line(blocks: usize, threads: u32) -> Self {
        Self::of([blocks, 1, 1], threads)
    }

    /// Blocks in up to three dimensions.
    pub fn of(blocks: [usize; 3], threads: u32) -> Self {
        Self {
            blocks: blocks.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            threads,
            shared_bytes: 0,
        }
    }
}

/// What a kernel can be given: plain numbers, laid out as in C.
///
/// # Safety
/// The type has no padding that matters, no references, and at most 8 bytes of alignment.
pub unsafe trait Argument: Copy {}

// SAFETY: plain numbers.
unsafe impl Argument for u32 {}
// SAFETY: as above.
unsafe impl Argument for i32 {}
// SAFETY: as above.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}
// SAFETY: as above.
unsafe impl Argument for f64 {}
// SAFETY: a number.
unsafe impl Argument for Address {}
// SAFETY: five numbers of 32 bits, `repr(C)`.
unsafe impl Argument for Dropout {}

/// Words of 8 bytes that the arguments of one launch take up.
const WORDS: usize = 64;
/// Arguments of one launch.
const ARGUMENTS: usize = 32;

/// A launch that is being put together.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    name: &'static str,
    words: [u64; WORDS],
    used: usize,
    starts: [usize; ARGUMENTS],
    count: usize,
}

impl Gpu {
    /// Begins a launch of a kernel.
    pub fn launch(self: &Arc<Self>, name: &'static str) -> Launch<'_> {
        Launch {
            gpu: self,
            name,
            words: [0; WORDS],
            used: 0,
            starts: [0; ARGUMENTS],
            count: 0,
        }
    }
}

impl Launch<'_> {
    /// The kernel's next argument.
    #[must_use]
    pub fn arg<T: Argument>(mut self, value: T) -> Self {
        let words = size_of::<T>().div_ceil(8);
        assert!(
            self.count < ARGUMENTS && self.used + words <= WORDS,
            "{} has too many arguments",
            self.name
        );
        // SAFETY: `words` words lie behind `used`, aligned to 8, and `Argument`s are plain numbers.
        unsafe {
            self.words
                .as_mut_ptr()
                .add(self.used)
                .cast::<T>()
                .write(value)
        };
        self.starts[self.count] = self.used;
        self.used += words;
        self.count += 1;
        self
    }

    /// A length or an index.
    #[must_use]
    pub fn size(self, value: usize) -> Self {
        self.arg(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Puts the launch into the stream. A grid without blocks is nothing to do.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, and what it does with them stays inside live memory.
    ///
    /// # Errors
    /// If there is no such kernel or the driver refuses the launch.
    pub unsafe fn run(mut self, grid: Grid) -> Result<()> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if y > 65535 || z > 65535 {
            bail!("{}: {y} x {z} blocks are more than a grid has", self.name)
        }
        self.gpu.bind()?;
        let kernel = self.gpu.kernel(self.name, grid.shared_bytes)?;
        let words = self.words.as_mut_ptr();
        let mut pointers = [std::ptr::null_mut(); ARGUMENTS];
        for (pointer, &start) in pointers.iter_mut().zip(&self.starts[..self.count]) {
            // SAFETY: every start lies inside the words.
            *pointer = unsafe { words.add(start) }.cast();
        }
        // SAFETY: the driver copies the arguments before it returns; the caller answers for the rest.
        let launched = unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                self.gpu.stream(),
                &mut pointers[..self.count],
            )
        };
        launched.map_err(failed(self.name))
    }
}
