//! A day's impressions -> what the published table did: rates and money by arm, the lift over the holdout, and what another table would
//! have earned on the same rows.
//!
//! Users are the unit everywhere: each arm's sums are taken by user, and intervals come from the spread between users. A statistic that
//! the shop's columns do not allow is absent, and `skipped` says why.

use crate::error::{Error, Result};
use crate::statistics::ab::{self, Effect, Srm};
use crate::statistics::{Estimate, bootstrap, ope};
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The arm that the table serves, and the one that it is compared to.
pub const CHAMPION: &str = "champion";
pub const HOLDOUT: &str = "holdout";

/// The segment of users without one, and the ad that stands for showing none.
const EVERYONE: &str = "everyone";
const NO_AD: &str = "no_ad";

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSettings {
    /// Bootstrap replicates of off-policy values.
    pub replicates: usize,
    /// Two-sided level of every interval.
    pub alpha: f64,
    /// Largest weight of a row in the clipped off-policy estimates. Lower: less variance, more bias.
    pub clip: f64,
}

impl Default for EvaluateSettings {
    fn default() -> Self {
        let ope::Plan { replicates, alpha, clip } = ope::Plan::default();
        Self { replicates, alpha, clip }
    }
}

impl EvaluateSettings {
    pub fn plan(&self) -> ope::Plan {
        ope::Plan { replicates: self.replicates, alpha: self.alpha, clip: self.clip }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct EvaluationFacts {
    pub policy_version: Option<String>,
    /// What a unit is: where rows are not persons, whatever stands in this column for them.
    pub clustered_by: String,
    /// Impressions under the policy version, and under any other (or none).
    pub rows: u64,
    pub other_policy_rows: u64,
    pub users: u64,
    /// Users seen in more than one arm: with them arms are not independent, and intervals of differences are too wide or too narrow.
    pub users_in_several_arms: u64,
    pub arms: Vec<ArmFacts>,
    pub srm: Option<Srm>,
    pub lift: Vec<Lift>,
    pub skipped: Vec<String>,
}

/// What one arm did.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ArmFacts {
    pub arm: String,
    pub users: u64,
    pub impressions: u64,
    pub clicks: u64,
    pub conversions: Option<u64>,
    pub cost: Option<f64>,
    pub revenue: Option<f64>,
    /// Clicks per impression.
    pub ctr: Option<Estimate>,
    /// Conversions per click.
    pub cvr: Option<Estimate>,
    /// Cost per conversion.
    pub cpa: Option<Estimate>,
    /// Revenue per cost.
    pub roi: Option<Estimate>,
}

/// Champion against holdout in one metric.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Lift {
    pub metric: String,
    pub treatment: String,
    pub control: String,
    pub treatment_value: f64,
    pub control_value: f64,
    pub absolute: Effect,
    pub relative: Option<Effect>,
    /// The absolute difference's p-value, adjusted over the metrics (Benjamini and Hochberg).
    pub p_adjusted: Option<f64>,
}

/// Measures one day of canonical impressions: by arm, the split against the planned `shares`, champion against holdout.
///
/// Only users with an impression are there to be counted; an arm that changes who gets one shows in the SRM.
pub fn evaluate(
    settings: &EvaluateSettings,
    impressions: &RecordBatch,
    policy_version: Option<&str>,
    shares: &BTreeMap<String, f64>,
) -> Result<EvaluationFacts> {
    let mut skipped = Vec::new();
    let columns = Columns::read(impressions, &mut skipped)?;
    let ours = rows_of_policy(impressions, policy_version, &mut skipped)?;
    let arms = columns.by_arm(&ours);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    arms.values().flat_map(|users| users.keys()).for_each(|user| *seen.entry(user).or_default() += 1);
    let lift = lift(settings, &columns, &arms, &mut skipped);
    Ok(EvaluationFacts {
        policy_version: policy_version.map(str::to_owned),
        clustered_by: "user_id".into(),
        rows: ours.len() as u64,
        other_policy_rows: (impressions.num_rows() - ours.len()) as u64,
        users: seen.len() as u64,
        users_in_several_arms: seen.values().filter(|arms| **arms > 1).count() as u64,
        arms: arms.iter().map(|(arm, users)| arm_facts(settings, &columns, arm, users)).collect(),
        srm: srm(&arms, shares, &mut skipped),
        lift,
        skipped,
    })
}

/// The columns that evaluation reads; optional ones are none where the shop has none.
struct Columns<'a> {
    users: &'a StringArray,
    arms: Option<&'a StringArray>,
    clicked: &'a BooleanArray,
    converted: Option<&'a BooleanArray>,
    cost: Option<Float64Array>,
    revenue: Option<Float64Array>,
}

/// One user's sums.
#[derive(Clone, Copy, Default)]
struct Sums {
    impressions: f64,
    clicks: f64,
    conversions: f64,
    cost: f64,
    revenue: f64,
}

type Users<'a> = BTreeMap<&'a str, Sums>;

impl<'a> Columns<'a> {
    fn read(impressions: &'a RecordBatch, skipped: &mut Vec<String>) -> Result<Self> {
        let columns = Self {
            users: column(impressions, "user_id")?,
            arms: optional_column(impressions, "arm")?,
            clicked: column(impressions, "clicked")?,
            converted: optional_column(impressions, "converted")?,
            cost: money(impressions, "cost", skipped)?,
            revenue: money(impressions, "revenue", skipped)?,
        };
        for (absent, what) in [
            (columns.arms.is_none(), "arms: impressions have no arm"),
            (columns.converted.is_none(), "CVR: impressions have no converted"),
            (columns.converted.is_none() || columns.cost.is_none(), "CPA: impressions lack converted or cost"),
            (columns.revenue.is_none() || columns.cost.is_none(), "ROI: impressions lack revenue or cost"),
        ] {
            if absent {
                skipped.push(what.to_owned());
            }
        }
        Ok(columns)
    }

    /// Sums by arm and user, in the order of their names. Without arms everybody is in one, `all`.
    fn by_arm(&self, rows: &[usize]) -> BTreeMap<&'a str, Users<'a>> {
        let mut arms: BTreeMap<&str, Users> = BTreeMap::new();
        let one = |flag: bool| f64::from(u8::from(flag));
        let amount = |amounts: &Option<Float64Array>, row: usize| {
            amounts.as_ref().filter(|amounts| amounts.is_valid(row)).map_or(0.0, |amounts| amounts.value(row))
        };
        for &row in rows {
            let arm = self.arms.map_or("all", |arms| if arms.is_valid(row) { arms.value(row) } else { "none" });
            let user = arms.entry(arm).or_default().entry(self.users.value(row)).or_default();
            user.impressions += 1.0;
            user.clicks += one(is_true(self.clicked, row));
            user.conversions += one(self.converted.is_some_and(|converted| is_true(converted, row)));
            user.cost += amount(&self.cost, row);
            user.revenue += amount(&self.revenue, row);
        }
        arms
    }
}

fn is_true(flags: &BooleanArray, row: usize) -> bool {
    flags.is_valid(row) && flags.value(row)
}

/// An amount column as Float64, decimals included; what is not a finite number counts as NULL.
fn money(impressions: &RecordBatch, name: &str, skipped: &mut Vec<String>) -> Result<Option<Float64Array>> {
    let Some(amounts) = impressions.column_by_name(name) else { return Ok(None) };
    if !amounts.data_type().is_numeric() {
        return Err(Error::contract(format_args!("column {name} is {}, not a number", amounts.data_type())));
    }
    let amounts: ArrayRef = cast(amounts, &DataType::Float64)?;
    let amounts = amounts.as_primitive::<arrow::datatypes::Float64Type>();
    let finite: Float64Array = amounts.iter().map(|amount| amount.filter(|amount| amount.is_finite())).collect();
    let lost = finite.null_count() - amounts.null_count();
    if lost > 0 {
        skipped.push(format!("{name} of {lost} impressions: not a finite number"));
    }
    Ok(Some(finite))
}

fn rows_of_policy(impressions: &RecordBatch, policy_version: Option<&str>, skipped: &mut Vec<String>) -> Result<Vec<usize>> {
    let all = 0..impressions.num_rows();
    let Some(wanted) = policy_version else { return Ok(all.collect()) };
    let Some(versions) = optional_column::<StringArray>(impressions, "policy_version")? else {
        skipped.push("policy version: impressions have none, so all of them count".into());
        return Ok(all.collect());
    };
    Ok(all.filter(|&row| versions.is_valid(row) && versions.value(row) == wanted).collect())
}

fn column_of(users: &Users<'_>, of: impl Fn(&Sums) -> f64) -> Vec<f64> {
    users.values().map(of).collect()
}

fn arm_facts(settings: &EvaluateSettings, columns: &Columns<'_>, arm: &str, users: &Users<'_>) -> ArmFacts {
    let sum = |of: fn(&Sums) -> f64| column_of(users, of).iter().sum::<f64>();
    let rate = |there: bool, numerator: fn(&Sums) -> f64, denominator: fn(&Sums) -> f64| {
        let arm = there.then(|| ab::ratio(&column_of(users, numerator), &column_of(users, denominator)))??;
        Some(arm.estimate(settings.alpha))
    };
    let (converted, cost, revenue) = (columns.converted.is_some(), columns.cost.is_some(), columns.revenue.is_some());
    ArmFacts {
        arm: arm.to_owned(),
        users: users.len() as u64,
        impressions: sum(|user| user.impressions) as u64,
        clicks: sum(|user| user.clicks) as u64,
        conversions: converted.then(|| sum(|user| user.conversions) as u64),
        cost: cost.then(|| sum(|user| user.cost)),
        revenue: revenue.then(|| sum(|user| user.revenue)),
        ctr: rate(true, |user| user.clicks, |user| user.impressions),
        cvr: rate(converted, |user| user.conversions, |user| user.clicks),
        cpa: rate(converted && cost, |user| user.cost, |user| user.conversions),
        roi: rate(revenue && cost, |user| user.revenue, |user| user.cost),
    }
}

fn srm(arms: &BTreeMap<&str, Users<'_>>, shares: &BTreeMap<String, f64>, skipped: &mut Vec<String>) -> Option<Srm> {
    if shares.is_empty() {
        skipped.push("SRM: no shares are planned".into());
        return None;
    }
    let absent: Vec<&str> = shares.keys().map(String::as_str).filter(|arm| !arms.contains_key(arm)).collect();
    if !absent.is_empty() {
        skipped.push(format!("SRM of {}: planned, but without an impression", absent.join(", ")));
    }
    let users: Vec<u64> = arms.values().map(|users| users.len() as u64).collect();
    let planned: Vec<f64> = arms.keys().map(|arm| shares.get(*arm).copied().unwrap_or(0.0)).collect();
    let srm = ab::srm(&users, &planned);
    if srm.is_none() {
        skipped.push("SRM: fewer than two arms have a share and users".into());
    }
    srm
}

fn lift(settings: &EvaluateSettings, columns: &Columns<'_>, arms: &BTreeMap<&str, Users<'_>>, skipped: &mut Vec<String>) -> Vec<Lift> {
    let (Some(treatment), Some(control)) = (arms.get(CHAMPION), arms.get(HOLDOUT)) else {
        skipped.push(format!("lift: impressions of both {CHAMPION} and {HOLDOUT} are needed"));
        return Vec::new();
    };
    let metric = |name: &str, of: &dyn Fn(&Users) -> Option<ab::Arm>| {
        let (treatment, control) = (of(treatment)?, of(control)?);
        let ab::Comparison { absolute, relative } = ab::compare(&control, &treatment, settings.alpha);
        Some(Lift {
            metric: name.to_owned(),
            treatment: CHAMPION.into(),
            control: HOLDOUT.into(),
            treatment_value: treatment.mean,
            control_value: control.mean,
            absolute,
            relative,
            p_adjusted: None,
        })
    };
    let mut lifts = Vec::new();
    lifts.extend(metric("ctr", &|users| ab::ratio(&column_of(users, |user| user.clicks), &column_of(users, |user| user.impressions))));
    if columns.converted.is_some() {
        lifts.extend(metric("cvr", &|users| ab::ratio(&column_of(users, |user| user.conversions), &column_of(users, |user| user.clicks))));
    }
    if columns.revenue.is_some() {
        lifts.extend(metric("revenue_per_user", &|users| ab::mean(&column_of(users, |user| user.revenue))));
    }
    let p: Vec<f64> = lifts.iter().filter_map(|lift| lift.absolute.p).collect();
    let tested = lifts.iter_mut().filter(|lift| lift.absolute.p.is_some());
    tested.zip(ab::benjamini_hochberg(&p)).for_each(|(lift, p)| lift.p_adjusted = Some(p));
    lifts
}

/// What a target policy would have earned in clicks a row, from impressions with logged propensities; none when they have none.
///
/// `target` is the probability with which the target policy shows the logged ad to the logged user, conditional, like the logged
/// propensity, on some ad being shown; where it is none (the target shows nothing there) or no propensity was logged, the row is left
/// out and counted.
pub fn off_policy_value(
    impressions: &RecordBatch,
    target: impl Fn(usize) -> Option<f64>,
    plan: &ope::Plan,
    seed: u64,
) -> Result<Option<ope::Evaluation>> {
    let Some(logged) = optional_column::<Float64Array>(impressions, "propensity")? else { return Ok(None) };
    if logged.null_count() == logged.len() {
        return Ok(None);
    }
    let users = column::<StringArray>(impressions, "user_id")?;
    let clicked = column::<BooleanArray>(impressions, "clicked")?;
    let (mut rewards, mut propensities, mut targets, mut clusters) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in (0..impressions.num_rows()).filter(|&row| logged.is_valid(row)) {
        let Some(target) = target(row) else { continue };
        rewards.push(f64::from(u8::from(is_true(clicked, row))));
        propensities.push(logged.value(row));
        targets.push(target);
        clusters.push(bootstrap::cluster(users.value(row)));
    }
    let rounds = ope::Rounds {
        rewards: &rewards,
        propensities: &propensities,
        targets: &targets,
        users: &clusters,
        model: None,
        unsupported: None,
    };
    let evaluation = ope::evaluate(&rounds, plan, seed)?;
    Ok(Some(ope::Evaluation { rows_left_out: (impressions.num_rows() - rewards.len()) as u64, ..evaluation }))
}

/// A table's probability of each logged impression, and where it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// One a logged impression; none where the table shows nothing to that user, or nothing is known.
    pub probabilities: Vec<Option<f64>>,
    /// Rows whose user has a segment in the table, is served as `everyone`, or is in neither: the latter keep their logged propensity,
    /// as if the table changed nothing for them.
    pub rows_by_segment: u64,
    pub rows_by_everyone: u64,
    pub rows_as_logged: u64,
}

/// The probability with which the table's champion arm would show each logged ad to the user's primary segment.
///
/// A logged impression is one in which some ad was shown. So the table's propensities, which leave the rest to `no_ad`, are divided by
/// the segment's probability of showing any ad.
pub fn champion_targets(impressions: &RecordBatch, user_segments: &RecordBatch, segment_ads: &RecordBatch) -> Result<Targets> {
    let primary = primary_segments(user_segments)?;
    let table = ChampionTable::read(segment_ads)?;
    let users = column::<StringArray>(impressions, "user_id")?;
    let ads = column::<StringArray>(impressions, "ad_id")?;
    let logged = optional_column::<Float64Array>(impressions, "propensity")?;
    let mut targets = Targets::default();
    for row in 0..impressions.num_rows() {
        let own = primary.get(users.value(row)).copied().filter(|segment| table.segments.contains(segment));
        let segment = own.or_else(|| table.segments.get(EVERYONE).copied());
        let rows = match (own, segment) {
            (Some(_), _) => &mut targets.rows_by_segment,
            (None, Some(_)) => &mut targets.rows_by_everyone,
            (None, None) => &mut targets.rows_as_logged,
        };
        *rows += 1;
        targets.probabilities.push(match segment {
            Some(segment) => table.given_any_ad(segment, ads.value(row)),
            None => logged.filter(|logged| logged.is_valid(row)).map(|logged| logged.value(row)),
        });
    }
    Ok(targets)
}

/// User -> segment of rank 1.
fn primary_segments(user_segments: &RecordBatch) -> Result<HashMap<&str, &str>> {
    let users = column::<StringArray>(user_segments, "user_id")?;
    let segments = column::<StringArray>(user_segments, "segment_id")?;
    let ranks = user_segments.column_by_name("rank").ok_or_else(|| Error::contract("column rank is absent"))?;
    let ranks = cast(ranks, &DataType::Int64)?;
    let ranks = ranks.as_primitive::<Int64Type>();
    let first = (0..user_segments.num_rows()).filter(|&row| ranks.is_valid(row) && ranks.value(row) == 1);
    Ok(first.map(|row| (users.value(row), segments.value(row))).collect())
}

/// The champion arm of a segment_ads table.
struct ChampionTable<'a> {
    segments: BTreeSet<&'a str>,
    propensities: HashMap<(&'a str, &'a str), f64>,
    /// P(any ad) by segment.
    any_ad: HashMap<&'a str, f64>,
}

impl<'a> ChampionTable<'a> {
    fn read(segment_ads: &'a RecordBatch) -> Result<Self> {
        let segments = column::<StringArray>(segment_ads, "segment_id")?;
        let ads = column::<StringArray>(segment_ads, "ad_id")?;
        let arms = column::<StringArray>(segment_ads, "arm")?;
        let propensities = column::<Float64Array>(segment_ads, "propensity")?;
        let mut table = Self { segments: BTreeSet::new(), propensities: HashMap::new(), any_ad: HashMap::new() };
        for row in (0..segment_ads.num_rows()).filter(|&row| arms.value(row) == CHAMPION && propensities.is_valid(row)) {
            let (segment, ad, propensity) = (segments.value(row), ads.value(row), propensities.value(row));
            table.segments.insert(segment);
            if ad != NO_AD {
                table.propensities.insert((segment, ad), propensity);
                *table.any_ad.entry(segment).or_default() += propensity;
            }
        }
        Ok(table)
    }

    /// P(ad | segment, some ad is shown); none where the segment is shown nothing.
    fn given_any_ad(&self, segment: &'a str, ad: &'a str) -> Option<f64> {
        let any = self.any_ad.get(segment).copied().filter(|any| *any > 0.0)?;
        Some(self.propensities.get(&(segment, ad)).copied().unwrap_or(0.0) / any)
    }
}
