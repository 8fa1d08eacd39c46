//! `nightmarket allocate`: the allocation alone, on plain tables.

use super::{Output, print};
use crate::allocate::allocate;
use crate::allocate::tables::{self, Locations, NamedPrices, Results};
use crate::error::{Context, Error, Result};
use crate::platform::run::Watch;
use crate::platform::storage::Store;
use clap::Args;
use std::fmt::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};

/// Tables are Parquet or CSV, files or folders of them; money in currency.
#[derive(Debug, Args)]
pub struct Allocate {
    /// segment_id, ad_id, value_per_impression, cost_per_impression, max_impressions (empty: no cap).
    #[arg(long, env = "NIGHTMARKET_CANDIDATES")]
    candidates: String,
    /// segment_id, impressions.
    #[arg(long, env = "NIGHTMARKET_SEGMENTS")]
    segments: String,
    /// ad_id, budget; if wanted min_impressions, group, min_roi (least value per currency spent).
    #[arg(long, env = "NIGHTMARKET_ADS")]
    ads: String,
    /// Budgets of groups of ads: group, budget.
    #[arg(long, env = "NIGHTMARKET_GROUPS")]
    groups: Option<String>,
    /// prices.json of an earlier allocation to start from. Saves time; the certificate is as good.
    #[arg(long, env = "NIGHTMARKET_PRICES")]
    prices: Option<PathBuf>,
    /// Folder for plan.parquet, campaigns.parquet, prices.json and certificate.json.
    #[arg(long, env = "NIGHTMARKET_OUT")]
    out: String,
    /// 0 = all cores. Changes no result.
    #[arg(long, default_value_t = 0, env = "NIGHTMARKET_THREADS")]
    threads: usize,
    /// Share of every supply, cap and budget that is left for exploration. More: more is learnt, less is earned.
    #[arg(long, default_value_t = 0.0, env = "NIGHTMARKET_RESERVE")]
    reserve: f64,
}

pub async fn run(command: Allocate, output: Output) -> Result<()> {
    if !(0.0..1.0).contains(&command.reserve) {
        return Err(Error::usage(format_args!("--reserve {} is not a share below 1", command.reserve)));
    }
    let threads = if command.threads == 0 { std::thread::available_parallelism().map_or(1, NonZero::get) } else { command.threads };
    let start = command.prices.as_deref().map(read_prices).transpose()?;
    let Allocate { candidates, segments, ads, groups, out, reserve, .. } = command;
    let named = tables::read(&Locations { candidates, segments, ads, groups }, reserve).await?;
    let start = start.map(|prices| prices.in_order(&named.ads, &named.groups));
    let watch = Watch::start();
    let plan = allocate(&named.problem, start.as_ref(), threads)?;
    let results = tables::results(&named, &plan, reserve, watch.seconds(), threads)?;

    let out = Store::open(&out)?;
    for (name, table) in
        [("plan.parquet", tables::plan_table(&named, &plan)?), ("campaigns.parquet", tables::campaign_table(&results.campaigns)?)]
    {
        out.write_parquet(name, table.schema(), &[table]).await?;
    }
    out.put("prices.json", json(&NamedPrices::of(&named.ads, &named.groups, &plan.prices))?).await?;
    // Without the seconds: the same tables have the same bytes.
    out.put("certificate.json", json(&plan.certificate)?).await?;
    print(output, &results, || describe(&results))
}

fn read_prices(path: &Path) -> Result<NamedPrices> {
    let text = std::fs::read(path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::usage(format_args!("{error}")).action("name a prices.json that allocate wrote"))
        .with_context(|| format!("reading {}", path.display()))
}

fn json(value: &impl serde::Serialize) -> Result<bytes::Bytes> {
    Ok(serde_json::to_vec_pretty(value)?.into())
}

/// Ads in words beyond which nobody reads on.
const ADS_SHOWN: usize = 40;

fn describe(results: &Results) -> String {
    let mut text = format!(
        "value {:.2}, at most {:.2} is possible: gap {:.1e}; in whole impressions {:.2}, gap {:.1e}; {} steps, {:.2} s\n",
        results.lower_bound, results.upper_bound, results.gap, results.value_whole, results.gap_whole, results.iterations, results.seconds
    );
    let _ = writeln!(text, "{:<20} {:>14} {:>14} {:>12} {:>12}  what holds it back", "ad", "budget", "spend", "impressions", "price");
    for campaign in results.campaigns.iter().take(ADS_SHOWN) {
        let reason = campaign.unspent_reason.unwrap_or(campaign.binding_constraint);
        let (ad, n) = (&campaign.ad_id, campaign.impressions);
        let _ =
            writeln!(text, "{ad:<20} {:>14.2} {:>14.2} {n:>12} {:>12.4}  {reason}", campaign.budget, campaign.spend, campaign.shadow_price);
    }
    if results.campaigns.len() > ADS_SHOWN {
        let _ = writeln!(text, "and {} ads more: campaigns.parquet", results.campaigns.len() - ADS_SHOWN);
    }
    if results.shortfall > results.least_shortfall {
        let (shortfall, least) = (results.shortfall.ceil(), results.least_shortfall.ceil());
        let _ = writeln!(
            text,
            "minima lack {shortfall} impressions, where {least} would do: elsewhere their money brings more than the penalty"
        );
    }
    for (campaign, mend) in results.campaigns.iter().filter_map(|campaign| Some((campaign, campaign.mend.as_ref()?))) {
        let or = mend.or_raise_budget_by.map_or(String::new(), |by| format!(", or raise its budget by {by:.2}"));
        let (ad, by) = (&campaign.ad_id, mend.lower_min_impressions_by.ceil());
        let _ = writeln!(text, "{ad} cannot have its minimum: lower it by {by}{or}");
    }
    text.trim_end().to_owned()
}
