//! The text of a SQL file -> one SELECT and the tables it names, or what is wrong with the text and where.
//!
//! Everything that is not a SELECT over tables is refused here, before a planner sees it: writing, settings, a second statement,
//! recursion, sampling.

use crate::platform::catalog::nearest;
use crate::platform::diagnostic::{Diagnostic, offset};
use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, ObjectName, Query, Select as SelectBody, SetExpr, Spanned, Statement as SqlStatement, TableFactor, Value,
    ValueWithSpan, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer, Word};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// One SELECT.
#[derive(Clone, Debug)]
pub struct Select {
    pub statement: Statement,
    /// The tables it reads, `raw.events` or `events`, and where each is named first.
    pub reads: BTreeMap<String, Range<usize>>,
    /// The longest `$as_of - INTERVAL '…'`, days.
    pub looks_back_days: Option<u64>,
}

/// Levels of nesting that a query may have; the parser gives up beyond.
const DEEPEST: usize = 50;

/// Operators that may follow one another, as in `a + b + c`. The parser makes a tree as deep as the chain is long, and everything
/// that climbs it needs stack.
const LONGEST: usize = 500;

/// Parses a file's text.
#[expect(clippy::result_large_err, reason = "the few diagnostics of a check are made once and printed")]
pub fn parse(text: &str) -> Result<Select, Diagnostic> {
    let tokens = tokens(text)?;
    if let Some((at, what)) = endless(&tokens) {
        return Err(Diagnostic::error("too-deep", format!("more than {LONGEST} {what} in a row"))
            .at(range(text, at.span), "and more")
            .help("write x IN (…) for many ORs, or join a table of the values instead of naming each"));
    }
    let mut statements = DFParser::parse_sql(text).map_err(|error| syntax(text, &tokens, &error))?;
    let Some(statement) = statements.pop_front() else {
        return Err(Diagnostic::error("one-select", "the file holds no query")
            .at(text.len()..text.len(), "the SELECT is missing")
            .help("a file holds exactly one SELECT"));
    };
    if !statements.is_empty() {
        let second = tokens.iter().skip_while(|token| token.token != Token::SemiColon).find(|token| significant(&token.token));
        return Err(Diagnostic::error("one-select", "a second statement: a file holds exactly one SELECT")
            .at(second.map_or(0..0, |token| range(text, token.span)), "the second begins here")
            .help("give each query a file of its own"));
    }
    let query = match &statement {
        Statement::Statement(inner) => match &**inner {
            SqlStatement::Query(query) => Some(query),
            _ => None,
        },
        _ => None,
    };
    let Some(query) = query else {
        let first = tokens.iter().find(|token| significant(&token.token));
        let verb = first.map_or(String::new(), |token| token.token.to_string().to_uppercase());
        return Err(Diagnostic::error("one-select", format!("{verb} is not a query: a file holds exactly one SELECT"))
            .at(first.map_or(0..0, |token| range(text, token.span)), "not a SELECT")
            .help("a query only reads; the table of its rows is made by the night"));
    };
    if let ControlFlow::Break(found) = query.visit(&mut Refused { text }) {
        return Err(found);
    }
    let mut places = Places { text, found: BTreeMap::new() };
    let _ = query.visit(&mut places);
    let (tables, _ctes) = resolve_table_references(&statement, true)
        .map_err(|error| Diagnostic::error("unknown-table", error.strip_backtrace()).at(0..0, ""))?;
    let name = |table: &datafusion::common::TableReference| match table.schema() {
        Some(schema) => format!("{schema}.{}", table.table()),
        None => table.table().to_owned(),
    };
    let reads = tables.iter().map(name).map(|name| {
        let place = places.found.get(&name).cloned().unwrap_or(0..0);
        (name, place)
    });
    let reads = reads.collect();
    let mut windows = Windows { longest: None };
    let _ = query.visit(&mut windows);
    let looks_back_days = windows.longest;
    Ok(Select { statement, reads, looks_back_days })
}

/// Every token of a text, comments and blanks too.
#[expect(clippy::result_large_err, reason = "the few diagnostics of a check are made once and printed")]
pub fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, Diagnostic> {
    Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().map_err(|error| {
        let at = offset(text, error.location.line, error.location.column);
        let end = text[at..].find('\n').map_or(text.len(), |length| at + length);
        Diagnostic::error("syntax", lower_first(&error.message)).at(at..end, "here")
    })
}

/// A text without its comments and blanks: two texts of one such form are the same query.
pub fn bare(text: &str) -> String {
    let tokens = tokens(text).unwrap_or_default();
    let words = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).map(|token| token.token.to_string());
    words.collect::<Vec<_>>().join(" ")
}

/// The bytes that a parser's span covers.
pub fn range(text: &str, span: Span) -> Range<usize> {
    offset(text, span.start.line, span.start.column)..offset(text, span.end.line, span.end.column)
}

fn significant(token: &Token) -> bool {
    !matches!(token, Token::Whitespace(_) | Token::SemiColon | Token::EOF)
}

// ---------------------------------------------------------------------------------------------------------------- syntax errors

/// A parser's error with its place, in plain words, and a guess at what was meant.
fn syntax(text: &str, tokens: &[TokenWithSpan], error: &DataFusionError) -> Diagnostic {
    let root = error.find_root();
    if matches!(root, DataFusionError::SQL(parser, _) if matches!(**parser, ParserError::RecursionLimitExceeded)) {
        return Diagnostic::error("too-deep", format!("nested more than {DEEPEST} levels deep"))
            .at(deepest(text, tokens), "the innermost level")
            .help("name the inner parts as CTEs: WITH part AS (SELECT …)");
    }
    let message = root.strip_backtrace();
    let message = message.strip_prefix("SQL error: ParserError(").map_or(message.as_str(), |inner| inner.trim_end_matches(')'));
    let message = message.trim_matches('"').replace("\\\"", "\"");
    let (message, place) = split_place(&message);
    let at = tokens
        .iter()
        .position(|token| place.is_some_and(|(line, column)| (token.span.start.line, token.span.start.column) == (line, column)));
    let span = match at {
        Some(at) => range(text, tokens[at].span),
        None => text.trim_end().len()..text.trim_end().len(),
    };
    let words =
        message.replace("Expected: ", "expected ").replace(", found: ", ", found ").replace("found EOF", "found the end of the file");
    let words = words
        .replace("expected end of statement", "expected the end of the query")
        .replace("expected an SQL statement", "expected SELECT or WITH");
    let found = Diagnostic::error("syntax", lower_first(&words));
    if at.is_none()
        && words.contains("expected )")
        && let Some(open) = unclosed(tokens)
    {
        return found.at(range(text, open.span), "never closed");
    }
    let found = found.at(span, "not expected here");
    let before = tokens[..at.unwrap_or(tokens.len())].iter().rev().find(|token| significant(&token.token));
    let here = at.map(|at| &tokens[at]);
    let meant = [here, before].into_iter().flatten().find_map(|token| Some((token, misspelt_keyword(&token.token)?)));
    match meant {
        Some((token, keyword)) => found.help("a keyword of a similar name exists").suggest(range(text, token.span), keyword),
        None => found,
    }
}

/// `… at Line: 3, Column: 8` as the text before it and the place.
fn split_place(message: &str) -> (&str, Option<(u64, u64)>) {
    let Some((before, after)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let place = after.split_once(", Column: ").and_then(|(line, column)| {
        let digits = column.find(|c: char| !c.is_ascii_digit()).unwrap_or(column.len());
        Some((line.parse().ok()?, column[..digits].parse().ok()?))
    });
    (before, place)
}

fn misspelt_keyword(token: &Token) -> Option<&'static str> {
    const KEYWORDS: [&str; 24] = [
        "SELECT",
        "FROM",
        "WHERE",
        "GROUP",
        "ORDER",
        "HAVING",
        "WITH",
        "DISTINCT",
        "FILTER",
        "PARTITION",
        "OVER",
        "BETWEEN",
        "INTERVAL",
        "UNION",
        "LEFT",
        "INNER",
        "JOIN",
        "USING",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "LIMIT",
        "EXISTS",
    ];
    let Token::Word(Word { value, quote_style: None, .. }) = token else { return None };
    let upper = value.to_uppercase();
    if KEYWORDS.contains(&upper.as_str()) || upper.len() < 4 {
        return None;
    }
    let near = nearest(&upper, KEYWORDS.into_iter())?;
    (strsim::damerau_levenshtein(&upper, near) <= 2).then(|| KEYWORDS.into_iter().find(|keyword| *keyword == near)).flatten()
}

/// The bracket that opens the innermost level.
fn deepest(text: &str, tokens: &[TokenWithSpan]) -> Range<usize> {
    let (mut depth, mut most, mut at) = (0usize, 0usize, None);
    for token in tokens {
        match token.token {
            Token::LParen => {
                depth += 1;
                if depth > most {
                    (most, at) = (depth, Some(token.span));
                }
            }
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    at.map_or(0..0, |span| range(text, span))
}

/// The operator at which a chain becomes too long.
fn endless(tokens: &[TokenWithSpan]) -> Option<(&TokenWithSpan, &'static str)> {
    // How long the chain is, for each open bracket.
    let mut open = vec![0];
    let mut unions = 0;
    for token in tokens {
        let last = open.len() - 1;
        match &token.token {
            Token::LParen | Token::LBracket => open.push(0),
            Token::RParen | Token::RBracket if open.len() > 1 => drop(open.pop()),
            Token::Comma | Token::SemiColon => open[last] = 0,
            Token::Word(Word { value, quote_style: None, .. }) => match value.to_uppercase().as_str() {
                "UNION" | "EXCEPT" | "INTERSECT" => {
                    open[last] = 0;
                    unions += 1;
                }
                "SELECT" | "FROM" | "WHERE" | "GROUP" | "HAVING" | "ORDER" | "WHEN" | "THEN" | "ELSE" | "ON" | "JOIN" => open[last] = 0,
                "AND" | "OR" | "IS" | "LIKE" | "IN" | "BETWEEN" | "AT" | "XOR" | "DIV" | "NOT" => open[last] += 1,
                _ => {}
            },
            Token::Whitespace(_)
            | Token::EOF
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Period
            | Token::Placeholder(_) => {}
            _ => open[last] += 1,
        }
        if unions > LONGEST {
            return Some((token, "UNIONs"));
        }
        if open.last().is_some_and(|length| *length > LONGEST) {
            return Some((token, "operators"));
        }
    }
    None
}

fn unclosed(tokens: &[TokenWithSpan]) -> Option<&TokenWithSpan> {
    let mut open = Vec::new();
    for token in tokens {
        match token.token {
            Token::LParen => open.push(token),
            Token::RParen => drop(open.pop()),
            _ => {}
        }
    }
    open.pop()
}

/// As the middle of a sentence; a word in capitals stays one.
pub fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), text.chars().nth(1)) {
        (Some(first), second) if !second.is_some_and(char::is_uppercase) => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

// ---------------------------------------------------------------------------------------------------------- what no file may say

/// Stops at the first part of a query that does more than select from tables.
struct Refused<'a> {
    text: &'a str,
}

impl Visitor for Refused<'_> {
    type Break = Diagnostic;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Diagnostic> {
        if let Some(with) = query.with.as_ref().filter(|with| with.recursive) {
            let at = with.cte_tables.first().map_or(with.with_token.0.span, |cte| cte.alias.name.span);
            return ControlFlow::Break(
                Diagnostic::error("recursion", "WITH RECURSIVE: a recursive query may never end, and is refused")
                    .at(range(self.text, at), "recursive")
                    .help("join as often as the levels you need; three joins see a category's great-grandparent"),
            );
        }
        if let SetExpr::Insert(inner) | SetExpr::Update(inner) | SetExpr::Delete(inner) | SetExpr::Merge(inner) = &*query.body {
            return ControlFlow::Break(
                Diagnostic::error("one-select", "the query writes: a file holds exactly one SELECT")
                    .at(range(self.text, inner.span()), "not a SELECT"),
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &SelectBody) -> ControlFlow<Diagnostic> {
        if let Some(into) = &select.into {
            return ControlFlow::Break(
                Diagnostic::error("one-select", "SELECT INTO writes: a file holds exactly one SELECT")
                    .at(range(self.text, into.name.span()), "a table to write")
                    .help("the rows become the table named like the file"),
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<Diagnostic> {
        // The planner would read these and do nothing about them.
        let (name, says) = match table {
            TableFactor::Table { name, sample: Some(_), .. } => {
                (name.span(), "TABLESAMPLE is chance: the same night must give the same rows")
            }
            TableFactor::Table { name, version: Some(_), .. } => (name.span(), "a version of a table cannot be asked for"),
            TableFactor::Derived { subquery, sample: Some(_), .. } => {
                (subquery.span(), "TABLESAMPLE is chance: the same night must give the same rows")
            }
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break(Diagnostic::error("impure", says).at(range(self.text, name), "of this").help("sample by a hash of the id"))
    }
}

/// Where each table is named first.
struct Places<'a> {
    text: &'a str,
    found: BTreeMap<String, Range<usize>>,
}

impl Visitor for Places<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
        let part = |part: &datafusion::sql::sqlparser::ast::ObjectNamePart| {
            part.as_ident().map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
        };
        let parts: Vec<String> = name.0.iter().filter_map(part).collect();
        let parts = parts.join(".");
        // A quoted path has no place of its own.
        let place = match name.span() {
            span if span == Span::empty() => self.text.find(&parts).map_or(0..0, |at| at..at + parts.len()),
            span => range(self.text, span),
        };
        self.found.entry(parts).or_insert(place);
        ControlFlow::Continue(())
    }
}

/// How far before the as-of date the query says that it looks.
struct Windows {
    longest: Option<u64>,
}

impl Visitor for Windows {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::BinaryOp { left, op: BinaryOperator::Minus, right } = expr
            && matches!(&**left, Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) if name == "$as_of")
            && let Expr::Interval(interval) = &**right
        {
            self.longest = self.longest.max(days(&interval.to_string()));
        }
        ControlFlow::Continue(())
    }
}

/// `INTERVAL '30 days'`, `INTERVAL '30' DAY` or `INTERVAL '36 hours'` in whole days, rounded up; of several units nothing is said.
fn days(interval: &str) -> Option<u64> {
    let words = interval.replace('\'', " ").to_lowercase();
    let mut words = words.split_whitespace().skip(1);
    let (number, unit) = (words.next()?.parse::<f64>().ok()?, words.next()?);
    let length = match unit.trim_end_matches('s') {
        "hour" => 1.0 / 24.0,
        "day" => 1.0,
        "week" => 7.0,
        "month" => 31.0,
        "year" => 366.0,
        _ => return None,
    };
    words.next().is_none().then_some((number * length).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_window_is_read_from_the_text() {
        for (text, days) in [
            ("SELECT a FROM t WHERE b >= $as_of - INTERVAL '30 days' AND c > $as_of - INTERVAL '1 day'", Some(30)),
            ("WITH u AS (SELECT a FROM t WHERE b >= $as_of - INTERVAL '2' WEEK) SELECT a FROM u", Some(14)),
            ("SELECT a FROM t WHERE b >= $as_of - INTERVAL '36 hours'", Some(2)),
            ("SELECT $as_of - MAX(b) FROM t WHERE c >= d - INTERVAL '9 days'", None),
        ] {
            assert_eq!(parse(text).expect(text).looks_back_days, days, "{text}");
        }
    }

    #[test]
    fn comments_and_blanks_make_no_other_query() {
        let text = "-- grain: a\nSELECT a,   -- count\n  'x  y' AS b /* why */ FROM t\n";
        assert_eq!(bare(text), bare("SELECT a, 'x  y' AS b\nFROM t"));
        assert_ne!(bare(text), bare("SELECT a, 'x y' AS b FROM t"));
    }

    #[test]
    fn the_tables_of_a_query_are_those_it_names_and_does_not_define() {
        let text = "WITH a AS (SELECT * FROM raw.events) SELECT * FROM a JOIN Users USING (user_id)";
        let select = parse(text).expect("valid");
        let named: Vec<(&str, &str)> = select.reads.iter().map(|(name, at)| (name.as_str(), &text[at.clone()])).collect();
        assert_eq!(named, [("raw.events", "raw.events"), ("users", "Users")]);
    }

    #[test]
    fn only_one_select_is_a_query() {
        let refused = [
            ("COPY (SELECT 1) TO 'x.csv'", "COPY is not a query", "COPY"),
            ("CREATE TABLE t AS SELECT 1", "CREATE is not a query", "CREATE"),
            ("SELECT 1; SELECT 2", "a second statement", "SELECT"),
            ("SET a = 1", "SET is not a query", "SET"),
            ("SELECT a INTO t FROM u", "SELECT INTO writes", "t"),
            ("WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT * FROM n", "may never end", "n"),
            ("SELECT a FROM t TABLESAMPLE (10 PERCENT)", "chance", "t"),
            ("", "no query", ""),
            ("-- nothing\n", "no query", ""),
        ];
        for (text, says, caret) in refused {
            let found = parse(text).expect_err(text);
            assert!(found.message.contains(says), "{text}: {}", found.message);
            assert_eq!(&text[found.span().expect(text).clone()], caret, "{text}");
        }
    }

    #[test]
    fn a_syntax_error_stands_at_its_place_with_a_guess_at_what_was_meant() {
        let slips = [
            ("SELECT a FORM t", "expected the end of the query, found t", "t", Some(("FORM", "FROM"))),
            ("SELEC a FROM t", "expected SELECT or WITH, found SELEC", "SELEC", Some(("SELEC", "SELECT"))),
            ("SELECT SUM(a FROM t", "expected ), found FROM", "FROM", None),
            ("SELECT (a", "expected ), found the end of the file", "(", None),
            ("SELECT 'a FROM t", "unterminated string literal", "'a FROM t", None),
        ];
        for (text, says, caret, meant) in slips {
            let found = parse(text).expect_err(text);
            assert!(found.message.contains(says), "{text}: {}", found.message);
            assert_eq!(&text[found.span().expect(text).clone()], caret, "{text}");
            let suggested = found.suggestion.as_ref().map(|meant| (&text[meant.span.clone()], meant.replacement.as_str()));
            assert_eq!(suggested, meant, "{text}");
        }
    }

    #[test]
    fn ten_thousand_brackets_are_refused_and_not_climbed() {
        for text in [
            format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
            format!("SELECT {}1", "(".repeat(10_000)),
            format!("{}SELECT 1{}", "(".repeat(10_000), ")".repeat(10_000)),
            format!("SELECT a FROM {}t{}", "(".repeat(10_000), ")".repeat(10_000)),
            format!("SELECT {}a", "NOT ".repeat(10_000)),
            format!("SELECT a FROM t WHERE {}a", "- ".repeat(10_000)),
            format!("SELECT {}1{}", "CASE WHEN a THEN ".repeat(10_000), " END".repeat(10_000)),
        ] {
            let found = parse(&text).expect_err("too deep");
            assert!(found.rule == "too-deep" || found.rule == "syntax", "{}", found.message);
        }
    }

    #[test]
    fn a_chain_of_ten_thousand_is_refused_and_a_long_list_is_not() {
        let n = 10_000;
        for text in [
            format!("SELECT 1{}", " + 1".repeat(n)),
            format!("SELECT a FROM t WHERE a = 1{}", " OR a = 1".repeat(n)),
            format!("SELECT a{} FROM t", "::BIGINT".repeat(n)),
            format!("SELECT 'a'{}", " || 'a'".repeat(n)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n)),
            format!("SELECT (1{}) FROM t", " + (1)".repeat(n)),
        ] {
            assert_eq!(parse(&text).expect_err("too long").rule, "too-deep", "{}", &text[..40]);
        }
        parse(&format!("SELECT a FROM t WHERE a IN (1{})", ", 1".repeat(n))).expect("a list");
        parse(&format!("SELECT a{} FROM t WHERE a > 0 AND b < 1", ", a + b AS c".repeat(n))).expect("many columns");
        parse(&format!("SELECT CASE {} END FROM t", "WHEN a = 1 AND b = 2 THEN a + b ".repeat(n))).expect("many cases");
    }
}
