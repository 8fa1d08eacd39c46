//! A network's training: epochs, batches, steps, the validation rows, when to slow down and when to stop.
//!
//! Tensors live only inside [`train`] and [`predict`]. Initial weights, the order of rows and dropout come from one seeded generator
//! of ours, never from libtorch's global one: the same rows and seed give the same bytes, however many trainings run side by side.
//! The dense weights are one flat buffer, of which the layers' arrays are views, so that the optimiser is a few operations; the
//! embedding table has its own (see [`super::table`]). Nothing is read back from the device within a step.

mod batches;
mod gpu_failure;
mod live;
mod schedule;

use super::checkpoint::{At, BEST, Checkpoint, Checkpoints, Progress};
use super::device;
use super::features::Encoded;
use super::network::{Dropout, Spec, TABLE, Weight, Weights};
use super::sigmoid;
use super::table::Pace;
use crate::error::{Error, Result};
use crate::statistics::metrics;
use batches::{Batches, Resident};
pub(super) use batches::{Source, Stream};
use live::Live;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
pub(super) use schedule::Schedule;
pub use schedule::{Monitor, Precision, RateSchedule};
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tch::{Device, Kind};

/// What is to be learned of each row.
#[derive(Clone, Debug)]
pub struct Targets {
    pub positive: Vec<bool>,
    /// Whether a click converted too; none where it is not known.
    pub converted: Option<Vec<Option<bool>>>,
}

/// Where training starts.
#[derive(Default)]
pub(super) struct Start<'a> {
    /// Rows of the embedding table that start at zero.
    pub neutral_rows: Vec<usize>,
    pub earlier: Option<Earlier<'a>>,
    pub checkpoints: Option<&'a Checkpoints<'a>>,
}

/// Weights that an earlier training of the same network left, and rows of its embedding table with those here that go on from them.
pub(super) struct Earlier<'a> {
    pub weights: &'a Weights,
    pub rows: Vec<(usize, usize)>,
}

impl Start<'_> {
    /// Where an earlier run of that training was interrupted.
    fn interrupted(&self, training: &str) -> Option<Checkpoint> {
        match Checkpoint::from_bytes(self.checkpoints?.saved.as_ref()?) {
            Ok(checkpoint) if checkpoint.at.progress.training == training => Some(checkpoint),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "training starts anew");
                None
            }
        }
    }

    fn checkpoint(&self, progress: &Progress, best: &Weights, live: &Live, dropout: &Dropout) -> Result<()> {
        let Some(checkpoints) = self.checkpoints else { return Ok(()) };
        let (steps, mut arrays) = live.state();
        arrays.extend(best.iter().map(|(name, weight)| (format!("{BEST}{name}"), weight.clone())));
        let (dropout, pool) = dropout.state();
        arrays.insert(POOL.to_owned(), Weight::of(&pool.to_kind(Kind::Float)));
        (checkpoints.save)(Checkpoint { at: At { progress: progress.clone(), steps, dropout }, arrays }.to_bytes()?)
    }

    fn weights(&self, spec: &Spec, targets: &Targets, rng: &mut ChaCha8Rng) -> Weights {
        let mut weights = spec.start(&base_logits(targets), &self.neutral_rows, rng);
        let Some(Earlier { weights: earlier, rows }) = &self.earlier else { return weights };
        weights.iter_mut().filter(|(name, _)| *name != TABLE).for_each(|(name, weight)| weight.clone_from(&earlier[name]));
        if let Some(table) = weights.get_mut(TABLE) {
            let width = spec.fields.width;
            for (from, to) in rows {
                table.data[to * width..][..width].copy_from_slice(&earlier[TABLE].data[from * width..][..width]);
            }
        }
        weights
    }
}

/// One pass over the training rows. Log-losses are those of the first head, before calibration.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct EpochFacts {
    pub epoch: usize,
    pub learning_rate: f64,
    pub train_logloss: f64,
    pub valid_logloss: f64,
    /// None where the rows hold one class only.
    pub train_auc: Option<f64>,
    pub valid_auc: Option<f64>,
    /// The best so far.
    pub kept: bool,
}

/// A trained network.
pub(super) struct Trained {
    pub weights: Weights,
    pub epochs: Vec<EpochFacts>,
    /// What went otherwise than the schedule says.
    pub notes: Vec<String>,
}

/// On the training rows the curve is taken on at most so many of them.
const CURVE_ROWS: usize = 20_000;
/// After a loss that is no number the rate is halved at most so often.
const HALVINGS: usize = 3;
/// A gain on the validation rows smaller than this is none.
const GAIN: f64 = 1e-6;
const POOL: &str = "dropout/pool";

/// Trains until the validation rows stop gaining; returns the best epoch's weights and the curve.
///
/// # Errors
/// `Contract` when the loss is no number however slow the training, `Usage` for a device that is not there.
pub(super) fn train(
    spec: &Spec,
    train: Source,
    valid: (&Encoded, &Targets),
    start: &Start,
    schedule: &Schedule,
    seed: u64,
) -> Result<Trained> {
    gpu_failure::with_less(schedule, |schedule| {
        let device = device::take(&schedule.device, schedule.threads)?;
        attempt(spec, train, valid, start, schedule, seed, device)
    })
}

fn attempt(
    spec: &Spec,
    train: Source,
    (valid, valid_targets): (&Encoded, &Targets),
    start: &Start,
    schedule: &Schedule,
    seed: u64,
    device: Device,
) -> Result<Trained> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let first = start.weights(spec, train.targets, &mut rng);
    let mut live = Live::new(spec, &first, device, schedule.threads);
    if schedule.ema > 0.0 {
        live.average_over(schedule.ema);
    }
    let mut dropout = Dropout::new(schedule.dropout, ChaCha8Rng::seed_from_u64(rng.next_u64()));
    let products = schedule.precision.products(spec, device);
    let (curve, curve_targets) = curve_rows(train.rows, train.targets);
    let batch_size = schedule.batch_size.min((train.len() / schedule.min_steps).max(16));
    let mut batches = match train.streamed {
        None => Batches::Resident(Resident::new(train.rows, train.targets, device)),
        Some(stream) => Batches::Streamed(stream, rng.next_u64()),
    };

    let mut at = Progress {
        training: format!("{spec:?} {schedule:?} seed {seed}, {} rows on {}", train.len(), device::name(device)),
        epochs_done: 0,
        rate: schedule.learning_rate,
        drops: 0,
        halvings: 0,
        best_gain: None,
        epochs: Vec::new(),
        notes: Vec::new(),
    };
    let mut best = first;
    if let Some(checkpoint) = start.interrupted(&at.training) {
        let Checkpoint { at: At { progress, steps, dropout: state }, arrays } = checkpoint;
        live.take_up(steps, &arrays);
        dropout.take_up(&state, &arrays[POOL].tensor(device));
        best = best.into_keys().map(|name| (name.clone(), arrays[&format!("{BEST}{name}")].clone())).collect();
        // The generator and the order stand where as many epochs leave them.
        (0..progress.epochs_done).for_each(|_| batches.skip_epoch(&mut rng, device));
        tracing::info!(epochs = progress.epochs_done, "an interrupted training goes on");
        at = progress;
    }
    let resumed = at.epochs_done;
    let rate_at =
        |epochs_done: usize, share: f64, rate: f64| schedule.rates.at(rate, (epochs_done as f64 + share) / schedule.epochs as f64);
    for epoch in resumed + 1..=schedule.epochs {
        at.epochs_done = epoch - 1;
        if at.epochs_done > resumed {
            start.checkpoint(&at, &best, &live, &dropout)?;
        }
        let mut last = 0.0;
        batches.epoch(epoch, batch_size, &mut rng, device, |batch| {
            last = batch.done;
            let rate = rate_at(epoch - 1, batch.done, at.rate);
            let paces = (Pace { rate, l2: schedule.weight_decay }, Pace { rate, l2: schedule.embedding_l2 });
            live.step(spec, &batch, products, &mut dropout, paces);
        })?;
        live.swap_average();
        let of = |rows: &Encoded, targets: &Targets| {
            let scores: Vec<f64> = live.forward(spec, rows, device).iter().step_by(spec.heads).map(|x| sigmoid(f64::from(*x))).collect();
            (metrics::logloss(&targets.positive, &scores), metrics::auc(&targets.positive, &scores))
        };
        let ((train_logloss, train_auc), (valid_logloss, valid_auc)) = (of(&curve, &curve_targets), of(valid, valid_targets));
        let (Some(train_logloss), Some(valid_logloss)) = (train_logloss, valid_logloss) else {
            at.halvings += 1;
            if at.halvings > HALVINGS {
                return Err(diverged(at.rate));
            }
            at.rate /= 2.0;
            let note = format!("epoch {epoch} gave no finite loss: back to the best weights, at the learning rate {:e}", at.rate);
            tracing::warn!("{note}");
            at.notes.push(note);
            live.reset(&best);
            continue;
        };
        let gain = match (schedule.monitor, valid_auc) {
            (Monitor::Auc, Some(auc)) => auc,
            _ => -valid_logloss,
        };
        let kept = at.best_gain.is_none_or(|best| gain > best + GAIN);
        let learning_rate = rate_at(epoch - 1, last, at.rate);
        at.epochs.push(EpochFacts { epoch, learning_rate, train_logloss, valid_logloss, train_auc, valid_auc, kept });
        tracing::info!(epoch, learning_rate, train_logloss, valid_logloss, valid_auc, kept, "epoch");
        if kept {
            (best, at.best_gain, at.drops) = (live.weights(), Some(gain), 0);
        }
        live.swap_average();
        if kept || schedule.rates == RateSchedule::Cosine {
            continue;
        }
        at.drops += 1;
        if at.drops > schedule.patience {
            break;
        }
        at.rate *= schedule.rate_drop;
        if schedule.go_back {
            live.reset(&best);
        }
    }
    if at.best_gain.is_none() {
        return Err(diverged(at.rate));
    }
    Ok(Trained { weights: best, epochs: at.epochs, notes: at.notes })
}

fn diverged(rate: f64) -> Error {
    Error::contract("the network's training gave no finite loss").action(format_args!("lower learning_rate (it was {rate}) and run again"))
}

/// Logits of every row, [rows, heads] row-major. Where a GPU fails, by the CPU.
pub(super) fn predict(spec: &Spec, weights: &Weights, rows: &Encoded, device: &str, threads: usize) -> Vec<f32> {
    let score = |name: &str| {
        let device = device::take_or_cpu(name, threads);
        Live::new(spec, weights, device, threads).forward(spec, rows, device)
    };
    catch_unwind(AssertUnwindSafe(|| score(device))).unwrap_or_else(|panic| match gpu_failure::of(&*panic) {
        Some(why) => {
            tracing::warn!("{}: scored on the CPU", why.text());
            score("cpu")
        }
        None => resume_unwind(panic),
    })
}

/// Where the outputs start: the logit of the share of positives, and of conversions among clicks.
fn base_logits(targets: &Targets) -> Vec<f64> {
    let rate = |positives: usize, rows: usize| super::logit(super::smoothed_rate(positives, rows));
    let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count();
    let mut base = vec![rate(count(&targets.positive), targets.positive.len())];
    if let Some(converted) = &targets.converted {
        let clicks: Vec<bool> =
            converted.iter().zip(&targets.positive).filter(|(_, click)| **click).filter_map(|(flag, _)| *flag).collect();
        base.push(rate(count(&clicks), clicks.len()));
    }
    base
}

/// Evenly spread training rows for the curve.
fn curve_rows(train: &Encoded, targets: &Targets) -> (Encoded, Targets) {
    let step = train.rows.div_ceil(CURVE_ROWS).max(1);
    let rows: Vec<usize> = (0..train.rows).step_by(step).collect();
    let positive = rows.iter().map(|row| targets.positive[*row]).collect();
    (train.select(&rows), Targets { positive, converted: None })
}
