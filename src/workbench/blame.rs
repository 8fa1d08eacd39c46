//! Which part of a query is to blame for an error that says no place: the smallest expression without which the error is gone.

use crate::platform::statement::range;
use crate::workbench::plan::attempt;
use chrono::{DateTime, Utc};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Spanned, Value, Visit, VisitMut, Visitor, VisitorMut};
use std::ops::{ControlFlow, Range};

/// Trials before the search gives up; a long query has several hundred expressions.
const MOST_TRIALS: usize = 300;

/// Puts NULL in the place of one expression after another, outer ones first, and goes down where that helps.
pub async fn blame(
    context: &SessionContext,
    statement: &Statement,
    as_of: DateTime<Utc>,
    error: &DataFusionError,
) -> Option<(usize, Expr)> {
    let Statement::Statement(inner) = statement else { return None };
    let complaint = error.find_root().strip_backtrace();
    let mut listed = Listed { depth: 0, expressions: Vec::new() };
    let _ = Visit::visit(inner, &mut listed);
    // Each with its number, outer ones first.
    let mut guilty: Option<(usize, usize, &Expr)> = None;
    let mut whole: Option<(usize, &Expr)> = None;
    let mut skip_below = None;
    for (number, (depth, expr)) in listed.expressions.iter().enumerate().take(MOST_TRIALS) {
        // Below an innocent expression there is no guilty one; beside the guilty one there is no second.
        match (skip_below, guilty) {
            (Some(level), _) if *depth > level => continue,
            (_, Some((level, ..))) if *depth <= level => break,
            _ => skip_below = None,
        }
        let mut without = (**inner).clone();
        let _ = VisitMut::visit(&mut without, &mut Without { left: number });
        let helps = match attempt(context, &Statement::Statement(Box::new(without)), as_of).await {
            Ok(_) => true,
            Err(other) => other.iter().all(|other| other.find_root().strip_backtrace() != complaint),
        };
        if helps {
            guilty = Some((*depth, number, expr));
            // A call or a comparison says more than the column in it.
            if !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_)) {
                whole = Some((number, expr));
            }
        } else {
            skip_below = Some(*depth);
        }
    }
    whole.or(guilty.map(|(_, number, expr)| (number, expr))).map(|(number, expr)| (number, expr.clone()))
}

/// The bytes of an expression, its closing bracket included, of which the parser says nothing.
pub fn span_of(text: &str, expr: &Expr) -> Range<usize> {
    let Range { start, mut end } = range(text, expr.span());
    let open = |part: &str| part.matches('(').count() as isize - part.matches(')').count() as isize;
    // Of COUNT(*) it knows the name alone.
    if matches!(expr, Expr::Function(_)) && text[end..].starts_with('(') {
        end += 1;
    }
    let mut depth = open(&text[start..end]);
    while depth > 0 {
        let Some(next) = text[end..].find([')', '(']) else { break };
        depth += if text[end + next..].starts_with(')') { -1 } else { 1 };
        end += next + 1;
    }
    start..end
}

/// Every expression with its depth, outer ones first.
struct Listed {
    depth: usize,
    expressions: Vec<(usize, Expr)>,
}

impl Visitor for Listed {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.expressions.push((self.depth, expr.clone()));
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Puts NULL in the place of the expression of a number; breaks when it found it.
pub struct Without {
    pub left: usize,
}

impl VisitorMut for Without {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.left == 0 {
            *expr = Expr::value(Value::Null);
            return ControlFlow::Break(());
        }
        self.left -= 1;
        ControlFlow::Continue(())
    }
}
