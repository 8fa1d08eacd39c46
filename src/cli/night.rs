//! `nightmarket run` and `nightmarket backfill`: nights, and who is told how they ended.

use super::{JobDate, Output, Place, open, print};
use crate::error::{Context, Error, Result};
use crate::pipeline::{self, Stage};
use crate::telemetry::{self, Listeners, termination};
use chrono::NaiveDate;
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Night {
    #[command(flatten)]
    at: JobDate,
    /// Do this stage and the later ones again although their steps are finished. What a commit refers to, its tables and its
    /// model, is immutable and stays: a published night is recomputed and measured again, and serves on as it is.
    #[arg(long, value_enum, env = "NIGHTMARKET_FROM", value_name = "STAGE")]
    from: Option<Stage>,
    /// Stop after this stage.
    #[arg(long, value_enum, default_value = "report", env = "NIGHTMARKET_UNTIL", value_name = "STAGE")]
    until: Stage,
    #[command(flatten)]
    listeners: Listeners,
}

#[derive(Debug, Args)]
pub struct Backfill {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    job: PathBuf,
    #[arg(long, env = "NIGHTMARKET_START")]
    start: NaiveDate,
    /// The last date, itself included.
    #[arg(long, env = "NIGHTMARKET_END")]
    end: NaiveDate,
    /// Stop each night after this stage: with `features` only missing and stale snapshots are made.
    #[arg(long, value_enum, default_value = "report", env = "NIGHTMARKET_UNTIL", value_name = "STAGE")]
    until: Stage,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listeners: Listeners,
}

pub async fn run(night: Night, output: Output, termination_log: Option<&Path>) -> Result<()> {
    if let Some(from) = night.from.filter(|from| *from > night.until) {
        let [from, until] = [from, night.until].map(|stage| format!("{stage:?}").to_lowercase());
        return Err(Error::usage(format_args!("--from {from} lies after --until {until}")));
    }
    let (json, text) = one(&night.at, night.from, night.until, &night.listeners, termination_log).await?;
    print(output, &json, || text)
}

/// As JSON one document: what the nights found, oldest first, up to one that failed.
pub async fn backfill(nights: Backfill, output: Output, termination_log: Option<&Path>) -> Result<()> {
    let Backfill { job, start, end, until, place, listeners } = nights;
    if start > end {
        return Err(Error::usage(format_args!("--start {start} lies after --end {end}")));
    }
    let mut found = Vec::new();
    let mut ended = Ok(());
    for date in start.iter_days().take_while(|date| *date <= end) {
        let at = JobDate { job: job.clone(), date: date.to_string(), place: place.clone() };
        match one(&at, None, until, &listeners, termination_log).await.with_context(|| date.to_string()) {
            Ok((json, _)) if output == Output::Json => found.push(json),
            Ok((json, text)) => print(output, &json, || text)?,
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if output == Output::Json {
        print(output, &found, String::new)?;
    }
    ended
}

/// Runs one night; gives its facts and its summary.
async fn one(
    at: &JobDate,
    from: Option<Stage>,
    until: Stage,
    listeners: &Listeners,
    termination_log: Option<&Path>,
) -> Result<(Value, String)> {
    let (run, spec, key) = open(at)?;
    if let Some(from) = from {
        pipeline::discard(&run, &spec, from).await?;
    }
    telemetry::started(&run, listeners).await;
    let facts = match pipeline::run(&run, &spec, &key, until).await {
        Ok(facts) => facts,
        Err(error) => {
            telemetry::failed(&run, listeners, &error).await;
            return Err(error);
        }
    };
    let json = serde_json::to_value(&facts)?;
    // A night that was stopped on the way has nothing to tell yet.
    if until >= Stage::Publish {
        telemetry::succeeded(&run, listeners, &json).await;
    }
    if let Some(path) = termination_log
        && let Err(error) = termination::write(path, &termination::of_success(&json, facts.report.as_deref()))
    {
        tracing::warn!(%error, "the end of the night could not be told");
    }
    let text = pipeline::summary(&facts, until)?;
    Ok((json, text))
}
