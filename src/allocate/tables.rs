//! Plain tables -> a problem, and a plan -> tables: the allocation for whoever has values and costs from elsewhere.
//!
//! Candidates: segment_id, ad_id, value_per_impression, cost_per_impression, max_impressions?. Segments: segment_id, impressions. Ads:
//! ad_id, budget, min_impressions?, group?, min_roi?. Groups: group, budget. Money is in currency; an empty optional cell is no limit.

use super::explain::{self, Sensitivity};
use super::{Certificate, Plan, Prices, Problem};
use crate::error::{Context, Error, Result};
use crate::platform::{engine, table};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::prelude::SessionContext;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub struct Locations {
    pub candidates: String,
    pub segments: String,
    pub ads: String,
    pub groups: Option<String>,
}

/// A problem and the names of what its indices mean.
pub struct Named {
    pub problem: Problem,
    pub segments: Vec<String>,
    pub ads: Vec<String>,
    pub groups: Vec<String>,
}

const MICROS: f64 = 1e6;

/// Reads and checks the tables. `reserve` is the share of every supply, cap and budget that is left for exploration.
///
/// # Errors
/// `Usage` for a table or column that is absent; `Contract`, naming file, column and row, for a cell that cannot be.
pub async fn read(locations: &Locations, reserve: f64) -> Result<Named> {
    // One thread: rows keep their order, and an error its row number.
    let context = engine::session(&engine::Settings { threads: 1, memory_mib: 4096, buckets: 1 })?;
    let segments = Cells::read(&context, &locations.segments, &["segment_id"], &["impressions"], &[]).await?;
    let ads = Cells::read(&context, &locations.ads, &["ad_id"], &["budget"], &["min_impressions", "group", "min_roi"]).await?;
    let groups = match &locations.groups {
        Some(groups) => Some(Cells::read(&context, groups, &["group"], &["budget"], &[]).await?),
        None => None,
    };
    let named = ["value_per_impression", "cost_per_impression"];
    let candidates = Cells::read(&context, &locations.candidates, &["segment_id", "ad_id"], &named, &["max_impressions"]).await?;

    let (segment_ids, ad_ids) = (segments.ids("segment_id")?, ads.ids("ad_id")?);
    let group_ids = groups.as_ref().map(|groups| groups.ids("group")).transpose()?.unwrap_or_default();
    let kept = 1.0 - reserve;
    let scaled = |numbers: Vec<f64>, by: f64| -> Vec<f64> { numbers.into_iter().map(|number| number * by).collect() };
    let budget = scaled(ads.quantities("budget", None)?, MICROS * kept);
    let mut problem = Problem::of_budgets(scaled(segments.quantities("impressions", None)?, kept), budget);
    problem.minimum = ads.quantities("min_impressions", Some(0.0))?;
    problem.min_roi = scaled(ads.quantities("min_roi", Some(0.0))?, 1.0 / MICROS);
    if let Some(groups) = &groups {
        problem.group_budget = scaled(groups.quantities("budget", None)?, MICROS * kept);
    }
    problem.group = ads.optional_indices("group", &group_ids, groups.as_ref().map_or("--groups", |groups| &groups.location))?;
    problem.segment = candidates.indices("segment_id", &segment_ids, &segments.location)?;
    problem.ad = candidates.indices("ad_id", &ad_ids, &ads.location)?;
    let mut seen = HashMap::new();
    for (row, pair) in problem.segment.iter().zip(&problem.ad).enumerate() {
        if let Some(first) = seen.insert(pair, row + 1) {
            return Err(candidates.wrong("segment_id, ad_id", row, format_args!("stands in row {first}, too")));
        }
    }
    problem.value = candidates.quantities("value_per_impression", None)?;
    problem.cost = scaled(candidates.quantities("cost_per_impression", None)?, MICROS);
    problem.cap = scaled(candidates.quantities("max_impressions", Some(f64::INFINITY))?, kept);
    problem.price_minima();
    let names = |ids: HashMap<String, usize>| {
        let mut names = vec![String::new(); ids.len()];
        ids.into_iter().for_each(|(id, at)| names[at] = id);
        names
    };
    Ok(Named { problem, segments: names(segment_ids), ads: names(ad_ids), groups: names(group_ids) })
}

/// A table's columns, as text or as numbers, and where they come from.
struct Cells {
    location: String,
    rows: RecordBatch,
}

impl Cells {
    async fn read(context: &SessionContext, location: &str, ids: &[&str], numbers: &[&str], optional: &[&str]) -> Result<Self> {
        let opened = table::open(context, location).await?;
        let schema = opened.schema();
        let mut wanted = Vec::new();
        for column in ids {
            wanted.push(table::text(schema, column).with_context(|| location.to_owned())?.alias(*column));
        }
        for column in numbers {
            wanted.push(table::number(schema, column).with_context(|| location.to_owned())?.alias(*column));
        }
        for column in optional.iter().filter(|column| schema.has_column_with_unqualified_name(column)) {
            wanted.push(if *column == "group" { table::text(schema, column)? } else { table::number(schema, column)? }.alias(*column));
        }
        let numbers: Vec<&str> = numbers.iter().chain(optional).copied().filter(|column| *column != "group").collect();
        if let Some(wrong) = table::not_numbers(&opened, &numbers).await?.first() {
            let rows = engine::collect(opened.clone().select(vec![table::text(schema, &wrong.column)?.alias("cell")])?).await?;
            let cells = crate::types::column::<StringArray>(&rows, "cell")?;
            let row = cells.iter().position(|cell| cell == Some(wrong.example.as_str())).unwrap_or_default();
            let what = format_args!("{location}: column {}, row {}: {:?} is not a number", wrong.column, row + 1, wrong.example);
            return Err(Error::contract(what).action("mend the row and run again"));
        }
        let rows = engine::collect(opened.select(wanted)?).await.with_context(|| format!("reading {location}"))?;
        if rows.num_rows() == 0 {
            return Err(Error::contract(format_args!("{location} has no rows")).action("deliver the table and run again"));
        }
        Ok(Self { location: location.to_owned(), rows })
    }

    /// Rows count from 1, below the header.
    fn wrong(&self, column: &str, row: usize, what: impl std::fmt::Display) -> Error {
        Error::contract(format_args!("{}: column {column}, row {}: {what}", self.location, row + 1)).action("mend the row and run again")
    }

    fn text(&self, column: &str) -> Result<&StringArray> {
        crate::types::column(&self.rows, column)
    }

    /// The row of each id.
    fn ids(&self, column: &str) -> Result<HashMap<String, usize>> {
        let mut ids = HashMap::new();
        for (row, id) in self.text(column)?.iter().enumerate() {
            let id = id.ok_or_else(|| self.wrong(column, row, "is empty"))?;
            if let Some(first) = ids.insert(id.to_owned(), row) {
                return Err(self.wrong(column, row, format_args!("{id:?} stands in row {}, too", first + 1)));
            }
        }
        Ok(ids)
    }

    /// For each row, the place of its id among others.
    fn indices(&self, column: &str, ids: &HashMap<String, usize>, of: &str) -> Result<Vec<usize>> {
        let index = |(row, id): (usize, Option<&str>)| {
            let id = id.ok_or_else(|| self.wrong(column, row, "is empty"))?;
            ids.get(id).copied().ok_or_else(|| self.wrong(column, row, format_args!("{id:?} is not in {of}")))
        };
        self.text(column)?.iter().enumerate().map(index).collect()
    }

    /// As [`Cells::indices`]; an empty cell is none: one beyond the last.
    fn optional_indices(&self, column: &str, ids: &HashMap<String, usize>, of: &str) -> Result<Vec<usize>> {
        let none = ids.len();
        if self.rows.column_by_name(column).is_none() {
            return Ok(vec![none; self.rows.num_rows()]);
        }
        let index = |(row, id): (usize, Option<&str>)| match id.filter(|id| !id.is_empty()) {
            None => Ok(none),
            Some(id) => ids.get(id).copied().ok_or_else(|| self.wrong(column, row, format_args!("{id:?} is not in {of}"))),
        };
        self.text(column)?.iter().enumerate().map(index).collect()
    }

    /// Numbers not below 0; an empty cell, or a column that is not there, is `absent`.
    fn quantities(&self, column: &str, absent: Option<f64>) -> Result<Vec<f64>> {
        if let (Some(absent), None) = (absent, self.rows.column_by_name(column)) {
            return Ok(vec![absent; self.rows.num_rows()]);
        }
        let quantity = |(row, number): (usize, Option<f64>)| match number.or(absent) {
            None => Err(self.wrong(column, row, "is empty")),
            Some(number) if number >= 0.0 && (number.is_finite() || absent == Some(number)) => Ok(number),
            Some(number) => Err(self.wrong(column, row, format_args!("{number} is not a quantity"))),
        };
        crate::types::column::<Float64Array>(&self.rows, column)?.iter().enumerate().map(quantity).collect()
    }
}

// -------------------------------------------------------------------------------------------------------------------- prices

/// Prices by name, in value per unit of currency or per impression: what another night can start from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct NamedPrices {
    pub ads: BTreeMap<String, AdPrices>,
    pub groups: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct AdPrices {
    pub budget: f64,
    pub return_floor: f64,
    pub minimum: f64,
}

impl NamedPrices {
    pub fn of(ads: &[String], groups: &[String], prices: &Prices) -> Self {
        let of_ad = |(at, id): (usize, &String)| {
            let prices = AdPrices { budget: prices.budget[at] * MICROS, return_floor: prices.floor[at], minimum: prices.minimum[at] };
            (id.clone(), prices)
        };
        let of_group = |(id, price): (&String, &f64)| (id.clone(), price * MICROS);
        Self { ads: ads.iter().enumerate().map(of_ad).collect(), groups: groups.iter().zip(&prices.group).map(of_group).collect() }
    }

    /// In the order of a problem; what is new has no price yet.
    pub fn in_order(&self, ads: &[String], groups: &[String]) -> Prices {
        let of_ads = |of: fn(&AdPrices) -> f64| ads.iter().map(|id| self.ads.get(id).map_or(0.0, of)).collect();
        Prices {
            budget: of_ads(|prices| prices.budget / MICROS),
            floor: of_ads(|prices| prices.return_floor),
            minimum: of_ads(|prices| prices.minimum),
            group: groups.iter().map(|id| self.groups.get(id).map_or(0.0, |price| price / MICROS)).collect(),
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------- results

#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Of the fractional plan.
    pub lower_bound: f64,
    pub upper_bound: f64,
    pub gap: f64,
    pub max_violation: f64,
    pub seconds: f64,
    pub iterations: usize,
    /// Of the plan in whole impressions.
    pub value_whole: f64,
    pub gap_whole: f64,
    /// Share of supply, caps and budgets that the plan leaves for exploration.
    pub reserve: f64,
    /// Value that each impression below a minimum costs the bounds.
    pub shortfall_penalty: f64,
    /// Impressions that the minima lack in this plan, and in the plan that is short of them by the least.
    pub shortfall: f64,
    pub least_shortfall: f64,
    pub campaigns: Vec<Campaign>,
}

/// An ad and what the plan of whole impressions does for it. Money in currency.
#[derive(Clone, Debug, Serialize)]
pub struct Campaign {
    pub ad_id: String,
    pub budget: f64,
    pub spend: f64,
    pub value: f64,
    pub impressions: u64,
    pub binding_constraint: &'static str,
    /// Value of one more unit of currency.
    pub shadow_price: f64,
    pub unspent_reason: Option<&'static str>,
    pub sensitivity: Sensitivity,
    /// How the sensitivity was found.
    pub sensitivity_method: &'static str,
    /// For an ad whose minimum not even the plan of the least shortfall reaches.
    pub mend: Option<Mend>,
}

/// The smallest change after which some plan reaches the minimum; money in currency.
#[derive(Clone, Debug, Serialize)]
pub struct Mend {
    pub lower_min_impressions_by: f64,
    pub or_raise_budget_by: Option<f64>,
}

pub fn results(named: &Named, plan: &Plan, reserve: f64, seconds: f64, threads: usize) -> Result<Results> {
    let problem = &named.problem;
    let whole: Vec<f64> = plan.whole.iter().map(|n| *n as f64).collect();
    let (totals, bindings) = (problem.totals(&whole), explain::binding(problem, plan));
    let mut mends: BTreeMap<usize, Mend> = BTreeMap::new();
    let mut least_shortfall = 0.0;
    for mending in explain::mendings(problem, plan, threads)? {
        least_shortfall += mending.lower_minimum_by;
        let or_raise_budget_by = mending.raise_budget_by.map(|micros| micros / MICROS);
        mends.insert(mending.ad, Mend { lower_min_impressions_by: mending.lower_minimum_by, or_raise_budget_by });
    }
    let campaign = |ad: usize| Campaign {
        ad_id: named.ads[ad].clone(),
        budget: problem.budget[ad] / MICROS,
        spend: totals[ad].cost / MICROS,
        value: totals[ad].value,
        impressions: totals[ad].impressions as u64,
        binding_constraint: bindings[ad].as_str(),
        shadow_price: plan.prices.budget[ad] * MICROS,
        unspent_reason: bindings[ad].unspent_reason(),
        sensitivity: explain::sensitivity(problem, plan, ad),
        sensitivity_method: "dual",
        mend: mends.get(&ad).cloned(),
    };
    let Certificate { upper_bound, value, gap, value_whole, gap_whole, max_violation, shortfall, iterations } = plan.certificate;
    Ok(Results {
        lower_bound: value,
        upper_bound,
        gap,
        max_violation,
        seconds,
        iterations,
        value_whole,
        gap_whole,
        reserve,
        shortfall_penalty: problem.penalty,
        shortfall,
        least_shortfall,
        campaigns: (0..named.ads.len()).map(campaign).collect(),
    })
}

/// segment_id, ad_id, impressions, impressions_fractional, spend, value: the pairs that are planned, in the order of the candidates.
pub fn plan_table(named: &Named, plan: &Plan) -> Result<RecordBatch> {
    let problem = &named.problem;
    let pairs: Vec<usize> = (0..plan.x.len()).filter(|pair| plan.x[*pair] > 0.0 || plan.whole[*pair] > 0).collect();
    let names = |names: &[String], index: &[usize]| {
        Arc::new(StringArray::from_iter_values(pairs.iter().map(|pair| names[index[*pair]].as_str()))) as ArrayRef
    };
    let numbers = |of: &dyn Fn(usize) -> f64| Arc::new(Float64Array::from_iter_values(pairs.iter().map(|pair| of(*pair)))) as ArrayRef;
    Ok(RecordBatch::try_from_iter([
        ("segment_id", names(&named.segments, &problem.segment)),
        ("ad_id", names(&named.ads, &problem.ad)),
        ("impressions", Arc::new(Int64Array::from_iter_values(pairs.iter().map(|pair| plan.whole[*pair] as i64))) as ArrayRef),
        ("impressions_fractional", numbers(&|pair| plan.x[pair])),
        ("spend", numbers(&|pair| problem.cost[pair] * plan.whole[pair] as f64 / MICROS)),
        ("value", numbers(&|pair| problem.value[pair] * plan.whole[pair] as f64)),
    ])?)
}

/// The campaigns of the results, without their sensitivity and mending.
pub fn campaign_table(campaigns: &[Campaign]) -> Result<RecordBatch> {
    let numbers = |of: &dyn Fn(&Campaign) -> f64| Arc::new(Float64Array::from_iter_values(campaigns.iter().map(of))) as ArrayRef;
    let texts = |of: &dyn Fn(&Campaign) -> Option<String>| Arc::new(campaigns.iter().map(of).collect::<StringArray>()) as ArrayRef;
    Ok(RecordBatch::try_from_iter([
        ("ad_id", texts(&|campaign| Some(campaign.ad_id.clone()))),
        ("budget", numbers(&|campaign| campaign.budget)),
        ("spend", numbers(&|campaign| campaign.spend)),
        ("value", numbers(&|campaign| campaign.value)),
        ("impressions", Arc::new(Int64Array::from_iter_values(campaigns.iter().map(|campaign| campaign.impressions as i64)))),
        ("binding_constraint", texts(&|campaign| Some(campaign.binding_constraint.to_owned()))),
        ("shadow_price", numbers(&|campaign| campaign.shadow_price)),
        ("unspent_reason", texts(&|campaign| campaign.unspent_reason.map(str::to_owned))),
        ("plus_10_percent_at_most", numbers(&|campaign| campaign.sensitivity.plus_10_percent_at_most)),
        ("minus_10_percent_at_least", numbers(&|campaign| campaign.sensitivity.minus_10_percent_at_least)),
    ])?)
}
