//! Which snapshots tonight's features are held against.

use crate::error::Result;
use crate::features::Snapshots;
use crate::features::drift::{Drift, Reference, against};
use crate::platform::run::Run;
use crate::spec::Spec;
use chrono::NaiveDate;
use serde_json::json;

pub async fn drift(run: &Run, spec: &Spec, snapshots: &Snapshots) -> Result<Vec<Drift>> {
    // An impression learns from the day before; the newest day of training knew the newest features.
    let training = spec.dataset.splits(run.date).train.last().and_then(|day| day.pred_opt());
    let references: Vec<(Reference, NaiveDate)> =
        training.map(|day| (Reference::Training, day)).into_iter().chain([(Reference::LastWeek, run.day(7))]).collect();
    let keys: Vec<_> = references.iter().map(|(_, day)| *day).chain([run.date]).map(|day| snapshots.keys(day)).collect();
    let inputs = json!({ "limits": spec.features.drift, "references": references, "snapshots": keys });
    let compare = async |_: &_| against(run, &spec.features.drift, snapshots, &references).await;
    Ok(run.step(&format!("drift/dt={}", run.date), &inputs, compare).await?.facts)
}
