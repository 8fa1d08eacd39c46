//! What a plan says of how a query will run: joins in which every row meets every row, and per-user tables whose parts are not by
//! user.
//!
//! The rows of a table with a user_id lie in buckets of users, and a feature whose grain begins with user_id is computed bucket by
//! bucket. That is what makes it fast; and it is right only if each of its groups, windows and joins stays within a user.

use crate::platform::diagnostic::Diagnostic;
use crate::workbench::lint::Unrelated;
use datafusion::common::Column;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::utils::expr_to_columns;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

// ------------------------------------------------------------------------------------------------------------- every row by every

/// Joins of two tables without an equality between them.
pub fn unrelated(plan: &LogicalPlan, text: &[Unrelated]) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = Vec::new();
    walk(plan, &mut |node| {
        let LogicalPlan::Join(join) = node else { return };
        let single = |side: &LogicalPlan| side.max_rows().is_some_and(|rows| rows <= 1);
        let multiplies = matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full);
        if !join.on.is_empty() || single(&join.left) || single(&join.right) || (join.filter.is_none() && !multiplies) {
            return;
        }
        let (left, right) = (names(&join.left), names(&join.right));
        let first = |names: &BTreeMap<String, String>| names.values().next().cloned().unwrap_or_else(|| "a subquery".to_owned());
        // Which side the optimizer put where says nothing to the reader; the table named second does.
        let named = text.iter().find_map(|place| match (right.get(&place.table), left.get(&place.table)) {
            (Some(other), _) => Some((place, first(&left), other.clone())),
            (None, Some(other)) => Some((place, first(&right), other.clone())),
            (None, None) => None,
        });
        let (place, one, other) = match named {
            Some((place, one, other)) => (Some(place), one, other),
            None => (None, first(&left), first(&right)),
        };
        let says = match join.filter {
            None => format!("nothing relates {other} to {one}: every row of one meets every row of the other"),
            Some(_) => format!("no equality relates {other} to {one}: every row of one is compared with every row of the other"),
        };
        let meant = place.is_some_and(|place| place.meant) || join.filter.is_some();
        let diagnostic = if meant { Diagnostic::warning("cartesian", says) } else { Diagnostic::error("cartesian", says) };
        let diagnostic = diagnostic.help(match meant {
            true => "of a million users and a thousand items that is a billion pairs: join on a key, or make one side small first",
            false => "join on the columns that both share: JOIN … ON a.key = b.key; write CROSS JOIN if every pair is meant",
        });
        let diagnostic = match place {
            Some(place) => diagnostic.at(place.at.clone(), "joined without a key"),
            None => diagnostic,
        };
        if !found.contains(&diagnostic) {
            found.push(diagnostic);
        }
    });
    found
}

/// The tables of a part of a plan by the names the query gives them, each as people write it: `users AS u`.
fn names(plan: &LogicalPlan) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    fn collect(plan: &LogicalPlan, found: &mut BTreeMap<String, String>) {
        match plan {
            LogicalPlan::TableScan(scan) => drop(found.insert(scan.table_name.table().to_owned(), scan.table_name.to_string())),
            LogicalPlan::SubqueryAlias(alias) => {
                let name = alias.alias.table().to_owned();
                let shown = match &*alias.input {
                    LogicalPlan::TableScan(scan) if scan.table_name.table() != name => format!("{} AS {name}", scan.table_name),
                    _ => name.clone(),
                };
                found.insert(name, shown);
            }
            other => other.inputs().into_iter().for_each(|input| collect(input, found)),
        }
    }
    collect(plan, &mut found);
    found
}

fn walk(plan: &LogicalPlan, visit: &mut impl FnMut(&LogicalPlan)) {
    visit(plan);
    plan.inputs().into_iter().for_each(|input| walk(input, visit));
    subqueries(plan).iter().for_each(|inner| walk(inner, visit));
}

/// The subqueries that the optimizer left in a node's expressions: each is computed once, by itself.
fn subqueries(plan: &LogicalPlan) -> Vec<LogicalPlan> {
    let mut found = Vec::new();
    let visited = plan.apply_subqueries(|inner| {
        found.push(inner.clone());
        Ok(TreeNodeRecursion::Continue)
    });
    visited.expect("the visitor does not fail");
    found
}

// ------------------------------------------------------------------------------------------------------------------ user by user

/// What a per-user table does across users. `bucketed` tells which tables lie in buckets of users.
pub fn across_users(
    plan: &LogicalPlan,
    bucketed: &dyn Fn(&str) -> bool,
    place: &dyn Fn(&Column) -> Option<Range<usize>>,
) -> Vec<Diagnostic> {
    let mut across = Across { bucketed, place, found: Vec::new() };
    across.users(plan);
    across.found
}

/// Rows on their way up the plan.
#[derive(Default)]
struct Users {
    /// They are of the users of one bucket.
    bucketed: bool,
    /// The output columns that hold the user.
    columns: BTreeSet<usize>,
    /// The tables they are of.
    tables: BTreeSet<String>,
}

struct Across<'a> {
    bucketed: &'a dyn Fn(&str) -> bool,
    place: &'a dyn Fn(&Column) -> Option<Range<usize>>,
    found: Vec<Diagnostic>,
}

impl Across<'_> {
    fn users(&mut self, plan: &LogicalPlan) -> Users {
        for inner in subqueries(plan) {
            self.users(&inner);
        }
        match plan {
            LogicalPlan::TableScan(scan) => {
                let name = scan.table_name.table();
                let bucketed = (self.bucketed)(name);
                let fields = scan.projected_schema.fields().iter().enumerate();
                let columns = fields.filter(|(_, field)| bucketed && field.name() == "user_id").map(|(at, _)| at).collect();
                Users { bucketed, columns, tables: BTreeSet::from([name.to_owned()]) }
            }
            LogicalPlan::Projection(projection) => {
                let below = self.users(&projection.input);
                let is_user = |expr: &Expr| is_user(expr, &projection.input, &below);
                let columns = projection.expr.iter().enumerate().filter(|(_, expr)| is_user(expr)).map(|(at, _)| at).collect();
                Users { columns, ..below }
            }
            LogicalPlan::Aggregate(aggregate) => {
                let below = self.users(&aggregate.input);
                let is_user = |expr: &Expr| is_user(expr, &aggregate.input, &below);
                let columns: BTreeSet<usize> =
                    aggregate.group_expr.iter().enumerate().filter(|(_, expr)| is_user(expr)).map(|(at, _)| at).collect();
                if below.bucketed && columns.is_empty() {
                    self.report("aggregates", &below, &aggregate.group_expr, &aggregate.aggr_expr);
                    return Users { bucketed: false, ..below };
                }
                Users { columns, ..below }
            }
            LogicalPlan::Window(window) => {
                let below = self.users(&window.input);
                for expr in &window.window_expr {
                    let Expr::WindowFunction(call) = expr.clone().unalias() else { continue };
                    if below.bucketed && !call.params.partition_by.iter().any(|expr| is_user(expr, &window.input, &below)) {
                        self.report("looks, in a window,", &below, &call.params.partition_by, &call.params.args);
                    }
                }
                below
            }
            LogicalPlan::Join(join) => {
                let (left, right) = (self.users(&join.left), self.users(&join.right));
                let related = join.on.iter().any(|(a, b)| is_user(a, &join.left, &left) && is_user(b, &join.right, &right));
                if left.bucketed && right.bucketed && !related {
                    let (a, b): (Vec<Expr>, Vec<Expr>) = join.on.iter().cloned().unzip();
                    let both = Users { tables: left.tables.union(&right.tables).cloned().collect(), ..Users::default() };
                    self.report("joins", &both, &b, &a);
                }
                let width = join.left.schema().fields().len();
                let shifted = right.columns.iter().map(|at| at + width);
                let columns = match join.join_type {
                    JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.columns.clone(),
                    JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.columns.clone(),
                    JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                        left.columns.iter().copied().chain(shifted).collect()
                    }
                };
                Users { bucketed: left.bucketed || right.bucketed, columns, tables: left.tables.union(&right.tables).cloned().collect() }
            }
            LogicalPlan::Union(union) => {
                let parts: Vec<Users> = union.inputs.iter().map(|input| self.users(input)).collect();
                let everywhere = |at: &usize| parts.iter().all(|part| !part.bucketed || part.columns.contains(at));
                Users {
                    bucketed: parts.iter().any(|part| part.bucketed),
                    columns: parts.iter().flat_map(|part| part.columns.iter().copied()).filter(everywhere).collect(),
                    tables: parts.iter().flat_map(|part| part.tables.clone()).collect(),
                }
            }
            LogicalPlan::Unnest(unnest) => {
                let below = self.users(&unnest.input);
                let columns =
                    unnest.dependency_indices.iter().enumerate().filter(|(_, of)| below.columns.contains(of)).map(|(at, _)| at).collect();
                Users { columns, ..below }
            }
            LogicalPlan::Limit(limit) => {
                let below = self.users(&limit.input);
                if below.bucketed {
                    self.report("takes the first rows", &below, &[], &[]);
                }
                below
            }
            _ => {
                let parts: Vec<Users> = plan.inputs().into_iter().map(|input| self.users(input)).collect();
                let through = parts.len() == 1 && plan.schema().fields().len() >= plan.inputs()[0].schema().fields().len();
                let columns = if through { parts[0].columns.clone() } else { BTreeSet::new() };
                let tables = parts.iter().flat_map(|part| part.tables.clone()).collect();
                Users { bucketed: parts.iter().any(|part| part.bucketed), columns, tables }
            }
        }
    }

    /// `by` is what the step is by, `of` what it is of; the caret stands at the first column of either that has a place.
    fn report(&mut self, does: &str, rows: &Users, by: &[Expr], of: &[Expr]) {
        let tables = rows.tables.iter().filter(|name| (self.bucketed)(name)).cloned().collect::<Vec<_>>().join(" and ");
        let place =
            by.iter().chain(of).find_map(|expr| columns(expr).iter().filter_map(|column| (self.place)(column)).min_by_key(|at| at.start));
        let diagnostic = Diagnostic::warning(
            "across-users",
            format!("this {does} across users, but a table of this grain is computed one bucket of users at a time"),
        )
        .note(format!("the rows of {tables} lie in buckets of users, and each bucket is computed alone: that is what makes it fast"))
        .help("make a table of its own of this part, without user_id in its grain, and join it here");
        let diagnostic = match place {
            Some(at) => diagnostic.at(at, "not by user_id"),
            None => diagnostic,
        };
        if !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }
}

fn columns(expr: &Expr) -> Vec<Column> {
    let mut found = HashSet::new();
    expr_to_columns(expr, &mut found).expect("the visitor does not fail");
    found.into_iter().collect()
}

/// Whether an expression over `input` is the user: the column itself, or one of several such columns.
fn is_user(expr: &Expr, input: &LogicalPlan, rows: &Users) -> bool {
    match expr {
        Expr::Alias(alias) => is_user(&alias.expr, input, rows),
        Expr::Column(column) => input.schema().maybe_index_of_column(column).is_some_and(|at| rows.columns.contains(&at)),
        Expr::ScalarFunction(call) if call.name() == "coalesce" => call.args.iter().all(|arg| is_user(arg, input, rows)),
        // What the optimizer makes of COALESCE.
        Expr::Case(case) => {
            let mut values = case.when_then_expr.iter().map(|(_, value)| &**value).chain(case.else_expr.as_deref());
            values.all(|value| is_user(value, input, rows))
        }
        _ => false,
    }
}
