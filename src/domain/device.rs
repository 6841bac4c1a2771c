//! What an attempt trains on, and how much of it is set aside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The variable that tells a trainer what to train on: [`DeviceKind`] as a word. With `cuda`, the card is the
/// only one that `CUDA_VISIBLE_DEVICES` leaves.
pub const DEVICE_ENV: &str = "CHANDLER_DEVICE";

/// What a trainer computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// This machine's processor.
    #[default]
    Cpu,
    /// The first CUDA device that is visible.
    Cuda,
}

impl DeviceKind {
    /// The word in [`DEVICE_ENV`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kinds = [Self::Cpu, Self::Cuda];
        let found = kinds.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no device; there are `cpu` and `cuda`"))
    }
}

/// What an attempt trains on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Device {
    /// The server's processor.
    #[default]
    Cpu,
    /// A GPU, or an instance of one that MIG divides.
    Cuda {
        /// The product, such as `NVIDIA H100 80GB HBM3`.
        name: String,
        /// What the driver calls this very card: `GPU-…` or `MIG-…`.
        uuid: String,
    },
}

impl Device {
    /// What it is, without its name.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Cpu => DeviceKind::Cpu,
            Self::Cuda { .. } => DeviceKind::Cuda,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { name, uuid } => write!(f, "{name} ({uuid})"),
        }
    }
}

/// Where an attempt is put, and what is set aside for it there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// Bytes of the card's memory; other jobs may have the rest. `None`: the whole card, or the processor, whose
    /// memory nobody sets aside.
    pub reserved_bytes: Option<u64>,
}

/// A device of this server, and how many jobs it trains at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Slot {
    /// The device.
    pub device: Device,
    /// Jobs at a time.
    pub jobs: u32,
    /// A card's memory in all, where the driver tells.
    #[schema(required)]
    pub memory_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_as_json_and_as_text() {
        let card = Device::Cuda {
            name: "H100".to_owned(),
            uuid: "GPU-1".to_owned(),
        };
        let json = json!({"type": "cuda", "name": "H100", "uuid": "GPU-1"});
        assert_eq!(serde_json::to_value(&card).unwrap(), json);
        assert_eq!(serde_json::from_value::<Device>(json).unwrap(), card);
        assert_eq!(card.to_string(), "H100 (GPU-1)");
        let cpu = serde_json::to_value(Device::Cpu).unwrap();
        assert_eq!(cpu, json!({"type": "cpu"}));
    }

    #[test]
    fn a_kind_is_one_of_two_words() {
        for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("gpu".parse::<DeviceKind>().unwrap_err().contains("`gpu`"));
    }
}
