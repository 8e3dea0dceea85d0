//! What the agent does about connections that are tracked already.

use std::str::FromStr;
use std::time::Duration;

use clap::ArgAction;
use thiserror::Error;

use crate::datapath::settings::Settings;

/// The flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConnectionArgs {
    /// How long an endpoint may be in no slice before TCP connections to it are reset (`500ms`, `10s`, `2m`), or `off`
    #[arg(long, default_value = "10s", value_name = "SPAN|off")]
    reset_gone_endpoints: Grace,

    /// Drop forwarded packets from and to pods that connection tracking calls invalid
    #[arg(long, action = ArgAction::Set, default_value_t = false, default_missing_value = "true", num_args = 0..=1, value_name = "BOOL")]
    drop_invalid: bool,
}

impl ConnectionArgs {
    /// Puts them where the datapath looks.
    pub(super) const fn apply(&self, settings: &mut Settings) {
        settings.reset_gone_endpoints = self.reset_gone_endpoints.0;
        settings.drop_invalid = self.drop_invalid;
    }
}

/// A span, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grace(Option<Duration>);

/// Why a text is no span.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is neither a span such as `10s` nor `off`")]
struct GraceError(String);

impl FromStr for Grace {
    type Err = GraceError;

    fn from_str(text: &str) -> Result<Self, GraceError> {
        if text == "off" {
            return Ok(Self(None));
        }
        let error = || GraceError(text.to_owned());
        let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let span = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.saturating_mul(60)),
            "h" => Duration::from_secs(number.saturating_mul(3600)),
            _ => return Err(error()),
        };
        // A clock cannot count beyond; nothing waits a year.
        if span > Duration::from_secs(365 * 24 * 3600) { Err(error()) } else { Ok(Self(Some(span))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit() {
        let read = |text: &str| text.parse::<Grace>().map(|grace| grace.0);
        assert_eq!(read("off"), Ok(None));
        assert_eq!(read("250ms"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("2m"), Ok(Some(Duration::from_secs(120))));
        for text in ["", "10", "s", "-1s", "1.5s", "99999999999999999999s", "9999999999h", "on"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
