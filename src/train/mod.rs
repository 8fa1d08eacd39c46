//! A labelled table -> a trained network beside the logistic baseline, with their metrics: `nightmarket train`.
//!
//! For trying the models on any table and comparing them with other programs. The networks, the baseline, the calibration and the
//! artefact are the night's own (see [`crate::model`]); only the reading of the table and the split are of this stage.

mod stream;
mod table;

use crate::error::{Context, Error, Result};
use crate::model::response::{Compression, Examples};
use crate::model::{
    Architecture, Artifact, EpochFacts, FeatureSettings, ModelSettings, Monitor, Precision, RateSchedule, Response, Storage, TextEncoder,
    device_name,
};
use crate::platform::job::parse_toml;
use crate::platform::run::{Watch, peak_memory_mib};
use crate::platform::storage::Store;
use crate::statistics::metrics;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
pub use table::{Bound, Columns, Data, Others, Shares, Split};
use table::{Labelled, Splits};

/// What a spec says.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// The first seed; `--seeds N` trains with it and the N - 1 after it.
    #[serde(default)]
    pub seed: u64,
    pub data: Data,
    pub columns: Columns,
    #[serde(default)]
    pub model: Model,
}

/// The network's settings, with defaults for tables of 10,000 to 10,000,000 rows.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    pub architecture: Architecture,
    pub embedding_dim: usize,
    pub hidden: Vec<usize>,
    pub dropout: f64,
    /// Decay of the average of the weights that is kept in their place; 0: none.
    pub ema: f64,
    pub attention: bool,
    /// A value in fewer training rows counts as unknown.
    pub min_count: u64,
    pub max_vocabulary: usize,
    /// Bins of a number; 0: it is a number only.
    pub bins: usize,
    pub epochs: usize,
    pub patience: usize,
    pub monitor: Monitor,
    pub batch_size: usize,
    pub min_steps: usize,
    pub learning_rate: f64,
    pub schedule: RateSchedule,
    pub rate_drop: f64,
    pub go_back: bool,
    /// Of several, that which validates best with the first seed is taken for all seeds.
    pub embedding_l2: Strengths,
    pub weight_decay: f64,
    pub precision: Precision,
    /// How the artefact keeps the embedding table.
    pub embeddings: Storage,
    pub device: String,
    pub threads: usize,
    pub baseline_l2: Vec<f64>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            architecture: Architecture::FinalNet,
            embedding_dim: 10,
            hidden: vec![400, 400],
            dropout: 0.1,
            ema: 0.0,
            attention: false,
            min_count: 1,
            max_vocabulary: 10_000_000,
            bins: 16,
            epochs: 100,
            patience: 1,
            monitor: Monitor::Auc,
            batch_size: 4096,
            min_steps: 40,
            learning_rate: 1e-3,
            schedule: RateSchedule::Plateau,
            rate_drop: 0.1,
            go_back: false,
            embedding_l2: Strengths::Many(vec![1e-3, 1e-2, 1e-1]),
            weight_decay: 0.0,
            precision: Precision::Auto,
            embeddings: Storage::Float32,
            device: "auto".into(),
            threads: 2,
            baseline_l2: vec![1.0, 10.0, 100.0],
        }
    }
}

/// One strength of L2, or several to try.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Strengths {
    One(f64),
    Many(Vec<f64>),
}

impl TrainSpec {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
        parse_toml(&text, &path.display().to_string())
    }

    /// The night's settings that say the same.
    fn settings(&self, embedding_l2: f64) -> ModelSettings {
        let (model, columns) = (self.model.clone(), &self.columns);
        ModelSettings {
            architecture: model.architecture,
            epochs: model.epochs,
            patience: model.patience,
            monitor: model.monitor,
            batch_size: model.batch_size,
            min_steps: model.min_steps,
            learning_rate: model.learning_rate,
            schedule: model.schedule,
            rate_drop: model.rate_drop,
            go_back: model.go_back,
            weight_decay: model.weight_decay,
            embedding_l2,
            dropout: model.dropout,
            ema: model.ema,
            embedding_dim: model.embedding_dim,
            hidden: model.hidden,
            attention: model.attention,
            warm_start: false,
            precision: model.precision,
            embeddings: model.embeddings,
            device: model.device,
            threads: model.threads,
            baseline_l2: model.baseline_l2,
            features: FeatureSettings {
                min_count: model.min_count,
                max_vocabulary: model.max_vocabulary,
                text: columns.text.clone(),
                categorical: columns.categorical.clone(),
                numeric: columns.numeric.clone(),
                exclude: columns.exclude.clone(),
                bins: model.bins,
            },
        }
    }

    fn strengths(&self) -> Result<Vec<f64>> {
        let strengths = match &self.model.embedding_l2 {
            Strengths::One(strength) => vec![*strength],
            Strengths::Many(strengths) => strengths.clone(),
        };
        match strengths.iter().all(|l2| *l2 >= 0.0 && l2.is_finite()) && !strengths.is_empty() {
            true => Ok(strengths),
            false => Err(Error::usage("[model] embedding_l2 must be a number of at least 0, or some of them")),
        }
    }
}

/// What training found. Timings and memory depend on the machine; all else on the spec, the table and the seeds alone.
#[derive(Clone, Debug, Serialize)]
pub struct TrainFacts {
    pub network: NetworkFacts,
    pub baseline: BTreeMap<String, Metrics>,
    /// Split -> rows, and the share of positives in them.
    pub rows: BTreeMap<String, (usize, f64)>,
    pub features: Vec<String>,
    pub vocabularies: BTreeMap<String, usize>,
    /// Column -> why it is not used.
    pub dropped: BTreeMap<String, String>,
    pub parameters: usize,
    /// Strengths of L2 tried on the validation rows with the first seed.
    pub trials: Vec<Trial>,
    pub notes: Vec<String>,
    pub device: String,
    pub threads: usize,
    pub seconds: f64,
    pub peak_memory_mib: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct NetworkFacts {
    /// Over the seeds; split -> metrics.
    pub mean: BTreeMap<String, Metrics>,
    /// Standard deviation over the seeds; 0 of one.
    pub spread: BTreeMap<String, Metrics>,
    pub seeds: Vec<SeedFacts>,
    /// Means over the seeds.
    pub epochs: f64,
    pub samples_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct SeedFacts {
    pub seed: u64,
    #[serde(flatten)]
    pub splits: BTreeMap<String, Metrics>,
    pub epochs: usize,
    pub chosen_epoch: Option<usize>,
    /// Training rows times epochs over the whole time of training, validation included.
    pub samples_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    pub curve: Vec<EpochFacts>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    pub embedding_l2: f64,
    pub valid: Metrics,
    pub epochs: usize,
}

/// Of calibrated scores. None: the rows do not determine it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Metrics {
    pub auc: Option<f64>,
    pub logloss: Option<f64>,
    /// AUC within each group, where the spec names one, and the share of rows in groups with both classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gauc: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gauc_rows_share: Option<f64>,
    /// Normalised entropy.
    pub ne: Option<f64>,
    /// Sum of probabilities over positives.
    pub calibration: Option<f64>,
    pub ece: Option<f64>,
    pub average_precision: Option<f64>,
}

impl Metrics {
    fn of(labels: &[bool], scores: &[f64], groups: Option<&[u64]>) -> Self {
        let gauc = groups.map(|groups| metrics::gauc(labels, scores, groups));
        Self {
            auc: metrics::auc(labels, scores),
            logloss: metrics::logloss(labels, scores),
            gauc: gauc.and_then(|gauc| gauc.value),
            gauc_rows_share: gauc.map(|gauc| gauc.rows_share),
            ne: metrics::normalised_entropy(labels, scores),
            calibration: metrics::calibration_ratio(labels, scores),
            ece: metrics::ece(labels, scores),
            average_precision: metrics::average_precision(labels, scores),
        }
    }

    /// Each metric of several, put together; none where one lacks it.
    fn together(all: &[Self], of: impl Fn(&[f64]) -> f64) -> Self {
        let each = |get: fn(&Self) -> Option<f64>| Some(of(&all.iter().map(get).collect::<Option<Vec<_>>>()?));
        Self {
            auc: each(|m| m.auc),
            logloss: each(|m| m.logloss),
            gauc: each(|m| m.gauc),
            gauc_rows_share: each(|m| m.gauc_rows_share),
            ne: each(|m| m.ne),
            calibration: each(|m| m.calibration),
            ece: each(|m| m.ece),
            average_precision: each(|m| m.average_precision),
        }
    }
}

/// Trains the baseline once and the network with each of `seeds` seeds; writes the best network, the baseline, the metrics and the
/// scores below `out`.
///
/// # Errors
/// `Usage` for a spec that cannot be, `InputMissing` for a file that is not there, `Contract` for a table that is not as the spec says.
pub async fn train(spec: &TrainSpec, seeds: u64, out: Option<&Store>) -> Result<TrainFacts> {
    if seeds == 0 {
        return Err(Error::usage("--seeds must be at least 1"));
    }
    let watch = Watch::start();
    let strengths = spec.strengths()?;
    let Prepared { mut examples, train_rows, valid, test, mut notes } = prepare(spec, &spec.settings(strengths[0]), &watch).await?;
    let mut measured: Vec<(&str, &Labelled)> = vec![("valid", &valid)];
    measured.extend(test.as_ref().map(|test| ("test", test)));

    let baseline = examples.baseline()?;
    let of_baseline = measure(&baseline, &measured)?;
    let on_valid = of_baseline.metrics["valid"];
    tracing::info!(seconds = watch.seconds(), auc = on_valid.auc, logloss = on_valid.logloss, "baseline");

    let (first, trials) = try_strengths(&mut examples, &strengths, spec.seed, &valid)?;
    let mut learned = vec![first];
    for seed in spec.seed + 1..spec.seed + seeds {
        learned.push(learn(&examples, seed)?);
    }
    let mut of_seeds = Vec::new();
    for one in &mut learned {
        let found = measure(&one.network, &measured)?;
        one.facts.splits = found.metrics.clone();
        of_seeds.push(found);
    }
    let loss = |i: &usize| of_seeds[*i].metrics["valid"].logloss.unwrap_or(f64::INFINITY);
    let best = (0..learned.len()).min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("at least one seed");
    let network = &learned[best].network;
    notes.extend(learned.iter().flat_map(|one| one.notes.iter().cloned()));
    let measured_rows = measured.iter().map(|(name, split)| ((*name).to_owned(), (split.rows(), split.rate())));
    let facts = TrainFacts {
        rows: measured_rows.chain([("train".to_owned(), train_rows)]).collect(),
        features: examples.map.columns.iter().map(|column| column.name.clone()).collect(),
        vocabularies: examples.map.spaces.iter().map(|(name, space)| (name.clone(), space.tokens.len())).collect(),
        dropped: examples.map.dropped.clone(),
        parameters: network.parameters(),
        trials,
        notes,
        device: device_name(&spec.model.device),
        threads: spec.model.threads,
        seconds: watch.seconds(),
        peak_memory_mib: peak_memory_mib(),
        network: NetworkFacts::of(learned.iter().map(|one| one.facts.clone()).collect()),
        baseline: of_baseline.metrics,
    };
    if let Some(out) = out {
        put(out, "network", &network.to_artifact()?).await?;
        put(out, "baseline", &baseline.to_artifact()?).await?;
        for (i, (name, split)) in measured.iter().enumerate() {
            let scores = scores(&split.targets.positive, &of_seeds[best].scores[i], &of_baseline.scores[i])?;
            out.write_parquet(&format!("scores_{name}.parquet"), scores.schema(), &[scores]).await?;
        }
        out.put("metrics.json", serde_json::to_vec_pretty(&facts)?.into()).await.context("writing the metrics")?;
    }
    Ok(facts)
}

/// Examples to train on, and the rows to measure on.
struct Prepared {
    examples: Examples,
    /// How many, and the share of positives.
    train_rows: (usize, f64),
    valid: Labelled,
    test: Option<Labelled>,
    notes: Vec<String>,
}

async fn prepare(spec: &TrainSpec, settings: &ModelSettings, watch: &Watch) -> Result<Prepared> {
    let encoder = match &spec.columns.encoder {
        Some(folder) if !spec.columns.text.is_empty() => {
            Some(Arc::new(TextEncoder::load(Path::new(folder), &spec.model.device, spec.model.threads)?))
        }
        Some(_) => return Err(Error::usage("[columns] encoder needs columns of text").action("name them in [columns] text")),
        None => None,
    };
    if let Some(table) = stream::open(spec, encoder.as_ref(), settings).await? {
        let stream::FirstPass { survey, valid, test } = table.first_pass(settings).await?;
        let train_rows = (survey.rows(), survey.rate());
        tracing::info!(train = train_rows.0, valid = valid.rows(), seconds = watch.seconds(), "first pass");
        let streamed = table.streamed(settings, &valid.features.schema());
        let block = streamed.block_rows;
        let examples = Examples::streamed(settings, survey, streamed, (&valid.features, valid.targets.clone()))?;
        let note = format!(
            "the training rows were streamed in blocks of {block}; the baseline and the training curve are of {} of them",
            examples.resident_rows()
        );
        return Ok(Prepared { examples, train_rows, valid, test, notes: vec![note] });
    }
    let Splits { train, valid, test } = table::read(spec, encoder.as_deref()).await?;
    tracing::info!(train = train.rows(), valid = valid.rows(), seconds = watch.seconds(), "table read");
    let train_rows = (train.rows(), train.rate());
    let examples = Examples::new(settings, (&train.features, train.targets), (&valid.features, valid.targets.clone()), &[])?;
    Ok(Prepared { examples, train_rows, valid, test, notes: Vec::new() })
}

/// A network of one seed.
struct Learned {
    network: Response,
    facts: SeedFacts,
    notes: Vec<String>,
}

/// Trains the network with each strength of L2 and takes that which validates best, by log-loss after calibration; ties leave the first.
fn try_strengths(examples: &mut Examples, strengths: &[f64], seed: u64, valid: &Labelled) -> Result<(Learned, Vec<Trial>)> {
    let mut trials: Vec<Trial> = Vec::new();
    let mut best: Option<(f64, f64, Learned)> = None;
    for &embedding_l2 in strengths {
        examples.set_embedding_l2(embedding_l2);
        let learned = learn(examples, seed)?;
        let found = measure(&learned.network, &[("valid", valid)])?.metrics["valid"];
        tracing::info!(embedding_l2, auc = found.auc, logloss = found.logloss, epochs = learned.facts.epochs, "trial");
        trials.push(Trial { embedding_l2, valid: found, epochs: learned.facts.epochs });
        let loss = found.logloss.unwrap_or(f64::INFINITY);
        if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            best = Some((loss, embedding_l2, learned));
        }
    }
    let (_, chosen, learned) = best.expect("at least one strength is given");
    examples.set_embedding_l2(chosen);
    Ok((learned, trials))
}

fn learn(examples: &Examples, seed: u64) -> Result<Learned> {
    let watch = Watch::start();
    let learned = examples.network(seed)?;
    let facts = SeedFacts {
        seed,
        splits: BTreeMap::new(),
        epochs: learned.epochs.len(),
        chosen_epoch: learned.epochs.iter().rev().find(|epoch| epoch.kept).map(|epoch| epoch.epoch),
        samples_per_second: (examples.rows() * learned.epochs.len()) as f64 / watch.seconds().max(1e-9),
        compression: learned.compression,
        curve: learned.epochs,
    };
    Ok(Learned { network: learned.network, facts, notes: learned.notes })
}

/// Metrics of each split, and its scores.
struct Measured {
    metrics: BTreeMap<String, Metrics>,
    scores: Vec<Vec<f64>>,
}

fn measure(response: &Response, splits: &[(&str, &Labelled)]) -> Result<Measured> {
    let mut measured = Measured { metrics: BTreeMap::new(), scores: Vec::new() };
    for (name, split) in splits {
        let scores = response.score_logged(&split.features)?.p_click;
        measured.metrics.insert((*name).to_owned(), Metrics::of(&split.targets.positive, &scores, split.groups.as_deref()));
        measured.scores.push(scores);
    }
    Ok(measured)
}

impl NetworkFacts {
    fn of(seeds: Vec<SeedFacts>) -> Self {
        let names: Vec<&String> = seeds[0].splits.keys().collect();
        let over_seeds = |of: fn(&[f64]) -> f64| {
            let split = |name: &str| seeds.iter().map(|seed| seed.splits[name]).collect::<Vec<_>>();
            names.iter().map(|name| ((*name).clone(), Metrics::together(&split(name), of))).collect()
        };
        let mean_of = |of: fn(&SeedFacts) -> f64| mean(&seeds.iter().map(of).collect::<Vec<_>>());
        Self {
            mean: over_seeds(mean),
            spread: over_seeds(deviation),
            epochs: mean_of(|seed| seed.epochs as f64),
            samples_per_second: mean_of(|seed| seed.samples_per_second),
            seeds,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (values.len().max(2) - 1) as f64).sqrt()
}

async fn put(out: &Store, name: &str, artifact: &Artifact) -> Result<()> {
    for (file, bytes) in artifact.to_files()? {
        out.put(&format!("{name}/{file}"), bytes).await?;
    }
    Ok(())
}

/// Rows in the order of the table: label, network, baseline.
fn scores(labels: &[bool], network: &[f64], baseline: &[f64]) -> Result<RecordBatch> {
    let columns: [(&str, ArrayRef); 3] = [
        ("label", Arc::new(BooleanArray::from(labels.to_vec()))),
        ("network", Arc::new(Float64Array::from(network.to_vec()))),
        ("baseline", Arc::new(Float64Array::from(baseline.to_vec()))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}
