//! Whole impressions: a fractional plan by largest remainder, each impression granted only if it fits supply, cap and budgets in whole
//! numbers: costs are rounded up to the micro-unit, budgets down.

use super::Problem;

pub fn round(problem: &Problem, x: &[f64]) -> Vec<u64> {
    let mut ledger = Ledger::new(problem);
    for (pair, x) in x.iter().enumerate() {
        ledger.grant(pair, *x as u64);
    }
    let remainder = |pair: &usize| x[*pair].fract();
    let mut rest: Vec<usize> = (0..x.len()).filter(|pair| remainder(pair) > 0.0).collect();
    rest.sort_unstable_by(|a, b| {
        let by_value = || problem.value[*b].total_cmp(&problem.value[*a]);
        remainder(b).total_cmp(&remainder(a)).then_with(by_value).then(a.cmp(b))
    });
    rest.into_iter().for_each(|pair| ledger.grant(pair, 1));
    ledger.keep_floors();
    ledger.granted
}

/// The cost of one impression in whole micro-units, rounded up; what a float misses a whole number by is not rounded.
pub fn micros(cost: f64) -> i128 {
    let nearest = cost.round();
    if (cost - nearest).abs() <= 1e-9 * nearest.max(1.0) { nearest as i128 } else { cost.ceil() as i128 }
}

/// What is left of every constraint.
struct Ledger<'a> {
    problem: &'a Problem,
    granted: Vec<u64>,
    supply: Vec<u64>,
    budget: Vec<i128>,
    group: Vec<i128>,
}

impl<'a> Ledger<'a> {
    fn new(problem: &'a Problem) -> Self {
        // A float too large for the integer saturates, which is as good as no limit.
        let money = |budgets: &[f64]| budgets.iter().map(|budget| *budget as i128).collect();
        let supply = problem.supply.iter().map(|supply| *supply as u64).collect();
        let granted = vec![0; problem.value.len()];
        Self { problem, granted, supply, budget: money(&problem.budget), group: money(&problem.group_budget) }
    }

    fn grant(&mut self, pair: usize, wanted: u64) {
        let (segment, ad, cost) = (self.problem.segment[pair], self.problem.ad[pair], micros(self.problem.cost[pair]));
        let group = self.problem.group_of(ad);
        let money = group.map_or(self.budget[ad], |group| self.budget[ad].min(self.group[group]));
        let affordable = if cost > 0 { u64::try_from(money / cost).unwrap_or(u64::MAX) } else { u64::MAX };
        let n = wanted.min(self.problem.cap[pair] as u64 - self.granted[pair]).min(self.supply[segment]).min(affordable);
        self.granted[pair] += n;
        self.supply[segment] -= n;
        self.budget[ad] -= cost * i128::from(n);
        if let Some(group) = group {
            self.group[group] -= cost * i128::from(n);
        }
    }

    /// Takes impressions back, worst return first, until every ad's return keeps its floor.
    fn keep_floors(&mut self) {
        let problem = self.problem;
        let surplus = |pair: usize| problem.value[pair] - problem.min_roi[problem.ad[pair]] * micros(problem.cost[pair]) as f64;
        let mut earned = vec![0.0; problem.budget.len()];
        let mut floored: Vec<usize> = (0..self.granted.len()).filter(|pair| problem.min_roi[problem.ad[*pair]] > 0.0).collect();
        floored.iter().for_each(|&pair| earned[problem.ad[pair]] += surplus(pair) * self.granted[pair] as f64);
        floored.retain(|&pair| surplus(pair) < 0.0 && self.granted[pair] > 0);
        floored.sort_unstable_by(|&a, &b| surplus(a).total_cmp(&surplus(b)).then(a.cmp(&b)));
        for pair in floored {
            let missing = earned[problem.ad[pair]];
            if missing < 0.0 {
                let back = (missing / surplus(pair)).ceil().min(self.granted[pair] as f64);
                self.granted[pair] -= back as u64;
                earned[problem.ad[pair]] -= back * surplus(pair);
            }
        }
    }
}
