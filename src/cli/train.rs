//! `nightmarket train`: the models on any labelled table.

use super::{Output, print};
use crate::error::Result;
use crate::platform::storage::Store;
use crate::train::{Metrics, TrainFacts, TrainSpec, train};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Train {
    /// The spec: [data] where the rows are, [columns] what they are, [model] how to train.
    pub spec: PathBuf,
    /// Train the network with so many seeds and give mean and spread.
    #[arg(long, default_value_t = 1, env = "NIGHTMARKET_SEEDS")]
    pub seeds: u64,
    /// auto, cpu or cuda:N, instead of the spec's.
    #[arg(long, env = "NIGHTMARKET_DEVICE")]
    pub device: Option<String>,
    /// Threads of libtorch instead of the spec's; another number gives other last bits.
    #[arg(long, env = "NIGHTMARKET_THREADS")]
    pub threads: Option<usize>,
    /// Where to write the artefacts, the metrics and the scores.
    #[arg(long, env = "NIGHTMARKET_OUT")]
    pub out: Option<String>,
}

pub async fn run(command: Train, output: Output) -> Result<()> {
    let mut spec = TrainSpec::read(&command.spec)?;
    if let Some(device) = command.device {
        spec.model.device = device;
    }
    if let Some(threads) = command.threads {
        spec.model.threads = threads;
    }
    let out = command.out.as_deref().map(Store::open).transpose()?;
    let facts = train(&spec, command.seeds, out.as_ref()).await?;
    print(output, &facts, || describe(&facts))
}

fn describe(facts: &TrainFacts) -> String {
    let mut lines = vec![format!(
        "{:<10} {:<6} {:>17} {:>17} {:>8} {:>8} {:>8} {:>8}",
        "model", "split", "AUC", "logloss", "NE", "GAUC", "ratio", "ECE"
    )];
    for (split, mean) in &facts.network.mean {
        lines.push(row("network", split, mean, facts.network.spread.get(split).filter(|_| facts.network.seeds.len() > 1)));
    }
    lines.extend(facts.baseline.iter().map(|(split, metrics)| row("baseline", split, metrics, None)));
    for (split, (rows, rate)) in &facts.rows {
        lines.push(format!("{split}: {rows} rows, {:.2} % positive", 100.0 * rate));
    }
    lines.push(format!(
        "{} seeds, {:.1} epochs, {:.0} samples/s, {} weights, {} with {} threads, {:.1} s, peak memory {} MiB",
        facts.network.seeds.len(),
        facts.network.epochs,
        facts.network.samples_per_second,
        facts.parameters,
        facts.device,
        facts.threads,
        facts.seconds,
        facts.peak_memory_mib
    ));
    lines.extend(facts.dropped.iter().map(|(column, why)| format!("column {column} is not used: {why}")));
    lines.extend(facts.notes.iter().cloned());
    lines.join("\n")
}

fn row(model: &str, split: &str, metrics: &Metrics, spread: Option<&Metrics>) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let with_spread = |value: Option<f64>, spread: Option<f64>| {
        let spread = spread.map_or(String::new(), |spread| format!(" ±{spread:.4}"));
        number(value, 5) + &spread
    };
    format!(
        "{model:<10} {split:<6} {:>17} {:>17} {:>8} {:>8} {:>8} {:>8}",
        with_spread(metrics.auc, spread.and_then(|spread| spread.auc)),
        with_spread(metrics.logloss, spread.and_then(|spread| spread.logloss)),
        number(metrics.ne, 4),
        number(metrics.gauc, 4),
        number(metrics.calibration, 4),
        number(metrics.ece, 4),
    )
}
