//! `nightmarket run` and `nightmarket backfill`: nights, and who is told how they ended.

use super::{JobDate, Output, Place, open, print};
use crate::error::{Context, Error, Result};
use crate::pipeline::{self, Stage};
use crate::telemetry::{self, Listeners, termination};
use chrono::NaiveDate;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Night {
    #[command(flatten)]
    at: JobDate,
    /// Stop after this stage.
    #[arg(long, value_enum, default_value = "report", env = "NIGHTMARKET_UNTIL")]
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
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listeners: Listeners,
}

pub async fn run(night: Night, output: Output, termination_log: Option<&Path>) -> Result<()> {
    one(&night.at, night.until, &night.listeners, output, termination_log).await
}

pub async fn backfill(nights: Backfill, output: Output, termination_log: Option<&Path>) -> Result<()> {
    let Backfill { job, start, end, place, listeners } = nights;
    if start > end {
        return Err(Error::usage(format_args!("--start {start} lies after --end {end}")));
    }
    for date in start.iter_days().take_while(|date| *date <= end) {
        let at = JobDate { job: job.clone(), date: date.to_string(), place: place.clone() };
        one(&at, Stage::Report, &listeners, output, termination_log).await.with_context(|| date.to_string())?;
    }
    Ok(())
}

async fn one(at: &JobDate, until: Stage, listeners: &Listeners, output: Output, termination_log: Option<&Path>) -> Result<()> {
    let (run, spec, key) = open(at)?;
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
    let text = pipeline::summary(&facts)?;
    print(output, &json, || text)
}
