//! The response model: P(click) of a user and an ad, and P(conversion) of a click.
//!
//! Trained on logged impressions; the position is an input of training only. Candidates are scored at the reference position, the
//! top of the page, so that an ad is not called bad for where it was shown.

use super::artifact::{Artifact, broken, round_to_bfloat16, stored_bytes};
use super::checkpoint::Checkpoints;
use super::features::{self, Encoded, Encoder, FeatureMap};
use super::logistic::{self, Dense};
use super::network::{Architecture, Spec, TABLE, Weights};
use super::streamed::{self, Streamed, Survey};
use super::training::{self, Earlier, EpochFacts, Monitor, Precision, RateSchedule, Schedule, Source, Start, Stream, Targets};
use super::{Metrics, ModelSettings, Storage, calibrator, device_name, logit, moved_to, rounded, sigmoid, smoothed_rate};
use crate::error::{Error, Kind, Result};
use crate::statistics::calibration::Calibrator;
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

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
    /// None: the network started from nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    pub network: Fit,
    pub baseline: Fit,
    /// None: conversions count as they have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_conversions: Option<LateConversions>,
    /// What was not done and why.
    pub notes: Vec<String>,
}

/// Conversions of the validation rows' clicks, to the second of which P(conversion) was raised.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct LateConversions {
    pub arrived: usize,
    /// What they will be in the end.
    pub expected: f64,
}

/// What rounding the embeddings saved and cost: the calibrated fit on the validation rows, after minus before.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Compression {
    /// Of the network's weights.
    pub bytes: usize,
    pub bytes_before: usize,
    pub auc_change: Option<f64>,
    pub logloss_change: Option<f64>,
}

/// Rows of the embedding table that went on from an earlier night's, and those that are new.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct WarmStart {
    pub kept_rows: usize,
    pub new_rows: usize,
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
    train_from(None, None, settings, train, valid, seed)
}

/// As [`train`], with the network going on from the weights of an earlier one where both read the same columns, and from the
/// checkpoint of its own training where that was interrupted.
///
/// # Errors
/// As [`train`].
pub fn train_from(
    earlier: Option<&Response>,
    checkpoints: Option<&Checkpoints>,
    settings: &ModelSettings,
    train: &RecordBatch,
    valid: &RecordBatch,
    seed: u64,
) -> Result<ResponseModels> {
    let targets = targets(train, "training")?;
    let valid_targets = self::targets(valid, "validation")?;
    let examples = Examples::new(settings, (train, targets), (valid, valid_targets), &RESERVED)?;
    let baseline = examples.baseline()?;
    let Learned { network, epochs, warm_start, compression, mut notes } = match examples.network_from(earlier, checkpoints, seed) {
        // A night without a network is better than no night: the gate sees that it is no better than the baseline.
        Err(error) if error.kind == Kind::Contract => {
            tracing::warn!(%error, "the network did not train: the baseline stands in for it");
            Learned {
                network: baseline.clone(),
                epochs: Vec::new(),
                warm_start: None,
                compression: None,
                notes: vec![format!("{error}: the baseline stands in for the network")],
            }
        }
        learned => learned?,
    };
    let Examples { map, targets, valid_targets, .. } = &examples;
    notes.splice(0..0, examples.notes());
    let facts = ResponseFacts {
        architecture: settings.architecture,
        device: device_name(&settings.device),
        threads: settings.threads,
        seed,
        train: row_facts(targets),
        valid: row_facts(valid_targets),
        features: map.columns.iter().map(|column| column.name.clone()).collect(),
        vocabularies: map.spaces.iter().map(|(name, space)| (name.clone(), space.tokens.len())).collect(),
        dropped: map.dropped.clone(),
        parameters: network.parameters(),
        chosen_epoch: epochs.iter().rev().find(|epoch| epoch.kept).map(|epoch| epoch.epoch),
        epochs,
        warm_start,
        compression,
        network: network.at_rest.fit.clone(),
        baseline: baseline.at_rest.fit.clone(),
        late_conversions: None,
        notes,
    };
    Ok(ResponseModels { network, baseline, facts })
}

impl ResponseModels {
    /// Raises P(conversion) of both models to what will have arrived in the end: on the validation rows each conversion counts one
    /// over the probability that it has arrived by now, as `arrived` tells of a row.
    pub fn expect_late_conversions(&mut self, valid: &RecordBatch, arrived: impl Fn(usize) -> f64) -> Result<()> {
        let Some((rows, converted)) = of_clicks(&targets(valid, "validation")?) else { return Ok(()) };
        // Where hardly any could have arrived one that did would count without bound.
        let weights = rows.iter().zip(&converted).map(|(row, converted)| if *converted { 1.0 / arrived(*row).max(0.01) } else { 0.0 });
        let late = LateConversions { arrived: converted.iter().filter(|flag| **flag).count(), expected: rounded(weights.sum()) };
        // With none or all converted there is nothing to move.
        if late.arrived == 0 || late.expected >= converted.len() as f64 {
            return Ok(());
        }
        let known: HashSet<usize> = rows.into_iter().collect();
        let clicked = filter_record_batch(valid, &(0..valid.num_rows()).map(|row| Some(known.contains(&row))).collect())?;
        for model in [&mut self.network, &mut self.baseline] {
            if let (_, Some(logits)) = model.logits(&clicked, None)?
                && let Some(calibrator) = &mut model.at_rest.fit.conversion
            {
                *calibrator = moved_to(calibrator, &logits, late.expected);
            }
        }
        self.facts.network = self.network.at_rest.fit.clone();
        self.facts.baseline = self.baseline.at_rest.fit.clone();
        self.facts.late_conversions = Some(late);
        Ok(())
    }
}

/// Encoded training and validation rows, from which any number of models can be trained.
pub struct Examples {
    settings: ModelSettings,
    pub map: FeatureMap,
    rows: Encoded,
    targets: Targets,
    valid_rows: Encoded,
    valid_targets: Targets,
    dense: Dense,
    /// What the training rows get in the dense view in place of what their own labels taught.
    out_of_fold: Vec<f32>,
    /// Where the network's training rows come from and how many they are, where `rows` are but a sample of them.
    streamed: Option<(Streamed, usize)>,
}

/// A network and how its training went.
pub struct Learned {
    pub network: Response,
    pub epochs: Vec<EpochFacts>,
    pub warm_start: Option<WarmStart>,
    pub compression: Option<Compression>,
    pub notes: Vec<String>,
}

impl Examples {
    /// Learns the feature map from the training rows and encodes both tables. `reserved` columns are no inputs.
    ///
    /// # Errors
    /// As [`train`].
    pub fn new(
        settings: &ModelSettings,
        (train, targets): (&RecordBatch, Targets),
        (valid, valid_targets): (&RecordBatch, Targets),
        reserved: &[&str],
    ) -> Result<Self> {
        settings.check()?;
        settings.features.check_names(&train.schema())?;
        let map = features::fit(&[features::Part { table: train, rows: None }], &settings.features, reserved, |_| false)?;
        Self::encoded(settings, map, (train, targets), (valid, valid_targets), None)
    }

    /// Of training rows that stay where they are: `survey` has seen all of them, `streamed` hands them out again in every epoch. The
    /// baseline learns from the survey's sample.
    ///
    /// # Errors
    /// As [`train`], and `Usage` for what needs the rows in memory.
    pub fn streamed(settings: &ModelSettings, survey: Survey, streamed: Streamed, valid: (&RecordBatch, Targets)) -> Result<Self> {
        settings.check()?;
        if settings.architecture == Architecture::Article {
            return Err(streamed::refused("architecture = \"article\""));
        }
        let rows = survey.rows();
        let (map, sample, targets) = survey.finish()?;
        Self::encoded(settings, map, (&sample, targets), valid, Some((streamed, rows)))
    }

    fn encoded(
        settings: &ModelSettings,
        map: FeatureMap,
        (train, targets): (&RecordBatch, Targets),
        (valid, valid_targets): (&RecordBatch, Targets),
        streamed: Option<(Streamed, usize)>,
    ) -> Result<Self> {
        let encoder = Encoder::new(&map);
        let (rows, valid_rows) = (encoder.encode(train, None)?, encoder.encode(valid, None)?);
        let (dense, out_of_fold) = Dense::fit(&map, &rows, &targets.positive);
        Ok(Self { settings: settings.clone(), rows, targets, valid_rows, valid_targets, dense, out_of_fold, map, streamed })
    }

    /// Training rows.
    pub fn rows(&self) -> usize {
        self.streamed.as_ref().map_or(self.rows.rows, |(_, rows)| *rows)
    }

    /// Training rows in memory: all, or the sample of those that are streamed.
    pub fn resident_rows(&self) -> usize {
        self.rows.rows
    }

    /// Another strength of L2 for the networks to come.
    pub fn set_embedding_l2(&mut self, embedding_l2: f64) {
        self.settings.embedding_l2 = embedding_l2;
    }

    fn clicks(&self) -> usize {
        self.targets.positive.iter().filter(|click| **click).count()
    }

    /// The share of clicks that convert; none where conversions are not logged.
    fn conversion_rate(&self) -> Option<f32> {
        let (_, converted) = of_clicks(&self.targets)?;
        Some(smoothed_rate(converted.iter().filter(|flag| **flag).count(), converted.len()) as f32)
    }

    /// Why there is nothing to learn.
    fn constant(&self) -> Option<&'static str> {
        let clicks = self.clicks();
        if self.map.columns.is_empty() {
            return Some("no column varies");
        }
        (clicks == 0 || clicks == self.rows.rows).then_some("all training rows have the same outcome")
    }

    /// Whether the baseline has a regression of conversions, and how many it has to learn from.
    fn enough_conversions(&self) -> Option<(bool, usize, usize)> {
        let (_, converted) = of_clicks(&self.targets)?;
        let conversions = converted.iter().filter(|flag| **flag).count();
        let enough = conversions >= MIN_CONVERSIONS && converted.len() - conversions >= MIN_CONVERSIONS;
        Some((enough, conversions, converted.len()))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.targets.converted.is_none() {
            notes.push("no conversions are logged: only clicks are predicted".to_owned());
        }
        if let Some(why) = self.constant() {
            notes.push(format!("{why}: the network and the baseline are a constant"));
        } else if let Some((false, conversions, clicks)) = self.enough_conversions() {
            notes.push(format!("{conversions} conversions of {clicks} clicks: the baseline's conversion is a constant"));
        }
        notes
    }

    fn response(&self, core: Core, weights: Weights) -> Response {
        let conversion = self.targets.converted.as_ref().map(|_| Calibrator::Identity);
        let fit = Fit { metrics: Metrics::default(), click: Calibrator::Identity, conversion };
        let mut response = Response { at_rest: AtRest { map: self.map.clone(), core, fit, settings: self.settings.clone() }, weights };
        response.calibrate(&self.valid_rows, &self.valid_targets);
        response
    }

    fn constant_response(&self) -> Response {
        let click = smoothed_rate(self.clicks(), self.rows.rows) as f32;
        self.response(Core::Constant { click, conversion: self.conversion_rate() }, Weights::new())
    }

    /// The logistic regression, calibrated.
    pub fn baseline(&self) -> Result<Response> {
        if self.constant().is_some() {
            return Ok(self.constant_response());
        }
        let fit = |rows: Option<&[usize]>, labels: &[bool], valid: Option<&[usize]>, valid_labels: &[bool]| {
            let train = |rows: &[usize]| self.dense.rows(&self.rows, Some(&self.out_of_fold), rows);
            let valid = self.dense.rows(&self.valid_rows, None, valid.unwrap_or(&all(&self.valid_rows)));
            logistic::fit(train, rows.unwrap_or(&all(&self.rows)), labels, (&valid, valid_labels), &self.settings.baseline_l2)
        };
        let mut weights = Weights::from([("click".to_owned(), fit(None, &self.targets.positive, None, &self.valid_targets.positive)?)]);
        let mut constant = self.conversion_rate();
        if let (Some((true, ..)), Some((rows, converted))) = (self.enough_conversions(), of_clicks(&self.targets)) {
            let (valid_rows, valid_converted) = of_clicks(&self.valid_targets).unwrap_or_default();
            weights.insert("conversion".to_owned(), fit(Some(&rows), &converted, Some(&valid_rows), &valid_converted)?);
            constant = None;
        }
        Ok(self.response(Core::Logistic { dense: self.dense.clone(), conversion: constant }, weights))
    }

    /// The network that the settings describe, calibrated.
    pub fn network(&self, seed: u64) -> Result<Learned> {
        self.network_from(None, None, seed)
    }

    /// As [`Self::network`], going on from an earlier one's weights where these mean the same here, and from a checkpoint.
    pub fn network_from(&self, earlier: Option<&Response>, checkpoints: Option<&Checkpoints>, seed: u64) -> Result<Learned> {
        if let Some(why) = self.constant() {
            tracing::warn!("{why}: the network is a constant");
            let network = self.constant_response();
            return Ok(Learned { network, epochs: Vec::new(), warm_start: None, compression: None, notes: Vec::new() });
        }
        let settings = &self.settings;
        let heads = 1 + usize::from(self.targets.converted.is_some());
        let mut start = Start { checkpoints, ..Start::default() };
        let (core, trained) = match settings.architecture {
            Architecture::Article => {
                let spec = Spec::article(self.dense.width(), heads);
                let train = self.dense.rows(&self.rows, Some(&self.out_of_fold), &all(&self.rows));
                let valid = self.dense.rows(&self.valid_rows, None, &all(&self.valid_rows));
                let (train, valid) = (Source::resident(&train, &self.targets), (&valid, &self.valid_targets));
                let trained = training::train(&spec, train, valid, &start, &article_schedule(settings), seed)?;
                (Core::Plain { dense: self.dense.clone(), spec }, trained)
            }
            embedded => {
                let spec = Spec::embedded(embedded, &self.map, settings.embedding_dim, &settings.hidden, heads, settings.attention);
                let streamed = self.streamed.as_ref().map(|(from, rows)| Stream { from, map: &self.map, rows: *rows });
                let train = Source { rows: &self.rows, targets: &self.targets, streamed };
                let valid = (&self.valid_rows, &self.valid_targets);
                let earlier = earlier.and_then(|earlier| earlier.goes_on_as(&spec, &self.map));
                start = Start { neutral_rows: self.map.neutral_rows(), earlier, checkpoints };
                let trained = training::train(&spec, train, valid, &start, &schedule(settings), seed)?;
                (Core::Deep { spec }, trained)
            }
        };
        let warm_start = start.earlier.map(|earlier| {
            let kept_rows = earlier.rows.len();
            WarmStart { kept_rows, new_rows: self.map.table_rows - kept_rows }
        });
        let mut notes = trained.notes;
        if earlier.is_some() && warm_start.is_none() {
            notes.push("no warm start: the earlier network has other columns or layers".to_owned());
        }
        let network = self.response(core, trained.weights);
        let (network, compression) = match settings.embeddings {
            Storage::Float32 => (network, None),
            Storage::Bfloat16 => self.compressed(network),
        };
        Ok(Learned { network, epochs: trained.epochs, warm_start, compression, notes })
    }

    /// The network with its embeddings in half the bytes, calibrated as it is then.
    fn compressed(&self, network: Response) -> (Response, Option<Compression>) {
        let mut weights = network.weights.clone();
        let Some(table) = weights.get_mut(TABLE) else { return (network, None) };
        round_to_bfloat16(table);
        let rounded = self.response(network.at_rest.core.clone(), weights);
        let (before, after) = (network.at_rest.fit.metrics, rounded.at_rest.fit.metrics);
        let change = |of: fn(&Metrics) -> Option<f64>| Some(super::rounded(of(&after)? - of(&before)?));
        let compression = Compression {
            bytes: stored_bytes(&rounded.weights),
            bytes_before: stored_bytes(&network.weights),
            auc_change: change(|metrics| metrics.auc),
            logloss_change: change(|metrics| metrics.logloss),
        };
        (rounded, Some(compression))
    }
}

fn all(rows: &Encoded) -> Vec<usize> {
    (0..rows.rows).collect()
}

fn schedule(settings: &ModelSettings) -> Schedule {
    Schedule {
        epochs: settings.epochs,
        patience: settings.patience,
        batch_size: settings.batch_size,
        min_steps: settings.min_steps,
        learning_rate: settings.learning_rate,
        rates: settings.schedule,
        rate_drop: settings.rate_drop,
        go_back: settings.go_back,
        monitor: settings.monitor,
        weight_decay: settings.weight_decay,
        embedding_l2: settings.embedding_l2,
        dropout: settings.dropout,
        ema: settings.ema,
        precision: settings.precision,
        device: settings.device.clone(),
        threads: settings.threads,
    }
}

fn article_schedule(settings: &ModelSettings) -> Schedule {
    Schedule {
        epochs: 50,
        patience: 50,
        batch_size: 32,
        min_steps: 64,
        learning_rate: 1e-3,
        rates: RateSchedule::Plateau,
        rate_drop: 1.0,
        go_back: false,
        monitor: Monitor::Logloss,
        weight_decay: 0.0,
        embedding_l2: 0.0,
        dropout: 0.5,
        ema: 0.0,
        precision: Precision::Float32,
        device: settings.device.clone(),
        threads: settings.threads,
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

    /// Its weights as the start of a network of that shape and map; none where they mean something else there.
    fn goes_on_as(&self, spec: &Spec, map: &FeatureMap) -> Option<Earlier<'_>> {
        match &self.at_rest.core {
            Core::Deep { spec: own } if own.has_layers_of(spec) => {
                Some(Earlier { weights: &self.weights, rows: map.kept_rows(&self.at_rest.map)? })
            }
            _ => None,
        }
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
            let settings = &self.at_rest.settings;
            let logits: Vec<f64> =
                training::predict(spec, &self.weights, rows, &settings.device, settings.threads).into_iter().map(f64::from).collect();
            let of = |head: usize| logits.iter().skip(head).step_by(spec.heads).copied().collect();
            (of(0), if spec.heads == 2 { of(1) } else { Vec::new() })
        };
        match &self.at_rest.core {
            Core::Constant { click, conversion } => (constant(Some(*click)), constant(*conversion)),
            Core::Deep { spec } => of_network(spec, rows),
            Core::Plain { dense, spec } => of_network(spec, &dense.rows(rows, None, &all(rows))),
            Core::Logistic { dense, conversion } => {
                let rows = dense.rows(rows, None, &all(rows));
                let conversions = self.weights.get("conversion").map(|weights| logistic::predict(weights, &rows));
                (logistic::predict(&self.weights["click"], &rows), conversions.unwrap_or_else(|| constant(*conversion)))
            }
        }
    }

    /// Fits the calibrators on rows that training did not see, where they were shown.
    fn calibrate(&mut self, valid: &Encoded, targets: &Targets) {
        let (click, conversion) = self.logits_of(valid);
        self.at_rest.fit.click = calibrator(&targets.positive, &click);
        if let Some((rows, converted)) = of_clicks(targets).filter(|_| self.at_rest.fit.conversion.is_some()) {
            let logits: Vec<f64> = rows.iter().map(|row| conversion[*row]).collect();
            self.at_rest.fit.conversion = Some(calibrator(&converted, &logits));
        }
        let scores: Vec<f64> = click.iter().map(|x| self.at_rest.fit.click.apply(sigmoid(*x))).collect();
        self.at_rest.fit.metrics = Metrics::of(&targets.positive, &scores);
    }

    /// How many numbers were learned.
    pub fn parameters(&self) -> usize {
        self.weights.values().map(|weight| weight.data.len()).sum()
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
