//! Logs: `tracing` to standard error, as lines for people or as JSON, filtered by directives such as
//! `info,chandler::http=debug`. Standard output stays free for what a command prints.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people, coloured on a terminal.
    #[default]
    Pretty,
    /// One JSON object a line, with the span's fields (`request_id`, `job_id`).
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither `pretty` nor `json`.
    #[error("unknown log format `{0}`; known are `pretty` and `json`")]
    Format(String),
    /// The filter has a directive that cannot be read.
    #[error("invalid log filter `{filter}`: {cause}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Logging was set up before in this process.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Sets up logging for the whole process. `filter` is a list of directives as in `RUST_LOG`; reading that
/// variable is the caller's business.
///
/// # Errors
/// An unreadable filter, or a second call.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(parse_filter(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Pretty => registry
            .with(
                lines
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| TelemetryError::AlreadySet)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|cause| TelemetryError::Filter {
            filter: filter.to_owned(),
            cause: cause.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_round_trip_and_others_are_named() {
        for format in [LogFormat::Pretty, LogFormat::Json] {
            assert_eq!(format.to_string().parse::<LogFormat>().unwrap(), format);
        }
        let error = "xml".parse::<LogFormat>().unwrap_err();
        assert!(error.to_string().contains("`xml`"));
    }

    #[test]
    fn a_wrong_filter_is_an_error_that_quotes_it() {
        assert!(parse_filter("info,chandler::http=debug").is_ok());
        let error = parse_filter("chandler=loud").unwrap_err();
        assert!(error.to_string().contains("chandler=loud"));
    }
}
