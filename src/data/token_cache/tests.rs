use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use serde_json::json;

use super::header::{Form, HEADER_BYTES};
use super::record::{Head, RowFacts};
use super::width::Width;
use super::*;
use crate::data::testing::{MAX_SEQ_LENGTH, Sample, bert, short_rows};
use crate::data::{Batch, Encoded, IdBounds};
use crate::domain::{Columns, ErrorCode};

const PAIRS: &str = "text,pair,label\na,b c,yes\nb,,no\na a a a a a,x x x x x x,yes\n";

fn batch_of(file: &TokenFile, rows: &[u32]) -> Batch {
    let labels: Vec<u32> = (0..file.labels().len() as u32).collect();
    let mut batch = Batch::default();
    file.read(rows, &labels, rows, &mut batch).unwrap();
    batch
}

#[test]
fn what_is_read_is_what_the_tokenizer_gave() {
    let sample = Sample::new("text,label\na,yes\n\"unknown\nb\",no\n\na a b b c c a a b,yes\n");
    let (file, facts) = sample.open(&sample.build(1).unwrap()).unwrap();
    assert_eq!(file.len(), 3);
    assert_eq!(file.labels().names().collect::<Vec<_>>(), ["yes", "no"]);
    let batch = batch_of(&file, &[2, 0, 1]);
    assert_eq!(
        batch,
        Batch {
            input_ids: [
                &[2, 4, 4, 5, 5, 6, 6, 3][..],
                &[2, 4, 3],
                &[2, 7, 8, 9, 5, 3]
            ]
            .concat(),
            token_type_ids: vec![0; 17],
            cu_seqlens: vec![0, 8, 11, 17],
            labels: vec![0, 0, 1],
            sequence_keys: vec![2, 0, 1],
        }
    );
    assert_eq!(file.lines(&[0, 1, 2]).unwrap(), [2, 3, 6]);
    let rest: Vec<_> = facts
        .iter()
        .map(|row| (row.tokens, row.label, row.cut))
        .collect();
    assert_eq!(rest, [(3, 0, false), (6, 1, false), (8, 0, true)]);
}

#[test]
fn pairs_keep_their_token_types_and_texts_alone_store_none() {
    let sample = Sample::new(PAIRS);
    let bytes = sample.build(1).unwrap();
    let (file, facts) = sample.open(&bytes).unwrap();
    let batch = batch_of(&file, &[0, 1]);
    assert_eq!(batch.input_ids, [2, 4, 3, 5, 6, 3, 2, 5, 3, 3]);
    assert_eq!(batch.token_type_ids, [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]);
    assert!(facts[2].cut);
    assert_eq!(bytes[12..14], [1, 1], "a byte for an id, a byte for a type");
    let alone = Sample::new(&short_rows(3)).build(1).unwrap();
    assert_eq!(alone[12..14], [1, 0]);
}

#[test]
fn equal_texts_have_equal_hashes_and_parts_do_not_run_together() {
    let csv = "text,pair,label\na,b,x\na,b,y\nab,,x\na,b c,x\n";
    let sample = Sample::new(csv);
    let (_, facts) = sample.open(&sample.build(1).unwrap()).unwrap();
    let hashes: Vec<u64> = facts.iter().map(|row| row.text_hash).collect();
    assert_eq!(hashes[0], hashes[1]);
    assert!(hashes[0] != hashes[2] && hashes[0] != hashes[3] && hashes[2] != hashes[3]);
}

#[test]
fn ids_are_as_wide_as_the_largest_needs() {
    for (id, bytes) in [(200, 1), (3_000, 2), (70_000, 4)] {
        let mut tokenizer = bert();
        tokenizer["model"]["vocab"]["wide"] = json!(id);
        let sample = Sample::with_tokenizer("text,label\na wide,x\nb,y\n", &tokenizer);
        let built = sample.build(1).unwrap();
        assert_eq!(built[12], bytes);
        let (file, _) = sample.open(&built).unwrap();
        assert_eq!(batch_of(&file, &[1, 0]).input_ids, [2, 5, 3, 2, 4, id, 3]);
        assert_eq!(file.bounds(), sample.tokenizer().bounds());
    }
}

#[test]
fn records_of_no_token_and_of_one_are_records() {
    for width in [Width::Zero, Width::One, Width::Two, Width::Four] {
        let form = Form {
            id_width: width,
            type_width: width,
            max_tokens: 1,
            bounds: IdBounds {
                token_id: 0,
                type_id: 0,
            },
        };
        for ids in [vec![], vec![0]] {
            let facts = RowFacts {
                text_hash: 7,
                tokens: ids.len() as u32,
                label: 3,
                cut: false,
            };
            let head = Head { line: 9, facts };
            let mut bytes = Vec::new();
            form.put_record(
                &mut bytes,
                5,
                &head,
                &Encoded::new(ids.clone(), ids.clone()),
            );
            assert_eq!(bytes.len(), form.record_bytes(ids.len() as u32));
            let record = form.parse_record(5, &bytes).unwrap();
            assert_eq!(record.head, head);
            assert_eq!(record.input_ids.len(), width.bytes() * ids.len());
            assert!(form.parse_record(6, &bytes).is_none(), "another row's");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let sample = Sample::new(&short_rows(5_000));
    let bytes = sample.build(1).unwrap();
    for threads in [2, 3, 7] {
        assert!(sample.build(threads).unwrap() == bytes, "{threads} threads");
    }
    let (file, facts) = sample.open(&bytes).unwrap();
    assert_eq!((file.len(), facts.len()), (5_000, 5_000));
}

/// The same rows read one by one, in any order, together, and from a file opened again.
#[test]
fn a_warm_cache_gives_the_batches_of_a_cold_one() {
    let sample = Sample::new(&short_rows(100));
    let bytes = sample.build(2).unwrap();
    let (cold, cold_facts) = sample.open(&bytes).unwrap();
    let (warm, warm_facts) = sample.open(&bytes).unwrap();
    assert_eq!(cold_facts, warm_facts);
    let shuffled: Vec<u32> = (0..100).map(|i| i * 37 % 100).collect();
    assert_eq!(batch_of(&cold, &shuffled), batch_of(&warm, &shuffled));
    let all: Vec<u32> = (0..100).collect();
    let together = batch_of(&cold, &all);
    let alone: Vec<u32> = all
        .iter()
        .flat_map(|&row| batch_of(&warm, &[row]).input_ids)
        .collect();
    assert_eq!(together.input_ids, alone);
}

#[test]
fn one_wrong_bit_anywhere_is_noticed() {
    for csv in ["text,label\na,x\nb c,y\n", PAIRS] {
        let sample = Sample::new(csv);
        let bytes = sample.build(1).unwrap();
        assert!(sample.open(&bytes).is_ok());
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(sample.open(&damaged).is_err(), "bit {bit}");
        }
    }
}

/// The control of the test above: with its checksum made right again, a wrong token is taken for what the
/// tokenizer gave. Nothing but the checksum could tell.
#[test]
fn without_its_checksum_a_damaged_row_would_be_believed() {
    let sample = Sample::new("text,label\na,x\nb,y\n");
    let mut bytes = sample.build(1).unwrap();
    let row = HEADER_BYTES..HEADER_BYTES + 24 + 3 + 4;
    let token = row.start + 24 + 1;
    assert_eq!(bytes[token], 4, "`a`");
    bytes[token] = 5;
    assert!(sample.open(&bytes).is_err());
    let checksum = crc32fast::hash(&bytes[row.start..row.end - 4]);
    bytes[row.end - 4..row.end].copy_from_slice(&checksum.to_le_bytes());
    let (file, _) = sample.open(&bytes).unwrap();
    assert_eq!(batch_of(&file, &[0]).input_ids, [2, 5, 3], "`b`");
    // An id that the tokenizer does not have would reach beyond the model's embeddings: refused even so.
    bytes[token] = 14;
    let checksum = crc32fast::hash(&bytes[row.start..row.end - 4]);
    bytes[row.end - 4..row.end].copy_from_slice(&checksum.to_le_bytes());
    assert!(sample.open(&bytes).is_err());
}

#[test]
fn files_of_another_length_are_refused() {
    let sample = Sample::new("text,label\na,x\nb c,y\n");
    let bytes = sample.build(1).unwrap();
    for length in 0..bytes.len() {
        assert!(sample.open(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(sample.open(&[&bytes[..], b"\0"].concat()).is_err());
    assert!(sample.open(&[&bytes[..], &bytes].concat()).is_err());
}

#[test]
fn rows_in_each_others_place_are_noticed() {
    let sample = Sample::new("text,label\na,x\nb,x\nc,y\n");
    let mut bytes = sample.build(1).unwrap();
    let size = 24 + 3 + 4;
    let (first, rest) = bytes[HEADER_BYTES..].split_at_mut(size);
    first.swap_with_slice(&mut rest[..size]);
    let error = sample.open(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "row 0 is damaged");
}

#[test]
fn the_cache_of_something_else_is_refused() {
    let sample = Sample::new("text,label\na,x\nb c,y\n");
    let file = sample.file(&sample.build(1).unwrap());
    let error = TokenFile::open(file, &CacheKey::of_byte(7)).unwrap_err();
    assert_eq!(error.to_string(), "it was made of something else");
    for (bytes, reason) in [(&b""[..], "read"), (&[0; 200], "no token cache")] {
        let error = sample.open(bytes).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn the_key_tells_everything_apart_that_decides_about_tokens() {
    let sample = Sample::new("text,label\na,x\nb c,y\n");
    let key = |sample: &Sample, columns: &Columns, length| {
        let file = sample.tokenizer_file();
        CacheKey::new(&sample.dataset, columns, &file, length).unwrap()
    };
    let of = |sample: &Sample| key(sample, &sample.columns, MAX_SEQ_LENGTH);
    let original = of(&sample);
    assert_eq!(of(&sample), original);
    assert_ne!(key(&sample, &sample.columns, 9), original);
    let columns = Columns {
        text: "label".into(),
        ..Columns::default()
    };
    assert_ne!(key(&sample, &columns, MAX_SEQ_LENGTH), original);

    let mut other = Sample::new("text,label\na,x\nb c,y\n");
    other.dataset.path.clone_from(&sample.dataset.path);
    assert_eq!(
        of(&other),
        original,
        "the same file with the same tokenizer"
    );
    other.dataset.sha256 = "of another upload".into();
    assert_ne!(of(&other), original);
    other.dataset.sha256.clone_from(&sample.dataset.sha256);
    other.dataset.layout.header = false;
    assert_ne!(of(&other), original);
    other.dataset.layout.header = true;
    let mut tokenizer = bert();
    tokenizer["normalizer"]["lowercase"] = json!(false);
    std::fs::write(other.tokenizer_file(), tokenizer.to_string()).unwrap();
    assert_ne!(of(&other), original);

    // Edited in place, behind the server's back.
    std::fs::write(&sample.dataset.path, "text,label\na,x\nb,y\n").unwrap();
    assert_ne!(of(&sample), original);
}

#[test]
fn a_file_that_changes_under_its_reader_is_an_error() {
    let sample = Sample::new("text,label\na,x\nb c,y\n");
    let mut file = sample.file(&sample.build(1).unwrap());
    let (tokens, _) = TokenFile::open(file.try_clone().unwrap(), &sample.key()).unwrap();
    let read = |row| {
        let mut batch = Batch::default();
        tokens.read(&[row], &[0, 1], &[row], &mut batch)
    };
    assert!(read(0).is_ok() && read(1).is_ok());
    file.write_all_at(&[0xEE], HEADER_BYTES as u64 + 24)
        .unwrap();
    let error = read(0).unwrap_err();
    assert_eq!(error.code, ErrorCode::InternalError);
    assert!(error.message.contains("row 0 is damaged") && error.hint.is_some());
    assert!(read(1).is_ok());
    file.set_len(HEADER_BYTES as u64 + 40).unwrap();
    file.flush().unwrap();
    assert!(read(1).is_err());
    assert!(tokens.lines(&[1]).is_err());
    assert!(read(2).unwrap_err().message.contains("no such row"));
}

#[test]
fn the_first_error_of_the_dataset_is_the_one_reported() {
    let wrong = |csv: &str, threads| {
        let error = Sample::new(csv).build(threads).unwrap_err();
        (error.code, error.line)
    };
    let many = short_rows(3_000);
    for threads in [1, 2] {
        // No tokens on line 3002, no label on line 3003.
        let csv = format!("{many}\u{7f},yes\na,\n");
        assert_eq!(
            wrong(&csv, threads),
            (ErrorCode::TextHasNoTokens, Some(3002))
        );
        let csv = format!("{many}a,\n\u{7f},yes\n");
        assert_eq!(wrong(&csv, threads), (ErrorCode::ValueInvalid, Some(3002)));
        assert_eq!(
            wrong("text,label\n ,x\n", threads),
            (ErrorCode::ValueInvalid, Some(2))
        );
    }
}

#[test]
fn a_failing_disk_ends_the_building() {
    let sample = Sample::new(&short_rows(10));
    let full = |_: &[u8]| Err(crate::domain::JobError::new(ErrorCode::DiskFull, "full"));
    let (dataset, columns, key) = (&sample.dataset, &sample.columns, sample.key());
    let error = build(
        dataset,
        columns,
        "train",
        &sample.tokenizer(),
        &key,
        2,
        full,
    );
    assert_eq!(error.unwrap_err().code, ErrorCode::DiskFull);
}
