//! Where each column of a query comes from: columns of the tables it reads, as far as the logical plan tells.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, Subquery};
use std::collections::BTreeSet;

/// Columns of tables, each as `events.price`.
pub type Origins = BTreeSet<String>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lineage {
    /// Of each output column, the columns whose values it is made of.
    pub columns: Vec<Origins>,
    /// The columns that decide which rows there are: filters, join conditions, groupings.
    pub rows: Origins,
}

/// Follows the columns of a plan down to the tables.
pub fn lineage(plan: &LogicalPlan) -> Lineage {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let column = |name: &String| Origins::from([format!("{}.{name}", scan.table_name)]);
            Lineage { columns: scan.projected_schema.fields().iter().map(|field| column(field.name())).collect(), rows: Origins::new() }
        }
        LogicalPlan::Projection(projection) => {
            let mut below = lineage(&projection.input);
            let columns = projection.expr.iter().map(|expr| origins(expr, &projection.input, &mut below)).collect();
            Lineage { columns, rows: below.rows }
        }
        LogicalPlan::Filter(filter) => {
            let mut below = lineage(&filter.input);
            let decides = origins(&filter.predicate, &filter.input, &mut below);
            below.rows.extend(decides);
            below
        }
        LogicalPlan::Aggregate(aggregate) => {
            let mut below = lineage(&aggregate.input);
            let groups: Vec<Origins> = aggregate.group_expr.iter().map(|expr| origins(expr, &aggregate.input, &mut below)).collect();
            let values: Vec<Origins> = aggregate.aggr_expr.iter().map(|expr| origins(expr, &aggregate.input, &mut below)).collect();
            below.rows.extend(groups.iter().flatten().cloned());
            let mut columns: Vec<Origins> = groups.into_iter().chain(values).collect();
            // Grouping sets add columns of their own.
            columns.resize(aggregate.schema.fields().len(), Origins::new());
            Lineage { columns, rows: below.rows }
        }
        LogicalPlan::Window(window) => {
            let mut below = lineage(&window.input);
            let added: Vec<Origins> = window.window_expr.iter().map(|expr| origins(expr, &window.input, &mut below)).collect();
            below.columns.extend(added);
            below
        }
        LogicalPlan::Join(join) => {
            let (mut left, mut right) = (lineage(&join.left), lineage(&join.right));
            let mut rows = Origins::new();
            for (of_left, of_right) in &join.on {
                rows.extend(origins(of_left, &join.left, &mut left));
                rows.extend(origins(of_right, &join.right, &mut right));
            }
            let both: Vec<Origins> = left.columns.iter().chain(&right.columns).cloned().collect();
            if let Some(filter) = &join.filter {
                for column in filter.column_refs() {
                    let found = join.left.schema().maybe_index_of_column(column);
                    let place = found.or_else(|| Some(left.columns.len() + join.right.schema().maybe_index_of_column(column)?));
                    rows.extend(place.into_iter().flat_map(|place| both[place].clone()));
                }
            }
            rows.extend(left.rows);
            rows.extend(right.rows);
            let mut columns = match join.join_type {
                JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.columns,
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.columns,
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => both,
            };
            columns.resize(join.schema.fields().len(), Origins::new());
            Lineage { columns, rows }
        }
        LogicalPlan::Union(union) => {
            let parts: Vec<Lineage> = union.inputs.iter().map(|input| lineage(input)).collect();
            let width = union.schema.fields().len();
            let columns = (0..width).map(|at| parts.iter().flat_map(|part| part.columns.get(at).cloned().unwrap_or_default()).collect());
            Lineage { columns: columns.collect(), rows: parts.iter().flat_map(|part| part.rows.clone()).collect() }
        }
        LogicalPlan::Unnest(unnest) => {
            let below = lineage(&unnest.input);
            let columns = unnest.dependency_indices.iter().map(|at| below.columns.get(*at).cloned().unwrap_or_default()).collect();
            Lineage { columns, rows: below.rows }
        }
        LogicalPlan::Subquery(subquery) => lineage(&subquery.subquery),
        // These pass their rows on, column by column.
        LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::Repartition(_) => {
            let mut below = plan.inputs().first().map(|input| lineage(input)).unwrap_or_default();
            below.columns.resize(plan.schema().fields().len(), Origins::new());
            below
        }
        // Of anything else every column may come from every column.
        _ => {
            let parts: Vec<Lineage> = plan.inputs().into_iter().map(lineage).collect();
            let all: Origins = parts.iter().flat_map(|part| part.columns.iter().flatten().cloned()).collect();
            let rows = parts.iter().flat_map(|part| part.rows.clone()).collect();
            Lineage { columns: vec![all; plan.schema().fields().len()], rows }
        }
    }
}

/// The columns of which an expression over `input` is made; what decides the rows of its subqueries goes to `below.rows`.
fn origins(expr: &Expr, input: &LogicalPlan, below: &mut Lineage) -> Origins {
    let mut found = Origins::new();
    let mut inner = |subquery: &Subquery, found: &mut Origins, value: bool| {
        let of = lineage(&subquery.subquery);
        let columns = of.columns.into_iter().flatten();
        if value {
            found.extend(columns);
        } else {
            below.rows.extend(columns);
        }
        below.rows.extend(of.rows);
    };
    let mut places = Vec::new();
    let visited = expr.apply(|part| {
        match part {
            Expr::Column(column) => places.extend(input.schema().maybe_index_of_column(column)),
            Expr::ScalarSubquery(subquery) => inner(subquery, &mut found, true),
            Expr::InSubquery(of) => inner(&of.subquery, &mut found, true),
            Expr::Exists(of) => inner(&of.subquery, &mut found, false),
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.expect("the visitor does not fail");
    for place in places {
        found.extend(below.columns.get(place).cloned().unwrap_or_default());
    }
    found
}
