//! What can be said of a query from its text alone: the clock and chance, parameters that do not exist, columns of one name, rows
//! whose order decides a value but is not said, tables joined without a condition.

use crate::platform::diagnostic::Diagnostic;
use crate::platform::engine;
use crate::platform::statement::{Select, range, tokens};
use crate::workbench::blame::span_of;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArgumentClause, FunctionArguments, Ident, JoinConstraint, JoinOperator, LimitClause, ObjectName, Query,
    Select as SelectBody, SelectItem, SetExpr, Spanned, Statement as SqlStatement, TableFactor, Value, ValueWithSpan, Visit, Visitor,
    WindowType,
};
use datafusion::sql::sqlparser::tokenizer::{Span, Token, Whitespace};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// Every finding that needs no plan.
pub fn lint(context: &SessionContext, text: &str, select: &Select) -> Vec<Diagnostic> {
    let Some(query) = query(select) else { return Vec::new() };
    let mut lint = Lint { text, context, found: Vec::new() };
    let _ = query.visit(&mut lint);
    let mut found = lint.found;
    let mut seen: BTreeMap<String, Range<usize>> = BTreeMap::new();
    for (name, at) in outputs(text, select) {
        if let Some(first) = seen.get(&name) {
            let line = text[..first.start].matches('\n').count() + 1;
            found.push(
                Diagnostic::error("same-column", format!("two columns are named {name}"))
                    .at(at, "the second")
                    .note(format!("the first is on line {line}"))
                    .help("give one of them another name with AS"),
            );
        } else {
            seen.insert(name, at);
        }
    }
    found
}

/// The names of the query's columns, as far as the text says them, and where.
pub fn outputs(text: &str, select: &Select) -> Vec<(String, Range<usize>)> {
    let items = query(select).and_then(|query| first_select(&query.body)).map(|select| &select.projection);
    items.into_iter().flatten().filter_map(|item| output(text, item)).collect()
}

/// Where the query says `*` for its columns.
pub fn star(text: &str, select: &Select) -> Option<Range<usize>> {
    let items = query(select).and_then(|query| first_select(&query.body)).map(|select| &select.projection);
    items.into_iter().flatten().find_map(|item| match item {
        SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => Some(range(text, options.wildcard_token.0.span)),
        _ => None,
    })
}

/// Where the query makes a column without naming it.
pub fn unnamed(text: &str, select: &Select) -> Vec<Range<usize>> {
    let items = query(select).and_then(|query| first_select(&query.body)).map(|select| &select.projection);
    let places = items.into_iter().flatten().filter_map(|item| match item {
        SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => None,
        SelectItem::UnnamedExpr(expr) => Some(span_of(text, expr)),
        _ => None,
    });
    places.collect()
}

/// The comment behind each column of the query, where there is one: its unit and the meaning of NULL.
pub fn comments(text: &str, select: &Select) -> BTreeMap<String, String> {
    let mut by_line: BTreeMap<usize, String> = BTreeMap::new();
    for token in tokens(text).unwrap_or_default() {
        let at = range(text, token.span).start;
        let alone = text[..at].rsplit('\n').next().unwrap_or_default().trim().is_empty();
        if let (Token::Whitespace(Whitespace::SingleLineComment { comment, .. }), false) = (token.token, alone) {
            by_line.insert(text[..at].matches('\n').count(), comment.trim().to_owned());
        }
    }
    // Of several columns on one line, the comment is the last one's.
    let columns = outputs(text, select).into_iter().map(|(name, at)| (text[..at.end].matches('\n').count(), name));
    let by_column: BTreeMap<usize, String> = columns.collect();
    by_column.into_iter().filter_map(|(line, name)| Some((name, by_line.remove(&line)?))).collect()
}

/// Two tables of which the text relates no rows: `FROM a, b`, or a join without ON.
pub struct Unrelated {
    /// The second of them, as the query calls it.
    pub table: String,
    pub at: Range<usize>,
    /// CROSS JOIN: it is meant.
    pub meant: bool,
    /// It has an ON, which may relate nothing all the same: `ON TRUE`.
    on: bool,
}

pub fn unrelated(text: &str, select: &Select) -> Vec<Unrelated> {
    let mut joins = Joins { text, found: Vec::new() };
    let _ = query(select).map(|query| query.visit(&mut joins));
    // Where nothing is said, nothing is related most likely.
    joins.found.sort_by_key(|join| join.on);
    joins.found
}

fn query(select: &Select) -> Option<&Query> {
    match &select.statement {
        Statement::Statement(inner) => match &**inner {
            SqlStatement::Query(query) => Some(query),
            _ => None,
        },
        _ => None,
    }
}

/// Of a UNION the first SELECT, which names the columns.
fn first_select(body: &SetExpr) -> Option<&SelectBody> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => None,
    }
}

fn output(text: &str, item: &SelectItem) -> Option<(String, Range<usize>)> {
    let ident = match item {
        SelectItem::ExprWithAlias { alias, .. } => alias,
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) => ident,
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(idents)) => idents.last()?,
        _ => return None,
    };
    Some((normal(ident), range(text, ident.span)))
}

/// A name as the engine takes it: in small letters, unless quoted.
fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn last_ident(name: &ObjectName) -> Option<&Ident> {
    name.0.last().and_then(|part| part.as_ident())
}

// ------------------------------------------------------------------------------------------------------------------- expressions

struct Lint<'a> {
    text: &'a str,
    context: &'a SessionContext,
    found: Vec<Diagnostic>,
}

impl Visitor for Lint<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let limit = match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, .. }) => limit.as_ref(),
            Some(LimitClause::OffsetCommaLimit { limit, .. }) => Some(limit),
            None => None,
        };
        if let (Some(limit), None) = (limit, &query.order_by) {
            self.warn_order(
                limit.span(),
                "LIMIT without ORDER BY: which rows stay is left to chance",
                "say the order, down to a unique key: ORDER BY …",
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(call) = expr
            && let Some(ident) = last_ident(&call.name)
        {
            let name = ident.value.to_lowercase();
            if engine::is_impure(self.context, &name) {
                let help = match name.as_str() {
                    "random" | "rand" | "uuid" => "to sample, take a hash of the id: the same rows every night",
                    _ => "use $as_of, the end of the day the night is run for",
                };
                self.found.push(
                    Diagnostic::error("impure", format!("{name}() depends on when or how often it runs"))
                        .at(range(self.text, ident.span), "not the same on a rerun")
                        .help(help),
                );
            }
            if let Some(missing) = needs_order(&name, call) {
                self.warn_order(ident.span, &format!("{} without ORDER BY: its value is left to chance", name.to_uppercase()), missing);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &value.value
            && name != "$as_of"
        {
            let at = range(self.text, value.span);
            self.found.push(
                Diagnostic::error("parameter", format!("there is no parameter {name}; the only one is $as_of"))
                    .at(at.clone(), "unknown parameter")
                    .help("$as_of is the exclusive end of the day, a UTC timestamp")
                    .suggest(at, "$as_of"),
            );
        }
        ControlFlow::Continue(())
    }
}

impl Lint<'_> {
    fn warn_order(&mut self, at: Span, message: &str, help: &str) {
        self.found.push(Diagnostic::warning("order", message).at(range(self.text, at), "of rows in which order?").help(help));
    }
}

/// What to write when a function's value depends on an order of rows that the call does not say.
fn needs_order(name: &str, call: &Function) -> Option<&'static str> {
    let aggregate = ["array_agg", "first_value", "last_value", "nth_value", "string_agg"].contains(&name);
    match &call.over {
        None if aggregate => {
            let ordered = match &call.args {
                FunctionArguments::List(list) => list.clauses.iter().any(|clause| matches!(clause, FunctionArgumentClause::OrderBy(_))),
                _ => true,
            };
            (!ordered && call.within_group.is_empty()).then_some("say it inside the call, ties too: …(x ORDER BY occurred_at, event_id)")
        }
        Some(WindowType::WindowSpec(window)) if aggregate || ["row_number", "lag", "lead", "ntile"].contains(&name) => {
            (window.order_by.is_empty() && window.window_name.is_none())
                .then_some("say it in the window, ties too: OVER (… ORDER BY occurred_at, event_id)")
        }
        _ => None,
    }
}

// ------------------------------------------------------------------------------------------------------------------------- joins

struct Joins<'a> {
    text: &'a str,
    found: Vec<Unrelated>,
}

impl Visitor for Joins<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &SelectBody) -> ControlFlow<()> {
        for (at, table) in select.from.iter().enumerate() {
            if at > 0 {
                self.record(&table.relation, false, false);
            }
            for join in &table.joins {
                match &join.join_operator {
                    JoinOperator::CrossJoin(_) => self.record(&join.relation, true, false),
                    JoinOperator::Join(constraint)
                    | JoinOperator::Inner(constraint)
                    | JoinOperator::Left(constraint)
                    | JoinOperator::LeftOuter(constraint)
                    | JoinOperator::Right(constraint)
                    | JoinOperator::RightOuter(constraint)
                    | JoinOperator::FullOuter(constraint)
                        if !matches!(constraint, JoinConstraint::Using(_)) =>
                    {
                        self.record(&join.relation, false, matches!(constraint, JoinConstraint::On(_)))
                    }
                    _ => {}
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl Joins<'_> {
    fn record(&mut self, table: &TableFactor, meant: bool, on: bool) {
        let (name, alias) = match table {
            TableFactor::Table { name, alias, .. } => (last_ident(name), alias),
            TableFactor::Derived { alias, .. } => (None, alias),
            _ => return,
        };
        let Some(ident) = alias.as_ref().map(|alias| &alias.name).or(name) else { return };
        self.found.push(Unrelated { table: normal(ident), at: range(self.text, ident.span), meant, on });
    }
}
