//! Named places at which tests break a trainer on purpose. Only builds with `debug_assertions` have them: in a
//! release build [`Faults`] is empty, every question is answered "no" at compile time, and the variable is
//! not read.
//!
//! `CHANDLER_FAULTS` is a comma-separated list of `point@number=action[#attempt]`:
//!
//! | point | number | actions |
//! |---|---|---|
//! | `train.step` | optimizer step, from 1 | `hang`, `kill` (SIGKILL), `abort` (an allocation fails) before the step |
//! | `train.gradients` | optimizer step | `nan`: one gradient becomes NaN |
//! | `train.memory` | optimizer step | `oom`: the step's workspace cannot be had |
//! | `train.order` | 1 | `restart`: a resumed training forgets its place in the data and in the dropout stream |
//! | `train.watchdog` | milliseconds | `limit`: the shortest silence that counts as hung |
//! | `checkpoint.write` | operation on the disk, from 1 in each process | `enospc`, `kill` |
//!
//! Every fault happens once in a process; `#2` limits it to the job's second attempt.

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A number is no longer one.
    Nan,
    /// Nothing happens any more.
    Hang,
    /// The process ends by SIGKILL.
    Kill,
    /// Memory cannot be had where that can be told.
    Oom,
    /// Memory cannot be had elsewhere: the allocator ends the process.
    Abort,
    /// The disk is full.
    Enospc,
    /// Begin again where one should go on.
    Restart,
    /// A limit is what the number says.
    Limit,
}

pub use plan::Faults;

#[cfg(not(debug_assertions))]
mod plan {
    use super::Action;

    /// No faults: this is a release build.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Faults;

    impl Faults {
        /// None.
        ///
        /// # Errors
        /// Never.
        pub const fn from_env(_attempt: u32) -> Result<Self, String> {
            Ok(Self)
        }

        /// Never.
        #[inline(always)]
        pub const fn at(&self, _point: &str, _number: u64) -> Option<Action> {
            None
        }

        /// Never.
        #[inline(always)]
        pub const fn next(&self, _point: &str) -> Option<Action> {
            None
        }

        /// None.
        #[inline(always)]
        pub const fn limit(&self, _point: &str) -> Option<u64> {
            None
        }

        /// Nothing.
        #[inline(always)]
        pub const fn strike(_action: Action) {}
    }
}

#[cfg(debug_assertions)]
mod plan {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::Action;

    const ENV: &str = "CHANDLER_FAULTS";

    /// Which actions make sense where.
    const POINTS: [(&str, &[(&str, Action)]); 6] = [
        (
            "train.step",
            &[
                ("hang", Action::Hang),
                ("kill", Action::Kill),
                ("abort", Action::Abort),
            ],
        ),
        ("train.gradients", &[("nan", Action::Nan)]),
        ("train.memory", &[("oom", Action::Oom)]),
        ("train.order", &[("restart", Action::Restart)]),
        ("train.watchdog", &[("limit", Action::Limit)]),
        (
            "checkpoint.write",
            &[("enospc", Action::Enospc), ("kill", Action::Kill)],
        ),
    ];

    #[derive(Debug)]
    struct Fault {
        point: &'static str,
        number: u64,
        action: Action,
        done: AtomicBool,
    }

    #[derive(Debug, Default)]
    struct Plan {
        faults: Vec<Fault>,
        /// How often each of [`POINTS`] was asked for by [`Faults::next`].
        counts: [AtomicU64; POINTS.len()],
    }

    /// The faults planned for this process; clones share what has happened already.
    #[derive(Clone, Debug, Default)]
    pub struct Faults(Arc<Plan>);

    impl Faults {
        /// What the environment plans for this attempt.
        ///
        /// # Errors
        /// If it cannot be understood: a fault that never happens would let a test pass for nothing.
        pub fn from_env(attempt: u32) -> Result<Self, String> {
            match std::env::var(ENV) {
                Ok(text) => Self::parse(&text, attempt).map_err(|error| format!("{ENV}: {error}")),
                Err(_) => Ok(Self::default()),
            }
        }

        /// Reads a plan; see the module.
        ///
        /// # Errors
        /// Names the entry that is wrong.
        pub fn parse(text: &str, attempt: u32) -> Result<Self, String> {
            let mut faults = Vec::new();
            for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
                let (fault, only) = parse_entry(entry).ok_or_else(|| {
                    format!("`{entry}` is not `point@number=action[#attempt]` of known words")
                })?;
                if only.is_none_or(|only| only == attempt) {
                    faults.push(fault);
                }
            }
            Ok(Self(Arc::new(Plan {
                faults,
                ..Plan::default()
            })))
        }

        /// What happens at this numbered place, if it has not happened yet.
        pub fn at(&self, point: &str, number: u64) -> Option<Action> {
            let planned = |f: &&Fault| f.point == point && f.number == number;
            let mut candidates = self.0.faults.iter().filter(planned);
            candidates
                .find(|fault| !fault.done.swap(true, Ordering::Relaxed))
                .map(|fault| fault.action)
        }

        /// The same at a place that is counted from 1 as it is passed.
        pub fn next(&self, point: &str) -> Option<Action> {
            let index = POINTS.iter().position(|(name, _)| *name == point)?;
            let number = self.0.counts[index].fetch_add(1, Ordering::Relaxed) + 1;
            self.at(point, number)
        }

        /// The number given to a limit.
        pub fn limit(&self, point: &str) -> Option<u64> {
            let mut faults = self.0.faults.iter();
            faults.find(|f| f.point == point).map(|f| f.number)
        }

        /// Does what takes the whole process; other actions are the caller's to play.
        pub fn strike(action: Action) {
            match action {
                Action::Kill => {
                    use nix::sys::signal::{Signal, kill};
                    kill(nix::unistd::Pid::this(), Signal::SIGKILL).ok();
                    wait_forever();
                }
                Action::Hang => wait_forever(),
                // More than any machine has.
                Action::Abort => {
                    std::hint::black_box(Vec::<u8>::with_capacity(isize::MAX.unsigned_abs()));
                }
                _ => {}
            }
        }
    }

    fn wait_forever() {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
    }

    /// The fault, and the attempt it is meant for.
    fn parse_entry(entry: &str) -> Option<(Fault, Option<u32>)> {
        let (rest, only) = match entry.split_once('#') {
            Some((rest, attempt)) => (rest, Some(attempt.parse().ok()?)),
            None => (entry, None),
        };
        let (place, action) = rest.split_once('=')?;
        let (point, number) = place.split_once('@')?;
        let (point, actions) = POINTS.iter().find(|(name, _)| *name == point)?;
        let (_, action) = actions.iter().find(|(name, _)| *name == action)?;
        let fault = Fault {
            point,
            number: number.parse().ok()?,
            action: *action,
            done: AtomicBool::new(false),
        };
        Some((fault, only))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_once_at_its_place() {
        let faults = Faults::parse(
            "train.step@5=hang, train.memory@4=oom,train.memory@4=oom",
            1,
        )
        .unwrap();
        assert_eq!(faults.at("train.step", 4), None);
        assert_eq!(faults.clone().at("train.step", 5), Some(Action::Hang));
        assert_eq!(
            faults.at("train.step", 5),
            None,
            "clones share what happened"
        );
        let ooms: Vec<_> = (0..3).map(|_| faults.at("train.memory", 4)).collect();
        assert_eq!(ooms, [Some(Action::Oom), Some(Action::Oom), None]);
    }

    #[test]
    fn places_are_counted() {
        let faults = Faults::parse("checkpoint.write@3=enospc", 1).unwrap();
        let seen: Vec<_> = (0..4).map(|_| faults.next("checkpoint.write")).collect();
        assert_eq!(seen, [None, None, Some(Action::Enospc), None]);
    }

    #[test]
    fn an_attempt_may_be_named() {
        let of = |attempt| {
            Faults::parse("train.step@5=kill#2", attempt)
                .unwrap()
                .at("train.step", 5)
        };
        assert_eq!((of(1), of(2)), (None, Some(Action::Kill)));
        let limit = Faults::parse("train.watchdog@250=limit", 1).unwrap();
        assert_eq!(limit.limit("train.watchdog"), Some(250));
    }

    #[test]
    fn a_plan_that_means_nothing_is_refused() {
        for wrong in [
            "train.step",
            "train.step@5",
            "train.step@x=kill",
            "train.step@5=nan",
            "train.steps@5=kill",
            "train.step@5=kill#x",
            "train.step=kill",
        ] {
            assert!(
                Faults::parse(wrong, 1).unwrap_err().contains(wrong),
                "{wrong}"
            );
        }
    }
}
