//! The data path alone: tokenising into a cache, checking it, and packing batches out of it.
//!
//! ```sh
//! cargo bench --bench data_path                                   # 1k, 10k, 100k and 1M rows, words of a small vocabulary
//! cargo bench --bench data_path -- --tokenizer MINILM/tokenizer.json --rows 1000000
//! ```
//!
//! `build` is wall time and the processor time of all its threads. The rest runs on one thread and is its processor
//! time, so that it does not matter what else the machine does: `check` opens the cache, `batches` are of 32 rows in
//! the order of a shuffled epoch, `in order` of 32 as an evaluation reads them. Memory is what the process holds
//! after opening, less what it held before, per row.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chandler::data::{
    CacheKey, EpochSampler, Mt19937, ReaderLimits, TextTokenizer, TokenFile, TokenizedDataset,
    inspect, token_cache,
};
use chandler::domain::{Columns, DatasetFormat, DatasetLocation};
use serde_json::{Value, json};

const BATCH: u32 = 32;
const MAX_SEQ_LENGTH: u32 = 128;
/// Rows after which a time is worth reading.
const ENOUGH_ROWS: u32 = 200_000;
const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = value("--tokenizer").map_or_else(|| write_tokenizer(dir.path()), PathBuf::from);
    let rows = value("--rows").unwrap_or_else(|| "1000,10000,100000,1000000".to_owned());
    let threads = value("--threads").map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| threads.parse().unwrap(),
    );
    println!("threads {threads}; µs a row, and tokens/s of packing");
    println!(
        "{:>8} {:>7} {:>7} {:>7} {:>7} {:>8} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "rows",
        "tokens",
        "build",
        "(cpu)",
        "check",
        "batches",
        "tokens/s",
        "in order",
        "tokens/s",
        "cache B",
        "memory B"
    );
    for rows in rows.split(',') {
        measure(dir.path(), rows.parse().unwrap(), &tokenizer, threads);
    }
}

fn measure(dir: &Path, rows: u32, tokenizer_file: &Path, threads: usize) {
    let dataset = write_rows(dir, rows, &words_of(tokenizer_file));
    let columns = Columns::default();
    let key = CacheKey::new(&dataset, &columns, tokenizer_file, MAX_SEQ_LENGTH).unwrap();
    let tokenizer = TextTokenizer::load(tokenizer_file, MAX_SEQ_LENGTH).unwrap();
    let path = dir.join("cache");
    let mut file = create(&path);

    let per_row = |seconds: f64| 1e6 * seconds / f64::from(rows);
    let (clock, cpu) = (Instant::now(), process_cpu_s());
    token_cache::build(
        &dataset,
        &columns,
        "train",
        &tokenizer,
        &key,
        threads,
        |bytes| {
            file.write_all(bytes).unwrap();
            Ok(())
        },
    )
    .unwrap();
    let build = per_row(clock.elapsed().as_secs_f64());
    let build_cpu = per_row(process_cpu_s() - cpu);
    let cache_bytes = file.stream_position().unwrap();

    let before = resident_bytes();
    let (tokens, facts) = TokenFile::open(File::open(&path).unwrap(), &key).unwrap();
    let token_count: f64 = facts.iter().map(|row| f64::from(row.tokens)).sum();
    drop(facts);
    let memory = resident_bytes().saturating_sub(before) as f64 / f64::from(rows);
    let data = TokenizedDataset::new(Arc::new(tokens), [0, 1]);

    // Few rows are gone through many times: the kernel counts in milliseconds.
    let rounds = ENOUGH_ROWS.div_ceil(rows);
    let timed = |work: &dyn Fn() -> usize| {
        let cpu = thread_cpu_s();
        let seen = (0..rounds).map(|_| work()).sum::<usize>();
        (
            seen / rounds as usize,
            per_row(thread_cpu_s() - cpu) / f64::from(rounds),
        )
    };
    let (seen, check) = timed(&|| {
        let file = File::open(&path).unwrap();
        TokenFile::open(file, &key).unwrap().1.len()
    });
    assert_eq!(seen, rows as usize);
    let sampler = EpochSampler::new(42, rows as usize, BATCH, 1, false).unwrap();
    let epoch = sampler.epoch(0);
    let (packed, batches) = timed(&|| {
        let steps = 0..sampler.batches_per_epoch();
        let batches = steps.flat_map(|step| epoch.micro_batches(step));
        batches.map(|rows| data.batch(rows).unwrap().tokens()).sum()
    });
    assert_eq!(packed as f64, token_count);
    let (packed, in_order) = timed(&|| {
        let batches = data.in_order(BATCH);
        batches.map(|batch| batch.unwrap().tokens()).sum()
    });
    assert_eq!(packed as f64, token_count);
    let tokens = token_count / f64::from(rows);
    println!(
        "{rows:8} {tokens:7.1} {build:7.2} {build_cpu:7.2} {check:7.3} {batches:8.3} {:9.2e} {in_order:9.3} {:9.2e} \
         {:8.1} {memory:9.1}",
        1e6 * tokens / batches,
        1e6 * tokens / in_order,
        cache_bytes as f64 / f64::from(rows),
    );
}

fn create(path: &Path) -> File {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap()
}

/// Rows of 3 to 20 words.
fn write_rows(dir: &Path, rows: u32, words: &[String]) -> DatasetLocation {
    let path = dir.join("rows.csv");
    let mut random = Mt19937::new(u64::from(rows));
    let mut out = std::io::BufWriter::new(create(&path));
    writeln!(out, "text,label").unwrap();
    for row in 0..rows {
        for i in 0..3 + random.next_u32() % 18 {
            let word = &words[random.next_u32() as usize % words.len()];
            write!(out, "{}{word}", if i == 0 { "" } else { " " }).unwrap();
        }
        writeln!(out, ",{}", row % 2).unwrap();
    }
    out.flush().unwrap();
    let found = inspect(
        &path,
        DatasetFormat::Csv,
        true,
        None,
        ReaderLimits::default(),
    )
    .unwrap();
    DatasetLocation {
        path,
        layout: found.layout,
        sha256: String::new(),
    }
}

/// Words that the tokenizer keeps whole.
fn words_of(tokenizer: &Path) -> Vec<String> {
    let file: Value = serde_json::from_slice(&std::fs::read(tokenizer).unwrap()).unwrap();
    let vocabulary = file["model"]["vocab"].as_object().unwrap();
    let plain =
        |word: &&String| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    vocabulary.keys().filter(plain).cloned().collect()
}

fn write_tokenizer(dir: &Path) -> PathBuf {
    let letters = "abcdefghijklmnopqrst";
    let syllables = letters
        .chars()
        .flat_map(|a| "aeiou".chars().map(move |b| format!("{a}{b}")));
    let words = syllables.flat_map(|start| letters.chars().map(move |end| format!("{start}{end}")));
    let vocabulary: serde_json::Map<String, Value> = SPECIAL
        .map(str::to_owned)
        .into_iter()
        .chain(words)
        .zip(0..)
        .map(|(word, id)| (word, json!(id)))
        .collect();
    let file = json!({
        "version": "1.0",
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": vocabulary},
    });
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processor time of this thread.
fn thread_cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split_whitespace().next().unwrap();
    1e-9 * nanoseconds.parse::<f64>().unwrap()
}

/// Processor time of all threads, those that have ended too, in hundredths.
fn process_cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    0.01 * (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap())
}
