//! One query -> its logical plan over tables without rows; or everything that is wrong with it, each with its place.
//!
//! The engine stops at the first column it does not know. So a wrong name is replaced by the one that was probably meant, and the
//! query is planned again, until nothing new is found.

use crate::platform::catalog::nearest;
use crate::platform::diagnostic::Diagnostic;
use crate::platform::statement::{Select, lower_first, range};
use crate::workbench::blame::{Without, blame, span_of};
use chrono::{DateTime, Utc};
use datafusion::common::{Column, ParamValues, ScalarValue, SchemaError, Span};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Function, Ident, Value, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::tokenizer::{Location, Span as AstSpan};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

/// A query as the planner understands it.
pub struct Plan {
    /// As written: which column comes from where.
    pub written: LogicalPlan,
    /// As it will run: which joins have no condition, which aggregate is by what.
    pub optimized: LogicalPlan,
}

/// How often a file is planned anew in search of the next mistake; whoever has made more has another problem.
const MOST: usize = 20;

/// Plans a query over the tables of a session.
pub async fn plan(context: &SessionContext, text: &str, select: &Select, as_of: DateTime<Utc>) -> Result<Plan, Vec<Diagnostic>> {
    let mut statement = select.statement.clone();
    let _ = visit(&mut statement, &mut OtherParameters);
    let mut found: Vec<Diagnostic> = Vec::new();
    // After a name was replaced by NULL, only wrong names can be trusted to be wrong.
    let mut trusted = true;
    for _ in 0..MOST {
        let error = match attempt(context, &statement, as_of).await {
            Ok(plan) if found.is_empty() => return Ok(plan),
            Ok(_) => return Err(found),
            Err(error) => error,
        };
        let mut mended = false;
        for error in error.iter() {
            match wrong_name(context, text, error) {
                Some((diagnostic, name)) => {
                    trusted &= name.meant.is_some();
                    mended |= visit(&mut statement, &mut Renamed { name: &name }).is_break();
                    if !found.iter().any(|earlier| earlier.span() == diagnostic.span() && earlier.message == diagnostic.message) {
                        found.push(diagnostic);
                    }
                }
                None if trusted => {
                    let (diagnostic, guilty) = described(context, text, &statement, as_of, error).await;
                    // A wrong type is put aside as well, to look for the next one.
                    if let Some(number) = guilty.filter(|_| diagnostic.rule == "types") {
                        mended |= visit(&mut statement, &mut Without { left: number }).is_break();
                    }
                    found.push(diagnostic);
                }
                None => {}
            }
        }
        if !mended {
            break;
        }
    }
    Err(found)
}

/// Plans once, as far as the physical plan.
pub async fn attempt(context: &SessionContext, statement: &Statement, as_of: DateTime<Utc>) -> Result<Plan, DataFusionError> {
    let state = context.state();
    let mut written = state.statement_to_plan(statement.clone()).await?;
    if !written.get_parameter_names()?.is_empty() {
        let value = ScalarValue::TimestampMicrosecond(Some(as_of.timestamp_micros()), Some("UTC".into()));
        written = written.with_param_values(ParamValues::from(vec![("as_of", value)]))?;
    }
    let optimized = state.optimize(&written)?;
    state.query_planner().create_physical_plan(&optimized, &state).await?;
    Ok(Plan { written, optimized })
}

/// A parameter other than `$as_of` was complained of before; here it is NULL.
struct OtherParameters;

impl VisitorMut for OtherParameters {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut datafusion::sql::sqlparser::ast::ValueWithSpan) -> ControlFlow<()> {
        if matches!(&value.value, Value::Placeholder(name) if name != "$as_of") {
            value.value = Value::Null;
        }
        ControlFlow::Continue(())
    }
}

fn visit<V: VisitorMut>(statement: &mut Statement, visitor: &mut V) -> ControlFlow<V::Break> {
    match statement {
        Statement::Statement(inner) => inner.visit(visitor),
        _ => ControlFlow::Continue(()),
    }
}

// ------------------------------------------------------------------------------------------------------------------- wrong names

/// A name that means nothing, and what was probably meant.
struct Name {
    span: Span,
    meant: Option<Meant>,
}

enum Meant {
    Column(String),
    Table(String),
    Function(String),
}

/// A column, alias or function that does not exist.
fn wrong_name(context: &SessionContext, text: &str, error: &DataFusionError) -> Option<(Diagnostic, Name)> {
    let outer = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    match error.find_root() {
        DataFusionError::SchemaError(inner, _) => match inner.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let span = field.spans().first().or(outer)?;
                let (diagnostic, meant) = unknown_column(text, field, valid_fields, place(text, span));
                Some((diagnostic, Name { span, meant }))
            }
            _ => None,
        },
        DataFusionError::Plan(message) if message.starts_with("Invalid function '") => {
            let span = outer?;
            let at = place(text, span);
            let name = message.split('\'').nth(1).unwrap_or_default();
            let diagnostic =
                Diagnostic::error("unknown-function", format!("there is no function {name}")).at(at.clone(), "unknown function");
            let functions = functions(context);
            Some(match nearest(name, functions.iter().map(String::as_str)) {
                Some(near) => {
                    // As the file writes its functions: in capitals, or not.
                    let near = if text[at.clone()].chars().any(char::is_lowercase) { near.to_owned() } else { near.to_uppercase() };
                    let diagnostic = diagnostic.help("a function of a similar name exists").suggest(at, near.clone());
                    (diagnostic, Name { span, meant: Some(Meant::Function(near)) })
                }
                None => (diagnostic.help("the engine's functions are those of DataFusion"), Name { span, meant: None }),
            })
        }
        _ => None,
    }
}

fn functions(context: &SessionContext) -> BTreeSet<String> {
    let state = context.state();
    let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys()).chain(state.window_functions().keys());
    names.cloned().collect()
}

fn unknown_column(text: &str, field: &Column, valid: &[Column], at: Range<usize>) -> (Diagnostic, Option<Meant>) {
    let tables: BTreeSet<&str> = valid.iter().filter_map(|column| column.relation.as_ref()).map(|table| table.table()).collect();
    let listed = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    if let Some(relation) = field.relation.as_ref().map(|relation| relation.table())
        && !tables.contains(relation)
    {
        let diagnostic = Diagnostic::error("unknown-table", format!("{relation}.{}: nothing is named {relation} here", field.name));
        let first = at.start..(at.start + relation.len()).min(at.end);
        let diagnostic = diagnostic.at(first.clone(), format!("the FROM names {}", listed(&tables)));
        return match nearest(relation, tables.iter().copied()) {
            Some(near) => (diagnostic.suggest(first, near), Some(Meant::Table(near.to_owned()))),
            None => (diagnostic, None),
        };
    }
    let of_table = |column: &&Column| field.relation.is_none() || column.relation == field.relation;
    let columns: BTreeSet<&str> = valid.iter().filter(of_table).map(|column| column.name.as_str()).collect();
    let asked = match &field.relation {
        Some(relation) => listed(&BTreeSet::from([relation.table()])),
        None => listed(&tables),
    };
    let of = if asked.is_empty() { String::new() } else { format!(" of {asked}") };
    let message = format!("there is no column {}{of}", field.name);
    let diagnostic = Diagnostic::error("unknown-column", message).at(at.clone(), "unknown column");
    match nearest(&field.name, columns.iter().copied()) {
        Some(near) => {
            // Of `e.pirce` only the column is replaced.
            let start = at.end - field.name.len().min(at.len());
            let span = if text[start..at.end] == *field.name { start..at.end } else { at };
            (diagnostic.help("a column of a similar name exists").suggest(span, near), Some(Meant::Column(near.to_owned())))
        }
        None if columns.len() <= 20 && !columns.is_empty() => (diagnostic.note(format!("the columns are {}", listed(&columns))), None),
        None => (diagnostic, None),
    }
}

/// Puts the name that was meant, or NULL, in the place of a wrong one; breaks when it found it.
struct Renamed<'a> {
    name: &'a Name,
}

impl Renamed<'_> {
    fn covers(&self, span: AstSpan) -> bool {
        let location = |at: datafusion::common::Location| Location { line: at.line, column: at.column };
        span.start >= location(self.name.span.start) && span.end <= location(self.name.span.end) && span.start.line > 0
    }

    fn rename(&self, idents: &mut [Ident]) {
        match &self.name.meant {
            Some(Meant::Column(meant)) => idents.last_mut().into_iter().for_each(|ident| ident.value.clone_from(meant)),
            Some(Meant::Table(meant)) if idents.len() > 1 => {
                let table = idents.len() - 2;
                idents[table].value.clone_from(meant);
            }
            _ => {}
        }
    }
}

impl VisitorMut for Renamed<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let null = || Expr::value(Value::Null);
        match expr {
            Expr::Identifier(ident) if self.covers(ident.span) => match &self.name.meant {
                Some(Meant::Column(_)) => self.rename(std::slice::from_mut(ident)),
                _ => *expr = null(),
            },
            Expr::CompoundIdentifier(idents) if idents.last().is_some_and(|last| self.covers(last.span)) => match self.name.meant {
                Some(_) => self.rename(idents),
                None => *expr = null(),
            },
            Expr::Function(Function { name, .. }) if self.covers(name.0.first().map_or(AstSpan::empty(), span_of_part)) => {
                match &self.name.meant {
                    Some(Meant::Function(meant)) => *name = vec![Ident::new(meant)].into(),
                    _ => *expr = null(),
                }
            }
            _ => return ControlFlow::Continue(()),
        }
        ControlFlow::Break(())
    }
}

fn span_of_part(part: &datafusion::sql::sqlparser::ast::ObjectNamePart) -> AstSpan {
    part.as_ident().map_or(AstSpan::empty(), |ident| ident.span)
}

// ----------------------------------------------------------------------------------------------------------------- other errors

/// Any other error in plain words, at the place the engine gives or at the part of the query without which it does not come; and
/// the number of that part.
async fn described(
    context: &SessionContext,
    text: &str,
    statement: &Statement,
    as_of: DateTime<Utc>,
    error: &DataFusionError,
) -> (Diagnostic, Option<usize>) {
    let (rule, message, help) = plain_words(error);
    let diagnostic = Diagnostic::error(rule, message);
    let diagnostic = match help {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    };
    if let Some(span) = error.diagnostic().and_then(|diagnostic| diagnostic.span) {
        return (diagnostic.at(place(text, span), ""), None);
    }
    match blame(context, statement, as_of, error).await {
        Some((number, expr)) => (diagnostic.at(span_of(text, &expr), ""), Some(number)),
        None => (diagnostic, None),
    }
}

/// The rule, the message and the help of an engine's error.
fn plain_words(error: &DataFusionError) -> (&'static str, String, Option<String>) {
    if let DataFusionError::SchemaError(inner, _) = error.find_root()
        && let SchemaError::AmbiguousReference { field } = inner.as_ref()
    {
        let help = "say whose: table.column".to_owned();
        return ("ambiguous-column", format!("column {} could be of several tables", field.name), Some(help));
    }
    let root = error.find_root().strip_backtrace();
    let mut message = &*root;
    while let Some((_, rest)) = message.split_once(": ").filter(|(kind, _)| kind.ends_with("error") || kind.starts_with("Error")) {
        message = rest;
    }
    if let Some(types) = between(message, "argument types '", "'") {
        return ("types", format!("there is no {}", sql_types(types)), Some("cast an argument, as in CAST(x AS DOUBLE)".to_owned()));
    }
    if message.contains("GROUP BY clause") {
        let column = between(message, "column \"", "\"").unwrap_or("a column");
        let message = format!("{column} is neither grouped by nor aggregated");
        return ("grouping", message, Some(format!("add it to the GROUP BY, or take one value of it: MIN({column})")));
    }
    if let Some((_, comparison)) = message.split_once("for comparison operation ") {
        return (
            "types",
            format!("these types cannot be compared: {}", sql_types(comparison)),
            Some("cast one side to the type of the other".to_owned()),
        );
    }
    if let Some((_, operation)) = message.split_once("for logical boolean operation ") {
        return (
            "types",
            format!("not a condition: {}", sql_types(operation)),
            Some("write a comparison: x = 'web', x IS NOT NULL".to_owned()),
        );
    }
    let line = message.lines().next().unwrap_or_default().trim_end_matches('.');
    let rule = if line.to_lowercase().contains("coerc") || line.to_lowercase().contains("cast") { "types" } else { "plan" };
    (rule, sql_types(&lower_first(line)), None)
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    Some(rest.split_once(after)?.0)
}

/// Arrow's names of types as SQL has them.
fn sql_types(text: &str) -> String {
    const NAMES: [(&str, &str); 10] = [
        ("Timestamp(µs, \"UTC\")", "TIMESTAMPTZ"),
        ("Timestamp(Microsecond, Some(\"UTC\"))", "TIMESTAMPTZ"),
        ("Interval(MonthDayNano)", "INTERVAL"),
        ("Utf8View", "VARCHAR"),
        ("Utf8", "VARCHAR"),
        ("Int64", "BIGINT"),
        ("Float64", "DOUBLE"),
        ("Boolean", "BOOLEAN"),
        ("Date32", "DATE"),
        ("Decimal128", "DECIMAL"),
    ];
    NAMES.iter().fold(text.to_owned(), |text, (arrow, sql)| text.replace(arrow, sql))
}

fn place(text: &str, span: Span) -> Range<usize> {
    let location = |at: datafusion::common::Location| Location { line: at.line, column: at.column };
    range(text, AstSpan { start: location(span.start), end: location(span.end) })
}
