//! Each op by itself, at the sizes of the usual models, beside what the machine can do.
//!
//!     cargo bench --bench ops                                  # all of them, bf16
//!     cargo bench --bench ops -- --only attention --f32 --threads 1 --milliseconds 1000
//!     cargo bench --bench ops -- --threads 1 --processor-time  # on a machine that others use
//!     cargo bench --bench ops -- --requests                    # products as `benches/gemm.py` asks for them
//!
//! An op is called again and again on the same tensors for a while; the table has the median time. Work is
//! what the op says of itself (`kernels::profile`): operations of its products, and bytes of the tensors it
//! reads and writes, each counted once. The roofs are timed before each op: multiply-adds on registers, and a
//! copy of more memory than any cache holds. An op whose tensors fit a cache exceeds that.

mod attention;
mod linear;
mod measure;
mod requests;
#[path = "../train_step/roof.rs"]
mod roof;
mod rows;
mod tensors;

use std::time::Duration;

use chandler::kernels::linear::Precision;
use chandler::kernels::memory::HugePages;
use chandler::kernels::pool;
use measure::Bench;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

/// Hidden and intermediate sizes, and parameters of an encoder without its embeddings.
const MODELS: [(&str, usize, usize, usize); 3] = [
    ("MiniLM", 384, 1536, 10_646_784),
    ("BERT-base", 768, 3072, 85_054_464),
    ("BERT-large", 1024, 4096, 302_309_376),
];

fn main() {
    let mut bench = Bench::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .unwrap_or_else(|| panic!("{word} needs a value"))
        };
        match word.as_str() {
            "--only" => bench.only = value(),
            "--rows" => bench.rows = value().parse().expect("a number"),
            "--threads" => pool::set_threads(value().parse().expect("a number")),
            "--milliseconds" => {
                bench.window = Duration::from_millis(value().parse().expect("a number"));
            }
            "--processor-time" => bench.processor_time = true,
            "--f32" => bench.precision = Precision::F32,
            "--requests" => return requests::answer(),
            "--bench" => {}
            _ => panic!("unknown argument {word}"),
        }
    }
    pool::flush_denormals();
    bench.head();
    for (name, hidden, intermediate, parameters) in MODELS {
        linear::run(&mut bench, hidden, intermediate);
        rows::run(&mut bench, name, hidden, intermediate, parameters);
    }
    attention::run(&mut bench);
    bench.roofs();
}
