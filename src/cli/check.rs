//! `nightmarket check`: every spec and every query of the jobs, planned; nothing is read.

use super::sql::{job_files, plural, rendered};
use super::{Output, print};
use crate::dataset;
use crate::error::{Error, Result};
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::spec::Spec;
use crate::workbench;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Reads every spec and plans every query of the jobs; of all jobs when none is named. A folder is a shop without a job.
pub async fn run(jobs: &[PathBuf], output: Output) -> Result<()> {
    let jobs = if jobs.is_empty() { job_files()? } else { jobs.to_vec() };
    let mut found: Vec<Diagnostic> = Vec::new();
    // Folders of SQL, and whether a job learns from it.
    let mut shops: BTreeMap<PathBuf, bool> = BTreeMap::new();
    for path in &jobs {
        if path.is_dir() {
            shops.entry(path.clone()).or_default();
            continue;
        }
        match Spec::read(path) {
            Ok(spec) => drop(shops.insert(PathBuf::from(spec.sql), true)),
            Err(error) => {
                // The diagnostic names the file itself.
                let message = error.to_string();
                let message =
                    message.strip_prefix(&path.display().to_string()).map_or(message.as_str(), |rest| rest.trim_start_matches([':', ' ']));
                found.push(Diagnostic::error("job", message.to_owned()).within(path, ""));
            }
        }
    }
    let (mut planned, mut unplanned) = (0, BTreeSet::new());
    for (shop, learns) in &shops {
        let checked = workbench::check(shop).await?;
        if *learns
            && checked.errors() == 0
            && let Err(error) = dataset::check_features(&checked.catalog)
        {
            found.push(Diagnostic::error("features", error.to_string()).within(&shop.join("features"), ""));
        }
        planned += checked.tables.len();
        unplanned.extend(checked.unplanned);
        found.extend(checked.diagnostics);
    }
    let errors = found.iter().filter(|found| found.severity == Severity::Error).count();
    let warnings = found.len() - errors;
    let files = found.iter().map(|found| &found.file).collect::<BTreeSet<_>>().len();
    let answer = serde_json::json!({
        "jobs": jobs.len(), "tables": planned, "errors": errors, "warnings": warnings, "unplanned": unplanned, "diagnostics": found,
    });
    print(output, &answer, || {
        let all = match (errors, warnings) {
            (0, 0) => {
                let specs = jobs.iter().filter(|path| !path.is_dir()).count();
                let of = if specs > 0 { format!("{}, ", plural(specs, "job")) } else { String::new() };
                format!("{of}{}: all plan", plural(planned, "table"))
            }
            _ => format!(
                "{} and {} in {}; {} plan",
                plural(errors, "error"),
                plural(warnings, "warning"),
                plural(files, "file"),
                plural(planned, "table")
            ),
        };
        let left = match unplanned.is_empty() {
            true => String::new(),
            false => {
                format!("\nnot planned, because they read a broken file: {}", unplanned.iter().cloned().collect::<Vec<_>>().join(", "))
            }
        };
        if found.is_empty() { all } else { format!("{}\n\n{all}{left}", rendered(&found)) }
    })?;
    match errors {
        0 => Ok(()),
        n => Err(Error::usage(plural(n, "error")).action("correct what is printed above and run again")),
    }
}
