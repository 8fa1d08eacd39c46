//! What is wrong with a query that plans: its grain, its columns' names, its joins, its use of other users' rows.

use crate::platform::catalog::{Query, nearest};
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::platform::expectation::Rule;
use crate::platform::header::Header;
use crate::platform::statement::{Select, range};
use crate::workbench::check::Planned;
use crate::workbench::plan::Plan;
use crate::workbench::{layout, lint};
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::tokenizer::{Location, Span};
use std::collections::BTreeSet;
use std::ops::Range;

/// Every such finding; `tables` are those that were planned before.
pub fn judge(query: &Query, select: &Select, plan: &Plan, tables: &[Planned]) -> Vec<Diagnostic> {
    let text = &query.sql;
    let mut found = Vec::new();
    let names: Vec<&str> = plan.written.schema().fields().iter().map(|field| field.name().as_str()).collect();
    found.extend(columns(query, select, &names));
    found.extend(grain(query, &names, &plan.written));
    found.extend(expected(query, &names));
    found.extend(layout::unrelated(&plan.optimized, &lint::unrelated(text, select)));
    if query.room() == "features" && query.grain.first().is_some_and(|key| key == "user_id") {
        let bucketed = |name: &str| {
            let of_users = |table: &&Planned| match table.room.as_str() {
                "staging" => table.columns.iter().any(|column| column.name == "user_id"),
                _ => table.grain.first().is_some_and(|key| key == "user_id"),
            };
            tables.iter().find(|table| table.name == name).as_ref().is_some_and(of_users)
        };
        let mut across = layout::across_users(&plan.optimized, &bucketed, &|column| place(text, column));
        // With a window, users whose rows changed are computed anew by themselves: what is counted across users would be wrong.
        if query.window_days.is_some() {
            across.iter_mut().for_each(|found| found.severity = Severity::Error);
        }
        found.extend(across);
    }
    found
}

fn place(text: &str, column: &Column) -> Option<Range<usize>> {
    let span = column.spans().first()?;
    let location = |at: datafusion::common::Location| Location { line: at.line, column: at.column };
    Some(range(text, Span { start: location(span.start), end: location(span.end) }))
}

/// Columns without a name, of one name, or hidden behind a star.
fn columns(query: &Query, select: &Select, names: &[&str]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let said: BTreeSet<String> = lint::outputs(&query.sql, select).into_iter().map(|(name, _)| name).collect();
    let star = lint::star(&query.sql, select);
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) && !said.contains(*name) {
            found.push(
                Diagnostic::error("same-column", format!("two columns are named {name}"))
                    .at(star.clone().unwrap_or(0..0), "both come from here")
                    .help("name the columns instead of *"),
            );
        }
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !plain && !said.contains(*name) {
            let at = lint::unnamed(&query.sql, select).into_iter().next();
            let unnamed = Diagnostic::warning("unnamed-column", format!("a column has no name, so it is called {name}"));
            found.push(unnamed.at(at.unwrap_or(0..0), "unnamed").help("name it: AS n_events_30d"));
        }
    }
    if let Some(star) = star.filter(|_| query.room() == "features") {
        found.push(
            Diagnostic::warning("star", "SELECT * hides what the table holds")
                .at(star, "which columns?")
                .help("name each column, with its unit in a comment"),
        );
    }
    found
}

/// What the header says of columns that are not there.
fn expected(query: &Query, names: &[&str]) -> Vec<Diagnostic> {
    let header = Header::read(&query.sql);
    let mut found = Vec::new();
    for expected in &query.expectations {
        let at = header.field(expected.rule.field()).map_or(0..0, |field| field.value_at.clone());
        if !names.contains(&expected.column.as_str()) {
            let says = format!("the header's {} names {}, which the query does not return", expected.rule.field(), expected.column);
            let absent = Diagnostic::error("expectation", says).at(at.clone(), "no such column");
            found.push(match nearest(&expected.column, names.iter().copied()) {
                Some(near) => absent.help(format!("did you mean {near}?")),
                None => absent.note(format!("the columns are {}", names.join(", "))),
            });
        }
    }
    found
}

/// What a header relates a column to must be there, wherever in the order of the night.
pub fn relationships(query: &Query, tables: &[Planned]) -> Vec<Diagnostic> {
    let header = Header::read(&query.sql);
    let at = header.field("relationship").map_or(0..0, |field| field.value_at.clone());
    let mut found = Vec::new();
    for expected in &query.expectations {
        let Rule::Relationship { table, column } = &expected.rule else { continue };
        let other = tables.iter().find(|other| other.name == *table && other.room != "checks");
        if !other.is_some_and(|other| other.columns.iter().any(|of| of.name == *column)) {
            let absent = Diagnostic::error("expectation", format!("the header's relationship names {table}.{column}, which there is not"));
            found.push(absent.at(at.clone(), "no such column").help("name a column of a canonical table or of a feature"));
        }
    }
    found
}

/// A grain that the query cannot have.
fn grain(query: &Query, names: &[&str], plan: &LogicalPlan) -> Vec<Diagnostic> {
    let header = Header::read(&query.sql);
    let Some(field) = header.field("grain") else { return Vec::new() };
    let listed = || format!("the columns are {}", names.join(", "));
    let mut found = Vec::new();
    for column in query.grain.iter().filter(|column| !names.contains(&column.as_str())) {
        let parts = query.sql[field.value_at.clone()].split(',').map(str::trim);
        let part = parts.into_iter().find(|part| part == column).expect("the grain is these parts");
        let start = part.as_ptr() as usize - query.sql.as_ptr() as usize;
        let at = start..start + part.len();
        let absent = Diagnostic::error("grain", format!("the header's grain names {column}, which the query does not return"));
        let absent = absent.at(at.clone(), "no such column");
        found.push(match nearest(column, names.iter().copied()) {
            Some(near) => absent.suggest(at, near),
            None => absent.note(listed()),
        });
    }
    if !found.is_empty() {
        return found;
    }
    if let Some((of_output, groups)) = groups(plan) {
        let keys: Vec<Option<usize>> =
            query.grain.iter().map(|column| of_output[names.iter().position(|name| name == column).expect("it is there")]).collect();
        let covered: BTreeSet<usize> = keys.iter().flatten().copied().collect();
        if keys.contains(&None) || covered.len() < groups.len() {
            let (says, is) =
                (query.grain.join(", "), if groups.is_empty() { "nothing, so it is one row".to_owned() } else { groups.join(", ") });
            found.push(
                Diagnostic::warning("grain", format!("the header says one row a {says}, but the query groups by {is}"))
                    .at(field.value_at.clone(), "not what the query groups by")
                    .help("let the grain name the columns of the GROUP BY; the night refuses rows that share theirs"),
            );
        }
    }
    if query.room() == "features" && query.name.contains("__") {
        let absent = query.entity().split('_').find(|part| !query.grain.iter().any(|key| key == part || *key == format!("{part}_id")));
        if let Some(part) = absent {
            found.push(
                Diagnostic::warning(
                    "grain",
                    format!("by its name {} is keyed by {part}, but its grain is {}", query.name, query.grain.join(", ")),
                )
                .at(field.value_at.clone(), format!("no {part}_id"))
                .help("name the file after its key: user_category__affinity has the grain user_id, category_id"),
            );
        }
    }
    found
}

/// When the query's last step is a GROUP BY: of each output column the group it is, and the groups.
fn groups(plan: &LogicalPlan) -> Option<(Vec<Option<usize>>, Vec<String>)> {
    match plan {
        LogicalPlan::Aggregate(aggregate) if !aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) => {
            let n = aggregate.group_expr.len();
            let of_output = (0..aggregate.schema.fields().len()).map(|at| (at < n).then_some(at)).collect();
            let name = |expr: &Expr| match expr {
                Expr::Column(column) => column.name.clone(),
                other => other.to_string(),
            };
            Some((of_output, aggregate.group_expr.iter().map(name).collect()))
        }
        LogicalPlan::Projection(projection) => {
            let (below, groups) = groups(&projection.input)?;
            let of = |expr: &Expr| match expr.clone().unalias() {
                Expr::Column(column) => below[projection.input.schema().maybe_index_of_column(&column)?],
                _ => None,
            };
            Some((projection.expr.iter().map(of).collect(), groups))
        }
        LogicalPlan::Filter(filter) => groups(&filter.input),
        LogicalPlan::Sort(sort) => groups(&sort.input),
        LogicalPlan::SubqueryAlias(alias) => groups(&alias.input),
        _ => None,
    }
}
