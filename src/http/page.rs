//! Lists: `{"data": […], "has_more", "next_cursor"}`, one page at a time.

use serde::Serialize;
use utoipa::ToSchema;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items of this page.
    pub data: Vec<T>,
    /// Whether there are more after these.
    pub has_more: bool,
    /// Send it as `after` to get the next page; `null` at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of at most `limit` items, made from up to `limit + 1`: the extra one only shows that there is more.
    pub fn new(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Self {
        let limit = limit as usize;
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| has_more).map(cursor);
        Self {
            data: items,
            has_more,
            next_cursor,
        }
    }

    /// A list that is short enough to come whole.
    pub fn whole(data: Vec<T>) -> Self {
        Self {
            data,
            has_more: false,
            next_cursor: None,
        }
    }

    /// The same page with each item turned into another shape.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            data: self.data.into_iter().map(f).collect(),
            has_more: self.has_more,
            next_cursor: self.next_cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extra_item_only_shows_that_there_is_more() {
        let page = Page::new(vec![1, 2, 3], 2, ToString::to_string);
        assert_eq!(
            page,
            Page {
                data: vec![1, 2],
                has_more: true,
                next_cursor: Some("2".to_owned())
            }
        );
        let page = Page::new(vec![1, 2], 2, ToString::to_string);
        assert!(!page.has_more && page.next_cursor.is_none());
    }
}
