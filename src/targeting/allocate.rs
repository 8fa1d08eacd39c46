//! Which segment sees which ad how often:
//!
//! max sum value x   such that   sum cost x <= budget of each group,   sum x <= supply of each segment,   0 <= x <= cap.
//!
//! Solved by the primal-dual hybrid gradient with diagonal steps, averaged and restarted (Chambolle & Pock 2011; PDLP,
//! arXiv 2106.04756), then repaired to be feasible. The answer need not be trusted: by weak duality any prices bound the optimum
//! from above, and the gap between that bound and the repaired plan is reported. Loops run in the order of the arrays, on one
//! thread, so the same problem has the same answer.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Plain arrays: `segment` to `cap` have one entry a candidate pair. An infinite budget or cap means none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// Impressions of each segment.
    pub supply: Vec<f64>,
    /// Money of each group of ads (a campaign), in micro-units.
    pub budget: Vec<f64>,
    pub segment: Vec<usize>,
    pub group: Vec<usize>,
    /// Of one impression, in any unit; a candidate without value is not planned.
    pub value: Vec<f64>,
    /// Of one impression, in micro-units.
    pub cost: Vec<f64>,
    /// Most impressions of the pair.
    pub cap: Vec<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Impressions of each pair: the repaired plan, fractional.
    pub x: Vec<f64>,
    /// The same in whole impressions, feasible in whole micro-units.
    pub whole: Vec<u64>,
    /// Shadow price of each budget: value of one more micro-unit.
    pub price: Vec<f64>,
    pub certificate: Certificate,
}

/// How good a plan is: no plan is worth more than `upper_bound`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Certificate {
    pub upper_bound: f64,
    /// Of the fractional plan.
    pub value: f64,
    pub gap: f64,
    /// Of the plan in whole impressions.
    pub value_whole: f64,
    pub gap_whole: f64,
}

/// The gap at which the search ends, and the most steps it takes.
const GOOD_ENOUGH: f64 = 1e-5;
const MAX_STEPS: usize = 20_000;
/// Steps between two certificates: one costs about as much as ten steps.
const STEPS_A_CHECK: usize = 50;

/// # Errors
/// `Contract` when an array has the wrong length, an index points nowhere, or a number is negative or not one.
pub fn allocate(problem: &Problem) -> Result<Plan> {
    problem.check()?;
    let certified = solve(problem);
    let whole = whole(problem, &certified.x);
    let value_whole = problem.value.iter().zip(&whole).map(|(value, n)| value * *n as f64).sum();
    let gap = |value: f64| if certified.upper > 0.0 { ((certified.upper - value) / certified.upper).max(0.0) } else { 0.0 };
    let certificate = Certificate {
        upper_bound: certified.upper,
        value: certified.value,
        gap: gap(certified.value),
        value_whole,
        gap_whole: gap(value_whole),
    };
    Ok(Plan { x: certified.x, whole, price: certified.price, certificate })
}

/// A fractional plan in whole impressions by largest remainder; each is granted only if it fits supply, cap and budget in whole
/// numbers: costs are rounded up to the micro-unit, budgets down.
pub fn whole(problem: &Problem, x: &[f64]) -> Vec<u64> {
    let mut supply: Vec<u64> = problem.supply.iter().map(|supply| *supply as u64).collect();
    // A float too large for the integer saturates, which is as good as no limit.
    let mut budget: Vec<i128> = problem.budget.iter().map(|budget| *budget as i128).collect();
    let mut granted = vec![0; x.len()];
    let mut grant = |pair: usize, wanted: u64, granted: &mut [u64]| {
        let (segment, group) = (problem.segment[pair], problem.group[pair]);
        let cost = problem.cost[pair].ceil() as i128;
        let affordable = if cost > 0 { u64::try_from(budget[group] / cost).unwrap_or(u64::MAX) } else { u64::MAX };
        let n = wanted.min(problem.cap[pair] as u64 - granted[pair]).min(supply[segment]).min(affordable);
        granted[pair] += n;
        supply[segment] -= n;
        budget[group] -= cost * i128::from(n);
    };
    for (pair, x) in x.iter().enumerate() {
        grant(pair, *x as u64, &mut granted);
    }
    let remainder = |pair: &usize| x[*pair].fract();
    let mut rest: Vec<usize> = (0..x.len()).filter(|pair| remainder(pair) > 0.0).collect();
    rest.sort_by(|a, b| {
        let by_value = || problem.value[*b].total_cmp(&problem.value[*a]);
        remainder(b).total_cmp(&remainder(a)).then_with(by_value).then(a.cmp(b))
    });
    for pair in rest {
        grant(pair, 1, &mut granted);
    }
    granted
}

impl Problem {
    pub fn check(&self) -> Result<()> {
        let pairs = self.segment.len();
        for (what, length) in [("group", self.group.len()), ("value", self.value.len()), ("cost", self.cost.len()), ("cap", self.cap.len())]
        {
            if length != pairs {
                return Err(Error::contract(format_args!("allocation: {pairs} segments of pairs, but {length} of {what}")));
            }
        }
        for (what, indices, length) in [("segment", &self.segment, self.supply.len()), ("group", &self.group, self.budget.len())] {
            if let Some(index) = indices.iter().find(|index| **index >= length) {
                return Err(Error::contract(format_args!("allocation: {what} {index} of a pair, but there are {length}")));
            }
        }
        for (what, numbers, infinite) in
            [("supply", &self.supply, false), ("budget", &self.budget, true), ("cost", &self.cost, false), ("cap", &self.cap, true)]
        {
            if let Some(bad) = numbers.iter().find(|number| !(**number >= 0.0 && (infinite || number.is_finite()))) {
                return Err(Error::contract(format_args!("allocation: {what} {bad} is not a quantity")));
            }
        }
        match self.value.iter().find(|value| !value.is_finite()) {
            Some(bad) => Err(Error::contract(format_args!("allocation: value {bad} is not a number"))),
            None => Ok(()),
        }
    }

    /// The most that each pair could ever take: its cap, its segment's supply, its group's budget.
    fn limits(&self) -> Vec<f64> {
        let limit = |pair: usize| {
            let by_budget = if self.cost[pair] > 0.0 { self.budget[self.group[pair]] / self.cost[pair] } else { f64::INFINITY };
            self.cap[pair].min(self.supply[self.segment[pair]]).min(by_budget)
        };
        (0..self.segment.len()).map(limit).collect()
    }
}

// -------------------------------------------------------------------------------------------------------------------- search

/// A feasible plan and prices that bound what any plan could be worth.
#[derive(Clone)]
struct Certified {
    x: Vec<f64>,
    value: f64,
    price: Vec<f64>,
    upper: f64,
}

/// The candidates that may be planned at all, without units: y = x / limit lies in [0, 1], every right-hand side is 1.
struct Scaled<'a> {
    problem: &'a Problem,
    /// Index of the candidate among the problem's pairs.
    pair: Vec<usize>,
    limit: Vec<f64>,
    /// Gain, and use of the group's budget and of the segment's supply, at y = 1.
    gain: Vec<f64>,
    spend: Vec<f64>,
    take: Vec<f64>,
    /// Value of a gain of 1.
    unit: f64,
    /// Candidates by segment.
    of_segment: Vec<Vec<usize>>,
}

/// Where the search stands: y, and a price for each budget and each supply.
#[derive(Clone)]
struct Point {
    y: Vec<f64>,
    budget: Vec<f64>,
    supply: Vec<f64>,
}

fn solve(problem: &Problem) -> Certified {
    let scaled = Scaled::new(problem);
    let mut at =
        Point { y: vec![0.0; scaled.pair.len()], budget: vec![0.0; problem.budget.len()], supply: vec![0.0; problem.supply.len()] };
    let mut best = scaled.certify(&at);
    if scaled.pair.is_empty() {
        return best;
    }
    let steps = scaled.steps();
    // Balance of primal and dual steps, learnt at each restart from how far either moved (PDLP, section 3.3).
    let mut balance = norm(&scaled.gain) / ((problem.budget.len() + problem.supply.len()) as f64).sqrt();
    let mut sum = at.zero();
    let mut start = at.clone();
    let (mut since, mut gap_at_start) = (0, f64::INFINITY);
    for step in 1..=MAX_STEPS {
        scaled.step(&steps, balance, &mut at);
        sum.add(&at);
        since += 1;
        if step % STEPS_A_CHECK != 0 {
            continue;
        }
        let mean = sum.scaled(1.0 / since as f64);
        let (of_mean, of_last) = (scaled.certify(&mean), scaled.certify(&at));
        let better = if of_mean.gap() < of_last.gap() { (mean, of_mean.gap()) } else { (at.clone(), of_last.gap()) };
        best.improve(of_mean);
        best.improve(of_last);
        if best.gap() <= GOOD_ENOUGH {
            break;
        }
        let (candidate, gap) = better;
        if gap <= 0.2 * gap_at_start || since as f64 >= 0.36 * step as f64 {
            let moved = (norm_of_difference(&candidate.y, &start.y), candidate.dual_distance(&start));
            if moved.0 > 1e-12 && moved.1 > 1e-12 {
                balance = (balance * moved.1 / moved.0).sqrt();
            }
            at = candidate;
            start = at.clone();
            sum = at.zero();
            (since, gap_at_start) = (0, gap);
        }
    }
    best
}

/// Diagonal step sizes: the inverse sum of each column and each row.
struct Steps {
    y: Vec<f64>,
    budget: Vec<f64>,
    supply: Vec<f64>,
}

impl<'a> Scaled<'a> {
    fn new(problem: &'a Problem) -> Self {
        let limits = problem.limits();
        let pair: Vec<usize> = (0..limits.len()).filter(|&pair| problem.value[pair] > 0.0 && limits[pair] > 0.0).collect();
        let limit: Vec<f64> = pair.iter().map(|&pair| limits[pair]).collect();
        let at = |of: &dyn Fn(usize) -> f64| -> Vec<f64> { pair.iter().zip(&limit).map(|(&pair, limit)| of(pair) * limit).collect() };
        let worth = at(&|pair| problem.value[pair]);
        let unit = worth.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut of_segment = vec![Vec::new(); problem.supply.len()];
        for (j, &pair) in pair.iter().enumerate() {
            of_segment[problem.segment[pair]].push(j);
        }
        Self {
            problem,
            gain: worth.iter().map(|worth| worth / unit).collect(),
            spend: at(&|pair| problem.cost[pair] / problem.budget[problem.group[pair]].max(f64::MIN_POSITIVE)),
            take: at(&|pair| 1.0 / problem.supply[problem.segment[pair]]),
            pair,
            limit,
            unit,
            of_segment,
        }
    }

    fn group(&self, j: usize) -> usize {
        self.problem.group[self.pair[j]]
    }

    fn segment(&self, j: usize) -> usize {
        self.problem.segment[self.pair[j]]
    }

    fn steps(&self) -> Steps {
        let inverse = |sum: f64| if sum > 0.0 { 1.0 / sum } else { 0.0 };
        let (mut budget, mut supply) = (vec![0.0; self.problem.budget.len()], vec![0.0; self.problem.supply.len()]);
        for j in 0..self.pair.len() {
            budget[self.group(j)] += self.spend[j];
            supply[self.segment(j)] += self.take[j];
        }
        Steps {
            y: self.spend.iter().zip(&self.take).map(|(spend, take)| inverse(spend + take)).collect(),
            budget: budget.into_iter().map(inverse).collect(),
            supply: supply.into_iter().map(inverse).collect(),
        }
    }

    /// One primal step at the current prices, one dual step at the point beyond it.
    fn step(&self, steps: &Steps, balance: f64, at: &mut Point) {
        let (mut spent, mut taken) = (vec![0.0; at.budget.len()], vec![0.0; at.supply.len()]);
        for j in 0..self.pair.len() {
            let (group, segment) = (self.group(j), self.segment(j));
            let reduced = self.gain[j] - at.budget[group] * self.spend[j] - at.supply[segment] * self.take[j];
            let next = (at.y[j] + steps.y[j] / balance * reduced).clamp(0.0, 1.0);
            let beyond = 2.0 * next - at.y[j];
            spent[group] += self.spend[j] * beyond;
            taken[segment] += self.take[j] * beyond;
            at.y[j] = next;
        }
        for (price, (used, step)) in at.budget.iter_mut().zip(spent.iter().zip(&steps.budget)) {
            *price = (*price + balance * step * (used - 1.0)).max(0.0);
        }
        for (price, (used, step)) in at.supply.iter_mut().zip(taken.iter().zip(&steps.supply)) {
            *price = (*price + balance * step * (used - 1.0)).max(0.0);
        }
    }

    fn certify(&self, at: &Point) -> Certified {
        let price: Vec<f64> = at
            .budget
            .iter()
            .zip(&self.problem.budget)
            .map(|(price, budget)| if *budget > 0.0 && budget.is_finite() { price * self.unit / budget } else { 0.0 })
            .collect();
        let upper = self.bound(&price);
        let x = self.repair(at, &price);
        let value = x.iter().zip(&self.problem.value).map(|(x, value)| x * value).sum();
        Certified { x, value, price, upper }
    }

    /// What no plan can exceed: the budgets at these prices, and the best each segment could do if it paid them.
    fn bound(&self, price: &[f64]) -> f64 {
        let budgets: f64 =
            self.problem.budget.iter().zip(price).filter(|(_, price)| **price > 0.0).map(|(budget, price)| budget * price).sum();
        let mut segments = 0.0;
        for (candidates, supply) in self.of_segment.iter().zip(&self.problem.supply) {
            let reduced = |j: usize| self.problem.value[self.pair[j]] - price[self.group(j)] * self.problem.cost[self.pair[j]];
            let mut gains: Vec<(f64, f64)> =
                candidates.iter().map(|&j| (reduced(j), self.limit[j])).filter(|(gain, _)| *gain > 0.0).collect();
            gains.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut left = *supply;
            for (gain, limit) in gains {
                let n = limit.min(left);
                segments += gain * n;
                left -= n;
            }
        }
        budgets + segments
    }

    /// A feasible plan near y: scaled down where a budget or a supply is exceeded, then filled up, best reduced value first.
    fn repair(&self, at: &Point, price: &[f64]) -> Vec<f64> {
        let problem = self.problem;
        let (mut spent, mut taken) = (vec![0.0; problem.budget.len()], vec![0.0; problem.supply.len()]);
        for j in 0..self.pair.len() {
            spent[self.group(j)] += self.spend[j] * at.y[j];
            taken[self.segment(j)] += self.take[j] * at.y[j];
        }
        // A hair below the limit, so that rounding cannot exceed it.
        let fit = |used: f64| if used > 1.0 { (1.0 - 1e-12) / used } else { 1.0 };
        let mut x = vec![0.0; problem.value.len()];
        let mut budget = problem.budget.clone();
        let mut supply = problem.supply.clone();
        for j in 0..self.pair.len() {
            let pair = self.pair[j];
            x[pair] = (at.y[j] * fit(spent[self.group(j)]).min(fit(taken[self.segment(j)])) * self.limit[j]).min(self.limit[j]);
            budget[self.group(j)] -= problem.cost[pair] * x[pair];
            supply[self.segment(j)] -= x[pair];
        }
        let shadow = |j: usize| at.supply[self.segment(j)] * self.unit / problem.supply[self.segment(j)];
        let reduced = |j: usize| problem.value[self.pair[j]] - price[self.group(j)] * problem.cost[self.pair[j]] - shadow(j);
        let mut order: Vec<(f64, usize)> = (0..self.pair.len()).map(|j| (reduced(j), j)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, j) in order {
            let (pair, cost) = (self.pair[j], problem.cost[self.pair[j]]);
            let affordable = if cost > 0.0 { (budget[self.group(j)] / cost) * (1.0 - 1e-12) } else { f64::INFINITY };
            let more = (self.limit[j] - x[pair]).min(supply[self.segment(j)]).min(affordable);
            if more > 0.0 {
                x[pair] += more;
                budget[self.group(j)] -= cost * more;
                supply[self.segment(j)] -= more;
            }
        }
        x
    }
}

impl Certified {
    fn gap(&self) -> f64 {
        if self.upper > 0.0 { (self.upper - self.value) / self.upper } else { 0.0 }
    }

    /// The better plan and the better prices need not come from the same point.
    fn improve(&mut self, other: Self) {
        if other.value > self.value {
            (self.x, self.value) = (other.x, other.value);
        }
        if other.upper < self.upper {
            (self.price, self.upper) = (other.price, other.upper);
        }
    }
}

impl Point {
    fn zero(&self) -> Self {
        self.scaled(0.0)
    }

    fn scaled(&self, by: f64) -> Self {
        let scaled = |numbers: &[f64]| numbers.iter().map(|number| number * by).collect();
        Self { y: scaled(&self.y), budget: scaled(&self.budget), supply: scaled(&self.supply) }
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.y, &other.y), (&mut self.budget, &other.budget), (&mut self.supply, &other.supply)] {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }

    fn dual_distance(&self, other: &Self) -> f64 {
        norm_of_difference(&self.budget, &other.budget).hypot(norm_of_difference(&self.supply, &other.supply))
    }
}

fn norm(numbers: &[f64]) -> f64 {
    numbers.iter().map(|number| number * number).sum::<f64>().sqrt()
}

fn norm_of_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ads_and_two_segments_by_hand() {
        // Ad 0 is worth 3 to segment 0 and 2 to segment 1 and can pay for 10; ad 1, worth 1 anywhere, for everything.
        let problem = Problem {
            supply: vec![10.0, 10.0],
            budget: vec![10e6, f64::INFINITY],
            segment: vec![0, 0, 1, 1],
            group: vec![0, 1, 0, 1],
            value: vec![3.0, 1.0, 2.0, 1.0],
            cost: vec![1e6; 4],
            cap: vec![8.0, f64::INFINITY, 8.0, f64::INFINITY],
        };
        let plan = allocate(&problem).unwrap();
        assert_eq!(plan.whole, [8, 2, 2, 8]);
        assert!((plan.certificate.value - 38.0).abs() < 1e-3 && plan.certificate.upper_bound >= 38.0 - 1e-9, "{:?}", plan.certificate);
        assert_eq!(plan.certificate.value_whole, 38.0);
        // One more unit of money buys ad 0 an impression in segment 1 in place of ad 1's.
        assert!((plan.price[0] * 1e6 - 1.0).abs() < 1e-3 && plan.price[1] == 0.0, "{:?}", plan.price);
    }

    #[test]
    fn nothing_to_plan_is_a_plan() {
        let plan = allocate(&Problem::default()).unwrap();
        assert_eq!((plan.certificate.upper_bound, plan.certificate.gap), (0.0, 0.0));
        let one = |supply, budget, value, cost, cap| Problem {
            supply: vec![supply],
            budget: vec![budget],
            segment: vec![0],
            group: vec![0],
            value: vec![value],
            cost: vec![cost],
            cap: vec![cap],
        };
        for nothing in
            [one(0.0, 1.0, 1.0, 1.0, 1.0), one(1.0, 0.0, 1.0, 1.0, 1.0), one(1.0, 1.0, 0.0, 1.0, 1.0), one(1.0, 1.0, 1.0, 1.0, 0.0)]
        {
            let plan = allocate(&nothing).unwrap();
            assert_eq!((plan.whole[0], plan.certificate.gap), (0, 0.0), "{nothing:?}");
        }
        // Free of cost, an empty budget does not bind.
        assert_eq!(allocate(&one(5.5, 0.0, 1.0, 0.0, 9.0)).unwrap().whole, [5]);
        for bad in [
            one(f64::NAN, 1.0, 1.0, 1.0, 1.0),
            one(1.0, 1.0, f64::NAN, 1.0, 1.0),
            one(1.0, -1.0, 1.0, 1.0, 1.0),
            one(1.0, 1.0, 1.0, f64::INFINITY, 1.0),
        ] {
            assert_eq!(allocate(&bad).unwrap_err().kind, crate::error::Kind::Contract);
        }
        assert!(allocate(&Problem { group: vec![1], ..one(1.0, 1.0, 1.0, 1.0, 1.0) }).is_err());
        assert!(allocate(&Problem { cap: vec![], ..one(1.0, 1.0, 1.0, 1.0, 1.0) }).is_err());
    }
}
