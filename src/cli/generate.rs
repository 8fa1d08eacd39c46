//! `nightmarket generate`: a shop with known truth.

use super::{Output, print};
use crate::error::{Error, Result};
use crate::generate;
use crate::platform::pseudonym::Key;
use crate::platform::storage::Store;
use crate::spec::Spec;
use chrono::NaiveDate;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Generate {
    /// Where the shop's raw tables go.
    #[arg(long, env = "NIGHTMARKET_OUT", required_unless_present = "continue")]
    pub out: Option<String>,
    #[arg(long, default_value_t = 3000)]
    pub users: u64,
    #[arg(long, default_value_t = 28)]
    pub days: u64,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// The last day.
    #[arg(long, default_value = "2026-11-22")]
    pub until: NaiveDate,
    /// Instead: add one day to the shop at this place.
    #[arg(long, requires = "date", requires = "policy", requires = "job", conflicts_with = "out")]
    pub r#continue: Option<String>,
    /// The day to add.
    #[arg(long)]
    pub date: Option<NaiveDate>,
    /// Folder of the published tables that serve it.
    #[arg(long)]
    pub policy: Option<String>,
    /// The job that published them: its arms and its pseudonym key.
    #[arg(long)]
    pub job: Option<PathBuf>,
}

pub async fn run(plan: Generate, output: Output) -> Result<()> {
    let summary = match (&plan.r#continue, plan.date, &plan.policy, &plan.job) {
        (Some(raw), Some(date), Some(policy), Some(job)) => {
            let spec = Spec::read(job)?;
            let plan = generate::Continue { date, salt: spec.targeting.salt.clone(), shares: spec.targeting.shares };
            generate::continue_day(&Store::open(raw)?, &plan, &Store::open(policy)?, &Key::read(&spec.privacy)?).await?
        }
        _ => {
            let out = plan.out.as_deref().ok_or_else(|| Error::usage("--out is missing"))?;
            let plan = generate::Plan { users: plan.users, days: plan.days, seed: plan.seed, until: plan.until };
            generate::generate(&Store::open(out)?, &plan).await?
        }
    };
    print(output, &summary, || {
        let rows = summary.rows.iter().map(|(table, rows)| format!("  {rows:>10} {table}")).collect::<Vec<_>>().join("\n");
        format!(
            "{} users, {} days, CTR {:.2} %, CVR {:.2} %\n{rows}",
            summary.users,
            summary.days,
            100.0 * summary.ctr,
            100.0 * summary.cvr
        )
    })
}
