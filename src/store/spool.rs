//! Applying what a trainer that is gone left in its spool.

use super::apply::record;
use super::rows::get;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{AttemptId, Message};

impl Store {
    /// As [`Store::record_messages`], on the word of the server: the token died with the trainer. The lease
    /// is not renewed. Answers the newest message that is applied now; empty `messages` only ask for it.
    ///
    /// # Errors
    /// `Fenced` if the attempt is over.
    pub async fn record_spooled(
        &self,
        attempt: AttemptId,
        messages: Vec<Message>,
    ) -> Result<u64, StoreError> {
        self.write(move |tx| Box::pin(record_spooled(tx, attempt, messages)))
            .await
    }
}

async fn record_spooled(
    tx: &mut Tx,
    attempt: AttemptId,
    messages: Vec<Message>,
) -> Result<u64, StoreError> {
    let row = sqlx::query("SELECT token_sha256 FROM attempt WHERE id = ?1")
        .bind(attempt.to_string())
        .fetch_optional(&mut tx.conn)
        .await?
        .ok_or(StoreError::Fenced)?;
    let token_sha256: String = get(&row, "token_sha256")?;
    let answer = record(tx, attempt, token_sha256, messages, None).await?;
    Ok(answer.acked_seq)
}
