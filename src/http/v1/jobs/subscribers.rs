//! How many event streams each job has, so that one job cannot take all memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::JobId;

/// Counts open streams by job; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Subscribers(Arc<Mutex<HashMap<JobId, usize>>>);

/// One open stream; its place is free again when this is dropped.
#[derive(Debug)]
pub struct Subscription {
    all: Subscribers,
    job: JobId,
}

impl Subscribers {
    /// Takes a place, unless `limit` streams of this job are open.
    pub fn subscribe(&self, job: JobId, limit: usize) -> Option<Subscription> {
        let mut counts = self.counts();
        let count = counts.get(&job).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        counts.insert(job, count + 1);
        Some(Subscription {
            all: self.clone(),
            job,
        })
    }

    /// A count is never half-written, so one left by a panic elsewhere is still right.
    fn counts(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn places_are_bounded_by_job_and_come_back() {
        let all = Subscribers::default();
        let (a, b) = (JobId(Uuid::from_u128(1)), JobId(Uuid::from_u128(2)));
        let first = all.subscribe(a, 2).unwrap();
        let _second = all.subscribe(a, 2).unwrap();
        assert!(all.subscribe(a, 2).is_none());
        let other = all.subscribe(b, 2).unwrap();
        drop(first);
        assert!(all.subscribe(a, 2).is_some());
        drop(other);
        assert_eq!(all.counts().len(), 1);
    }
}
