//! `nightmarket generate`: a shop with known truth.

use super::{Output, print};
use crate::error::{Error, Result};
use crate::platform::pseudonym::{self, Key};
use crate::platform::storage::Store;
use crate::spec::Spec;
use crate::targeting::arms::Assignment;
use crate::{generate, publish};
use chrono::NaiveDate;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Generate {
    /// Where the shop's raw tables go.
    #[arg(long, env = "NIGHTMARKET_OUT", required_unless_present = "continue")]
    pub out: Option<String>,
    /// People of the shop.
    #[arg(long, default_value_t = 3000, env = "NIGHTMARKET_USERS")]
    pub users: u64,
    /// Days of history.
    #[arg(long, default_value_t = 28, env = "NIGHTMARKET_DAYS")]
    pub days: u64,
    /// Another seed is another world.
    #[arg(long, default_value_t = 7, env = "NIGHTMARKET_SEED")]
    pub seed: u64,
    /// The last day.
    // `run --until` is a stage, and has the variable of that name.
    #[arg(long, default_value = "2026-11-22", env = "NIGHTMARKET_LAST_DAY")]
    pub until: NaiveDate,
    /// Instead of a new shop: add one day to the one at this place.
    #[arg(long, requires = "date", requires = "policy", env = "NIGHTMARKET_CONTINUE")]
    pub r#continue: Option<String>,
    /// The day to add.
    #[arg(long, env = "NIGHTMARKET_DATE")]
    pub date: Option<NaiveDate>,
    /// Folder of the published tables that serve it, in the arms of which their manifest tells.
    #[arg(long, env = "NIGHTMARKET_POLICY")]
    pub policy: Option<String>,
    /// A job whose arms and whose pseudonym key count instead.
    #[arg(long, env = "NIGHTMARKET_JOB")]
    pub job: Option<PathBuf>,
}

pub async fn run(plan: Generate, output: Output) -> Result<()> {
    let summary = match (&plan.r#continue, plan.date, &plan.policy) {
        (Some(raw), Some(date), Some(policy)) => {
            let policy = Store::open_existing(policy)?;
            let (assignment, key) = match &plan.job {
                Some(job) => {
                    let spec = Spec::read(job)?;
                    let key = Key::read(&spec.privacy)?;
                    (Assignment::of(&spec.targeting, &key), key)
                }
                None => {
                    let assignment = publish::assignment(&policy).await?;
                    let key = Key::read(&pseudonym::Settings { key_version: assignment.key_version, ..Default::default() })?;
                    assignment.check_key(&key)?;
                    (assignment, key)
                }
            };
            let plan = generate::Continue { date, salt: assignment.salt, shares: assignment.shares };
            generate::continue_day(&Store::open_existing(raw)?, &plan, &policy, &key).await?
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
