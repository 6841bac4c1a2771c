//! Trainers that an earlier server started. They report to this one as if nothing had happened; all there
//! is to do is to notice when one is gone, as it is nobody's child here whose exit could be waited for.

use super::{Worker, exit, leftovers};
use crate::domain::{ErrorCode, JobError, LossCause};
use crate::store::{AttemptEnd, OpenAttempt, StoreError};

impl Worker {
    /// Ends attempts whose trainer, started by an earlier server, is gone.
    pub(super) async fn end_orphans(&mut self) {
        let orphans = match self.orphans().await {
            Ok(orphans) => orphans,
            Err(error) => {
                tracing::error!(%error, "looking for orphans failed");
                return;
            }
        };
        if orphans.is_empty() {
            return;
        }
        // A child of ours that is no longer live has its exit waiting here, which knows more of its end.
        while let Ok(exit) = self.exits.try_recv() {
            let end = exit::verdict(&exit, &self.options.retry);
            self.end(&exit, end).await;
        }
        for orphan in orphans {
            if let Err(error) = self.end_orphan(&orphan).await {
                tracing::error!(attempt = %orphan.attempt_id, %error, "an orphan could not be ended");
            }
        }
    }

    async fn orphans(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        let mut open = self.store.open_attempts().await?;
        let live = self.executor.live();
        open.retain(|open| !live.contains(&open.attempt_id) && self.executor.has_ended(open));
        Ok(open)
    }

    async fn end_orphan(&self, orphan: &OpenAttempt) -> Result<(), StoreError> {
        leftovers::apply_of(&self.store, &self.options.data_dir, orphan).await?;
        let end = AttemptEnd::Lost {
            cause: LossCause::Died,
            error: JobError::new(
                ErrorCode::TrainerDied,
                "the trainer process ended while no server was watching it",
            )
            .hint("the job's `trainer.log` on the server says more"),
            policy: self.options.retry,
        };
        if self.store.end_attempt(orphan.attempt_id, end).await? {
            tracing::warn!(job = %orphan.job_id, attempt = orphan.attempt, "a trainer is gone");
        }
        Ok(())
    }
}
