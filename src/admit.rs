//! Tonight's table, before it may serve: feasible, above the privacy floor, a probability in every arm, and not worse than what serves.
//!
//! A table that is not admitted leaves yesterday's in place. A broken floor is told apart from the rest, because it ends the night with
//! its own exit code. An off-policy value that the logs do not identify never blocks, nor a difference that few users decide: refusing
//! every table that differs much from yesterday's would freeze the shop.

use crate::error::Result;
use crate::statistics::{Estimate, ope};
use crate::types::column;
use arrow::array::{Array, Float64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What admission looks at.
#[derive(Clone, Debug)]
pub struct Proposal<'a> {
    /// Budgets and caps that the plan breaks, a sentence each.
    pub feasibility: Vec<String>,
    /// Distinct consenting users whom the smallest released segment serves; none when no segment is released.
    pub smallest_segment: Option<u64>,
    pub floor: u64,
    /// Segment, arm, and what its propensities sum to: [`propensity_sums`].
    pub propensity_sums: Vec<(String, String, f64)>,
    /// The table's value by the logs, where they have propensities.
    pub off_policy: Option<&'a ope::Evaluation>,
    /// Share of the serving table's value that may be put at risk; see the evaluation's settings.
    pub max_loss: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Admission {
    pub admitted: bool,
    /// A released segment serves fewer users than the privacy floor.
    pub floor_broken: bool,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Check {
    pub name: CheckName,
    pub ok: bool,
    /// One sentence.
    pub finding: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    Feasible,
    Floor,
    Propensities,
    OffPolicy,
}

impl Admission {
    /// The findings that block, as one line.
    pub fn objections(&self) -> String {
        self.checks.iter().filter(|check| !check.ok).map(|check| check.finding.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// Checks a proposed table.
pub fn admit(proposal: &Proposal<'_>) -> Admission {
    let checks = vec![feasible(&proposal.feasibility), floor(proposal), propensities(&proposal.propensity_sums), off_policy(proposal)];
    let broken = |name: CheckName| checks.iter().any(|check| check.name == name && !check.ok);
    Admission { admitted: checks.iter().all(|check| check.ok), floor_broken: broken(CheckName::Floor), checks }
}

fn feasible(violations: &[String]) -> Check {
    let finding = if violations.is_empty() { "every budget and cap holds".to_owned() } else { some_of(violations) };
    Check { name: CheckName::Feasible, ok: violations.is_empty(), finding }
}

fn floor(proposal: &Proposal<'_>) -> Check {
    let floor = proposal.floor;
    let (ok, finding) = match proposal.smallest_segment {
        None => (true, "no segment is released".to_owned()),
        Some(size) if size >= floor => (true, format!("the smallest segment serves {size} users, the floor is {floor}")),
        Some(size) => (false, format!("a segment serves {size} users, below the floor of {floor}")),
    };
    Check { name: CheckName::Floor, ok, finding }
}

/// Propensities are quotients of whole numbers, so their sum is off by rounding only.
const SUM_TOLERANCE: f64 = 1e-6;

fn propensities(sums: &[(String, String, f64)]) -> Check {
    let is_one = |sum: f64| (sum - 1.0).abs() <= SUM_TOLERANCE;
    let off: Vec<String> = sums
        .iter()
        .filter(|(_, _, sum)| !is_one(*sum))
        .map(|(segment, arm, sum)| format!("propensities of segment {segment}, arm {arm} sum to {sum:.6}"))
        .collect();
    let finding = if off.is_empty() { format!("propensities sum to 1 in {} pairs of segment and arm", sums.len()) } else { some_of(&off) };
    Check { name: CheckName::Propensities, ok: off.is_empty(), finding }
}

/// Against the table that serves, where one does and propensities were logged; else against what the logs earned.
fn off_policy(proposal: &Proposal<'_>) -> Check {
    let check = |ok, finding| Check { name: CheckName::OffPolicy, ok, finding };
    let Some(evaluation) = proposal.off_policy else { return check(true, "not judged: the logs have no propensities".into()) };
    if let ope::Verdict::NotIdentified { reason } = &evaluation.verdict {
        return check(true, format!("not identified, so it does not block: {reason}"));
    }
    let range = |value: f64, low: f64, high: f64| format!("{value:.6} [{low:.6}, {high:.6}]");
    let bounds = |estimate: Option<Estimate>| estimate.and_then(|estimate| Some((estimate.value, estimate.interval?)));
    if let Some((difference, bounds)) = bounds(evaluation.difference) {
        let champion = evaluation.champion.map_or(0.0, |champion| champion.value);
        let mut finding = format!(
            "the table would earn {} a row more than the {champion:.6} of the one that serves",
            range(difference, bounds.low, bounds.high)
        );
        let deciding = evaluation.deciding_users.unwrap_or(0);
        if deciding < ope::MIN_DECIDING_USERS {
            let needed = ope::MIN_DECIDING_USERS;
            finding += &format!("; {deciding} users with a click decide that, {needed} are needed, so it does not block");
            return check(true, finding);
        }
        let worse = bounds.high < 0.0;
        let risky = proposal.max_loss.is_some_and(|share| bounds.low < -share * champion);
        if risky && !worse {
            finding += &format!(", and may lose more than {:.0} % of it", 100.0 * proposal.max_loss.unwrap_or(0.0));
        }
        return check(!worse && !risky, finding);
    }
    let value = evaluation.value().and_then(|value| Some((value.value, value.interval?)));
    let Some(((value, of_value), (earned, of_logged))) = value.zip(bounds(evaluation.logged)) else {
        return check(true, "not judged: the value has no interval".into());
    };
    let finding = format!(
        "the table would earn {} a row, the logs {}",
        range(value, of_value.low, of_value.high),
        range(earned, of_logged.low, of_logged.high)
    );
    check(of_value.high >= of_logged.low, finding)
}

/// The first few of many findings.
fn some_of(findings: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = findings.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if findings.len() > SHOWN { format!("{shown}; and {} more", findings.len() - SHOWN) } else { shown }
}

/// What the propensities of each (segment, arm) of a segment_ads table sum to, `no_ad` rows included. An arm that has none at all (a
/// holdout served by no rule of ours) is left out.
pub fn propensity_sums(segment_ads: &RecordBatch) -> Result<Vec<(String, String, f64)>> {
    let segments = column::<StringArray>(segment_ads, "segment_id")?;
    let arms = column::<StringArray>(segment_ads, "arm")?;
    let propensities = column::<Float64Array>(segment_ads, "propensity")?;
    let mut sums: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for row in (0..segment_ads.num_rows()).filter(|&row| propensities.is_valid(row)) {
        *sums.entry((segments.value(row), arms.value(row))).or_default() += propensities.value(row);
    }
    Ok(sums.into_iter().map(|((segment, arm), sum)| (segment.to_owned(), arm.to_owned(), sum)).collect())
}
