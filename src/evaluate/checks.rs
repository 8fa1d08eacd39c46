//! Checks by name: what may be wrong with a table before its numbers are believed, each with one sentence.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Check {
    pub name: String,
    pub status: Status,
    /// One sentence.
    pub finding: String,
    /// Of the test behind the check, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
}

/// Numbers that a failed check makes wrong are withheld, and the command ends with the exit code of a broken contract.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// The check needs something that was not given.
    Skipped,
    /// The numbers stand; look before acting on them.
    Warning,
    Failed,
}

impl Check {
    pub fn new(name: &str, status: Status, finding: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status, finding: finding.into(), p: None }
    }

    /// `ok` or the worse status, each with its sentence.
    pub fn judge(name: &str, worse: Option<(Status, String)>, ok: impl Into<String>) -> Self {
        match worse {
            Some((status, finding)) => Self::new(name, status, finding),
            None => Self::new(name, Status::Ok, ok),
        }
    }
}

/// Rows without a user, which intervals take for users of their own (`statistics::bootstrap::clusters`).
pub fn missing_users(column: &str, missing: usize, rows: usize) -> Check {
    let finding = format!("{column} is empty in {missing} of {rows} rows; each of them counts as a user of its own");
    Check::judge("missing_users", (missing > 0).then_some((Status::Warning, finding)), format!("{column} is there in every row"))
}

/// The error with which a command ends when checks failed.
pub fn refuse(checks: &[Check]) -> Result<()> {
    let failed: Vec<String> =
        checks.iter().filter(|check| check.status == Status::Failed).map(|check| format!("{}: {}", check.name, check.finding)).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::contract(failed.join("; ")).action("mend the table, or ask for what it can answer")),
    }
}

/// The checks as lines for people, worst first; those that found nothing share a line.
pub fn describe(checks: &[Check]) -> String {
    let mut found: Vec<&Check> = checks.iter().filter(|check| check.status > Status::Skipped).collect();
    found.sort_by_key(|check| std::cmp::Reverse(check.status));
    let mark = |status: Status| if status == Status::Failed { "FAILED " } else { "warning" };
    let mut lines: Vec<String> = found.iter().map(|check| format!("{} {}: {}", mark(check.status), check.name, check.finding)).collect();
    // A check of every metric stands here once.
    let named = |status: Status| {
        let names: std::collections::BTreeSet<&str> =
            checks.iter().filter(|check| check.status == status).map(|check| check.name.as_str()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    for (status, word) in [(Status::Ok, "ok"), (Status::Skipped, "skipped")] {
        if !named(status).is_empty() {
            lines.push(format!("{word:<7} {}", named(status)));
        }
    }
    lines.join("\n")
}
