//! Budget pacing: how the day's money was spent over its hours, and which campaigns ran dry early.

use super::night::Rows;
use crate::error::Result;
use crate::types::{column, optional_column};
use arrow::array::{Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Pacing {
    /// Of all campaigns with a budget.
    pub budget: f64,
    pub spend: f64,
    /// Campaigns that spent nearly all of their budget, and those that did so in the first half of the day.
    pub exhausted: u64,
    pub exhausted_by_noon: u64,
    pub hours: Vec<Hour>,
    /// Those with a budget, the largest first.
    pub campaigns: Vec<Campaign>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Hour {
    /// From the beginning of the day.
    pub hour: i64,
    pub impressions: u64,
    pub spend: f64,
    /// Of the day's impressions and of all budgets, up to the end of the hour.
    pub impressions_share: f64,
    pub budget_share: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Campaign {
    pub campaign_id: String,
    pub budget: f64,
    pub spend: f64,
    /// The hour in which nearly all of the budget was gone.
    pub exhausted_at: Option<i64>,
}

/// This share of a budget spent is all of it: what is left buys no other click.
const NEARLY_ALL: f64 = 0.98;
/// The largest campaigns are the ones to look at.
const SHOWN: usize = 50;

pub fn measure(rows: &Rows, ads: &RecordBatch, campaigns: Option<&RecordBatch>, skipped: &mut Vec<String>) -> Result<Option<Pacing>> {
    let mut skip = |why: &str| skipped.push(format!("pacing: {why}"));
    let Some(campaigns) = campaigns else {
        skip("there are no campaigns");
        return Ok(None);
    };
    let (Some(cost), Some(of_ads)) = (&rows.cost, optional_column::<StringArray>(ads, "campaign_id")?) else {
        skip("impressions have no cost, or ads no campaign");
        return Ok(None);
    };
    let ad_ids = column::<StringArray>(ads, "ad_id")?;
    let campaign_of: HashMap<&str, &str> = ad_ids.iter().zip(of_ads).filter_map(|(ad, campaign)| ad.zip(campaign)).collect();
    let ids = column::<StringArray>(campaigns, "campaign_id")?;
    let Some(budgets) = super::day::money(campaigns, "daily_budget", &mut Vec::new())? else {
        skip("campaigns have no daily_budget");
        return Ok(None);
    };
    // By campaign, then by hour. The order of addition is that of the rows, which are sorted.
    let mut spent: BTreeMap<&str, BTreeMap<i64, f64>> = BTreeMap::new();
    let mut hours: BTreeMap<i64, (u64, f64)> = BTreeMap::new();
    for (row, cost) in cost.iter().enumerate() {
        let hour = hours.entry(rows.hours[row]).or_default();
        *hour = (hour.0 + 1, hour.1 + cost);
        if let Some(campaign) = campaign_of.get(rows.ads[row].as_str()) {
            *spent.entry(campaign).or_default().entry(rows.hours[row]).or_default() += cost;
        }
    }
    let mut found: Vec<Campaign> = (0..campaigns.num_rows())
        .filter(|&row| ids.is_valid(row) && budgets.is_valid(row) && budgets.value(row) > 0.0)
        .map(|row| {
            let (budget, mut so_far, mut exhausted_at) = (budgets.value(row), 0.0, None);
            for (hour, spend) in spent.get(ids.value(row)).into_iter().flatten() {
                so_far += spend;
                if exhausted_at.is_none() && so_far >= NEARLY_ALL * budget {
                    exhausted_at = Some(*hour);
                }
            }
            Campaign { campaign_id: ids.value(row).to_owned(), budget, spend: so_far, exhausted_at }
        })
        .collect();
    let (budget, spend) = (found.iter().map(|campaign| campaign.budget).sum::<f64>(), cost.iter().sum());
    let impressions = rows.count() as f64;
    let (mut seen, mut so_far) = (0, 0.0);
    let hours = hours
        .into_iter()
        .map(|(hour, (impressions_in, spend))| {
            seen += impressions_in;
            so_far += spend;
            let budget_share = if budget > 0.0 { so_far / budget } else { 0.0 };
            Hour { hour, impressions: impressions_in, spend, impressions_share: seen as f64 / impressions, budget_share }
        })
        .collect();
    found.sort_by(|a, b| b.budget.total_cmp(&a.budget).then_with(|| a.campaign_id.cmp(&b.campaign_id)));
    let exhausted = found.iter().filter(|campaign| campaign.exhausted_at.is_some()).count() as u64;
    let exhausted_by_noon = found.iter().filter(|campaign| campaign.exhausted_at.is_some_and(|hour| hour < 12)).count() as u64;
    found.truncate(SHOWN);
    Ok(Some(Pacing { budget, spend, exhausted, exhausted_by_noon, hours, campaigns: found }))
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;
    use arrow::array::{ArrayRef, Float64Array};
    use std::sync::Arc;

    fn texts(cells: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(cells.to_vec()))
    }

    #[test]
    fn money_is_followed_through_the_hours_to_where_it_ran_out() {
        let ads = RecordBatch::try_from_iter([("ad_id", texts(&["a", "b"])), ("campaign_id", texts(&["slow", "fast"]))]).unwrap();
        let budgets: ArrayRef = Arc::new(Float64Array::from(vec![4.0, 10.0, 0.0]));
        let campaigns =
            RecordBatch::try_from_iter([("campaign_id", texts(&["fast", "slow", "penniless"])), ("daily_budget", budgets)]).unwrap();
        let spent = |ad: &'static str, hour: i64, cost: f64| Seen { ad, hour, cost, ..Seen::default() };
        let rows = rows(&[spent("a", 0, 6.0), spent("b", 5, 4.0), spent("a", 13, 4.0)]);
        let found = measure(&rows, &ads, Some(&campaigns), &mut Vec::new()).unwrap().expect("campaigns and costs");
        assert_eq!((found.budget, found.spend, found.exhausted, found.exhausted_by_noon), (14.0, 14.0, 2, 1));
        let hours: Vec<_> = found.hours.iter().map(|hour| (hour.hour, hour.impressions, hour.spend, hour.budget_share)).collect();
        assert_eq!(hours, [(0, 1, 6.0, 6.0 / 14.0), (5, 1, 4.0, 10.0 / 14.0), (13, 1, 4.0, 1.0)]);
        let campaigns: Vec<_> = found.campaigns.iter().map(|campaign| (campaign.campaign_id.as_str(), campaign.exhausted_at)).collect();
        assert_eq!(campaigns, [("slow", Some(13)), ("fast", Some(5))], "the largest budget first, none without one");
        assert_eq!(measure(&rows, &ads, None, &mut Vec::new()).unwrap(), None);
    }
}
