//! Cards that a test makes up.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::{Card, GpuError, Gpus, Reading};

pub const GIB: u64 = 1 << 30;

/// Free bytes and the rest, by UUID.
type Answers = BTreeMap<String, (Option<u64>, Reading)>;

/// What the driver would tell of cards; a card that is not there does not answer.
#[derive(Debug, Default)]
pub struct FakeGpus(Mutex<Answers>);

impl FakeGpus {
    pub fn set_free(&self, uuid: &str, free_bytes: Option<u64>) {
        self.0.lock().unwrap().entry(uuid.to_owned()).or_default().0 = free_bytes;
    }

    pub fn set_reading(&self, uuid: &str, reading: Reading) {
        self.0.lock().unwrap().entry(uuid.to_owned()).or_default().1 = reading;
    }

    /// As long as this is held, the driver answers nothing.
    pub fn hang(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap()
    }

    pub fn lose(&self, uuid: &str) {
        self.0.lock().unwrap().remove(uuid);
    }
}

impl Gpus for FakeGpus {
    fn free_bytes(&self, uuid: &str) -> Result<Option<u64>, GpuError> {
        let cards = self.0.lock().unwrap();
        let card = cards.get(uuid);
        card.map(|card| card.0)
            .ok_or_else(|| GpuError("it fell off the bus".to_owned()))
    }

    fn read(&self, uuid: &str) -> Reading {
        let cards = self.0.lock().unwrap();
        cards.get(uuid).map(|card| card.1).unwrap_or_default()
    }
}

pub fn card(uuid: &str, memory_bytes: u64) -> Card {
    Card {
        uuid: uuid.to_owned(),
        name: "Test Card".to_owned(),
        memory_bytes: Some(memory_bytes),
    }
}
