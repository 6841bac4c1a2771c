//! What tests of this crate ask of a store that the server does not.

use super::{ClaimedAttempt, Store, StoreError};
use crate::domain::Placement;

impl Store {
    /// Takes the next queued job, if any, for the processor.
    pub async fn claim_next(&self, lease_ms: i64) -> Result<Option<ClaimedAttempt>, StoreError> {
        while let Some(next) = self.next_queued().await? {
            let placement = Placement::default();
            let claimed = self.claim(next.job_id, placement, lease_ms).await?;
            // Otherwise somebody else was faster.
            if claimed.is_some() {
                return Ok(claimed);
            }
        }
        Ok(None)
    }
}
