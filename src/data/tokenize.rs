//! Texts to token ids, with the base model's own tokenizer.

use std::path::Path;

use tokenizers::{
    EncodeInput, Encoding, PostProcessor, Token, Tokenizer, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use crate::domain::{ErrorCode, JobError};

use super::examples::Example;
use super::tokenizer_file::{self, guarded, invalid};

/// One tokenised text or pair, with the special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// For each token which text it belongs to, as the model counts: 0 or 1.
    pub token_type_ids: Vec<u32>,
    /// Whether tokens were cut off.
    pub truncated: bool,
    /// Tokens that are not special.
    pub content_tokens: usize,
}

impl Encoded {
    /// Tokens that came from elsewhere: nothing cut, all of them content.
    pub fn new(input_ids: Vec<u32>, token_type_ids: Vec<u32>) -> Self {
        Self {
            content_tokens: input_ids.len(),
            input_ids,
            token_type_ids,
            truncated: false,
        }
    }
}

/// A tokenizer that cuts at a fixed length (`longest_first`) and never pads.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_seq_length: usize,
    max_token_id: u32,
    max_single_type_id: u32,
    max_pair_type_id: u32,
}

/// The largest ids that a tokenizer can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBounds {
    /// Of tokens.
    pub token_id: u32,
    /// Of token types.
    pub type_id: u32,
}

impl IdBounds {
    /// Checks that every id has a row in the model's embeddings, `vocab_size` and `type_vocab_size` of them.
    ///
    /// # Errors
    /// `model_invalid` naming both numbers.
    pub fn check_fits(&self, vocab_size: usize, type_vocab_size: usize) -> Result<(), JobError> {
        for (what, id, rows) in [
            ("token ids", self.token_id, vocab_size),
            ("token type ids", self.type_id, type_vocab_size),
        ] {
            if id as usize >= rows {
                let cause = format!("its {what} go up to {id}, but the model has {rows} rows");
                return Err(invalid(&cause));
            }
        }
        Ok(())
    }
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. Sequences will have at most `max_seq_length` tokens, special ones included;
    /// truncation and padding settings of the file are ignored.
    ///
    /// # Errors
    /// `model_invalid` if the file is missing, corrupt, or holds anything but the parts of a BERT tokenizer.
    pub fn load(path: &Path, max_seq_length: u32) -> Result<Self, JobError> {
        let mut tokenizer = tokenizer_file::read(path)?;
        let single = probe(&tokenizer, false)?;
        let pair = probe(&tokenizer, true)?;
        let max_seq_length = max_seq_length as usize;
        if max_seq_length < pair.len() {
            let cause = format!("it needs sequences of at least {} tokens", pair.len());
            return Err(invalid(&cause).at("/max_seq_length"));
        }
        guarded(|| {
            tokenizer.with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: max_seq_length,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))?;
            Ok(())
        })?;
        let of_vocabulary = tokenizer.get_vocab(true).into_values();
        let of_template = [&single, &pair].into_iter().flat_map(Encoding::get_ids);
        let max_type = |encoding: &Encoding| encoding.get_type_ids().iter().copied().max();
        Ok(Self {
            max_token_id: of_vocabulary.chain(of_template.copied()).max().unwrap_or(0),
            max_single_type_id: max_type(&single).unwrap_or(0),
            max_pair_type_id: max_type(&pair).unwrap_or(0),
            tokenizer,
            max_seq_length,
        })
    }

    /// Most tokens of a sequence.
    pub fn max_seq_length(&self) -> usize {
        self.max_seq_length
    }

    /// The largest ids it can give, for texts or pairs.
    pub fn bounds(&self) -> IdBounds {
        IdBounds {
            token_id: self.max_token_id,
            type_id: self.max_single_type_id.max(self.max_pair_type_id),
        }
    }

    /// The largest token type id it can give for pairs, or for texts alone.
    pub fn max_type_id(&self, pairs: bool) -> u32 {
        if pairs {
            self.max_pair_type_id
        } else {
            self.max_single_type_id
        }
    }

    /// Tokenises a text or a pair.
    ///
    /// # Errors
    /// `model_invalid` if the tokenizer fails.
    pub fn encode(&self, text: &str, text_pair: Option<&str>) -> Result<Encoded, JobError> {
        guarded(|| self.encode_unguarded(text, text_pair))
    }

    /// Tokenises an example. `which` is `train` or `eval`, for messages.
    ///
    /// # Errors
    /// `text_has_no_tokens` with the line if it has only special tokens; `model_invalid` if the tokenizer
    /// fails.
    pub fn encode_example(&self, example: &Example, which: &str) -> Result<Encoded, JobError> {
        let encoded = self.encode(&example.text, example.text_pair.as_deref())?;
        if encoded.content_tokens > 0 {
            return Ok(encoded);
        }
        let message = format!("a text of the {which} dataset has no tokens after normalisation");
        Err(JobError::new(ErrorCode::TextHasNoTokens, message)
            .on_line(example.line)
            .hint("remove the row, or give it a text with visible characters"))
    }

    fn encode_unguarded(&self, text: &str, text_pair: Option<&str>) -> tokenizers::Result<Encoded> {
        let input: EncodeInput<'_> = match text_pair {
            Some(text_pair) => (text, text_pair).into(),
            None => text.into(),
        };
        let encoding = self.tokenizer.encode_fast(input, true)?;
        let special = encoding.get_special_tokens_mask();
        Ok(Encoded {
            input_ids: encoding.get_ids().to_vec(),
            token_type_ids: encoding.get_type_ids().to_vec(),
            truncated: !encoding.get_overflowing().is_empty(),
            content_tokens: special.iter().filter(|&&mask| mask == 0).count(),
        })
    }
}

/// What the post-processor makes of one token, or of a pair of one token each: it must keep each text exactly
/// once and put a special token first (the head reads it), whatever the file's template says.
fn probe(tokenizer: &Tokenizer, is_pair: bool) -> Result<Encoding, JobError> {
    let token = || Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
    let encoding = guarded(|| tokenizer.post_process(token(), is_pair.then(token), true))?;
    let added = tokenizer
        .get_post_processor()
        .map_or(0, |processor| processor.added_tokens(is_pair));
    let special = encoding.get_special_tokens_mask();
    let content = special.iter().filter(|&&mask| mask == 0).count();
    let expected = 1 + usize::from(is_pair);
    if content != expected || encoding.len() != expected + added || special.first() != Some(&1) {
        return Err(invalid(
            "its post-processor does not keep each text once, after a special token",
        ));
    }
    Ok(encoding)
}

#[cfg(test)]
mod tests;
