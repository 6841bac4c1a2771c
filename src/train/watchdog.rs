//! Ends a process whose training hangs. The loop shows a sign of life at every micro-batch and every batch of
//! an evaluation; ten times the median step without one is a hang. Waiting for the disk is not, so saving
//! [rests](Pulse::rest) the watch, and reading and tokenising are over before it begins.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The shortest silence that is a hang, unless a test asks for less.
pub const SHORTEST_LIMIT: Duration = Duration::from_secs(30);
/// Median steps of silence that are a hang.
const STEPS: u32 = 10;
/// Steps the median is of.
const REMEMBERED: usize = 64;
/// Looks at the pulse in the time of one limit.
const LOOKS: u32 = 20;

/// The signs of life.
#[derive(Debug)]
pub struct Pulse {
    beats: AtomicU64,
    resting: AtomicBool,
    over: AtomicBool,
    shortest: Duration,
    limit_ns: AtomicU64,
    steps: Mutex<VecDeque<Duration>>,
}

impl Pulse {
    /// A pulse whose silence is never shorter than `shortest`.
    pub fn new(shortest: Duration) -> Self {
        Self {
            beats: AtomicU64::new(0),
            resting: AtomicBool::new(false),
            over: AtomicBool::new(false),
            shortest,
            limit_ns: AtomicU64::new(nanos(shortest)),
            steps: Mutex::new(VecDeque::with_capacity(REMEMBERED)),
        }
    }

    /// Something was done.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// A step was taken in this time.
    pub fn step(&self, took: Duration) {
        self.beat();
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() == REMEMBERED {
            steps.pop_front();
        }
        steps.push_back(took);
        let mut sorted: Vec<Duration> = steps.iter().copied().collect();
        sorted.sort_unstable();
        let limit = sorted[sorted.len() / 2]
            .saturating_mul(STEPS)
            .max(self.shortest);
        self.limit_ns.store(nanos(limit), Ordering::Relaxed);
    }

    /// Does something that may take any time.
    pub fn rest<R>(&self, work: impl FnOnce() -> R) -> R {
        self.resting.store(true, Ordering::Relaxed);
        let result = work();
        self.beat();
        self.resting.store(false, Ordering::Relaxed);
        result
    }

    fn limit(&self) -> Duration {
        Duration::from_nanos(self.limit_ns.load(Ordering::Relaxed))
    }

    /// Looks until the work is over or nothing has stirred for a whole limit; answers that limit then.
    ///
    /// Silence is counted in looks, not by the clock: a process that was stopped (SIGSTOP, a laptop that
    /// slept) did not hang. Nor does one whose threads wait for a processor that others keep busy: what
    /// `waited` says of that, in all up to now, is no silence.
    fn watch(&self, waited: impl Fn() -> Duration) -> Option<Duration> {
        let (mut seen, mut silence) = (self.beats.load(Ordering::Relaxed), Duration::ZERO);
        let mut waited_before = waited();
        loop {
            let nap = self.limit() / LOOKS;
            let began = Instant::now();
            std::thread::park_timeout(nap);
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            let beats = self.beats.load(Ordering::Relaxed);
            if beats != seen || self.resting.load(Ordering::Relaxed) {
                (seen, silence) = (beats, Duration::ZERO);
                continue;
            }
            let waited_now = waited();
            let ready = waited_now.saturating_sub(waited_before);
            waited_before = waited_now;
            silence += began.elapsed().min(nap).saturating_sub(ready);
            if silence >= self.limit() {
                return Some(self.limit());
            }
        }
    }
}

/// How long this process's threads were ready to run and had no processor, all of them together (Linux,
/// `Documentation/scheduler/sched-stats.rst`); where the system does not say, zero.
fn waited_for_a_processor() -> Duration {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    let waited = |thread: std::fs::DirEntry| {
        let statistics = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        statistics.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let all = threads.flatten().filter_map(waited);
    Duration::from_nanos(all.fold(0, u64::saturating_add))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Does `work` under watch. If it hangs, `on_hang` is called, which should not return.
pub fn guard<R>(
    pulse: &Pulse,
    on_hang: impl FnOnce(Duration) + Send,
    work: impl FnOnce() -> R,
) -> R {
    std::thread::scope(|scope| {
        let watch = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn_scoped(scope, || {
                if let Some(limit) = pulse.watch(waited_for_a_processor) {
                    on_hang(limit);
                }
            });
        // Without a thread there is no watch; that is no reason not to train.
        let _over = watch.ok().map(|handle| Over {
            pulse,
            thread: handle.thread().clone(),
        });
        work()
    })
}

/// Ends the watch, also when the work panics.
struct Over<'a> {
    pulse: &'a Pulse,
    thread: std::thread::Thread,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.pulse.over.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(40);

    /// The hang itself is what ends the test: `work` waits for the watchdog's word.
    #[test]
    fn silence_is_reported_with_its_limit() {
        let pulse = Pulse::new(SHORT);
        let (hung, word) = channel();
        let limit = guard(
            &pulse,
            |limit| hung.send(limit).unwrap(),
            || word.recv_timeout(Duration::from_secs(60)),
        );
        assert_eq!(limit.unwrap(), SHORT);
    }

    #[test]
    fn work_that_beats_or_rests_is_left_alone() {
        let pulse = Pulse::new(SHORT);
        let (hung, word) = channel();
        guard(
            &pulse,
            |limit| hung.send(limit).unwrap(),
            || {
                pulse.rest(|| std::thread::sleep(3 * SHORT));
            },
        );
        assert!(word.try_recv().is_err());
    }

    /// The same silence twice: of a process that has no processor for most of the time, and of one that has.
    #[test]
    fn waiting_for_a_processor_is_no_silence() {
        let pulse = Pulse::new(SHORT);
        let started = Instant::now();
        let starving = || started.elapsed() * 2;
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| pulse.watch(starving));
            std::thread::sleep(3 * SHORT);
            pulse.over.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            assert_eq!(watch.join().unwrap(), None);
        });
        pulse.over.store(false, Ordering::Relaxed);
        assert_eq!(pulse.watch(|| Duration::ZERO), Some(SHORT));
    }

    /// Twice as many threads as processors, each busy: some of them must wait.
    #[test]
    fn the_system_says_how_long_threads_waited() {
        let before = waited_for_a_processor();
        let busy = std::thread::available_parallelism().unwrap().get() * 2;
        let deadline = Instant::now() + Duration::from_millis(300);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..busy)
                .map(|_| {
                    scope.spawn(move || {
                        while Instant::now() < deadline {
                            std::hint::spin_loop();
                        }
                        waited_for_a_processor()
                    })
                })
                .collect();
            let most = threads.into_iter().map(|t| t.join().unwrap()).max();
            assert!(most.unwrap() > before + Duration::from_millis(10));
        });
    }

    #[test]
    fn the_limit_is_ten_median_steps_and_never_below_the_shortest() {
        let pulse = Pulse::new(SHORTEST_LIMIT);
        pulse.step(Duration::from_millis(50));
        assert_eq!(pulse.limit(), SHORTEST_LIMIT);
        for _ in 0..REMEMBERED {
            pulse.step(Duration::from_secs(7));
        }
        assert_eq!(pulse.limit(), Duration::from_secs(70));
        pulse.step(Duration::from_secs(900));
        assert_eq!(
            pulse.limit(),
            Duration::from_secs(70),
            "one slow step is no new measure"
        );
    }

    #[test]
    fn a_panic_ends_the_watch() {
        let pulse = Pulse::new(SHORT);
        let work = std::panic::AssertUnwindSafe(|| {
            guard(
                &pulse,
                |_| {},
                || std::panic::resume_unwind(Box::new("expected")),
            );
        });
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(pulse.over.load(Ordering::Relaxed));
    }
}
