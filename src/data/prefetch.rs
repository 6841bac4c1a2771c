//! Work done ahead on a thread of its own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::domain::{ErrorCode, JobError};

/// Items that wait; one more is being made.
const AHEAD: usize = 2;

/// An iterator whose next items are made while the last one is used. Their order is the iterator's, so nothing
/// but time depends on the thread.
///
/// It ends after an error, and a panic is one. Dropping it waits for the item being made, and no longer.
#[derive(Debug)]
pub struct Prefetch<T> {
    items: Option<Receiver<Result<T, JobError>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Begins with the first items of `items`.
    ///
    /// # Errors
    /// `internal_error` if no thread can be started.
    pub fn start(
        items: impl Iterator<Item = Result<T, JobError>> + Send + 'static,
    ) -> Result<Self, JobError> {
        let (sender, receiver) = sync_channel(AHEAD);
        let make = move || {
            for item in items {
                let ends = item.is_err();
                if sender.send(item).is_err() || ends {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(make)
            .map_err(|error| failed(&format!("cannot be started: {error}")))?;
        Ok(Self {
            items: Some(receiver),
            thread: Some(thread),
        })
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(item) = self.items.as_ref()?.recv() {
            if item.is_err() {
                self.items = None;
            }
            return Some(item);
        }
        self.items = None;
        let panic = self.thread.take()?.join().err()?;
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Some(Err(failed(&format!("panicked: {message}"))))
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        // The thread finds nobody who takes its next item.
        self.items = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn failed(how: &str) -> JobError {
    JobError::new(
        ErrorCode::InternalError,
        format!("the thread that reads batches {how}"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn items_come_in_order_and_then_end() {
        let mut items = Prefetch::start((0..100).map(Ok)).unwrap();
        assert!(items.by_ref().map(Result::unwrap).eq(0..100));
        assert!(items.next().is_none());
    }

    #[test]
    fn it_ends_after_an_error_and_makes_no_more() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let mut items = Prefetch::start((0..10).map(move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            if i == 3 {
                Err(failed("stopped"))
            } else {
                Ok(i)
            }
        }))
        .unwrap();
        assert!(items.by_ref().take(3).map(Result::unwrap).eq(0..3));
        assert_eq!(items.next().unwrap().unwrap_err(), failed("stopped"));
        assert!(items.next().is_none());
        drop(items);
        assert_eq!(made.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_panic_is_an_error_after_what_was_made_before() {
        let mut items = Prefetch::start((0..10).map(|i| {
            assert!(i < 2, "a planned panic");
            Ok(i)
        }))
        .unwrap();
        assert!(items.by_ref().take(2).map(Result::unwrap).eq(0..2));
        let error = items.next().unwrap().unwrap_err();
        assert!(error.message.contains("a planned panic"), "{error}");
        assert!(items.next().is_none());
    }

    #[test]
    fn dropping_ends_work_without_end() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let endless = std::iter::repeat_with(move || Ok(count.fetch_add(1, Ordering::SeqCst)));
        let mut items = Prefetch::start(endless).unwrap();
        assert_eq!(items.next().unwrap().unwrap(), 0);
        // Returns at all, and the thread is gone: it held the only other count.
        drop(items);
        assert_eq!(Arc::strong_count(&made), 1);
        assert!(made.load(Ordering::SeqCst) <= AHEAD + 3);
    }
}
