//! The response model: P(click) of a user and an ad, and P(conversion) of a click.
//!
//! Trained on logged impressions; the position is an input of training only. Candidates are scored at the reference position, the
//! top of the page, so that an ad is not called bad for where it was shown.

mod examples;

use super::artifact::{Artifact, broken};
use super::campaigns::CampaignFactors;
use super::checkpoint::Checkpoints;
use super::features::{Encoded, Encoder, FeatureMap};
use super::logistic::{self, Dense};
use super::network::{Architecture, Spec, Weights};
use super::training::{self, Earlier, EpochFacts, Targets};
use super::{Metrics, ModelSettings, calibrator, device_name, logit, moved_to, rounded, sigmoid};
use crate::error::{Error, Kind, Result};
use crate::statistics::calibration::Calibrator;
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
pub use examples::{Examples, Learned};
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
    /// On top of the calibrator of clicks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    campaigns: Option<CampaignFactors>,
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
    /// On top of it campaigns are corrected: the clicks with which a campaign's own ratio counts half. None where campaigns are as
    /// expected, or not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign_shape: Option<f64>,
    /// None where no conversions are logged.
    pub conversion: Option<Calibrator>,
}

impl AtRest {
    /// Calibrated probabilities of encoded rows with these logits.
    fn p_click(&self, rows: &Encoded, logits: &[f64]) -> Vec<f64> {
        let calibrated = logits.iter().map(|x| self.fit.click.apply(sigmoid(*x)));
        match &self.campaigns {
            None => calibrated.collect(),
            Some(campaigns) => calibrated.enumerate().map(|(row, p)| campaigns.apply(rows, row, p)).collect(),
        }
    }
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
    settings.features.check_names(&train.schema())?;
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
            let encoder = Encoder::new(&model.at_rest.map);
            let mut logits = Vec::with_capacity(clicked.num_rows());
            for start in (0..clicked.num_rows()).step_by(CHUNK) {
                let rows = encoder.encode(&clicked.slice(start, CHUNK.min(clicked.num_rows() - start)), None)?;
                logits.extend(model.logits_of(&rows).1);
            }
            if let Some(calibrator) = &mut model.at_rest.fit.conversion {
                *calibrator = moved_to(calibrator, &logits, late.expected);
            }
        }
        self.facts.network = self.network.at_rest.fit.clone();
        self.facts.baseline = self.baseline.at_rest.fit.clone();
        self.facts.late_conversions = Some(late);
        Ok(())
    }
}

fn all(rows: &Encoded) -> Vec<usize> {
    (0..rows.rows).collect()
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

    /// Past impressions as it reads them, where they were shown.
    pub fn encode_logged(&self, table: &RecordBatch) -> Result<Encoded> {
        Encoder::new(&self.at_rest.map).encode(table, None)
    }

    /// P(click) of rows that it encoded, and of the same rows with the values of one column handed round.
    pub fn p_click(&self, rows: &Encoded) -> Vec<f64> {
        self.at_rest.p_click(rows, &self.logits_of(rows).0)
    }

    pub fn p_click_with(&self, rows: &Encoded, column: &str, order: &[usize]) -> Vec<f64> {
        self.p_click(&self.at_rest.map.handed_round(rows, column, order))
    }

    fn score_at(&self, table: &RecordBatch, position: Option<i32>) -> Result<Scores> {
        let encoder = Encoder::new(&self.at_rest.map);
        let mut scores = Scores {
            p_click: Vec::with_capacity(table.num_rows()),
            p_conversion: self.at_rest.fit.conversion.as_ref().map(|_| Vec::new()),
        };
        for start in (0..table.num_rows()).step_by(CHUNK) {
            let rows = encoder.encode(&table.slice(start, CHUNK.min(table.num_rows() - start)), position)?;
            let (click, conversion) = self.logits_of(&rows);
            scores.p_click.extend(self.at_rest.p_click(&rows, &click));
            if let (Some(calibrator), Some(all)) = (&self.at_rest.fit.conversion, &mut scores.p_conversion) {
                all.extend(conversion.iter().map(|x| calibrator.apply(sigmoid(*x))));
            }
        }
        Ok(scores)
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
        (self.at_rest.fit.click, self.at_rest.campaigns) = (calibrator(&targets.positive, &click), None);
        let as_one = self.at_rest.p_click(valid, &click);
        self.at_rest.campaigns = CampaignFactors::fit(&self.at_rest.map, valid, &targets.positive, &as_one);
        self.at_rest.fit.campaign_shape = self.at_rest.campaigns.as_ref().map(|campaigns| campaigns.shape);
        if let Some((rows, converted)) = of_clicks(targets).filter(|_| self.at_rest.fit.conversion.is_some()) {
            let logits: Vec<f64> = rows.iter().map(|row| conversion[*row]).collect();
            self.at_rest.fit.conversion = Some(calibrator(&converted, &logits));
        }
        let scores = self.at_rest.p_click(valid, &click);
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
