//! A small network of three parts (linear, plain, multiplying) that can be made to rise in some inputs: the interest network, and the
//! response network of shops with little data.

use super::{Arrays, BASE, Inputs, Pass, Spec, Start, columns, dense_arrays, fan_in, he};
use tch::{Kind, Tensor};

/// Width of the layer in which evidence and everything else meet.
const EVIDENCE_UNITS: usize = 16;

pub(super) fn arrays(spec: &Spec) -> Arrays {
    let mut arrays = Vec::new();
    let mut inputs = spec.width();
    for (i, units) in spec.hidden.iter().enumerate() {
        arrays.extend(dense_arrays(&format!("plain_{i}"), inputs, *units, he(inputs)));
        inputs = *units;
    }
    arrays.push(("plain_out_weight".into(), vec![spec.heads, inputs], fan_in(inputs)));
    arrays.push((format!("plain_{BASE}"), vec![spec.heads], Start::Constant(0.0)));
    let (width, units) = (spec.width(), factors(spec));
    arrays.extend(dense_arrays("factor_0", width, 2 * units, fan_in(width)));
    arrays.extend(dense_arrays("factor_last", 2 * units, spec.heads, fan_in(2 * units)));
    arrays.push(("linear_weight".into(), vec![spec.heads, spec.floats.len()], Start::Constant(0.0)));
    if !spec.evidence.is_empty() {
        let evidence = spec.evidence.len();
        // Through softplus these are about 0.05 to 0.1.
        arrays.push(("evidence_in".into(), vec![EVIDENCE_UNITS, evidence], Start::Around(-2.5)));
        arrays.push(("evidence_out".into(), vec![spec.heads, EVIDENCE_UNITS], Start::Around(-2.5)));
        arrays.push(("evidence_linear".into(), vec![spec.heads, evidence], Start::Around(-2.5)));
        arrays.extend(dense_arrays("evidence_rest", width, EVIDENCE_UNITS, fan_in(width)));
    }
    arrays
}

/// Units of each factor of the multiplying branch.
fn factors(spec: &Spec) -> usize {
    spec.hidden.last().copied().unwrap_or(16)
}

pub(super) fn logits(spec: &Spec, pass: &mut Pass, batch: &Inputs) -> Tensor {
    let (fields, beside) = spec.inputs(pass, batch);
    let x = match fields {
        Some(fields) => Tensor::cat(&[fields.flatten(1, 2), beside], 1), // [batch, width]
        None => beside,
    };
    let mut plain = x.shallow_clone();
    for i in 0..spec.hidden.len() {
        plain = pass.dense(&plain, &format!("plain_{i}")).relu();
        plain = pass.drop(plain);
    }
    let mut out = pass.output(&plain, "plain_out"); // [batch, heads]
    let factors = pass.dense(&x, "factor_0").chunk(2, 1);
    let factors = Tensor::cat(&[&factors[0], &(&factors[0] * &factors[1])], 1).relu();
    let factors = pass.drop(factors);
    out += pass.dense(&factors, "factor_last");
    out += spec.plain_floats(batch).matmul(&pass.of("linear_weight").tr());
    if let Some(table) = batch.fields.filter(|_| spec.has_table()) {
        // One first-order weight an id serves the first head; conversions are too few for one each.
        let first_order = table.select(2, spec.fields.dim as i64).sum_dim_intlist(1, true, Kind::Float);
        out += spec.first_head(first_order);
    }
    if let Some(known) = spec.known(batch) {
        out += known;
    }
    if !spec.evidence.is_empty() {
        // Weights from evidence to output are positive and tanh rises: more evidence never lowers an output.
        let evidence = columns(batch.floats, &spec.evidence);
        let meet = evidence.matmul(&pass.of("evidence_in").softplus().tr()) + pass.dense(&x, "evidence_rest");
        out += meet.tanh().matmul(&pass.of("evidence_out").softplus().tr());
        out += evidence.matmul(&pass.of("evidence_linear").softplus().tr());
    }
    out
}
