//! Byte ranges and entity tags (RFC 9110, sections 13 and 14), for one range of one file.

use axum::http::{HeaderMap, header};

/// What a client wants of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It has this very file.
    Nothing,
    /// All of it.
    Whole,
    /// The bytes from `start` on, `len` of them; at least one.
    Part { start: u64, len: u64 },
    /// Bytes that the file does not have.
    Unsatisfiable,
}

/// Reads the conditional and range headers for a file with this entity tag (quoted) and size.
pub fn wanted(headers: &HeaderMap, etag: &str, size_bytes: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    if text(header::IF_NONE_MATCH).is_some_and(|tags| matches_any(tags, etag)) {
        return Wanted::Nothing;
    }
    // A part of another version would be joined to the wrong rest.
    if text(header::IF_RANGE).is_some_and(|tag| tag.trim() != etag) {
        return Wanted::Whole;
    }
    let range = text(header::RANGE).map_or(Some(Wanted::Whole), |r| parse(r, size_bytes));
    range.unwrap_or(Wanted::Whole)
}

/// `If-None-Match` compares weakly.
fn matches_any(tags: &str, etag: &str) -> bool {
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// `None` for what is no single byte range: it is ignored, as the standard allows.
fn parse(range: &str, size_bytes: u64) -> Option<Wanted> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // Too many digits are a number beyond any file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(start), Some(last)) if start <= last => (start, last.saturating_add(1)),
        (Some(start), None) if last.is_empty() => (start, u64::MAX),
        (None, Some(suffix)) if first.is_empty() => {
            if suffix == 0 {
                return Some(Wanted::Unsatisfiable);
            }
            (size_bytes.saturating_sub(suffix), u64::MAX)
        }
        _ => return None,
    };
    if start >= size_bytes {
        return Some(Wanted::Unsatisfiable);
    }
    let len = end.min(size_bytes) - start;
    Some(Wanted::Part { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> Wanted {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        wanted(&headers, "\"abc\"", 10)
    }

    #[test]
    fn single_ranges_of_ten_bytes() {
        let part = |start, len| Wanted::Part { start, len };
        for (range, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-5", part(2, 4)),
            ("bytes=2-99", part(2, 8)),
            ("bytes=7-", part(7, 3)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("bytes=x-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("rows=1-2", Wanted::Whole),
        ] {
            assert_eq!(of(&[("range", range)]), expected, "{range}");
        }
    }

    #[test]
    fn an_empty_file_has_no_satisfiable_range() {
        assert_eq!(parse("bytes=0-", 0), Some(Wanted::Unsatisfiable));
        assert_eq!(parse("bytes=-5", 0), Some(Wanted::Unsatisfiable));
    }

    #[test]
    fn conditions_come_before_ranges() {
        assert_eq!(of(&[("if-none-match", "\"abc\"")]), Wanted::Nothing);
        assert_eq!(
            of(&[("if-none-match", "\"x\", W/\"abc\"")]),
            Wanted::Nothing
        );
        assert_eq!(of(&[("if-none-match", "*")]), Wanted::Nothing);
        assert_eq!(of(&[("if-none-match", "\"x\"")]), Wanted::Whole);
        let range = ("range", "bytes=1-1");
        assert_eq!(of(&[range, ("if-range", "\"x\"")]), Wanted::Whole);
        let part = Wanted::Part { start: 1, len: 1 };
        assert_eq!(of(&[range, ("if-range", "\"abc\"")]), part);
    }
}
