//! Lists in an order that the rows already have.
//!
//! `ARRAY_AGG(x ORDER BY y)` keeps every y beside its x, value by value, and sorts at the end. Where the rows come sorted by the group
//! and then by y, as the rows of a bucket of users do, the plain `ARRAY_AGG(x)` of the same rows is the same list, and is built from
//! whole columns: an order of magnitude faster.

use arrow::compute::SortOptions;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, InputOrderMode};
use std::sync::Arc;

/// Takes the ORDER BY out of an ARRAY_AGG over rows that are in that order. To be the last rule: nothing may undo the order afterwards.
#[derive(Debug)]
pub(super) struct PresortedLists;

impl PhysicalOptimizerRule for PresortedLists {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let without_order = |node: Arc<dyn ExecutionPlan>| match node.downcast_ref::<AggregateExec>().map(presorted).transpose()?.flatten()
        {
            Some(aggregate) => Ok(Transformed::yes(Arc::new(aggregate) as _)),
            None => Ok(Transformed::no(node)),
        };
        plan.transform_up(without_order).data()
    }

    fn name(&self) -> &'static str {
        "PresortedLists"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The aggregate with its presorted lists; `None` when it has none.
fn presorted(aggregate: &AggregateExec) -> Result<Option<AggregateExec>> {
    // A partial aggregate hands the order on to its final one.
    let whole = matches!(aggregate.mode(), AggregateMode::Single | AggregateMode::SinglePartitioned);
    if !whole || *aggregate.input_order_mode() != InputOrderMode::Sorted {
        return Ok(None);
    }
    let mut found = false;
    let mut calls = Vec::with_capacity(aggregate.aggr_expr().len());
    for call in aggregate.aggr_expr() {
        let plain = if is_presorted(aggregate, call)? { Some(without_order(aggregate, call)?) } else { None };
        found |= plain.is_some();
        calls.push(plain.map_or_else(|| call.clone(), Arc::new));
    }
    Ok(found.then(|| aggregate.with_new_aggr_exprs(calls)))
}

fn is_presorted(aggregate: &AggregateExec, call: &AggregateFunctionExpr) -> Result<bool> {
    if call.fun().name() != "array_agg" || call.is_distinct() || call.is_reversed() || call.order_bys().is_empty() {
        return Ok(false);
    }
    let options = SortOptions { descending: false, nulls_first: false };
    let group = aggregate.group_expr().input_exprs().into_iter().map(|column| PhysicalSortExpr::new(column, options));
    aggregate.input().equivalence_properties().ordering_satisfy(group.chain(call.order_bys().iter().cloned()))
}

fn without_order(aggregate: &AggregateExec, call: &AggregateFunctionExpr) -> Result<AggregateFunctionExpr> {
    AggregateExprBuilder::new(Arc::new(call.fun().clone()), call.expressions())
        .schema(aggregate.input_schema())
        .alias(call.name())
        .with_ignore_nulls(call.ignore_nulls())
        .build()
}
