//! DCN-v2 (Wang et al., arXiv 2008.13535), parallel: crosses x_{l+1} = x_0 * (W x_l + b) + x_l beside a plain branch.

use super::{Arrays, BASE, Inputs, Pass, Spec, Start, dense_arrays, fan_in, glorot, he, normal_arrays};
use tch::Tensor;

/// Crosses of up to four inputs: more have brought nothing on public tables.
const CROSSES: usize = 3;

pub(super) fn arrays(spec: &Spec) -> Arrays {
    let mut arrays = Vec::new();
    let width = spec.width();
    for i in 0..CROSSES {
        arrays.extend(dense_arrays(&format!("cross_{i}"), width, width, glorot(width, width)));
    }
    let mut inputs = width;
    for (i, units) in spec.hidden.iter().enumerate() {
        let name = format!("plain_{i}");
        arrays.extend(dense_arrays(&name, inputs, *units, he(inputs)));
        arrays.extend(normal_arrays(&name, *units));
        inputs = *units;
    }
    arrays.push(("out_weight".into(), vec![spec.heads, inputs + width], fan_in(inputs + width)));
    arrays.push((BASE.into(), vec![spec.heads], Start::Constant(0.0)));
    arrays
}

pub(super) fn logits(spec: &Spec, pass: &mut Pass, batch: &Inputs) -> Tensor {
    let (fields, beside) = spec.inputs(pass, batch);
    let x = match fields {
        Some(fields) => Tensor::cat(&[fields.flatten(1, 2), beside], 1), // [batch, width]
        None => beside,
    };
    let x = x.to_kind(pass.products);
    let mut crossed = x.shallow_clone();
    for i in 0..CROSSES {
        crossed = &x * pass.dense(&crossed, &format!("cross_{i}")) + crossed;
    }
    let mut plain = x;
    for i in 0..spec.hidden.len() {
        let name = format!("plain_{i}");
        plain = pass.normalise(&pass.dense(&plain, &name), &name).relu();
        plain = pass.drop(plain);
    }
    let out = pass.output(&Tensor::cat(&[crossed, plain], 1), "out");
    match spec.known(batch) {
        Some(known) => out + known,
        None => out,
    }
}
