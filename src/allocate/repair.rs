//! A plan near another one that keeps every constraint: scaled down where a supply, a budget or a return floor is broken, then filled
//! up with what is left, the pairs that are worth most above their price first.

use super::market::Market;

/// A hair below each limit, so that the order of a sum cannot exceed it.
const HAIR: f64 = 1e-11;

/// `x` and `margin` (reduced value above the segment's threshold) in the order of the market's pairs, the plan in the problem's.
pub(super) fn repair(market: &Market, x: &[f64], margin: &[f64]) -> Vec<f64> {
    let problem = market.problem;
    let mut plan = vec![0.0; problem.value.len()];
    market.pair.iter().zip(x).for_each(|(pair, x)| plan[*pair] = *x);
    let of_segment = fits(&problem.taken(&plan), &problem.supply);
    scale(&mut plan, &problem.segment, &of_segment);
    let spent: Vec<f64> = problem.totals(&plan).iter().map(|total| total.cost).collect();
    scale(&mut plan, &problem.ad, &fits(&spent, &problem.budget));
    let of_group = fits(&problem.group_spend(&problem.totals(&plan)), &problem.group_budget);
    let of_ad: Vec<f64> = (0..spent.len()).map(|ad| problem.group_of(ad).map_or(1.0, |group| of_group[group])).collect();
    scale(&mut plan, &problem.ad, &of_ad);
    keep_floors(market, &mut plan);
    fill(market, &mut plan, margin);
    plan
}

/// The factors by which each use must shrink.
fn fits(used: &[f64], limit: &[f64]) -> Vec<f64> {
    let fit = |(used, limit): (&f64, &f64)| if *used > limit * (1.0 - HAIR) { limit * (1.0 - HAIR) / used } else { 1.0 };
    used.iter().zip(limit).map(fit).collect()
}

fn scale(plan: &mut [f64], index: &[usize], factors: &[f64]) {
    plan.iter_mut().zip(index).for_each(|(x, index)| *x *= factors[*index]);
}

/// What a pair adds to its ad's return above the floor.
fn surplus(market: &Market, pair: usize) -> f64 {
    let problem = market.problem;
    problem.value[pair] - problem.min_roi[problem.ad[pair]] * problem.cost[pair]
}

/// Cuts what lies below an ad's return floor to what the rest of the ad makes up for.
fn keep_floors(market: &Market, plan: &mut [f64]) {
    let problem = market.problem;
    let (mut above, mut below) = (vec![0.0; problem.budget.len()], vec![0.0; problem.budget.len()]);
    let floored = |pair: &usize| problem.min_roi[problem.ad[*pair]] > 0.0;
    for &pair in market.pair.iter().filter(|pair| floored(pair)) {
        let earned = surplus(market, pair) * plan[pair];
        (if earned > 0.0 { &mut above } else { &mut below })[problem.ad[pair]] += earned.abs();
    }
    for &pair in market.pair.iter().filter(|pair| floored(pair)) {
        let ad = problem.ad[pair];
        if surplus(market, pair) < 0.0 && below[ad] > above[ad] * (1.0 - HAIR) {
            plan[pair] *= above[ad] * (1.0 - HAIR) / below[ad];
        }
    }
}

fn fill(market: &Market, plan: &mut [f64], margin: &[f64]) {
    let problem = market.problem;
    let left =
        |used: &[f64], limits: &[f64]| -> Vec<f64> { used.iter().zip(limits).map(|(used, limit)| limit * (1.0 - HAIR) - used).collect() };
    let totals = problem.totals(plan);
    let mut supply = left(&problem.taken(plan), &problem.supply);
    let mut budget = left(&totals.iter().map(|total| total.cost).collect::<Vec<_>>(), &problem.budget);
    let mut group = left(&problem.group_spend(&totals), &problem.group_budget);
    let mut earned: Vec<f64> =
        totals.iter().zip(&problem.min_roi).map(|(total, roi)| total.value * (1.0 - HAIR) - roi * total.cost).collect();
    let mut short: Vec<f64> = problem.minimum.iter().zip(&totals).map(|(minimum, total)| minimum - total.impressions).collect();
    // Two rounds: what one pair earns above a return floor lets another be shown below it.
    let rounds = if problem.min_roi.iter().any(|roi| *roi > 0.0) { 2 } else { 1 };
    for _ in 0..rounds {
        let mut order: Vec<(f64, usize)> = Vec::new();
        for (&pair, &margin) in market.pair.iter().zip(margin) {
            let (segment, ad) = (problem.segment[pair], problem.ad[pair]);
            let room = supply[segment] > HAIR * problem.supply[segment] && plan[pair] < problem.cap[pair];
            let money = problem.cost[pair] == 0.0
                || budget[ad] > HAIR * problem.budget[ad]
                    && problem.group_of(ad).is_none_or(|of| group[of] > HAIR * problem.group_budget[of]);
            if room && money && (problem.value[pair] > 0.0 || short[ad] > 0.0) {
                order.push((margin, pair));
            }
        }
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, pair) in order {
            let (segment, ad, cost) = (problem.segment[pair], problem.ad[pair], problem.cost[pair]);
            let of_group = problem.group_of(ad);
            let surplus = surplus(market, pair) - HAIR * problem.value[pair];
            let mut more = (problem.cap[pair] - plan[pair]).min(supply[segment]);
            if cost > 0.0 {
                more = more.min(of_group.map_or(budget[ad], |of| budget[ad].min(group[of])) / cost);
            }
            if surplus < 0.0 {
                more = more.min(earned[ad] / -surplus);
            }
            if problem.value[pair] <= 0.0 {
                more = more.min(short[ad]);
            }
            if more <= 0.0 {
                continue;
            }
            plan[pair] = (plan[pair] + more).min(problem.cap[pair]);
            supply[segment] -= more;
            budget[ad] -= cost * more;
            earned[ad] += surplus * more;
            short[ad] -= more;
            if let Some(of) = of_group {
                group[of] -= cost * more;
            }
        }
    }
}
