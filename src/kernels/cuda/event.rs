//! Points in the stream's work that the host can wait for.

use std::sync::Arc;

use candle_core::Result;
use cudarc::driver::{result, sys};

use super::gpu::{Gpu, failed};

/// A point in the stream's work; none until it is recorded.
pub struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: the driver's handle is valid on every thread that has bound the context, and each call binds it.
unsafe impl Send for Event {}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Event")
    }
}

impl Event {
    /// # Errors
    /// If the driver fails.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        // A thread that waits sleeps: other trainers have use for its processor, and the card has more work meanwhile.
        let flags = [
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
            sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC,
        ];
        let flags = flags.into_iter().fold(0, |all, flag| all | flag as u32);
        gpu.bind()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the handle is written, or an error answered.
        unsafe { sys::cuEventCreate(&raw mut event, flags).result() }
            .map_err(failed("an event"))?;
        Ok(Self {
            event,
            gpu: gpu.clone(),
        })
    }

    /// It is behind all work so far.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn record(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: both handles live.
        unsafe { result::event::record(self.event, self.gpu.stream()) }.map_err(failed("an event"))
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// What went wrong in any of it.
    pub fn wait(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the handle lives.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("work on the GPU"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: nobody else has it; the driver frees it once it was reached.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
