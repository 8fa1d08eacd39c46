//! What a day under the published table says besides its arms: what targeting brought, whether last night's predictions held, what is
//! still to come, and what position, frequency and the hour did.
//!
//! Each part stands in its own file and needs its own columns; a part that the shop's logs do not allow is absent and `skipped` says why.

use super::checks::{Check, Status, missing_users};
use super::day::{self, money};
use super::{EvaluateSettings, EvaluationFacts, frequency, incremental, late, novelty, pacing, positions, predictions, split};
use crate::error::{Error, Result};
use crate::statistics::bootstrap::{self, Clusters};
use crate::statistics::delay::Curve;
use crate::statistics::{Estimate, ab};
use crate::types::{column, optional_column};
use arrow::array::{Array, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashSet};

/// What the night knows when it looks back on the day.
pub struct Night<'a> {
    /// Canonical impressions of the day.
    pub impressions: &'a RecordBatch,
    /// The version of the table that served; none before the first.
    pub policy_version: Option<&'a str>,
    /// Planned split of the users.
    pub shares: &'a BTreeMap<String, f64>,
    /// Of the table that served: segment_ads.
    pub served: Option<&'a RecordBatch>,
    /// Tonight's.
    pub tonight: &'a RecordBatch,
    /// Users of the table that served.
    pub population: &'a [incremental::Person],
    /// Hashes of the users with an event on the day; none where the logs hold no events.
    pub active: Option<&'a HashSet<u64>>,
    pub ads: &'a RecordBatch,
    pub campaigns: Option<&'a RecordBatch>,
    /// Sums of earlier days: [`novelty::History`].
    pub history: &'a [novelty::History],
    /// When outcomes arrive; none where there are too few to say.
    pub delays: Option<&'a Curve>,
    /// Outcomes are known up to here.
    pub cut_off: DateTime<Utc>,
    /// Beginning of the day: hours are counted from it.
    pub start: DateTime<Utc>,
}

/// Measures the day.
pub fn night(settings: &EvaluateSettings, night: &Night<'_>) -> Result<EvaluationFacts> {
    let mut facts = day::evaluate(settings, night.impressions, night.policy_version)?;
    let rows = Rows::read(night, &mut facts.skipped)?;
    let positions = positions::measure(settings, &rows, &mut facts.skipped);
    facts.late = late::measure(settings, &rows, night.delays, &mut facts.skipped);
    facts.predictions = match night.served {
        Some(served) => predictions::measure(settings, &rows, served, night.tonight, positions.as_ref(), &mut facts.skipped)?,
        None => {
            facts.skipped.push("predictions: no table served the day".into());
            None
        }
    };
    facts.positions = positions;
    facts.frequency = frequency::measure(settings, &rows, &mut facts.skipped);
    facts.pacing = pacing::measure(&rows, night.ads, night.campaigns, &mut facts.skipped)?;
    facts.novelty = novelty::measure(settings, night.history, &mut facts.skipped);
    facts.srm = split::measure(night.population, night.active, night.shares, &mut facts.skipped);
    facts.incremental = incremental::measure(settings, &rows, night.population, &mut facts.skipped);
    facts.checks = checks(&facts, night, &rows);
    Ok(facts)
}

/// The day's impressions under the table, by column. Amounts that are no number count as none.
pub struct Rows {
    pub users: Vec<u64>,
    pub ads: Vec<String>,
    pub segments: Vec<Option<String>>,
    pub arms: Vec<Option<String>>,
    /// From the beginning of the day, in microseconds and in whole hours.
    pub at: Vec<i64>,
    pub hours: Vec<i64>,
    /// Whole hours from the impression to the moment up to which outcomes are known.
    pub ages: Vec<u32>,
    pub positions: Option<Vec<Option<i64>>>,
    pub clicked: Vec<bool>,
    pub converted: Option<Vec<bool>>,
    pub cost: Option<Vec<f64>>,
    pub revenue: Option<Vec<f64>>,
}

const HOUR: i64 = 3_600_000_000;

impl Rows {
    fn read(night: &Night<'_>, skipped: &mut Vec<String>) -> Result<Self> {
        let rows = night.impressions;
        let ours = day::rows_of_policy(rows, night.policy_version, &mut Vec::new())?;
        let texts = |name: &str| -> Result<Vec<Option<String>>> {
            let cells = optional_column::<StringArray>(rows, name)?;
            let text = |row: usize| cells.filter(|cells| cells.is_valid(row)).map(|cells| cells.value(row).to_owned());
            Ok(ours.iter().map(|&row| text(row)).collect())
        };
        let flags = |cells: &BooleanArray| ours.iter().map(|&row| day::is_true(cells, row)).collect::<Vec<bool>>();
        let amounts = |name: &str| -> Result<Option<Vec<f64>>> {
            // What is wrong with them was said where the arms were measured.
            let amounts = money(rows, name, &mut Vec::new())?;
            let amount = |amounts: &Float64Array, row: usize| if amounts.is_valid(row) { amounts.value(row) } else { 0.0 };
            Ok(amounts.map(|amounts| ours.iter().map(|&row| amount(&amounts, row)).collect()))
        };
        let occurred = arrow::compute::cast(
            rows.column_by_name("occurred_at").ok_or_else(|| Error::contract("column occurred_at is absent"))?,
            &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        )?;
        let occurred = occurred.as_primitive::<TimestampMicrosecondType>();
        let at: Vec<i64> = ours.iter().map(|&row| occurred.value(row) - night.start.timestamp_micros()).collect();
        let until = (night.cut_off - night.start).num_microseconds().unwrap_or(i64::MAX);
        let positions = match rows.column_by_name("position") {
            Some(cells) if cells.data_type().is_numeric() => {
                let cells = arrow::compute::cast(cells, &DataType::Int64)?;
                let cells = cells.as_primitive::<Int64Type>();
                Some(ours.iter().map(|&row| cells.is_valid(row).then(|| cells.value(row))).collect())
            }
            _ => {
                skipped.push("positions: impressions have no position".into());
                None
            }
        };
        Ok(Self {
            users: bootstrap::clusters(texts("user_id")?.iter().map(Option::as_deref)),
            ads: texts("ad_id")?.into_iter().map(Option::unwrap_or_default).collect(),
            segments: texts("segment_id")?,
            arms: texts("arm")?,
            hours: at.iter().map(|at| at.div_euclid(HOUR)).collect(),
            ages: at.iter().map(|at| u32::try_from((until - at).div_euclid(HOUR)).unwrap_or(0)).collect(),
            at,
            positions,
            clicked: flags(column(rows, "clicked")?),
            converted: optional_column::<BooleanArray>(rows, "converted")?.map(flags),
            cost: amounts("cost")?,
            revenue: amounts("revenue")?,
        })
    }

    pub fn count(&self) -> usize {
        self.users.len()
    }

    /// Sum of two numbers a row over users, and the ratio of their totals.
    pub fn ratio(&self, alpha: f64, of: impl Fn(usize) -> [f64; 2]) -> Option<Estimate> {
        ab::ratio_over(&Clusters::new(&self.users), alpha, of)
    }
}

/// A conversion rate this unripe is a rumour.
const UNRIPE: f64 = 0.2;

/// More than this share of users in an arm that is not theirs is more than stray rows.
const MAX_OTHERWISE: f64 = 0.01;

/// What to look at before acting on the day's numbers, by name.
fn checks(facts: &EvaluationFacts, night: &Night<'_>, rows: &Rows) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut judge = |name: &str, worse: Option<(Status, String)>, ok: &str| checks.push(Check::judge(name, worse, ok));
    let has = |arm: &str| facts.arms.iter().any(|found| found.arm == arm);
    judge(
        "no_holdout",
        (!has(super::HOLDOUT)).then(|| (Status::Warning, "no holdout was shown anything: lift and iROAS are not known".to_owned())),
        "there is a holdout",
    );
    match &facts.srm {
        Some(split) => judge(
            "srm",
            split.srm.alarm.then(|| {
                let finding = format!("{} are not split as planned (p = {:.2e}): arms cannot be compared", split.population, split.srm.p);
                (Status::Failed, finding)
            }),
            &format!("{} are split as planned (p = {:.4})", split.population, split.srm.p),
        ),
        None => judge("srm", Some((Status::Skipped, "no table of ours split the users of the day".into())), ""),
    }
    let missing = night.impressions.column_by_name("user_id").map_or(0, |users| users.null_count());
    checks.push(missing_users("user_id", missing, night.impressions.num_rows()));
    let mut judge = |name: &str, worse: Option<(Status, String)>, ok: &str| checks.push(Check::judge(name, worse, ok));
    let (otherwise, all) = split::served_otherwise(rows, night.population);
    let finding = format!("{otherwise} of {all} users were served in another arm than the table assigns them to");
    let status = if otherwise as f64 > MAX_OTHERWISE * all as f64 { Status::Failed } else { Status::Warning };
    judge("served_as_assigned", (otherwise > 0).then_some((status, finding)), "every user was served in the arm assigned by the table");
    let several = facts.users_in_several_arms;
    let finding = format!("{several} of {} users were seen in more than one arm", facts.users);
    judge("units_in_several_arms", (several > 0).then_some((Status::Warning, finding)), "every user was seen in one arm");
    let few: Vec<String> =
        facts.arms.iter().filter(|arm| arm.clicks < 25).map(|arm| format!("{} has {} clicks", arm.arm, arm.clicks)).collect();
    judge("too_little_data", (!few.is_empty()).then(|| (Status::Warning, few.join("; "))), "every arm has clicks enough");
    let days = night.history.iter().map(|sums| sums.days_ago).collect::<std::collections::BTreeSet<_>>().len();
    let finding = "only one day is known: nothing can be said of novelty".to_owned();
    judge("days_of_data", (days < 2).then_some((Status::Warning, finding)), "earlier days are known");
    if let Some(late) = &facts.late {
        let finding = format!("{:.0} % of the conversions are still expected", 100.0 * late.still_expected);
        judge("label_maturity", (late.still_expected > UNRIPE).then_some((Status::Warning, finding)), "most conversions have arrived");
    }
    let large = |lift: &super::Lift| {
        lift.absolute.p.is_some_and(|p| p < 0.05) && lift.relative.is_some_and(|effect| effect.estimate.abs() >= SUSPICIOUS)
    };
    let large: Vec<String> = facts
        .lift
        .iter()
        .filter(|lift| large(lift))
        .map(|lift| format!("{} {:+.0} %", lift.metric, 100.0 * lift.relative.map_or(0.0, |effect| effect.estimate)))
        .collect();
    let finding = format!("{}: so large a lift deserves a second look", large.join("; "));
    judge("suspicious_uplift", (!large.is_empty()).then_some((Status::Warning, finding)), "no lift is too good to be true");
    checks
}

/// Targeting against none can double a rate; more is a mistake until shown otherwise.
const SUSPICIOUS: f64 = 2.0;

#[cfg(test)]
pub(super) mod small {
    use super::{HOUR, Rows};

    /// One impression of a small day.
    #[derive(Clone, Copy)]
    pub struct Seen {
        pub user: u64,
        pub ad: &'static str,
        pub segment: &'static str,
        pub arm: &'static str,
        pub hour: i64,
        pub position: i64,
        pub clicked: bool,
        pub converted: bool,
        pub cost: f64,
        pub revenue: f64,
    }

    impl Default for Seen {
        fn default() -> Self {
            Self {
                user: 0,
                ad: "a",
                segment: "s",
                arm: "champion",
                hour: 0,
                position: 1,
                clicked: false,
                converted: false,
                cost: 0.0,
                revenue: 0.0,
            }
        }
    }

    /// The day's rows, a millisecond apart within an hour; outcomes are known up to its end.
    pub fn rows(seen: &[Seen]) -> Rows {
        let all = |of: fn(&Seen) -> f64| Some(seen.iter().map(of).collect());
        let text = |of: fn(&Seen) -> &'static str| seen.iter().map(|seen| Some(of(seen).to_owned())).collect();
        Rows {
            users: seen.iter().map(|seen| seen.user).collect(),
            ads: seen.iter().map(|seen| seen.ad.to_owned()).collect(),
            segments: text(|seen| seen.segment),
            arms: text(|seen| seen.arm),
            at: seen.iter().zip(0..).map(|(seen, row): (&Seen, i64)| seen.hour * HOUR + row * 1_000).collect(),
            hours: seen.iter().map(|seen| seen.hour).collect(),
            ages: seen.iter().map(|seen| u32::try_from(24 - seen.hour).unwrap_or(0)).collect(),
            positions: Some(seen.iter().map(|seen| Some(seen.position)).collect()),
            clicked: seen.iter().map(|seen| seen.clicked).collect(),
            converted: Some(seen.iter().map(|seen| seen.converted).collect()),
            cost: all(|seen| seen.cost),
            revenue: all(|seen| seen.revenue),
        }
    }
}
