//! The interest model: P(a user engages with a category in the window to come), for every category that the user showed a sign of.
//!
//! A sign is a row of the (user, category) features: views, clicks, purchases, and searches whose terms lead there. More of it never
//! lowers the score: the network rises in these counts by construction, so a rare category can be learned from few examples. A
//! label is chosen by `above_base`, how far the score stands above what any user would get: a special category wins over its popular
//! parent when the evidence is the same.

use super::artifact::{Artifact, broken};
use super::features::{self, Encoder, FeatureMap, NO_ROW, Part, Role};
use super::network::{Offset, Spec, Weights};
use super::training::{self, EpochFacts, Monitor, Precision, RateSchedule, Schedule, Start, Targets};
use super::{InterestSettings, Metrics, calibrator, device_name, logit, rounded, sigmoid, smoothed_rate};
use crate::error::{Error, Kind, Result};
use crate::statistics::calibration::Calibrator;
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, Date32Array, Float64Array, RecordBatch, StringArray};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The tables of one split, as `dataset` writes them, and the shop's categories (category_id, parent_id?, name?).
#[derive(Clone, Debug)]
pub struct InterestExamples {
    /// user_id, day, features.
    pub users: RecordBatch,
    /// user_id, day, category_id, features: the candidates.
    pub pairs: RecordBatch,
    /// user_id, day, category_id: engaged with in the window after day.
    pub labels: RecordBatch,
    pub categories: RecordBatch,
}

/// A trained model, plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct Interest {
    pub(super) at_rest: AtRest,
    pub(super) weights: Weights,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct AtRest {
    pub map: FeatureMap,
    /// None: no training label varied, and every score is the category's base rate.
    pub spec: Option<Spec>,
    calibrator: Calibrator,
    metrics: Metrics,
    pub categories: Vec<Category>,
    /// Of a category that no training user knew.
    base_logit: f64,
    settings: InterestSettings,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Category {
    id: String,
    parent: Option<String>,
    name: Option<String>,
    /// Logit of the share of all training users who engaged with it.
    base_logit: f64,
}

/// What training found; metrics are calibrated ones on the validation candidates.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct InterestFacts {
    pub device: String,
    pub threads: usize,
    pub seed: u64,
    pub train: InterestRows,
    pub valid: InterestRows,
    pub categories: usize,
    pub features: Vec<String>,
    pub dropped: BTreeMap<String, String>,
    pub parameters: usize,
    pub epochs: Vec<EpochFacts>,
    pub chosen_epoch: Option<usize>,
    #[serde(flatten)]
    pub metrics: Metrics,
    pub calibrator: Calibrator,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct InterestRows {
    /// (user, day).
    pub users: usize,
    /// (user, day, category), and how many were engaged with.
    pub candidates: usize,
    pub engaged: usize,
}

pub(super) const USERS: usize = 0;
const PAIRS: usize = 1;
pub(super) const CATEGORIES: usize = 2;
const RESERVED: [&str; 3] = ["user_id", "day", "segment_id"];
/// A base rate is smoothed by so many users of the mean rate.
const SMOOTHING_USERS: f64 = 20.0;
const CHUNK: usize = 65_536;
const KIND: &str = "interest";

/// Trains on `train`, stops and calibrates on `valid`.
///
/// # Errors
/// `Contract` for no candidates, a pair of an unknown user, or a column of the wrong kind; `Usage` for settings that cannot be.
pub fn train(
    settings: &InterestSettings,
    train: &InterestExamples,
    valid: &InterestExamples,
    seed: u64,
) -> Result<(Interest, InterestFacts)> {
    settings.check()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut categories = Categories::of(&train.categories, &[&train.pairs, &train.labels, &valid.pairs, &valid.labels])?;
    let mut candidates = Candidates::of(&train.users, &train.pairs, &categories)?;
    let engaged = candidates.engaged(&train.labels, &categories)?;
    let base_logit = categories.set_base_rates(&engaged, train.users.num_rows());
    candidates.add_random(settings.sampled_categories, categories.rows.len(), &mut rng);
    candidates.keep_users(settings.max_rows, &mut rng);
    let valid_candidates = Candidates::of(&valid.users, &valid.pairs, &categories)?;
    let valid_engaged = valid_candidates.engaged(&valid.labels, &categories)?;
    for (split, candidates) in [("training", &candidates), ("validation", &valid_candidates)] {
        if candidates.users.is_empty() {
            return Err(Error::contract(format_args!("the {split} split of interests has no (user, category) pair"))
                .action("check the events of those days and user_category__affinity"));
        }
    }
    let targets =
        |candidates: &Candidates, engaged: &HashSet<(u32, u32)>| Targets { positive: candidates.labels(engaged), converted: None };
    let train_targets = targets(&candidates, &engaged);
    let valid_targets = targets(&valid_candidates, &valid_engaged);

    let table = categories.table()?;
    let parts = [
        Part { table: &train.users, rows: Some(&candidates.users) },
        Part { table: &without(&train.pairs, "category_id")?, rows: Some(&candidates.pairs) },
        Part { table: &table, rows: Some(&candidates.categories) },
    ];
    let mut of_features = settings.features.clone();
    of_features.text.push(CATEGORY_NAME.to_owned());
    let affinities: Vec<String> = train.pairs.schema().fields().iter().map(|field| field.name().clone()).collect();
    let is_count =
        |name: &str| affinities.iter().any(|column| column == name) && name.rsplit('.').next().is_some_and(|last| last.starts_with("n_"));
    let map = features::fit(&parts, &of_features, &RESERVED, is_count)?;
    let rows_of = |split: &InterestExamples, candidates: &Candidates, targets: &Targets| InterestRows {
        users: split.users.num_rows(),
        candidates: candidates.users.len(),
        engaged: targets.positive.iter().filter(|engaged| **engaged).count(),
    };
    let mut facts = InterestFacts {
        device: device_name(&settings.device),
        threads: settings.threads,
        seed,
        train: rows_of(train, &candidates, &train_targets),
        valid: rows_of(valid, &valid_candidates, &valid_targets),
        categories: categories.rows.len(),
        features: map.columns.iter().map(|column| column.name.clone()).collect(),
        dropped: map.dropped.clone(),
        parameters: 0,
        epochs: Vec::new(),
        chosen_epoch: None,
        metrics: Metrics::default(),
        calibrator: Calibrator::Identity,
        notes: Vec::new(),
    };
    let mut interest = Interest {
        at_rest: AtRest {
            map,
            spec: None,
            calibrator: Calibrator::Identity,
            metrics: Metrics::default(),
            categories: categories.rows.clone(),
            base_logit,
            settings: settings.clone(),
        },
        weights: Weights::new(),
    };
    let map = &interest.at_rest.map;
    if facts.train.engaged == 0 || facts.train.engaged == facts.train.candidates {
        let note = "all training candidates have the same outcome: every score is the category's base rate";
        tracing::warn!("{note}");
        facts.notes.push(note.into());
    } else {
        let encoder = Encoder::new(map);
        let encode = |parts: &[Part]| {
            let blocks = (0..parts.len()).map(|part| encoder.block(part, parts[part].table, None)).collect::<Result<Vec<_>>>()?;
            let joined: Vec<_> = blocks.iter().zip(parts).map(|(block, part)| (block, part.rows)).collect();
            Ok::<_, Error>(encoder.join(&joined, 0..parts[USERS].rows.map_or(0, <[u32]>::len)))
        };
        let rows = encode(&parts)?;
        let valid_rows = encode(&[
            Part { table: &valid.users, rows: Some(&valid_candidates.users) },
            Part { table: &valid.pairs, rows: Some(&valid_candidates.pairs) },
            Part { table: &table, rows: Some(&valid_candidates.categories) },
        ])?;
        let spec = Spec::rising(map, settings.embedding_dim, &settings.hidden, map.evidence()).with_offset(base_offset(map));
        let (train, valid) = (training::Source::resident(&rows, &train_targets), (&valid_rows, &valid_targets));
        let start = Start { neutral_rows: map.neutral_rows(), ..Start::default() };
        match training::train(&spec, train, valid, &start, &schedule(settings), seed) {
            // Labels by base rates are better than no night.
            Err(error) if error.kind == Kind::Contract => {
                tracing::warn!(%error, "the interest network did not train: every score is the category's base rate");
                facts.notes.push(format!("{error}: every score is the category's base rate"));
            }
            trained => {
                let trained = trained?;
                facts.chosen_epoch = trained.epochs.iter().rev().find(|epoch| epoch.kept).map(|epoch| epoch.epoch);
                facts.epochs = trained.epochs;
                facts.notes.extend(trained.notes);
                facts.parameters = trained.weights.values().map(|weight| weight.data.len()).sum();
                interest.weights = trained.weights;
                interest.at_rest.spec = Some(spec);
            }
        }
    }
    let logits = interest.logits(&valid.users, &valid.pairs, &categories, &valid_candidates)?;
    interest.at_rest.calibrator = calibrator(&valid_targets.positive, &logits);
    let scores: Vec<f64> = logits.iter().map(|x| interest.at_rest.calibrator.apply(sigmoid(*x))).collect();
    interest.at_rest.metrics = Metrics::of(&valid_targets.positive, &scores);
    facts.metrics = interest.at_rest.metrics;
    facts.calibrator = interest.at_rest.calibrator.clone();
    Ok((interest, facts))
}

fn schedule(settings: &InterestSettings) -> Schedule {
    Schedule {
        epochs: settings.epochs,
        patience: settings.patience,
        batch_size: settings.batch_size,
        min_steps: 64,
        learning_rate: settings.learning_rate,
        rates: RateSchedule::Plateau,
        rate_drop: 0.2,
        go_back: true,
        monitor: Monitor::Logloss,
        weight_decay: settings.weight_decay,
        embedding_l2: settings.embedding_l2,
        dropout: settings.dropout,
        ema: 0.0,
        precision: Precision::Float32,
        device: settings.device.clone(),
        threads: settings.threads,
    }
}

fn base_offset(map: &FeatureMap) -> Option<Offset> {
    let base = map.columns.iter().find(|column| column.name == CATEGORY_BASE)?;
    match base.role {
        Role::Number { float, center, scale, .. } => Some(Offset { float, center, scale }),
        _ => None,
    }
}

fn without(table: &RecordBatch, name: &str) -> Result<RecordBatch> {
    let kept: Vec<usize> = (0..table.num_columns()).filter(|i| table.schema().field(*i).name() != name).collect();
    Ok(table.project(&kept)?)
}

const CATEGORY_NAME: &str = "category_name";
/// The logit of the base rate. The network starts from it, so that even a rare category has its level from the first step on, and
/// reads it, because the rarer a category, the more a sign of it says.
const CATEGORY_BASE: &str = "category_base";

/// The known categories and, behind them, those that only a split's rows name.
pub(super) struct Categories {
    rows: Vec<Category>,
    index: HashMap<String, u32>,
}

impl Categories {
    fn of(table: &RecordBatch, named: &[&RecordBatch]) -> Result<Self> {
        let ids = column::<StringArray>(table, "category_id")?;
        let (parents, names) = (optional_column::<StringArray>(table, "parent_id")?, optional_column::<StringArray>(table, "name")?);
        let text =
            |array: Option<&StringArray>, row: usize| array.filter(|array| array.is_valid(row)).map(|array| array.value(row).to_owned());
        let known = (0..ids.len()).filter(|row| ids.is_valid(*row)).map(|row| Category {
            id: ids.value(row).to_owned(),
            parent: text(parents, row),
            name: text(names, row),
            base_logit: 0.0,
        });
        let mut categories = Self::from_rows(known.collect());
        let mut others = BTreeSet::new();
        for table in named {
            others.extend(column::<StringArray>(table, "category_id")?.iter().flatten());
        }
        for id in others {
            categories.add(id, 0.0);
        }
        Ok(categories)
    }

    pub fn from_rows(rows: Vec<Category>) -> Self {
        let index = rows.iter().zip(0..).map(|(category, row)| (category.id.clone(), row)).collect();
        Self { rows, index }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|category| category.id.as_str())
    }

    /// The row of a category; one not known yet is added, without a name.
    fn add(&mut self, id: &str, base_logit: f64) -> u32 {
        if let Some(row) = self.index.get(id) {
            return *row;
        }
        let row = self.rows.len() as u32;
        self.rows.push(Category { id: id.to_owned(), parent: None, name: None, base_logit });
        self.index.insert(id.to_owned(), row);
        row
    }

    /// Sets each category's base rate from who engaged with it; returns that of one nobody knows.
    fn set_base_rates(&mut self, engaged: &HashSet<(u32, u32)>, users: usize) -> f64 {
        let mut counts = vec![0_u32; self.rows.len()];
        engaged.iter().for_each(|(_, category)| counts[*category as usize] += 1);
        let mean = smoothed_rate(engaged.len(), users * self.rows.len());
        let rate = |count: u32| rounded(logit((f64::from(count) + SMOOTHING_USERS * mean) / (users as f64 + SMOOTHING_USERS)));
        self.rows.iter_mut().zip(counts).for_each(|(category, count)| category.base_logit = rate(count));
        rate(0)
    }

    /// category_id, parent.category_id, category_name, category_base: the first two share a space of ids.
    pub fn table(&self) -> Result<RecordBatch> {
        let ids = StringArray::from_iter_values(self.rows.iter().map(|category| &category.id));
        let parents: StringArray = self.rows.iter().map(|category| category.parent.as_ref()).collect();
        let names: StringArray = self.rows.iter().map(|category| category.name.as_ref()).collect();
        let base = Float64Array::from_iter_values(self.rows.iter().map(|category| category.base_logit));
        let columns: [(&str, ArrayRef); 4] = [
            ("category_id", Arc::new(ids)),
            ("parent.category_id", Arc::new(parents)),
            (CATEGORY_NAME, Arc::new(names)),
            (CATEGORY_BASE, Arc::new(base)),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    }
}

/// (user, category) candidates as row numbers of the tables they join.
struct Candidates {
    users: Vec<u32>,
    pairs: Vec<u32>,
    categories: Vec<u32>,
    user_rows: HashMap<(String, i32), u32>,
}

impl Candidates {
    fn of(users: &RecordBatch, pairs: &RecordBatch, categories: &Categories) -> Result<Self> {
        let mut user_rows = HashMap::new();
        for (row, key) in keys(users)?.into_iter().enumerate() {
            user_rows.insert(key, row as u32);
        }
        let ids = column::<StringArray>(pairs, "category_id")?;
        let mut candidates = Self { users: Vec::new(), pairs: Vec::new(), categories: Vec::new(), user_rows };
        for (row, key) in keys(pairs)?.into_iter().enumerate().filter(|(row, _)| ids.is_valid(*row)) {
            let Some(user) = candidates.user_rows.get(&key) else {
                return Err(Error::contract(format_args!("the pairs of interests name user {} on day {}, whom users lacks", key.0, key.1)));
            };
            candidates.users.push(*user);
            candidates.pairs.push(row as u32);
            candidates.categories.push(categories.index[ids.value(row)]);
        }
        Ok(candidates)
    }

    /// (user row, category row) of the labels; users sampled away are left out.
    fn engaged(&self, labels: &RecordBatch, categories: &Categories) -> Result<HashSet<(u32, u32)>> {
        let ids = column::<StringArray>(labels, "category_id")?;
        let of = |(row, key): (usize, (String, i32))| Some((*self.user_rows.get(&key)?, categories.index[ids.value(row)]));
        Ok(keys(labels)?.into_iter().enumerate().filter(|(row, _)| ids.is_valid(*row)).filter_map(of).collect())
    }

    /// For every user `count` random categories, those that are candidates already apart.
    fn add_random(&mut self, count: usize, categories: usize, rng: &mut ChaCha8Rng) {
        if self.users.is_empty() {
            return;
        }
        let known: HashSet<(u32, u32)> = self.users.iter().copied().zip(self.categories.iter().copied()).collect();
        for user in 0..self.user_rows.len() as u32 {
            let drawn: BTreeSet<u32> = (0..count).map(|_| rng.random_range(0..categories as u32)).collect();
            for category in drawn.into_iter().filter(|category| !known.contains(&(user, *category))) {
                self.users.push(user);
                self.pairs.push(NO_ROW);
                self.categories.push(category);
            }
        }
    }

    /// All candidates of random users, until there are about `limit`.
    fn keep_users(&mut self, limit: usize, rng: &mut ChaCha8Rng) {
        if self.users.len() <= limit {
            return;
        }
        let mut counts = vec![0; self.user_rows.len()];
        self.users.iter().for_each(|user| counts[*user as usize] += 1);
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.shuffle(rng);
        let mut kept = vec![false; counts.len()];
        let mut total = 0;
        for user in order {
            total += counts[user];
            if total > limit {
                break;
            }
            kept[user] = true;
        }
        let keep: Vec<bool> = self.users.iter().map(|user| kept[*user as usize]).collect();
        for column in [&mut self.users, &mut self.pairs, &mut self.categories] {
            let mut keep = keep.iter();
            column.retain(|_| *keep.next().expect("as many flags as rows"));
        }
    }

    fn labels(&self, engaged: &HashSet<(u32, u32)>) -> Vec<bool> {
        self.users.iter().zip(&self.categories).map(|(user, category)| engaged.contains(&(*user, *category))).collect()
    }
}

/// (user_id, day) of every row; a table without days has one.
fn keys(table: &RecordBatch) -> Result<Vec<(String, i32)>> {
    let users = column::<StringArray>(table, "user_id")?;
    let days = optional_column::<Date32Array>(table, "day")?;
    Ok((0..users.len()).map(|row| (users.value(row).to_owned(), days.map_or(0, |days| days.value(row)))).collect())
}

impl Interest {
    /// Scores every pair: user_id, category_id, score (the calibrated probability), above_base (its logit less that of the share of
    /// all users who engage with the category), in the order of `pairs`.
    pub fn score(&self, users: &RecordBatch, pairs: &RecordBatch) -> Result<RecordBatch> {
        let mut categories = Categories::from_rows(self.at_rest.categories.clone());
        let ids = column::<StringArray>(pairs, "category_id")?;
        ids.iter().flatten().for_each(|id| _ = categories.add(id, self.at_rest.base_logit));
        let candidates = Candidates::of(users, pairs, &categories)?;
        let logits = self.logits(users, pairs, &categories, &candidates)?;
        let scores: Vec<f64> = logits.iter().map(|x| self.at_rest.calibrator.apply(sigmoid(*x))).collect();
        let base = candidates.categories.iter().map(|row| categories.rows[*row as usize].base_logit);
        let above: Vec<f64> = scores.iter().zip(base).map(|(score, base)| logit(*score) - base).collect();
        let user_ids = column::<StringArray>(pairs, "user_id")?;
        let text = |array: &StringArray| StringArray::from_iter_values(candidates.pairs.iter().map(|row| array.value(*row as usize)));
        let columns: [(&str, ArrayRef); 4] = [
            ("user_id", Arc::new(text(user_ids))),
            ("category_id", Arc::new(text(ids))),
            ("score", Arc::new(Float64Array::from(scores))),
            ("above_base", Arc::new(Float64Array::from(above))),
        ];
        Ok(RecordBatch::try_from_iter(columns)?)
    }

    /// Logits before calibration.
    fn logits(&self, users: &RecordBatch, pairs: &RecordBatch, categories: &Categories, candidates: &Candidates) -> Result<Vec<f64>> {
        let Some(spec) = &self.at_rest.spec else {
            return Ok(candidates.categories.iter().map(|row| categories.rows[*row as usize].base_logit).collect());
        };
        let encoder = Encoder::new(&self.at_rest.map);
        let blocks = [
            encoder.block(USERS, users, None)?,
            encoder.block(PAIRS, pairs, None)?,
            encoder.block(CATEGORIES, &categories.table()?, None)?,
        ];
        let parts = [
            (&blocks[USERS], Some(candidates.users.as_slice())),
            (&blocks[PAIRS], Some(candidates.pairs.as_slice())),
            (&blocks[CATEGORIES], Some(candidates.categories.as_slice())),
        ];
        let mut logits = Vec::with_capacity(candidates.users.len());
        for start in (0..candidates.users.len()).step_by(CHUNK) {
            let rows = encoder.join(&parts, start..(start + CHUNK).min(candidates.users.len()));
            let settings = &self.at_rest.settings;
            let scored = training::predict(spec, &self.weights, &rows, &settings.device, settings.threads);
            logits.extend(scored.into_iter().map(f64::from));
        }
        Ok(logits)
    }

    pub fn to_artifact(&self) -> Result<Artifact> {
        Ok(Artifact { kind: KIND.into(), model: serde_json::to_string_pretty(&self.at_rest)?, weights: self.weights.clone() })
    }

    pub fn from_artifact(artifact: &Artifact) -> Result<Self> {
        let at_rest: AtRest = artifact.described(KIND)?;
        if !at_rest.spec.as_ref().is_none_or(|spec| spec.fits(&artifact.weights)) {
            return Err(broken("its weights are not of the shape that its description says"));
        }
        Ok(Self { at_rest, weights: artifact.weights.clone() })
    }
}
