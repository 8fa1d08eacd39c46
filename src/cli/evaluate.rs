//! `nightmarket evaluate …`: the statistics alone, on plain tables.

use super::{Output, print};
use crate::error::{Error, Result};
use crate::evaluate::decisions::{self, Names};
use crate::evaluate::experiment::{self, Experiment};
use crate::evaluate::metric::{MetricSpec, named};
use crate::evaluate::scores::{self, Scored};
use crate::evaluate::{checks, policy_value};
use crate::platform::job::parse_toml;
use crate::platform::{engine, table};
use clap::{Args, Subcommand};
use datafusion::prelude::SessionContext;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Evaluate {
    /// What each arm of an experiment did differently, on a table with a unit, an arm and metric columns.
    Ab(Ab),
    /// What another policy would have earned, on a table of logged decisions with their propensities.
    Ope(Ope),
    /// How good scores are, as a ranking and as probabilities, on a table with labels.
    Metrics(Metrics),
}

/// The table, and how much of the machine reading it may use.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// A Parquet or CSV file, or a folder of them: a path or a URL of an object store.
    #[arg(long, env = "NIGHTMARKET_TABLE")]
    pub table: String,
    /// Query threads; 0 = all cores. Changes no result.
    #[arg(long, default_value_t = 0, env = "NIGHTMARKET_THREADS")]
    pub threads: usize,
    /// Memory of the query operators, MiB; beyond it they spill to disk.
    #[arg(long, default_value_t = 1024, env = "NIGHTMARKET_MEMORY_MIB")]
    pub memory_mib: usize,
}

impl Source {
    fn session(&self) -> Result<SessionContext> {
        let settings = engine::Settings { threads: self.threads, memory_mib: self.memory_mib, buckets: 1 };
        engine::session(&settings)
    }
}

#[derive(Debug, Args)]
pub struct Ab {
    #[command(flatten)]
    source: Source,
    /// The experiment as TOML, under the names of these flags; flags add to it and win over it.
    #[arg(long, env = "NIGHTMARKET_SPEC")]
    spec: Option<PathBuf>,
    /// Column of the unit that was assigned to an arm; without it every row is a unit.
    #[arg(long, env = "NIGHTMARKET_UNIT")]
    unit: Option<String>,
    /// Every unit has one row: nothing needs to be grouped, and a unit in two arms would not be seen.
    #[arg(long, env = "NIGHTMARKET_ONE_ROW_PER_UNIT")]
    one_row_per_unit: bool,
    /// Column of the arm.
    #[arg(long, env = "NIGHTMARKET_ARM")]
    arm: Option<String>,
    /// The arm that the others are compared to.
    #[arg(long, env = "NIGHTMARKET_CONTROL")]
    control: Option<String>,
    /// What is measured: `ctr=clicks/impressions` is a ratio of sums, `revenue` or `big=revenue > 100` a mean over units.
    #[arg(long, env = "NIGHTMARKET_METRIC", value_delimiter = ';')]
    metric: Vec<String>,
    /// A metric of zeros and ones, its variance taken as p (1 - p): `bought` or `bought=orders > 0`.
    #[arg(long, env = "NIGHTMARKET_PROPORTION", value_delimiter = ';')]
    proportion: Vec<String>,
    /// A metric that must not get worse, with the change that is put up with: `latency=ms/requests:2%`, `rating:-0.05`. The sign says
    /// which direction is worse, % that it is a share of the control's value.
    #[arg(long, env = "NIGHTMARKET_GUARDRAIL", value_delimiter = ';', allow_hyphen_values = true)]
    guardrail: Vec<String>,
    /// Adjusts a metric by what was before: `revenue=pre_revenue`, `ctr=pre_clicks/pre_impressions`.
    #[arg(long, env = "NIGHTMARKET_CUPED", value_delimiter = ';')]
    cuped: Vec<String>,
    /// The effect that the experiment was planned to find, to state the power: `ctr=5%`, `revenue=0.1`.
    #[arg(long, env = "NIGHTMARKET_EXPECT", value_delimiter = ';')]
    expect: Vec<String>,
    /// Planned share of the units, for the check of the split: `treatment=0.5`.
    #[arg(long, env = "NIGHTMARKET_SHARE", value_delimiter = ';')]
    share: Vec<String>,
    /// Breaks the results down by a column.
    #[arg(long, env = "NIGHTMARKET_BY")]
    by: Option<String>,
    /// Column of the time of exposure: checks how many days there are and whether outcomes are ripe.
    #[arg(long, env = "NIGHTMARKET_TIME")]
    time: Option<String>,
    /// Days after exposure in which an outcome may still come.
    #[arg(long, env = "NIGHTMARKET_WINDOW_DAYS")]
    window_days: Option<u32>,
    /// The moment up to which outcomes are known; the last exposure when absent.
    #[arg(long, env = "NIGHTMARKET_AS_OF")]
    as_of: Option<String>,
    /// Replicates of a bootstrap by unit beside the intervals by formula.
    #[arg(long, env = "NIGHTMARKET_BOOTSTRAP")]
    bootstrap: Option<usize>,
    /// Of the bootstrap.
    #[arg(long, env = "NIGHTMARKET_SEED")]
    seed: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Ope {
    #[command(flatten)]
    source: Source,
    /// Column of the action that was taken.
    #[arg(long, default_value = "action", env = "NIGHTMARKET_ACTION")]
    action: String,
    /// Column of what it earned.
    #[arg(long, default_value = "reward", env = "NIGHTMARKET_REWARD")]
    reward: String,
    /// Column of the probability with which the logging policy took it.
    #[arg(long, default_value = "logging_propensity", env = "NIGHTMARKET_PROPENSITY")]
    propensity: String,
    /// Target probabilities: columns of this name followed by the number of the action, or one column of the logged action's. In a
    /// --target-policy table, the column of the probability.
    #[arg(long, default_value = "target_p", env = "NIGHTMARKET_TARGET")]
    target: String,
    /// The target policy as a table: action, probability, and the columns of the log on which it depends.
    #[arg(long, env = "NIGHTMARKET_TARGET_POLICY")]
    target_policy: Option<String>,
    /// Predicted rewards: columns of this name followed by the number of the action; or one column of the logged action's, and one with
    /// `_target` after it of the mean under the target policy. Without them means are fitted, where the target's choices are known.
    #[arg(long, default_value = "qhat", env = "NIGHTMARKET_QHAT")]
    qhat: String,
    /// Column of the user, by whom intervals are clustered; `user_id` where there is one.
    #[arg(long, env = "NIGHTMARKET_USER")]
    user: Option<String>,
    /// Columns on which rewards may depend, for the fitted means.
    #[arg(long, env = "NIGHTMARKET_FEATURES", value_delimiter = ',')]
    features: Vec<String>,
    /// Column of the action's segment or category: weights by it, for when there are many actions.
    #[arg(long, env = "NIGHTMARKET_EMBEDDING")]
    embedding: Option<String>,
    /// Weight at which the clipping, switching and shrinking estimators limit a row; chosen by the data (SLOPE) when absent.
    #[arg(long, env = "NIGHTMARKET_LAMBDA")]
    lambda: Option<f64>,
    /// Shrinkage of the sub-Gaussian estimators, above 0 and up to 1; chosen by the data when absent.
    #[arg(long, env = "NIGHTMARKET_LAMBDA_SUB_GAUSSIAN")]
    lambda_sub_gaussian: Option<f64>,
    /// Column of the time of the decision: checks whether rewards are ripe.
    #[arg(long, env = "NIGHTMARKET_TIME")]
    time: Option<String>,
    /// Days after a decision in which its reward may still come.
    #[arg(long, default_value_t = 0, env = "NIGHTMARKET_WINDOW_DAYS")]
    window_days: u32,
    /// The moment up to which rewards are known; the last decision when absent.
    #[arg(long, env = "NIGHTMARKET_AS_OF")]
    as_of: Option<String>,
    /// Replicates of the bootstrap behind intervals.
    #[arg(long, default_value_t = 1000, env = "NIGHTMARKET_BOOTSTRAP")]
    bootstrap: usize,
    /// Of the bootstrap.
    #[arg(long, default_value_t = 0, env = "NIGHTMARKET_SEED")]
    seed: u64,
}

#[derive(Debug, Args)]
pub struct Metrics {
    #[command(flatten)]
    source: Source,
    /// Column of the label: 0 and 1, or true and false.
    #[arg(long, env = "NIGHTMARKET_LABEL")]
    label: String,
    /// Column of a score; several are compared.
    #[arg(long, required = true, env = "NIGHTMARKET_SCORE", value_delimiter = ';')]
    score: Vec<String>,
    /// Column of the user or query: for GAUC, and for intervals that know rows of one group are alike.
    #[arg(long, env = "NIGHTMARKET_GROUP")]
    group: Option<String>,
    /// Columns by whose values calibration is shown: segment, ad, campaign.
    #[arg(long, env = "NIGHTMARKET_BY", value_delimiter = ';')]
    by: Vec<String>,
    /// Scores at which the isotonic fit is shown.
    #[arg(long, env = "NIGHTMARKET_ISOTONIC_AT", value_delimiter = ',', default_value = "0.01,0.05,0.1,0.2,0.3,0.5,0.7")]
    isotonic_at: Vec<f64>,
    /// Share of the negatives that training kept: scores are corrected for it first.
    #[arg(long, env = "NIGHTMARKET_NEGATIVES_KEPT")]
    negatives_kept: Option<f64>,
    /// Replicates of the bootstrap behind intervals.
    #[arg(long, env = "NIGHTMARKET_BOOTSTRAP", default_value_t = 500)]
    bootstrap: usize,
    /// Of the bootstrap.
    #[arg(long, env = "NIGHTMARKET_SEED", default_value_t = 0)]
    seed: u64,
}

pub async fn run(command: Evaluate, output: Output) -> Result<()> {
    match command {
        Evaluate::Ab(ab) => {
            let experiment = ab.experiment()?;
            let context = ab.source.session()?;
            let rows = table::open(&context, &ab.source.table).await?;
            let results = experiment::run(&context, &rows, &experiment).await?;
            print(output, &results, || results.to_string())?;
            checks::refuse(&results.checks)
        }
        Evaluate::Ope(ope) => {
            let context = ope.source.session()?;
            let rows = table::open(&context, &ope.source.table).await?;
            let policy = match &ope.target_policy {
                Some(policy) => Some(table::open(&context, policy).await?),
                None => None,
            };
            let (decisions, mut found) = decisions::read(&rows, policy.as_ref(), &ope.names()).await?;
            if let Some(time) = &ope.time {
                found.extend(experiment::times(&rows, time, ope.window_days, ope.as_of.as_deref()).await?);
            }
            let options = policy_value::Options {
                lambda: ope.lambda,
                lambda_sub_gaussian: ope.lambda_sub_gaussian,
                replicates: ope.bootstrap,
                seed: ope.seed,
            };
            let results = policy_value::evaluate(&decisions, found, &options)?;
            print(output, &results, || results.to_string())?;
            checks::refuse(&results.checks)
        }
        Evaluate::Metrics(metrics) => {
            let context = metrics.source.session()?;
            let rows = table::open(&context, &metrics.source.table).await?;
            let results = scores::run(&rows, &metrics.wanted()).await?;
            print(output, &results, || results.to_string())?;
            checks::refuse(&results.checks)
        }
    }
}

impl Ope {
    fn names(&self) -> Names {
        Names {
            action: self.action.clone(),
            reward: self.reward.clone(),
            propensity: self.propensity.clone(),
            target: self.target.clone(),
            qhat: self.qhat.clone(),
            user: self.user.clone(),
            features: self.features.clone(),
            embedding: self.embedding.clone(),
        }
    }
}

impl Metrics {
    fn wanted(&self) -> Scored {
        Scored {
            label: self.label.clone(),
            scores: self.score.clone(),
            group: self.group.clone(),
            by: self.by.clone(),
            isotonic_at: self.isotonic_at.clone(),
            negatives_kept: self.negatives_kept,
            replicates: self.bootstrap,
            seed: self.seed,
        }
    }
}

impl Ab {
    fn experiment(&self) -> Result<Experiment> {
        let mut experiment = match &self.spec {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
                parse_toml::<Experiment>(&text, &path.display().to_string())?
            }
            None => Experiment::default(),
        };
        let set = |of: &mut Option<String>, flag: &Option<String>| {
            if flag.is_some() {
                of.clone_from(flag);
            }
        };
        set(&mut experiment.unit, &self.unit);
        if self.one_row_per_unit {
            experiment.unit = None;
        }
        set(&mut experiment.by, &self.by);
        set(&mut experiment.time, &self.time);
        set(&mut experiment.as_of, &self.as_of);
        experiment.arm = self.arm.clone().unwrap_or(experiment.arm);
        experiment.control = self.control.clone().unwrap_or(experiment.control);
        experiment.window_days = self.window_days.unwrap_or(experiment.window_days);
        experiment.bootstrap = self.bootstrap.unwrap_or(experiment.bootstrap);
        experiment.seed = self.seed.unwrap_or(experiment.seed);
        for (texts, proportion) in [(&self.metric, false), (&self.proportion, true)] {
            for text in texts {
                let (name, value) = named(text)?;
                experiment.metric.insert(name, MetricSpec { value, proportion, ..MetricSpec::default() });
            }
        }
        for text in &self.guardrail {
            let (metric, margin) = text
                .rsplit_once(':')
                .ok_or_else(|| Error::usage(format_args!("guardrail {text:?} has no margin")).action("write it as latency=column:2%"))?;
            let (name, value) = named(metric)?;
            experiment.guardrail.insert(name, MetricSpec { value, margin: Some(margin.parse()?), ..MetricSpec::default() });
        }
        for text in &self.cuped {
            let (name, before) = named(text)?;
            spec_of(&mut experiment, &name)?.cuped = Some(before);
        }
        for text in &self.expect {
            let (name, effect) = named(text)?;
            spec_of(&mut experiment, &name)?.expect = Some(effect.parse()?);
        }
        for text in &self.share {
            let (arm, share) = named(text)?;
            let share = share.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
            let share = share.ok_or_else(|| Error::usage(format_args!("{text} is no share")).action("write it as arm=0.5"))?;
            experiment.share.insert(arm, share);
        }
        Ok(experiment)
    }
}

/// The metric or guardrail that another flag speaks of.
fn spec_of<'a>(experiment: &'a mut Experiment, name: &str) -> Result<&'a mut MetricSpec> {
    let Experiment { metric, guardrail, .. } = experiment;
    let known = metric.keys().chain(guardrail.keys()).cloned().collect::<Vec<_>>().join(", ");
    metric
        .get_mut(name)
        .or_else(|| guardrail.get_mut(name))
        .ok_or_else(|| Error::usage(format_args!("no metric {name}; there are {known}")))
}
