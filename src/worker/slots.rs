//! What jobs are trained on: the processor, or the cards of this machine, and where the next job fits.
//!
//! Several jobs may share a card, as far as its memory suffices: each has what it is estimated to take set aside
//! ([`ModelShape::training_bytes`]). Room on a card that is in use is the smaller of what the driver says is free, and of
//! what is left once every attempt there has taken all that was set aside for it. The card with most room is
//! taken. A job whose need is not known, or is more than any card has, waits for a card of its own; as no later job
//! overtakes it, it will get one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::gpus::{self, Card, Gpus};
use crate::config::SlotSetting;
use crate::domain::{Device, Placement, Slot};

/// Where jobs are trained.
#[derive(Clone, Debug)]
pub enum Slots {
    /// On the processor, so many at a time.
    Cpu(u32),
    /// On cards.
    Gpus(GpuSlots),
}

/// Cards and how they are shared.
#[derive(Clone, Debug)]
pub struct GpuSlots {
    gpus: Arc<dyn Gpus>,
    cards: Vec<Card>,
    jobs_per_gpu: u32,
    /// Cards that did not answer when they were last asked. Each is told of once.
    silent: Arc<Mutex<BTreeSet<String>>>,
}

impl Slots {
    /// By the settings: `auto` looks for cards that `CUDA_VISIBLE_DEVICES` leaves to this server and that
    /// `trainer_program` can train on, and takes the processor if there are none.
    pub fn find(setting: SlotSetting, jobs_per_gpu: u32, trainer_program: &Path) -> Self {
        if let SlotSetting::Cpu(jobs) = setting {
            return Self::Cpu(jobs);
        }
        let visible = std::env::var(gpus::VISIBLE_ENV).ok();
        match gpus::find(visible.as_deref(), trainer_program) {
            Ok((gpus, cards)) => Self::Gpus(GpuSlots::new(gpus, cards, jobs_per_gpu)),
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "no GPU to train on: jobs are trained on the processor"
                );
                Self::Cpu(SlotSetting::CPU_JOBS)
            }
        }
    }

    /// Every device there is.
    pub fn list(&self) -> Vec<Slot> {
        match self {
            Self::Cpu(0) => Vec::new(),
            &Self::Cpu(jobs) => vec![Slot {
                device: Device::Cpu,
                jobs,
                memory_bytes: None,
            }],
            Self::Gpus(gpus) => {
                let slot = |card: &Card| Slot {
                    device: device(card),
                    jobs: gpus.jobs_per_gpu,
                    memory_bytes: card.memory_bytes,
                };
                gpus.cards.iter().map(slot).collect()
            }
        }
    }

    /// Whether nothing more can be trained beside what is at `taken`, however little it needs.
    pub(super) fn are_full(&self, taken: &[Placement]) -> bool {
        let full = |slot: &Slot| on(taken, &slot.device).count() >= slot.jobs as usize;
        self.list().iter().all(full)
    }

    /// A place for a job beside what is at `taken`. `need_bytes` answers how much of a card it takes, if that is known;
    /// it is asked only where it matters. Blocks: it asks the driver.
    pub(super) fn place(
        &self,
        taken: &[Placement],
        need_bytes: impl FnOnce() -> Option<u64>,
    ) -> Option<Placement> {
        match self {
            Self::Cpu(_) => (!self.are_full(taken)).then(Placement::default),
            Self::Gpus(gpus) => {
                let may_share = gpus.jobs_per_gpu > 1;
                gpus.place(taken, may_share.then(need_bytes).flatten())
            }
        }
    }
}

impl GpuSlots {
    pub(super) fn new(gpus: Arc<dyn Gpus>, cards: Vec<Card>, jobs_per_gpu: u32) -> Self {
        Self {
            gpus,
            cards,
            jobs_per_gpu,
            silent: Arc::default(),
        }
    }

    fn place(&self, taken: &[Placement], need_bytes: Option<u64>) -> Option<Placement> {
        let rooms = self
            .cards
            .iter()
            .filter_map(|card| Some((card, self.room(card, taken, need_bytes)?)));
        // The first of equals: cards are filled in their order.
        let (card, room) = rooms.rev().max_by_key(|(_, room)| *room)?;
        Some(Placement {
            device: device(card),
            reserved_bytes: need_bytes.filter(|need| *need <= room),
        })
    }

    /// Bytes that a job may take on this card; `None` if it may not be put there.
    fn room(&self, card: &Card, taken: &[Placement], need_bytes: Option<u64>) -> Option<u64> {
        let device = device(card);
        let there: Vec<&Placement> = on(taken, &device).collect();
        if there.len() >= self.jobs_per_gpu as usize {
            return None;
        }
        let free = self.free_bytes(card)?;
        if there.is_empty() {
            // Whatever it needs: there is no better place than an empty card.
            return Some(free);
        }
        // One that has the whole card has set nothing aside, and shares with nobody.
        let reserved: u64 = there
            .iter()
            .map(|place| place.reserved_bytes)
            .sum::<Option<u64>>()?;
        let left = card.memory_bytes?.saturating_sub(reserved).min(free);
        (need_bytes? <= left).then_some(left)
    }

    /// Nothing where the driver does not tell: then nobody can share. `None` if the card does not answer.
    fn free_bytes(&self, card: &Card) -> Option<u64> {
        let answer = self.gpus.free_bytes(&card.uuid);
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(free) => {
                if silent.remove(&card.uuid) {
                    tracing::info!(uuid = card.uuid, "a GPU answers again");
                }
                Some(free.unwrap_or(0))
            }
            Err(error) => {
                if silent.insert(card.uuid.clone()) {
                    tracing::error!(uuid = card.uuid, %error, "a GPU does not answer: it gets no jobs");
                }
                None
            }
        }
    }
}

fn device(card: &Card) -> Device {
    Device::Cuda {
        name: card.name.clone(),
        uuid: card.uuid.clone(),
    }
}

/// What is on this device. A driver may call a card differently after an update; the UUID stays.
fn on<'a>(taken: &'a [Placement], device: &'a Device) -> impl Iterator<Item = &'a Placement> {
    let same = move |place: &&Placement| match (&place.device, device) {
        (Device::Cuda { uuid: a, .. }, Device::Cuda { uuid: b, .. }) => a == b,
        (a, b) => a == b,
    };
    taken.iter().filter(same)
}

#[cfg(test)]
mod tests {
    use super::super::gpus::testing::{FakeGpus, GIB, card};
    use super::*;

    /// Two empty cards, of 24 and of 80 GiB.
    struct Machine {
        gpus: Arc<FakeGpus>,
        cards: Vec<Card>,
        jobs_per_gpu: u32,
    }

    impl Machine {
        fn new(jobs_per_gpu: u32) -> Self {
            let gpus = Arc::new(FakeGpus::default());
            let cards = vec![card("small", 24 * GIB), card("large", 80 * GIB)];
            gpus.set_free("small", Some(23 * GIB));
            gpus.set_free("large", Some(79 * GIB));
            Self {
                gpus,
                cards,
                jobs_per_gpu,
            }
        }

        fn slots(&self) -> Slots {
            let (gpus, cards) = (self.gpus.clone(), self.cards.clone());
            Slots::Gpus(GpuSlots::new(gpus, cards, self.jobs_per_gpu))
        }

        fn place(&self, taken: &[Placement], need: Option<u64>) -> Option<(String, Option<u64>)> {
            let placed = self.slots().place(taken, || need)?;
            let Device::Cuda { uuid, .. } = placed.device else {
                panic!("{placed:?}")
            };
            Some((uuid, placed.reserved_bytes))
        }
    }

    fn at(uuid: &str, reserved_bytes: Option<u64>) -> Placement {
        Placement {
            device: device(&card(uuid, 0)),
            reserved_bytes,
        }
    }

    fn place(uuid: &str, reserved: Option<u64>) -> Option<(String, Option<u64>)> {
        Some((uuid.to_owned(), reserved))
    }

    #[test]
    fn processors_are_counted() {
        let slots = Slots::Cpu(2);
        let (cpu, gpu) = (Placement::default(), at("small", None));
        let one = [cpu.clone(), gpu.clone()];
        assert_eq!(slots.place(&one, || panic!("not asked")), Some(cpu.clone()));
        assert!(!slots.are_full(&one));
        let two = [cpu.clone(), gpu, cpu];
        assert_eq!(slots.place(&two, || None), None);
        assert!(slots.are_full(&two));
        assert!(Slots::Cpu(0).are_full(&[]));
        assert_eq!(Slots::Cpu(0).list(), []);
        assert_eq!(slots.list()[0].jobs, 2);
    }

    #[test]
    fn with_one_job_a_card_each_has_it_all_and_no_need_is_asked() {
        let machine = Machine::new(1);
        let first = machine.slots().place(&[], || panic!("not asked"));
        assert_eq!(first, Some(at("large", None)));
        let taken = [at("large", None)];
        assert_eq!(machine.place(&taken, None), place("small", None));
        let taken = [at("large", None), at("small", None)];
        assert_eq!(machine.place(&taken, None), None);
        assert!(machine.slots().are_full(&taken));
        assert!(!machine.slots().are_full(&taken[1..]));
    }

    #[test]
    fn jobs_go_where_most_is_free_and_share_what_suffices() {
        let machine = Machine::new(3);
        let need = Some(30 * GIB);
        assert_eq!(machine.place(&[], need), place("large", need));
        let mut taken = vec![at("large", need)];
        assert_eq!(machine.place(&taken, need), place("large", need));
        taken.push(at("large", need));
        // 20 GiB are left of the large one, 23 of the small.
        assert_eq!(
            machine.place(&taken, Some(21 * GIB)),
            place("small", Some(21 * GIB))
        );
        // More than the empty small card has: it may try there, alone.
        assert_eq!(machine.place(&taken, need), place("small", None));
        taken.push(at("small", Some(GIB)));
        assert_eq!(machine.place(&taken, need), None);
        assert_eq!(
            machine.place(&taken, Some(20 * GIB)),
            place("small", Some(20 * GIB))
        );
        taken.push(at("large", Some(GIB)));
        assert_eq!(
            machine.place(&taken, Some(2 * GIB)),
            place("small", Some(2 * GIB))
        );
    }

    #[test]
    fn what_others_use_counts_and_what_was_taken_counts_once() {
        let mut machine = Machine::new(9);
        machine.cards.remove(0);
        let taken = [at("large", Some(30 * GIB))];
        // It has taken all that was set aside for it.
        machine.gpus.set_free("large", Some(50 * GIB));
        assert_eq!(
            machine.place(&taken, Some(50 * GIB)),
            place("large", Some(50 * GIB))
        );
        assert_eq!(machine.place(&taken, Some(50 * GIB + 1)), None);
        // It has not begun, or another program has taken much.
        machine.gpus.set_free("large", Some(79 * GIB));
        assert_eq!(machine.place(&taken, Some(51 * GIB)), None);
        machine.gpus.set_free("large", Some(10 * GIB));
        assert_eq!(machine.place(&taken, Some(11 * GIB)), None);
    }

    #[test]
    fn an_unknown_need_is_the_whole_card() {
        let mut machine = Machine::new(4);
        let taken = [at("large", Some(GIB))];
        assert_eq!(machine.place(&taken, None), place("small", None));
        let taken = [at("large", Some(GIB)), at("small", None)];
        assert_eq!(machine.place(&taken, None), None, "no card is empty");
        assert!(!machine.slots().are_full(&taken), "others may fit");
        let large = place("large", Some(GIB));
        assert_eq!(
            machine.place(&taken, Some(GIB)),
            large,
            "not the one that is not shared"
        );
        // A card whose memory nobody knows is never shared.
        machine.cards = vec![Card {
            memory_bytes: None,
            ..card("unified", 0)
        }];
        machine.gpus.set_free("unified", None);
        assert_eq!(machine.place(&[], Some(GIB)), place("unified", None));
        assert_eq!(machine.place(&[at("unified", None)], Some(GIB)), None);
    }

    #[test]
    fn a_card_that_does_not_answer_gets_nothing_until_it_does() {
        let machine = Machine::new(1);
        machine.gpus.lose("large");
        assert_eq!(machine.place(&[], None), place("small", None));
        machine.gpus.lose("small");
        assert_eq!(machine.place(&[], None), None);
        machine.gpus.set_free("large", Some(GIB));
        assert_eq!(machine.place(&[], None), place("large", None));
    }

    #[test]
    fn equal_cards_are_filled_in_order() {
        let machine = Machine::new(1);
        machine.gpus.set_free("large", Some(23 * GIB));
        assert_eq!(machine.place(&[], None), place("small", None));
    }
}
