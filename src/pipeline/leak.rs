//! The night's own leak test: a sample of devices, the features as of the day before, and tonight's rows as the future that nobody
//! may know. A rerun of the same night on the same logs and SQL does not test again.

use crate::error::Result;
use crate::features::Snapshots;
use crate::ingest::Staged;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::spec::Spec;
use crate::workbench::leak::{self, Case, Leaks, Other};
use serde::Serialize;
use std::collections::BTreeMap;

/// Tests the features; `None` when the job asks for no test.
///
/// # Errors
/// `Contract`, naming the files, when something leaks.
pub async fn test(run: &Run, spec: &Spec, key: &Key, staged: &Staged, snapshots: &Snapshots) -> Result<Option<Leaks>> {
    #[derive(Serialize)]
    struct Inputs<'a> {
        raw: &'a str,
        sql: BTreeMap<&'a str, &'a str>,
        share: f64,
    }
    let share = spec.features.leak_share;
    if share == 0.0 || snapshots.tables.is_empty() {
        return Ok(None);
    }
    let queries = run.catalog.staging.iter().chain(&run.catalog.features);
    let inputs = Inputs { raw: &staged.fingerprint, sql: queries.map(|of| (of.name.as_str(), of.sha256.as_str())).collect(), share };
    let features = snapshots.tables.keys().cloned().collect();
    let case = Case { run, ingest: &spec.ingest, key, day: run.day(1), share, features, others: &[Other::Known] };
    let done = run.step(&format!("leak/dt={}", run.date), &inputs, async |_| leak::test(&case).await).await?;
    done.facts.refuse()?;
    Ok(Some(done.facts))
}
