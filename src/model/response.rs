//! The response model: P(click) of a user and an ad, and P(conversion) of a click.
//!
//! Trained on logged impressions; the position is an input of training only. Candidates are scored at the reference position, the
//! top of the page, so that an ad is not called bad for where it was shown.

use super::artifact::{Artifact, broken};
use super::features::{self, Encoded, Encoder, FeatureMap};
use super::logistic::{self, Dense};
use super::network::{self, EpochFacts, Schedule, Spec, Targets, Weights};
use super::{Architecture, Metrics, ModelSettings, calibrator, logit, sigmoid, smoothed_rate};
use crate::error::{Error, Result};
use crate::statistics::calibration::Calibrator;
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A trained model, plain data: it can be shared among threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    at_rest: AtRest,
    weights: Weights,
}

/// All of a model but its weights.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
struct AtRest {
    map: FeatureMap,
    core: Core,
    fit: Fit,
    settings: ModelSettings,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Core {
    /// Training rows of one class only: its smoothed share.
    Constant {
        click: f32,
        conversion: Option<f32>,
    },
    /// Weights `click`; of conversions, weights `conversion` or, with too few, a constant probability.
    Logistic {
        dense: Dense,
        conversion: Option<f32>,
    },
    Deep {
        spec: Spec,
    },
    /// A network on the baseline's inputs.
    Plain {
        dense: Dense,
        spec: Spec,
    },
}

#[derive(Clone, Debug)]
pub struct ResponseModels {
    pub network: Response,
    pub baseline: Response,
    pub facts: ResponseFacts,
}

/// Calibrated probabilities, one a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub p_click: Vec<f64>,
    /// Of a click; none where no conversions were logged.
    pub p_conversion: Option<Vec<f64>>,
}

/// What training found. Metrics are those of the validation rows, on which early stopping and the calibrators were fitted too: the
/// gate's are the ones to believe.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ResponseFacts {
    pub architecture: Architecture,
    pub device: String,
    pub threads: usize,
    pub seed: u64,
    pub train: RowFacts,
    pub valid: RowFacts,
    /// Feature columns in use; (space, values) of each vocabulary; column -> why it is not used.
    pub features: Vec<String>,
    pub vocabularies: BTreeMap<String, usize>,
    pub dropped: BTreeMap<String, String>,
    /// Weights of the network.
    pub parameters: usize,
    pub epochs: Vec<EpochFacts>,
    /// The epoch whose weights were kept.
    pub chosen_epoch: Option<usize>,
    pub network: Fit,
    pub baseline: Fit,
    /// What was not done and why.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct RowFacts {
    pub rows: usize,
    pub clicks: usize,
    /// Of clicks; none where conversions are not logged.
    pub conversions: Option<usize>,
}

/// A model's calibrators and how well it fits the validation rows with them.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Fit {
    #[serde(flatten)]
    pub metrics: Metrics,
    pub click: Calibrator,
    /// None where no conversions are logged.
    pub conversion: Option<Calibrator>,
}

const RESERVED: [&str; 6] = ["impression_id", "occurred_at", "clicked", "converted", "revenue", "segment_id"];
/// A logistic regression of conversions needs so many, and so many clicks without.
const MIN_CONVERSIONS: usize = 50;
/// Rows scored at a time: bounds memory.
const CHUNK: usize = 65_536;
const KIND: &str = "response";

/// Trains the network and the baseline on `train`, stops and calibrates on `valid`.
///
/// # Errors
/// `Contract` for an empty split or a column of the wrong kind, `Usage` for settings that cannot be.
pub fn train(settings: &ModelSettings, train: &RecordBatch, valid: &RecordBatch, seed: u64) -> Result<ResponseModels> {
    let sizes = [
        ("epochs", settings.epochs),
        ("batch_size", settings.batch_size),
        ("embedding_dim", settings.embedding_dim),
        ("threads", settings.threads),
    ];
    super::refuse("model", settings.dropout, settings.learning_rate, &sizes)?;
    let targets = targets(train, "training")?;
    let valid_targets = self::targets(valid, "validation")?;
    let map = features::fit(&[features::Part { table: train, rows: None }], &settings.features, &RESERVED, |_| false)?;
    let unfitted = Fit {
        metrics: Metrics::default(),
        click: Calibrator::Identity,
        conversion: targets.converted.as_ref().map(|_| Calibrator::Identity),
    };
    let mut facts = ResponseFacts {
        architecture: settings.architecture,
        device: network::device_name(),
        threads: settings.threads,
        seed,
        train: row_facts(&targets),
        valid: row_facts(&valid_targets),
        features: map.columns.iter().map(|column| column.name.clone()).collect(),
        vocabularies: map.spaces.iter().map(|(name, space)| (name.clone(), space.tokens.len())).collect(),
        dropped: map.dropped.clone(),
        parameters: 0,
        epochs: Vec::new(),
        chosen_epoch: None,
        network: unfitted.clone(),
        baseline: unfitted.clone(),
        notes: Vec::new(),
    };
    let clicks = facts.train.clicks;
    let conversion = facts.train.conversions.map(|conversions| smoothed_rate(conversions, clicks) as f32);
    if facts.train.conversions.is_none() {
        facts.notes.push("no conversions are logged: only clicks are predicted".into());
    }
    let response =
        |core, weights| Response { at_rest: AtRest { map: map.clone(), core, fit: unfitted.clone(), settings: settings.clone() }, weights };
    if clicks == 0 || clicks == train.num_rows() || map.columns.is_empty() {
        let why = if map.columns.is_empty() { "no column varies" } else { "all training rows have the same outcome" };
        facts.notes.push(format!("{why}: the network and the baseline are a constant"));
        let click = smoothed_rate(clicks, train.num_rows()) as f32;
        let mut network = response(Core::Constant { click, conversion }, Weights::new());
        facts.network = network.calibrate(valid, &valid_targets)?;
        facts.baseline = facts.network.clone();
        return Ok(ResponseModels { baseline: network.clone(), network, facts });
    }
    let encoder = Encoder::new(&map);
    let rows = encoder.encode(train, None)?;
    let valid_rows = encoder.encode(valid, None)?;
    let (dense, out_of_fold) = Dense::fit(&map, &rows, &targets.positive);
    let dense_rows = dense.rows(&rows, Some(&out_of_fold));

    let mut weights = Weights::from([("click".to_owned(), logistic::fit(&dense_rows, &targets.positive, settings.baseline_l2)?)]);
    let mut constant = conversion;
    if let Some((clicks, converted)) = of_clicks(&targets) {
        let conversions = converted.iter().filter(|flag| **flag).count();
        if conversions >= MIN_CONVERSIONS && converted.len() - conversions >= MIN_CONVERSIONS {
            weights.insert("conversion".to_owned(), logistic::fit(&dense_rows.select(&clicks), &converted, settings.baseline_l2)?);
            constant = None;
        } else {
            facts.notes.push(format!("{conversions} conversions of {} clicks: the baseline's conversion is a constant", converted.len()));
        }
    }
    let mut baseline = response(Core::Logistic { dense: dense.clone(), conversion: constant }, weights);
    facts.baseline = baseline.calibrate(valid, &valid_targets)?;

    let heads = 1 + usize::from(conversion.is_some());
    let (core, (weights, epochs)) = match settings.architecture {
        Architecture::Deep => {
            drop(dense_rows);
            let spec = Spec::deep(&map, settings.embedding_dim, &settings.hidden, heads, Vec::new());
            let (train, valid) = ((&rows, &targets), (&valid_rows, &valid_targets));
            let trained = network::train(&spec, train, valid, &map.neutral_rows(), &schedule(settings), seed)?;
            (Core::Deep { spec }, trained)
        }
        Architecture::Article => {
            let spec = Spec::article(dense.width(), heads);
            let (train, valid) = ((&dense_rows, &targets), (&dense.rows(&valid_rows, None), &valid_targets));
            let trained = network::train(&spec, train, valid, &[], &article_schedule(settings.threads), seed)?;
            (Core::Plain { dense, spec }, trained)
        }
    };
    drop((rows, valid_rows));
    facts.chosen_epoch = epochs.iter().rev().find(|epoch| epoch.kept).map(|epoch| epoch.epoch);
    facts.epochs = epochs;
    facts.parameters = weights.values().map(|weight| weight.data.len()).sum();
    let mut network = response(core, weights);
    facts.network = network.calibrate(valid, &valid_targets)?;
    Ok(ResponseModels { network, baseline, facts })
}

fn schedule(settings: &ModelSettings) -> Schedule {
    Schedule {
        epochs: settings.epochs,
        patience: settings.patience,
        batch_size: settings.batch_size,
        learning_rate: settings.learning_rate,
        weight_decay: settings.weight_decay,
        embedding_l2: settings.embedding_l2,
        dropout: settings.dropout,
        threads: settings.threads,
        drop_rate: true,
    }
}

fn article_schedule(threads: usize) -> Schedule {
    Schedule {
        epochs: 50,
        patience: 50,
        batch_size: 32,
        learning_rate: 1e-3,
        weight_decay: 0.0,
        embedding_l2: 0.0,
        dropout: 0.5,
        threads,
        drop_rate: false,
    }
}

fn targets(table: &RecordBatch, split: &str) -> Result<Targets> {
    if table.num_rows() == 0 {
        return Err(Error::contract(format_args!("the {split} split has no impressions"))
            .action("check the impressions of those days, or change [dataset] train_days and label_window_days"));
    }
    let clicked = column::<BooleanArray>(table, "clicked")?;
    if clicked.null_count() > 0 {
        return Err(Error::contract(format_args!("column clicked is NULL in {} rows of the {split} split", clicked.null_count())));
    }
    let converted = optional_column::<BooleanArray>(table, "converted")?.filter(|converted| converted.null_count() < converted.len());
    Ok(Targets { positive: clicked.values().iter().collect(), converted: converted.map(|converted| converted.iter().collect()) })
}

fn row_facts(targets: &Targets) -> RowFacts {
    RowFacts {
        rows: targets.positive.len(),
        clicks: targets.positive.iter().filter(|click| **click).count(),
        conversions: of_clicks(targets).map(|(_, converted)| converted.iter().filter(|flag| **flag).count()),
    }
}

/// The clicked rows whose conversion is known, and whether they converted.
fn of_clicks(targets: &Targets) -> Option<(Vec<usize>, Vec<bool>)> {
    let converted = targets.converted.as_ref()?;
    let known = (0..converted.len()).filter(|row| targets.positive[*row]).filter_map(|row| Some((row, converted[row]?)));
    Some(known.unzip())
}

impl Response {
    /// The columns that it reads.
    pub fn features(&self) -> impl Iterator<Item = &str> {
        self.at_rest.map.columns.iter().map(|column| column.name.as_str())
    }

    /// Scores candidates at the reference position, whatever position they have.
    pub fn score(&self, table: &RecordBatch) -> Result<Scores> {
        self.score_at(table, self.at_rest.map.reference_position())
    }

    /// Scores past impressions where they were shown.
    pub fn score_logged(&self, table: &RecordBatch) -> Result<Scores> {
        self.score_at(table, None)
    }

    fn score_at(&self, table: &RecordBatch, position: Option<i32>) -> Result<Scores> {
        let (click, conversion) = self.logits(table, position)?;
        let calibrated = |logits: Vec<f64>, calibrator: &Calibrator| logits.into_iter().map(|x| calibrator.apply(sigmoid(x))).collect();
        let p_conversion = conversion.zip(self.at_rest.fit.conversion.as_ref()).map(|(logits, calibrator)| calibrated(logits, calibrator));
        Ok(Scores { p_click: calibrated(click, &self.at_rest.fit.click), p_conversion })
    }

    /// Logits before calibration.
    fn logits(&self, table: &RecordBatch, position: Option<i32>) -> Result<(Vec<f64>, Option<Vec<f64>>)> {
        let encoder = Encoder::new(&self.at_rest.map);
        let mut click = Vec::with_capacity(table.num_rows());
        let mut conversion = self.at_rest.fit.conversion.is_some().then(Vec::new);
        for start in (0..table.num_rows()).step_by(CHUNK) {
            let rows = encoder.encode(&table.slice(start, CHUNK.min(table.num_rows() - start)), position)?;
            let (one, two) = self.logits_of(&rows);
            click.extend(one);
            conversion.iter_mut().for_each(|all| all.extend(&two));
        }
        Ok((click, conversion))
    }

    /// The second is empty without conversions.
    fn logits_of(&self, rows: &Encoded) -> (Vec<f64>, Vec<f64>) {
        let constant = |p: Option<f32>| p.map_or(Vec::new(), |p| vec![logit(f64::from(p)); rows.rows]);
        let of_network = |spec: &Spec, rows: &Encoded| {
            let heads = 1 + usize::from(self.at_rest.fit.conversion.is_some());
            let logits: Vec<f64> =
                network::predict(spec, &self.weights, rows, self.at_rest.settings.threads).into_iter().map(f64::from).collect();
            let of = |head: usize| logits.iter().skip(head).step_by(heads).copied().collect();
            (of(0), if heads == 2 { of(1) } else { Vec::new() })
        };
        match &self.at_rest.core {
            Core::Constant { click, conversion } => (constant(Some(*click)), constant(*conversion)),
            Core::Deep { spec } => of_network(spec, rows),
            Core::Plain { dense, spec } => of_network(spec, &dense.rows(rows, None)),
            Core::Logistic { dense, conversion } => {
                let rows = dense.rows(rows, None);
                let conversions = self.weights.get("conversion").map(|weights| logistic::predict(weights, &rows));
                (logistic::predict(&self.weights["click"], &rows), conversions.unwrap_or_else(|| constant(*conversion)))
            }
        }
    }

    /// Fits the calibrators on rows that training did not see, where they were shown.
    fn calibrate(&mut self, valid: &RecordBatch, targets: &Targets) -> Result<Fit> {
        let (click, conversion) = self.logits(valid, None)?;
        self.at_rest.fit.click = calibrator(&targets.positive, &click);
        if let (Some(logits), Some((rows, converted))) = (conversion, of_clicks(targets)) {
            let logits: Vec<f64> = rows.iter().map(|row| logits[*row]).collect();
            self.at_rest.fit.conversion = Some(calibrator(&converted, &logits));
        }
        let scores: Vec<f64> = click.iter().map(|x| self.at_rest.fit.click.apply(sigmoid(*x))).collect();
        self.at_rest.fit.metrics = Metrics::of(&targets.positive, &scores);
        Ok(self.at_rest.fit.clone())
    }

    pub fn to_artifact(&self) -> Result<Artifact> {
        Ok(Artifact { kind: KIND.into(), model: serde_json::to_string_pretty(&self.at_rest)?, weights: self.weights.clone() })
    }

    pub fn from_artifact(artifact: &Artifact) -> Result<Self> {
        let at_rest: AtRest = artifact.described(KIND)?;
        let size = |name: &str| artifact.weights.get(name).map_or(0, |weight| weight.data.len());
        let fits = match &at_rest.core {
            Core::Constant { .. } => true,
            Core::Logistic { dense, conversion } => {
                let wanted = dense.width() + 1;
                size("click") == wanted && (at_rest.fit.conversion.is_none() || conversion.is_some() || size("conversion") == wanted)
            }
            Core::Deep { spec } | Core::Plain { spec, .. } => spec.fits(&artifact.weights),
        };
        if !fits {
            return Err(broken("its weights are not of the shape that its description says"));
        }
        Ok(Self { at_rest, weights: artifact.weights.clone() })
    }
}
