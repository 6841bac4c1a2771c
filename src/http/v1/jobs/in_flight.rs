//! Requests with one `Idempotency-Key` are handled one after the other, so that a repeat never overtakes the
//! request it repeats.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

type Keys = Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>;

/// Keys of requests that are being handled now; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    keys: Keys,
}

/// The right to handle the request of a key; dropping it lets the next one in.
#[derive(Debug)]
pub struct Turn {
    keys: Keys,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl InFlight {
    /// Waits for the key's turn, but not longer than `patience`.
    pub async fn turn(&self, key: &str, patience: Duration) -> Option<Turn> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(keys.entry(key.to_owned()).or_default())
        };
        let mut turn = Turn {
            keys: Arc::clone(&self.keys),
            key: key.to_owned(),
            guard: None,
        };
        // `turn` exists before the wait, so that giving up cleans up as well.
        turn.guard = Some(
            tokio::time::timeout(patience, lock.lock_owned())
                .await
                .ok()?,
        );
        Some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // The map's own handle is the last one: nobody waits.
        let idle = keys
            .get(&self.key)
            .is_some_and(|lock| Arc::strong_count(lock) == 1);
        if idle {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_has_one_turn_at_a_time_and_is_forgotten_after_the_last() {
        let (all, soon) = (InFlight::default(), Duration::from_millis(5));
        let first = all.turn("a", soon).await.unwrap();
        assert!(all.turn("b", soon).await.is_some());
        assert!(all.turn("a", soon).await.is_none());
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.turn("a", Duration::from_secs(60)).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.unwrap());
        assert!(all.keys.lock().unwrap().is_empty());
    }
}
