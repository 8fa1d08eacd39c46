//! The night, in data-flow order: from raw logs to published targeting tables and the report.
//!
//! Every stage is a function over the run, its settings and its inputs; each leaves a finished step behind, so that a rerun
//! resumes by itself. What the stages need of each other's files is in `learning` (models), `segmenting` (users) and `serving` (tables).

mod diagnosis;
mod discard;
mod drift;
mod facts;
mod leak;
mod learning;
mod lineage;
mod measure;
mod money;
mod reports;
mod rules;
mod segmenting;
mod serving;

use crate::error::{Error, Result};
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::publish::counts::Noise;
use crate::publish::{Made, Privacy};
use crate::spec::Spec;
use crate::targeting::arms::Assignment;
use crate::{admit, dataset, features, ingest, publish, workbench};
pub use discard::discard;
pub use facts::{Facts, summary};
pub use reports::{render_again, write_index, write_trend};
use std::path::Path;

/// Where a run may begin anew, and where it may stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Stage {
    Ingest,
    Features,
    Dataset,
    Model,
    Gate,
    Segments,
    Targeting,
    Publish,
    Report,
}

/// Runs the night up to and including `until`, and writes its report.
///
/// # Errors
/// Of the stage that failed; nothing half-written is visible and yesterday's table is still served.
pub async fn run(run: &Run, spec: &Spec, key: &Key, until: Stage) -> Result<Facts> {
    // A slip in a query of the last stage must not be found after the hours of the first.
    workbench::check(Path::new(&run.job.sql)).await?.sound()?;
    if until >= Stage::Dataset {
        dataset::check_features(&run.catalog)?;
    }
    let mut facts = Facts::new(run);
    night(run, spec, key, until, &mut facts).await?;
    facts.timings = run.timings();
    // A run that stops before the table is decided has no report, and must not write over the night's.
    if until >= Stage::Publish {
        reports::write(run, spec, &mut facts).await?;
    }
    // The commit stands and is reported; the load is still owed.
    match facts.deliver.as_ref().and_then(|delivered| delivered.kind.zip(delivered.error.as_ref())) {
        Some((kind, error)) => Err(Error::new(kind, error).action("run again, or `nightmarket publish`: the commit stands")),
        None => Ok(facts),
    }
}

async fn night(run: &Run, spec: &Spec, key: &Key, until: Stage, facts: &mut Facts) -> Result<()> {
    let staged = ingest::run(run, &spec.ingest, key).await?;
    let previous = publish::previous(&run.output, run.date).await?;
    let policy_version = serving::policy_version(run, spec, &staged, previous.as_ref());
    facts.checks.add(staged.checks.clone());
    facts.checks.add(ingest::check(run, &staged).await?);
    facts.ingested(&staged, &policy_version);
    facts.configuration = Some(lineage::configuration(run, spec, &staged));
    run.log_stage("ingest");
    if until == Stage::Ingest {
        return Ok(());
    }

    let with_interest = staged.has("events");
    let days = spec.dataset.snapshot_days(run.date, with_interest);
    let snapshots = features::run(run, &staged, &days).await?;
    snapshots.log();
    facts.featured(&snapshots);
    facts.skipped.extend(features::short_windows(run, spec.ingest.history_days, &days));
    facts.checks.add(features::check(run, &staged, &snapshots).await?);
    facts.leak = leak::test(run, spec, key, &staged, &snapshots).await?;
    facts.drift = drift::drift(run, spec, &snapshots).await?;
    run.log_stage("features");
    if until == Stage::Features {
        return Ok(());
    }

    let examples = dataset::response(run, &spec.dataset, &staged, &snapshots).await?;
    let interest_examples = match with_interest {
        true => Some(dataset::interest(run, &spec.dataset, &staged, &snapshots).await?),
        false => None,
    };
    facts.prepared(&examples, interest_examples.as_ref());
    run.log_stage("dataset");
    if until == Stage::Dataset {
        return Ok(());
    }

    let learned = learning::learn(run, spec, &staged, &examples, interest_examples.as_ref()).await?;
    facts.model = Some(learned.facts.clone());
    run.log_stage("model");
    if until == Stage::Model {
        return Ok(());
    }

    let champion = learning::champion(run, previous.as_ref(), &mut facts.skipped).await?;
    let judged = learning::judge(run, spec, &examples, &learned, champion.as_ref(), staged.people.is_some()).await?;
    facts.diagnosis = Some(diagnosis::diagnose(run, &examples, &learned, champion.as_ref()).await?);
    let chosen = learning::choose(&judged, learned, champion)?;
    facts.gate = Some(judged);
    run.log_stage("gate");
    if until == Stage::Gate {
        return Ok(());
    }

    let segmented = segmenting::segments(run, spec, &staged, &snapshots, &chosen, previous.as_ref(), &mut facts.skipped).await?;
    facts.segments = Some(segmented.facts.clone());
    run.log_stage("segments");
    if until == Stage::Segments {
        return Ok(());
    }

    let planned = serving::targeting(run, spec, &staged, &snapshots, &chosen, &segmented, &policy_version).await?;
    facts.targeting = Some(planned.facts.clone());
    run.log_stage("targeting");
    if until == Stage::Targeting {
        return Ok(());
    }

    let suppressed = ingest::suppressed_on(run, &spec.ingest, key).await?;
    let privacy = Privacy { suppressed: &suppressed, floor: spec.floor() };
    let tables = serving::tables(&segmented, &planned).await?;
    let shown = serving::impressions_to_measure(run, &staged).await?;
    let off_policy = serving::off_policy(run, spec, &shown, &tables, previous.as_ref()).await?;
    let admission = admit::admit(&serving::proposal(run, spec, &staged, &tables, off_policy.as_ref()).await?);
    if admission.floor_broken {
        return Err(Error::privacy(admission.objections()).action("see [segments] floor of the job; yesterday's table stays"));
    }
    let assignment = Assignment::of(&spec.targeting, key);
    let prices = serde_json::from_value(planned.facts["prices"].clone())?;
    let made = Made {
        policy_version: &policy_version,
        origin: &planned.key,
        assignment: Some(&assignment),
        prices: Some(&prices),
        follows: previous.as_ref(),
        counts: (admission.admitted && spec.segments.count_epsilon > 0.0).then_some(Noise { epsilon: spec.segments.count_epsilon, key }),
        spent: None,
    };
    let written = publish::write(run, &tables, privacy, made).await?;
    facts.written = Some(lineage::written(run, &written));
    let published = match admission.admitted {
        true => publish::commit(run, &written, Some(chosen.folder)).await?,
        false => publish::keep(&written, &admission.objections()),
    };
    facts.publish = Some(publish::stay(run, published, privacy).await?);
    facts.deliver = serving::deliver(run, spec).await?;
    facts.admit = Some(admission);
    facts.off_policy = off_policy;
    facts.movers = Some(serving::movers(run, &tables, previous.as_ref()).await?);
    facts.lineage = Some(lineage::lineage(run, &staged, facts));
    run.log_stage("publish");
    if until == Stage::Publish {
        return Ok(());
    }

    facts.evaluate = Some(measure::day(run, spec, &staged, &shown, &tables, previous.as_ref()).await?);
    facts.money = money::money(run, spec, &staged, &shown).await?;
    Ok(())
}
