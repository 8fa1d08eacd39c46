//! A job: what runs, as its TOML file says it. The only module that knows TOML.
//!
//! A spec is whole: no inheritance, no conditions, no templating. Each section is the settings of one stage and lives with that
//! stage; an unknown key is refused with its line and the nearest known one.

use crate::error::{Error, Result};
use crate::platform::catalog::nearest;
use crate::platform::diagnostic::Diagnostic;
use chrono::{DateTime, Days, Duration, NaiveDate, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;
use serde::de::DeserializeOwned;
use std::path::Path;

/// What a run must know of its job whatever the stage: the part of a spec above its sections, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub name: String,
    /// IANA name; days are local days of this zone.
    pub timezone: Tz,
    /// Folder of the shop's SQL.
    pub sql: String,
    /// How long after the end of a day its rows may still arrive and be seen by that day's snapshot.
    pub arrival_lag_hours: u32,
    pub seed: u64,
}

impl Job {
    /// The exclusive end of local day `date`.
    pub fn as_of(&self, date: NaiveDate) -> DateTime<Utc> {
        let midnight = (date + Days::new(1)).and_time(NaiveTime::MIN);
        // A zone that skips midnight (a daylight-saving change) starts its day at the first valid hour.
        let local = (0..24).find_map(|hour| self.timezone.from_local_datetime(&(midnight + Duration::hours(hour))).earliest());
        local.expect("some hour of every day exists").with_timezone(&Utc)
    }

    /// When the snapshot of `date` stops looking: a row that arrives later is not seen by it.
    pub fn cut_off(&self, date: NaiveDate) -> DateTime<Utc> {
        self.as_of(date) + Duration::hours(i64::from(self.arrival_lag_hours))
    }
}

/// TOML to a value; an unknown key or a wrong type is an error with file, line and, for a key, the nearest known one.
pub fn parse_toml<T: DeserializeOwned>(text: &str, file: &str) -> Result<T> {
    parse_toml_or_fault(text).map_err(|fault| Error::usage(fault.within(Path::new(file), text)))
}

/// As [`parse_toml`]; what is wrong comes with its place in the text.
#[expect(clippy::result_large_err, reason = "the few diagnostics of a check are made once and printed")]
pub fn parse_toml_or_fault<T: DeserializeOwned>(text: &str) -> Result<T, Diagnostic> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let at = error.span().unwrap_or(0..0);
        let message = error.message();
        match (unknown(message), suggestion(message)) {
            (Some(key), Some(near)) => {
                let fault = Diagnostic::error("toml", format!("unknown key {key}")).at(at.clone(), "here");
                fault.help("a key of a similar name exists").suggest(at, near)
            }
            _ => Diagnostic::error("toml", message).at(at, "here"),
        }
    })
}

/// The key in ``unknown field `a`, expected one of `b`, `c` ``.
fn unknown(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// The nearest of the names that serde lists in ``unknown field `a`, expected one of `b`, `c` ``.
fn suggestion(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, expected) = rest.split_once('`')?;
    nearest(unknown, expected.split('`').skip(1).step_by(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only its field names matter")]
        struct Spec {
            epochs: u32,
            learning_rate: f64,
        }
        let error = parse_toml::<Spec>("epochs = 3\nlerning_rate = 0.1\n", "jobs/x.toml").expect_err("refused").to_string();
        assert!(error == "jobs/x.toml:2:1: unknown key lerning_rate; did you mean learning_rate?", "{error}");
    }

    #[test]
    fn the_day_ends_at_local_midnight() {
        let job = Job { name: "j".into(), timezone: chrono_tz::Asia::Shanghai, sql: "s".into(), arrival_lag_hours: 3, seed: 1 };
        let date = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
        assert_eq!(job.as_of(date).to_rfc3339(), "2026-11-22T16:00:00+00:00");
        assert_eq!(job.cut_off(date).to_rfc3339(), "2026-11-22T19:00:00+00:00");
    }
}
