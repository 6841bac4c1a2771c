use std::io::Write as _;

use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn inspected(
    format: DatasetFormat,
    header: bool,
    bytes: impl AsRef<[u8]>,
) -> Result<Inspection, JobError> {
    let file = file(bytes.as_ref());
    inspect(file.path(), format, header, None, ReaderLimits::default())
}

/// The code and line of what is wrong with a file.
fn wrong(format: DatasetFormat, header: bool, bytes: impl AsRef<[u8]>) -> (ErrorCode, Option<u64>) {
    let error = inspected(format, header, bytes).unwrap_err();
    (error.code, error.line)
}

/// All cells with their lines, read the second time.
fn table(format: DatasetFormat, header: bool, bytes: impl AsRef<[u8]>) -> Vec<(u64, Vec<String>)> {
    let file = file(bytes.as_ref());
    let found = inspect(file.path(), format, header, None, ReaderLimits::default()).unwrap();
    let columns: Vec<Column> = found
        .layout
        .columns
        .iter()
        .map(|name| Column::find(&found.layout, name).unwrap())
        .collect();
    let table: Vec<_> = rows(file.path(), &found.layout)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let cell = |column| match row.get(column) {
                Cell::Missing => "∅".to_owned(),
                Cell::Text(text) => text.to_owned(),
                Cell::Scalar(value) => format!("={value}"),
                Cell::Nested(kind) => kind.to_owned(),
            };
            (row.line(), columns.iter().map(cell).collect())
        })
        .collect();
    assert_eq!(table.len() as u64, found.rows);
    table
}

fn csv(bytes: impl AsRef<[u8]>) -> Vec<(u64, Vec<String>)> {
    table(DatasetFormat::Csv, true, bytes)
}

const CSV: DatasetFormat = DatasetFormat::Csv;
const TSV: DatasetFormat = DatasetFormat::Tsv;
const JSONL: DatasetFormat = DatasetFormat::Jsonl;

#[test]
fn csv_quoting_follows_rfc_4180() {
    let rows = csv("a,b\n\"x, y\",\"say \"\"hi\"\"\"\n\"two\r\nlines\",\"\"\nit \"is\",5\" disk\n");
    assert_eq!(rows[0], (2, vec!["x, y".into(), "say \"hi\"".into()]));
    assert_eq!(rows[1], (3, vec!["two\r\nlines".into(), String::new()]));
    assert_eq!(rows[2], (5, vec!["it \"is\"".into(), "5\" disk".into()]));
}

#[test]
fn byte_order_mark_crlf_blank_lines_and_a_missing_last_line_end_are_fine() {
    let plain = csv("a,b\n1,2\n3,4\n");
    assert_eq!(csv("\u{feff}a,b\r\n1,2\r\n3,4"), plain);
    assert_eq!(
        csv("\u{feff}\"a\",\"b\"\r\n1,2\r\n\"3\",\"4\"\r\n\r\n\n"),
        plain
    );
    let gaps = csv("\n\na,b\n\n1,2\n");
    assert_eq!(gaps, [(5, vec!["1".into(), "2".into()])]);
    assert_eq!(csv("a,b\n1,\"2\"\r").len(), 1);
}

#[test]
fn a_quoted_empty_line_is_a_row() {
    assert_eq!(csv("a\n\"\"\nx\n").len(), 2);
}

#[test]
fn without_a_header_columns_are_numbered_or_named() {
    let found = inspected(TSV, false, "good\t1\nbad\t0\n").unwrap();
    assert_eq!(found.layout.columns, ["column_1", "column_2"]);
    assert_eq!(found.rows, 2);
    let file = file(b"good\t1\n");
    let named = |names: &[&str]| {
        let names = names.iter().map(|&n| n.to_owned()).collect();
        inspect(
            file.path(),
            TSV,
            false,
            Some(names),
            ReaderLimits::default(),
        )
    };
    assert_eq!(
        named(&["text", "label"]).unwrap().layout.columns,
        ["text", "label"]
    );
    for names in [&["text"][..], &["x", "x"], &["x", ""]] {
        assert_eq!(named(names).unwrap_err().code, ErrorCode::ValidationFailed);
    }
    let names = Some(vec!["a".into(), "b".into()]);
    let error = inspect(file.path(), TSV, true, names, ReaderLimits::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::ValidationFailed);
}

#[test]
fn tsv_quotes_are_ordinary() {
    let rows = table(TSV, true, "a\tb\n\"open\tit \"\" is\r\n,\t\n\n");
    assert_eq!(rows[0], (2, vec!["\"open".into(), "it \"\" is".into()]));
    assert_eq!(rows[1], (3, vec![",".into(), String::new()]));
    assert_eq!(rows.len(), 2);
}

#[test]
fn jsonl_columns_are_the_keys_of_the_first_row() {
    let rows = table(
        JSONL,
        true,
        "{\"z\": \"a\", \"b\": 1}\r\n \n{\"b\": null, \"new\": 2}\n{\"z\": [1], \"b\": {}}\n",
    );
    assert_eq!(rows[0], (1, vec!["a".into(), "=1".into()]));
    assert_eq!(rows[1], (3, vec!["∅".into(), "∅".into()]));
    assert_eq!(rows[2], (4, vec!["an array".into(), "an object".into()]));
    let found = inspected(JSONL, true, "{\"z\": 1, \"a\": 2}").unwrap();
    assert_eq!(found.layout.columns, ["z", "a"]);
    assert!(!found.layout.header);
}

#[test]
fn empty_files_are_empty() {
    for format in [CSV, TSV, JSONL] {
        for bytes in ["", "\u{feff}", "\n\r\n\n"] {
            assert_eq!(wrong(format, true, bytes), (ErrorCode::DatasetEmpty, None));
        }
    }
    assert_eq!(wrong(CSV, true, "text,label\n").0, ErrorCode::DatasetEmpty);
    assert_eq!(wrong(TSV, true, "text\tlabel").0, ErrorCode::DatasetEmpty);
    assert_eq!(inspected(CSV, false, "text,label\n").unwrap().rows, 1);
}

#[test]
fn bytes_that_are_not_utf8_name_their_line() {
    let code = ErrorCode::DatasetNotUtf8;
    assert_eq!(wrong(CSV, true, b"a,b\n1,2\n\xFF,4\n"), (code, Some(3)));
    assert_eq!(
        wrong(CSV, true, b"a,b\n1,\"x\ny\nz\xE9\"\n"),
        (code, Some(4))
    );
    assert_eq!(wrong(TSV, true, b"a\tb\n1\t\xC3\n"), (code, Some(2)));
    assert_eq!(wrong(JSONL, true, b"{\"a\": \"\xE9\"}\n"), (code, Some(1)));
    assert_eq!(wrong(CSV, true, b"caf\xE9,b\n1,2\n"), (code, Some(1)));
    // UTF-16 with its byte-order mark.
    assert_eq!(wrong(CSV, true, b"\xFF\xFEa\0,\0b\0\n\0"), (code, Some(1)));
}

#[test]
fn halves_of_a_character_in_neighbouring_fields_do_not_join() {
    let bytes = b"a,b\n\xC3,\xA9\n";
    assert_eq!(
        wrong(CSV, true, bytes),
        (ErrorCode::DatasetNotUtf8, Some(2))
    );
}

#[test]
fn ragged_rows_name_line_and_counts() {
    let error = inspected(CSV, true, "a,b\n1,2\n\"x\ny\",2\n1,2,3\n").unwrap_err();
    assert_eq!(error.code, ErrorCode::DatasetRaggedRow);
    assert_eq!(error.line, Some(5));
    assert_eq!(error.message, "expected 2 fields, found 3");
    let code = ErrorCode::DatasetRaggedRow;
    assert_eq!(wrong(TSV, true, "a\tb\n1 2\n"), (code, Some(2)));
    assert_eq!(wrong(TSV, false, "1\t2\n1\t2\t3\n"), (code, Some(2)));
    assert_eq!(wrong(CSV, true, "a,b\n   \n"), (code, Some(2)));
}

#[test]
fn malformed_rows_name_their_line() {
    let code = ErrorCode::DatasetMalformed;
    assert_eq!(
        wrong(CSV, true, "a,b\n1,2\n\"open,3\n4,5\n"),
        (code, Some(3))
    );
    assert_eq!(wrong(CSV, true, "a,b\n\"x\"y,2\n"), (code, Some(2)));
    assert_eq!(wrong(CSV, true, "a,b\n\"x\"\ry,2\n"), (code, Some(2)));
    for row in [
        "{",
        "[1]",
        "7",
        "\"x\"",
        "{\"a\": 1} x",
        "{\"a\": 1e999}",
        "{a: 1}",
        "nul",
    ] {
        let jsonl = format!("{{\"a\": 1}}\n\n{row}\n");
        assert_eq!(wrong(JSONL, true, jsonl), (code, Some(3)), "{row}");
    }
    let deep = format!("{{\"a\": {}}}", "[".repeat(100_000));
    assert_eq!(wrong(JSONL, true, deep), (code, Some(1)));
    assert_eq!(wrong(JSONL, true, "{}\n"), (code, Some(1)));
    let error = inspected(JSONL, true, "{\"a\": tru}").unwrap_err();
    assert!(error.message.starts_with("invalid JSON at column"));
    assert!(!error.message.contains("line 1"));
}

#[test]
fn headers_must_be_named_and_distinct() {
    let code = ErrorCode::DatasetMalformed;
    for header in ["a,a", "a,", ",a", "a, "] {
        assert_eq!(
            wrong(CSV, true, format!("{header}\n1,2\n")),
            (code, Some(1))
        );
    }
    assert_eq!(wrong(JSONL, true, "{\"\": 1}\n"), (code, Some(1)));
    let many = vec!["x"; 1001].join(",");
    assert_eq!(wrong(CSV, false, many), (code, Some(1)));
}

#[test]
fn long_lines_are_refused_without_being_buffered() {
    let limits = ReaderLimits {
        line_bytes: 10,
        ..ReaderLimits::default()
    };
    let check = |format, bytes: &str| {
        let file = file(bytes.as_bytes());
        inspect(file.path(), format, false, None, limits).map_err(|e| (e.code, e.line))
    };
    let long = Err((ErrorCode::DatasetLineTooLong, Some(2)));
    for format in [CSV, TSV] {
        for end in ["", "\n", "\r\n"] {
            assert!(check(format, &format!("ab\n{}{end}", "x".repeat(10))).is_ok());
            assert_eq!(check(format, &format!("ab\n{}{end}", "x".repeat(12))), long);
        }
    }
    let unclosed = "a\n\"open\n\n\n\n\n\n\n\n\n\n\n\n";
    assert_eq!(check(CSV, unclosed), long);
    let jsonl = "{\"a\": 1}\n{\"a\": \"xxxxxxxxxxxxx\"}";
    assert_eq!(check(JSONL, jsonl), long);
    let huge = format!("a\n\"{}", "x".repeat(3 << 20));
    assert_eq!(
        wrong(CSV, true, huge),
        (ErrorCode::DatasetLineTooLong, Some(2))
    );
}

#[test]
fn the_number_of_rows_is_bounded() {
    let limits = ReaderLimits {
        rows: 2,
        ..ReaderLimits::default()
    };
    let check = |format, bytes: &[u8]| {
        let file = file(bytes);
        inspect(file.path(), format, true, None, limits).map_err(|e| e.code)
    };
    assert!(check(CSV, b"a\n1\n2\n").is_ok());
    assert_eq!(check(CSV, b"a\n1\n2\n3\n"), Err(ErrorCode::PayloadTooLarge));
    let jsonl = b"{\"a\":1}\n{\"a\":1}\n{\"a\":1}\n";
    assert_eq!(check(JSONL, jsonl), Err(ErrorCode::PayloadTooLarge));
}

#[test]
fn records_longer_than_the_buffer_arrive_whole() {
    let text = "word \"\" and, more\n".repeat(10_000);
    let rows = csv(format!("a,b\n\"{text}\",1\nx,2\n"));
    assert_eq!(rows[0].1[0], text.replace("\"\"", "\""));
    assert_eq!(rows[1].0, 10_003);
}

#[test]
fn rows_end_after_an_error() {
    let file = file(b"a,b\n1,2\n");
    let layout = inspect(file.path(), CSV, true, None, ReaderLimits::default())
        .unwrap()
        .layout;
    std::fs::write(file.path(), b"a,b\n1,2,3\n1,2\n").unwrap();
    let mut rows = rows(file.path(), &layout).unwrap();
    let error = rows.next().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::DatasetRaggedRow);
    assert!(rows.next().is_none());
}

#[test]
fn a_missing_file_is_an_internal_error() {
    let path = Path::new("no-such-file.csv");
    let error = inspect(path, CSV, true, None, ReaderLimits::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::InternalError);
}

proptest::proptest! {
    /// Whatever the bytes, a reader answers; what an inspection accepts, the second pass reads.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(
        proptest::sample::select(b"a1,\t\"\n\r {}:[]\\\xC3\xA9\xFF\0".to_vec()), 0..60),
        header: bool,
    ) {
        let file = file(&bytes);
        for format in [CSV, TSV, JSONL] {
            let found = inspect(file.path(), format, header, None, ReaderLimits::default());
            if let Ok(found) = found {
                let read = rows(file.path(), &found.layout).unwrap();
                proptest::prop_assert_eq!(read.filter(Result::is_ok).count() as u64, found.rows);
            }
        }
    }

    /// Any text survives being quoted.
    #[test]
    fn csv_gives_back_what_was_quoted(texts in proptest::collection::vec("[a,\"\r\né ]{0,12}", 1..6)) {
        let quoted = |text: &String| format!("\"{}\"", text.replace('"', "\"\""));
        let line: Vec<String> = texts.iter().map(quoted).collect();
        let file = file(format!("{}\r\n", line.join(",")).as_bytes());
        let found = inspect(file.path(), CSV, false, None, ReaderLimits::default()).unwrap();
        let row = rows(file.path(), &found.layout).unwrap().next().unwrap().unwrap();
        for (name, text) in found.layout.columns.iter().zip(&texts) {
            let column = Column::find(&found.layout, name).unwrap();
            proptest::prop_assert_eq!(row.get(&column), Cell::Text(text));
        }
    }
}
