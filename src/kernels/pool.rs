//! Runs independent tasks of one op side by side. (Sequential stand-in with the agreed signature.)

/// Calls `f(0)`, …, `f(tasks - 1)`, each exactly once, possibly on several threads, and returns when all
/// are done. Which thread runs which task is not fixed, so a task must own what it writes.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    for task in 0..tasks {
        f(task);
    }
}
