//! The `chandler` program: parses arguments and calls [`chandler::cli`].

use chandler::kernels::memory::HugePages;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> std::process::ExitCode {
    chandler::cli::main()
}
