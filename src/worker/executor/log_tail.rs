//! The last lines of a trainer's log, for an error message.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// A backtrace may be long, and stands after what it belongs to.
const MAX_BYTES: u64 = 64 * 1024;
const MAX_LINES: usize = 5;
const MAX_LINE_CHARS: usize = 300;

/// The last non-empty lines; empty if there is no log.
pub(super) fn read(path: &Path) -> String {
    read_end(path)
        .map(|text| last_lines(&text))
        .unwrap_or_default()
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !is_backtrace(line))
        .collect();
    let kept = &lines[lines.len().saturating_sub(MAX_LINES)..];
    let cut: Vec<String> = kept
        .iter()
        .map(|line| line.chars().take(MAX_LINE_CHARS).collect())
        .collect();
    cut.join("\n")
}

/// With `RUST_BACKTRACE` set, a backtrace would push the message it belongs to out of the last lines.
fn is_backtrace(line: &str) -> bool {
    let text = line.trim_start();
    let is_indented = text.len() < line.len();
    let frame = text.split_once(": ").map(|(number, _)| number);
    let is_frame = frame.is_some_and(|number| number.parse::<u32>().is_ok());
    line == "stack backtrace:"
        || line.starts_with("note: Some details are omitted")
        || (is_indented && (is_frame || text.starts_with("at ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_few_and_short() {
        assert_eq!(last_lines("a\n\nb\n"), "a\nb");
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n7"), "3\n4\n5\n6\n7");
        assert_eq!(last_lines(&"é".repeat(999)).chars().count(), 300);
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn a_backtrace_hides_nothing() {
        let log = "memory allocation of 8 bytes failed\nstack backtrace:\n   0: std::alloc::rust_oom\n             \
                   at /rustc/library/std/src/alloc.rs:424:5\n  10: main\n\
                   note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.\n";
        assert_eq!(last_lines(log), "memory allocation of 8 bytes failed");
        assert_eq!(
            last_lines("3: three\n at the end"),
            "3: three",
            "a frame is indented"
        );
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trainer.log");
        assert_eq!(read(&path), "");
        std::fs::write(&path, format!("{}\nthe end\n", "x".repeat(1 << 20))).unwrap();
        assert!(read(&path).ends_with("\nthe end"));
    }
}
