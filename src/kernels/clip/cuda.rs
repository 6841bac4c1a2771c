//! Launches of `clip.cu`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use super::Measures;
use crate::kernels::cross_entropy::Loss;
use crate::kernels::cuda::{Address, Event, Gpu, Grid, Memory, Pinned, Table};
use crate::kernels::gradient;

const THREADS: u32 = 256;

// `Gate` in clip.cu.
const GATE_BYTES: usize = 32;
const MEASURES_AT: usize = 8;
const SCALE_AT: usize = 24;

/// A GPU's numbers between gradients and update.
#[derive(Debug)]
pub struct Clip {
    gate: Gate,
    spares: Spares,
}

/// What an update on a GPU reads: by how much to scale gradients, and whether to do anything.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Memory>);

/// Places for reports that nobody waits for any more.
type Spares = Arc<Mutex<Vec<Place>>>;

/// The host's memory for one report, and when it is there.
#[derive(Debug)]
struct Place {
    memory: Pinned,
    arrived: Event,
}

/// A step's measures, on their way to the host.
#[derive(Debug)]
pub struct Report {
    /// `None` only when it is dropped.
    place: Option<Place>,
    spares: Spares,
}

impl Clip {
    /// # Errors
    /// If memory is short.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let memory = Memory::new(gpu, GATE_BYTES)?;
        memory.zero(0, GATE_BYTES)?;
        Ok(Self {
            gate: Gate(Arc::new(memory)),
            spares: Spares::default(),
        })
    }

    /// What updates read, once [`Self::measure`] was called.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Puts into the stream: the sum of these losses times `share`, the norm of all gradients of the table, and what
    /// follows for the update.
    ///
    /// # Errors
    /// If memory is short or the driver refuses.
    pub fn measure(
        &self,
        gradients: &Table,
        losses: Vec<Loss>,
        share: f64,
        max_norm: f64,
    ) -> Result<Report> {
        let gpu = gradients.gpu();
        for losses in losses.iter().filter_map(Loss::under_way) {
            let launch = gpu.launch("add_losses").arg(losses.address());
            let launch = launch.size(losses.len()).arg(self.gate.address());
            // SAFETY: there are as many losses.
            unsafe { launch.run(Grid::line(1, THREADS)) }?;
        }
        let squares = gradient::cuda::block_sums_of_squares(gradients)?;
        let launch = gpu.launch("clip").arg(squares.address());
        let launch = launch
            .size(gradients.block_count())
            .arg(share)
            .arg(max_norm);
        // SAFETY: there is a sum for each block.
        unsafe { launch.arg(self.gate.address()).run(Grid::line(1, THREADS)) }?;
        let spare = lock(&self.spares).pop();
        let place = match spare {
            Some(place) => place,
            None => Place {
                memory: Pinned::new(gpu, size_of::<[f64; 2]>())?,
                arrived: Event::new(gpu)?,
            },
        };
        self.gate.0.read_later(MEASURES_AT, &place.memory)?;
        place.arrived.record()?;
        Ok(Report {
            place: Some(place),
            spares: Arc::clone(&self.spares),
        })
    }
}

impl Gate {
    pub fn address(&self) -> Address {
        self.0.address()
    }

    /// Where the scale is, and behind it whether updates have stopped.
    pub fn scale_address(&self) -> Address {
        self.0.address().offset(SCALE_AT)
    }

    /// (scale, whether updates have stopped); waits for them.
    #[cfg(test)]
    pub fn read(&self) -> Result<(f32, bool)> {
        let mut words = [0u32; 2];
        self.0.read(SCALE_AT, &mut words)?;
        Ok((f32::from_bits(words[0]), words[1] != 0))
    }
}

impl Report {
    /// Waits for it.
    ///
    /// # Errors
    /// What went wrong in any work before.
    pub fn wait(&self) -> Result<Measures> {
        let mut numbers = [0f64; 2];
        if let Some(place) = &self.place {
            place.arrived.wait()?;
            let from = place.memory.part(0, size_of_val(&numbers)).cast::<f64>();
            // SAFETY: the copy is complete, and of two numbers.
            unsafe { from.copy_to_nonoverlapping(numbers.as_mut_ptr(), numbers.len()) };
        }
        let [loss, grad_norm] = numbers;
        Ok(Measures { loss, grad_norm })
    }
}

impl Drop for Report {
    /// A copy that is still under way is over before the next one to the same place.
    fn drop(&mut self) {
        lock(&self.spares).extend(self.place.take());
    }
}

fn lock(spares: &Spares) -> std::sync::MutexGuard<'_, Vec<Place>> {
    spares.lock().unwrap_or_else(PoisonError::into_inner)
}
