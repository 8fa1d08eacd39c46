//! The problem at given prices: every segment for itself takes the pairs that are worth most after what their ad pays for them.
//!
//! Smoothed, a pair takes impressions in proportion to how far its reduced value exceeds the segment's threshold, so that small changes
//! of prices have small effects and the dual has a gradient and a curvature; `softness` is the share of a pair's value over which it
//! goes from none of its impressions to all of them.

use super::{Prices, Problem, Totals};
use std::ops::Range;
use std::thread;

/// The pairs that may be planned at all, by segment.
pub(super) struct Market<'a> {
    pub problem: &'a Problem,
    /// Pairs of segment s: `start[s]..start[s + 1]`.
    start: Vec<usize>,
    /// Index among the problem's pairs.
    pub pair: Vec<usize>,
    pub ad: Vec<u32>,
    pub value: Vec<f64>,
    pub cost: Vec<f64>,
    /// Never more than the segment's supply.
    pub cap: Vec<f64>,
    /// Impressions gained per unit of reduced value, at a softness of 1.
    width: Vec<f64>,
    /// Segments that are summed together, whatever the number of threads.
    chunks: Vec<Range<usize>>,
    threads: usize,
}

/// What prices do to a pair's value: reduced = value_of x value - cost_of x cost + bonus.
#[derive(Clone, Copy, Default)]
struct Terms {
    value: f64,
    cost: f64,
    bonus: f64,
}

/// A pair whose impressions answer to a change of prices.
struct Soft {
    ad: u32,
    value: f64,
    cost: f64,
    width: f64,
}

/// One chunk at given prices.
struct Part {
    value: f64,
    totals: Vec<Totals>,
    threshold: Vec<f64>,
    soft: Vec<Soft>,
    /// For each segment with soft pairs: where they end, and whether its supply is used up.
    ends: Vec<(usize, bool)>,
}

/// The smoothed dual at a point.
pub(super) struct Smoothed {
    /// Of the dual.
    pub value: f64,
    /// Of each constraint, in the order of [`Market::rows`]: what is left of it.
    pub gradient: Vec<f64>,
    parts: Vec<Part>,
}

const CHUNKS: usize = 32;
const LEAST_PAIRS_A_CHUNK: usize = 4096;

impl<'a> Market<'a> {
    pub fn new(problem: &'a Problem, threads: usize) -> Self {
        let limit = |pair: usize| {
            let (purse, cost) = (problem.purse(problem.ad[pair]), problem.cost[pair]);
            let affordable = if cost > 0.0 { purse / cost } else { f64::INFINITY };
            problem.cap[pair].min(problem.supply[problem.segment[pair]]).min(affordable)
        };
        let wanted = |pair: &usize| problem.value[*pair] > 0.0 || problem.minimum[problem.ad[*pair]] > 0.0;
        let mut pair: Vec<usize> = (0..problem.segment.len()).filter(wanted).filter(|pair| limit(*pair) > 0.0).collect();
        pair.sort_by_key(|pair| problem.segment[*pair]);
        let mut start = vec![0; problem.supply.len() + 1];
        pair.iter().for_each(|pair| start[problem.segment[*pair] + 1] += 1);
        (0..problem.supply.len()).for_each(|segment| start[segment + 1] += start[segment]);
        let of = |numbers: &[f64]| -> Vec<f64> { pair.iter().map(|pair| numbers[*pair]).collect() };
        let value = of(&problem.value);
        // Of a pair without value a share is nothing: at least of the usual value.
        let usual = 0.05 * value.iter().map(|value| value.abs()).sum::<f64>() / value.len().max(1) as f64;
        let usual = if usual > 0.0 { usual } else { problem.penalty.max(f64::MIN_POSITIVE) };
        Self {
            width: pair.iter().zip(&value).map(|(pair, value)| limit(*pair) / value.max(usual)).collect(),
            cap: pair.iter().map(|pair| problem.cap[*pair].min(problem.supply[problem.segment[*pair]])).collect(),
            cost: of(&problem.cost),
            ad: pair.iter().map(|pair| problem.ad[*pair] as u32).collect(),
            chunks: chunks(&start),
            value,
            pair,
            start,
            problem,
            threads: threads.max(1),
        }
    }

    /// Constraints with a price: budget, return floor and minimum of each ad, then each group's budget.
    pub fn rows(&self) -> usize {
        3 * self.problem.budget.len() + self.problem.group_budget.len()
    }

    /// The right-hand side of each row, as "uses at most".
    fn limits(&self) -> Vec<f64> {
        let (problem, ads) = (self.problem, self.problem.budget.len());
        let minima = problem.minimum.iter().map(|minimum| -minimum);
        problem.budget.iter().copied().chain(vec![0.0; ads]).chain(minima).chain(problem.group_budget.iter().copied()).collect()
    }

    /// The highest price of each row; 0 where there is no constraint. A minimum is never dearer than its penalty.
    pub fn dearest(&self) -> Vec<f64> {
        let problem = self.problem;
        let if_any = |any: bool, price: f64| if any { price } else { 0.0 };
        let budget = |budget: &f64| if_any(*budget > 0.0 && budget.is_finite(), f64::INFINITY);
        let floors = problem.min_roi.iter().map(|roi| if_any(*roi > 0.0, f64::INFINITY));
        let minima = problem.minimum.iter().map(|minimum| if_any(*minimum > 0.0, problem.penalty));
        problem.budget.iter().map(budget).chain(floors).chain(minima).chain(problem.group_budget.iter().map(budget)).collect()
    }

    pub fn prices(&self, y: &[f64]) -> Prices {
        let ads = self.problem.budget.len();
        let part = |from: usize, to: usize| y[from..to].to_vec();
        Prices { budget: part(0, ads), floor: part(ads, 2 * ads), minimum: part(2 * ads, 3 * ads), group: part(3 * ads, y.len()) }
    }

    /// Prices as a point within bounds; none where they belong to another problem.
    pub fn point(&self, prices: &Prices) -> Option<Vec<f64>> {
        let y = [&prices.budget[..], &prices.floor, &prices.minimum, &prices.group].concat();
        let sane = y.len() == self.rows() && y.iter().all(|price| price.is_finite() && *price >= 0.0);
        sane.then(|| y.into_iter().zip(self.dearest()).map(|(price, dearest)| price.min(dearest)).collect())
    }

    /// `unit` is 1 for the values themselves, 0 for a change of prices.
    fn terms(&self, y: &[f64], unit: f64) -> Vec<Terms> {
        let ads = self.problem.budget.len();
        let of_group = |ad: usize| self.problem.group_of(ad).map_or(0.0, |group| y[3 * ads + group]);
        let of_ad = |ad: usize| Terms {
            value: unit + y[ads + ad],
            cost: y[ad] + of_group(ad) + y[ads + ad] * self.problem.min_roi[ad],
            bonus: y[2 * ads + ad],
        };
        (0..ads).map(of_ad).collect()
    }

    /// How much of each row the totals use.
    fn uses(&self, totals: &[Totals]) -> Vec<f64> {
        let floor = |(total, roi): (&Totals, &f64)| roi * total.cost - total.value;
        let floors = totals.iter().zip(&self.problem.min_roi).map(floor);
        let minima = totals.iter().map(|total| -total.impressions);
        totals.iter().map(|total| total.cost).chain(floors).chain(minima).chain(self.problem.group_spend(totals)).collect()
    }

    fn reduced(&self, terms: &[Terms], at: usize) -> f64 {
        let terms = &terms[self.ad[at] as usize];
        terms.value * self.value[at] - terms.cost * self.cost[at] + terms.bonus
    }

    fn in_chunks<T: Send>(&self, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.on_threads(self.threads.min(self.chunks.len()).max(1), work)
    }

    fn on_threads<T: Send>(&self, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let work = &work;
        let count = self.chunks.len();
        if threads == 1 {
            return (0..count).map(work).collect();
        }
        let mut done: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|first| scope.spawn(move || (first..count).step_by(threads).map(work).collect::<Vec<_>>())).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker panics only on a bug").into_iter()).collect()
        });
        (0..count).map(|chunk| done[chunk % threads].next().expect("each worker has done its chunks")).collect()
    }

    // -------------------------------------------------------------------------------------------------------------- smoothed

    /// The smoothed dual at prices `y`; the thresholds of a point nearby save time.
    pub fn smoothed(&self, y: &[f64], softness: f64, anchor: &[f64], near: Option<&Smoothed>) -> Smoothed {
        let terms = self.terms(y, 1.0);
        let parts = self.in_chunks(|chunk| self.part(chunk, &terms, softness, anchor, near.map(|near| &near.parts[chunk].threshold[..])));
        let totals = sum(self.problem.budget.len(), parts.iter().map(|part| &part.totals));
        let limits = self.limits();
        let priced: f64 = y.iter().zip(&limits).filter(|(price, _)| **price > 0.0).map(|(price, limit)| price * limit).sum();
        Smoothed {
            value: priced + parts.iter().map(|part| part.value).sum::<f64>(),
            gradient: limits.iter().zip(self.uses(&totals)).map(|(limit, used)| limit - used).collect(),
            parts,
        }
    }

    fn part(&self, chunk: usize, terms: &[Terms], softness: f64, anchor: &[f64], near: Option<&[f64]>) -> Part {
        let segments = self.chunks[chunk].clone();
        let totals = vec![Totals::default(); self.problem.budget.len()];
        let mut part = Part { value: 0.0, totals, threshold: Vec::with_capacity(segments.len()), soft: Vec::new(), ends: Vec::new() };
        let mut contest = Vec::new();
        for (place, segment) in segments.enumerate() {
            let before = part.soft.len();
            let threshold = self.contest(segment, terms, softness, anchor, near.map_or(0.0, |near| near[place]), &mut contest);
            for bid in &contest {
                let x = bid.impressions(threshold);
                if x <= 0.0 {
                    continue;
                }
                part.value += bid.reduced * x - 0.5 * x * x / bid.width;
                let (ad, value, cost) = (self.ad[bid.at], self.value[bid.at], self.cost[bid.at]);
                part.totals[ad as usize].add(Totals { value: value * x, cost: cost * x, impressions: x });
                if x < bid.cap {
                    part.soft.push(Soft { ad, value, cost, width: bid.width });
                }
            }
            part.threshold.push(threshold);
            if part.soft.len() > before {
                part.ends.push((part.soft.len(), threshold > 0.0));
            }
        }
        part
    }

    /// Gathers the segment's bids and finds the threshold at which they take no more than its supply.
    fn contest(&self, segment: usize, terms: &[Terms], softness: f64, anchor: &[f64], near: f64, bids: &mut Vec<Bid>) -> f64 {
        bids.clear();
        let pairs = self.start[segment]..self.start[segment + 1];
        for (at, anchor) in pairs.clone().zip(&anchor[pairs]) {
            let reduced = self.reduced(terms, at) + anchor / self.width[at] * softness;
            if reduced > 0.0 {
                bids.push(Bid { reduced, width: self.width[at] / softness, cap: self.cap[at], at });
            }
        }
        threshold(bids, self.problem.supply[segment], near)
    }

    /// The smoothed plan, in the order of the market's pairs, and each pair's reduced value above its segment's threshold.
    pub fn plan(&self, y: &[f64], softness: f64, anchor: &[f64], near: &Smoothed) -> (Vec<f64>, Vec<f64>) {
        let terms = self.terms(y, 1.0);
        let parts = self.in_chunks(|chunk| {
            let segments = self.chunks[chunk].clone();
            let first = self.start[segments.start];
            let mut x = vec![0.0; self.start[segments.end] - first];
            let mut margin = vec![0.0; x.len()];
            let mut bids = Vec::new();
            for (place, segment) in segments.enumerate() {
                let threshold = self.contest(segment, &terms, softness, anchor, near.parts[chunk].threshold[place], &mut bids);
                bids.iter().for_each(|bid| x[bid.at - first] = bid.impressions(threshold));
                for at in self.start[segment]..self.start[segment + 1] {
                    margin[at - first] = self.reduced(&terms, at) - threshold;
                }
            }
            (x, margin)
        });
        let (x, margin): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (x.concat(), margin.concat())
    }

    /// How the gradient changes with prices in the direction `d`: the curvature of the smoothed dual times `d`.
    pub fn curvature(&self, at: &Smoothed, d: &[f64]) -> Vec<f64> {
        let terms = self.terms(d, 0.0);
        let few = at.parts.iter().map(|part| part.soft.len()).sum::<usize>() < 100_000;
        let parts = self.on_threads(if few { 1 } else { self.threads }, |chunk| {
            let part = &at.parts[chunk];
            let mut totals = vec![Totals::default(); self.problem.budget.len()];
            let mut first = 0;
            for &(end, full) in &part.ends {
                let soft = &part.soft[first..end];
                let change = |soft: &Soft| {
                    let terms = &terms[soft.ad as usize];
                    terms.value * soft.value - terms.cost * soft.cost + terms.bonus
                };
                // Where the supply is used up, what one pair gains others lose.
                let (gain, width) =
                    soft.iter().fold((0.0, 0.0), |(gain, width), soft| (gain + soft.width * change(soft), width + soft.width));
                let mean = if full { gain / width } else { 0.0 };
                for soft in soft {
                    let x = soft.width * (change(soft) - mean);
                    totals[soft.ad as usize].add(Totals { value: soft.value * x, cost: soft.cost * x, impressions: x });
                }
                first = end;
            }
            totals
        });
        self.uses(&sum(self.problem.budget.len(), parts.iter())).into_iter().map(|used| -used).collect()
    }

    /// The diagonal of the curvature as if no supply were used up: of the soft pairs at a point, or of all pairs at a softness.
    pub fn soft_diagonal(&self, at: &Smoothed) -> Vec<f64> {
        self.diagonal(at.parts.iter().flat_map(|part| &part.soft).map(|soft| (soft.ad, soft.value, soft.cost, soft.width)))
    }

    pub fn full_diagonal(&self, softness: f64) -> Vec<f64> {
        self.diagonal((0..self.ad.len()).map(|at| (self.ad[at], self.value[at], self.cost[at], self.width[at] / softness)))
    }

    fn diagonal(&self, pairs: impl Iterator<Item = (u32, f64, f64, f64)>) -> Vec<f64> {
        let ads = self.problem.budget.len();
        let mut diagonal = vec![0.0; self.rows()];
        for (ad, value, cost, width) in pairs {
            let ad = ad as usize;
            let floor = self.problem.min_roi[ad] * cost - value;
            diagonal[ad] += width * cost * cost;
            diagonal[ads + ad] += width * floor * floor;
            diagonal[2 * ads + ad] += width;
        }
        for ad in 0..ads {
            if let Some(group) = self.problem.group_of(ad) {
                diagonal[3 * ads + group] += diagonal[ad];
            }
        }
        diagonal
    }

    // ----------------------------------------------------------------------------------------------------------------- exact

    /// What no plan can exceed: all constraints at these prices, and the best each segment could do if it paid them.
    pub fn bound(&self, y: &[f64]) -> f64 {
        let terms = self.terms(y, 1.0);
        let parts = self.in_chunks(|chunk| {
            let mut bids: Vec<(f64, f64)> = Vec::new();
            let mut worth = 0.0;
            for segment in self.chunks[chunk].clone() {
                let pairs = self.start[segment]..self.start[segment + 1];
                bids.clear();
                bids.extend(pairs.map(|at| (self.reduced(&terms, at), self.cap[at])).filter(|(reduced, _)| *reduced > 0.0));
                bids.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
                let mut left = self.problem.supply[segment];
                for (reduced, cap) in &bids {
                    let x = cap.min(left);
                    worth += reduced * x;
                    left -= x;
                    if left <= 0.0 {
                        break;
                    }
                }
            }
            worth
        });
        let limits = self.limits();
        let priced: f64 = y.iter().zip(&limits).filter(|(price, _)| **price > 0.0).map(|(price, limit)| price * limit).sum();
        priced + parts.iter().sum::<f64>()
    }
}

/// What a pair asks of its segment.
struct Bid {
    reduced: f64,
    width: f64,
    cap: f64,
    at: usize,
}

impl Bid {
    fn impressions(&self, threshold: f64) -> f64 {
        ((self.reduced - threshold) * self.width).min(self.cap).max(0.0)
    }
}

/// The least threshold, not below 0, at which the bids take no more than the supply: Newton's method within a bracket, which ends
/// exactly since what they take is piecewise linear.
fn threshold(bids: &[Bid], supply: f64, near: f64) -> f64 {
    let taken = |threshold: f64| {
        bids.iter().fold((0.0, 0.0), |(taken, slope), bid| {
            let x = (bid.reduced - threshold) * bid.width;
            if x <= 0.0 {
                (taken, slope)
            } else if x >= bid.cap {
                (taken + bid.cap, slope)
            } else {
                (taken + x, slope + bid.width)
            }
        })
    };
    let (mut low, mut high) = (0.0, bids.iter().map(|bid| bid.reduced).fold(0.0, f64::max));
    let mut at = if near > 0.0 && near < high { near } else { 0.0 };
    let mut zero_is_too_low = false;
    for _ in 0..100 {
        let (x, slope) = taken(at);
        let excess = x - supply;
        if excess.abs() <= 1e-13 * supply || (at == 0.0 && excess <= 0.0) {
            return at;
        }
        if excess > 0.0 {
            (low, zero_is_too_low) = (at, true);
        } else {
            high = at;
        }
        let next = at + excess / slope;
        at = if next > low && next < high {
            next
        } else if !zero_is_too_low {
            0.0
        } else {
            0.5 * (low + high)
        };
        if high - low <= 1e-15 * high {
            break;
        }
    }
    high
}

/// Runs of segments with about the same number of pairs.
fn chunks(start: &[usize]) -> Vec<Range<usize>> {
    let segments = start.len() - 1;
    let wanted = (start[segments] / CHUNKS).max(LEAST_PAIRS_A_CHUNK);
    let (mut chunks, mut first) = (Vec::new(), 0);
    for segment in 0..segments {
        if start[segment + 1] - start[first] >= wanted || segment + 1 == segments {
            chunks.push(first..segment + 1);
            first = segment + 1;
        }
    }
    chunks
}

fn sum<'a>(ads: usize, parts: impl Iterator<Item = &'a Vec<Totals>>) -> Vec<Totals> {
    let mut totals = vec![Totals::default(); ads];
    parts.for_each(|part| totals.iter_mut().zip(part).for_each(|(total, part)| total.add(*part)));
    totals
}
