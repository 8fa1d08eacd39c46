//! Nights that nobody will go back to -> free space.
//!
//! A step of a night is removed when the night is older than the retention, counted back from the date that serves, and no commit
//! within it names the step. The tables and the model that serve, those of the generation before and of the night before stay,
//! however old. Commits, tombstones and reports are small and stay too; a night whose steps are gone can be made again.

use super::{Commit, forget, history};
use crate::error::{Error, Result};
use crate::platform::storage::Store;
use chrono::{Days, NaiveDate};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Collected {
    pub dry_run: bool,
    /// Nights before this date are out of the retention.
    pub before: NaiveDate,
    pub bytes: u64,
    pub folders: Vec<Folder>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Folder {
    pub path: String,
    pub files: u64,
    pub bytes: u64,
}

impl std::fmt::Display for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        let mib = self.bytes as f64 / f64::from(1 << 20);
        write!(f, "{} folders of nights before {} {verb}, {mib:.1} MiB", self.folders.len(), self.before)?;
        self.folders.iter().try_for_each(|folder| write!(f, "\n  {}  {} files, {} bytes", folder.path, folder.files, folder.bytes))
    }
}

/// Removes, or in a dry run lists, what no commit of the last `keep_days` needs.
pub async fn gc(output: &Store, keep_days: u64, dry_run: bool) -> Result<Collected> {
    let commits = history(output).await?;
    let head = commits.last().ok_or_else(|| Error::usage("nothing was ever published: there is no date to count back from"))?;
    let before = head.run_date - Days::new(keep_days);
    let needed = needed(&commits, before);
    let mut folders: BTreeMap<String, Folder> = BTreeMap::new();
    for object in output.list("").await? {
        let Some(path) = step_before(&object.path, before) else { continue };
        if needed.iter().any(|needed| *needed == path || needed.starts_with(&format!("{path}/"))) {
            continue;
        }
        let folder = folders.entry(path.to_owned()).or_insert_with(|| Folder { path: path.to_owned(), files: 0, bytes: 0 });
        folder.files += 1;
        folder.bytes += object.bytes;
    }
    let folders: Vec<Folder> = folders.into_values().collect();
    if !dry_run {
        for folder in &folders {
            forget::remove(output, &folder.path).await?;
        }
    }
    Ok(Collected { dry_run, before, bytes: folders.iter().map(|folder| folder.bytes).sum(), folders })
}

/// Tables and models that stay.
fn needed(commits: &[Commit], before: NaiveDate) -> BTreeSet<&str> {
    let within = commits.iter().filter(|commit| commit.run_date >= before);
    let last_two = commits.iter().rev().take(2);
    let head = commits.last();
    let night_before = commits.iter().rev().find(|commit| head.is_some_and(|head| commit.run_date < head.run_date));
    let kept = within.chain(last_two).chain(night_before);
    kept.flat_map(|commit| [Some(commit.tables.as_str()), commit.model.as_deref()]).flatten().collect()
}

/// The step's folder, `…/dt=DATE/KEY`, when the object lies in a step of a night before a date.
fn step_before(path: &str, before: NaiveDate) -> Option<&str> {
    let mut end = 0;
    let mut parts = path.split('/');
    let date = parts.by_ref().find_map(|part| {
        end += part.len() + 1;
        part.strip_prefix("dt=")?.parse::<NaiveDate>().ok()
    })?;
    let key = parts.next()?;
    // A file that lies directly below the date is no step's.
    parts.next()?;
    (date < before).then(|| &path[..end + key.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_folder_below_its_night() {
        let before = NaiveDate::from_ymd_opt(2026, 11, 20).expect("a date");
        assert_eq!(step_before("staging/events/dt=2026-11-19/ab/dt=2026-11-01/0.parquet", before), Some("staging/events/dt=2026-11-19/ab"));
        for kept in ["staging/events/dt=2026-11-20/ab/x.parquet", "report/dt=2026-11-01/report.json", "targeting/_commits/1.json"] {
            assert_eq!(step_before(kept, before), None, "{kept}");
        }
    }
}
