//! The network of the article that this program started from: Dense 64 ReLU, dropout, Dense 32 ReLU, dropout, on the baseline's inputs.

use super::{Arrays, BASE, Inputs, Pass, Spec, Start, dense_arrays, fan_in, he};
use tch::Tensor;

pub(super) fn arrays(spec: &Spec) -> Arrays {
    let mut arrays = Vec::new();
    let mut inputs = spec.floats.len();
    for (i, units) in spec.hidden.iter().enumerate() {
        arrays.extend(dense_arrays(&format!("plain_{i}"), inputs, *units, he(inputs)));
        inputs = *units;
    }
    arrays.push(("plain_out_weight".into(), vec![spec.heads, inputs], fan_in(inputs)));
    arrays.push((format!("plain_{BASE}"), vec![spec.heads], Start::Constant(0.0)));
    arrays
}

pub(super) fn logits(spec: &Spec, pass: &mut Pass, batch: &Inputs) -> Tensor {
    let mut x = spec.plain_floats(batch); // [batch, n_floats]
    for i in 0..spec.hidden.len() {
        x = pass.dense(&x, &format!("plain_{i}")).relu();
        x = pass.drop(x);
    }
    pass.output(&x, "plain_out")
}
