//! Sequences as the candidate asks (DIN, Zhou et al., arXiv 1706.06978): each past behaviour is weighed by a small network on it, the
//! candidate, their difference and their product; the weighted embeddings are summed, without softmax, so that strong interest stays
//! stronger than weak.

use super::{Arrays, Fields, Pass, dense_arrays, fan_in, he};
use tch::{Kind, Tensor};

const UNITS: usize = 32;

pub(super) fn arrays(fields: &Fields) -> Arrays {
    let of = |i: usize| {
        let mut arrays = dense_arrays(&format!("attention_{i}_0"), 4 * fields.dim, UNITS, he(4 * fields.dim));
        arrays.extend(dense_arrays(&format!("attention_{i}_1"), UNITS, 1, fan_in(UNITS)));
        arrays
    };
    (0..fields.attended.len()).flat_map(of).collect()
}

/// [batch, bags, dim] -> [batch, fields, dim]: the plain bags in order, then one field an attended sequence.
pub(super) fn pool(fields: &Fields, pass: &mut Pass, embeddings: &Tensor, known: Option<&Tensor>) -> Tensor {
    if fields.attended.is_empty() {
        return embeddings.shallow_clone();
    }
    let known = known.expect("attention is given which places are filled");
    let mut plain = Vec::new();
    let mut next = 0;
    for (bags, _) in &fields.attended {
        plain.push(embeddings.narrow(1, next, bags.start as i64 - next));
        next = bags.end as i64;
    }
    plain.push(embeddings.narrow(1, next, fields.bags.len() as i64 - next));
    for (i, (bags, asks)) in fields.attended.iter().enumerate() {
        let keys = embeddings.narrow(1, bags.start as i64, bags.len() as i64); // [batch, places, dim]
        let query = embeddings.narrow(1, *asks as i64, 1).expand_as(&keys);
        let pairs = Tensor::cat(&[&keys, &query, &(&keys - &query), &(&keys * &query)], 2);
        let weights = pass.dense(&pass.dense(&pairs, &format!("attention_{i}_0")).relu(), &format!("attention_{i}_1"));
        let weights = weights * known.narrow(1, bags.start as i64, bags.len() as i64).unsqueeze(2); // [batch, places, 1]
        plain.push((weights * keys).sum_dim_intlist(1, true, Kind::Float));
    }
    Tensor::cat(&plain, 1)
}
