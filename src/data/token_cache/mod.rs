//! The token ids of a dataset in a file, so that rows are tokenised once and training keeps four bytes of each in
//! memory, however long it is.
//!
//! ```text
//! header    64 bytes: magic, version, widths and bounds of the ids, key, checksum
//! records   one a row, in the dataset's order, each with its own checksum: see `record`
//! footer    JSON: how many rows, and the labels
//! tail      length and checksum of the footer
//! ```
//!
//! The [key](CacheKey) says what the file was made of. Nothing in it is believed unseen: [`TokenFile::open`] reads
//! it from end to end, as fast as memory allows, and refuses it for one bit that is wrong; whoever wanted it
//! builds it again. Later reads check their records once more, as a file may change under its reader.
//!
//! Rows are read by position, not through a memory map. A mapped file that is cut short kills its reader
//! (SIGBUS) where a read fails like any other; and a map needs `unsafe`. A row's read costs about a microsecond
//! (`benches/data_path.rs`), its training a hundred at least.

mod build;
mod file;
mod header;
mod index;
mod key;
mod record;
#[cfg(test)]
mod tests;
mod width;

pub use build::build;
pub use file::{Damaged, TokenFile};
pub use key::CacheKey;
pub use record::RowFacts;
