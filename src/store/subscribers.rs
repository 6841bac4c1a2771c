//! Who waits for news of which job. Carries no payload: a wake-up means "read the tables again".

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::domain::JobId;

#[derive(Debug, Default)]
pub(super) struct Subscribers(Mutex<HashMap<JobId, watch::Sender<u64>>>);

impl Subscribers {
    pub fn subscribe(&self, job: JobId) -> watch::Receiver<u64> {
        let mut senders = self.lock();
        // Jobs that are over are never woken again, so this is where their channels go.
        senders.retain(|_, sender| sender.receiver_count() > 0);
        senders
            .entry(job)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    pub fn wake(&self, jobs: &[JobId]) {
        let mut senders = self.lock();
        for job in jobs {
            if let Some(sender) = senders.get(job) {
                sender.send_modify(|count| *count = count.wrapping_add(1));
                if sender.receiver_count() == 0 {
                    senders.remove(job);
                }
            }
        }
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_the_named_job_is_woken_and_unheard_channels_go() {
        let subscribers = Subscribers::default();
        let (a, b) = (JobId(Uuid::from_u128(1)), JobId(Uuid::from_u128(2)));
        let mut first = subscribers.subscribe(a);
        let second = subscribers.subscribe(b);
        subscribers.wake(&[a]);
        assert!(first.has_changed().unwrap());
        assert!(!second.has_changed().unwrap());
        first.mark_unchanged();

        drop(second);
        subscribers.wake(&[b]);
        assert_eq!(subscribers.lock().len(), 1);
        drop(first);
        let _third = subscribers.subscribe(b);
        assert_eq!(subscribers.lock().len(), 1);
    }

    #[test]
    fn clearing_ends_every_subscription() {
        let subscribers = Subscribers::default();
        let receiver = subscribers.subscribe(JobId(Uuid::from_u128(1)));
        subscribers.clear();
        assert!(receiver.has_changed().is_err());
    }
}
