//! Encoded rows -> logits by a network in libtorch, and its training.
//!
//! A network at rest is a [`Spec`] and named arrays; tensors live only inside [`train`] and [`predict`]. Initial weights, the order
//! of rows and dropout come from one seeded generator of ours, never from libtorch's global one: the same rows and seed give
//! the same bytes, however many trainings run side by side.

use super::features::{Encoded, FeatureMap};
use super::{Architecture, sigmoid};
use crate::error::{Error, Result};
use crate::statistics::metrics;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::nn::{self, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

/// A named array of an artefact, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

pub type Weights = BTreeMap<String, Weight>;

/// The shape of a network: what it reads of the encoded rows and how wide its layers are.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Spec {
    architecture: Architecture,
    /// Rows of the embedding table, and its columns but the last; the last is a first-order weight.
    table_rows: usize,
    dim: usize,
    /// First column of each entry, one id or a bag of ids, in the integer matrix, which they fill.
    entries: Vec<usize>,
    /// Pairs of entries whose embeddings are multiplied.
    matches: Vec<(usize, usize)>,
    /// Columns of the float matrix; with rising `evidence` every output rises or stays.
    floats: Vec<usize>,
    evidence: Vec<usize>,
    /// Added to the first head's logit: what is known before any weight is learned.
    offset: Option<Offset>,
    hidden: Vec<usize>,
    /// 1: click or interest. 2: and conversion given click.
    heads: usize,
}

/// A standardised column of the float matrix and the way back to its value: `center + scale * x`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Offset {
    pub float: usize,
    pub center: f32,
    pub scale: f32,
}

/// Width of the layer in which evidence and everything else meet.
const EVIDENCE_UNITS: usize = 16;

impl Spec {
    pub fn deep(map: &FeatureMap, dim: usize, hidden: &[usize], heads: usize, evidence: Vec<usize>) -> Self {
        let ranges = map.columns.iter().map(|column| column.role.ints()).filter(|range| !range.is_empty());
        let entries: Vec<usize> = ranges.map(|range| range.start).collect();
        let entry = |start: usize| entries.iter().position(|entry| *entry == start).expect("a match names columns of the map");
        let matches = map.matches.iter().map(|found| (entry(found.a.start), entry(found.b.start))).collect();
        let floats = (0..map.n_floats).filter(|float| !evidence.contains(float)).collect();
        Self {
            architecture: Architecture::Deep,
            table_rows: map.table_rows,
            dim,
            matches,
            entries,
            floats,
            evidence,
            offset: None,
            hidden: hidden.to_vec(),
            heads,
        }
    }

    pub fn with_offset(self, offset: Option<Offset>) -> Self {
        Self { offset, ..self }
    }

    pub fn article(n_floats: usize, heads: usize) -> Self {
        Self {
            architecture: Architecture::Article,
            table_rows: 0,
            dim: 0,
            entries: Vec::new(),
            matches: Vec::new(),
            floats: (0..n_floats).collect(),
            evidence: Vec::new(),
            offset: None,
            hidden: vec![64, 32],
            heads,
        }
    }

    /// Whether these are this network's weights.
    pub fn fits(&self, weights: &Weights) -> bool {
        let parameters = self.parameters();
        let same = |(name, shape, _): &(String, Vec<usize>, Start)| weights.get(name).is_some_and(|weight| weight.shape == *shape);
        parameters.len() == weights.len() && parameters.iter().all(same)
    }

    fn has_table(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Inputs of the first layer.
    fn width(&self) -> usize {
        self.entries.len() * self.dim + self.matches.len() * (self.dim + 1) + self.floats.len()
    }

    /// Every array of the network: name, shape, how it starts, whether it is an embedding.
    fn parameters(&self) -> Vec<(String, Vec<usize>, Start)> {
        let mut all = Vec::new();
        let mut layer = |name: &str, rows: usize, columns: usize, start: Start| {
            all.push((format!("{name}_weight"), vec![rows, columns], start));
            all.push((format!("{name}_bias"), vec![rows], Start::Constant(0.0)));
        };
        let fan_in = |columns: usize| Start::Uniform(1.0 / (columns.max(1) as f64).sqrt());
        let mut width = self.width();
        for (i, hidden) in self.hidden.iter().enumerate() {
            layer(&format!("plain_{i}"), *hidden, width, Start::Uniform((6.0 / width.max(1) as f64).sqrt()));
            width = *hidden;
        }
        layer("plain_out", self.heads, width, fan_in(width));
        if self.architecture == Architecture::Deep {
            let units = self.factors();
            layer("factor_0", 2 * units, self.width(), fan_in(self.width()));
            layer("factor_out", self.heads, 2 * units, fan_in(2 * units));
            all.push(("linear_weight".into(), vec![self.heads, self.floats.len()], Start::Constant(0.0)));
            if self.has_table() {
                all.push(("embedding".into(), vec![self.table_rows, self.dim + 1], Start::Normal(0.05)));
            }
            if !self.evidence.is_empty() {
                let (units, evidence) = (EVIDENCE_UNITS, self.evidence.len());
                // Through softplus these are about 0.05 to 0.1.
                all.push(("evidence_in".into(), vec![units, evidence], Start::Around(-2.5)));
                all.push(("evidence_out".into(), vec![self.heads, units], Start::Around(-2.5)));
                all.push(("evidence_linear".into(), vec![self.heads, evidence], Start::Around(-2.5)));
                all.push(("evidence_rest_weight".into(), vec![units, self.width()], fan_in(self.width())));
                all.push(("evidence_rest_bias".into(), vec![units], Start::Constant(0.0)));
            }
        }
        all
    }

    /// Units of each factor of the multiplying branch.
    fn factors(&self) -> usize {
        self.hidden.last().copied().unwrap_or(16)
    }

    /// Starting weights; outputs start at `base` logits.
    fn start(&self, base: &[f64], neutral: &[usize], rng: &mut ChaCha8Rng) -> Weights {
        let mut weights: Weights = BTreeMap::new();
        for (name, shape, start) in self.parameters() {
            let size = shape.iter().product();
            let data = match start {
                Start::Constant(x) => vec![x as f32; size],
                Start::Uniform(bound) => {
                    let uniform = Uniform::new_inclusive(-bound, bound).expect("a bound above zero");
                    (0..size).map(|_| uniform.sample(rng) as f32).collect()
                }
                Start::Normal(sd) => (0..size).map(|_| (sd * rng.sample::<f64, _>(StandardNormal)) as f32).collect(),
                Start::Around(x) => (0..size).map(|_| (x + 0.3 * rng.sample::<f64, _>(StandardNormal)) as f32).collect(),
            };
            weights.insert(name, Weight { shape, data });
        }
        if let Some(table) = weights.get_mut("embedding") {
            let width = self.dim + 1;
            neutral.iter().for_each(|row| table.data[row * width..][..width].fill(0.0));
            // First-order weights start at nothing.
            table.data.iter_mut().skip(self.dim).step_by(width).for_each(|x| *x = 0.0);
        }
        let bias = weights.get_mut("plain_out_bias").expect("every network has it");
        bias.data.iter_mut().zip(base).for_each(|(bias, base)| *bias = *base as f32);
        if let Some(offset) = &self.offset {
            bias.data[0] -= offset.center;
        }
        weights
    }

    /// Logits of a batch. ints: [batch, n_ints], floats: [batch, n_floats] -> [batch, heads].
    fn logits(&self, tensors: &BTreeMap<String, Tensor>, ints: &Tensor, floats: &Tensor, mut dropout: Option<&mut Dropout>) -> Tensor {
        let of = |name: &str| &tensors[name];
        let dense = |x: &Tensor, name: &str| x.linear(of(&format!("{name}_weight")), Some(of(&format!("{name}_bias"))));
        let deep = self.architecture == Architecture::Deep;
        let rows = ints.size()[0];
        let selected = |columns: &[usize]| floats.index_select(1, &indexes(columns, floats.device()));
        let plain_floats = if self.floats.len() as i64 == floats.size()[1] { floats.shallow_clone() } else { selected(&self.floats) };

        let mut inputs = Vec::new();
        let mut first_order = None;
        if self.has_table() {
            let entries = self.pooled(of("embedding"), ints); // [batch, entries, dim + 1]
            inputs.extend((0..self.entries.len()).map(|entry| entries.select(1, entry as i64).narrow(1, 0, self.dim as i64)));
            first_order = Some(entries.select(2, self.dim as i64).sum_dim_intlist(1, true, Kind::Float)); // [batch, 1]
            for &(a, b) in &self.matches {
                let product = &inputs[a] * &inputs[b];
                inputs.push(product.sum_dim_intlist(1, true, Kind::Float));
                inputs.push(product);
            }
        }
        inputs.push(plain_floats.shallow_clone());
        let x = Tensor::cat(&inputs, 1); // [batch, width]

        let mut plain = x.shallow_clone();
        for i in 0..self.hidden.len() {
            plain = dense(&plain, &format!("plain_{i}")).relu();
            if let Some(dropout) = dropout.as_deref_mut() {
                plain = dropout.apply(&plain);
            }
        }
        let mut out = dense(&plain, "plain_out"); // [batch, heads]
        if !deep {
            return out;
        }
        let factors = dense(&x, "factor_0").chunk(2, 1);
        let mut factors = Tensor::cat(&[&factors[0], &(&factors[0] * &factors[1])], 1).relu();
        if let Some(dropout) = dropout {
            factors = dropout.apply(&factors);
        }
        out += dense(&factors, "factor_out");
        out += plain_floats.matmul(&of("linear_weight").tr());
        if let Some(sum) = first_order {
            // One first-order weight an id serves the first head; conversions are too few for one each.
            let others = Tensor::zeros([rows, self.heads as i64 - 1], (Kind::Float, out.device()));
            out += Tensor::cat(&[sum, others], 1);
        }
        if let Some(Offset { float, center, scale }) = &self.offset {
            let known = floats.narrow(1, *float as i64, 1) * f64::from(*scale) + f64::from(*center);
            let others = Tensor::zeros([rows, self.heads as i64 - 1], (Kind::Float, out.device()));
            out += Tensor::cat(&[known, others], 1);
        }
        if !self.evidence.is_empty() {
            // Weights from evidence to output are positive and tanh rises: more evidence never lowers an output.
            let evidence = selected(&self.evidence);
            let meet = evidence.matmul(&of("evidence_in").softplus().tr()) + dense(&x, "evidence_rest");
            out += meet.tanh().matmul(&of("evidence_out").softplus().tr());
            out += evidence.matmul(&of("evidence_linear").softplus().tr());
        }
        out
    }

    /// The mean embedding of every entry's ids, zero where it has none. [batch, n_ints] -> [batch, entries, dim + 1].
    fn pooled(&self, table: &Tensor, ints: &Tensor) -> Tensor {
        let (rows, n_ints) = (ints.size()[0], ints.size()[1]);
        let on = (Kind::Int, ints.device());
        let starts = Tensor::from_slice(&self.entries.iter().map(|entry| *entry as i32).collect::<Vec<_>>()).to_device(on.1);
        let offsets = (Tensor::arange(rows, on) * n_ints).unsqueeze(1) + starts; // [batch, entries]
        // One bag sum for all: on the CPU the backward pass of a plain embedding costs a tensor operation an id.
        const MEAN: i64 = 1;
        let (means, ..) = Tensor::embedding_bag_padding_idx::<Tensor>(
            table,
            &ints.flatten(0, 1),
            &offsets.flatten(0, 1),
            false,
            MEAN,
            false,
            None,
            false,
            0,
        );
        means.view([rows, self.entries.len() as i64, self.dim as i64 + 1])
    }
}

#[derive(Clone, Copy)]
enum Start {
    Constant(f64),
    Uniform(f64),
    Normal(f64),
    /// Normal with spread 0.3 around a value.
    Around(f64),
}

fn indexes(columns: &[usize], device: Device) -> Tensor {
    Tensor::from_slice(&columns.iter().map(|column| *column as i64).collect::<Vec<_>>()).to_device(device)
}

/// Masks from our own generator: libtorch's is global, and another training would disturb it.
struct Dropout {
    rate: f64,
    rng: ChaCha8Rng,
    bytes: Vec<u8>,
}

impl Dropout {
    fn apply(&mut self, x: &Tensor) -> Tensor {
        let kept = ((1.0 - self.rate) * 256.0).round().clamp(1.0, 256.0);
        if kept == 256.0 {
            return x.shallow_clone();
        }
        self.bytes.resize(x.numel(), 0);
        self.rng.fill_bytes(&mut self.bytes);
        self.bytes.iter_mut().for_each(|byte| *byte = u8::from(f64::from(*byte) < kept));
        let mask = Tensor::from_slice(&self.bytes).view_as(x).to_device(x.device()).to_kind(Kind::Float);
        x * mask * (256.0 / kept)
    }
}

/// What is to be learned of each row.
pub(super) struct Targets {
    pub positive: Vec<bool>,
    /// Whether a click converted too; none where it is not known.
    pub converted: Option<Vec<Option<bool>>>,
}

/// How to train.
pub(super) struct Schedule {
    pub epochs: usize,
    pub patience: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub embedding_l2: f64,
    pub dropout: f64,
    pub threads: usize,
    /// Go back to the best weights at a lower rate when an epoch did not help; otherwise go on.
    pub drop_rate: bool,
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

/// On the training rows the curve is taken on at most so many of them.
const CURVE_ROWS: usize = 50_000;
/// When an epoch does not help, its weights are thrown away and the learning rate falls to this share.
const RATE_DROP: f64 = 0.2;
/// A small table still gets so many steps an epoch.
const MIN_STEPS: usize = 64;

/// Trains until the validation log-loss stops falling; returns the best epoch's weights and the curve.
pub(super) fn train(
    spec: &Spec,
    (train, targets): (&Encoded, &Targets),
    (valid, valid_targets): (&Encoded, &Targets),
    neutral_rows: &[usize],
    schedule: &Schedule,
    seed: u64,
) -> Result<(Weights, Vec<EpochFacts>)> {
    let device = use_device(schedule.threads);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let start = spec.start(&base_logits(targets), neutral_rows, &mut rng);
    let store = VarStore::new(device);
    let mut tensors = BTreeMap::new();
    for (name, weight) in &start {
        // Group 1 is the embeddings: a weight decay of their own.
        let path = store.root().set_group(usize::from(name == "embedding"));
        tensors.insert(name.clone(), path.f_var_copy(name, &tensor(weight, device))?);
    }
    let mut optimizer = nn::adam(0.9, 0.999, 0.0).build(&store, schedule.learning_rate)?;
    optimizer.set_weight_decay_group(0, schedule.weight_decay);
    if tensors.contains_key("embedding") {
        optimizer.set_weight_decay_group(1, schedule.embedding_l2);
    }
    let (ints, floats) = matrices(train, device);
    let y = target_matrix(targets, device);
    let curve = curve_rows(train, targets);
    let batch = schedule.batch_size.min((train.rows / MIN_STEPS).max(16));
    let mut dropout = Dropout { rate: schedule.dropout, rng: ChaCha8Rng::seed_from_u64(rng.next_u64()), bytes: Vec::new() };
    let mut order: Vec<i64> = (0..train.rows as i64).collect();
    let (mut best, mut best_loss) = (start, f64::INFINITY);
    let (mut rate, mut drops) = (schedule.learning_rate, 0);
    let mut epochs = Vec::new();
    for epoch in 1..=schedule.epochs {
        order.shuffle(&mut rng);
        let shuffled = Tensor::from_slice(&order).to_device(device);
        for start in (0..train.rows).step_by(batch) {
            let rows = shuffled.narrow(0, start as i64, batch.min(train.rows - start) as i64);
            let logits = spec.logits(&tensors, &ints.index_select(0, &rows), &floats.index_select(0, &rows), Some(&mut dropout));
            optimizer.backward_step(&loss(&logits, &y.index_select(0, &rows)));
        }
        let of = |rows: &Encoded, targets: &Targets| {
            let logits = forward(spec, &tensors, rows, device);
            let scores: Vec<f64> = logits.iter().step_by(spec.heads).map(|x| sigmoid(f64::from(*x))).collect();
            (metrics::logloss(&targets.positive, &scores), metrics::auc(&targets.positive, &scores))
        };
        let (Some(train_logloss), train_auc) = of(&curve.0, &curve.1) else { return Err(diverged(rate)) };
        let (Some(valid_logloss), valid_auc) = of(valid, valid_targets) else { return Err(diverged(rate)) };
        let kept = valid_logloss < best_loss - 1e-6;
        epochs.push(EpochFacts { epoch, learning_rate: rate, train_logloss, valid_logloss, train_auc, valid_auc, kept });
        tracing::debug!(epoch, train_logloss, valid_logloss, ?valid_auc, "epoch");
        if kept {
            (best_loss, drops) = (valid_logloss, 0);
            best = tensors.iter().map(|(name, tensor)| (name.clone(), weight(tensor))).collect();
            continue;
        }
        drops += 1;
        if drops > schedule.patience {
            break;
        }
        if !schedule.drop_rate {
            continue;
        }
        rate *= RATE_DROP;
        optimizer.set_lr(rate);
        tch::no_grad(|| tensors.iter_mut().for_each(|(name, live)| live.copy_(&tensor(&best[name], device))));
    }
    Ok((best, epochs))
}

fn diverged(rate: f64) -> Error {
    Error::contract("the network's training gave no finite loss").action(format_args!("lower learning_rate (it was {rate}) and run again"))
}

/// Logits of every row, [rows, heads] row-major.
pub(super) fn predict(spec: &Spec, weights: &Weights, rows: &Encoded, threads: usize) -> Vec<f32> {
    let device = use_device(threads);
    let tensors = weights.iter().map(|(name, weight)| (name.clone(), tensor(weight, device))).collect();
    forward(spec, &tensors, rows, device)
}

fn forward(spec: &Spec, tensors: &BTreeMap<String, Tensor>, rows: &Encoded, device: Device) -> Vec<f32> {
    const CHUNK: usize = 8192;
    let mut logits = Vec::with_capacity(rows.rows * spec.heads);
    tch::no_grad(|| {
        for start in (0..rows.rows).step_by(CHUNK) {
            let (ints, floats) = matrices(&rows.slice(start..(start + CHUNK).min(rows.rows)), device);
            logits.extend(weight(&spec.logits(tensors, &ints, &floats, None)).data);
        }
    });
    logits
}

/// The GPU when there is one; on the CPU, the thread count that the results belong to. It holds for the calling thread.
fn use_device(threads: usize) -> Device {
    tch::set_num_threads(threads as i32);
    Device::cuda_if_available()
}

/// Name of the device on which models train and score here.
pub fn device_name() -> String {
    match Device::cuda_if_available() {
        Device::Cpu => "cpu".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A click's log-loss, plus that of click-and-conversion over all rows where it is known: ESMM (arXiv 1804.07931).
fn loss(logits: &Tensor, targets: &Tensor) -> Tensor {
    let column = |tensor: &Tensor, i: i64| tensor.select(1, i);
    let click = column(logits, 0);
    let loss = click.binary_cross_entropy_with_logits::<Tensor>(&column(targets, 0), None, None, tch::Reduction::Mean);
    if logits.size()[1] == 1 {
        return loss;
    }
    let (both, known) = (column(targets, 1), column(targets, 2));
    let log_both = click.log_sigmoid() + column(logits, 1).log_sigmoid();
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

fn matrices(rows: &Encoded, device: Device) -> (Tensor, Tensor) {
    let n = rows.rows as i64;
    let ints = Tensor::from_slice(&rows.ints).view([n, rows.n_ints as i64]).to_device(device);
    let floats = Tensor::from_slice(&rows.floats).view([n, rows.n_floats as i64]).to_device(device);
    (ints, floats)
}

fn tensor(weight: &Weight, device: Device) -> Tensor {
    let shape: Vec<i64> = weight.shape.iter().map(|size| *size as i64).collect();
    Tensor::from_slice(&weight.data).view(shape.as_slice()).to_device(device)
}

fn weight(tensor: &Tensor) -> Weight {
    let host = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut data = vec![0.0; host.numel()];
    host.copy_data(&mut data, host.numel());
    Weight { shape: host.size().iter().map(|size| *size as usize).collect(), data }
}

impl From<tch::TchError> for crate::error::Error {
    fn from(error: tch::TchError) -> Self {
        crate::error::Error::internal(format_args!("libtorch: {error}"))
    }
}
