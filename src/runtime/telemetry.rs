//! Logs: to stderr, as text for people or as JSON for collectors.

use std::error::Error;
use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object.
    Json,
}

/// Installs the process's subscriber. `filter` is a level or directives, as in `info,steelyard::speaker=debug`.
///
/// # Errors
/// When the filter cannot be read.
pub fn install(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    // Colours are for people: in a file or a collector they are only noise.
    let colours = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// An error with all its causes in one line. A cause that its effect quotes already is not said again.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("no route")]
    struct Lowest;

    #[derive(Debug, Error)]
    #[error("not sent ({source})")]
    struct Quoting {
        source: Lowest,
    }

    #[derive(Debug, Error)]
    #[error("not written")]
    struct Highest(#[source] Quoting);

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(chain(&Highest(Quoting { source: Lowest })), "not written: not sent (no route)");
    }
}
