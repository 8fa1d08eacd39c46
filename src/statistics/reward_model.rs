//! A model of the reward for off-policy evaluation, when nobody brings one: smoothed means by context and action, cross-fitted.
//!
//! q(context, action) is the mean reward of the action in the context's cell, drawn towards the action's mean, which is drawn towards the
//! mean of all, each by a prior worth `strength` rows. No row's prediction has seen its user: folds are split by user. Plain on purpose:
//! a doubly robust value needs no good model to be right, only to be narrow, and these means can be fitted again in every replicate of
//! a bootstrap.

use super::bootstrap::{Clusters, Plan, weight};

/// Rows as the model sees them; cells and actions are numbers from 0.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub cells: &'a [u32],
    pub actions: &'a [u32],
    pub rewards: &'a [f64],
    /// By row, where in `choices` the target policy's choices begin and end.
    pub chosen_by_target: &'a [(usize, usize)],
    /// Action and probability under the target policy.
    pub choices: &'a [(u32, f64)],
}

/// Predictions by row, and in replicates.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// q of the logged action.
    pub chosen: Vec<f64>,
    /// Mean of q under the target policy.
    pub target: Vec<f64>,
    /// The mean of `target` in each replicate, the model fitted again. Empty where that would take too long.
    pub refitted: Vec<f64>,
    pub strength: f64,
}

const FOLDS: usize = 5;
/// Worth of a prior, in rows; the one with the least squared error on rows of other users is taken.
const STRENGTHS: [f64; 5] = [3.0, 30.0, 300.0, 3_000.0, 30_000.0];
/// Numbers looked at over all replicates; beyond it the model is not fitted again.
const MAX_WORK: usize = 4_000_000_000;

/// Fits the model to each fold's complement.
pub fn cross_fit(rows: &Rows<'_>, clusters: &Clusters, plan: &Plan) -> Predictions {
    // By the hash of the user, so that a fold is the same whatever the order of the rows.
    let folds: Vec<usize> = (0..rows.rewards.len()).map(|row| (clusters.users()[clusters.of_row(row)] % FOLDS as u64) as usize).collect();
    let once = vec![1.0; rows.rewards.len()];
    let fits: Vec<Fits> = STRENGTHS.iter().map(|&strength| Fits::new(rows, &folds, &once, strength)).collect();
    let error = |fits: &Fits| -> f64 {
        let errors = rows.rewards.iter().enumerate().map(|(row, reward)| {
            let miss = reward - fits.predict(folds[row], rows.cells[row], rows.actions[row]);
            miss * miss
        });
        errors.sum()
    };
    let best = (0..fits.len()).min_by(|&a, &b| error(&fits[a]).total_cmp(&error(&fits[b]))).expect("there are strengths");
    let (fitted, strength) = (&fits[best], STRENGTHS[best]);
    let value = |fits: &Fits, row: usize| -> f64 {
        let (start, end) = rows.chosen_by_target[row];
        rows.choices[start..end].iter().map(|(action, p)| p * fits.predict(folds[row], rows.cells[row], *action)).sum()
    };
    let chosen = (0..rows.rewards.len()).map(|row| fitted.predict(folds[row], rows.cells[row], rows.actions[row])).collect();
    let target = (0..rows.rewards.len()).map(|row| value(fitted, row)).collect();
    let choices: usize = rows.chosen_by_target.iter().map(|(start, end)| end - start).sum();
    let mut refitted = Vec::new();
    if (choices + FOLDS * fitted.values.len()).saturating_mul(plan.replicates) <= MAX_WORK {
        for replicate in 0..plan.replicates {
            let of_user: Vec<f64> = clusters.users().iter().map(|&user| f64::from(weight(user, replicate, plan.seed))).collect();
            let times: Vec<f64> = (0..rows.rewards.len()).map(|row| of_user[clusters.of_row(row)]).collect();
            let fits = Fits::new(rows, &folds, &times, strength);
            let counted = (0..times.len()).filter(|&row| times[row] > 0.0);
            let (sum, count) = counted.fold((0.0, 0.0), |(sum, count), row| (sum + times[row] * value(&fits, row), count + times[row]));
            refitted.push(sum / count);
        }
    }
    Predictions { chosen, target, refitted, strength }
}

/// The model of every fold, each fitted on all others.
struct Fits {
    actions: usize,
    /// By fold, cell and action.
    values: Vec<f64>,
    cells: usize,
}

impl Fits {
    fn new(rows: &Rows<'_>, folds: &[usize], times: &[f64], strength: f64) -> Self {
        let most = |numbers: &[u32]| numbers.iter().max().map_or(0, |most| *most as usize + 1);
        let among_choices = rows.choices.iter().map(|(action, _)| *action as usize + 1).max().unwrap_or(0);
        let (cells, actions) = (most(rows.cells).max(1), most(rows.actions).max(among_choices).max(1));
        // Reward and rows by fold, cell and action; all that follows is a sum over these.
        let mut sums = vec![(0.0, 0.0); FOLDS * cells * actions];
        for row in (0..rows.rewards.len()).filter(|&row| times[row] > 0.0) {
            let sum = &mut sums[(folds[row] * cells + rows.cells[row] as usize) * actions + rows.actions[row] as usize];
            *sum = (sum.0 + times[row] * rows.rewards[row], sum.1 + times[row]);
        }
        let add = |a: (f64, f64), b: (f64, f64)| (a.0 + b.0, a.1 + b.1);
        let towards = |(reward, rows): (f64, f64), prior: f64| (reward + strength * prior) / (rows + strength);
        let mut values = Vec::with_capacity(sums.len());
        for fold in 0..FOLDS {
            let others = |cell: usize, action: usize| {
                let parts = (0..FOLDS).filter(|other| *other != fold).map(|other| sums[(other * cells + cell) * actions + action]);
                parts.fold((0.0, 0.0), add)
            };
            let of_action: Vec<(f64, f64)> =
                (0..actions).map(|action| (0..cells).map(|cell| others(cell, action)).fold((0.0, 0.0), add)).collect();
            let all = of_action.iter().copied().fold((0.0, 0.0), add);
            let mean = if all.1 > 0.0 { all.0 / all.1 } else { 0.0 };
            let of_action: Vec<f64> = of_action.into_iter().map(|sum| towards(sum, mean)).collect();
            for cell in 0..cells {
                values.extend((0..actions).map(|action| towards(others(cell, action), of_action[action])));
            }
        }
        Self { actions, values, cells }
    }

    fn predict(&self, fold: usize, cell: u32, action: u32) -> f64 {
        self.values[(fold * self.cells + cell as usize) * self.actions + action as usize]
    }
}
