//! FinalNet (Zhu et al., SIGIR 2023): layers that keep a linear half and multiply the other by it, in two branches. The first reads
//! the fields beside gated copies of themselves, the second, of one layer, the fields alone. Each branch is also taught the mean of
//! both, so that they agree without being the same.

use super::{Arrays, BASE, Inputs, Logits, Pass, Spec, Start, dense_arrays, fan_in, glorot, normal_arrays};
use tch::{Kind, Tensor};

pub(super) fn arrays(spec: &Spec) -> Arrays {
    let mut arrays = Vec::new();
    if spec.has_table() {
        // Starts as the identity's double: every gate is 1.
        arrays.push(("gate_weight".into(), vec![spec.n_fields(); 2], Start::Constant(0.0)));
        arrays.push(("gate_bias".into(), vec![spec.n_fields()], Start::Constant(1.0)));
    }
    let gated = spec.n_fields() * spec.fields.dim;
    for (branch, inputs, layers) in [("first", spec.width() + gated, &spec.hidden[..]), ("second", spec.width(), &spec.hidden[..1])] {
        let mut inputs = inputs;
        for (i, units) in layers.iter().map(|units| units.next_multiple_of(2)).enumerate() {
            let name = format!("{branch}_{i}");
            arrays.extend(dense_arrays(&name, inputs, units, glorot(inputs, units)));
            arrays.extend(normal_arrays(&name, units));
            inputs = units;
        }
        arrays.push((format!("{branch}_out_weight"), vec![spec.heads, inputs], fan_in(inputs)));
        arrays.push((format!("{branch}_{BASE}"), vec![spec.heads], Start::Constant(0.0)));
    }
    arrays
}

pub(super) fn logits(spec: &Spec, pass: &mut Pass, batch: &Inputs) -> Logits {
    let (fields, beside) = spec.inputs(pass, batch);
    let (gated, plain) = match fields {
        Some(fields) => {
            // One weight from every field to every other's gate, the same in each dimension. [batch, dim, fields]
            let gates = fields.transpose(1, 2).linear(pass.of("gate_weight"), Some(pass.of("gate_bias")));
            let flat = fields.flatten(1, 2); // [batch, fields * dim]
            let gated = (&fields * gates.transpose(1, 2)).flatten(1, 2);
            (Tensor::cat(&[&flat, &gated, &beside], 1), Tensor::cat(&[&flat, &beside], 1))
        }
        None => (beside.shallow_clone(), beside),
    };
    let mut branch = |name: &str, x: Tensor, layers: usize| {
        let mut x = x.to_kind(pass.products);
        for i in 0..layers {
            let layer = format!("{name}_{i}");
            let h = pass.dense(&x, &layer).chunk(2, 1);
            let h = Tensor::cat(&[&h[0], &(&h[0] * &h[1])], 1); // [batch, units]
            x = pass.normalise(&h, &layer).relu();
            x = pass.drop(x);
        }
        pass.output(&x, &format!("{name}_out"))
    };
    let mut branches = vec![branch("first", gated, spec.hidden.len()), branch("second", plain, 1)];
    if let Some(known) = spec.known(batch) {
        branches.iter_mut().for_each(|logits| *logits += &known);
    }
    Logits { all: (&branches[0] + &branches[1]) * 0.5, branches }
}

/// What a branch is taught beside the labels: the mean of both. Only the branch learns from it.
pub(crate) fn agreement(logits: &Logits) -> Option<Tensor> {
    let target = logits.all.detach().sigmoid();
    let terms =
        logits.branches.iter().map(|branch| branch.binary_cross_entropy_with_logits::<Tensor>(&target, None, None, tch::Reduction::Mean));
    terms.reduce(|a, b| a + b).map(|sum| sum.to_kind(Kind::Float))
}
