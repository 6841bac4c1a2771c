use std::io::Write as _;

use serde_json::{Value, json};

use super::*;
use crate::data::testing::{bert, sequence, special};

fn load_bytes(bytes: &[u8], max_seq_length: u32) -> Result<TextTokenizer, JobError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    TextTokenizer::load(file.path(), max_seq_length)
}

fn load(file: &Value) -> Result<TextTokenizer, JobError> {
    load_bytes(file.to_string().as_bytes(), 16)
}

fn encode(tokenizer: &TextTokenizer, text: &str, text_pair: Option<&str>) -> Encoded {
    tokenizer.encode(text, text_pair).unwrap()
}

/// The message of the `model_invalid` that a changed file gives.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut file = bert();
    change(&mut file);
    let error = load(&file).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelInvalid);
    error.message
}

#[test]
fn texts_and_pairs_get_special_tokens_and_types() {
    let tokenizer = load(&bert()).unwrap();
    let single = encode(&tokenizer, "A unknown b!", None);
    assert_eq!(single.input_ids, [2, 4, 7, 8, 9, 5, 10, 3]);
    assert_eq!(single.token_type_ids, [0; 8]);
    assert!(!single.truncated);
    assert_eq!(single.content_tokens, 6);
    let pair = encode(&tokenizer, "a", Some("b zzz"));
    assert_eq!(pair.input_ids, [2, 4, 3, 5, 1, 3]);
    assert_eq!(pair.token_type_ids, [0, 0, 0, 1, 1, 1]);
    assert_eq!(encode(&tokenizer, "", Some("b")).input_ids, [2, 3, 5, 3]);
}

#[test]
fn the_files_truncation_and_padding_are_replaced() {
    let tokenizer = load_bytes(bert().to_string().as_bytes(), 8).unwrap();
    assert_eq!(tokenizer.max_seq_length(), 8);
    let exact = encode(&tokenizer, "a b c a b c", None);
    assert_eq!((exact.input_ids.len(), exact.truncated), (8, false));
    let cut = encode(&tokenizer, "a b c a b c x", None);
    assert_eq!(cut.input_ids, [2, 4, 5, 6, 4, 5, 6, 3]);
    assert!(cut.truncated);
    assert_eq!(encode(&tokenizer, "a", None).input_ids, [2, 4, 3]);
}

#[test]
fn pairs_are_cut_longest_first() {
    let tokenizer = load_bytes(bert().to_string().as_bytes(), 8).unwrap();
    // Five tokens besides the three special ones.
    let long_second = encode(&tokenizer, "a", Some("b b b b b b"));
    assert_eq!(long_second.input_ids, [2, 4, 3, 5, 5, 5, 5, 3]);
    let long_first = encode(&tokenizer, "a a a a a a", Some("b"));
    assert_eq!(long_first.input_ids, [2, 4, 4, 4, 4, 3, 5, 3]);
    let both = encode(&tokenizer, &"a ".repeat(500), Some(&"b ".repeat(500)));
    assert_eq!(both.input_ids, [2, 4, 4, 3, 5, 5, 5, 3]);
    for row in [&long_second, &long_first, &both] {
        assert!(row.truncated);
        assert_eq!(row.token_type_ids.len(), 8);
    }
}

#[test]
fn texts_of_a_megabyte_are_cut() {
    let tokenizer = load(&bert()).unwrap();
    let long = "a ".repeat(1 << 19);
    assert_eq!(encode(&tokenizer, &long, Some(&long)).input_ids.len(), 16);
    let word = "unknown".repeat(1 << 17);
    assert_eq!(encode(&tokenizer, &word, None).input_ids, [2, 1, 3]);
}

#[test]
fn bert_processing_does_the_same_as_the_template() {
    let mut file = bert();
    file["post_processor"] =
        json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
    let (other, tokenizer) = (load(&file).unwrap(), load(&bert()).unwrap());
    for (text, pair) in [
        ("a b", None),
        ("a", Some("b c")),
        ("a a a a a a a a", Some("b c a b c a b c")),
        ("", None),
    ] {
        assert_eq!(encode(&other, text, pair), encode(&tokenizer, text, pair));
    }
}

#[test]
fn a_text_without_tokens_names_its_line() {
    let tokenizer = load(&bert()).unwrap();
    let example = |line, text: &str| Example {
        line,
        text: text.into(),
        text_pair: None,
        label: "x".into(),
    };
    let empty = example(7, "\u{200b}\u{7f}");
    let error = tokenizer.encode_example(&empty, "train").unwrap_err();
    assert_eq!(
        (error.code, error.line),
        (ErrorCode::TextHasNoTokens, Some(7))
    );
    let encoded = tokenizer.encode_example(&example(8, "b"), "train");
    assert_eq!(encoded.unwrap().input_ids, [2, 5, 3]);
}

#[test]
fn ids_must_have_embedding_rows() {
    let bounds = load(&bert()).unwrap().bounds();
    assert!(bounds.check_fits(14, 2).is_ok());
    let error = bounds.check_fits(13, 2).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelInvalid);
    assert!(
        error
            .message
            .contains("up to 13, but the model has 13 rows")
    );
    assert!(bounds.check_fits(14, 1).is_err());

    // Ids that only the template or an added token has count as well.
    let mut file = bert();
    file["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([4_000_000]);
    assert!(load(&file).unwrap().bounds().check_fits(30_000, 2).is_err());
    let mut file = bert();
    file["added_tokens"][0]["content"] = json!("[EXTRA]");
    assert!(load(&file).unwrap().bounds().check_fits(14, 2).is_err());
}

#[test]
fn sequences_must_hold_a_pair() {
    assert!(load_bytes(bert().to_string().as_bytes(), 5).is_ok());
    let error = load_bytes(bert().to_string().as_bytes(), 4).unwrap_err();
    assert_eq!(error.pointer.as_deref(), Some("/max_seq_length"));
}

#[test]
fn parts_outside_the_list_are_refused_by_name() {
    let replace = json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"});
    let message = refused(|f| f["normalizer"] = replace.clone());
    assert!(message.contains("`Replace` is not supported; supported: BertNormalizer"));
    let nested = json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, replace]});
    assert!(refused(|f| f["normalizer"] = nested).contains("`Replace`"));
    let deep =
        json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]});
    assert!(refused(|f| f["normalizer"] = deep).contains("`Sequence`"));
    let many = json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFD"}); 9]});
    refused(|f| f["normalizer"] = many);
    let split = json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed",
        "invert": false});
    assert!(refused(|f| f["pre_tokenizer"] = split).contains("`Split`"));
    assert!(refused(|f| f["pre_tokenizer"] = Value::Null).contains("is missing"));
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
    assert!(refused(|f| f["post_processor"] = bytes).contains("`ByteLevel`"));
    assert!(refused(|f| f["post_processor"] = Value::Null).contains("is missing"));
    assert!(refused(|f| f["model"]["type"] = json!("BPE")).contains("`BPE`"));
    assert!(refused(|f| f["model"]["type"] = Value::Null).contains("has no type"));
}

#[test]
fn a_sequence_of_plain_normalizers_is_read() {
    let mut file = bert();
    file["normalizer"] = json!({"type": "Sequence", "normalizers":
        [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]});
    assert_eq!(
        encode(&load(&file).unwrap(), "É", None).input_ids,
        [2, 12, 3]
    );
    file["normalizer"] = Value::Null;
    assert_eq!(
        encode(&load(&file).unwrap(), "é A", None).input_ids,
        [2, 11, 1, 3]
    );
}

#[test]
fn a_hostile_decoder_is_never_built() {
    let mut file = bert();
    file["decoder"] = json!({"type": "Replace", "pattern": {"Regex": "(((("}, "content": "x"});
    assert_eq!(
        encode(&load(&file).unwrap(), "a", None).input_ids,
        [2, 4, 3]
    );
}

#[test]
fn templates_that_repeat_lose_or_misname_a_text_are_refused() {
    let template = |single: Value| move |f: &mut Value| f["post_processor"]["single"] = single;
    let twice = json!([special("[CLS]", 0), sequence("A", 0), sequence("A", 0)]);
    assert!(refused(template(twice)).contains("each text once"));
    refused(template(json!([special("[CLS]", 0)])));
    refused(template(json!([sequence("A", 0), special("[SEP]", 0)])));
    refused(template(json!([])));
    // `tokenizers` panics on these two.
    assert!(refused(template(json!([sequence("B", 0)]))).contains("panicked"));
    let unknown = json!([special("[NONE]", 0), sequence("A", 0)]);
    assert!(refused(template(unknown)).contains("panicked"));
}

#[test]
fn a_disguised_post_processor_is_refused() {
    // With these fields `tokenizers` builds RoBERTa's, whatever the type says.
    let disguised = json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
        "trim_offsets": true, "add_prefix_space": true});
    refused(|f| f["post_processor"] = disguised);
}

#[test]
fn models_that_would_fail_or_crawl_are_refused() {
    assert!(refused(|f| f["model"]["unk_token"] = json!("[NONE]")).contains("unk_token"));
    refused(|f| f["model"]["vocab"] = json!({}));
    refused(|f| f["model"]["vocab"] = json!(["a"]));
    refused(|f| f["model"]["vocab"]["[UNK]"] = json!(-1));
    refused(|f| f["model"]["max_input_chars_per_word"] = json!(1_000_000));
    refused(|f| f["model"]["continuing_subword_prefix"] = json!("#".repeat(17)));
    refused(|f| f["added_tokens"][0]["content"] = json!("x".repeat(2000)));
    refused(|f| f["added_tokens"] = json!(vec![json!({"content": "x"}); 10_001]));
    refused(|f| f["version"] = json!("9.9"));
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xFF\xFE",
        b"{\"model\": 7}",
    ] {
        let error = load_bytes(bytes, 16).unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelInvalid);
    }
    let error = TextTokenizer::load(Path::new("no-such-file"), 16).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelInvalid);
}
