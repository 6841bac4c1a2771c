//! What a trainer's card does, and what it costs, as series of the job.
//!
//! The trainer itself looks: it lives exactly as long as its attempt, whichever servers come and go, and what it
//! reports is spooled like everything else. Utilisation and power are the card's. Energy is charged to the job: what the
//! card has spent since the last look, divided by the attempts that the server has on it. What other programs make a
//! card spend cannot be told apart.
//!
//! A driver whose card is broken may never answer, so a thread of its own asks, and nobody waits for it for long.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Gpus, Reading, VISIBLE_ENV, nvml};

/// How often the card is looked at. Utilisation is of the last second at most, so looking less often would miss some.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How often the job is told.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// The driver answers within milliseconds, or is broken.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks at one card.
#[derive(Debug)]
pub struct GpuMeter {
    state: Arc<Mutex<State>>,
    /// Asks for a look now, and how to say that it was done.
    ask: Sender<Sender<()>>,
}

#[derive(Debug)]
struct State {
    /// Attempts on the card.
    jobs: u32,
    /// Spent on the job so far; `None` until anything is known of it.
    energy_j: Option<f64>,
    last: Option<Last>,
    /// Memory in use when the trainer began.
    used_at_first: Option<u64>,
    reported_at: Instant,
    window: Window,
}

/// The last look.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    /// The card's counter then.
    energy_j: Option<f64>,
}

/// What was seen since the last report.
#[derive(Debug, Default)]
struct Window {
    utilization_percent: Mean,
    power_w: Mean,
    most_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1.0;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

impl GpuMeter {
    /// Of the card that the server has left visible to this process. `energy_j` is what the job has cost before. Without
    /// a driver to ask there is nothing to report: training is worth more than its numbers.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(energy_j: f64) -> io::Result<Self> {
        let uuid = std::env::var(VISIBLE_ENV).unwrap_or_default();
        Self::of(energy_j, move |state, asked| match nvml::Nvml::open() {
            Ok(nvml) => watch(&nvml, &uuid, state, asked),
            Err(error) => tracing::warn!(%error, "what the GPU does cannot be seen"),
        })
    }

    fn of(
        energy_j: f64,
        watch: impl FnOnce(&Mutex<State>, &Receiver<Sender<()>>) + Send + 'static,
    ) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::new(energy_j, Instant::now())));
        let (ask, asked) = mpsc::channel();
        let watched = Arc::clone(&state);
        std::thread::Builder::new()
            .name("gpu".to_owned())
            .spawn(move || watch(&watched, &asked))?;
        Ok(Self { state, ask })
    }

    /// So many attempts are on the card.
    pub fn shared_by(&self, jobs: u32) {
        lock(&self.state).jobs = jobs;
    }

    /// Whether it is time to tell the job.
    pub fn is_due(&self, now: Instant) -> bool {
        now.duration_since(lock(&self.state).reported_at) >= REPORT_EVERY
    }

    /// What there is to tell since the last time, by the names of the series.
    pub fn report(&self, now: Instant) -> BTreeMap<String, f64> {
        lock(&self.state).report(now)
    }

    /// What there is to tell at the end, up to this moment.
    pub fn last_report(&self) -> BTreeMap<String, f64> {
        let (done, wait) = mpsc::channel();
        if self.ask.send(done).is_ok() {
            // An error means that the driver does not answer; what was seen before stays true.
            wait.recv_timeout(PATIENCE).ok();
        }
        self.report(Instant::now())
    }
}

/// Looks every second, and when asked, until there is nobody to ask.
fn watch(gpus: &dyn Gpus, uuid: &str, state: &Mutex<State>, asked: &Receiver<Sender<()>>) {
    loop {
        let reading = gpus.read(uuid);
        lock(state).add(&reading, Instant::now());
        match asked.recv_timeout(SAMPLE_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(done) => {
                let reading = gpus.read(uuid);
                lock(state).add(&reading, Instant::now());
                done.send(()).ok();
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new(energy_j: f64, now: Instant) -> Self {
        Self {
            jobs: 1,
            energy_j: (energy_j > 0.0).then_some(energy_j),
            last: None,
            used_at_first: None,
            reported_at: now,
            window: Window::default(),
        }
    }

    fn add(&mut self, reading: &Reading, now: Instant) {
        let energy_j = reading.energy_j;
        let Some(last) = self.last.replace(Last { at: now, energy_j }) else {
            // What was before is not this attempt's.
            self.used_at_first = reading.used_bytes;
            return;
        };
        let spent_j = match (last.energy_j, energy_j) {
            (Some(before), Some(after)) if after >= before => Some(after - before),
            // Cards before Volta have no counter, and one starts anew with its driver.
            _ => {
                let seconds = now.duration_since(last.at).as_secs_f64();
                reading.power_w.map(|power_w| power_w * seconds)
            }
        };
        if let Some(spent_j) = spent_j {
            let share_j = spent_j / f64::from(self.jobs.max(1));
            self.energy_j = Some(self.energy_j.unwrap_or(0.0) + share_j);
        }
        let window = &mut self.window;
        window.utilization_percent.add(reading.utilization_percent);
        window.power_w.add(reading.power_w);
        // Where the driver does not know whose memory it is, what has come since this trainer began is taken for its own.
        let grown = || Some(reading.used_bytes?.saturating_sub(self.used_at_first?));
        let held = reading.own_bytes.or_else(grown);
        window.most_bytes = window.most_bytes.max(held);
    }

    fn report(&mut self, now: Instant) -> BTreeMap<String, f64> {
        self.reported_at = now;
        let window = std::mem::take(&mut self.window);
        let values = [
            (
                "gpu_utilization_percent",
                window.utilization_percent.value(),
            ),
            ("gpu_power_w", window.power_w.value()),
            ("gpu_memory_bytes", window.most_bytes.map(to_f64)),
            ("gpu_energy_j", self.energy_j),
        ];
        let told = values
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        told.collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a card are below 2^53")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeGpus, GIB};
    use super::*;

    fn reading(utilization_percent: f64, power_w: f64, energy_j: f64) -> Reading {
        Reading {
            utilization_percent: Some(utilization_percent),
            power_w: Some(power_w),
            energy_j: Some(energy_j),
            used_bytes: Some(3 * GIB),
            own_bytes: Some(2 * GIB),
        }
    }

    /// A state that is told something every two seconds.
    struct Watched {
        state: State,
        now: Instant,
    }

    impl Watched {
        fn new(energy_j: f64, first: Reading) -> Self {
            let now = Instant::now();
            let mut state = State::new(energy_j, now);
            state.add(&first, now);
            Self { state, now }
        }

        fn see(&mut self, reading: Reading, jobs: u32) {
            self.now += Duration::from_secs(2);
            self.state.jobs = jobs;
            self.state.add(&reading, self.now);
        }

        fn report(&mut self) -> Vec<(String, f64)> {
            self.state.report(self.now).into_iter().collect()
        }
    }

    fn values(energy_j: f64, bytes: u64, power_w: f64, percent: f64) -> Vec<(String, f64)> {
        let values = [
            ("gpu_energy_j", energy_j),
            ("gpu_memory_bytes", to_f64(bytes)),
            ("gpu_power_w", power_w),
            ("gpu_utilization_percent", percent),
        ];
        values.map(|(name, value)| (name.to_owned(), value)).into()
    }

    #[test]
    fn means_a_maximum_and_a_sum_that_goes_on() {
        let mut watched = Watched::new(1000.0, reading(0.0, 50.0, 70_000.0));
        watched.see(reading(80.0, 300.0, 70_400.0), 1);
        let less = Reading {
            own_bytes: Some(GIB),
            ..reading(100.0, 500.0, 71_400.0)
        };
        watched.see(less, 1);
        assert_eq!(watched.report(), values(2400.0, 2 * GIB, 400.0, 90.0));
        watched.see(reading(40.0, 100.0, 71_500.0), 1);
        assert_eq!(watched.report(), values(2500.0, 2 * GIB, 100.0, 40.0));
        let energy = vec![("gpu_energy_j".to_owned(), 2500.0)];
        assert_eq!(watched.report(), energy, "nothing was seen since");
    }

    #[test]
    fn a_shared_card_is_charged_in_equal_parts_as_long_as_it_is_shared() {
        let mut watched = Watched::new(0.0, reading(0.0, 0.0, 0.0));
        watched.see(reading(0.0, 0.0, 300.0), 3);
        watched.see(reading(0.0, 0.0, 500.0), 1);
        assert_eq!(watched.report()[0].1, 100.0 + 200.0);
    }

    #[test]
    fn without_a_counter_power_times_time_counts() {
        let no_counter = |power_w| Reading {
            energy_j: None,
            ..reading(0.0, power_w, 0.0)
        };
        let mut watched = Watched::new(0.0, no_counter(9.0));
        watched.see(no_counter(100.0), 1);
        assert_eq!(watched.report()[0].1, 200.0);
        // The driver was loaded anew: its counter begins at nothing.
        let mut watched = Watched::new(0.0, reading(0.0, 9.0, 1e9));
        watched.see(reading(0.0, 100.0, 5.0), 1);
        watched.see(reading(0.0, 100.0, 25.0), 1);
        assert_eq!(watched.report()[0].1, 200.0 + 20.0);
    }

    #[test]
    fn memory_nobody_is_named_for_is_what_has_come_since() {
        let unnamed = |used| Reading {
            used_bytes: Some(used),
            own_bytes: None,
            ..reading(0.0, 0.0, 0.0)
        };
        let mut watched = Watched::new(0.0, unnamed(5 * GIB));
        watched.see(unnamed(7 * GIB), 1);
        assert_eq!(watched.report()[1].1, to_f64(2 * GIB));
        watched.see(unnamed(4 * GIB), 1);
        assert_eq!(watched.report()[1].1, 0.0);
    }

    #[test]
    fn what_the_driver_does_not_tell_is_left_out() {
        let mut watched = Watched::new(0.0, Reading::default());
        watched.see(Reading::default(), 1);
        assert_eq!(watched.report(), []);
    }

    fn meter(gpus: &Arc<FakeGpus>) -> GpuMeter {
        let gpus = Arc::clone(gpus);
        GpuMeter::of(0.0, move |state, asked| {
            watch(&*gpus, "GPU-1", state, asked)
        })
        .unwrap()
    }

    #[test]
    fn reports_are_due_every_ten_seconds() {
        let meter = meter(&Arc::default());
        let began = lock(&meter.state).reported_at;
        let after = |seconds| began + Duration::from_secs(seconds);
        assert!(!meter.is_due(after(9)));
        assert!(meter.is_due(after(10)));
        meter.report(after(10));
        assert!(!meter.is_due(after(19)));
    }

    #[test]
    fn the_end_is_not_missed_however_soon_it_comes() {
        let gpus = Arc::new(FakeGpus::default());
        gpus.set_reading("GPU-1", reading(80.0, 300.0, 100.0));
        let meter = meter(&gpus);
        while lock(&meter.state).last.is_none() {
            std::thread::yield_now();
        }
        meter.shared_by(2);
        gpus.set_reading("GPU-1", reading(80.0, 300.0, 150.0));
        let told: Vec<_> = meter.last_report().into_iter().collect();
        assert_eq!(told, values(25.0, 2 * GIB, 300.0, 80.0));
    }

    #[test]
    fn a_driver_that_does_not_answer_is_not_waited_for() {
        let gpus = Arc::new(FakeGpus::default());
        let stuck = gpus.hang();
        let meter = meter(&gpus);
        assert_eq!(meter.last_report(), BTreeMap::new());
        drop(stuck);
    }
}
