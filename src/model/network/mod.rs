//! The networks: what each reads of the encoded rows, its arrays, and how a batch becomes logits.
//!
//! A network at rest is a [`Spec`] and named arrays. Each architecture has a file with its paper: [`final_net`], [`dcn`], [`deep`]
//! (rising in counts, for interests) and [`article`]. They share the embedded fields that [`Fields`] names and the layers of [`Pass`].

mod article;
mod attention;
mod dcn;
mod deep;
mod final_net;

use super::features::FeatureMap;
pub(crate) use final_net::agreement;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A named array of an artefact, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Weight {
    /// The values of a tensor.
    pub fn of(tensor: &Tensor) -> Self {
        let host = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut data = vec![0.0; host.numel()];
        host.copy_data(&mut data, host.numel());
        Self { shape: host.size().iter().map(|size| *size as usize).collect(), data }
    }

    pub fn tensor(&self, device: Device) -> Tensor {
        let shape: Vec<i64> = self.shape.iter().map(|size| *size as i64).collect();
        Tensor::from_slice(&self.data).view(shape.as_slice()).to_device(device)
    }
}

pub type Weights = BTreeMap<String, Weight>;

/// Which network scores responses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Two branches that multiply what they find, and teach each other (SIGIR 2023).
    FinalNet,
    /// Crosses of bounded degree beside a plain branch (arXiv 2008.13535).
    DcnV2,
    /// A linear part, a plain branch and a multiplying branch: small, and the shape of the interest network.
    Deep,
    /// The network of the article that this program started from: Dense 64 ReLU, dropout 0.5, Dense 32 ReLU, dropout 0.5, sigmoid on
    /// the baseline's inputs; Adam 1e-3, batch 32, 50 epochs, of which the best is kept. It ignores the other settings of layers and
    /// training.
    Article,
}

/// The shape of a network.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Spec {
    architecture: Architecture,
    pub fields: Fields,
    /// Columns of the float matrix; with rising `evidence` every output rises or stays.
    floats: Vec<usize>,
    evidence: Vec<usize>,
    /// Added to the first head's logit: what is known before any weight is learned.
    offset: Option<Offset>,
    hidden: Vec<usize>,
    /// 1: click or interest. 2: and conversion given click.
    pub heads: usize,
}

/// How the integer matrix is embedded: its columns are cut into bags, and a bag's field is the mean embedding of its ids.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Fields {
    /// Rows of the embedding table and its columns. Row 0 pads and stays zero.
    pub table_rows: usize,
    pub width: usize,
    /// Columns of the integer matrix of each bag, in order and without gaps.
    pub bags: Vec<Range<usize>>,
    /// Of the width, how much is the embedding; the rest are first-order weights.
    dim: usize,
    /// Pairs of fields whose embeddings are multiplied.
    matches: Vec<(usize, usize)>,
    /// Sequences read by attention: their bags of one id each, and the field that asks.
    attended: Vec<(Range<usize>, usize)>,
}

/// A standardised column of the float matrix and the way back to its value: `center + scale * x`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Offset {
    pub float: usize,
    pub center: f32,
    pub scale: f32,
}

/// The embedding table's name among the weights.
pub(crate) const TABLE: &str = "embedding";

/// How an array starts.
#[derive(Clone, Copy)]
enum Start {
    Constant(f64),
    Uniform(f64),
    Normal(f64),
    /// Normal with spread 0.3 around a value.
    Around(f64),
}

/// The arrays of a network: name, shape, start.
type Arrays = Vec<(String, Vec<usize>, Start)>;

impl Spec {
    /// A network on embeddings. With `attention`, a sequence that matches a single id is read as that id asks (DIN).
    pub fn embedded(architecture: Architecture, map: &FeatureMap, dim: usize, hidden: &[usize], heads: usize, attention: bool) -> Self {
        Self::of_map(architecture, map, dim, hidden, heads, Vec::new(), attention)
    }

    /// The network of interests: it rises in `evidence`.
    pub fn rising(map: &FeatureMap, dim: usize, hidden: &[usize], evidence: Vec<usize>) -> Self {
        Self::of_map(Architecture::Deep, map, dim, hidden, 1, evidence, false)
    }

    fn of_map(
        architecture: Architecture,
        map: &FeatureMap,
        dim: usize,
        hidden: &[usize],
        heads: usize,
        evidence: Vec<usize>,
        attention: bool,
    ) -> Self {
        let floats = (0..map.n_floats).filter(|float| !evidence.contains(float)).collect();
        let first_order = usize::from(architecture == Architecture::Deep);
        let fields = Fields::of(map, dim, first_order, attention);
        Self { architecture, fields, floats, evidence, offset: None, hidden: hidden.to_vec(), heads }
    }

    pub fn with_offset(self, offset: Option<Offset>) -> Self {
        Self { offset, ..self }
    }

    pub fn article(n_floats: usize, heads: usize) -> Self {
        let fields = Fields { table_rows: 0, width: 0, bags: Vec::new(), dim: 0, matches: Vec::new(), attended: Vec::new() };
        let floats = (0..n_floats).collect();
        Self { architecture: Architecture::Article, fields, floats, evidence: Vec::new(), offset: None, hidden: vec![64, 32], heads }
    }

    /// Whether these are this network's weights.
    pub fn fits(&self, weights: &Weights) -> bool {
        let arrays = self.arrays();
        let same = |(name, shape, _): &(String, Vec<usize>, Start)| weights.get(name).is_some_and(|weight| weight.shape == *shape);
        arrays.len() == weights.len() && arrays.iter().all(same)
    }

    /// Whether the two are one network, but for the rows of the embedding table.
    pub fn has_layers_of(&self, other: &Self) -> bool {
        let fields = Fields { table_rows: other.fields.table_rows, ..self.fields.clone() };
        Self { fields, ..self.clone() } == *other
    }

    /// Whether attention must know which places of a sequence are filled.
    pub fn asks_what_is_known(&self) -> bool {
        !self.fields.attended.is_empty()
    }

    /// Units of the widest hidden layer.
    pub fn widest(&self) -> usize {
        self.hidden.iter().copied().max().unwrap_or(0)
    }

    fn has_table(&self) -> bool {
        !self.fields.bags.is_empty()
    }

    /// Numbers that stand beside the embedded fields in the first layer's input.
    fn beside(&self) -> usize {
        self.fields.matches.len() * (self.fields.dim + 1) + self.floats.len()
    }

    /// Embedded fields after the sequences were pooled.
    fn n_fields(&self) -> usize {
        let places: usize = self.fields.attended.iter().map(|(bags, _)| bags.len()).sum();
        self.fields.bags.len() - places + self.fields.attended.len()
    }

    /// Inputs of the first layer.
    fn width(&self) -> usize {
        self.n_fields() * self.fields.dim + self.beside()
    }

    fn arrays(&self) -> Arrays {
        let mut arrays = match self.architecture {
            Architecture::FinalNet => final_net::arrays(self),
            Architecture::DcnV2 => dcn::arrays(self),
            Architecture::Deep => deep::arrays(self),
            Architecture::Article => article::arrays(self),
        };
        arrays.extend(attention::arrays(&self.fields));
        if self.has_table() {
            // Deep's products need room to begin with; behind a normalised layer a small start overfits less.
            let spread = if self.architecture == Architecture::Deep { 0.05 } else { 0.01 };
            arrays.push((TABLE.into(), vec![self.fields.table_rows, self.fields.width], Start::Normal(spread)));
        }
        arrays
    }

    /// Starting weights; outputs start at `base` logits.
    pub fn start(&self, base: &[f64], neutral: &[usize], rng: &mut ChaCha8Rng) -> Weights {
        let mut weights: Weights = BTreeMap::new();
        for (name, shape, start) in self.arrays() {
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
        if let Some(table) = weights.get_mut(TABLE) {
            let width = self.fields.width;
            neutral.iter().for_each(|row| table.data[row * width..][..width].fill(0.0));
            // First-order weights start at nothing.
            (self.fields.dim..width).for_each(|column| table.data.iter_mut().skip(column).step_by(width).for_each(|x| *x = 0.0));
        }
        let offset = self.offset.as_ref().map_or(0.0, |offset| offset.center);
        for (_, bias) in weights.iter_mut().filter(|(name, _)| name.ends_with(BASE)) {
            bias.data.iter_mut().zip(base).for_each(|(bias, base)| *bias = *base as f32);
            bias.data[0] -= offset;
        }
        weights
    }

    /// Logits of a batch. fields: [batch, bags, width] of the table, ids: whether each bag's first id is one [batch, bags], floats:
    /// [batch, n_floats].
    pub fn logits(&self, pass: &mut Pass, batch: &Inputs) -> Logits {
        match self.architecture {
            Architecture::FinalNet => final_net::logits(self, pass, batch),
            Architecture::DcnV2 => Logits::of(dcn::logits(self, pass, batch)),
            Architecture::Deep => Logits::of(deep::logits(self, pass, batch)),
            Architecture::Article => Logits::of(article::logits(self, pass, batch)),
        }
    }

    /// The embedded fields, sequences pooled [batch, n_fields, dim], and what stands beside them [batch, beside]: products of
    /// matching fields, then the floats.
    fn inputs(&self, pass: &mut Pass, batch: &Inputs) -> (Option<Tensor>, Tensor) {
        let floats = self.plain_floats(batch);
        let Some(table) = batch.fields.filter(|_| self.has_table()) else { return (None, floats) };
        let dim = self.fields.dim as i64;
        let embeddings = table.narrow(2, 0, dim); // [batch, bags, dim]
        let embeddings = attention::pool(&self.fields, pass, &embeddings, batch.known);
        let mut beside = Vec::new();
        for &(a, b) in &self.fields.matches {
            let product = embeddings.select(1, a as i64) * embeddings.select(1, b as i64);
            beside.push(product.sum_dim_intlist(1, true, Kind::Float));
            beside.push(product);
        }
        beside.push(floats);
        (Some(embeddings), Tensor::cat(&beside, 1))
    }

    fn plain_floats(&self, batch: &Inputs) -> Tensor {
        if self.floats.len() as i64 == batch.floats.size()[1] { batch.floats.shallow_clone() } else { columns(batch.floats, &self.floats) }
    }

    /// What is known before any weight is learned, for the first head. [batch, heads]
    fn known(&self, batch: &Inputs) -> Option<Tensor> {
        let Offset { float, center, scale } = self.offset.as_ref()?;
        let known = batch.floats.narrow(1, *float as i64, 1) * f64::from(*scale) + f64::from(*center);
        Some(self.first_head(known))
    }

    /// [batch, 1] -> [batch, heads], zero but for the first.
    fn first_head(&self, column: Tensor) -> Tensor {
        let others = Tensor::zeros([column.size()[0], self.heads as i64 - 1], (Kind::Float, column.device()));
        Tensor::cat(&[column, others], 1)
    }
}

/// The biases at which outputs start from the base rate end so.
const BASE: &str = "out_bias";

impl Fields {
    /// Numbers of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn of(map: &FeatureMap, dim: usize, first_order: usize, attention: bool) -> Self {
        let ranges: Vec<Range<usize>> = map.columns.iter().map(|column| column.role.ints()).filter(|range| !range.is_empty()).collect();
        let asks = |range: &Range<usize>| {
            let found =
                map.matches.iter().find(|found| found.a == *range && found.b.len() == 1 || found.b == *range && found.a.len() == 1)?;
            Some(if found.a == *range { found.b.clone() } else { found.a.clone() })
        };
        // A sequence that attention reads is as many bags of one id; all fields of one id or one bag come first.
        let is_attended = |range: &Range<usize>| attention && range.len() > 1 && asks(range).is_some();
        let mut bags = Vec::new();
        let mut first_bag = BTreeMap::new();
        for range in &ranges {
            first_bag.insert(range.start, bags.len());
            match is_attended(range) {
                true => bags.extend(range.clone().map(|column| column..column + 1)),
                false => bags.push(range.clone()),
            }
        }
        let attended: Vec<(Range<usize>, usize)> = ranges
            .iter()
            .filter(|range| is_attended(range))
            .map(|range| {
                let first = first_bag[&range.start];
                (first..first + range.len(), first_bag[&asks(range).expect("it is attended").start])
            })
            .collect();
        // Fields are numbered after pooling: the plain bags in order, then the attended sequences.
        let plain: Vec<usize> = (0..bags.len()).filter(|bag| !attended.iter().any(|(bags, _)| bags.contains(bag))).collect();
        let field = |start: usize| {
            let bag = first_bag[&start];
            let pooled = || attended.iter().position(|(bags, _)| bags.start == bag).map(|i| plain.len() + i);
            plain.iter().position(|plain| *plain == bag).or_else(pooled).expect("a match names columns of the map")
        };
        let matches = map.matches.iter().map(|found| (field(found.a.start), field(found.b.start))).collect();
        Self { table_rows: map.table_rows, width: dim + first_order, bags, dim, matches, attended }
    }
}

/// One batch as a network reads it.
pub(crate) struct Inputs<'a> {
    /// [batch, bags, width]; none of a network without a table.
    pub fields: Option<&'a Tensor>,
    /// 1 where a bag has an id, else 0: [batch, bags]. Only where attention needs it.
    pub known: Option<&'a Tensor>,
    /// [batch, n_floats]
    pub floats: &'a Tensor,
}

/// [batch, heads], and those of each branch where a network has two that are trained to agree.
pub(crate) struct Logits {
    pub all: Tensor,
    pub branches: Vec<Tensor>,
}

impl Logits {
    fn of(all: Tensor) -> Self {
        Self { all, branches: Vec::new() }
    }
}

/// One way through a network: its tensors, the precision of its products, and dropout while it trains.
pub(crate) struct Pass<'a> {
    pub tensors: &'a BTreeMap<String, Tensor>,
    /// Of the hidden layers' products; inputs, outputs and sums are Float.
    pub products: Kind,
    pub dropout: Option<&'a mut Dropout>,
}

impl Pass<'_> {
    fn of(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    /// x: [batch, in] -> [batch, out] of the layer's arrays `_weight` and `_bias`, in the kind of x.
    fn dense(&self, x: &Tensor, name: &str) -> Tensor {
        let kind = x.kind();
        x.linear(&self.of(&format!("{name}_weight")).to_kind(kind), Some(self.of(&format!("{name}_bias")).to_kind(kind)))
    }

    /// An output layer: in Float, whatever the precision before it.
    fn output(&self, x: &Tensor, name: &str) -> Tensor {
        self.dense(&x.to_kind(Kind::Float), name)
    }

    /// Standardises each unit over the batch; where nothing is trained, by the running mean and variance.
    fn normalise(&self, x: &Tensor, name: &str) -> Tensor {
        let of = |part: &str| Some(self.of(&format!("{name}_{part}")));
        let training = self.dropout.is_some() && x.size()[0] > 1;
        x.batch_norm(of("scale"), of("shift"), of("running_mean"), of("running_variance"), training, 0.1, 1e-5, false)
    }

    fn drop(&mut self, x: Tensor) -> Tensor {
        match self.dropout.as_deref_mut() {
            Some(dropout) => dropout.apply(x),
            None => x,
        }
    }
}

/// Arrays of a dense layer.
fn dense_arrays(name: &str, inputs: usize, outputs: usize, start: Start) -> Arrays {
    vec![(format!("{name}_weight"), vec![outputs, inputs], start), (format!("{name}_bias"), vec![outputs], Start::Constant(0.0))]
}

/// Arrays of [`Pass::normalise`].
fn normal_arrays(name: &str, units: usize) -> Arrays {
    let one = |part: &str, x: f64| (format!("{name}_{part}"), vec![units], Start::Constant(x));
    vec![one("scale", 1.0), one("shift", 0.0), one("running_mean", 0.0), one("running_variance", 1.0)]
}

/// Arrays that are kept by the way, not trained.
pub(crate) fn is_running(name: &str) -> bool {
    name.ends_with("_running_mean") || name.ends_with("_running_variance")
}

/// The start of a layer before ReLU (He) and of one before an output.
fn he(inputs: usize) -> Start {
    Start::Uniform((6.0 / inputs.max(1) as f64).sqrt())
}

fn fan_in(inputs: usize) -> Start {
    Start::Uniform(1.0 / (inputs.max(1) as f64).sqrt())
}

/// Glorot's, for layers that are normalised behind.
fn glorot(inputs: usize, outputs: usize) -> Start {
    Start::Normal((2.0 / (inputs + outputs).max(1) as f64).sqrt())
}

fn columns(matrix: &Tensor, columns: &[usize]) -> Tensor {
    let indexes: Vec<i64> = columns.iter().map(|column| *column as i64).collect();
    matrix.index_select(1, &Tensor::from_slice(&indexes).to_device(matrix.device()))
}

/// Masks from a generator of ours: libtorch's is global, and another training would disturb it.
///
/// Fresh numbers for every unit would cost as much as a layer. So masks are cut at random places out of a pool, which is drawn anew
/// before each of its numbers was used [`REUSE`] times, each time for another unit and row.
pub(crate) struct Dropout {
    rate: f64,
    rng: ChaCha8Rng,
    pool: Tensor,
    used: usize,
}

/// How far a [`Dropout`] has come.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct DropoutState {
    /// Of the generator.
    word: u64,
    used: usize,
    bfloat16: bool,
}

const REUSE: usize = 16;
const POOL: Range<usize> = 1 << 16..1 << 23;

impl Dropout {
    pub fn new(rate: f64, rng: ChaCha8Rng) -> Self {
        Self { rate, rng, pool: Tensor::zeros([0], (Kind::Float, Device::Cpu)), used: 0 }
    }

    /// Where it is, and its pool.
    pub fn state(&self) -> (DropoutState, &Tensor) {
        let state = DropoutState { word: self.rng.get_word_pos() as u64, used: self.used, bfloat16: self.pool.kind() == Kind::BFloat16 };
        (state, &self.pool)
    }

    /// Goes on from such a state, with the same seed as then.
    pub fn take_up(&mut self, state: &DropoutState, pool: &Tensor) {
        self.rng.set_word_pos(u128::from(state.word));
        self.used = state.used;
        self.pool = pool.to_kind(if state.bfloat16 { Kind::BFloat16 } else { Kind::Float });
    }

    fn apply(&mut self, x: Tensor) -> Tensor {
        let kept = ((1.0 - self.rate) * 256.0).round().clamp(1.0, 256.0);
        if kept == 256.0 {
            return x;
        }
        let size = x.numel();
        let wanted = (64 * size).clamp(POOL.start, POOL.end).max(2 * size);
        let pool = self.pool.numel();
        let fits = pool >= 2 * size && self.pool.kind() == x.kind() && self.pool.device() == x.device();
        if !fits || self.used > REUSE * pool {
            let mut bytes = vec![0; wanted];
            self.rng.fill_bytes(&mut bytes);
            let values: Vec<f32> = bytes.into_iter().map(|byte| if f64::from(byte) < kept { (256.0 / kept) as f32 } else { 0.0 }).collect();
            self.pool = Tensor::from_slice(&values).to_device(x.device()).to_kind(x.kind());
            self.used = 0;
        }
        self.used += size;
        let start = self.rng.random_range(0..=self.pool.numel() - size);
        &x * self.pool.narrow(0, start as i64, size as i64).view_as(&x)
    }
}

#[cfg(test)]
impl Fields {
    /// Fields without matches or attention.
    pub fn plain(table_rows: usize, width: usize, bags: Vec<Range<usize>>) -> Self {
        Self { table_rows, width, bags, dim: width, matches: Vec::new(), attended: Vec::new() }
    }
}
