//! The `chandler` program: parses arguments and calls [`chandler::cli`].

fn main() -> std::process::ExitCode {
    chandler::cli::main()
}
