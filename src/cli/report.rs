//! `nightmarket report`: the pages of the output store, rendered again from their facts.

use super::{Output, Place, output_store, print};
use crate::error::Result;
use crate::pipeline;
use crate::platform::run::resolve_date;
use crate::spec::Spec;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Report {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    job: PathBuf,
    /// The night of this date: 2026-11-22, or `yesterday`. Without it, and without --last, the page over all nights.
    #[arg(long, env = "NIGHTMARKET_DATE")]
    date: Option<String>,
    /// How the numbers of so many last nights went, as one page, whatever the date.
    #[arg(long, env = "NIGHTMARKET_LAST", value_name = "NIGHTS", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
    #[command(flatten)]
    place: Place,
}

pub async fn run(what: Report, output: Output) -> Result<()> {
    let spec = Spec::read(&what.job)?;
    let store = output_store(&spec, &what.place)?;
    let path = match (what.date, what.last) {
        (_, Some(nights)) => pipeline::write_trend(&store, nights as usize).await?,
        (Some(date), None) => {
            let date = resolve_date(&date, &spec.job()?)?;
            let path = pipeline::render_again(&store, date).await?;
            pipeline::write_index(&store).await?;
            path
        }
        (None, None) => pipeline::write_index(&store).await?,
    };
    print(output, &path, || path.clone())
}
