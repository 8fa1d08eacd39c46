//! What may be wrong with an experiment's table, check by check: the names are those of the experimentation platforms.

use super::arms::{ArmTally, Arms};
use super::checks::{Check, Status};
use super::experiment::{Experiment, Level, Outcome};
use super::metric::Metric;
use crate::error::{Error, Result};
use crate::platform::engine;
use crate::platform::table::{NotNumbers, require};
use crate::statistics::ab::{self, Srm};
use crate::statistics::moments::Moments;
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::ExprFunctionExt;
use datafusion::prelude::{DataFrame, ident, lit, try_cast};
use std::collections::BTreeMap;

/// Fewer units in an arm, or fewer units with anything in a metric, make a warning.
const ENOUGH_UNITS: u64 = 100;
const ENOUGH_ACTIVE: u64 = 25;
/// More than this share of units in several arms is more than stray users.
const MAX_IN_SEVERAL: f64 = 0.01;
/// A unit with more than this share of its arm's variance decides the result alone: a mean is then no longer nearly normal.
const MAX_UNIT_SHARE: f64 = 0.1;
/// Lifts this large are, by Twyman's law, usually mistakes.
const SUSPICIOUS_LIFT: f64 = 0.5;

pub fn text_metric(wrong: &[NotNumbers]) -> Check {
    let finding = |wrong: &NotNumbers| format!("column {} holds text, such as {:?}, in {} rows", wrong.column, wrong.example, wrong.cells);
    let found = wrong.iter().map(finding).collect::<Vec<_>>().join("; ");
    Check::judge("text_metric", (!wrong.is_empty()).then_some((Status::Failed, found)), "every metric column is a number")
}

pub fn empty_arm(experiment: &Experiment, arms: &BTreeMap<String, ArmTally>) -> Check {
    let there = || arms.keys().cloned().collect::<Vec<_>>().join(", ");
    let planned = experiment.share.iter().filter(|(_, share)| **share > 0.0).map(|(arm, _)| arm);
    let absent: Vec<&str> =
        std::iter::once(&experiment.control).chain(planned).filter(|arm| !arms.contains_key(*arm)).map(String::as_str).collect();
    let worse = if arms.is_empty() {
        Some((Status::Failed, "the table has no units".to_owned()))
    } else if let Some(arm) = absent.first() {
        Some((Status::Failed, format!("arm {arm} has no units; the arms with units are: {}", there())))
    } else if arms.len() < 2 {
        Some((Status::Failed, format!("only arm {} has units: there is nothing to compare it to", there())))
    } else {
        let small = arms.iter().filter(|(_, tally)| tally.units < 2).map(|(arm, _)| arm.as_str()).collect::<Vec<_>>();
        (!small.is_empty()).then(|| (Status::Failed, format!("a single unit in {}: its spread is not known", small.join(", "))))
    };
    Check::judge("empty_arm", worse, format!("{} arms have units", arms.len()))
}

pub fn units_in_several_arms(experiment: &Experiment, arms: &Arms, whole: &BTreeMap<String, ArmTally>) -> Check {
    const NAME: &str = "units_in_several_arms";
    if experiment.unit.is_none() {
        return Check::new(NAME, Status::Skipped, "every row was taken for a unit of its own");
    }
    let units = whole.values().map(|tally| tally.units).sum::<u64>() + arms.in_several;
    let share = arms.in_several as f64 / units.max(1) as f64;
    let worse = (arms.in_several > 0).then(|| {
        let status = if share > MAX_IN_SEVERAL { Status::Failed } else { Status::Warning };
        (status, format!("{} of {units} units ({:.2} %) were seen in more than one arm and are left out", arms.in_several, 100.0 * share))
    });
    Check::judge(NAME, worse, "every unit is in one arm")
}

pub fn missing_keys(arms: &Arms) -> Check {
    let lost = arms.without_arm + arms.without_unit;
    let finding = format!("{} rows name no unit and {} no arm; they are left out", arms.without_unit, arms.without_arm);
    Check::judge("missing_keys", (lost > 0).then_some((Status::Warning, finding)), "every row names a unit and an arm")
}

/// Against the planned shares; without a plan against an even split, which then is no more than a hint.
pub fn srm(experiment: &Experiment, arms: &BTreeMap<String, ArmTally>) -> (Option<Srm>, Check) {
    let names: Vec<&String> = match experiment.share.is_empty() {
        true => arms.keys().collect(),
        false => arms.keys().chain(experiment.share.keys()).collect::<std::collections::BTreeSet<_>>().into_iter().collect(),
    };
    let users: Vec<u64> = names.iter().map(|arm| arms.get(*arm).map_or(0, |tally| tally.units)).collect();
    let shares: Vec<f64> = names
        .iter()
        .map(|arm| if experiment.share.is_empty() { 1.0 } else { experiment.share.get(*arm).copied().unwrap_or(0.0) })
        .collect();
    let Some(found) = ab::srm(&users, &shares) else {
        return (None, Check::new("srm", Status::Skipped, "fewer than two arms have units or a share"));
    };
    let split = users.iter().map(u64::to_string).collect::<Vec<_>>().join(" : ");
    let (status, plan, advice) = match experiment.share.is_empty() {
        true => (Status::Warning, "an even split", "; if another was planned, say so by --share"),
        false => (Status::Failed, "the planned split", "; the assignment or the logging is broken, and with it every comparison"),
    };
    let worse = found.alarm.then(|| (status, format!("units {split} are not {plan} (p = {:.2e}){advice}", found.p)));
    let check = Check::judge("srm", worse, format!("units {split} agree with {plan} (p = {:.4})", found.p));
    (Some(found), Check { p: Some(found.p), ..check })
}

/// The checks of one metric over all arms.
pub fn metric(metric: &Metric, i: usize, arms: &BTreeMap<String, ArmTally>) -> Vec<Check> {
    let name = &metric.name;
    let sum = |of: fn(&super::arms::Column) -> u64| arms.values().map(|tally| of(&tally.metrics[i])).sum::<u64>();
    let units: u64 = arms.values().map(|tally| tally.units).sum();
    let (not_finite, empty, non_zero) = (sum(|column| column.not_finite), sum(|column| column.empty), sum(|column| column.non_zero));
    let mut checks = Vec::new();
    let mut judge = |check: &str, worse: Option<(Status, String)>, ok: String| checks.push(Check::judge(check, worse, ok));
    judge(
        "not_finite",
        (not_finite > 0).then(|| (Status::Failed, format!("{name} is NaN or infinite for {not_finite} of {units} units"))),
        format!("{name} is a finite number for every unit"),
    );
    judge(
        "missing_values",
        (empty > 0).then(|| (Status::Warning, format!("{name} is empty for {empty} of {units} units, which count as 0"))),
        format!("{name} is there for every unit"),
    );
    let all_zero = non_zero == 0 && not_finite < units;
    judge(
        "all_zero_metric",
        all_zero.then(|| (Status::Failed, format!("{name} is 0 for every unit: nothing can be compared"))),
        format!("{name} is not 0 for {non_zero} of {units} units"),
    );
    if all_zero || not_finite > 0 {
        return checks;
    }
    let of_arms = |worse: &dyn Fn(&str, &ArmTally) -> Option<String>| {
        let found: Vec<String> = arms.iter().filter_map(|(arm, tally)| worse(arm, tally)).collect();
        (!found.is_empty()).then(|| found.join("; "))
    };
    let undefined = of_arms(&|arm, tally| {
        let moments = &tally.metrics[i].moments;
        ab::measure(metric.outcome, moments).is_none().then(|| format!("{name} of {arm} is not determined: its denominator sums to 0"))
    });
    let constant = of_arms(&|arm, tally| {
        let measured = ab::measure(metric.outcome, &tally.metrics[i].moments)?;
        (measured.variance <= 0.0).then(|| format!("{name} of {arm} is the same for every unit"))
    });
    // One arm without spread is odd; all of them leave nothing to test by.
    let constant_everywhere =
        arms.values().all(|tally| ab::measure(metric.outcome, &tally.metrics[i].moments).is_some_and(|measured| measured.variance <= 0.0));
    let undetermined = undefined
        .map(|finding| (Status::Failed, finding))
        .or_else(|| constant.map(|finding| (if constant_everywhere { Status::Failed } else { Status::Warning }, finding)));
    judge("no_variation", undetermined, format!("{name} differs between units"));
    let few = of_arms(&|arm, tally| {
        let active = tally.metrics[i].non_zero;
        (tally.units < ENOUGH_UNITS || active < ENOUGH_ACTIVE)
            .then(|| format!("{name} of {arm} rests on {active} active of {} units", tally.units))
    });
    judge("too_little_data", few.map(|finding| (Status::Warning, finding)), format!("{name} has units enough in every arm"));
    let heavy = of_arms(&|arm, tally| {
        let column = &tally.metrics[i];
        let share = heaviest(&column.moments, column.low, column.high)?;
        (share > MAX_UNIT_SHARE.max(20.0 / tally.units as f64))
            .then(|| format!("one unit carries {:.0} % of the variance of {name} in {arm}", 100.0 * share))
    });
    judge("metric_outliers", heavy.map(|finding| (Status::Warning, finding)), format!("no unit decides {name} alone"));
    if metric.spec.proportion {
        let other = of_arms(&|arm, tally| {
            let moments = &tally.metrics[i].moments;
            (moments.product(0, 0) != moments.sum(0)).then(|| format!("{name} of {arm} has values other than 0 and 1"))
        });
        judge("not_a_proportion", other.map(|finding| (Status::Failed, finding)), format!("{name} is 0 or 1 for every unit"));
    }
    checks
}

/// The largest share of a column's variance in one unit.
fn heaviest(moments: &Moments, low: f64, high: f64) -> Option<f64> {
    let mean = moments.mean(0);
    let distance = (high - mean).max(mean - low);
    let total = moments.covariance(0, 0) * (moments.rows() as f64 - 1.0);
    (total > 0.0).then(|| distance * distance / total)
}

pub fn suspicious_uplift(found: &BTreeMap<String, BTreeMap<String, Outcome>>) -> Check {
    let of = |(metric, arms): (&String, &BTreeMap<String, Outcome>)| {
        let large = |(arm, outcome): (&String, &Outcome)| {
            let relative = outcome.relative?;
            let sure = outcome.absolute?.p? < super::experiment::ALPHA;
            (sure && relative.estimate.abs() >= SUSPICIOUS_LIFT)
                .then(|| format!("{metric} of {arm} differs by {:+.0} %", 100.0 * relative.estimate))
        };
        arms.iter().filter_map(large).collect::<Vec<_>>()
    };
    let large: Vec<String> = found.iter().flat_map(of).collect();
    let finding = format!("{}: so large a lift is more often a mistake in the data than an effect", large.join("; "));
    Check::judge("suspicious_uplift", (!large.is_empty()).then_some((Status::Warning, finding)), "no lift is too good to be true")
}

pub fn breakdown_levels(column: &str, count: usize, most: usize) -> Check {
    let finding = format!("column {column} has more than {most} values: a breakdown by it would say nothing of any of them");
    Check::judge("breakdown_levels", (count > most).then_some((Status::Failed, finding)), format!("{column} has {count} values"))
}

/// A level whose own checks failed warns of the whole: its units are in there.
pub fn levels_withheld(levels: &BTreeMap<String, Level>) -> Check {
    let failed = |level: &Level| {
        let names = level.checks.iter().filter(|check| check.status == Status::Failed).map(|check| check.name.as_str());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" and ")
    };
    let withheld = levels.iter().filter(|(_, level)| level.verdict == Status::Failed);
    let withheld: Vec<String> = withheld.map(|(name, level)| format!("{name} fails {}", failed(level))).collect();
    let finding = format!("numbers are withheld where a level's own checks failed: {}", withheld.join("; "));
    Check::judge("levels_withheld", (!withheld.is_empty()).then_some((Status::Warning, finding)), "no level failed a check")
}

/// How many days the table spans, and how much of it is too young for its outcomes to be known.
pub async fn times(rows: &DataFrame, column: &str, window_days: u32, as_of: Option<&str>) -> Result<Vec<Check>> {
    const DAY: i64 = 86_400_000_000;
    require(rows.schema(), column)?;
    let at = try_cast(ident(column), DataType::Timestamp(TimeUnit::Microsecond, None));
    let times = rows.clone().select(vec![ident(column).alias("cell"), at.alias("at")])?;
    let ends = vec![min(ident("at")).alias("first"), max(ident("at")).alias("last")];
    let counts = vec![count(ident("cell")).alias("cells"), count(ident("at")).alias("times")];
    let span = engine::collect(times.clone().aggregate(vec![], [ends, counts].concat())?).await?;
    let counted = |batch: &arrow::array::RecordBatch, name: &str| batch[name].as_primitive::<Int64Type>().value(0);
    let no_times = counted(&span, "cells") - counted(&span, "times");
    if no_times > 0 {
        let finding = format!("column {column} is no time in {no_times} of {} rows", counted(&span, "cells"));
        return Ok(vec![Check::new("not_a_time", Status::Failed, finding)]);
    }
    let moment = |batch: &arrow::array::RecordBatch, name: &str| -> Result<Option<i64>> {
        let moments = arrow::compute::cast(&batch[name], &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        Ok(moments.as_primitive::<TimestampMicrosecondType>().iter().next().flatten())
    };
    let (Some(first), Some(last)) = (moment(&span, "first")?, moment(&span, "last")?) else {
        return Ok(vec![Check::new("label_maturity", Status::Failed, format!("column {column} holds no time"))]);
    };
    let days = (last.div_euclid(DAY) - first.div_euclid(DAY)) + 1;
    let finding = "the table holds one day: nothing is known of other weekdays, nor whether the effect lasts".to_owned();
    let one_day = Check::judge("days_of_data", (days < 2).then_some((Status::Warning, finding)), format!("the table spans {days} days"));
    if window_days == 0 {
        return Ok(vec![one_day, Check::new("label_maturity", Status::Skipped, "no --window-days says how long outcomes may take")]);
    }
    let known_until = match as_of {
        Some(text) => moment_of(text)?,
        None => last,
    };
    let young_from = datafusion::common::ScalarValue::TimestampMicrosecond(Some(known_until - i64::from(window_days) * DAY), None);
    let young = count(lit(1)).filter(ident("at").gt(lit(young_from))).build()?;
    let ages = engine::collect(times.aggregate(vec![], vec![young.alias("young")])?).await?;
    let young = counted(&ages, "young");
    let share = young as f64 / counted(&span, "times") as f64;
    let finding = format!(
        "{:.1} % of the rows are younger than {window_days} days: some of their outcomes are still to come, and arms are compared before they are ripe",
        100.0 * share
    );
    let maturity = Check::judge(
        "label_maturity",
        (young > 0).then_some((Status::Warning, finding)),
        format!("every row is older than {window_days} days"),
    );
    Ok(vec![one_day, maturity])
}

/// Microseconds of a date or a time, UTC.
fn moment_of(text: &str) -> Result<i64> {
    let date = || text.parse::<chrono::NaiveDate>().ok().map(|date| date.and_time(chrono::NaiveTime::MIN).and_utc());
    let time = text.parse::<chrono::DateTime<chrono::Utc>>().ok().or_else(date);
    let time =
        time.ok_or_else(|| Error::usage(format_args!("{text} is not a time")).action("write it as 2026-11-22 or 2026-11-22T04:00:00Z"))?;
    Ok(time.timestamp_micros())
}
