//! This machine's GPUs, as the driver's management library (NVML) tells of them. The library is opened while the
//! program runs, so that one binary serves machines with and without a driver.
//!
//! The server asks which cards there are, which of them this program can train on ([`check`]), and how much memory is
//! free; a trainer on a card, what it costs ([`meter`]).

mod check;
pub(super) mod meter;
mod nvml;
#[cfg(test)]
pub(super) mod testing;
mod visible;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The variable by which CUDA is told which cards it may use.
pub(super) const VISIBLE_ENV: &str = "CUDA_VISIBLE_DEVICES";

/// What jobs can be trained on: a GPU, or an instance of one that MIG divides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// `GPU-…` or `MIG-…`: what CUDA, too, knows it by.
    pub uuid: String,
    /// The product.
    pub name: String,
    /// Memory in all. The driver does not tell where a card shares the processor's.
    pub memory_bytes: Option<u64>,
}

/// A GPU with its cards: itself, or its MIG instances. One that cannot be asked has none, but keeps its place, as
/// others are numbered behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Gpu {
    uuid: String,
    cards: Vec<Card>,
}

/// What a card does now; `None` for what the driver does not tell of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Share of the last moment (a sixth of a second to a second) in which some kernel ran.
    pub utilization_percent: Option<f64>,
    /// Of the whole board.
    pub power_w: Option<f64>,
    /// Spent since the driver was loaded.
    pub energy_j: Option<f64>,
    /// Memory in use, whoever uses it.
    pub used_bytes: Option<u64>,
    /// Memory that the asking process holds. In a container the driver may not know whose it is.
    pub own_bytes: Option<u64>,
}

/// The driver did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GpuError(String);

/// Asks the driver.
pub trait Gpus: Send + Sync + fmt::Debug {
    /// Memory of this card that nobody uses; `None` if the driver does not tell.
    ///
    /// # Errors
    /// The card cannot be asked: nothing should be started on it.
    fn free_bytes(&self, uuid: &str) -> Result<Option<u64>, GpuError>;

    /// What this card does now.
    fn read(&self, uuid: &str) -> Reading;
}

/// The cards that jobs may be trained on, and who answers for them. `visible` is the server's own
/// `CUDA_VISIBLE_DEVICES`: what it leaves out belongs to somebody else. `program` is asked about each card. Blocks for
/// a second or two where there are cards.
///
/// # Errors
/// Why there are none, for people.
pub(super) fn find(
    visible: Option<&str>,
    program: &Path,
) -> Result<(Arc<dyn Gpus>, Vec<Card>), String> {
    let nvml = nvml::Nvml::open().map_err(|error| format!("no driver: {error}"))?;
    let gpus = nvml
        .gpus()
        .map_err(|error| format!("the driver lists none: {error}"))?;
    let count = gpus.len();
    let cards = visible::visible(gpus, visible);
    match (cards.len(), visible) {
        (0, Some(visible)) if count > 0 => {
            Err(format!("{VISIBLE_ENV}={visible} leaves none of {count}"))
        }
        (0, _) => Err("the driver has none that can be used".to_owned()),
        (found, _) => match check::usable(cards, program, check::PATIENCE) {
            usable if usable.is_empty() => Err(format!("none of {found} can be used")),
            usable => Ok((Arc::new(nvml), usable)),
        },
    }
}
