//! Wait for a condition with a time limit, and say what was seen last when it does not come.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(50);

/// Look until `look` gives a value. An error of `look` is not the end: it is told if the time runs out.
///
/// # Errors
/// If there is no value after `limit`; the message holds `what` and the last error.
pub fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if begin.elapsed() >= limit {
            let waited = format!("waited {:.1} s for {what}", begin.elapsed().as_secs_f32());
            return Err(match last {
                Some(error) => error.context(waited),
                None => anyhow!("{waited}, in vain"),
            });
        }
        pause(PERIOD);
    }
}

/// Let time pass between two looks at a condition.
#[expect(clippy::disallowed_methods, reason = "the one place that polls; everybody else waits for a condition here")]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_told_when_time_runs_out() {
        let error = wait::<()>("rain", Duration::ZERO, || Err(anyhow!("dry"))).unwrap_err();
        assert!(format!("{error:#}").contains("rain: dry"), "{error:#}");
    }

    #[test]
    fn a_value_ends_the_wait() {
        let mut looks = 0;
        let seen = wait("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(seen.unwrap(), 3);
    }
}
