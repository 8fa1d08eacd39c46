//! Encoded examples -> a trained, calibrated model: the baseline, a network, as often as is asked.

use super::{AtRest, Compression, Core, Fit, MIN_CONVERSIONS, Response, WarmStart, all, of_clicks};
use crate::error::Result;
use crate::model::artifact::{round_to_bfloat16, stored_bytes};
use crate::model::checkpoint::Checkpoints;
use crate::model::features::{self, Encoded, Encoder, FeatureMap};
use crate::model::logistic::{self, Dense};
use crate::model::network::{Architecture, Spec, TABLE, Weights};
use crate::model::streamed::{self, Streamed, Survey};
use crate::model::training::{self, EpochFacts, Monitor, Precision, RateSchedule, Schedule, Source, Start, Stream, Targets};
use crate::model::{Metrics, ModelSettings, Storage, rounded, smoothed_rate};
use crate::statistics::calibration::Calibrator;
use arrow::array::RecordBatch;

/// Encoded training and validation rows, from which any number of models can be trained.
pub struct Examples {
    settings: ModelSettings,
    pub map: FeatureMap,
    rows: Encoded,
    pub(super) targets: Targets,
    valid_rows: Encoded,
    pub(super) valid_targets: Targets,
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

    pub(super) fn notes(&self) -> Vec<String> {
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
        let fit = Fit { metrics: Metrics::default(), click: Calibrator::Identity, campaign_shape: None, conversion };
        let mut response =
            Response { at_rest: AtRest { map: self.map.clone(), core, fit, campaigns: None, settings: self.settings.clone() }, weights };
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
        let halved = self.response(network.at_rest.core.clone(), weights);
        let (before, after) = (network.at_rest.fit.metrics, halved.at_rest.fit.metrics);
        let change = |of: fn(&Metrics) -> Option<f64>| Some(rounded(of(&after)? - of(&before)?));
        let compression = Compression {
            bytes: stored_bytes(&halved.weights),
            bytes_before: stored_bytes(&network.weights),
            auc_change: change(|metrics| metrics.auc),
            logloss_change: change(|metrics| metrics.logloss),
        };
        (halved, Some(compression))
    }
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
