//! Which tasks of a job are a thread's own, and how threads that are done help the others.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A range of tasks in one word, the first in the upper half. It has cache lines of its own: usually only one thread
/// touches it.
#[repr(align(128))]
pub struct Share(AtomicU64);

impl Share {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn set(&self, tasks: Range<u32>) {
        self.0.store(to_word(&tasks), Ordering::Relaxed);
    }

    /// The first of its tasks, for the thread whose share it is.
    pub fn first(&self) -> Option<u32> {
        self.take(|tasks| tasks.next())
    }

    /// The last, for a thread that is done with its own.
    pub fn last(&self) -> Option<u32> {
        self.take(|tasks| tasks.next_back())
    }

    fn take(&self, from: impl Fn(&mut Range<u32>) -> Option<u32>) -> Option<u32> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
            let mut tasks = (word >> 32) as u32..word as u32;
            let task = from(&mut tasks)?;
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            match self
                .0
                .compare_exchange_weak(word, to_word(&tasks), set, get)
            {
                Ok(_) => return Some(task),
                Err(now) => word = now,
            }
        }
    }
}

fn to_word(tasks: &Range<u32>) -> u64 {
    u64::from(tasks.start) << 32 | u64::from(tasks.end)
}

/// What each of so many threads begins with: neighbours, as many for all, or one more.
pub fn cut(count: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    let (each, rest) = (count / threads, count % threads);
    let start = move |thread| each * thread + rest * thread / threads;
    (0..threads).map(move |thread| start(thread)..start(thread + 1))
}

/// Deals out all tasks.
pub fn share_out(tasks: u32, shares: &[Share]) {
    for (share, own) in shares.iter().zip(cut(tasks as usize, shares.len())) {
        #[expect(clippy::cast_possible_truncation, reason = "at most `tasks`")]
        share.set(own.start as u32..own.end as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_begins_with_neighbours_and_helps_others_from_their_end() {
        let shares = [const { Share::new() }; 3];
        share_out(8, &shares);
        let first = |share: &Share| std::iter::from_fn(|| share.first()).collect::<Vec<_>>();
        assert_eq!([shares[1].last(), shares[1].last()], [Some(4), Some(3)]);
        assert_eq!(shares[2].first(), Some(5));
        assert_eq!(shares[2].last(), Some(7));
        assert_eq!(shares.each_ref().map(first), [vec![0, 1], vec![2], vec![6]]);
        assert_eq!([shares[0].first(), shares[0].last()], [None, None]);
        share_out(1, &shares);
        assert_eq!(shares.each_ref().map(first), [vec![], vec![], vec![0]]);
        share_out(u32::MAX, &shares);
        assert_eq!(shares[2].last(), Some(u32::MAX - 1));
    }
}
