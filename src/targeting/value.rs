//! What an impression of an ad is worth to a segment: which ads are on offer, how likely the segment's users are to click and
//! convert, and what a conversion brings.

use super::money;
use crate::error::{Error, Result};
use crate::segments::{full, table};
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Stands for showing nothing; no ad may be called so.
pub const NO_AD: &str = "no_ad";

// -------------------------------------------------------------------------------------------------------------------- offers

/// The ads that may be shown, by ad_id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offers {
    pub live: Vec<Offer>,
    /// Every campaign, also one without a live ad.
    pub campaigns: BTreeMap<String, Campaign>,
    /// Ads that are not live, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// An ad that is live from the beginning to the end of the serving window.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    pub ad_id: String,
    pub campaign_id: Option<String>,
    pub category_id: Option<String>,
    pub bid: Option<Bid>,
}

/// In micro-units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bid {
    PerClick(i64),
    PerThousand(i64),
}

/// Amounts in micro-units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Campaign {
    pub daily_budget: i64,
    /// Impressions a user and day.
    pub frequency_cap: Option<u32>,
    /// Cost of a conversion, at most.
    pub target_cpa: Option<i64>,
    /// Revenue per cost, at least, in millionths.
    pub target_roi: Option<i64>,
    /// Impressions a day, at least, where that can be had.
    pub min_impressions: Option<u32>,
}

impl Offers {
    pub fn iter(&self) -> std::slice::Iter<'_, Offer> {
        self.live.iter()
    }

    /// The campaign that pays for an ad; `None` without a campaigns table, or for an ad of no campaign: no budget limits it.
    pub fn campaign(&self, offer: &Offer) -> Option<&Campaign> {
        self.campaigns.get(offer.campaign_id.as_ref()?)
    }
}

impl Bid {
    /// Expected cost of one impression in micro-units, rounded up so that whole plans stay within budgets.
    pub fn cost(self, p_click: f64) -> i64 {
        match self {
            Bid::PerClick(bid) => (p_click * bid as f64).ceil() as i64,
            Bid::PerThousand(bid) => (bid + 999) / 1000,
        }
    }

    /// Expected cost of a thousand impressions, in currency.
    pub fn ecpm(self, p_click: f64) -> f64 {
        match self {
            Bid::PerClick(bid) => 1000.0 * p_click * money::currency(bid.into()),
            Bid::PerThousand(bid) => money::currency(bid.into()),
        }
    }
}

/// The ads that are live throughout the window and whose campaign has money. An ad that starts or ends within the window waits
/// or is left out: its rows could not say for which part of the day their propensity holds.
///
/// # Errors
/// `Contract`: an amount that is none, an unknown bid type, an id twice.
pub fn offers(ads: &RecordBatch, campaigns: Option<&RecordBatch>, valid_from: DateTime<Utc>, valid_to: DateTime<Utc>) -> Result<Offers> {
    let with_budgets = campaigns.is_some();
    let campaigns = campaigns.map(read_campaigns).transpose()?.unwrap_or_default();
    let ids = full::<StringArray>(ads, "ad_id")?;
    let campaign_ids = optional_column::<StringArray>(ads, "campaign_id")?;
    let category_ids = optional_column::<StringArray>(ads, "category_id")?;
    let bids = money::column(ads, "bid")?;
    let bid_types = optional_column::<StringArray>(ads, "bid_type")?;
    let starts = optional_column::<TimestampMicrosecondArray>(ads, "starts_at")?;
    let ends = optional_column::<TimestampMicrosecondArray>(ads, "ends_at")?;
    let text = |array: Option<&StringArray>, row: usize| array.filter(|array| array.is_valid(row)).map(|array| array.value(row).to_owned());
    let time =
        |array: Option<&TimestampMicrosecondArray>, row: usize| array.filter(|array| array.is_valid(row)).map(|array| array.value(row));
    let mut live = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut left_out = BTreeMap::new();
    for row in 0..ads.num_rows() {
        let ad_id = ids.value(row);
        if !seen.insert(ad_id) {
            return Err(Error::contract(format_args!("ad {ad_id} stands twice in the ads")));
        }
        if ad_id == NO_AD {
            return Err(Error::contract(format_args!("an ad is called {NO_AD}, which stands for showing none")));
        }
        let bid = match (bids.as_ref().and_then(|bids| bids[row]), text(bid_types, row).as_deref()) {
            (None, _) => None,
            (Some(bid), None | Some("cpc")) => Some(Bid::PerClick(bid)),
            (Some(bid), Some("cpm")) => Some(Bid::PerThousand(bid)),
            (_, Some(other)) => return Err(Error::contract(format_args!("ad {ad_id} has bid_type {other}, not cpc or cpm"))),
        };
        let offer = Offer { ad_id: ad_id.to_owned(), campaign_id: text(campaign_ids, row), category_id: text(category_ids, row), bid };
        let campaign = offer.campaign_id.as_ref().filter(|_| with_budgets).map(|id| campaigns.get(id));
        let reason = if time(starts, row).is_some_and(|starts| starts > valid_from.timestamp_micros()) {
            Some("starts later")
        } else if time(ends, row).is_some_and(|ends| ends < valid_to.timestamp_micros()) {
            Some("ends before the window does")
        } else {
            match campaign {
                Some(None) => Some("campaign unknown"),
                Some(Some(campaign)) if campaign.daily_budget == 0 => Some("campaign without budget"),
                // What costs money must be priced: an ad of a budget without a bid would be shown for nothing.
                Some(Some(_)) if offer.bid.is_none() => Some("no bid"),
                _ => None,
            }
        };
        match reason {
            Some(reason) => *left_out.entry(reason).or_default() += 1,
            None => {
                live.insert(ad_id, offer);
            }
        }
    }
    Ok(Offers { live: live.into_values().collect(), campaigns, left_out })
}

fn read_campaigns(campaigns: &RecordBatch) -> Result<BTreeMap<String, Campaign>> {
    let ids = full::<StringArray>(campaigns, "campaign_id")?;
    let budgets = money::column(campaigns, "daily_budget")?.ok_or_else(|| Error::contract("column daily_budget is absent"))?;
    let (target_cpas, target_rois) = (money::column(campaigns, "target_cpa")?, money::column(campaigns, "target_roi")?);
    let (caps, minima) = (optional_column(campaigns, "frequency_cap")?, optional_column(campaigns, "min_impressions")?);
    let above_zero = |column: Option<&[Option<i64>]>, row: usize| column.and_then(|column| column[row]).filter(|it| *it > 0);
    let count = |column: Option<&Int64Array>, row: usize, what: std::fmt::Arguments<'_>| {
        let value = column.filter(|column| column.is_valid(row)).map(|column| column.value(row));
        value.map(|value| u32::try_from(value).map_err(|_| Error::contract(format_args!("{what} {value}")))).transpose()
    };
    let mut read = BTreeMap::new();
    for (row, daily_budget) in budgets.into_iter().enumerate() {
        let id = ids.value(row);
        let campaign = Campaign {
            // No budget named is none to spend.
            daily_budget: daily_budget.unwrap_or(0),
            frequency_cap: count(caps, row, format_args!("campaign {id} has frequency_cap"))?,
            target_cpa: above_zero(target_cpas.as_deref(), row),
            target_roi: above_zero(target_rois.as_deref(), row),
            min_impressions: count(minima, row, format_args!("campaign {id} has min_impressions"))?,
        };
        if read.insert(id.to_owned(), campaign).is_some() {
            return Err(Error::contract(format_args!("campaign {id} stands twice in the campaigns")));
        }
    }
    Ok(read)
}

// -------------------------------------------------------------------------------------------------------------------- scores

/// The users who stand for their segment: at most so many of each, those of the smallest seeded hash. user_id, segment_id, by
/// segment and user.
pub fn sample(primary: &RecordBatch, max_users_per_segment: usize, seed: u64) -> Result<RecordBatch> {
    let (users, segments) = (full::<StringArray>(primary, "user_id")?, full::<StringArray>(primary, "segment_id")?);
    let mut by_segment: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for row in 0..primary.num_rows() {
        let user = users.value(row);
        by_segment.entry(segments.value(row)).or_default().push((xxh3_64_with_seed(user.as_bytes(), seed), user));
    }
    let mut sampled = Vec::new();
    for (segment, mut users) in by_segment {
        users.sort_unstable();
        users.truncate(max_users_per_segment);
        users.sort_unstable_by_key(|(_, user)| *user);
        sampled.extend(users.into_iter().map(|(_, user)| (user, segment)));
    }
    table([
        ("user_id", Arc::new(StringArray::from_iter_values(sampled.iter().map(|row| row.0))) as ArrayRef, false),
        ("segment_id", Arc::new(StringArray::from_iter_values(sampled.iter().map(|row| row.1))), false),
    ])
}

/// Mean responses by segment and ad, summed in the order of the rows.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    sums: BTreeMap<String, BTreeMap<String, Sum>>,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    rows: u64,
    clicks: f64,
    clicks_squared: f64,
    /// Rows with a p_conversion.
    with_conversion: u64,
    /// Sum of p_click x p_conversion.
    conversions: f64,
    conversions_squared: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub p_click: f64,
    /// Of a click: the mean over expected clicks, so that p_click x p_conversion is the expected conversions of an impression.
    pub p_conversion: Option<f64>,
    /// Standard errors of the means of p_click and of p_click x p_conversion: by how much other users of the segment would move them.
    pub click_error: f64,
    pub conversion_error: f64,
}

impl Sum {
    fn standard_error(&self, sum: f64, squares: f64) -> f64 {
        let rows = self.rows as f64;
        if self.rows < 2 { 0.0 } else { ((squares - sum * sum / rows).max(0.0) / (rows - 1.0) / rows).sqrt() }
    }
}

impl Scores {
    /// Adds rows of segment_id, ad_id, p_click, p_conversion? (given a click).
    pub fn add(&mut self, scored: &RecordBatch) -> Result<()> {
        let (segments, ads) = (full::<StringArray>(scored, "segment_id")?, full::<StringArray>(scored, "ad_id")?);
        let p_clicks = full::<Float64Array>(scored, "p_click")?;
        let p_conversions = optional_column::<Float64Array>(scored, "p_conversion")?;
        for row in 0..scored.num_rows() {
            let (segment, ad) = (segments.value(row), ads.value(row));
            let p_click = p_clicks.value(row);
            let p_conversion = p_conversions.filter(|array| array.is_valid(row)).map(|array| array.value(row));
            if !(0.0..=1.0).contains(&p_click) || p_conversion.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
                let what = format_args!("p_click {p_click}, p_conversion {p_conversion:?} of ad {ad} in {segment}");
                return Err(Error::contract(format_args!("{what}: not probabilities")));
            }
            // Looked up before it is inserted: nearly every row finds its place, and none of those needs a new string.
            let of_segment = match self.sums.get_mut(segment) {
                Some(of_segment) => of_segment,
                None => self.sums.entry(segment.to_owned()).or_default(),
            };
            let sum = match of_segment.get_mut(ad) {
                Some(sum) => sum,
                None => of_segment.entry(ad.to_owned()).or_default(),
            };
            sum.rows += 1;
            sum.clicks += p_click;
            sum.clicks_squared += p_click * p_click;
            if let Some(p_conversion) = p_conversion {
                sum.with_conversion += 1;
                sum.conversions += p_click * p_conversion;
                sum.conversions_squared += (p_click * p_conversion).powi(2);
            }
        }
        Ok(())
    }

    pub fn get(&self, segment: &str, ad: &str) -> Option<Score> {
        let sum = self.sums.get(segment)?.get(ad)?;
        let p_conversion = if sum.clicks > 0.0 { (sum.conversions / sum.clicks).min(1.0) } else { 0.0 };
        Some(Score {
            p_click: sum.clicks / sum.rows as f64,
            p_conversion: (sum.with_conversion == sum.rows).then_some(p_conversion),
            click_error: sum.standard_error(sum.clicks, sum.clicks_squared),
            conversion_error: sum.standard_error(sum.conversions, sum.conversions_squared),
        })
    }
}

// --------------------------------------------------------------------------------------------------------------------- worth

/// Conversions of known revenue, and that revenue in micro-units, by ad.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    by_ad: BTreeMap<String, Earned>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Earned {
    conversions: u64,
    micros: i128,
}

/// Sums rows of ad_id, converted, revenue?.
pub fn outcomes(impressions: &RecordBatch) -> Result<Outcomes> {
    let ads = full::<StringArray>(impressions, "ad_id")?;
    let converted = column::<BooleanArray>(impressions, "converted")?;
    let mut outcomes = Outcomes::default();
    let Some(revenues) = money::column(impressions, "revenue")? else { return Ok(outcomes) };
    for (row, revenue) in revenues.into_iter().enumerate() {
        let Some(revenue) = revenue.filter(|_| converted.is_valid(row) && converted.value(row)) else { continue };
        outcomes.by_ad.entry(ads.value(row).to_owned()).or_default().add(Earned { conversions: 1, micros: revenue.into() });
    }
    Ok(outcomes)
}

impl Earned {
    fn add(&mut self, other: Self) {
        self.conversions += other.conversions;
        self.micros += other.micros;
    }

    /// Currency a conversion.
    fn mean(self) -> Option<f64> {
        (self.conversions > 0).then(|| money::currency(self.micros) / self.conversions as f64)
    }
}

/// An ad with so many conversions of its own is valued half by them, half by its category.
const PRIOR_CONVERSIONS: f64 = 20.0;

/// What a conversion of each live ad is worth, in currency: its mean revenue shrunk to its category's; where the category has
/// none, its campaign's target CPA; else the mean over all ads. `None` when no ad has any of these: only clicks can be counted.
pub fn per_conversion(offers: &Offers, ads: &RecordBatch, outcomes: &Outcomes) -> Result<Option<Vec<f64>>> {
    let ids = full::<StringArray>(ads, "ad_id")?;
    let categories = optional_column::<StringArray>(ads, "category_id")?;
    let mut by_category: BTreeMap<&str, Earned> = BTreeMap::new();
    for row in (0..ads.num_rows()).filter(|row| categories.is_some_and(|categories| categories.is_valid(*row))) {
        if let (Some(categories), Some(earned)) = (categories, outcomes.by_ad.get(ids.value(row))) {
            by_category.entry(categories.value(row)).or_default().add(*earned);
        }
    }
    let mut all = Earned::default();
    outcomes.by_ad.values().for_each(|earned| all.add(*earned));
    let worth: Vec<Option<f64>> = offers.iter().map(|offer| of_offer(offers, offer, outcomes, &by_category, all)).collect();
    let known: Vec<f64> = worth.iter().flatten().copied().collect();
    if known.is_empty() {
        return Ok(None);
    }
    let mean = all.mean().unwrap_or_else(|| known.iter().sum::<f64>() / known.len() as f64);
    Ok(Some(worth.into_iter().map(|worth| worth.unwrap_or(mean)).collect()))
}

fn of_offer(offers: &Offers, offer: &Offer, outcomes: &Outcomes, by_category: &BTreeMap<&str, Earned>, all: Earned) -> Option<f64> {
    let own = outcomes.by_ad.get(&offer.ad_id).copied();
    let prior = match &offer.category_id {
        Some(category) => by_category.get(category.as_str()).and_then(|earned| earned.mean()),
        None => own.and_then(|_| all.mean()),
    };
    match prior {
        Some(prior) => {
            let own = own.unwrap_or_default();
            Some((money::currency(own.micros) + PRIOR_CONVERSIONS * prior) / (own.conversions as f64 + PRIOR_CONVERSIONS))
        }
        None => offers.campaign(offer)?.target_cpa.map(|micros| money::currency(micros.into())),
    }
}
