//! The prices: a minimum of the smoothed dual, again and again with the smoothing around the plan that was found last, until the
//! certificate is good enough (the proximal method of multipliers; for linear programs Li, Sun & Toh, arXiv 1903.09546).
//!
//! The smoothed dual is convex and piecewise quadratic, so Newton's method needs few steps. Each solves for the prices within their
//! bounds by conjugate gradients; only the few pairs that are neither out nor full have curvature, so that costs little beside looking
//! at every pair once. Smoothing around the last plan takes nothing from the optimum: the softness need not vanish.

use super::market::{Market, Smoothed};
use super::{Prices, gap, repair};

/// The gap at which the search ends, and the steps after which it ends anyway.
const GOOD_ENOUGH: f64 = 3e-5;
const MOST_ITERATIONS: usize = 1000;
/// From a good guess a harder dual is within reach at once.
const SOFTEST: f64 = 0.5;
const SOFTNESS_WARM: f64 = 0.02;
const HARDEST: f64 = 0.05;
const HARDEN: f64 = 0.2;
const STEPS_A_SOFTNESS: usize = 40;
/// A plan is wanted within this share of the gap that is left; less, down to the least, when that closes it no further.
const CARE: f64 = 0.1;
const MOST_CARE: f64 = 1e-4;
/// Trials along a step; more only until one is lower.
const TRIALS: usize = 6;
const MOST_TRIALS: usize = 40;

/// A feasible plan and prices that bound what any plan could be worth.
pub(super) struct Found {
    pub x: Vec<f64>,
    pub prices: Prices,
    pub upper: f64,
    pub iterations: usize,
}

pub(super) fn search(market: &Market, start: Option<&Prices>) -> Found {
    let start = start.and_then(|prices| market.point(prices));
    let mut softness = if start.is_some() { SOFTNESS_WARM } else { SOFTEST };
    let mut y = start.unwrap_or_else(|| vec![0.0; market.rows()]);
    // What no pair can serve is as dear as can be.
    let (dearest, full) = (market.dearest(), market.full_diagonal(1.0));
    (0..y.len()).filter(|row| full[*row] == 0.0 && dearest[*row].is_finite()).for_each(|row| y[row] = dearest[row]);
    let mut anchor = vec![0.0; market.pair.len()];
    let nothing = vec![0.0; market.problem.value.len()];
    let mut best = (market.problem.worth(&nothing), nothing);
    let mut bound = (market.bound(&y), y.clone());
    let mut iterations = 0;
    let mut care = CARE;
    while gap(bound.0, best.0) > GOOD_ENOUGH && iterations < MOST_ITERATIONS {
        let before = gap(bound.0, best.0);
        let tolerance = care * before.clamp(GOOD_ENOUGH, softness);
        let first = iterations;
        let smoothed = descend(market, &mut y, softness, &anchor, tolerance, &mut iterations);
        let upper = market.bound(&y);
        if upper < bound.0 {
            bound = (upper, y.clone());
        }
        let (x, margin) = market.plan(&y, softness, &anchor, &smoothed);
        let plan = repair::repair(market, &x, &margin);
        let worth = market.problem.worth(&plan);
        if worth > best.0 {
            best = (worth, plan);
        }
        if gap(bound.0, best.0) > 0.9 * before {
            care = (0.1 * care).max(MOST_CARE);
        }
        anchor = x;
        // Steps that run out zigzag between kinks: a softer dual rounds them.
        let reached = iterations - first < STEPS_A_SOFTNESS;
        softness = if reached { (softness * HARDEN).max(HARDEST) } else { softness / HARDEN };
    }
    Found { x: best.1, prices: market.prices(&bound.1), upper: bound.0, iterations }
}

/// Newton's method at one softness, from `y` to the minimum within bounds.
fn descend(market: &Market, y: &mut Vec<f64>, softness: f64, anchor: &[f64], tolerance: f64, iterations: &mut usize) -> Smoothed {
    let (dearest, full) = (market.dearest(), market.full_diagonal(softness));
    let mut damping = 1e-3;
    let mut at = market.smoothed(y, softness, anchor, None);
    for _ in 0..STEPS_A_SOFTNESS {
        *iterations += 1;
        let free = |row: usize| {
            let (g, price) = (at.gradient[row], y[row]);
            full[row] > 0.0 && dearest[row] > 0.0 && !(price <= 0.0 && g >= 0.0) && !(price >= dearest[row] && g <= 0.0)
        };
        let free: Vec<bool> = (0..y.len()).map(free).collect();
        let step = newton_step(market, &at, &free, &full, damping);
        // What is left to gain, in value: each constraint that is left open or broken at the price it has or is heading for, and a
        // minimum that is missed at what that costs.
        let missed = |row: usize| at.gradient[row] < 0.0 && dearest[row].is_finite();
        let price = |row: usize| if missed(row) { dearest[row] } else { y[row].max(y[row] + step[row]) };
        let open = |row: usize| at.gradient[row].abs() * price(row);
        if (0..y.len()).filter(|row| free[*row]).map(open).sum::<f64>() <= tolerance * at.value.abs() {
            break;
        }
        let (by, found) = walk(market, &at, y, &step, &dearest, softness, anchor);
        damping *= if by >= 0.9 {
            0.2
        } else if by < 0.3 {
            4.0
        } else {
            1.0
        };
        match found {
            Some((next, there)) => (*y, at) = (next, there),
            None if damping > 1e4 => break,
            None => damping *= 10.0,
        }
    }
    at
}

/// How far to go along a step: to about where the dual, which has kinks on the way, begins to rise. None where nothing is lower.
fn walk(
    market: &Market,
    at: &Smoothed,
    y: &[f64],
    step: &[f64],
    dearest: &[f64],
    softness: f64,
    anchor: &[f64],
) -> (f64, Option<(Vec<f64>, Smoothed)>) {
    let within = |row: usize, price: f64| price > 0.0 && price < dearest[row];
    let slope: f64 = (0..y.len()).filter(|row| step[*row] != 0.0).map(|row| at.gradient[row] * step[row]).sum();
    let (mut low, mut high) = ((0.0, slope), None);
    let mut best: Option<(Vec<f64>, Smoothed)> = None;
    let mut by = 1.0;
    for trial in 0..MOST_TRIALS {
        if trial >= TRIALS && best.is_some() {
            break;
        }
        let next: Vec<f64> = (0..y.len()).map(|row| (y[row] + by * step[row]).clamp(0.0, dearest[row])).collect();
        let there = market.smoothed(&next, softness, anchor, Some(at));
        let moving = |row: &usize| next[*row] != y[*row] && within(*row, next[*row]);
        let rise: f64 = (0..y.len()).filter(moving).map(|row| there.gradient[row] * step[row]).sum();
        let lower = there.value <= best.as_ref().map_or(at.value, |(_, best)| best.value) + 1e-13 * at.value.abs();
        if lower {
            best = Some((next, there));
        }
        if lower && (rise.abs() <= 0.3 * slope.abs() || (rise < 0.0 && by >= 4.0)) {
            break;
        }
        if rise > 0.0 || !lower {
            high = Some((by, rise));
        } else {
            low = (by, rise);
        }
        by = match high {
            None => 2.0 * by,
            Some((high, rise)) => {
                let share = if rise > 0.0 { low.1 / (low.1 - rise) } else { 0.2 };
                low.0 + share.clamp(0.1, 0.9) * (high - low.0)
            }
        };
    }
    (by, best)
}

/// The step of the free prices: (curvature + damping) step = - gradient, by preconditioned conjugate gradients.
fn newton_step(market: &Market, at: &Smoothed, free: &[bool], full: &[f64], damping: f64) -> Vec<f64> {
    let rows = free.len();
    let masked =
        |numbers: Vec<f64>| -> Vec<f64> { numbers.into_iter().zip(free).map(|(number, free)| if *free { number } else { 0.0 }).collect() };
    let damp: Vec<f64> = full.iter().map(|full| damping * full).collect();
    let diagonal: Vec<f64> = market.soft_diagonal(at).into_iter().zip(&damp).map(|(soft, damp)| soft + damp).collect();
    let scaled = |r: &[f64]| -> Vec<f64> { (0..rows).map(|row| if free[row] { r[row] / diagonal[row] } else { 0.0 }).collect() };
    let mut r = masked(at.gradient.iter().map(|g| -g).collect());
    let mut step = vec![0.0; rows];
    let mut z = scaled(&r);
    let mut direction = z.clone();
    let mut rz = dot(&r, &z);
    let enough = 1e-4 * rz;
    for _ in 0..100 {
        if rz <= enough || rz <= 0.0 {
            break;
        }
        let mut curved = masked(market.curvature(at, &direction));
        (0..rows).for_each(|row| curved[row] += damp[row] * direction[row]);
        let along = dot(&direction, &curved);
        if along <= 0.0 {
            break;
        }
        let by = rz / along;
        for row in 0..rows {
            step[row] += by * direction[row];
            r[row] -= by * curved[row];
        }
        z = scaled(&r);
        let next = dot(&r, &z);
        let keep = next / rz;
        (0..rows).for_each(|row| direction[row] = z[row] + keep * direction[row]);
        rz = next;
    }
    step
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
