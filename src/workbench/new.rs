//! A new feature to begin with: a commented file that plans, and its test that passes.

use crate::error::{Context, Error, Result};
use crate::workbench::check::{Checked, Planned};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The files that were written.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Written {
    pub query: PathBuf,
    pub test: PathBuf,
}

/// Writes `features/<name>.sql` and its `.slt`.
///
/// # Errors
/// `Usage` when a file of that name exists or no canonical table has the key that the name asks for.
pub fn new(folder: &Path, checked: &Checked, name: &str) -> Result<Written> {
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let Some((entity, _)) = name.split_once("__").filter(|(entity, group)| plain(entity) && plain(group)) else {
        return Err(Error::usage(format_args!("{name} is no name of a feature table"))
            .action("name it <entity>__<group> in small letters, as in user__carts or user_category__affinity"));
    };
    if let Some(taken) = checked.catalog.queries().find(|query| query.name == name) {
        return Err(Error::usage(format_args!("{name} exists: {}", taken.path.display())));
    }
    let keys: Vec<String> = entity.split('_').map(|part| format!("{part}_id")).collect();
    let source = source(checked, &keys)?;
    let (sql, slt) = (query(name, &keys, source), test(name, &keys, source));
    let query = folder.join("features").join(format!("{name}.sql"));
    let test = query.with_extension("slt");
    std::fs::create_dir_all(folder.join("features")).with_context(|| format!("making {}", folder.join("features").display()))?;
    for (path, text) in [(&query, sql), (&test, slt)] {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::usage(format_args!("{} exists", path.display())),
            _ => Error::from(error).context(format_args!("writing {}", path.display())),
        })?;
        std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(Written { query, test })
}

/// The canonical table to count: one with the keys and a time, the busiest first.
fn source<'a>(checked: &'a Checked, keys: &[String]) -> Result<&'a Planned> {
    let column = |table: &Planned, name: &str, kind: &str| table.columns.iter().any(|column| column.name == name && column.kind == kind);
    let fits = |table: &&Planned| {
        table.room == "staging" && column(table, "occurred_at", "TIMESTAMPTZ") && keys.iter().all(|key| column(table, key, "VARCHAR"))
    };
    let busy = |table: &&Planned| ["events", "impressions"].iter().position(|name| table.name == *name).unwrap_or(usize::MAX);
    checked.tables.iter().filter(fits).min_by_key(busy).ok_or_else(|| {
        let dated = checked.tables.iter().filter(|table| table.room == "staging" && column(table, "occurred_at", "TIMESTAMPTZ"));
        let dated: Vec<&str> = dated.map(|table| table.name.as_str()).collect();
        Error::usage(format_args!("no canonical table has {} and occurred_at", keys.join(", ")))
            .action(format_args!("begin the name with the entity whose key one of them has: {}", dated.join(", ")))
    })
}

fn query(name: &str, keys: &[String], source: &Planned) -> String {
    let (list, lines) = (keys.join(", "), keys.join(",\n    "));
    let (table, noun) = (&source.name, source.name.trim_end_matches('s'));
    let count = format!("COUNT(*) AS n_{table}_30d,");
    let days = format!("DATE_PART('epoch', $as_of - MAX(occurred_at)) / 86400.0 AS days_since_{noun}");
    let width = days.len();
    format!(
        "-- How often and how lately a row's key was seen in {table} in 30 days: say here in one line what {name} is for.
-- grain: {list}
-- owner: your-team
-- tags: new
WITH recent AS (
    SELECT {list}, occurred_at
    FROM {table}
    -- Rows after $as_of are not there; how far to look back is yours to say.
    WHERE occurred_at >= $as_of - INTERVAL '30 days'
)
SELECT
    {lines},
    {count:<width$}  -- count
    {days:<width$}  -- days
FROM recent
GROUP BY {list}
"
    )
}

fn test(name: &str, keys: &[String], source: &Planned) -> String {
    let types: Vec<String> = keys.iter().map(|key| format!("{key} VARCHAR")).collect();
    let row = |n: usize, at: &str| {
        let values: Vec<String> = keys.iter().map(|key| format!("'{}{n}'", key.trim_end_matches("_id"))).collect();
        format!("({}, '{at}')", values.join(", "))
    };
    let answer: Vec<String> = keys.iter().map(|key| format!("{}1", key.trim_end_matches("_id"))).collect();
    format!(
        "# as_of: 2026-11-23T00:00:00Z
# Rows in, the answer out. The table under test is there by its own name.

statement ok
CREATE TABLE {} ({}, occurred_at TIMESTAMPTZ) AS VALUES
    {},
    {},
    {};

# The third row is too long ago.
query
SELECT * FROM {name} ORDER BY {}
----
{} 2 1.0
",
        source.name,
        types.join(", "),
        row(1, "2026-11-20T00:00:00Z"),
        row(1, "2026-11-22T00:00:00Z"),
        row(2, "2026-10-01T00:00:00Z"),
        keys.join(", "),
        answer.join(" ")
    )
}
