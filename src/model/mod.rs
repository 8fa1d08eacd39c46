//! Examples -> models: who clicks and converts on what ([`response`]), and who is interested in what ([`interest`]).
//!
//! Both read plain Arrow tables, learn a [`features`] map from the training rows, train a network in libtorch on the CPU or the
//! GPU, stop at the best validation epoch, and calibrate on validation rows. The response network has a logistic regression
//! beside it, which it must beat to be used. A trained model is plain data and turns into an [`artifact`]; tensors live only
//! while training or scoring. The only module that names tch and linfa.

pub mod artifact;
mod campaigns;
mod checkpoint;
mod device;
mod embedding;
pub mod features;
pub mod interest;
mod logistic;
mod network;
pub mod response;
mod streamed;
mod table;
mod text;
mod training;

pub use artifact::Artifact;
pub use checkpoint::Checkpoints;
pub use device::{Probe, probe};
pub use embedding::Embeddings;
pub use features::{Settings as FeatureSettings, encoded_bytes};
pub use interest::{Interest, InterestExamples, InterestFacts};
pub use network::Architecture;
pub use response::{Compression, LateConversions, Response, ResponseFacts, ResponseModels, Scores};
pub use streamed::{Streamed, Survey, Take};
pub use text::TextEncoder;
pub use training::{EpochFacts, Monitor, Precision, RateSchedule, Targets};

use crate::error::{Error, Result};
use crate::statistics::calibration::Calibrator;
use crate::statistics::metrics;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    pub architecture: Architecture,
    /// At most so many passes over the training rows.
    pub epochs: usize,
    /// Stop after so many learning-rate drops in a row that did not help on the validation rows.
    pub patience: usize,
    /// What tells whether an epoch helped.
    pub monitor: Monitor,
    pub batch_size: usize,
    /// A small table still gets so many steps an epoch, of smaller batches.
    pub min_steps: usize,
    pub learning_rate: f64,
    pub schedule: RateSchedule,
    /// To this share the learning rate falls when an epoch did not help; `go_back`: and the best weights are taken up again.
    pub rate_drop: f64,
    pub go_back: bool,
    /// L2 on the weights of layers, and on embeddings: ids that few rows hold overfit first. Half of it times the squared weights of
    /// the whole table is added to the mean loss of a batch.
    pub weight_decay: f64,
    pub embedding_l2: f64,
    pub dropout: f64,
    /// Decay a step of a moving average of the weights, which is validated and kept in their place (0: none). 0.99 to 0.999 steadies a
    /// noisy loss; every step walks all weights once more.
    pub ema: f64,
    pub embedding_dim: usize,
    /// Widths of the hidden layers. FinalNet's second branch has one layer as wide as the first.
    pub hidden: Vec<usize>,
    /// Sequences are read as the candidate asks (DIN) instead of by their mean: sharper on long histories, several times slower.
    pub attention: bool,
    /// The night starts from the weights of the network that was trained with the model that serves: fewer epochs, and values that came
    /// rarely lately are not forgotten; but what an old night got wrong stays longer. New values start as ever.
    pub warm_start: bool,
    pub precision: Precision,
    pub embeddings: Storage,
    /// `auto` (a GPU where there is one), `cpu`, or `cuda:N`.
    pub device: String,
    /// Threads of libtorch. Sums are split among them, so another count gives other last bits. A second one gains about a quarter on
    /// an idle machine, but where other work wants the cores its spinning costs five times as much (OMP_WAIT_POLICY=passive helps).
    pub threads: usize,
    /// L2 of the logistic baseline, in units of one row's loss; that which validates best is kept.
    pub baseline_l2: Vec<f64>,
    pub features: FeatureSettings,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            architecture: Architecture::FinalNet,
            epochs: 8,
            patience: 1,
            monitor: Monitor::Logloss,
            batch_size: 512,
            min_steps: 64,
            learning_rate: 1e-3,
            schedule: RateSchedule::Plateau,
            rate_drop: 0.2,
            go_back: true,
            weight_decay: 1e-6,
            embedding_l2: 1e-4,
            dropout: 0.1,
            ema: 0.0,
            embedding_dim: 8,
            hidden: vec![64, 32],
            attention: false,
            warm_start: false,
            precision: Precision::Auto,
            embeddings: Storage::Float32,
            device: "auto".into(),
            threads: 1,
            baseline_l2: vec![1.0, 10.0, 100.0],
            features: FeatureSettings::default(),
        }
    }
}

impl ModelSettings {
    /// Refuses settings that no training can work with.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("min_steps", self.min_steps),
            ("embedding_dim", self.embedding_dim),
            ("threads", self.threads),
            ("the number of values of hidden", self.hidden.len()),
            ("the number of values of baseline_l2", self.baseline_l2.len()),
        ];
        let hidden = self.hidden.iter().map(|units| ("every value of hidden", *units));
        refuse("model", self.dropout, self.learning_rate, &sizes.into_iter().chain(hidden).collect::<Vec<_>>())?;
        if !(self.rate_drop > 0.0 && self.rate_drop <= 1.0) {
            return Err(Error::usage(format_args!("[model] rate_drop = {} must be above 0 and at most 1", self.rate_drop)));
        }
        if !(0.0..1.0).contains(&self.ema) {
            return Err(Error::usage(format_args!("[model] ema = {} must be at least 0 and below 1", self.ema)));
        }
        Ok(())
    }
}

/// How an artefact keeps its embedding table.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    Float32,
    /// Rounded to half the bytes; the facts tell what that costs.
    Bfloat16,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct InterestSettings {
    pub epochs: usize,
    pub patience: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub embedding_l2: f64,
    pub dropout: f64,
    pub embedding_dim: usize,
    pub hidden: Vec<usize>,
    /// `auto` (a GPU where there is one), `cpu`, or `cuda:N`.
    pub device: String,
    pub threads: usize,
    /// At most so many (user, category) training rows; beyond it users are sampled. Bounds memory and time.
    pub max_rows: usize,
    /// Random categories a user without any sign of interest in them, added to the candidates in training: they teach what no
    /// evidence means.
    pub sampled_categories: usize,
    pub features: FeatureSettings,
}

impl Default for InterestSettings {
    fn default() -> Self {
        Self {
            epochs: 8,
            patience: 1,
            batch_size: 512,
            learning_rate: 2e-3,
            weight_decay: 1e-6,
            embedding_l2: 1e-4,
            dropout: 0.1,
            embedding_dim: 8,
            hidden: vec![32, 16],
            device: "auto".into(),
            threads: 1,
            max_rows: 400_000,
            sampled_categories: 3,
            features: FeatureSettings::default(),
        }
    }
}

impl InterestSettings {
    /// Refuses settings that no training can work with.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("embedding_dim", self.embedding_dim),
            ("threads", self.threads),
            ("max_rows", self.max_rows),
        ];
        refuse("interest", self.dropout, self.learning_rate, &sizes)
    }
}

/// The device on which a model with this setting trains and scores here.
pub fn device_name(setting: &str) -> String {
    device::take(setting, 1).map_or_else(|_| setting.to_owned(), device::name)
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::internal(format_args!("libtorch: {error}"))
    }
}

/// Calibrated fit on the validation rows; none where they do not determine it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Metrics {
    pub logloss: Option<f64>,
    pub auc: Option<f64>,
    pub calibration_ratio: Option<f64>,
}

impl Metrics {
    fn of(labels: &[bool], scores: &[f64]) -> Self {
        Self {
            logloss: metrics::logloss(labels, scores).map(rounded),
            auc: metrics::auc(labels, scores).map(rounded),
            calibration_ratio: metrics::calibration_ratio(labels, scores).map(rounded),
        }
    }
}

/// Refuses settings that no training can work with.
fn refuse(section: &str, dropout: f64, learning_rate: f64, sizes: &[(&str, usize)]) -> Result<()> {
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(Error::usage(format_args!("[{section}] {name} must be at least 1")));
    }
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::usage(format_args!("[{section}] dropout = {dropout} must be at least 0 and below 1")));
    }
    if !(learning_rate > 0.0 && learning_rate.is_finite()) {
        return Err(Error::usage(format_args!("[{section}] learning_rate = {learning_rate} must be above 0")));
    }
    Ok(())
}

/// Fewer positives than this do not bear a slope: the scores are only moved to the rate.
const SLOPE_POSITIVES: usize = 30;

/// A calibrator of logits for rows that training did not see: Platt's line; with few positives a shift; with one class nothing.
fn calibrator(labels: &[bool], logits: &[f64]) -> Calibrator {
    let positives = labels.iter().filter(|label| **label).count();
    if positives.min(labels.len() - positives) == 0 {
        return Calibrator::Identity;
    }
    let scores: Vec<f64> = logits.iter().map(|x| sigmoid(*x)).collect();
    let fitted = Calibrator::platt(labels, &scores);
    match fitted {
        // A falling line is noise: it would turn the ranking around.
        Calibrator::Platt { slope, intercept } if positives >= SLOPE_POSITIVES && slope > 0.0 => {
            Calibrator::Platt { slope: rounded(slope), intercept: rounded(intercept) }
        }
        _ => Calibrator::Platt { slope: 1.0, intercept: rounded(shift(logits, positives as f64)) },
    }
}

/// A calibrator that is moved along the logits so that its probabilities of them sum to `total`.
fn moved_to(calibrator: &Calibrator, logits: &[f64], total: f64) -> Calibrator {
    let (slope, intercept) = match calibrator {
        Calibrator::Platt { slope, intercept } => (*slope, *intercept),
        _ => (1.0, 0.0),
    };
    let logits: Vec<f64> = logits.iter().map(|x| slope * x + intercept).collect();
    Calibrator::Platt { slope, intercept: rounded(intercept + shift(&logits, total)) }
}

/// What to add to every logit so that the probabilities sum to `total`, by bisection.
fn shift(logits: &[f64], total: f64) -> f64 {
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        let sum: f64 = logits.iter().map(|x| sigmoid(x + middle)).sum();
        if sum < total { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// Nine decimals: what survives the way through JSON bit by bit.
fn rounded(x: f64) -> f64 {
    (x * 1e9).round() / 1e9
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    (p / (1.0 - p)).ln()
}

/// The rate of `positives` in `rows` with one more row, half a positive: never 0 or 1.
fn smoothed_rate(positives: usize, rows: usize) -> f64 {
    (positives as f64 + 0.5) / (rows as f64 + 1.0)
}
