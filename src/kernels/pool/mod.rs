//! Runs independent tasks of one op side by side.
//!
//! An op lasts tens of microseconds, so handing it out must cost far less than one: the caller takes part
//! in its own job, idle workers spin for a moment before they sleep, and a worker that comes late is not
//! waited for. One job runs at a time; a call while another runs (nested, or from a second thread) does its
//! tasks in the caller.

mod disjoint;
mod share;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

pub use disjoint::Disjoint;
use share::{Share, cut, share_out};

/// How long an idle worker burns its core, waiting for the next op of the same step.
const SPIN: Duration = Duration::from_micros(20);
/// How long it then offers its core to others before it sleeps.
const YIELD: Duration = Duration::from_millis(1);
/// More threads than any host has cores; the count of workers at work has 16 bits.
const MAX_THREADS: usize = 1024;

/// Calls `f(0)`, …, `f(tasks - 1)`, each exactly once, possibly on several threads, and returns when all
/// are done. Which thread runs which task is not fixed, so a task must own what it writes. But each thread begins with
/// its share of neighbouring tasks: where these are rows, it finds in its caches what it wrote there in the op before, which
/// is slow to fetch from another core, and slower from one that does not share an L3 cache.
///
/// # Panics
/// If a task does, with that task's payload, after the other threads have let go of `f`.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    if tasks > 1
        && threads() > 1
        && let Ok(count) = u32::try_from(tasks)
        && let Some(submitter) = POOL.try_submit()
    {
        POOL.run(submitter, count, &f);
    } else {
        (0..tasks).for_each(f);
    }
}

/// What each thread begins with, of `count` things whose tasks follow each other in order.
pub fn shares(count: usize) -> impl Iterator<Item = Range<usize>> {
    cut(count, threads())
}

/// Sets how many threads work on an op, the caller among them; at least one. Results do not depend on it.
pub fn set_threads(threads: usize) {
    let threads = threads.clamp(1, MAX_THREADS);
    POOL.threads.store(threads, Ordering::Relaxed);
    POOL.spawn(threads - 1);
}

/// How many threads work on an op, the caller among them: as many as there are cores, unless set.
pub fn threads() -> usize {
    match POOL.threads.load(Ordering::Relaxed) {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            set_threads(cores);
            cores
        }
        threads => threads,
    }
}

/// Makes this thread, and from now on the pool's, treat numbers below 2^-126 as zero, which x86 would
/// otherwise handle a hundred times slower. For a process that only trains; call it before the first op.
pub fn flush_denormals() {
    POOL.flush.store(true, Ordering::Relaxed);
    flush_denormals_here();
}

/// `ticket` is one word: how many workers hold the job (16 bits), whether more may take it, its number.
const HOLDERS: u64 = 0xFFFF;
const OPEN: u64 = 1 << 16;
const NUMBER: u64 = 1 << 17;

type Task = dyn Fn(usize) + Sync;

struct Job {
    threads: usize,
    f: *const Task,
}

struct Pool {
    threads: AtomicUsize,
    spawned: Mutex<usize>,
    flush: AtomicBool,
    /// Held by the thread whose job runs.
    submitter: Mutex<()>,
    ticket: AtomicU64,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `submitter` while `ticket` is closed and has no
// holders, and read only by holders of the ticket; `ticket` orders the two.
unsafe impl Sync for Pool {}
// SAFETY: as above; the pointer in `job` is followed only while the submitter keeps its target alive.
unsafe impl Send for Pool {}

static POOL: Pool = Pool {
    threads: AtomicUsize::new(0),
    spawned: Mutex::new(0),
    flush: AtomicBool::new(false),
    submitter: Mutex::new(()),
    ticket: AtomicU64::new(0),
    job: UnsafeCell::new(Job {
        threads: 0,
        f: std::ptr::null::<fn(usize)>() as *const Task,
    }),
    panic: Mutex::new(None),
    sleepers: AtomicUsize::new(0),
    bed: Mutex::new(()),
    wake: Condvar::new(),
};

/// The tasks of each of the job's threads that are not yet begun; the submitter's come first.
static SHARES: [Share; MAX_THREADS] = [const { Share::new() }; MAX_THREADS];

thread_local! {
    /// Whether this thread has done what [`flush_denormals`] asks.
    static FLUSHES: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Makes sure that there are as many workers.
    fn spawn(&'static self, workers: usize) {
        let mut spawned = lock(&self.spawned);
        while *spawned < workers {
            let index = *spawned;
            let worker = std::thread::Builder::new().name(format!("kernel-{}", index + 1));
            if worker.spawn(move || self.work_for_ever(index)).is_err() {
                // With fewer threads than asked for ops are slower, never wrong.
                break;
            }
            *spawned += 1;
        }
    }

    fn try_submit(&self) -> Option<MutexGuard<'_, ()>> {
        match self.submitter.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn run(&self, submitter: MutexGuard<'_, ()>, tasks: u32, f: &(dyn Fn(usize) + Sync)) {
        let threads = threads();
        // SAFETY: this thread holds `submitter`, and the last job was closed and let go of by all. The
        // lifetime of `f` is erased; it outlives the job because this call returns only after `close`.
        unsafe {
            *self.job.get() = Job {
                threads,
                f: std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Task>(f),
            };
        }
        share_out(tasks, &SHARES[..threads]);
        let number = self.ticket.load(Ordering::Relaxed) & !(NUMBER - 1);
        let ticket = number.wrapping_add(NUMBER) | OPEN;
        // Sequentially consistent against `sleepers`: either a worker about to sleep sees this ticket, or
        // it is seen here.
        self.ticket.store(ticket, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
        self.take_tasks(0, threads, f);
        self.close();
        let panic = lock(&self.panic).take();
        drop(submitter);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Lets no more workers in and waits for those who are.
    fn close(&self) {
        self.ticket.fetch_and(!OPEN, Ordering::AcqRel);
        let start = Instant::now();
        while self.ticket.load(Ordering::Acquire) & HOLDERS != 0 {
            spin_or_yield(start);
        }
    }

    /// Runs this thread's share of the tasks, from the first on, then what is left of others' shares, from the last on.
    /// After a panic the rest is not begun.
    fn take_tasks(&self, thread: usize, threads: usize, f: &(dyn Fn(usize) + Sync)) {
        let shares = &SHARES[..threads];
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(task) = shares[thread].first() {
                f(task as usize);
            }
            for other in 1..threads {
                while let Some(task) = shares[(thread + other) % threads].last() {
                    f(task as usize);
                }
            }
        }));
        if let Err(payload) = result {
            shares.iter().for_each(|share| share.set(0..0));
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn work_for_ever(&self, index: usize) {
        let mut done = 0;
        loop {
            let ticket = self.wait_for_ticket(index, done);
            done = ticket & !(NUMBER - 1);
            if self.flush.load(Ordering::Relaxed) && !FLUSHES.get() {
                flush_denormals_here();
            }
            // SAFETY: this worker holds the ticket, so the submitter keeps the job in place and `f` alive.
            let (threads, f) = unsafe {
                let job = &*self.job.get();
                (job.threads, &*job.f)
            };
            // A thread that was added since the job began has no share.
            if index + 1 < threads {
                self.take_tasks(index + 1, threads, f);
            }
            self.ticket.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job other than number `done`, and becomes one of its holders.
    fn wait_for_ticket(&self, index: usize, done: u64) -> u64 {
        let start = Instant::now();
        loop {
            let ticket = self.ticket.load(Ordering::SeqCst);
            if self.is_for(index, done, ticket) {
                let held = self.ticket.compare_exchange(
                    ticket,
                    ticket + 1,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if held.is_ok() {
                    return ticket;
                }
            } else if !spin_or_yield(start) {
                self.sleep(index, done);
            }
        }
    }

    fn is_for(&self, index: usize, done: u64, ticket: u64) -> bool {
        ticket & OPEN != 0
            && ticket & !(NUMBER - 1) != done
            && index + 1 < self.threads.load(Ordering::Relaxed)
    }

    fn sleep(&self, index: usize, done: u64) {
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.is_for(index, done, self.ticket.load(Ordering::SeqCst)) {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Passes a moment; false once `start` is so long ago that one should sleep.
fn spin_or_yield(start: Instant) -> bool {
    let waited = start.elapsed();
    if waited < SPIN {
        for _ in 0..8 {
            std::hint::spin_loop();
        }
    } else {
        std::thread::yield_now();
    }
    waited < YIELD
}

/// Nothing here panics while it holds a lock, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_arch = "x86_64")]
fn flush_denormals_here() {
    /// Flush results to zero, and take denormal inputs as zero.
    const FLUSH: u32 = 0x8040;
    let mut control = 0u32;
    // SAFETY: reads and writes the SSE control register only, and changes nothing in it but the treatment
    // of denormals, on which no memory safety depends.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack));
        control |= FLUSH;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack));
    }
    FLUSHES.set(true);
}

#[cfg(not(target_arch = "x86_64"))]
fn flush_denormals_here() {
    FLUSHES.set(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        parallel_for(tasks, |task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_task_runs_once_at_any_number_of_threads() {
        for threads in [1, 3, 2] {
            set_threads(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                assert_eq!(counts(tasks), vec![1; tasks]);
            }
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        set_threads(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        parallel_for(5, |outer| {
                            parallel_for(3, |inner| {
                                sum.fetch_add(outer * inner, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 10 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        set_threads(2);
        for culprit in [0, 1, 63] {
            let result = catch_unwind(|| {
                parallel_for(64, |task| assert!(task != culprit, "task {task}"));
            });
            let payload = result.unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(*message, format!("task {culprit}"));
            assert_eq!(counts(64), vec![1; 64]);
        }
    }

    #[test]
    fn a_sleeping_worker_wakes() {
        set_threads(2);
        for _ in 0..3 {
            std::thread::sleep(3 * YIELD);
            assert_eq!(counts(9), vec![1; 9]);
        }
    }

    #[test]
    fn tasks_write_their_own_parts() {
        let mut numbers = vec![0usize; 100];
        let parts = Disjoint::new(&mut numbers);
        parallel_for(10, |task| {
            // SAFETY: each task takes its own ten.
            let part = unsafe { parts.slice(task * 10..(task + 1) * 10) };
            part.fill(task);
        });
        assert!(numbers.iter().enumerate().all(|(i, &x)| x == i / 10));
    }
}
