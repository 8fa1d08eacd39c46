//! Which segment sees which ad how often, with a proof of how good the plan is:
//!
//! max sum value x - penalty sum shortfall   such that, for x between 0 and each pair's cap,
//! sum x <= supply of each segment,   sum cost x <= budget of each ad and of each group of ads,
//! sum value x >= min_roi sum cost x of each ad,   sum x + shortfall >= minimum of each ad.
//!
//! One price per constraint of an ad or a group decides everything: at given prices each segment is solved by itself (`market`). The
//! prices minimise a dual that is smoothed less and less (`search`), the plan that belongs to them is repaired to be feasible (`repair`)
//! and made of whole impressions (`whole`). The answer need not be trusted: by weak duality any prices bound the optimum from above,
//! and the gap between that bound, unsmoothed, and the repaired plan is reported. Sums run over fixed parts of the problem and are
//! added in a fixed order: the same problem has the same answer on any number of threads.

pub mod explain;
mod market;
mod repair;
mod search;
pub mod tables;
pub mod whole;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Plain arrays. Money is in micro-units; an infinite budget or cap means none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// Impressions of each segment.
    pub supply: Vec<f64>,
    /// By ad.
    pub budget: Vec<f64>,
    /// By ad: impressions that it should have at least; 0 means none.
    pub minimum: Vec<f64>,
    /// By ad: least value per unit of money spent; 0 means none.
    pub min_roi: Vec<f64>,
    /// By ad: index of its group; beyond the groups means none.
    pub group: Vec<usize>,
    pub group_budget: Vec<f64>,
    /// Value that one impression below a minimum costs.
    pub penalty: f64,
    /// From here on one entry a pair.
    pub segment: Vec<usize>,
    pub ad: Vec<usize>,
    /// Of one impression, in any unit. A pair without value is planned only towards a minimum.
    pub value: Vec<f64>,
    /// Of one impression.
    pub cost: Vec<f64>,
    /// Most impressions of the pair.
    pub cap: Vec<f64>,
}

/// Shadow prices: what one more unit of a constraint would be worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prices {
    /// Of each ad's budget.
    pub budget: Vec<f64>,
    /// Of each ad's return floor.
    pub floor: Vec<f64>,
    /// Of each ad's minimum: what its last impression costs in value.
    pub minimum: Vec<f64>,
    /// Of each group's budget.
    pub group: Vec<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Impressions of each pair: the repaired plan, fractional.
    pub x: Vec<f64>,
    /// The same in whole impressions, feasible in whole micro-units.
    pub whole: Vec<u64>,
    pub prices: Prices,
    pub certificate: Certificate,
}

/// How good a plan is: no plan is worth more than `upper_bound`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Certificate {
    pub upper_bound: f64,
    /// Of the fractional plan, less the penalty of its shortfall.
    pub value: f64,
    pub gap: f64,
    /// Of the plan in whole impressions.
    pub value_whole: f64,
    pub gap_whole: f64,
    /// The largest share by which the fractional plan exceeds a constraint.
    pub max_violation: f64,
    /// Impressions of the fractional plan below the minimum of their ad.
    pub shortfall: f64,
    /// Steps of the search.
    pub iterations: usize,
}

/// # Errors
/// `Contract` when an array has the wrong length, an index points nowhere, or a number is negative or not one.
pub fn allocate(problem: &Problem, start: Option<&Prices>, threads: usize) -> Result<Plan> {
    problem.check()?;
    let found = search::search(&market::Market::new(problem, threads), start);
    let whole = whole::round(problem, &found.x);
    let in_whole: Vec<f64> = whole.iter().map(|n| *n as f64).collect();
    let (value, value_whole) = (problem.worth(&found.x), problem.worth(&in_whole));
    let certificate = Certificate {
        upper_bound: found.upper,
        value,
        gap: gap(found.upper, value),
        value_whole,
        gap_whole: gap(found.upper, value_whole),
        max_violation: problem.violation(&found.x),
        shortfall: problem.shortfall(&found.x).iter().sum(),
        iterations: found.iterations,
    };
    Ok(Plan { x: found.x, whole, prices: found.prices, certificate })
}

/// Share of the bound that the value leaves open.
fn gap(upper: f64, value: f64) -> f64 {
    if upper == 0.0 { 0.0 } else { ((upper - value) / upper.abs()).max(0.0) }
}

/// What the impressions of an ad add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub value: f64,
    pub cost: f64,
    pub impressions: f64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.value += other.value;
        self.cost += other.cost;
        self.impressions += other.impressions;
    }
}

/// An impression that a minimum lacks costs this many times what the dearest one brings: alone, none is left out for another.
const PENALTY: f64 = 10.0;

impl Problem {
    /// Sets the penalty by the values of the pairs.
    pub fn price_minima(&mut self) {
        self.penalty = PENALTY * self.value.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    }

    /// With budgets alone; pairs are still to be added.
    pub fn of_budgets(supply: Vec<f64>, budget: Vec<f64>) -> Self {
        let ads = budget.len();
        Self { supply, budget, minimum: vec![0.0; ads], min_roi: vec![0.0; ads], group: vec![0; ads], ..Self::default() }
    }

    pub fn check(&self) -> Result<()> {
        let (pairs, ads) = (self.segment.len(), self.budget.len());
        let of_pairs = [("ad", self.ad.len()), ("value", self.value.len()), ("cost", self.cost.len()), ("cap", self.cap.len())];
        let of_ads = [("minimum", self.minimum.len()), ("min_roi", self.min_roi.len()), ("group", self.group.len())];
        let of_pairs = of_pairs.map(|(what, length)| (what, length, pairs));
        let of_ads = of_ads.map(|(what, length)| (what, length, ads));
        if let Some((what, length, wanted)) = of_pairs.into_iter().chain(of_ads).find(|(_, length, wanted)| length != wanted) {
            return Err(Error::contract(format_args!("allocation: {length} of {what}, not {wanted}")));
        }
        for (what, indices, length) in [("segment", &self.segment, self.supply.len()), ("ad", &self.ad, ads)] {
            if let Some(index) = indices.iter().find(|index| **index >= length) {
                return Err(Error::contract(format_args!("allocation: {what} {index} of a pair, but there are {length}")));
            }
        }
        let penalty = vec![self.penalty];
        for (what, numbers, infinite) in [
            ("supply", &self.supply, false),
            ("budget", &self.budget, true),
            ("group budget", &self.group_budget, true),
            ("minimum", &self.minimum, false),
            ("min_roi", &self.min_roi, false),
            ("penalty", &penalty, false),
            ("cost", &self.cost, false),
            ("cap", &self.cap, true),
        ] {
            if let Some(bad) = numbers.iter().find(|number| !(**number >= 0.0 && (infinite || number.is_finite()))) {
                return Err(Error::contract(format_args!("allocation: {what} {bad} is not a quantity")));
            }
        }
        match self.value.iter().find(|value| !value.is_finite()) {
            Some(bad) => Err(Error::contract(format_args!("allocation: value {bad} is not a number"))),
            None => Ok(()),
        }
    }

    pub fn group_of(&self, ad: usize) -> Option<usize> {
        Some(self.group[ad]).filter(|group| *group < self.group_budget.len())
    }

    /// What an ad could spend if it were alone.
    fn purse(&self, ad: usize) -> f64 {
        self.group_of(ad).map_or(self.budget[ad], |group| self.budget[ad].min(self.group_budget[group]))
    }

    /// By ad.
    pub fn totals(&self, x: &[f64]) -> Vec<Totals> {
        let mut totals = vec![Totals::default(); self.budget.len()];
        for (pair, &impressions) in x.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            totals[self.ad[pair]].add(self.of_pair(pair, impressions));
        }
        totals
    }

    fn of_pair(&self, pair: usize, impressions: f64) -> Totals {
        Totals { value: self.value[pair] * impressions, cost: self.cost[pair] * impressions, impressions }
    }

    /// By segment.
    pub fn taken(&self, x: &[f64]) -> Vec<f64> {
        let mut taken = vec![0.0; self.supply.len()];
        self.segment.iter().zip(x).for_each(|(segment, x)| taken[*segment] += x);
        taken
    }

    /// By group.
    pub fn group_spend(&self, totals: &[Totals]) -> Vec<f64> {
        let mut spend = vec![0.0; self.group_budget.len()];
        for (ad, total) in totals.iter().enumerate() {
            if let Some(group) = self.group_of(ad) {
                spend[group] += total.cost;
            }
        }
        spend
    }

    /// Impressions below the minimum, by ad.
    pub fn shortfall(&self, x: &[f64]) -> Vec<f64> {
        self.minimum.iter().zip(self.totals(x)).map(|(minimum, total)| (minimum - total.impressions).max(0.0)).collect()
    }

    /// The objective.
    pub fn worth(&self, x: &[f64]) -> f64 {
        let value: f64 = self.value.iter().zip(x).map(|(value, x)| value * x).sum();
        value - self.penalty * self.shortfall(x).iter().sum::<f64>()
    }

    /// The largest share by which `x` exceeds a limit or falls short of a return floor; 0 when it keeps all.
    pub fn violation(&self, x: &[f64]) -> f64 {
        let over = |used: f64, limit: f64| if used > limit { (used - limit) / limit.max(f64::MIN_POSITIVE) } else { 0.0 };
        let totals = self.totals(x);
        let pairs = x.iter().zip(&self.cap).map(|(x, cap)| over(*x, *cap).max(over(-x, 0.0)));
        let supplies = self.taken(x).into_iter().zip(&self.supply).map(|(taken, supply)| over(taken, *supply));
        let budgets = totals.iter().zip(&self.budget).map(|(total, budget)| over(total.cost, *budget));
        let groups = self.group_spend(&totals).into_iter().zip(&self.group_budget).map(|(spend, budget)| over(spend, *budget));
        let floors = totals.iter().zip(&self.min_roi).map(|(total, roi)| over(roi * total.cost, total.value));
        pairs.chain(supplies).chain(budgets).chain(groups).chain(floors).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(problem: &Problem) -> Plan {
        allocate(problem, None, 1).expect("a problem")
    }

    #[test]
    fn two_ads_and_two_segments_by_hand() {
        // Ad 0 is worth 3 to segment 0 and 2 to segment 1 and can pay for 10; ad 1, worth 1 anywhere, for everything.
        let problem = Problem {
            segment: vec![0, 0, 1, 1],
            ad: vec![0, 1, 0, 1],
            value: vec![3.0, 1.0, 2.0, 1.0],
            cost: vec![1e6; 4],
            cap: vec![8.0, f64::INFINITY, 8.0, f64::INFINITY],
            ..Problem::of_budgets(vec![10.0, 10.0], vec![10e6, f64::INFINITY])
        };
        let plan = solved(&problem);
        assert_eq!(plan.whole, [8, 2, 2, 8]);
        assert!((plan.certificate.value - 38.0).abs() < 1e-3 && plan.certificate.upper_bound >= 38.0 - 1e-9, "{:?}", plan.certificate);
        assert_eq!(plan.certificate.value_whole, 38.0);
        // One more unit of money buys ad 0 an impression in segment 1 in place of ad 1's.
        assert!((plan.prices.budget[0] * 1e6 - 1.0).abs() < 1e-3 && plan.prices.budget[1] == 0.0, "{:?}", plan.prices);
    }

    #[test]
    fn nothing_to_plan_is_a_plan() {
        let plan = solved(&Problem::default());
        assert_eq!((plan.certificate.upper_bound, plan.certificate.gap), (0.0, 0.0));
        let one = |supply, budget, value, cost, cap| Problem {
            segment: vec![0],
            ad: vec![0],
            value: vec![value],
            cost: vec![cost],
            cap: vec![cap],
            ..Problem::of_budgets(vec![supply], vec![budget])
        };
        for nothing in
            [one(0.0, 1.0, 1.0, 1.0, 1.0), one(1.0, 0.0, 1.0, 1.0, 1.0), one(1.0, 1.0, 0.0, 1.0, 1.0), one(1.0, 1.0, 1.0, 1.0, 0.0)]
        {
            let plan = solved(&nothing);
            assert_eq!((plan.whole[0], plan.certificate.gap), (0, 0.0), "{nothing:?}");
        }
        // Free of cost, an empty budget does not bind.
        assert_eq!(solved(&one(5.5, 0.0, 1.0, 0.0, 9.0)).whole, [5]);
        for bad in [
            one(f64::NAN, 1.0, 1.0, 1.0, 1.0),
            one(1.0, 1.0, f64::NAN, 1.0, 1.0),
            one(1.0, -1.0, 1.0, 1.0, 1.0),
            one(1.0, 1.0, 1.0, f64::INFINITY, 1.0),
        ] {
            assert_eq!(allocate(&bad, None, 1).unwrap_err().kind, crate::error::Kind::Contract);
        }
        assert!(allocate(&Problem { ad: vec![1], ..one(1.0, 1.0, 1.0, 1.0, 1.0) }, None, 1).is_err());
        assert!(allocate(&Problem { cap: vec![], ..one(1.0, 1.0, 1.0, 1.0, 1.0) }, None, 1).is_err());
    }
}
