//! What an experiment's units sum up to, by arm: everything that inference needs, in memory that does not grow with the table.

use super::metric::Metrics;
use super::units::{ArmOf, MAX_ARMS, Tally, Unit};
use crate::statistics::bootstrap::weight;
use crate::statistics::moments::{Moments, Wide};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One metric of one arm.
#[derive(Clone, Debug)]
pub struct Column {
    pub moments: Moments,
    /// Least and greatest sum of a unit in the metric's first column.
    pub low: f64,
    pub high: f64,
    /// Units whose first column is not zero.
    pub non_zero: u64,
    /// Units without any value, which count as 0.
    pub empty: u64,
    /// Units with a sum that is no number, which are left out.
    pub not_finite: u64,
}

#[derive(Clone, Debug)]
pub struct ArmTally {
    pub units: u64,
    pub rows: u64,
    pub metrics: Vec<Column>,
}

/// By level of the breakdown (one, "", without) and arm.
#[derive(Clone, Debug)]
pub struct Arms {
    /// Of each metric, which of the unit's sums it reads.
    layout: Arc<Vec<Vec<usize>>>,
    pub levels: BTreeMap<String, BTreeMap<String, ArmTally>>,
    /// Units in more than one arm, which are in none here.
    pub in_several: u64,
    /// Rows of units without an arm, and of no unit.
    pub without_arm: u64,
    pub without_unit: u64,
    pub too_many: bool,
}

fn layout(metrics: &Metrics) -> Arc<Vec<Vec<usize>>> {
    Arc::new(metrics.all.iter().map(|metric| metric.columns.clone()).collect())
}

impl Arms {
    pub fn new(metrics: &Metrics) -> Self {
        Self { layout: layout(metrics), levels: BTreeMap::new(), in_several: 0, without_arm: 0, without_unit: 0, too_many: false }
    }

    /// The arms of a table that is not broken down.
    pub fn whole(&self) -> Option<&BTreeMap<String, ArmTally>> {
        self.levels.get("")
    }
}

impl ArmTally {
    fn new(layout: &[Vec<usize>]) -> Self {
        let column = |columns: &Vec<usize>| Column {
            moments: Moments::new(columns.len()),
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
            non_zero: 0,
            empty: 0,
            not_finite: 0,
        };
        Self { units: 0, rows: 0, metrics: layout.iter().map(column).collect() }
    }

    fn unit(&mut self, unit: &Unit<'_>, layout: &[Vec<usize>]) {
        self.units += 1;
        self.rows += unit.rows;
        for (column, places) in self.metrics.iter_mut().zip(layout) {
            // At most an outcome and what was before, each a ratio.
            let mut values = [0.0; 4];
            let values = &mut values[..places.len()];
            values.iter_mut().zip(places).for_each(|(value, &place)| *value = unit.sums[place]);
            if values.iter().any(|value| !value.is_finite()) {
                column.not_finite += 1;
                continue;
            }
            column.empty += u64::from(places.iter().any(|&place| unit.empty >> place & 1 == 1));
            column.non_zero += u64::from(values[0] != 0.0);
            column.low = column.low.min(values[0]);
            column.high = column.high.max(values[0]);
            column.moments.push(values);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.units += other.units;
        self.rows += other.rows;
        for (column, other) in self.metrics.iter_mut().zip(&other.metrics) {
            column.moments.merge(&other.moments);
            column.low = column.low.min(other.low);
            column.high = column.high.max(other.high);
            column.non_zero += other.non_zero;
            column.empty += other.empty;
            column.not_finite += other.not_finite;
        }
    }
}

impl Tally for Arms {
    fn unit(&mut self, unit: &Unit<'_>) {
        let arm = match unit.arm {
            ArmOf::One(arm) => arm,
            ArmOf::Several => {
                self.in_several += 1;
                return;
            }
            ArmOf::None => {
                self.without_arm += unit.rows;
                return;
            }
        };
        let level = unit.level.unwrap_or("");
        if !self.levels.contains_key(level) {
            self.levels.insert(level.to_owned(), BTreeMap::new());
        }
        let arms = self.levels.get_mut(level).expect("it was put there");
        if !arms.contains_key(arm) {
            if arms.len() == MAX_ARMS {
                self.too_many = true;
                return;
            }
            arms.insert(arm.to_owned(), ArmTally::new(&self.layout));
        }
        arms.get_mut(arm).expect("it was put there").unit(unit, &self.layout);
    }

    fn nameless(&mut self, rows: u64) {
        self.without_unit += rows;
    }

    fn merge(&mut self, other: Self) {
        for (level, arms) in other.levels {
            let mine = self.levels.entry(level).or_default();
            for (arm, tally) in arms {
                match mine.get_mut(&arm) {
                    Some(known) => known.merge(&tally),
                    None => drop(mine.insert(arm, tally)),
                }
            }
        }
        self.in_several += other.in_several;
        self.without_arm += other.without_arm;
        self.without_unit += other.without_unit;
        self.too_many |= other.too_many;
    }
}

/// Every replicate's sums by arm: in each a unit counts Poisson(1) times, drawn by hashing its name. A unit counts for those metrics in
/// which all its sums are numbers.
#[derive(Clone, Debug)]
pub struct Resampled {
    replicates: usize,
    seed: u64,
    /// Of each metric, which of the unit's sums it reads.
    layout: Arc<Vec<Vec<usize>>>,
    /// By arm, replicate after replicate, metric after metric: the units, then the sums.
    arms: BTreeMap<String, Vec<Wide>>,
}

impl Resampled {
    pub fn new(replicates: usize, seed: u64, metrics: &Metrics) -> Self {
        Self { replicates, seed, layout: layout(metrics), arms: BTreeMap::new() }
    }

    /// Means over the arm's units in a replicate of each column of a metric; none without a unit.
    pub fn means(&self, metric: usize, arm: &str, replicate: usize) -> Option<Vec<f64>> {
        let start = replicate * self.width() + self.layout[..metric].iter().map(|columns| columns.len() + 1).sum::<usize>();
        let sums = &self.arms.get(arm)?[start..=start + self.layout[metric].len()];
        let units = sums[0].value();
        (units > 0.0).then(|| sums[1..].iter().map(|sum| sum.value() / units).collect())
    }

    /// Of a replicate.
    fn width(&self) -> usize {
        self.layout.iter().map(|columns| columns.len() + 1).sum()
    }

    pub fn replicates(&self) -> usize {
        self.replicates
    }
}

impl Tally for Resampled {
    fn unit(&mut self, unit: &Unit<'_>) {
        let ArmOf::One(arm) = unit.arm else { return };
        let width = self.width();
        if !self.arms.contains_key(arm) {
            self.arms.insert(arm.to_owned(), vec![Wide::default(); self.replicates * width]);
        }
        let all = self.arms.get_mut(arm).expect("it was put there");
        for (replicate, mut sums) in all.chunks_exact_mut(width).enumerate() {
            let weight = f64::from(weight(unit.hash, replicate, self.seed));
            if weight == 0.0 {
                continue;
            }
            for columns in self.layout.iter() {
                let (own, rest) = sums.split_at_mut(columns.len() + 1);
                sums = rest;
                if columns.iter().all(|&column| unit.sums[column].is_finite()) {
                    own[0].add(weight);
                    own[1..].iter_mut().zip(columns).for_each(|(sum, &column)| sum.add(weight * unit.sums[column]));
                }
            }
        }
    }

    fn nameless(&mut self, _: u64) {}

    fn merge(&mut self, other: Self) {
        for (arm, sums) in other.arms {
            match self.arms.get_mut(&arm) {
                Some(known) => known.iter_mut().zip(&sums).for_each(|(sum, other)| sum.merge(*other)),
                None => drop(self.arms.insert(arm, sums)),
            }
        }
    }
}
