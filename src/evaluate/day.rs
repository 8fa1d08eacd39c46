//! A day's impressions -> sums by arm and user: rates and money by arm, and champion against holdout.

use super::{ArmFacts, CHAMPION, EvaluateSettings, EvaluationFacts, HOLDOUT, Lift, Owner, owner};
use crate::error::{Error, Result};
use crate::statistics::ab;
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use std::collections::BTreeMap;

/// Measures one day of canonical impressions: by arm, and champion against holdout.
pub fn evaluate(settings: &EvaluateSettings, impressions: &RecordBatch, policy_version: Option<&str>) -> Result<EvaluationFacts> {
    let mut skipped = Vec::new();
    let columns = Columns::read(impressions, &mut skipped)?;
    let ours = rows_of_policy(impressions, policy_version, &mut skipped)?;
    let arms = columns.by_arm(&ours);
    let mut seen: BTreeMap<Owner, usize> = BTreeMap::new();
    arms.values().flat_map(|users| users.keys()).for_each(|user| *seen.entry(*user).or_default() += 1);
    let lift = lift(settings, &columns, &arms, &mut skipped);
    Ok(EvaluationFacts {
        policy_version: policy_version.map(str::to_owned),
        clustered_by: "user_id".into(),
        rows: ours.len() as u64,
        other_policy_rows: (impressions.num_rows() - ours.len()) as u64,
        users: seen.len() as u64,
        users_in_several_arms: seen.values().filter(|arms| **arms > 1).count() as u64,
        arms: arms.iter().map(|(arm, users)| arm_facts(settings, &columns, arm, users)).collect(),
        srm: None,
        lift,
        incremental: None,
        late: None,
        predictions: None,
        positions: None,
        frequency: None,
        pacing: None,
        novelty: None,
        checks: Vec::new(),
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

type Users<'a> = BTreeMap<Owner<'a>, Sums>;

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
            (columns.revenue.is_none() || columns.cost.is_none(), "ROAS, ROI: impressions lack revenue or cost"),
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
            let user = arms.entry(arm).or_default().entry(owner(self.users, row)).or_default();
            user.impressions += 1.0;
            user.clicks += one(is_true(self.clicked, row));
            user.conversions += one(self.converted.is_some_and(|converted| is_true(converted, row)));
            user.cost += amount(&self.cost, row);
            user.revenue += amount(&self.revenue, row);
        }
        arms
    }
}

pub(super) fn is_true(flags: &BooleanArray, row: usize) -> bool {
    flags.is_valid(row) && flags.value(row)
}

/// An amount column as Float64, decimals included; what is not a finite number counts as NULL.
pub(super) fn money(impressions: &RecordBatch, name: &str, skipped: &mut Vec<String>) -> Result<Option<Float64Array>> {
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

pub(super) fn rows_of_policy(impressions: &RecordBatch, policy_version: Option<&str>, skipped: &mut Vec<String>) -> Result<Vec<usize>> {
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
    let roas = rate(revenue && cost, |user| user.revenue, |user| user.cost);
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
        roas,
        roi: roas.map(|roas| roas.less(1.0)),
    }
}

fn lift(settings: &EvaluateSettings, columns: &Columns<'_>, arms: &BTreeMap<&str, Users<'_>>, skipped: &mut Vec<String>) -> Vec<Lift> {
    let (Some(treatment), Some(control)) = (arms.get(CHAMPION), arms.get(HOLDOUT)) else {
        skipped.push(format!("lift: impressions of both {CHAMPION} and {HOLDOUT} are needed"));
        return Vec::new();
    };
    let metric = |name: &str, of: &dyn Fn(&Users) -> Option<ab::Arm>| {
        let (treatment, control) = (of(treatment)?, of(control)?);
        let ab::Comparison { absolute, relative, .. } = ab::compare(&control, &treatment, settings.alpha);
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
