//! Challenger against baseline and champion -> which model serves tonight.
//!
//! The contest is over one mature day that no contestant learned from. Log-loss decides, because allocation spends money by
//! probabilities; AUC and calibration may only object. Intervals are a bootstrap by user, paired over the contestants. Where the day
//! holds too few positives nobody passes and nobody fails: whoever serves goes on serving.

pub mod calibration;

use crate::error::{Error, Result};
use crate::statistics::bootstrap::{self, Clusters, Plan, Replicates, differences, percentile};
use crate::statistics::{Interval, ab, metrics};
use calibration::GroupCalibration;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// Below so many positive rows (or negative ones, where they are rarer) the verdict is "too little data".
    pub min_positives: u64,
    /// Bootstrap replicates. More: steadier interval ends, proportionally slower.
    pub replicates: usize,
    /// Two-sided level of every interval.
    pub alpha: f64,
    /// How much worse than the champion still counts as no worse, as a share of the champion's log-loss and AUC.
    pub tolerance: f64,
    /// Predicted over observed positives of the challenger: it fails when the interval lies wholly outside.
    pub calibration: [f64; 2],
    /// The same within a group of rows that has `group_positives` positives …
    pub group_calibration: [f64; 2],
    pub group_positives: u64,
    /// … and so large a share of those groups may lie outside.
    pub groups_outside: f64,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            min_positives: 400,
            replicates: 1000,
            alpha: 0.05,
            tolerance: 0.0,
            calibration: [0.97, 1.03],
            group_calibration: [0.8, 1.25],
            group_positives: 400,
            groups_outside: 0.05,
        }
    }
}

impl GateSettings {
    pub fn check(&self) -> Result<()> {
        bootstrap::check("gate", self.alpha, self.replicates)?;
        for (name, [low, high]) in [("calibration", self.calibration), ("group_calibration", self.group_calibration)] {
            if !(0.0 < low && low <= 1.0 && 1.0 <= high && high.is_finite()) {
                return Err(Error::usage(format_args!("[gate] {name} = [{low}, {high}] does not hold 1, or begins at 0 or below")));
            }
        }
        for (name, value) in [("tolerance", self.tolerance), ("groups_outside", self.groups_outside)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::usage(format_args!("[gate] {name} = {value} must lie between 0 and 1")));
            }
        }
        Ok(())
    }
}

/// One row a decision; scores are calibrated probabilities of a positive.
#[derive(Clone, Copy, Debug)]
pub struct Contest<'a> {
    pub labels: &'a [bool],
    /// Hash of the user; the row number where rows are not persons.
    pub users: &'a [u64],
    pub challenger: &'a [f64],
    pub baseline: &'a [f64],
    pub champion: Option<&'a [f64]>,
    /// Within which groups of rows the challenger must be calibrated, too.
    pub groups: &'a [Groups<'a>],
}

/// One way to group the rows.
#[derive(Clone, Debug)]
pub struct Groups<'a> {
    /// The column's name.
    pub by: &'a str,
    /// None: the row belongs to no group.
    pub of_row: Vec<Option<&'a str>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Verdict {
    pub kind: Kind,
    pub serving: Contestant,
    /// One sentence.
    pub reason: String,
    pub rows: u64,
    pub positives: u64,
    pub users: u64,
    /// Of every contestant whose scores are probabilities.
    pub scores: Vec<Score>,
    /// Challenger minus baseline, challenger minus champion.
    pub differences: Vec<Difference>,
    /// Of the challenger.
    pub calibration: Vec<GroupCalibration>,
    /// Challenger against champion; reported, never judged: a champion of the first, poor night would else defend its title for ever.
    pub prediction_change: Option<PredictionChange>,
}

/// How differently two models score the same rows.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct PredictionChange {
    /// Sum of the challenger's probabilities over sum of the champion's; none where the latter is 0.
    pub total: Option<f64>,
    /// Mean absolute difference over the champion's mean; none where the latter is 0.
    pub mean_absolute: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Pass,
    Fail,
    TooLittleData,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Contestant {
    Challenger,
    Champion,
    Baseline,
}

/// How good one contestant's probabilities are. None: the day does not determine it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Score {
    pub name: Contestant,
    pub auc: Option<f64>,
    pub auc_ci: Option<Interval>,
    pub logloss: Option<f64>,
    pub logloss_ci: Option<Interval>,
    pub normalised_entropy: Option<f64>,
    pub calibration_ratio: Option<f64>,
    pub calibration_ratio_ci: Option<Interval>,
    pub ece: Option<f64>,
    pub gauc: Option<f64>,
    /// Share of rows whose user has both classes: what GAUC speaks of.
    pub gauc_rows_share: f64,
}

/// Challenger minus another contestant.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Difference {
    pub against: Contestant,
    /// Below 0: the challenger is better.
    pub logloss: Option<f64>,
    pub logloss_ci: Option<Interval>,
    /// Above 0: the challenger is better.
    pub auc: Option<f64>,
    pub auc_ci: Option<Interval>,
    /// DeLong's test, which takes rows for independent.
    pub auc_delong_p: Option<f64>,
}

/// Judges the challenger.
///
/// # Errors
/// `Internal` when the baseline's scores are no probabilities: there is nothing to fall back on.
pub fn decide(settings: &GateSettings, contest: &Contest<'_>, seed: u64) -> Result<Verdict> {
    if !are_probabilities(contest.baseline) {
        return Err(Error::internal("the baseline scores a row with something that is no probability"));
    }
    let challenger_fit = are_probabilities(contest.challenger);
    let champion = contest.champion.filter(|scores| are_probabilities(scores));
    let incumbent = if champion.is_some() { Contestant::Champion } else { Contestant::Baseline };
    let mut contestants = Vec::new();
    if challenger_fit {
        contestants.push((Contestant::Challenger, contest.challenger));
    }
    contestants.push((Contestant::Baseline, contest.baseline));
    contestants.extend(champion.map(|scores| (Contestant::Champion, scores)));

    let positives = contest.labels.iter().filter(|label| **label).count() as u64;
    let rows = contest.labels.len() as u64;
    let clusters = Clusters::new(contest.users);
    let plan = Plan { replicates: settings.replicates, alpha: settings.alpha, seed };
    let columns: Vec<&[f64]> = contestants.iter().map(|(_, scores)| *scores).collect();
    let replicates = bootstrap::logloss_and_auc(&plan, &clusters, contest.labels, &columns);
    let scored: Vec<Scored> = contestants
        .iter()
        .zip(replicates)
        .map(|(&(name, scores), replicates)| Scored {
            summary: score(name, contest, &clusters, scores, &replicates, settings.alpha),
            scores,
            replicates,
        })
        .collect();
    let differences: Vec<Difference> = match scored.split_first() {
        Some((challenger, others)) if challenger_fit => {
            others.iter().map(|other| difference(contest.labels, challenger, other, settings.alpha)).collect()
        }
        _ => Vec::new(),
    };
    let scores: Vec<Score> = scored.into_iter().map(|scored| scored.summary).collect();
    let by_group: Vec<GroupCalibration> = match challenger_fit {
        true => contest.groups.iter().map(|groups| calibration::within(settings, contest, groups, contest.challenger)).collect(),
        false => Vec::new(),
    };

    let (kind, mut reason) = if !challenger_fit {
        (Kind::Fail, "the challenger scores a row with something that is no probability".to_owned())
    } else if let Some(reason) = too_little(settings, rows, positives) {
        (Kind::TooLittleData, reason)
    } else if let Some(reason) = calibration::objection(settings, &scores[0], &by_group) {
        (Kind::Fail, reason)
    } else {
        judge(settings, &scores, &differences)
    };
    if contest.champion.is_some() && champion.is_none() {
        reason.push_str("; the champion is out, since it scores a row with something that is no probability");
    }
    let serving = if kind == Kind::Pass { Contestant::Challenger } else { incumbent };
    Ok(Verdict {
        kind,
        serving,
        reason,
        rows,
        positives,
        users: clusters.count() as u64,
        scores,
        differences,
        calibration: by_group,
        prediction_change: champion.filter(|_| challenger_fit).map(|champion| prediction_change(contest.challenger, champion)),
    })
}

fn prediction_change(challenger: &[f64], champion: &[f64]) -> PredictionChange {
    let total: f64 = champion.iter().sum();
    let over = |sum: f64| (total > 0.0).then(|| sum / total);
    PredictionChange {
        total: over(challenger.iter().sum()),
        mean_absolute: over(challenger.iter().zip(champion).map(|(a, b)| (a - b).abs()).sum()),
    }
}

fn are_probabilities(scores: &[f64]) -> bool {
    scores.iter().all(|score| (0.0..=1.0).contains(score))
}

struct Scored<'a> {
    summary: Score,
    scores: &'a [f64],
    replicates: Replicates,
}

fn score(name: Contestant, contest: &Contest<'_>, clusters: &Clusters, scores: &[f64], replicates: &Replicates, alpha: f64) -> Score {
    let labels = contest.labels;
    let gauc = metrics::gauc(labels, scores, contest.users);
    Score {
        name,
        auc: metrics::auc(labels, scores),
        auc_ci: percentile(&replicates.auc, alpha),
        logloss: metrics::logloss(labels, scores),
        logloss_ci: percentile(&replicates.logloss, alpha),
        normalised_entropy: metrics::normalised_entropy(labels, scores),
        calibration_ratio: metrics::calibration_ratio(labels, scores),
        calibration_ratio_ci: ab::ratio_over(clusters, alpha, |row| [scores[row], f64::from(u8::from(labels[row]))])
            .and_then(|ratio| ratio.interval),
        ece: metrics::ece(labels, scores),
        gauc: gauc.value,
        gauc_rows_share: gauc.rows_share,
    }
}

fn difference(labels: &[bool], challenger: &Scored<'_>, other: &Scored<'_>, alpha: f64) -> Difference {
    let minus = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    let (a, b) = (&challenger.replicates, &other.replicates);
    Difference {
        against: other.summary.name,
        logloss: minus(challenger.summary.logloss, other.summary.logloss),
        logloss_ci: percentile(&differences(&a.logloss, &b.logloss), alpha),
        auc: minus(challenger.summary.auc, other.summary.auc),
        auc_ci: percentile(&differences(&a.auc, &b.auc), alpha),
        auc_delong_p: metrics::delong(labels, challenger.scores, other.scores).map(|test| test.p),
    }
}

fn too_little(settings: &GateSettings, rows: u64, positives: u64) -> Option<String> {
    let (rarer, name) = if positives <= rows - positives { (positives, "positive") } else { (rows - positives, "negative") };
    // One class alone has no AUC, whatever the setting.
    let needed = settings.min_positives.max(1);
    (rarer < needed).then(|| format!("too little data: {rarer} {name} rows of {rows}, {needed} are needed"))
}

fn judge(settings: &GateSettings, scores: &[Score], differences: &[Difference]) -> (Kind, String) {
    let fail = |reason: String| (Kind::Fail, reason);
    let of = |against: Contestant| differences.iter().find(|difference| difference.against == against);
    let Some((baseline, gain)) = of(Contestant::Baseline).and_then(|difference| Some((difference, difference.logloss_ci?))) else {
        return fail("the challenger's log-loss against the baseline's has no interval".into());
    };
    let change =
        |value: Option<f64>, interval: Interval| format!("{:+.5} [{:+.5}, {:+.5}]", value.unwrap_or(0.0), interval.low, interval.high);
    if gain.high >= 0.0 {
        return fail(format!("the challenger is not surely better than the baseline: log-loss {}", change(baseline.logloss, gain)));
    }
    let better = format!("the challenger beats the baseline: log-loss {}", change(baseline.logloss, gain));
    let Some((champion, summary)) = of(Contestant::Champion).zip(scores.iter().find(|score| score.name == Contestant::Champion)) else {
        return (Kind::Pass, format!("{better}; there is no champion"));
    };
    let allowed = |of: Option<f64>| settings.tolerance * of.unwrap_or(0.0);
    if let Some(loss) = champion.logloss_ci.filter(|loss| loss.low > allowed(summary.logloss)) {
        return fail(format!("the challenger is worse than the champion: log-loss {}", change(champion.logloss, loss)));
    }
    if let Some(rank) = champion.auc_ci.filter(|rank| rank.high < -allowed(summary.auc)) {
        return fail(format!("the challenger ranks worse than the champion: AUC {}", change(champion.auc, rank)));
    }
    (Kind::Pass, format!("{better}; and is not worse than the champion"))
}
