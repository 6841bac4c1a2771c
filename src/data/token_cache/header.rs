//! The first bytes of a token cache.

use super::key::CacheKey;
use super::width::Width;
use crate::data::tokenize::{IdBounds, TextTokenizer};

const MAGIC: [u8; 8] = *b"chantok\n";
/// Of the whole format. A change to anything that is written makes it another one.
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 64;
const CHECKED: usize = HEADER_BYTES - 4;

/// How ids are stored, and how large they are at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) id_width: Width,
    /// [`Width::Zero`] where all tokens are of type 0, as with most single texts.
    pub(super) type_width: Width,
    /// Tokens of the longest row that can be.
    pub(super) max_tokens: u32,
    pub(super) bounds: IdBounds,
}

impl Form {
    /// What `tokenizer` gives for texts, or for pairs of them.
    pub(super) fn of(tokenizer: &TextTokenizer, pairs: bool) -> Self {
        Self {
            id_width: Width::for_max(tokenizer.bounds().token_id),
            type_width: Width::for_max(tokenizer.max_type_id(pairs)),
            max_tokens: u32::try_from(tokenizer.max_seq_length()).unwrap_or(u32::MAX),
            bounds: tokenizer.bounds(),
        }
    }

    /// The header of a file of this form.
    pub(super) fn header(&self, key: &CacheKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.id_width.bytes() as u8, self.type_width.bytes() as u8]);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.max_tokens.to_le_bytes());
        out.extend_from_slice(&self.bounds.token_id.to_le_bytes());
        out.extend_from_slice(&self.bounds.type_id.to_le_bytes());
        out.extend_from_slice(key.bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads a header that must be that of `key`.
    pub(super) fn parse(header: &[u8; HEADER_BYTES], key: &CacheKey) -> Result<Self, &'static str> {
        let word = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_le_bytes(bytes)
        };
        if header[..8] != MAGIC {
            return Err("it is no token cache");
        }
        if word(8) != VERSION {
            return Err("it is of another version");
        }
        if word(CHECKED) != crc32fast::hash(&header[..CHECKED]) {
            return Err("its header is damaged");
        }
        if header[28..CHECKED] != *key.bytes() {
            return Err("it was made of something else");
        }
        let width = |at: usize| Width::of_bytes(header[at]).ok_or("its ids have no width");
        Ok(Self {
            id_width: width(12)?,
            type_width: width(13)?,
            max_tokens: word(16),
            bounds: IdBounds {
                token_id: word(20),
                type_id: word(24),
            },
        })
    }
}
