//! The targeting tables: how their rows are written, and a check that reads the finished tables as a stranger would.

use super::arms::{Arm, Shares};
use super::money;
use super::value::{self, NO_AD, Offers};
use crate::error::Result;
use crate::segments::{EVERYONE, Taxonomy, category_of, full, is_audience, table};
use crate::types::column;
use arrow::array::{Array, ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, NaiveDate, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What every row of a table says alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    pub run_date: NaiveDate,
    pub policy_version: String,
    pub valid_from: DateTime<Utc>,
    pub valid_to: DateTime<Utc>,
}

/// One row of segment_ads or shadow_ads; a row of [`NO_AD`] has no ad to say anything of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub segment_id: String,
    pub ad_id: String,
    pub arm: Arm,
    /// From 1, the likeliest ad first, no_ad last.
    pub rank: i64,
    pub p_click: Option<f64>,
    pub p_conversion: Option<f64>,
    /// Of a conversion, or of a click where conversions are not known.
    pub value: Option<f64>,
    /// p_click x p_conversion x value, and its standard error over the segment's users.
    pub value_per_impression: Option<f64>,
    pub value_error: Option<f64>,
    pub ecpm: Option<f64>,
    pub bid_multiplier: Option<f64>,
    pub budget_share: Option<f64>,
    pub impressions_planned: i64,
    pub frequency_cap: Option<i64>,
    pub propensity: f64,
    pub audience_size: i64,
}

/// The table of `rows`, sorted by segment_id, arm and rank.
pub(super) fn segment_ads(stamp: &Stamp, mut rows: Vec<Row>) -> Result<RecordBatch> {
    rows.sort_by(|a, b| (&a.segment_id, a.arm, a.rank).cmp(&(&b.segment_id, b.arm, b.rank)));
    let n = rows.len();
    let epoch = NaiveDate::default();
    let strings = |of: fn(&Row) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let counts = |of: fn(&Row) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let floats = |of: fn(&Row) -> Option<f64>| Arc::new(rows.iter().map(of).collect::<Float64Array>()) as ArrayRef;
    let times =
        |at: DateTime<Utc>| Arc::new(TimestampMicrosecondArray::from(vec![at.timestamp_micros(); n]).with_timezone("UTC")) as ArrayRef;
    table([
        ("run_date", Arc::new(Date32Array::from(vec![(stamp.run_date - epoch).num_days() as i32; n])) as ArrayRef, false),
        ("policy_version", Arc::new(StringArray::from(vec![stamp.policy_version.as_str(); n])), false),
        ("segment_id", strings(|row| &row.segment_id), false),
        ("ad_id", strings(|row| &row.ad_id), false),
        ("rank", counts(|row| row.rank), false),
        ("p_click", floats(|row| row.p_click), true),
        ("p_conversion", floats(|row| row.p_conversion), true),
        ("value", floats(|row| row.value), true),
        ("value_per_impression", floats(|row| row.value_per_impression), true),
        ("value_standard_error", floats(|row| row.value_error), true),
        ("ecpm", floats(|row| row.ecpm), true),
        ("bid_multiplier", floats(|row| row.bid_multiplier), true),
        ("budget_share", floats(|row| row.budget_share), true),
        ("impressions_planned", counts(|row| row.impressions_planned), false),
        ("frequency_cap", Arc::new(rows.iter().map(|row| row.frequency_cap).collect::<Int64Array>()), true),
        ("propensity", floats(|row| Some(row.propensity)), false),
        ("arm", strings(|row| row.arm.as_str()), false),
        ("audience_size", counts(|row| row.audience_size), false),
        ("valid_from", times(stamp.valid_from), false),
        ("valid_to", times(stamp.valid_to), false),
    ])
}

/// Finished tables, and how their users are counted.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    pub segments: &'a RecordBatch,
    pub user_segments: &'a RecordBatch,
    pub segment_ads: &'a RecordBatch,
    pub shadow_ads: &'a RecordBatch,
    pub weights: Option<&'a BTreeMap<String, u64>>,
    pub floor: u64,
}

/// What the tables of a night must agree with.
pub struct Terms<'a> {
    pub ads: &'a RecordBatch,
    pub campaigns: Option<&'a RecordBatch>,
    pub categories: &'a RecordBatch,
    pub shares: &'a Shares,
}

impl<'a> Tables<'a> {
    /// The tables of ads and the arms they may hold.
    fn of_ads(&self) -> [(&'static str, &'a RecordBatch, &'static [Arm]); 2] {
        [("segment_ads", self.segment_ads, &Arm::ALL), ("shadow_ads", self.shadow_ads, &[Arm::Holdout])]
    }
}

/// Every rule that tables break by themselves, in words. A table that cannot be read is a violation.
pub fn check(tables: &Tables) -> Vec<String> {
    let mut found = Vec::new();
    add(&mut found, "user_segments", check_users(tables));
    match Audience::read(tables) {
        Ok(audiences) => {
            add(&mut found, "segments", check_segments(tables, &audiences));
            for (name, ads, arms) in tables.of_ads() {
                add(&mut found, name, check_rows(&audiences, ads, arms));
            }
        }
        Err(error) => found.push(error.to_string()),
    }
    found
}

/// Every rule of a night's tables that is broken: their own, and those of its ads, budgets and categories. Empty when they may be served.
pub fn check_night(tables: &Tables, terms: &Terms) -> Vec<String> {
    let mut found = check(tables);
    let Ok(audiences) = Audience::read(tables) else { return found };
    add(&mut found, "segments", check_categories(tables, terms));
    for (name, ads, arms) in tables.of_ads() {
        add(&mut found, name, check_offers(tables, terms, &audiences, ads, arms));
    }
    found
}

/// The fewest users that a segment of the tables serves, weighted; `None` without a segment.
pub fn smallest_audience(tables: &Tables) -> Result<Option<u64>> {
    Ok(Audience::read(tables)?.values().map(|audience| audience.primary).min())
}

fn add(found: &mut Vec<String>, name: &str, violations: Result<Vec<String>>) {
    match violations {
        Ok(violations) => found.extend(violations.into_iter().map(|violation| format!("{name}: {violation}"))),
        Err(error) => found.push(format!("{name}: {error}")),
    }
}

/// The users of a segment, weighted.
#[derive(Default)]
struct Audience {
    members: u64,
    primary: u64,
}

impl Audience {
    fn read<'a>(tables: &Tables<'a>) -> Result<BTreeMap<&'a str, Self>> {
        let users = full::<StringArray>(tables.user_segments, "user_id")?;
        let segments = full::<StringArray>(tables.user_segments, "segment_id")?;
        let ranks = full::<Int64Array>(tables.user_segments, "rank")?;
        let mut audiences: BTreeMap<&str, Self> = BTreeMap::new();
        for row in 0..users.len() {
            let weight = tables.weights.map_or(1, |weights| weights.get(users.value(row)).copied().unwrap_or(0));
            let audience = audiences.entry(segments.value(row)).or_default();
            audience.members += weight;
            audience.primary += if ranks.value(row) == 1 { weight } else { 0 };
        }
        Ok(audiences)
    }
}

/// Ranks of each user run 1, 2, …; no segment twice.
fn check_users(tables: &Tables) -> Result<Vec<String>> {
    let users = full::<StringArray>(tables.user_segments, "user_id")?;
    let segments = full::<StringArray>(tables.user_segments, "segment_id")?;
    let ranks = full::<Int64Array>(tables.user_segments, "rank")?;
    let scores = full::<Float64Array>(tables.user_segments, "score")?;
    let mut of_user: BTreeMap<&str, (BTreeSet<i64>, BTreeSet<&str>, usize)> = BTreeMap::new();
    let mut found = Vec::new();
    for row in 0..users.len() {
        let (of_ranks, of_segments, rows) = of_user.entry(users.value(row)).or_default();
        of_ranks.insert(ranks.value(row));
        of_segments.insert(segments.value(row));
        *rows += 1;
        if !(0.0..=1.0).contains(&scores.value(row)) {
            found.push(format!("score {} of a user in {}", scores.value(row), segments.value(row)));
        }
    }
    for (user, (ranks, segments, rows)) in of_user {
        if !ranks.iter().copied().eq(1..=rows as i64) || segments.len() < rows {
            found.push(format!(
                "user {user} has {rows} rows, {} ranks up to {:?} and {} segments",
                ranks.len(),
                ranks.last(),
                segments.len()
            ));
        }
    }
    Ok(found)
}

/// Segments are unique, serve no fewer users than the floor, and say the size they have.
fn check_segments(tables: &Tables, audiences: &BTreeMap<&str, Audience>) -> Result<Vec<String>> {
    let ids = full::<StringArray>(tables.segments, "segment_id")?;
    let released = full::<Int64Array>(tables.segments, "size_released")?;
    let nobody = Audience::default();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for row in 0..ids.len() {
        let id = ids.value(row);
        if !seen.insert(id) {
            found.push(format!("{id} stands twice"));
        }
        let audience = audiences.get(id).unwrap_or(&nobody);
        if audience.primary < tables.floor {
            found.push(format!("{id} serves {} users, below the floor of {}", audience.primary, tables.floor));
        }
        if i64::try_from(audience.members) != Ok(released.value(row)) {
            found.push(format!("{id} has {} users, but says {}", audience.members, released.value(row)));
        }
    }
    found.extend(audiences.keys().filter(|id| !seen.contains(*id)).map(|id| format!("{id} has users, but is not listed")));
    Ok(found)
}

/// Segments are of known, harmless categories.
fn check_categories(tables: &Tables, terms: &Terms) -> Result<Vec<String>> {
    let taxonomy = Taxonomy::read(terms.categories)?;
    let harmless =
        |id: &&str| *id == EVERYONE || is_audience(id) || category_of(id).is_some_and(|category| taxonomy.may_be_label(category));
    let ids = full::<StringArray>(tables.segments, "segment_id")?.iter().flatten();
    Ok(ids.filter(|id| !harmless(id)).map(|id| format!("{id} is of a sensitive or unknown category")).collect())
}

/// One window of one policy; known segments and arms, each of a table's arms in every segment, ranked and summing to one.
fn check_rows(audiences: &BTreeMap<&str, Audience>, ads: &RecordBatch, arms: &[Arm]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let columns = Columns::read(ads)?;
    let n = ads.num_rows();
    if n > 0 {
        let alike = |times: &TimestampMicrosecondArray| times.values().iter().all(|time| *time == times.value(0));
        let stamped = columns.policy.iter().all(|policy| policy == Some(columns.policy.value(0)))
            && columns.run_date.values().iter().all(|date| *date == columns.run_date.value(0));
        if !stamped || !alike(columns.valid_from) || !alike(columns.valid_to) || columns.valid_from.value(0) >= columns.valid_to.value(0) {
            found.push("run_date, policy_version, valid_from and valid_to are not one non-empty window of one policy".to_owned());
        }
    }
    let mut groups: BTreeMap<(&str, &str), Group> = BTreeMap::new();
    let mut last = None;
    for row in 0..n {
        let (segment, ad, arm, rank) = (columns.segment.value(row), columns.ad.value(row), columns.arm.value(row), columns.rank.value(row));
        let at = format!("{segment}, {arm}, {ad}");
        if last.replace((segment, arm, rank)).is_some_and(|last| last >= (segment, arm, rank)) {
            found.push(format!("{at}: not sorted by segment_id, arm and rank"));
        }
        let group = groups.entry((segment, arm)).or_default();
        group.rows += 1;
        group.ranks.insert(rank);
        group.ads.insert(ad);
        group.propensity += columns.propensity.value(row);
        let (planned, propensity) = (columns.planned.value(row), columns.propensity.value(row));
        if !(0.0..=1.0).contains(&propensity) || planned < 0 {
            found.push(format!("{at}: propensity {propensity}, {planned} impressions"));
        }
        if !arms.iter().any(|known| known.as_str() == arm) {
            found.push(format!("{at}: no such arm here"));
        }
        match audiences.get(segment) {
            None => found.push(format!("{at}: nobody is in the segment")),
            Some(audience) if i64::try_from(audience.members) != Ok(columns.audience.value(row)) => {
                found.push(format!("{at}: audience_size {} of {} users", columns.audience.value(row), audience.members));
            }
            Some(_) => {}
        }
    }
    for ((segment, arm), group) in &groups {
        if (group.propensity - 1.0).abs() > 1e-9 {
            found.push(format!("{segment}, {arm}: propensities sum to {}", group.propensity));
        }
        if !group.ranks.iter().copied().eq(1..=group.rows as i64) || group.ads.len() < group.rows {
            found.push(format!("{segment}, {arm}: {} rows, {} ranks, {} ads", group.rows, group.ranks.len(), group.ads.len()));
        }
    }
    for arm in groups.keys().map(|(_, arm)| *arm).collect::<BTreeSet<_>>() {
        let unserved = audiences.iter().filter(|(id, _)| !groups.contains_key(&(**id, arm)));
        found.extend(unserved.map(|(id, audience)| format!("{id}: serves {} users, but has no row for {arm}", audience.primary)));
    }
    Ok(found)
}

/// Ads are live; probabilities are; no arm with users is left out; caps and budgets hold in whole micro-units.
fn check_offers(
    tables: &Tables,
    terms: &Terms,
    audiences: &BTreeMap<&str, Audience>,
    ads: &RecordBatch,
    arms: &[Arm],
) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let columns = Columns::read(ads)?;
    let mut offers = Offers::default();
    if ads.num_rows() > 0 {
        let first = |times: &TimestampMicrosecondArray| DateTime::from_timestamp_micros(times.value(0)).unwrap_or_default();
        offers = value::offers(terms.ads, terms.campaigns, first(columns.valid_from), first(columns.valid_to))?;
    }
    let live: BTreeMap<&str, &value::Offer> = offers.iter().map(|offer| (offer.ad_id.as_str(), offer)).collect();
    let mut spent: BTreeMap<(&str, Arm), i128> = BTreeMap::new();
    let mut served = BTreeSet::new();
    for row in 0..ads.num_rows() {
        let (segment, ad, arm) = (columns.segment.value(row), columns.ad.value(row), columns.arm.value(row));
        let at = format!("{segment}, {arm}, {ad}");
        // Rows of unknown segments and arms are told by `check_rows`.
        let known = arms.iter().copied().find(|known| known.as_str() == arm).zip(audiences.get(segment));
        let Some((arm, audience)) = known else { continue };
        served.insert(arm);
        if ad == NO_AD {
            continue;
        }
        let Some(offer) = live.get(ad) else {
            found.push(format!("{at}: the ad is unknown, not live, or of a campaign without money"));
            continue;
        };
        let p_click = columns.p_click.value(row);
        let p_conversion = if columns.p_conversion.is_valid(row) { columns.p_conversion.value(row) } else { 0.0 };
        if columns.p_click.is_null(row) || !(0.0..=1.0).contains(&p_click) || !(0.0..=1.0).contains(&p_conversion) {
            found.push(format!("{at}: p_click {p_click}, p_conversion {p_conversion}"));
            continue;
        }
        let planned = columns.planned.value(row);
        if columns.cap.is_valid(row) {
            let cap = columns.cap.value(row);
            let share = terms.shares.of(arm);
            if planned as f64 > cap as f64 * audience.primary as f64 * share {
                found.push(format!("{at}: {planned} impressions exceed {cap} a user for {share} of {} users", audience.primary));
            }
            let allowed = offers.campaign(offer).and_then(|campaign| campaign.frequency_cap);
            if allowed.is_some_and(|allowed| cap > allowed.into()) {
                found.push(format!("{at}: frequency_cap {cap} exceeds the campaign's {allowed:?}"));
            }
        } else if tables.weights.is_none() {
            found.push(format!("{at}: no frequency_cap"));
        }
        if let (Some(campaign), Some(bid)) = (&offer.campaign_id, offer.bid) {
            *spent.entry((campaign, arm)).or_default() += i128::from(bid.cost(p_click)) * i128::from(planned);
        }
    }
    for arm in arms.iter().copied().filter(|arm| terms.shares.of(*arm) > 0.0) {
        if !audiences.is_empty() && !served.contains(&arm) {
            found.push(format!("no row for {arm}"));
        }
        for (id, campaign) in &offers.campaigns {
            let spent = spent.get(&(id.as_str(), arm)).copied().unwrap_or(0);
            let budget = terms.shares.part(campaign.daily_budget, arm);
            if spent > budget.into() {
                let (spent, budget) = (money::currency(spent), money::currency(budget.into()));
                found.push(format!("campaign {id}, {arm}: planned spend {spent} exceeds its part of the budget, {budget}"));
            }
        }
    }
    Ok(found)
}

/// The rows of one segment and arm.
#[derive(Default)]
struct Group<'a> {
    rows: usize,
    ranks: BTreeSet<i64>,
    ads: BTreeSet<&'a str>,
    propensity: f64,
}

struct Columns<'a> {
    run_date: &'a Date32Array,
    policy: &'a StringArray,
    segment: &'a StringArray,
    ad: &'a StringArray,
    arm: &'a StringArray,
    rank: &'a Int64Array,
    p_click: &'a Float64Array,
    p_conversion: &'a Float64Array,
    planned: &'a Int64Array,
    cap: &'a Int64Array,
    propensity: &'a Float64Array,
    audience: &'a Int64Array,
    valid_from: &'a TimestampMicrosecondArray,
    valid_to: &'a TimestampMicrosecondArray,
}

impl<'a> Columns<'a> {
    fn read(ads: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            run_date: full(ads, "run_date")?,
            policy: full(ads, "policy_version")?,
            segment: full(ads, "segment_id")?,
            ad: full(ads, "ad_id")?,
            arm: full(ads, "arm")?,
            rank: full(ads, "rank")?,
            p_click: column(ads, "p_click")?,
            p_conversion: column(ads, "p_conversion")?,
            planned: full(ads, "impressions_planned")?,
            cap: column(ads, "frequency_cap")?,
            propensity: full(ads, "propensity")?,
            audience: full(ads, "audience_size")?,
            valid_from: full(ads, "valid_from")?,
            valid_to: full(ads, "valid_to")?,
        })
    }
}
