//! One row of a token cache.
//!
//! ```text
//! hash of the text 8 · line 8 · tokens 4 · label 2 · whether it was cut 1 · 0
//! token ids, then token type ids: `tokens` of each, as wide as the header says
//! CRC-32 of all this, xor the row's number: a record in another's place is wrong, too
//! ```
//! Numbers are little-endian.

use super::header::Form;
use crate::data::tokenize::Encoded;

pub(super) const HEAD_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;

/// What is to be known of a row without reading its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFacts {
    /// Hash of its text or texts: rows with the same ones have the same.
    pub text_hash: u64,
    /// Tokens, special ones included.
    pub tokens: u32,
    /// Its label's number within the file.
    pub label: u16,
    /// Whether tokens were cut off.
    pub cut: bool,
}

/// The facts, and the line of the dataset on which the row starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) line: u64,
    pub(super) facts: RowFacts,
}

impl Head {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.facts.text_hash.to_le_bytes());
        out.extend_from_slice(&self.line.to_le_bytes());
        out.extend_from_slice(&self.facts.tokens.to_le_bytes());
        out.extend_from_slice(&self.facts.label.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.facts.cut), 0]);
    }

    /// Reads the first [`HEAD_BYTES`] of a record.
    pub(super) fn parse(record: &[u8]) -> Option<Self> {
        let (text_hash, rest) = record.split_first_chunk()?;
        let (line, rest) = rest.split_first_chunk()?;
        let (tokens, rest) = rest.split_first_chunk()?;
        let (label, rest) = rest.split_first_chunk()?;
        Some(Self {
            line: u64::from_le_bytes(*line),
            facts: RowFacts {
                text_hash: u64::from_le_bytes(*text_hash),
                tokens: u32::from_le_bytes(*tokens),
                label: u16::from_le_bytes(*label),
                cut: *rest.first()? != 0,
            },
        })
    }
}

impl Form {
    /// Bytes of a record of so many tokens.
    pub(super) fn record_bytes(&self, tokens: u32) -> usize {
        let per_token = self.id_width.bytes() + self.type_width.bytes();
        HEAD_BYTES + tokens as usize * per_token + CHECKSUM_BYTES
    }

    /// Appends the record of row `row`.
    pub(super) fn put_record(&self, out: &mut Vec<u8>, row: u32, head: &Head, encoded: &Encoded) {
        let start = out.len();
        head.put(out);
        self.id_width.put(&encoded.input_ids, out);
        self.type_width.put(&encoded.token_type_ids, out);
        let checksum = crc32fast::hash(&out[start..]) ^ row;
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Checks a whole record of row `row` and answers its parts.
    pub(super) fn parse_record<'a>(&self, row: u32, record: &'a [u8]) -> Option<Record<'a>> {
        let (content, checksum) = record.split_last_chunk()?;
        if crc32fast::hash(content) ^ row != u32::from_le_bytes(*checksum) {
            return None;
        }
        let head = Head::parse(content)?;
        let tokens = head.facts.tokens;
        if tokens > self.max_tokens || record.len() != self.record_bytes(tokens) {
            return None;
        }
        let ids = tokens as usize * self.id_width.bytes();
        let (input_ids, token_type_ids) = content[HEAD_BYTES..].split_at_checked(ids)?;
        Some(Record {
            head,
            input_ids,
            token_type_ids,
        })
    }
}

/// A record's parts; ids as they are stored.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) head: Head,
    pub(super) input_ids: &'a [u8],
    pub(super) token_type_ids: &'a [u8],
}
