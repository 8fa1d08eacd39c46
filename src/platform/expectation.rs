//! What a table's columns must be like, as queries whose rows are violations: from the fields of a SQL file's header, and from the
//! contracts of raw tables.
//!
//! A header says them as lists: `-- not_null: user_id, platform (warn)`, `-- accepted: platform = web | app; arm = champion | explore`,
//! `-- range: price = 0 .. 1000000; position = 1 ..`, `-- unique: order_id`, `-- relationship: ad_id = ads.ad_id`.

use crate::platform::catalog::Query;
use crate::platform::checks::Check;
use crate::platform::diagnostic::Diagnostic;
use crate::platform::header::{Field, Header};
use serde::{Deserialize, Serialize};

/// The fields of a header that say such things.
pub const FIELDS: [&str; 5] = ["not_null", "unique", "accepted", "range", "relationship"];

/// What a violation does: stop the night, or stand in its log and report.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    #[default]
    Error,
    Warn,
}

/// What one column must be like.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    pub column: String,
    pub rule: Rule,
    pub severity: Severity,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    NotNull,
    /// Among the values that are known.
    Unique,
    /// NULL is accepted.
    Accepted(Vec<String>),
    /// Ends included; NULL lies in any range.
    Range(Option<f64>, Option<f64>),
    /// Every known value is one of the other table's column.
    Relationship {
        table: String,
        column: String,
    },
}

impl Expectation {
    /// A short name of what is expected: `price range 0 .. 1000000`.
    pub fn what(&self) -> String {
        let column = &self.column;
        match &self.rule {
            Rule::NotNull => format!("{column} not_null"),
            Rule::Unique => format!("{column} unique"),
            Rule::Accepted(values) => format!("{column} accepted {}", values.join(" | ")),
            Rule::Range(least, most) => {
                let ends = [least.map(|end| end.to_string()), Some("..".to_owned()), most.map(|end| end.to_string())];
                format!("{column} range {}", ends.into_iter().flatten().collect::<Vec<_>>().join(" "))
            }
            Rule::Relationship { table, column: other } => format!("{column} relationship {table}.{other}"),
        }
    }

    /// The query whose rows violate it.
    pub fn sql(&self, table: &str) -> String {
        let name = quoted(&self.column);
        match &self.rule {
            Rule::NotNull => format!("SELECT * FROM {table} WHERE {name} IS NULL"),
            Rule::Unique => {
                format!("SELECT {name}, COUNT(*) AS n FROM {table} WHERE {name} IS NOT NULL GROUP BY {name} HAVING COUNT(*) > 1")
            }
            Rule::Accepted(values) => {
                let values: Vec<String> = values.iter().map(|value| format!("'{}'", value.replace('\'', "''"))).collect();
                format!("SELECT * FROM {table} WHERE CAST({name} AS VARCHAR) NOT IN ({})", values.join(", "))
            }
            Rule::Range(least, most) => {
                let ends = [least.map(|least| format!("{name} < {least}")), most.map(|most| format!("{name} > {most}"))];
                format!("SELECT * FROM {table} WHERE {}", ends.into_iter().flatten().collect::<Vec<_>>().join(" OR "))
            }
            Rule::Relationship { table: other, column } => {
                let column = quoted(column);
                format!(
                    "SELECT own.* FROM {table} AS own LEFT ANTI JOIN {other} AS other ON other.{column} = own.{name} WHERE own.{name} IS NOT NULL"
                )
            }
        }
    }

    /// As a question to the table of a file.
    pub fn of(&self, query: &Query) -> Check {
        Check { name: format!("{}: {}", query.path.display(), self.what()), severity: self.severity, sql: self.sql(&query.name) }
    }

    /// Another table that it reads.
    pub fn reads(&self) -> Option<&str> {
        match &self.rule {
            Rule::Relationship { table, .. } => Some(table),
            _ => None,
        }
    }
}

/// A column's name as SQL has it, whatever it holds.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What a header expects of its file's columns, and what of it cannot be read.
pub fn expectations(header: &Header) -> (Vec<Expectation>, Vec<Diagnostic>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for field in header.fields.iter().filter(|field| FIELDS.contains(&field.name.as_str())) {
        for part in parts(field).filter(|part| !part.trim().is_empty()) {
            match read(&field.name, part.trim()) {
                Some(expectation) => found.push(expectation),
                None => {
                    let fault = Diagnostic::error("header", format!("{} is no {}", part.trim(), field.name));
                    faults.push(fault.at(field.value_at.clone(), "not understood").help(format!("write {}", example(&field.name))));
                }
            }
        }
    }
    (found, faults)
}

/// Lists of columns go by commas; what says more of a column goes by semicolons.
fn parts(field: &Field) -> std::str::Split<'_, char> {
    field.value.split(if matches!(field.name.as_str(), "not_null" | "unique") { ',' } else { ';' })
}

fn read(field: &str, part: &str) -> Option<Expectation> {
    let (part, severity) = match part.strip_suffix("(warn)") {
        Some(part) => (part.trim(), Severity::Warn),
        None => (part, Severity::Error),
    };
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let (column, value) = part.split_once('=').map_or((part, ""), |(column, value)| (column.trim(), value.trim()));
    let rule = match field {
        "not_null" if value.is_empty() => Rule::NotNull,
        "unique" if value.is_empty() => Rule::Unique,
        "accepted" => {
            let values: Vec<String> = value.split('|').map(|value| value.trim().to_owned()).collect();
            Rule::Accepted(values).into_known()?
        }
        "range" => {
            let (least, most) = value.split_once("..")?;
            let end = |text: &str| match text.trim() {
                "" => Some(None),
                text => text.parse().ok().filter(|end: &f64| end.is_finite()).map(Some),
            };
            Rule::Range(end(least)?, end(most)?).into_known()?
        }
        "relationship" => {
            let (table, other) = value.split_once('.')?;
            let (table, other) = (table.trim(), other.trim());
            (plain(table) && plain(other)).then(|| Rule::Relationship { table: table.to_owned(), column: other.to_owned() })?
        }
        _ => return None,
    };
    plain(column).then(|| Expectation { column: column.to_owned(), rule, severity })
}

impl Rule {
    /// The header's field that says it.
    pub fn field(&self) -> &'static str {
        match self {
            Rule::NotNull => "not_null",
            Rule::Unique => "unique",
            Rule::Accepted(_) => "accepted",
            Rule::Range(..) => "range",
            Rule::Relationship { .. } => "relationship",
        }
    }

    /// Itself, unless it says nothing.
    fn into_known(self) -> Option<Self> {
        match &self {
            Rule::Accepted(values) if values.iter().any(String::is_empty) => None,
            Rule::Range(None, None) => None,
            _ => Some(self),
        }
    }
}

fn example(field: &str) -> &'static str {
    match field {
        "accepted" => "`-- accepted: platform = web | app`",
        "range" => "`-- range: price = 0 .. 1000000; position = 1 ..`",
        "relationship" => "`-- relationship: ad_id = ads.ad_id`",
        "unique" => "`-- unique: order_id`",
        _ => "`-- not_null: user_id, platform (warn)`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(header: &str) -> (Vec<String>, Vec<String>) {
        let (found, faults) = expectations(&Header::read(header));
        let found = found.iter().map(|of| format!("{}{}", of.what(), if of.severity == Severity::Warn { " (warn)" } else { "" }));
        (found.collect(), faults.into_iter().map(|fault| fault.message).collect())
    }

    #[test]
    fn a_header_says_what_its_columns_are_like() {
        let header = "-- not_null: user_id, platform (warn)\n-- unique: order_id\n-- accepted: platform = web | app; arm = a (warn)\n\
                      -- range: price = 0 .. 1e6; slot = 1 ..\n-- relationship: ad_id = ads.ad_id\nSELECT 1";
        let (found, faults) = read_all(header);
        assert_eq!(faults, [""; 0]);
        assert_eq!(
            found,
            [
                "user_id not_null",
                "platform not_null (warn)",
                "order_id unique",
                "platform accepted web | app",
                "arm accepted a (warn)",
                "price range 0 .. 1000000",
                "slot range 1 ..",
                "ad_id relationship ads.ad_id"
            ]
        );
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let header = "-- not_null: a = 1\n-- accepted: a; b = x |\n-- range: a = ..; b = x .. 2; c 1\n-- relationship: a = ads\nSELECT 1";
        assert_eq!(
            read_all(header).1,
            ["a = 1 is no not_null", "a is no accepted", "b = x | is no accepted", "a = .. is no range", "b = x .. 2 is no range"]
                .into_iter()
                .chain(["c 1 is no range", "a = ads is no relationship"])
                .collect::<Vec<_>>()
        );
    }
}
