//! Ids are UUIDv7: they sort by creation time, so "newest first" needs no second column.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Clock;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            utoipa::ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id_type!(
    /// Names one job.
    JobId
);
id_type!(
    /// Names one uploaded dataset.
    DatasetId
);
id_type!(
    /// Names one attempt at a job: one trainer process from start to end.
    AttemptId
);

/// Where new ids and secrets come from.
pub trait Ids: Send + Sync + fmt::Debug {
    /// A fresh UUIDv7.
    fn next_uuid(&self) -> Uuid;
    /// 256 unguessable bits as 64 hexadecimal digits: an attempt's token.
    fn next_secret(&self) -> String;
}

/// Ids from the operating system's randomness, stamped with `clock`.
#[derive(Debug)]
pub struct SystemIds<C: Clock>(pub C);

impl<C: Clock> Ids for SystemIds<C> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that makes random ids"
    )]
    fn next_uuid(&self) -> Uuid {
        let ms = u64::try_from(self.0.now().0).unwrap_or(0);
        let timestamp = uuid::Timestamp::from_unix_time(
            ms / 1000,
            u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
            0,
            0,
        );
        Uuid::new_v7(timestamp)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that makes random secrets"
    )]
    fn next_secret(&self) -> String {
        // A version-4 UUID has 122 random bits; three of them hold more than the 256 bits promised.
        let text = format!(
            "{}{}{}",
            Uuid::new_v4().simple(),
            Uuid::new_v4().simple(),
            Uuid::new_v4().simple()
        );
        text[..64.min(text.len())].to_owned()
    }
}

/// Predictable ids for tests: each call counts up by one.
#[derive(Debug, Default)]
pub struct SequentialIds(AtomicU64);

impl Ids for SequentialIds {
    fn next_uuid(&self) -> Uuid {
        let n = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        Uuid::from_u128((0x0190_0000_0000_7000_8000u128 << 48) | u128::from(n))
    }

    fn next_secret(&self) -> String {
        format!("{:064x}", self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SystemClock;

    #[test]
    fn system_ids_are_version_7_and_distinct() {
        let ids = SystemIds(SystemClock);
        let (a, b) = (ids.next_uuid(), ids.next_uuid());
        assert_eq!(a.get_version_num(), 7);
        assert_ne!(a, b);
        assert_eq!(ids.next_secret().len(), 64);
        assert_ne!(ids.next_secret(), ids.next_secret());
    }

    #[test]
    fn sequential_ids_sort_in_order() {
        let ids = SequentialIds::default();
        assert!(ids.next_uuid() < ids.next_uuid());
    }
}
