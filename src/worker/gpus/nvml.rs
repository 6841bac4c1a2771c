//! [`Gpus`] by NVML.

use std::fmt;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::MemoryInfo;
use nvml_wrapper::{Device, Nvml as Library};

use super::{Card, Gpu, GpuError, Gpus, Reading};

/// What `nvmlDeviceGetMigMode` answers for a GPU that is divided.
const MIG_ENABLED: u32 = 1;

/// The library, open. Cards are looked up at every question: a handle would not outlive a reset.
pub struct Nvml(Library);

impl Nvml {
    /// Opens `libnvidia-ml.so.1` and talks to the driver.
    pub fn open() -> Result<Self, GpuError> {
        Ok(Self(Library::init()?))
    }

    /// All GPUs, in the order of the bus, by which `nvidia-smi` numbers them.
    pub fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        let gpu = |index| {
            self.gpu(index).unwrap_or_else(|error| {
                tracing::warn!(index, %error, "a GPU does not answer and is not used");
                Gpu::default()
            })
        };
        Ok((0..self.0.device_count()?).map(gpu).collect())
    }

    fn gpu(&self, index: u32) -> Result<Gpu, GpuError> {
        let device = self.0.device_by_index(index)?;
        let is_divided = device
            .mig_mode()
            .is_ok_and(|mode| mode.current == MIG_ENABLED);
        let cards = if is_divided {
            // The count is of places; some may be empty.
            let instances = 0..device.mig_device_count()?;
            instances
                .filter_map(|place| device.mig_device_by_index(place).ok())
                .map(|instance| card(&instance))
                .collect::<Result<_, _>>()?
        } else {
            vec![card(&device)?]
        };
        let uuid = device.uuid()?;
        Ok(Gpu { uuid, cards })
    }
}

impl Gpus for Nvml {
    fn free_bytes(&self, uuid: &str) -> Result<Option<u64>, GpuError> {
        let memory = memory(&self.0.device_by_uuid(uuid)?)?;
        Ok(memory.map(|memory| memory.free))
    }

    fn read(&self, uuid: &str) -> Reading {
        let Ok(device) = self.0.device_by_uuid(uuid) else {
            return Reading::default();
        };
        let utilization = device.utilization_rates().ok();
        let milliwatts = device.power_usage().ok();
        let millijoules = device.total_energy_consumption().ok();
        Reading {
            utilization_percent: utilization.map(|rates| f64::from(rates.gpu)),
            power_w: milliwatts.map(|mw| f64::from(mw) / 1e3),
            energy_j: millijoules.map(from_milli),
            used_bytes: memory(&device).ok().flatten().map(|memory| memory.used),
            own_bytes: own_bytes(&device),
        }
    }
}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nvml")
    }
}

impl From<NvmlError> for GpuError {
    fn from(error: NvmlError) -> Self {
        Self(error.to_string())
    }
}

fn card(device: &Device<'_>) -> Result<Card, GpuError> {
    Ok(Card {
        uuid: device.uuid()?,
        name: device.name()?,
        memory_bytes: memory(device)?.map(|memory| memory.total),
    })
}

/// `None` where there is nothing to tell: memory that is the processor's, or a driver before R510.
fn memory(device: &Device<'_>) -> Result<Option<MemoryInfo>, GpuError> {
    match device.memory_info() {
        Ok(memory) => Ok(Some(memory)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn own_bytes(device: &Device<'_>) -> Option<u64> {
    let processes = device.running_compute_processes().ok()?;
    let own = processes
        .into_iter()
        .find(|process| process.pid == std::process::id())?;
    match own.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 mJ are a card's work of centuries"
)]
fn from_milli(value: u64) -> f64 {
    value as f64 / 1e3
}
