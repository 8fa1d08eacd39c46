//! `ctr=clicks/impressions`: what a metric's text says, and which sums of a unit it needs.
//!
//! A metric is an SQL expression over one row, summed by unit. A division at the top makes a ratio of sums (CTR, CVR, CPC, CPA, ROAS);
//! everything else is a mean over units. `roi=(revenue - cost)/cost` and `buyer=revenue > 0` work as one would expect.

use crate::error::{Context, Error, Result};
use crate::platform::table;
use crate::statistics::ab::Measure;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{BinaryExpr, ExprSchemable, Operator, Volatility};
use datafusion::prelude::{DataFrame, Expr, cast, ident};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// One metric as the command line or a spec says it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MetricSpec {
    pub value: String,
    /// The same before the experiment, or anything else that the arm cannot have changed: takes noise out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuped: Option<String>,
    /// Zeros and ones, their variance taken as p (1 - p).
    #[serde(default)]
    pub proportion: bool,
    /// The effect that the experiment was planned to find: power is stated for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Change>,
    /// Of a guardrail: the change that is still put up with. Positive where more is worse, negative where less is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Change>,
}

/// A change in the metric's own unit (`0.01`) or as a share of the control's value (`2%`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
#[serde(try_from = "String", into = "String")]
pub enum Change {
    Absolute(f64),
    Relative(f64),
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| {
            text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| {
                Error::usage(format_args!("{text} is no change"))
                    .action("write it as 0.01, in the metric's unit, or as 2%, of the control's value")
            })
        };
        match text.trim().strip_suffix('%') {
            Some(percent) => Ok(Self::Relative(number(percent)? / 100.0)),
            None => Ok(Self::Absolute(number(text)?)),
        }
    }
}

impl TryFrom<String> for Change {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Change> for String {
    fn from(change: Change) -> Self {
        match change {
            Change::Absolute(change) => change.to_string(),
            Change::Relative(share) => format!("{}%", 100.0 * share),
        }
    }
}

/// `name=expression`, or an expression that names itself.
pub fn named(text: &str) -> Result<(String, String)> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c));
    let (name, value) = match text.split_once('=') {
        Some((name, value)) if is_name(name.trim()) && !value.starts_with('=') => (name.trim(), value.trim()),
        _ => (text.trim(), text.trim()),
    };
    match value.is_empty() {
        true => {
            Err(Error::usage(format_args!("metric {text:?} says nothing to measure"))
                .action("write it as name=column or name=column/column"))
        }
        false => Ok((name.to_owned(), value.to_owned())),
    }
}

/// A metric with its place among the summed columns.
#[derive(Clone, Debug)]
pub struct Metric {
    pub name: String,
    pub spec: MetricSpec,
    /// Columns are numbered within the metric: see `columns`.
    pub outcome: Measure,
    pub before: Option<Measure>,
    /// Which of the summed columns the metric's own are.
    pub columns: Vec<usize>,
}

/// All metrics over one table.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub all: Vec<Metric>,
    /// What is summed by unit, each once.
    pub sums: Vec<Expr>,
    /// The table's columns that they read.
    pub reads: BTreeSet<String>,
}

impl Metrics {
    /// Plans the metrics over a table; nothing is read.
    pub fn plan(rows: &DataFrame, specs: &[(String, MetricSpec)]) -> Result<Self> {
        let mut metrics = Self::default();
        for (name, spec) in specs {
            if metrics.all.iter().any(|metric| metric.name == *name) {
                return Err(Error::usage(format_args!("metric {name} is named twice")));
            }
            let mut columns = Vec::new();
            let outcome = metrics.measure(rows, &spec.value, spec.proportion, &mut columns).with_context(|| format!("metric {name}"))?;
            let before = match &spec.cuped {
                Some(before) => Some(metrics.measure(rows, before, false, &mut columns).with_context(|| format!("CUPED of {name}"))?),
                None => None,
            };
            metrics.all.push(Metric { name: name.clone(), spec: spec.clone(), outcome, before, columns });
        }
        if metrics.sums.len() > 64 {
            return Err(Error::usage(format_args!("the metrics sum {} columns, 64 are the most", metrics.sums.len())));
        }
        Ok(metrics)
    }

    fn measure(&mut self, rows: &DataFrame, text: &str, proportion: bool, columns: &mut Vec<usize>) -> Result<Measure> {
        let expression = self.parse(rows, text)?;
        let mut place = |expression: Expr| {
            let sum = self.sums.iter().position(|known| *known == expression).unwrap_or_else(|| {
                self.sums.push(expression);
                self.sums.len() - 1
            });
            columns.push(sum);
            columns.len() - 1
        };
        Ok(match expression {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Divide, right }) if !right.column_refs().is_empty() => {
                if proportion {
                    return Err(Error::usage(format_args!("{text} is a ratio, not a proportion of the units")));
                }
                let above = place(*left);
                Measure::Ratio(above, place(*right))
            }
            mean if proportion => Measure::Proportion(place(mean)),
            mean => Measure::Mean(place(mean)),
        })
    }

    /// An expression of the table's columns, each read as a number.
    fn parse(&mut self, rows: &DataFrame, text: &str) -> Result<Expr> {
        let schema = rows.schema();
        // Every column that can be a number, under its own name: what the expression is read against.
        let readable = schema.fields().iter().filter_map(|field| Some(table::number(schema, field.name()).ok()?.alias(field.name())));
        let numbers = rows.clone().select(readable.collect::<Vec<_>>())?;
        let expression = match schema.has_column_with_unqualified_name(text) {
            true => ident(text),
            false => numbers.parse_sql_expr(text)?,
        };
        let mut refused = None;
        expression.apply(|part| {
            let allowed = match part {
                Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
                Expr::AggregateFunction(_) | Expr::WindowFunction(_) | Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                    false
                }
                _ => true,
            };
            if allowed {
                return Ok(TreeNodeRecursion::Continue);
            }
            refused = Some(part.to_string());
            Ok(TreeNodeRecursion::Stop)
        })?;
        if let Some(part) = refused {
            return Err(Error::usage(format_args!("{part} is not decided by one row")).action("sums by unit are taken by themselves"));
        }
        let reads: Vec<String> = expression.column_refs().iter().map(|column| column.name.clone()).collect();
        if reads.is_empty() {
            return Err(Error::usage(format_args!("{text} reads no column")));
        }
        for column in reads {
            table::number(schema, &column)?;
            self.reads.insert(column);
        }
        // In two steps, because a cell is read as a number before anything is computed with it.
        let typed = |expression: Expr| -> Result<Expr> {
            let kind = expression.get_type(numbers.schema())?;
            let flag = kind == DataType::Boolean;
            if !flag && !kind.is_numeric() {
                return Err(Error::usage(format_args!("{text} is {kind}, not a number")));
            }
            let expression = substitute(expression, rows)?;
            Ok(if flag { cast(cast(expression, DataType::Int8), DataType::Float64) } else { cast(expression, DataType::Float64) })
        };
        match expression {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Divide, right }) => {
                Ok(Expr::BinaryExpr(BinaryExpr::new(Box::new(typed(*left)?), Operator::Divide, Box::new(typed(*right)?))))
            }
            other => typed(other),
        }
    }
}

/// Columns replaced by how they are read as numbers.
fn substitute(expression: Expr, rows: &DataFrame) -> Result<Expr> {
    use datafusion::common::tree_node::Transformed;
    let schema = rows.schema();
    let replaced = expression.transform(|part| match &part {
        Expr::Column(column) => {
            let number =
                table::number(schema, &column.name).map_err(|error| datafusion::common::DataFusionError::Plan(error.to_string()))?;
            Ok(Transformed::new(number, true, TreeNodeRecursion::Jump))
        }
        _ => Ok(Transformed::no(part)),
    })?;
    Ok(replaced.data)
}
