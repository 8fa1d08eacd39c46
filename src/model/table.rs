//! The embedding table and the encoded rows, where they live while a network trains: in memory of ours on the CPU, in tensors on a GPU.
//!
//! On the CPU libtorch's own embedding costs more than the layers above it: its backward pass sorts the ids of a batch, and its Adam
//! walks the table several times. Here one loop gathers, one scatters, one updates, and a table too large to walk every step is
//! updated only in the rows that a batch touched (as SparseAdam does; L2 then acts on those alone).

use super::features::Encoded;
use super::network::{Fields, Weight};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Adam (arXiv 1412.6980) with its usual constants.
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// A gradient longer than this is shortened to it: one broken batch must not throw the weights away.
const LONGEST_GRADIENT: f64 = 10.0;
/// A table of more numbers than this is updated in the touched rows only: walking it would take longer than the rest of a step.
const WALKED: usize = 8 << 20;

/// Training or scoring rows on a device.
pub(super) enum Rows<'a> {
    Host(&'a Encoded),
    Device { ints: Tensor, floats: Tensor },
}

/// The ids of a batch, [batch, n_ints].
pub(super) enum Ids {
    Host(Vec<i32>),
    Device(Tensor),
}

impl<'a> Rows<'a> {
    pub fn on(device: Device, rows: &'a Encoded) -> Self {
        match device {
            Device::Cpu => Self::Host(rows),
            _ => {
                let matrix = |width: usize| [rows.rows as i64, width as i64];
                let ints = Tensor::from_slice(&rows.ints).view(matrix(rows.n_ints)).to_device(device);
                Self::Device { ints, floats: Tensor::from_slice(&rows.floats).view(matrix(rows.n_floats)).to_device(device) }
            }
        }
    }

    /// The rows of that order.
    pub fn chosen(&self, order: &Order, range: Range<usize>) -> (Ids, Tensor) {
        match self {
            Self::Host(rows) => {
                let chosen = &order.host[range];
                let mut ints = Vec::with_capacity(chosen.len() * rows.n_ints);
                let mut floats = Vec::with_capacity(chosen.len() * rows.n_floats);
                for row in chosen {
                    ints.extend_from_slice(rows.ints_of(*row as usize));
                    floats.extend_from_slice(rows.floats_of(*row as usize));
                }
                (Ids::Host(ints), Tensor::from_slice(&floats).view([chosen.len() as i64, rows.n_floats as i64]))
            }
            Self::Device { ints, floats } => {
                let chosen = order.chosen(range);
                (Ids::Device(ints.index_select(0, &chosen)), floats.index_select(0, &chosen))
            }
        }
    }

    /// Rows in their own order.
    pub fn range(&self, range: Range<usize>) -> (Ids, Tensor) {
        match self {
            Self::Host(rows) => {
                let floats = &rows.floats[range.start * rows.n_floats..range.end * rows.n_floats];
                let floats = Tensor::from_slice(floats).view([range.len() as i64, rows.n_floats as i64]);
                (Ids::Host(rows.ints[range.start * rows.n_ints..range.end * rows.n_ints].to_vec()), floats)
            }
            Self::Device { ints, floats } => {
                let of = |matrix: &Tensor| matrix.narrow(0, range.start as i64, range.len() as i64);
                (Ids::Device(of(ints)), of(floats))
            }
        }
    }
}

/// The order of an epoch's rows.
pub(super) struct Order {
    host: Vec<u32>,
    device: Option<Tensor>,
}

impl Order {
    pub fn new(rows: usize) -> Self {
        Self { host: (0..rows as u32).collect(), device: None }
    }

    pub fn shuffle(&mut self, rng: &mut ChaCha8Rng, device: Device) {
        self.host.shuffle(rng);
        let rows: Vec<i32> = self.host.iter().map(|row| *row as i32).collect();
        self.device = Some(Tensor::from_slice(&rows).to_device(device));
    }

    /// As a tensor on the device.
    pub fn chosen(&self, range: Range<usize>) -> Tensor {
        self.device.as_ref().expect("an order is shuffled before it is used").narrow(0, range.start as i64, range.len() as i64)
    }
}

/// The step of an optimiser: how far, and how strongly weights are pulled to zero.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub rate: f64,
    /// Added to the gradient, times the weight: the loss carries half of it times the squared weights.
    pub l2: f64,
}

/// Adam over one flat tensor, in a few in-place operations.
pub(super) struct Adam {
    pub first: Tensor,
    pub second: Tensor,
    pub steps: i32,
}

impl Adam {
    pub fn new(values: &Tensor) -> Self {
        Self { first: values.zeros_like(), second: values.zeros_like(), steps: 0 }
    }

    /// Moves `values` against `gradient`; nothing is read back from the device.
    pub fn step(&mut self, values: &mut Tensor, mut gradient: Tensor, pace: Pace) {
        self.steps += 1;
        if pace.l2 > 0.0 {
            gradient += &*values * pace.l2;
        }
        let shortened = (gradient.norm().clamp_min(LONGEST_GRADIENT) / LONGEST_GRADIENT).reciprocal();
        gradient *= shortened;
        let _ = self.first.lerp_(&gradient, 1.0 - f64::from(BETA1));
        self.second *= f64::from(BETA2);
        self.second += &gradient * &gradient * (1.0 - f64::from(BETA2));
        let (first, second) = corrections(self.steps);
        let spread = self.second.sqrt() / second.sqrt() + f64::from(EPSILON);
        *values -= &self.first / spread * (pace.rate / first);
    }

    pub fn forget(&mut self) {
        *self = Self::new(&self.first);
    }
}

/// What the running means lack of their full weight.
fn corrections(steps: i32) -> (f64, f64) {
    (1.0 - f64::from(BETA1).powi(steps), 1.0 - f64::from(BETA2).powi(steps))
}

/// An embedding table that learns.
pub(super) enum Table {
    Host(HostTable),
    Device(DeviceTable),
}

impl Table {
    pub fn on(device: Device, fields: &Fields, weight: &Weight, threads: usize) -> Self {
        match device {
            Device::Cpu => Self::Host(HostTable::new(fields, weight, threads)),
            _ => Self::Device(DeviceTable::new(fields, weight, device)),
        }
    }

    /// The mean embedding of every bag of ids, zero where it has none. [batch, bags, width]
    pub fn fields(&self, ids: &Ids) -> Tensor {
        match (self, ids) {
            (Self::Host(table), Ids::Host(ids)) => table.fields(ids),
            (Self::Device(table), Ids::Device(ids)) => table.fields(ids),
            _ => unreachable!("rows and table are on one device"),
        }
    }

    /// 1 where a bag's first id is one, else 0. [batch, bags]
    pub fn known(&self, ids: &Ids) -> Tensor {
        let (Self::Host(HostTable { fields, .. }) | Self::Device(DeviceTable { fields, .. })) = self;
        match ids {
            Ids::Host(ids) => {
                let row = |ids: &[i32]| fields.bags.iter().map(|bag| f32::from(u8::from(ids[bag.start] != 0))).collect::<Vec<_>>();
                let known: Vec<f32> = ids.chunks_exact(n_ints(fields)).flat_map(row).collect();
                Tensor::from_slice(&known).view([-1, fields.bags.len() as i64])
            }
            Ids::Device(ids) => {
                let firsts: Vec<i64> = fields.bags.iter().map(|bag| bag.start as i64).collect();
                ids.index_select(1, &Tensor::from_slice(&firsts).to_device(ids.device())).ne(0).to_kind(Kind::Float)
            }
        }
    }

    /// Learns from the gradient of the fields.
    pub fn step(&mut self, ids: &Ids, gradient: &Tensor, pace: Pace) {
        match (self, ids) {
            (Self::Host(table), Ids::Host(ids)) => table.step(ids, gradient, pace),
            (Self::Device(table), Ids::Device(ids)) => table.step(ids, gradient, pace),
            _ => unreachable!("rows and table are on one device"),
        }
    }

    pub fn weight(&self) -> Weight {
        match self {
            Self::Host(table) => Weight { shape: vec![table.fields.table_rows, table.fields.width], data: table.values.clone() },
            Self::Device(table) => Weight::of(&table.values),
        }
    }

    /// A copy of the values. [table_rows, width]
    pub fn values(&self) -> Tensor {
        match self {
            Self::Host(table) => Tensor::from_slice(&table.values).view([-1, table.fields.width as i64]),
            Self::Device(table) => table.values.copy(),
        }
    }

    /// Takes other values; the optimiser goes on.
    pub fn set_values(&mut self, values: &Tensor) {
        match self {
            Self::Host(table) => values.copy_data(&mut table.values, values.numel()),
            Self::Device(table) => table.values.copy_(values),
        }
    }

    /// Copies of the optimiser's moments, shaped as the values, and its steps.
    pub fn moments(&self) -> (Tensor, Tensor, i32) {
        match self {
            Self::Host(table) => {
                let tensor = |moment: &[f32]| Tensor::from_slice(moment).view([-1, table.fields.width as i64]);
                (tensor(&table.first), tensor(&table.second), table.steps)
            }
            Self::Device(table) => (table.adam.first.copy(), table.adam.second.copy(), table.adam.steps),
        }
    }

    /// The optimiser goes on from such moments.
    pub fn set_moments(&mut self, first: &Tensor, second: &Tensor, steps: i32) {
        match self {
            Self::Host(table) => {
                first.copy_data(&mut table.first, first.numel());
                second.copy_data(&mut table.second, second.numel());
                table.steps = steps;
            }
            Self::Device(table) => table.adam = Adam { first: first.copy(), second: second.copy(), steps },
        }
    }

    /// Takes other values and starts the optimiser anew.
    pub fn reset(&mut self, weight: &Weight) {
        match self {
            Self::Host(table) => *table = HostTable::new(&table.fields, weight, table.threads),
            Self::Device(table) => *table = DeviceTable::new(&table.fields, weight, table.values.device()),
        }
    }
}

fn n_ints(fields: &Fields) -> usize {
    fields.bags.last().map_or(0, |bag| bag.end)
}

pub(super) struct HostTable {
    fields: Fields,
    threads: usize,
    values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    gradient: Vec<f32>,
    /// Rows in which the gradient is not zero, where only these are updated, and whether a row is among them.
    touched: Vec<u32>,
    is_touched: Vec<bool>,
    steps: i32,
}

impl HostTable {
    fn new(fields: &Fields, weight: &Weight, threads: usize) -> Self {
        let zeros = || vec![0.0; weight.data.len()];
        Self {
            values: weight.data.clone(),
            first: zeros(),
            second: zeros(),
            gradient: zeros(),
            touched: Vec::new(),
            is_touched: vec![false; fields.table_rows],
            steps: 0,
            fields: fields.clone(),
            threads,
        }
    }

    fn fields(&self, ids: &[i32]) -> Tensor {
        let (width, n_ints, bags) = (self.fields.width, n_ints(&self.fields), &self.fields.bags);
        let batch = ids.len() / n_ints;
        let mut out = vec![0.0; batch * bags.len() * width];
        let share = batch.div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            for (ids, out) in ids.chunks(share * n_ints).zip(out.chunks_mut(share * bags.len() * width)) {
                scope.spawn(move || {
                    for (ids, out) in ids.chunks_exact(n_ints).zip(out.chunks_exact_mut(bags.len() * width)) {
                        bags.iter().zip(out.chunks_exact_mut(width)).for_each(|(bag, field)| self.mean(&ids[bag.clone()], field));
                    }
                });
            }
        });
        Tensor::from_slice(&out).view([batch as i64, bags.len() as i64, width as i64])
    }

    fn mean(&self, ids: &[i32], field: &mut [f32]) {
        let row = |id: i32| &self.values[id as usize * field.len()..][..field.len()];
        if let [id] = ids {
            field.copy_from_slice(row(*id));
            return;
        }
        let known = ids.iter().filter(|id| **id != 0).count();
        for id in ids.iter().filter(|id| **id != 0) {
            let (start, width) = (*id as usize * field.len(), field.len());
            field.iter_mut().zip(&self.values[start..start + width]).for_each(|(sum, x)| *sum += x / known as f32);
        }
    }

    fn step(&mut self, ids: &[i32], gradient: &Tensor, pace: Pace) {
        let mut of_fields = vec![0.0_f32; gradient.numel()];
        gradient.contiguous().copy_data(&mut of_fields, gradient.numel());
        self.steps += 1;
        self.scatter(ids, &of_fields);
        if self.values.len() > WALKED { self.update_touched(pace) } else { self.update_all(pace) }
    }

    /// Adds the gradient of every field to those of its ids, in the order of the rows.
    fn scatter(&mut self, ids: &[i32], of_fields: &[f32]) {
        let (width, n_ints) = (self.fields.width, n_ints(&self.fields));
        let lazy = self.values.len() > WALKED;
        for (ids, fields) in ids.chunks_exact(n_ints).zip(of_fields.chunks_exact(self.fields.bags.len() * width)) {
            for (bag, field) in self.fields.bags.iter().zip(fields.chunks_exact(width)) {
                let ids = &ids[bag.clone()];
                let known = ids.iter().filter(|id| **id != 0).count() as f32;
                for id in ids.iter().filter(|id| **id != 0) {
                    let row = *id as usize;
                    self.gradient[row * width..][..width].iter_mut().zip(field).for_each(|(sum, x)| *sum += x / known);
                    if lazy && !self.is_touched[row] {
                        self.is_touched[row] = true;
                        self.touched.push(row as u32);
                    }
                }
            }
        }
    }

    fn shortened(&self, pace: Pace, squares: f64) -> Update {
        let (first, second) = corrections(self.steps);
        let shortened = (LONGEST_GRADIENT / squares.sqrt()).min(1.0);
        Update { rate: (pace.rate / first) as f32, l2: pace.l2 as f32, shortened: shortened as f32, spread: (1.0 / second.sqrt()) as f32 }
    }

    fn update_all(&mut self, pace: Pace) {
        let l2 = pace.l2 as f32;
        let squares = self.gradient.iter().zip(&self.values).map(|(g, x)| f64::from(g + l2 * x).powi(2)).sum();
        let update = self.shortened(pace, squares);
        let share = self.values.len().div_ceil(self.threads).max(1);
        std::thread::scope(|scope| {
            let values = self.values.chunks_mut(share).zip(self.gradient.chunks_mut(share));
            let moments = self.first.chunks_mut(share).zip(self.second.chunks_mut(share));
            for ((values, gradient), (first, second)) in values.zip(moments) {
                scope.spawn(move || update.apply(values, gradient, first, second));
            }
        });
    }

    fn update_touched(&mut self, pace: Pace) {
        let width = self.fields.width;
        let l2 = pace.l2 as f32;
        self.touched.sort_unstable();
        let of = |row: &u32| *row as usize * width..(*row as usize + 1) * width;
        let square = |(g, x): (&f32, &f32)| f64::from(g + l2 * x).powi(2);
        let squares =
            self.touched.iter().map(|row| self.gradient[of(row)].iter().zip(&self.values[of(row)]).map(square).sum::<f64>()).sum();
        let update = self.shortened(pace, squares);
        for row in std::mem::take(&mut self.touched) {
            let of = of(&row);
            self.is_touched[row as usize] = false;
            let moments = (&mut self.first[of.clone()], &mut self.second[of.clone()]);
            update.apply(&mut self.values[of.clone()], &mut self.gradient[of], moments.0, moments.1);
        }
    }
}

/// One step of Adam, its scalars worked out.
#[derive(Clone, Copy)]
struct Update {
    rate: f32,
    l2: f32,
    shortened: f32,
    spread: f32,
}

impl Update {
    /// Moves the values and clears the gradient. Row 0 stays zero: it has no gradient, and L2 of zero is none.
    fn apply(self, values: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) {
        for (((x, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            let slope = (*g + self.l2 * *x) * self.shortened;
            *m += (1.0 - BETA1) * (slope - *m);
            *v += (1.0 - BETA2) * (slope * slope - *v);
            *x -= self.rate * *m / (v.sqrt() * self.spread + EPSILON);
            *g = 0.0;
        }
    }
}

pub(super) struct DeviceTable {
    fields: Fields,
    values: Tensor,
    adam: Adam,
}

impl DeviceTable {
    fn new(fields: &Fields, weight: &Weight, device: Device) -> Self {
        let values = weight.tensor(device);
        Self { fields: fields.clone(), adam: Adam::new(&values), values }
    }

    fn fields(&self, ids: &Tensor) -> Tensor {
        let (batch, n_ints) = (ids.size()[0], ids.size()[1]);
        let rows = self.values.index_select(0, &ids.flatten(0, 1)).view([batch, n_ints, self.fields.width as i64]);
        if self.single() {
            return rows;
        }
        let means = self.fields.bags.iter().map(|bag| {
            let of = |matrix: &Tensor| matrix.narrow(1, bag.start as i64, bag.len() as i64);
            of(&rows).sum_dim_intlist(1, true, Kind::Float) / counts(&of(ids)).unsqueeze(2)
        });
        Tensor::cat(&means.collect::<Vec<_>>(), 1)
    }

    /// One id a bag throughout.
    fn single(&self) -> bool {
        self.fields.bags.len() == n_ints(&self.fields)
    }

    fn step(&mut self, ids: &Tensor, gradient: &Tensor, pace: Pace) {
        let width = self.fields.width as i64;
        let of_ids = match self.single() {
            true => gradient.shallow_clone(),
            false => {
                let spread = self.fields.bags.iter().enumerate().map(|(field, bag)| {
                    let known = counts(&ids.narrow(1, bag.start as i64, bag.len() as i64)).unsqueeze(2);
                    (gradient.narrow(1, field as i64, 1) / known).expand([-1, bag.len() as i64, -1], false)
                });
                Tensor::cat(&spread.collect::<Vec<_>>(), 1) // [batch, n_ints, width]
            }
        };
        // Sorted inside: the same sums each time, where adding by index would race.
        let of_ids = of_ids.reshape([-1, width]);
        let gradient = Tensor::embedding_dense_backward(&of_ids, &ids.flatten(0, 1), self.fields.table_rows as i64, 0, false);
        self.adam.step(&mut self.values, gradient, pace);
    }
}

/// How many of a bag's ids are ids, at least 1. [batch, bag] -> [batch, 1]
fn counts(ids: &Tensor) -> Tensor {
    ids.ne(0).sum_dim_intlist(1, true, Kind::Float).clamp_min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows of two columns behind the padding; a single id and a bag of two.
    fn tables() -> (Table, Table) {
        let fields = Fields::plain(4, 2, vec![0..1, 1..3]);
        let weight = Weight { shape: vec![4, 2], data: vec![0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let device = DeviceTable::new(&fields, &weight, Device::Cpu);
        (Table::Host(HostTable::new(&fields, &weight, 2)), Table::Device(device))
    }

    fn ids() -> (Ids, Ids) {
        let ids = [1, 2, 3, 2, 3, 0, 3, 0, 0];
        (Ids::Host(ids.to_vec()), Ids::Device(Tensor::from_slice(&ids).view([3, 3])))
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Weight::of(tensor).data
    }

    #[test]
    fn both_tables_give_the_mean_of_a_bag_and_know_an_empty_one() {
        let ((host, device), (on_host, on_device)) = (tables(), ids());
        let expected = [1.0, 2.0, 4.0, 5.0, 3.0, 4.0, 5.0, 6.0, 5.0, 6.0, 0.0, 0.0];
        assert_eq!(values(&host.fields(&on_host)), expected);
        assert_eq!(values(&device.fields(&on_device)), expected);
        assert_eq!(values(&host.known(&on_host)), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(values(&device.known(&on_device)), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn both_tables_learn_alike_and_the_padding_stays() {
        let ((mut host, mut device), (on_host, on_device)) = (tables(), ids());
        let gradient = Tensor::from_slice(&(0..12).map(|i| (i as f32 - 5.0) / 10.0).collect::<Vec<_>>()).view([3, 2, 2]);
        for rate in [0.1, 0.1, 0.01] {
            let pace = Pace { rate, l2: 0.05 };
            host.step(&on_host, &gradient, pace);
            device.step(&on_device, &gradient, pace);
        }
        let (host, device) = (host.weight().data, device.weight().data);
        assert_eq!(host[..2], [0.0, 0.0]);
        assert_ne!(host[2..4], [1.0, 2.0]);
        host.iter().zip(&device).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{host:?} {device:?}"));
    }

    #[test]
    fn both_tables_give_and_take_their_values() {
        let (host, device) = tables();
        for mut table in [host, device] {
            let doubled = table.values() * 2.0;
            let before = table.weight().data;
            table.set_values(&doubled);
            assert_eq!(table.weight().data, before.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        }
    }

    #[test]
    fn touched_rows_move_as_in_a_walk_and_the_others_stay() {
        let ((host, _), (Ids::Host(ids), _)) = (tables(), ids()) else { unreachable!("the first are the host's") };
        let Table::Host(mut walked) = host else { unreachable!("the first is the host's") };
        let Table::Host(mut lazy) = tables().0 else { unreachable!("the first is the host's") };
        let ids: Vec<i32> = ids.into_iter().map(|id| if id == 3 { 2 } else { id }).collect();
        let gradient: Vec<f32> = (0..12).map(|i| (i as f32 - 5.0) / 10.0).collect();
        (walked.steps, lazy.steps) = (1, 1);
        walked.scatter(&ids, &gradient);
        walked.update_all(Pace { rate: 0.1, l2: 0.0 });
        lazy.scatter(&ids, &gradient);
        lazy.touched = vec![2, 1];
        lazy.update_touched(Pace { rate: 0.1, l2: 0.0 });
        assert_eq!(walked.values, lazy.values);
        assert_eq!(lazy.values[6..], [5.0, 6.0]);
    }
}
