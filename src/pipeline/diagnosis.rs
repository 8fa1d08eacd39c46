//! The gate's day, looked at more closely: the curves of each contestant, and what tonight's network leans on.
//!
//! Nothing here decides anything; it is what a person asks after the verdict.

use super::learning::{Champion, Learned};
use crate::dataset::DatasetFacts;
use crate::error::Result;
use crate::gate::Contestant;
use crate::model::Response;
use crate::platform::run::{Done, Run, Step};
use crate::statistics::curves::{Curves, curves};
use crate::statistics::metrics;
use crate::types::column;
use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::take;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Diagnosis {
    /// One a contestant that can score the day.
    pub models: Vec<ModelCurves>,
    pub importance: Option<Importance>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelCurves {
    pub name: Contestant,
    pub average_precision: Option<f64>,
    #[serde(flatten)]
    pub curves: Curves,
}

/// How much worse the network ranks when one feature is shuffled (Breiman 2001; Fisher et al. 2019 for models at hand).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Importance {
    pub model: String,
    pub rows: u64,
    pub positives: u64,
    /// Shuffles a feature.
    pub repeats: u64,
    /// AUC lost by chance: the mean size of the losses of the lesser half of the features.
    pub noise: f64,
    /// Most AUC lost first.
    pub features: Vec<FeatureImportance>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FeatureImportance {
    pub feature: String,
    /// AUC lost, mean over the shuffles.
    pub auc_drop: f64,
    /// Smallest and largest of them.
    pub auc_drop_ci: [f64; 2],
    pub logloss_rise: f64,
}

/// Rows that are scored again for each feature: bounds the time.
const ROWS: usize = 4_000;
const REPEATS: u64 = 3;

pub async fn diagnose(run: &Run, examples: &Done<DatasetFacts>, learned: &Learned, champion: Option<&Champion>) -> Result<Diagnosis> {
    let inputs = json!({
        "seed": run.job.seed,
        "examples": examples.key,
        "model": learned.folder,
        "champion": champion.map(|champion| &champion.folder),
    });
    let done = run
        .step(&format!("diagnosis/dt={}", run.date), &inputs, async |_: &Step| {
            let test = examples.store.read_parquet("test.parquet").await?;
            let labels = clicks(&test)?;
            let contestants = [
                (Contestant::Challenger, Some(&learned.network)),
                (Contestant::Baseline, Some(&learned.baseline)),
                (Contestant::Champion, champion.map(|champion| &champion.response)),
            ];
            let mut models = Vec::new();
            for (name, model) in contestants.into_iter().filter_map(|(name, model)| Some((name, model?))) {
                // Whoever cannot score the day did not compete either; the gate has said so.
                let Ok(scores) = model.score_logged(&test) else { continue };
                let average_precision = metrics::average_precision(&labels, &scores.p_click);
                models.push(ModelCurves { name, average_precision, curves: curves(&labels, &scores.p_click) });
            }
            Ok(Diagnosis { models, importance: importance(&learned.network, &test, run.job.seed)? })
        })
        .await?;
    Ok(done.facts)
}

fn clicks(rows: &RecordBatch) -> Result<Vec<bool>> {
    Ok(column::<BooleanArray>(rows, "clicked")?.iter().map(|clicked| clicked.unwrap_or(false)).collect())
}

/// None where the sample has one class only.
fn importance(model: &Response, test: &RecordBatch, seed: u64) -> Result<Option<Importance>> {
    let rows = sample(test, seed)?;
    let labels = clicks(&rows)?;
    let quality = |scores: &[f64]| metrics::auc(&labels, scores).zip(metrics::logloss(&labels, scores));
    let encoded = model.encode_logged(&rows)?;
    let Some((auc, logloss)) = quality(&model.p_click(&encoded)) else { return Ok(None) };
    let mut features = Vec::new();
    for name in model.features().filter(|name| rows.column_by_name(name).is_some()) {
        let (mut drops, mut rises) = (Vec::new(), Vec::new());
        for repeat in 0..REPEATS {
            let order = order(rows.num_rows(), name, seed.wrapping_add(repeat));
            let Some((shuffled_auc, shuffled_logloss)) = quality(&model.p_click_with(&encoded, name, &order)) else { continue };
            drops.push(auc - shuffled_auc);
            rises.push(shuffled_logloss - logloss);
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let ends = drops.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], drop| [low.min(*drop), high.max(*drop)]);
        features.push(FeatureImportance {
            feature: name.to_owned(),
            auc_drop: rounded(mean(&drops)),
            auc_drop_ci: ends.map(rounded),
            logloss_rise: rounded(mean(&rises)),
        });
    }
    features.sort_by(|a, b| b.auc_drop.total_cmp(&a.auc_drop).then_with(|| a.feature.cmp(&b.feature)));
    let lesser = &features[features.len() / 2..];
    let noise = lesser.iter().map(|feature| feature.auc_drop.abs()).sum::<f64>() / lesser.len().max(1) as f64;
    Ok(Some(Importance {
        model: "challenger".to_owned(),
        rows: rows.num_rows() as u64,
        positives: labels.iter().filter(|label| **label).count() as u64,
        repeats: REPEATS,
        noise: rounded(noise),
        features,
    }))
}

/// All clicks, up to half of the sample, and as many other rows as fit: ranking is judged by pairs, and clicks are rare.
fn sample(test: &RecordBatch, seed: u64) -> Result<RecordBatch> {
    let labels = clicks(test)?;
    let (mut positives, mut others): (Vec<u32>, Vec<u32>) = (0..labels.len() as u32).partition(|row| labels[*row as usize]);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    positives.shuffle(&mut random);
    positives.truncate(ROWS / 2);
    others.shuffle(&mut random);
    others.truncate(ROWS - positives.len());
    positives.extend(others);
    positives.sort_unstable();
    taken(test, &UInt32Array::from(positives))
}

/// In which order a column's values are handed round.
fn order(rows: usize, column: &str, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(column.as_bytes(), seed)));
    order
}

fn taken(rows: &RecordBatch, chosen: &UInt32Array) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(|column| take(column, chosen, None)).collect::<std::result::Result<_, _>>()?;
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
