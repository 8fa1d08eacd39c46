//! `--from`: takes back the finished steps of a date, from one stage on, so that the night does them again.
//!
//! A step without its manifest is unfinished work, so only manifests are deleted. What a commit refers to, its tables and its
//! model, is immutable and stays: a published night can be recomputed and measured again, but not published anew.

use super::Stage;
use crate::error::Result;
use crate::platform::run::{Run, step_of};
use crate::platform::storage::day_of;
use crate::publish;
use crate::spec::Spec;
use std::collections::BTreeSet;

/// The stages that leave steps behind, and below which folders.
const FOLDERS: [(Stage, &str); 11] = [
    (Stage::Ingest, "staging"),
    (Stage::Features, "features"),
    (Stage::Features, "leak"),
    (Stage::Features, "drift"),
    (Stage::Dataset, "dataset"),
    (Stage::Model, "model"),
    (Stage::Gate, "gate"),
    (Stage::Gate, "diagnosis"),
    (Stage::Segments, "segments"),
    (Stage::Targeting, "targeting/plan"),
    (Stage::Publish, "targeting/tables"),
];

/// Discards the steps of `from` and of the later stages; gives how many.
pub async fn discard(run: &Run, spec: &Spec, from: Stage) -> Result<usize> {
    let commits = publish::history(&run.output).await?;
    let committed: BTreeSet<&str> =
        commits.iter().flat_map(|commit| [Some(&commit.tables), commit.model.as_ref()]).flatten().map(String::as_str).collect();
    let mut discarded = 0;
    for (stage, folder) in FOLDERS.into_iter().filter(|(stage, _)| *stage >= from) {
        // Snapshots are made as of several days; everything else is of the date.
        let days = match stage {
            Stage::Features => spec.dataset.snapshot_days(run.date, true),
            _ => BTreeSet::from([run.date]),
        };
        for object in run.output.list(folder).await? {
            let Some(step) = step_of(&object.path) else { continue };
            // A commit names the one model of the step that scores.
            let kept =
                committed.iter().any(|folder| folder.strip_prefix(step).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
            if day_of(step, "dt").is_some_and(|day| days.contains(&day)) && !kept {
                run.output.delete(&object.path).await?;
                discarded += 1;
            }
        }
    }
    tracing::info!(?from, discarded, "steps are done again");
    Ok(discarded)
}
