//! What the ads did: rates and money by arm, lift over the holdout, what another table would have earned.
//!
//! Two doors lead here. The night measures a day's impressions under the published table ([`evaluate`], [`night`]), with what the day says of
//! positions, frequency, pacing, late conversions and last night's predictions. And the same statistics work alone on plain tables:
//! [`experiment`] for arms, [`policy_value`] for logged decisions, [`scores`] for labels and scores.
//!
//! Users are the unit everywhere: sums are taken by user, and intervals come from the spread between users. A statistic that the data do
//! not allow is absent, and `skipped` or a check says why.

mod arms;
pub mod checks;
mod day;
pub mod decisions;
pub mod experiment;
mod experiment_checks;
mod experiment_text;
pub mod frequency;
pub mod incremental;
pub mod late;
pub mod metric;
pub mod night;
pub mod novelty;
pub mod pacing;
pub mod policy;
pub mod policy_value;
pub mod positions;
pub mod predictions;
pub mod scores;
pub mod split;
mod units;
mod wide_sum;

use crate::error::{Error, Result};
use crate::statistics::ab::Effect;
use crate::statistics::bootstrap;
use crate::statistics::ope_limits::Limits;
use crate::statistics::{Estimate, ope};
use arrow::array::{Array, StringArray};
use checks::Check;
pub use day::evaluate;
pub use night::night;
pub use policy::{Forecast, Targets, champion_targets, forecast_targets, given_some_ad, off_policy_value};
use serde::{Deserialize, Serialize};

/// Whose row it is: the user's, or where none is named nobody else's.
pub type Owner<'a> = (Option<&'a str>, usize);

/// Rows without a user are not taken for one user: together they would outweigh everybody.
pub fn owner(users: &StringArray, row: usize) -> Owner<'_> {
    match users.is_valid(row) {
        true => (Some(users.value(row)), 0),
        false => (None, row),
    }
}

/// The arm that the table serves, and the one that it is compared to.
pub const CHAMPION: &str = "champion";
pub const HOLDOUT: &str = "holdout";

/// How far the sub-Gaussian estimators shrink weights.
const SUB_GAUSSIAN: f64 = 0.1;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSettings {
    /// Bootstrap replicates of off-policy values.
    pub replicates: usize,
    /// Two-sided level of every interval.
    pub alpha: f64,
    /// Largest weight of a row in the clipped off-policy estimates. Lower: less variance, more bias.
    pub clip: f64,
    /// Share of the serving table's value that tonight's may put at risk: a table whose lower bound against it lies below is not admitted.
    /// Without one, only a table that is surely worse is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_loss: Option<f64>,
}

impl Default for EvaluateSettings {
    fn default() -> Self {
        let ope::Plan { replicates, alpha, limits } = ope::Plan::default();
        Self { replicates, alpha, clip: limits.clipped_ips, max_loss: None }
    }
}

impl EvaluateSettings {
    pub fn check(&self) -> Result<()> {
        bootstrap::check("evaluate", self.alpha, self.replicates)?;
        if self.clip.is_nan() || self.clip <= 0.0 {
            return Err(Error::usage(format_args!("[evaluate] clip = {} must be above 0", self.clip)));
        }
        if let Some(loss) = self.max_loss.filter(|loss| !(0.0..=1.0).contains(loss)) {
            return Err(Error::usage(format_args!("[evaluate] max_loss = {loss} must lie between 0 and 1")));
        }
        Ok(())
    }

    pub fn plan(&self) -> ope::Plan {
        ope::Plan { replicates: self.replicates, alpha: self.alpha, limits: Limits::fixed(self.clip, SUB_GAUSSIAN) }
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
    /// How the users were split, against the plan.
    pub srm: Option<split::Split>,
    pub lift: Vec<Lift>,
    /// Champion against holdout over everybody whom the table could have shown an ad.
    pub incremental: Option<incremental::Incremental>,
    /// Conversions that are still to come.
    pub late: Option<late::Late>,
    /// Last night's predictions against what happened.
    pub predictions: Option<predictions::Predictions>,
    pub positions: Option<positions::Positions>,
    pub frequency: Option<frequency::Frequency>,
    pub pacing: Option<pacing::Pacing>,
    /// The lift day by day.
    pub novelty: Option<novelty::Novelty>,
    pub checks: Vec<Check>,
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
    pub roas: Option<Estimate>,
    /// Revenue less cost, per cost.
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
