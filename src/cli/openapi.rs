//! `chandler openapi`: what `openapi/openapi.json` is generated with.

use std::process::ExitCode;

/// Prints the document.
pub fn run() -> anyhow::Result<ExitCode> {
    print!("{}", crate::http::openapi_json());
    Ok(ExitCode::SUCCESS)
}
