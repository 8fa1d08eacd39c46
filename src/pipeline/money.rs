//! What the day cost and brought, campaign by campaign, whatever policy showed the ads.

use super::serving;
use crate::error::Result;
use crate::evaluate::{Owner, owner};
use crate::ingest::Staged;
use crate::platform::run::Run;
use crate::spec::Spec;
use crate::statistics::{Estimate, ab};
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoneyFacts {
    pub date: NaiveDate,
    pub clustered_by: String,
    pub total: Money,
    /// By campaign id.
    pub campaigns: Vec<CampaignMoney>,
}

/// Sums of one day; none where the logs do not hold them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Money {
    pub users: u64,
    pub impressions: u64,
    pub clicks: u64,
    pub conversions: Option<u64>,
    pub spend: Option<f64>,
    pub revenue: Option<f64>,
    /// Revenue over spend.
    pub roas: Option<Estimate>,
    /// Revenue less spend, over spend.
    pub roi: Option<Estimate>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CampaignMoney {
    pub campaign_id: String,
    #[serde(flatten)]
    pub money: Money,
    /// A day; as the campaign table has it.
    pub budget: Option<f64>,
    /// Spend over budget.
    pub budget_use: Option<f64>,
}

/// Ads of no campaign.
const NONE: &str = "none";

#[derive(Clone, Copy, Default)]
struct Sums {
    impressions: u64,
    clicks: u64,
    conversions: u64,
    spend: f64,
    revenue: f64,
}

/// None where nothing was shown that may be measured.
pub async fn money(run: &Run, spec: &Spec, staged: &Staged, shown: &RecordBatch) -> Result<Option<MoneyFacts>> {
    if shown.num_rows() == 0 {
        return Ok(None);
    }
    let ads = serving::table(run, staged, "ads").await?;
    let of_ad = pairs(&ads, "ad_id", "campaign_id")?;
    let budgets: BTreeMap<String, f64> = match staged.has("campaigns") {
        true => budgets(&serving::table(run, staged, "campaigns").await?)?,
        false => BTreeMap::new(),
    };
    let (users, ad_ids) = (column::<StringArray>(shown, "user_id")?, column::<StringArray>(shown, "ad_id")?);
    let clicked = column::<BooleanArray>(shown, "clicked")?;
    let converted = optional_column::<BooleanArray>(shown, "converted")?;
    let (cost, revenue) = (amounts(shown, "cost")?, amounts(shown, "revenue")?);

    let mut by_campaign: BTreeMap<&str, BTreeMap<Owner, Sums>> = BTreeMap::new();
    let mut all: BTreeMap<Owner, Sums> = BTreeMap::new();
    for row in 0..shown.num_rows() {
        let campaign = of_ad.get(ad_ids.value(row)).map_or(NONE, String::as_str);
        let user = owner(users, row);
        for sums in [all.entry(user).or_default(), by_campaign.entry(campaign).or_default().entry(user).or_default()] {
            sums.impressions += 1;
            sums.clicks += u64::from(holds(Some(clicked), row));
            sums.conversions += u64::from(holds(converted, row));
            sums.spend += amount(&cost, row);
            sums.revenue += amount(&revenue, row);
        }
    }
    let logged = Logged { converted: converted.is_some(), cost: cost.is_some(), revenue: revenue.is_some(), alpha: spec.evaluate.alpha };
    let campaigns = by_campaign.into_iter().map(|(campaign, users)| {
        let (money, budget) = (summed(&users, &logged), budgets.get(campaign).copied());
        let budget_use = money.spend.zip(budget).filter(|(_, budget)| *budget > 0.0).map(|(spend, budget)| spend / budget);
        CampaignMoney { campaign_id: campaign.to_owned(), money, budget, budget_use }
    });
    let clustered_by = if staged.people.is_some() { "user_id" } else { "context" };
    Ok(Some(MoneyFacts {
        date: run.date,
        clustered_by: clustered_by.to_owned(),
        campaigns: campaigns.collect(),
        total: summed(&all, &logged),
    }))
}

/// Which columns the logs have, and the level of intervals.
struct Logged {
    converted: bool,
    cost: bool,
    revenue: bool,
    alpha: f64,
}

fn summed(users: &BTreeMap<Owner, Sums>, logged: &Logged) -> Money {
    let of = |of: fn(&Sums) -> f64| users.values().map(of).collect::<Vec<f64>>();
    let whole = |of: fn(&Sums) -> u64| users.values().map(of).sum::<u64>();
    let (spend, revenue) = (of(|sums| sums.spend), of(|sums| sums.revenue));
    let roas = (logged.cost && logged.revenue).then(|| ab::ratio(&revenue, &spend)).flatten();
    let roas = roas.map(|roas| roas.estimate(logged.alpha));
    Money {
        users: users.len() as u64,
        impressions: whole(|sums| sums.impressions),
        clicks: whole(|sums| sums.clicks),
        conversions: logged.converted.then(|| whole(|sums| sums.conversions)),
        spend: logged.cost.then(|| spend.iter().sum()),
        revenue: logged.revenue.then(|| revenue.iter().sum()),
        roas,
        roi: roas.map(|roas| roas.less(1.0)),
    }
}

fn holds(flags: Option<&BooleanArray>, row: usize) -> bool {
    flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row))
}

fn amount(amounts: &Option<Float64Array>, row: usize) -> f64 {
    amounts.as_ref().filter(|amounts| amounts.is_valid(row)).map_or(0.0, |amounts| amounts.value(row))
}

/// A column of money as Float64; what is no finite number counts as nothing.
fn amounts(rows: &RecordBatch, name: &str) -> Result<Option<Float64Array>> {
    let Some(found) = rows.column_by_name(name).filter(|found| found.data_type().is_numeric()) else { return Ok(None) };
    let found: ArrayRef = cast(found, &DataType::Float64)?;
    Ok(Some(found.as_primitive::<Float64Type>().iter().map(|amount| amount.filter(|amount| amount.is_finite())).collect()))
}

fn pairs(rows: &RecordBatch, key: &str, value: &str) -> Result<BTreeMap<String, String>> {
    let Some(values) = optional_column::<StringArray>(rows, value)? else { return Ok(BTreeMap::new()) };
    let keys = column::<StringArray>(rows, key)?;
    Ok(keys.iter().zip(values).filter_map(|(key, value)| Some((key?.to_owned(), value?.to_owned()))).collect())
}

fn budgets(campaigns: &RecordBatch) -> Result<BTreeMap<String, f64>> {
    let ids = column::<StringArray>(campaigns, "campaign_id")?;
    let Some(budgets) = amounts(campaigns, "daily_budget")? else { return Ok(BTreeMap::new()) };
    Ok(ids.iter().zip(&budgets).filter_map(|(id, budget)| Some((id?.to_owned(), budget?))).collect())
}
