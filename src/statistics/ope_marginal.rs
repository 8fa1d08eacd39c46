//! Marginalised importance weights (MIPS; Saito and Joachims 2022): where there are many actions, the weight of an action's embedding (its
//! segment or category) takes the place of the action's own.
//!
//! w(e) = P_target(e) / P_logging(e) is the mean of the actions' own weights among the rows of the embedding, so only the rows are needed.
//! Unbiased as far as an action moves the reward only through its embedding.

use super::bootstrap::{Clusters, Plan, weight};
use super::finite;

pub struct Marginal {
    pub value: f64,
    /// Weights averaged anew in each.
    pub replicates: Vec<Option<f64>>,
}

/// Rows of one user count alike in a replicate; `embeddings` number the embeddings from 0.
pub fn evaluate(rewards: &[f64], weights: &[f64], embeddings: &[u32], clusters: &Clusters, plan: &Plan) -> Marginal {
    let count = embeddings.iter().max().map_or(0, |most| *most as usize + 1);
    let value = |counts: &dyn Fn(usize) -> f64| {
        // By embedding: rows, weight, reward.
        let mut sums = vec![[0.0; 3]; count];
        for row in 0..rewards.len() {
            let times = counts(row);
            if times > 0.0 {
                let sum = &mut sums[embeddings[row] as usize];
                *sum = [sum[0] + times, sum[1] + times * weights[row], sum[2] + times * rewards[row]];
            }
        }
        let rows: f64 = sums.iter().map(|sum| sum[0]).sum();
        sums.iter().filter(|sum| sum[0] > 0.0).map(|[rows, weight, reward]| weight / rows * reward).sum::<f64>() / rows
    };
    let replicates = (0..plan.replicates).map(|replicate| {
        let of_user: Vec<f64> = clusters.users().iter().map(|&user| f64::from(weight(user, replicate, plan.seed))).collect();
        finite(value(&|row| of_user[clusters.of_row(row)]))
    });
    Marginal { value: value(&|_| 1.0), replicates: replicates.collect() }
}
