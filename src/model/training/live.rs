//! A network's tensors on a device: a step of training, the average of the weights, scores.

use super::batches::Batch;
use crate::model::checkpoint::Steps;
use crate::model::features::Encoded;
use crate::model::network::{Dropout, Inputs, Logits, Pass, Spec, TABLE, Weight, Weights, agreement, is_running};
use crate::model::table::{Adam, Pace, Rows, Table};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Names of a checkpoint's arrays that are no weights: of the dense optimiser, of the table's, of the average.
const DENSE: [&str; 2] = ["dense/first", "dense/second"];
const OF_TABLE: [&str; 2] = ["table/first", "table/second"];
const AVERAGE: [&str; 2] = ["average/dense", "average/table"];

/// A network's tensors while it trains or scores.
pub(super) struct Live {
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
    pub fn new(spec: &Spec, weights: &Weights, device: Device, threads: usize) -> Self {
        let trained: Vec<String> = weights.keys().filter(|name| *name != TABLE && !is_running(name)).cloned().collect();
        let numbers: Vec<f32> = trained.iter().flat_map(|name| &weights[name].data).copied().collect();
        let flat = Tensor::from_slice(&numbers).to_device(device);
        let mut tensors = BTreeMap::new();
        let mut start = 0;
        for name in &trained {
            let shape: Vec<i64> = weights[name].shape.iter().map(|size| *size as i64).collect();
            let size = weights[name].data.len() as i64;
            let view = flat.narrow(0, start, size).view(shape.as_slice()).detach();
            tensors.insert(name.clone(), view.set_requires_grad(true));
            start += size;
        }
        for (name, weight) in weights.iter().filter(|(name, _)| is_running(name)) {
            tensors.insert(name.clone(), weight.tensor(device));
        }
        let table = weights.get(TABLE).map(|weight| Table::on(device, &spec.fields, weight, threads));
        Self { tensors, adam: Adam::new(&flat), flat, trained, table, average: None }
    }

    pub fn average_over(&mut self, decay: f64) {
        self.average = Some(Average::of(&self.flat, self.table.as_ref(), decay));
    }

    /// Exchanges the weights and their average; done twice, all is as before.
    pub fn swap_average(&mut self) {
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

    pub fn step(
        &mut self,
        spec: &Spec,
        Batch { ids, floats, y, .. }: &Batch,
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
    pub fn forward(&self, spec: &Spec, rows: &Encoded, device: Device) -> Vec<f32> {
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
                logits.extend(Weight::of(&spec.logits(&mut pass, &batch).all).data);
            }
        });
        logits
    }

    pub fn weights(&self) -> Weights {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), Weight::of(tensor)));
        tensors.chain(self.table.iter().map(|table| (TABLE.to_owned(), table.weight()))).collect()
    }

    /// All that training changes: steps and arrays.
    pub fn state(&self) -> (Steps, Weights) {
        let mut arrays = self.weights();
        let mut steps = Steps { dense: self.adam.steps, ..Steps::default() };
        let mut keep = |names: [&str; 2], tensors: [Option<&Tensor>; 2]| {
            let known = names.into_iter().zip(tensors).filter_map(|(name, tensor)| Some((name.to_owned(), Weight::of(tensor?))));
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
    pub fn take_up(&mut self, steps: Steps, arrays: &Weights) {
        self.reset(arrays);
        let device = self.flat.device();
        let of = |names: [&str; 2]| names.map(|name| arrays.get(name).map(|weight| weight.tensor(device)));
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
    pub fn reset(&mut self, weights: &Weights) {
        tch::no_grad(|| {
            for (name, live) in &mut self.tensors {
                live.copy_(&weights[name].tensor(live.device()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

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
}
