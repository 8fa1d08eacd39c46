//! A network's training: epochs, batches, steps, the validation rows, when to slow down and when to stop.
//!
//! Tensors live only inside [`train`] and [`predict`]. Initial weights, the order of rows and dropout come from one seeded generator
//! of ours, never from libtorch's global one: the same rows and seed give the same bytes, however many trainings run side by side.
//! The dense weights are one flat buffer, of which the layers' arrays are views, so that the optimiser is a few operations; the
//! embedding table has its own (see [`super::table`]). Nothing is read back from the device within a step.

use super::checkpoint::{At, BEST, Checkpoint, Checkpoints, Progress, Steps};
use super::device;
use super::features::{Encoded, FeatureMap};
use super::network::{Dropout, Inputs, Logits, Pass, Spec, TABLE, Weight, Weights, agreement, is_running};
use super::sigmoid;
use super::streamed::Streamed;
use super::table::{Adam, Ids, Order, Pace, Rows, Table};
use crate::error::{Error, Result};
use crate::statistics::metrics;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tch::{Device, Kind, Tensor};

/// What is to be learned of each row.
#[derive(Clone, Debug)]
pub struct Targets {
    pub positive: Vec<bool>,
    /// Whether a click converted too; none where it is not known.
    pub converted: Option<Vec<Option<bool>>>,
}

/// Training rows.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// All of them or, where they are streamed, a sample: for the curve and for the rates at which outputs start.
    pub rows: &'a Encoded,
    pub targets: &'a Targets,
    pub streamed: Option<Stream<'a>>,
}

/// Rows that come from elsewhere in every epoch.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    pub from: &'a Streamed,
    pub map: &'a FeatureMap,
    /// How many there are.
    pub rows: usize,
}

impl<'a> Source<'a> {
    pub fn resident(rows: &'a Encoded, targets: &'a Targets) -> Self {
        Self { rows, targets, streamed: None }
    }

    fn len(&self) -> usize {
        self.streamed.map_or(self.rows.rows, |stream| stream.rows)
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub epochs: usize,
    pub patience: usize,
    pub batch_size: usize,
    /// A small table still gets so many steps an epoch.
    pub min_steps: usize,
    pub learning_rate: f64,
    pub rates: RateSchedule,
    /// When an epoch did not help, the learning rate falls to this share; 1: it stays.
    pub rate_drop: f64,
    /// And the weights of the best epoch are taken up again.
    pub go_back: bool,
    pub monitor: Monitor,
    pub weight_decay: f64,
    pub embedding_l2: f64,
    pub dropout: f64,
    /// Decay of the average of the weights that is kept in their place; 0: the weights themselves.
    pub ema: f64,
    pub precision: Precision,
    pub device: String,
    pub threads: usize,
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
        arrays.insert(POOL.to_owned(), weight(&pool.to_kind(Kind::Float)));
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

/// What tells on the validation rows whether an epoch helped.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Monitor {
    /// How well the rows are ranked. Where the scores are calibrated afterwards, overconfidence costs nothing.
    Auc,
    /// Log-loss before calibration.
    Logloss,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RateSchedule {
    /// When an epoch did not help on the validation rows; in the end that stops the training.
    Plateau,
    /// Along half a cosine to zero over all epochs, none of which is left out; the best is kept (arXiv 1608.03983).
    Cosine,
}

impl RateSchedule {
    /// The rate when a share of all steps is `done`.
    fn at(self, rate: f64, done: f64) -> f64 {
        match self {
            Self::Plateau => rate,
            Self::Cosine => rate * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        }
    }
}

/// Of the hidden layers' products while training; weights, sums and scoring are always of 32 bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16 where the processor multiplies it faster and the layers are wide enough to gain.
    Auto,
    Float32,
    Bfloat16,
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
/// Names of a checkpoint's arrays that are no weights: of the dense optimiser, of the table's, of the average, of dropout.
const DENSE: [&str; 2] = ["dense/first", "dense/second"];
const OF_TABLE: [&str; 2] = ["table/first", "table/second"];
const AVERAGE: [&str; 2] = ["average/dense", "average/table"];
const POOL: &str = "dropout/pool";
/// A batch is not halved below this: it is not what fills the memory.
const SMALLEST_BATCH: usize = 64;
/// Below so many units bfloat16's conversions cost what its products save.
const WIDE: usize = 128;

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
    with_less(schedule, |schedule| {
        let device = device::take(&schedule.device, schedule.threads)?;
        attempt(spec, train, valid, start, schedule, seed, device)
    })
}

/// Where a GPU runs out of memory the batch is halved, and at last, or at once when the GPU fails otherwise, the CPU is taken.
fn with_less(wanted: &Schedule, attempt: impl Fn(&Schedule) -> Result<Trained>) -> Result<Trained> {
    let mut schedule = wanted.clone();
    let mut notes = Vec::new();
    loop {
        let panic = match catch_unwind(AssertUnwindSafe(|| attempt(&schedule))) {
            Ok(outcome) => return outcome.map(|trained| Trained { notes: [notes, trained.notes].concat(), ..trained }),
            Err(panic) => panic,
        };
        let Some(why) = gpu_failure(&*panic).filter(|_| schedule.device != "cpu") else { resume_unwind(panic) };
        let smaller = schedule.batch_size / 2;
        let note = if why == GpuFailure::OutOfMemory && smaller >= SMALLEST_BATCH && notes.len() < HALVINGS {
            schedule.batch_size = smaller;
            format!("{}: the batch was halved to {smaller}", why.text())
        } else {
            schedule = Schedule { device: "cpu".into(), ..wanted.clone() };
            format!("{}: trained on the CPU", why.text())
        };
        tracing::warn!("{note}");
        notes.push(note);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GpuFailure {
    OutOfMemory,
    Other,
}

impl GpuFailure {
    fn text(self) -> &'static str {
        match self {
            Self::OutOfMemory => "the GPU ran out of memory",
            Self::Other => "the GPU failed",
        }
    }
}

/// libtorch's binding panics with the text of the error.
fn gpu_failure(panic: &(dyn std::any::Any + Send)) -> Option<GpuFailure> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    let of_gpu = ["CUDA", "CUBLAS", "CUDNN"].iter().any(|name| text.contains(name));
    let out_of_memory = text.contains("out of memory") || text.contains("ALLOC_FAILED");
    of_gpu.then_some(if out_of_memory { GpuFailure::OutOfMemory } else { GpuFailure::Other })
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
    let products = products(schedule.precision, spec, device);
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
        dropout.take_up(&state, &tensor(&arrays[POOL], device));
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
            live.step(spec, &batch.ids, &batch.floats, &batch.y, products, &mut dropout, paces);
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

/// The training rows in batches, in an order of each epoch's own.
enum Batches<'a> {
    Resident(Resident<'a>),
    /// With the seed of the orders.
    Streamed(Stream<'a>, u64),
}

/// Rows that are on the device all the while.
struct Resident<'a> {
    rows: Rows<'a>,
    /// [rows, 1 or 3]
    y: Tensor,
    order: Order,
    len: usize,
}

struct Batch {
    ids: Ids,
    floats: Tensor,
    y: Tensor,
    /// The share of the epoch that was done before it.
    done: f64,
}

impl Batches<'_> {
    fn epoch(&mut self, epoch: usize, batch_size: usize, rng: &mut ChaCha8Rng, device: Device, mut step: impl FnMut(Batch)) -> Result<()> {
        match self {
            Self::Resident(resident) => {
                resident.order.shuffle(rng, device);
                resident.batches(batch_size, step);
                Ok(())
            }
            Self::Streamed(stream, seed) => {
                // Of the epoch alone, so that an interrupted training finds its place without reading.
                let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(epoch as u64));
                let mut before = 0;
                stream.from.blocks(stream.map, rng.next_u64(), |block| {
                    let mut resident = Resident::new(&block.rows, &block.targets, device);
                    resident.order.shuffle(&mut rng, device);
                    let (start, share) = (before as f64 / stream.rows as f64, block.rows.rows as f64 / stream.rows as f64);
                    resident.batches(batch_size, |batch| step(Batch { done: start + share * batch.done, ..batch }));
                    before += block.rows.rows;
                    Ok(())
                })
            }
        }
    }

    /// The generator and the order stand where an epoch leaves them.
    fn skip_epoch(&mut self, rng: &mut ChaCha8Rng, device: Device) {
        if let Self::Resident(resident) = self {
            resident.order.shuffle(rng, device);
        }
    }
}

impl<'a> Resident<'a> {
    fn new(rows: &'a Encoded, targets: &Targets, device: Device) -> Self {
        Self { rows: Rows::on(device, rows), y: target_matrix(targets, device), order: Order::new(rows.rows), len: rows.rows }
    }

    fn batches(&self, batch_size: usize, mut step: impl FnMut(Batch)) {
        let steps = self.len.div_ceil(batch_size);
        for i in 0..steps {
            let range = part(self.len, steps, i);
            let (ids, floats) = self.rows.chosen(&self.order, range.clone());
            let y = self.y.index_select(0, &self.order.chosen(range));
            step(Batch { ids, floats, y, done: i as f64 / steps as f64 });
        }
    }
}

/// Rows of step `step` of `steps` of nearly equal size: no last batch of a row or two.
fn part(rows: usize, steps: usize, step: usize) -> Range<usize> {
    step * rows / steps..(step + 1) * rows / steps
}

fn products(precision: Precision, spec: &Spec, device: Device) -> Kind {
    match precision {
        Precision::Float32 => Kind::Float,
        Precision::Bfloat16 => Kind::BFloat16,
        Precision::Auto if spec.widest() >= WIDE && (device != Device::Cpu || multiplies_bfloat16()) => Kind::BFloat16,
        Precision::Auto => Kind::Float,
    }
}

/// Whether the processor has instructions for it.
fn multiplies_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// A network's tensors while it trains or scores.
struct Live {
    tensors: BTreeMap<String, Tensor>,
    /// All trained arrays but the table, one after the other; `trained` are views of it, in the same order.
    flat: Tensor,
    trained: Vec<String>,
    adam: Adam,
    table: Option<Table>,
    average: Option<Average>,
}

/// An exponential moving average of the trained weights: steadier than the last step's where the loss is noisy. Running means and
/// variances are averages already and stay as they are.
struct Average {
    decay: f64,
    steps: i32,
    flat: Tensor,
    table: Option<Tensor>,
}

impl Average {
    fn of(flat: &Tensor, table: Option<&Table>, decay: f64) -> Self {
        Self { decay, steps: 0, flat: flat.copy(), table: table.map(Table::values) }
    }

    fn follow(&mut self, flat: &Tensor, table: Option<&Table>) {
        self.steps += 1;
        let steps = f64::from(self.steps);
        // A young average would hold on to where it started.
        let share = 1.0 - self.decay.min((1.0 + steps) / (10.0 + steps));
        let _ = self.flat.lerp_(flat, share);
        if let (Some(average), Some(table)) = (&mut self.table, table) {
            let _ = average.lerp_(&table.values(), share);
        }
    }
}

impl Live {
    fn new(spec: &Spec, weights: &Weights, device: Device, threads: usize) -> Self {
        let trained: Vec<String> = weights.keys().filter(|name| *name != TABLE && !is_running(name)).cloned().collect();
        let numbers: Vec<f32> = trained.iter().flat_map(|name| &weights[name].data).copied().collect();
        let flat = Tensor::from_slice(&numbers).to_device(device);
        let mut tensors = BTreeMap::new();
        let mut start = 0;
        for name in &trained {
            let (shape, size) = (shape(&weights[name]), weights[name].data.len() as i64);
            let view = flat.narrow(0, start, size).view(shape.as_slice()).detach();
            tensors.insert(name.clone(), view.set_requires_grad(true));
            start += size;
        }
        for (name, weight) in weights.iter().filter(|(name, _)| is_running(name)) {
            tensors.insert(name.clone(), tensor(weight, device));
        }
        let table = weights.get(TABLE).map(|weight| Table::on(device, &spec.fields, weight, threads));
        Self { tensors, adam: Adam::new(&flat), flat, trained, table, average: None }
    }

    fn average_over(&mut self, decay: f64) {
        self.average = Some(Average::of(&self.flat, self.table.as_ref(), decay));
    }

    /// Exchanges the weights and their average; done twice, all is as before.
    fn swap_average(&mut self) {
        let Some(average) = &mut self.average else { return };
        let flat = self.flat.copy();
        tch::no_grad(|| self.flat.copy_(&average.flat));
        average.flat = flat;
        if let (Some(of_table), Some(table)) = (&mut average.table, &mut self.table) {
            let values = table.values();
            table.set_values(of_table);
            *of_table = values;
        }
    }

    fn step(
        &mut self,
        spec: &Spec,
        ids: &Ids,
        floats: &Tensor,
        y: &Tensor,
        products: Kind,
        dropout: &mut Dropout,
        (dense, embedded): (Pace, Pace),
    ) {
        let fields = self.table.as_ref().map(|table| table.fields(ids).set_requires_grad(true));
        let known = self.table.as_ref().filter(|_| spec.asks_what_is_known()).map(|table| table.known(ids));
        let mut pass = Pass { tensors: &self.tensors, products, dropout: Some(dropout) };
        let logits = spec.logits(&mut pass, &Inputs { fields: fields.as_ref(), known: known.as_ref(), floats });
        let leaves: Vec<&Tensor> = self.trained.iter().map(|name| &self.tensors[name]).chain(&fields).collect();
        let mut gradients = Tensor::run_backward(&[loss(&logits, y)], &leaves, false, false);
        tch::no_grad(|| {
            if let (Some(table), Some(_)) = (&mut self.table, &fields) {
                let gradient = gradients.pop().expect("one gradient a leaf");
                table.step(ids, &gradient, embedded);
            }
            let gradients: Vec<Tensor> = gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect();
            self.adam.step(&mut self.flat, Tensor::cat(&gradients, 0), dense);
            if let Some(average) = &mut self.average {
                average.follow(&self.flat, self.table.as_ref());
            }
        });
    }

    /// Logits of every row, [rows, heads] row-major.
    fn forward(&self, spec: &Spec, rows: &Encoded, device: Device) -> Vec<f32> {
        const CHUNK: usize = 8192;
        let mut logits = Vec::with_capacity(rows.rows * spec.heads);
        tch::no_grad(|| {
            for start in (0..rows.rows).step_by(CHUNK) {
                let chunk = rows.slice(start..(start + CHUNK).min(rows.rows));
                let (ids, floats) = Rows::on(device, &chunk).range(0..chunk.rows);
                let fields = self.table.as_ref().map(|table| table.fields(&ids));
                let known = self.table.as_ref().filter(|_| spec.asks_what_is_known()).map(|table| table.known(&ids));
                let mut pass = Pass { tensors: &self.tensors, products: Kind::Float, dropout: None };
                let batch = Inputs { fields: fields.as_ref(), known: known.as_ref(), floats: &floats };
                logits.extend(weight(&spec.logits(&mut pass, &batch).all).data);
            }
        });
        logits
    }

    fn weights(&self) -> Weights {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), weight(tensor)));
        tensors.chain(self.table.iter().map(|table| (TABLE.to_owned(), table.weight()))).collect()
    }

    /// All that training changes: steps and arrays.
    fn state(&self) -> (Steps, Weights) {
        let mut arrays = self.weights();
        let mut steps = Steps { dense: self.adam.steps, ..Steps::default() };
        let mut keep = |names: [&str; 2], tensors: [Option<&Tensor>; 2]| {
            let known = names.into_iter().zip(tensors).filter_map(|(name, tensor)| Some((name.to_owned(), weight(tensor?))));
            arrays.extend(known);
        };
        keep(DENSE, [Some(&self.adam.first), Some(&self.adam.second)]);
        if let Some(table) = &self.table {
            let (first, second, of_table) = table.moments();
            keep(OF_TABLE, [Some(&first), Some(&second)]);
            steps.table = of_table;
        }
        if let Some(average) = &self.average {
            keep(AVERAGE, [Some(&average.flat), average.table.as_ref()]);
            steps.average = average.steps;
        }
        (steps, arrays)
    }

    /// Goes on from such a state.
    fn take_up(&mut self, steps: Steps, arrays: &Weights) {
        self.reset(arrays);
        let device = self.flat.device();
        let of = |names: [&str; 2]| names.map(|name| arrays.get(name).map(|weight| tensor(weight, device)));
        if let [Some(first), Some(second)] = of(DENSE) {
            self.adam = Adam { first, second, steps: steps.dense };
        }
        if let (Some(table), [Some(first), Some(second)]) = (&mut self.table, of(OF_TABLE)) {
            table.set_moments(&first, &second, steps.table);
        }
        if let (Some(average), [Some(flat), table]) = (&mut self.average, of(AVERAGE)) {
            *average = Average { decay: average.decay, steps: steps.average, flat, table };
        }
    }

    /// Takes other weights and starts the optimisers anew.
    fn reset(&mut self, weights: &Weights) {
        tch::no_grad(|| {
            for (name, live) in &mut self.tensors {
                live.copy_(&tensor(&weights[name], live.device()));
            }
        });
        if let Some(table) = &mut self.table {
            table.reset(&weights[TABLE]);
        }
        self.adam.forget();
        if let Some(decay) = self.average.as_ref().map(|average| average.decay) {
            self.average_over(decay);
        }
    }
}

/// Logits of every row, [rows, heads] row-major. Where a GPU fails, by the CPU.
pub(super) fn predict(spec: &Spec, weights: &Weights, rows: &Encoded, device: &str, threads: usize) -> Vec<f32> {
    let score = |name: &str| {
        let device = device::take_or_cpu(name, threads);
        Live::new(spec, weights, device, threads).forward(spec, rows, device)
    };
    catch_unwind(AssertUnwindSafe(|| score(device))).unwrap_or_else(|panic| match gpu_failure(&*panic) {
        Some(why) => {
            tracing::warn!("{}: scored on the CPU", why.text());
            score("cpu")
        }
        None => resume_unwind(panic),
    })
}

/// A click's log-loss, plus that of click-and-conversion over all rows where it is known: ESMM (arXiv 1804.07931).
fn loss(logits: &Logits, targets: &Tensor) -> Tensor {
    let column = |tensor: &Tensor, i: i64| tensor.select(1, i);
    let click = column(&logits.all, 0);
    let mut loss = click.binary_cross_entropy_with_logits::<Tensor>(&column(targets, 0), None, None, tch::Reduction::Mean);
    if let Some(agreement) = agreement(logits) {
        loss += agreement;
    }
    if logits.all.size()[1] == 1 {
        return loss;
    }
    let (both, known) = (column(targets, 1), column(targets, 2));
    let log_both = click.log_sigmoid() + column(&logits.all, 1).log_sigmoid();
    let log_not = (-log_both.exp()).clamp_min(-1.0 + 1e-7).log1p();
    let second = -(&both * log_both + (-&both + 1.0) * log_not) * &known;
    loss + second.sum(Kind::Float) / known.sum(Kind::Float).clamp_min(1.0)
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

/// [rows, 1] or, with conversions, [rows, 3]: click, click and conversion, whether that is known.
fn target_matrix(targets: &Targets, device: Device) -> Tensor {
    let number = |flag: bool| f32::from(u8::from(flag));
    let values: Vec<f32> = match &targets.converted {
        None => targets.positive.iter().map(|click| number(*click)).collect(),
        Some(converted) => {
            let row =
                |(click, flag): (&bool, &Option<bool>)| [number(*click), number(*click && *flag == Some(true)), number(flag.is_some())];
            targets.positive.iter().zip(converted).flat_map(row).collect()
        }
    };
    Tensor::from_slice(&values).view([targets.positive.len() as i64, -1]).to_device(device)
}

/// Evenly spread training rows for the curve.
fn curve_rows(train: &Encoded, targets: &Targets) -> (Encoded, Targets) {
    let step = train.rows.div_ceil(CURVE_ROWS).max(1);
    let rows: Vec<usize> = (0..train.rows).step_by(step).collect();
    let positive = rows.iter().map(|row| targets.positive[*row]).collect();
    (train.select(&rows), Targets { positive, converted: None })
}

fn shape(weight: &Weight) -> Vec<i64> {
    weight.shape.iter().map(|size| *size as i64).collect()
}

pub(super) fn tensor(weight: &Weight, device: Device) -> Tensor {
    Tensor::from_slice(&weight.data).view(shape(weight).as_slice()).to_device(device)
}

pub(super) fn weight(tensor: &Tensor) -> Weight {
    let host = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut data = vec![0.0; host.numel()];
    host.copy_data(&mut data, host.numel());
    Weight { shape: host.size().iter().map(|size| *size as usize).collect(), data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn schedule() -> Schedule {
        Schedule {
            epochs: 1,
            patience: 0,
            batch_size: 512,
            min_steps: 1,
            learning_rate: 0.1,
            rates: RateSchedule::Plateau,
            rate_drop: 1.0,
            go_back: false,
            monitor: Monitor::Auc,
            weight_decay: 0.0,
            embedding_l2: 0.0,
            dropout: 0.0,
            ema: 0.0,
            precision: Precision::Float32,
            device: "auto".into(),
            threads: 1,
        }
    }

    /// What is tried, (batch, device), when every attempt on a GPU panics so; and the notes.
    fn tried(panics: &str) -> (Vec<(usize, String)>, Vec<String>) {
        let tried = RefCell::new(Vec::new());
        let trained = with_less(&schedule(), |schedule| {
            tried.borrow_mut().push((schedule.batch_size, schedule.device.clone()));
            assert!(schedule.device == "cpu", "{panics}");
            Ok(Trained { weights: Weights::new(), epochs: Vec::new(), notes: vec!["its own".into()] })
        });
        (tried.into_inner(), trained.expect("the CPU trains").notes)
    }

    #[test]
    fn a_full_gpu_gets_smaller_batches_and_then_the_cpu_trains_as_wanted() {
        let (tried, notes) = tried("CUDA out of memory. Tried to allocate 2.00 GiB");
        let batches: Vec<usize> = tried.iter().map(|(batch, _)| *batch).collect();
        assert_eq!(batches, [512, 256, 128, 64, 512]);
        assert_eq!(tried[4].1, "cpu");
        assert!(notes.len() == 5 && notes[0].contains("halved to 256") && notes[3].contains("CPU") && notes[4] == "its own", "{notes:?}");
    }

    #[test]
    fn the_average_follows_the_weights_and_swaps_with_them() {
        let spec = Spec::article(3, 1);
        let weights = spec.start(&[0.0], &[], &mut ChaCha8Rng::seed_from_u64(1));
        let mut live = Live::new(&spec, &weights, Device::Cpu, 1);
        live.average_over(0.9);
        let at = |live: &Live| live.flat.double_value(&[0]);
        let start = at(&live);
        live.flat += 1.0;
        if let Some(average) = &mut live.average {
            average.follow(&live.flat, None);
        }
        live.swap_average();
        // After one step the decay is (1 + 1) / (10 + 1).
        assert!((at(&live) - start - 9.0 / 11.0).abs() < 1e-6, "{} {start}", at(&live));
        assert_ne!(live.weights(), weights, "what is kept is the average");
        live.swap_average();
        assert!((at(&live) - start - 1.0).abs() < 1e-6, "training goes on from the weights");
        live.reset(&weights);
        live.swap_average();
        assert_eq!(at(&live), start, "and from other weights with a new average");
    }

    #[test]
    fn a_gpu_that_fails_otherwise_is_left_at_once() {
        let (tried, notes) = tried("CUDA error: an illegal memory access was encountered");
        assert_eq!(tried, [(512, "auto".to_owned()), (512, "cpu".to_owned())]);
        assert!(notes[0].contains("the GPU failed"), "{notes:?}");
    }

    #[test]
    #[should_panic(expected = "a bug of ours")]
    fn any_other_panic_goes_on() {
        tried("a bug of ours");
    }
}
