//! A plan in words that a marketer can argue with: what holds each ad back, what more money would bring, and the smallest change that
//! lets every ad have its minimum.

use super::{Plan, Problem, allocate};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What keeps an ad from having more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    Budget,
    GroupBudget,
    ReturnFloor,
    /// It has no pair.
    NoSegment,
    /// No pair has supply, value and money at once.
    NoSupply,
    /// Every pair is at its cap.
    Caps,
    /// Its segments' impressions are worth more to others.
    Supply,
}

impl Binding {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::GroupBudget => "group_budget",
            Self::ReturnFloor => "return_floor",
            Self::NoSegment => "no_segment",
            Self::NoSupply => "no_supply",
            Self::Caps => "caps",
            Self::Supply => "supply",
        }
    }

    /// Why money is left; none when the budget is what binds.
    pub fn unspent_reason(self) -> Option<&'static str> {
        match self {
            Self::Budget => None,
            Self::GroupBudget => Some("the budget of its group is spent"),
            Self::ReturnFloor => Some("more would return less than its floor"),
            Self::NoSegment => Some("no eligible segment"),
            Self::NoSupply => Some("its segments have no impressions, or give it no value"),
            Self::Caps => Some("the caps of all its segments are reached"),
            Self::Supply => Some("the impressions of its segments are worth more to other ads"),
        }
    }
}

/// A limit counts as reached when less than this share of it is left.
const SLACK: f64 = 1e-4;

fn used_up(used: f64, of: f64) -> bool {
    of.is_finite() && used >= (1.0 - SLACK) * of
}

/// By ad.
pub fn binding(problem: &Problem, plan: &Plan) -> Vec<Binding> {
    let totals = problem.totals(&plan.x);
    let group_spend = problem.group_spend(&totals);
    let mut seen = vec![Seen::default(); problem.budget.len()];
    for (pair, &ad) in problem.ad.iter().enumerate() {
        let segment = problem.segment[pair];
        let seen = &mut seen[ad];
        seen.pairs += 1;
        if problem.supply[segment] > 0.0 && (problem.value[pair] > 0.0 || problem.minimum[ad] > 0.0) {
            seen.wanted += 1;
            seen.capped += usize::from(used_up(plan.x[pair], problem.cap[pair]));
        }
    }
    let of_ad = |ad: usize| {
        let seen = &seen[ad];
        let group_is_spent = problem.group_of(ad).is_some_and(|group| used_up(group_spend[group], problem.group_budget[group]));
        if used_up(totals[ad].cost, problem.budget[ad]) {
            Binding::Budget
        } else if seen.pairs == 0 {
            Binding::NoSegment
        } else if group_is_spent {
            Binding::GroupBudget
        } else if seen.wanted == 0 {
            Binding::NoSupply
        } else if plan.prices.floor[ad] > 0.0 {
            Binding::ReturnFloor
        } else if seen.capped == seen.wanted {
            Binding::Caps
        } else {
            Binding::Supply
        }
    };
    (0..problem.budget.len()).map(of_ad).collect()
}

/// Pairs of an ad: all, those worth showing, and of these those at their cap.
#[derive(Clone, Default)]
struct Seen {
    pairs: usize,
    wanted: usize,
    capped: usize,
}

/// How many limits a plan reaches.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reached {
    pub budgets: u64,
    pub supplies: u64,
    pub caps: u64,
}

pub fn reached(problem: &Problem, plan: &Plan) -> Reached {
    let count = |used: &[f64], of: &[f64]| used.iter().zip(of).filter(|(used, of)| **of > 0.0 && used_up(**used, **of)).count() as u64;
    let spent: Vec<f64> = problem.totals(&plan.x).iter().map(|total| total.cost).collect();
    Reached {
        budgets: count(&spent, &problem.budget),
        supplies: count(&problem.taken(&plan.x), &problem.supply),
        caps: count(&plan.x, &problem.cap),
    }
}

/// Change of the whole plan's value for a tenth more or less of one budget. From the dual: the value is concave in each budget, so the
/// gain is at most, and the loss at least, the shadow price times the money.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Sensitivity {
    pub plus_10_percent_at_most: f64,
    pub minus_10_percent_at_least: f64,
}

pub fn sensitivity(problem: &Problem, plan: &Plan, ad: usize) -> Sensitivity {
    let worth = if problem.budget[ad].is_finite() { 0.1 * problem.budget[ad] * plan.prices.budget[ad] } else { 0.0 };
    Sensitivity { plus_10_percent_at_most: worth, minus_10_percent_at_least: if worth == 0.0 { 0.0 } else { -worth } }
}

/// What would let an ad have its minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mending {
    pub ad: usize,
    /// The minimum is reached when it is lowered by so many impressions. No other plan is short by less in sum.
    pub lower_minimum_by: f64,
    /// Or when the ad gets so much more money, in micro-units; none where caps and supply leave no room, where its group has no more
    /// money, or where money is not what lacks.
    pub raise_budget_by: Option<f64>,
}

/// The least by which the minima of an infeasible plan must be lowered in sum, by ad. The plan itself may be short by more: the money of
/// a group may bring more elsewhere than the penalty takes.
pub fn mendings(problem: &Problem, plan: &Plan, threads: usize) -> Result<Vec<Mending>> {
    if plan.certificate.shortfall <= 0.0 {
        return Ok(Vec::new());
    }
    let short = |x: &[f64]| problem.shortfall(x).iter().sum::<f64>();
    let least = least_short(problem, threads)?;
    let x = if short(&least) < short(&plan.x) { &least } else { &plan.x };
    let (totals, taken) = (problem.totals(x), problem.taken(x));
    let group_spend = problem.group_spend(&totals);
    let lacks = |ad: &usize| problem.minimum[*ad] - totals[*ad].impressions > SLACK * problem.minimum[*ad];
    let of_ad = |ad: usize| {
        let lower_minimum_by = problem.minimum[ad] - totals[ad].impressions;
        let price = price_of(problem, x, &taken, ad, lower_minimum_by);
        let group_pays = |price: &f64| {
            problem.group_of(ad).is_none_or(|group| group_spend[group] + price <= (1.0 + SLACK) * problem.group_budget[group])
        };
        let lacking = |price: f64| totals[ad].cost + price - problem.budget[ad];
        Mending { ad, lower_minimum_by, raise_budget_by: price.filter(group_pays).map(lacking).filter(|lacking| *lacking > 0.0) }
    };
    Ok((0..problem.budget.len()).filter(lacks).map(of_ad).collect())
}

/// Next to an impression of a minimum, value counts for nothing; but it must count for the return floors.
const WORTHLESS: f64 = 1e-6;

/// The plan that is short of the minima by the least in sum, whatever it is worth.
fn least_short(problem: &Problem, threads: usize) -> Result<Vec<f64>> {
    let (pairs, ads) = (problem.value.len(), problem.budget.len());
    let wanted = |pair: &usize| problem.minimum[problem.ad[*pair]] > 0.0;
    let floored = |pair: &usize| wanted(pair) && problem.min_roi[problem.ad[*pair]] > 0.0;
    let dearest = (0..pairs).filter(floored).map(|pair| problem.value[pair]).fold(0.0, f64::max);
    let shrink = WORTHLESS / if dearest > 0.0 { dearest } else { 1.0 };
    let mut short = problem.clone();
    short.penalty = 1.0;
    short.value = (0..pairs).map(|pair| if floored(&pair) { problem.value[pair] * shrink } else { 0.0 }).collect();
    short.min_roi.iter_mut().for_each(|roi| *roi *= shrink);
    // A segment that an ad without limits always fills, worth twice the minima: the bound is relative to something, also where no minimum
    // is missed, and its value per impression makes that of the others nothing.
    let (count, minima) = ((0..pairs).filter(wanted).count().max(1) as f64, problem.minimum.iter().sum::<f64>());
    short.segment.push(short.supply.len());
    short.ad.push(ads);
    short.value.push(20.0 * count);
    short.cost.push(0.0);
    short.cap.push(f64::INFINITY);
    short.supply.push(0.1 * minima / count);
    short.budget.push(f64::INFINITY);
    short.minimum.push(0.0);
    short.min_roi.push(0.0);
    short.group.push(short.group_budget.len());
    let mut x = allocate(&short, None, threads)?.x;
    x.truncate(pairs);
    Ok(x)
}

/// The price of more impressions of an ad, the cheapest first, if there is room for all of them.
fn price_of(problem: &Problem, x: &[f64], taken: &[f64], ad: usize, impressions: f64) -> Option<f64> {
    let mut pairs: Vec<usize> = (0..problem.ad.len()).filter(|pair| problem.ad[*pair] == ad).collect();
    pairs.sort_by(|a, b| problem.cost[*a].total_cmp(&problem.cost[*b]).then(a.cmp(b)));
    let (mut wanted, mut price) = (impressions, 0.0);
    for pair in pairs {
        let room = (problem.cap[pair] - x[pair]).min(problem.supply[problem.segment[pair]] - taken[problem.segment[pair]]);
        let more = room.min(wanted).max(0.0);
        price += problem.cost[pair] * more;
        wanted -= more;
    }
    (wanted <= 1e-6 * impressions).then_some(price)
}
