//! A leak test for people.

use super::{Leak, Leaks};
use crate::workbench::text::{aligned, count, shorten};

/// Columns of an example that are shown; the rest is named.
const WIDEST: usize = 24;

impl Leak {
    /// Its columns, or that rows come and go.
    pub fn what(&self) -> String {
        if self.columns.is_empty() { "its rows".to_owned() } else { self.columns.join(", ") }
    }

    fn text(&self, day: chrono::NaiveDate) -> String {
        let mut lines = vec![["key", "column", "with", "without"].map(str::to_owned).to_vec()];
        for example in &self.examples {
            let key = shorten(&example.key.join(", "), 40);
            lines.extend(
                example
                    .values
                    .iter()
                    .map(|value| vec![key.clone(), value.column.clone(), shorten(&value.with, WIDEST), shorten(&value.without, WIDEST)]),
            );
        }
        let through = match self.through.is_empty() {
            true => String::new(),
            false => format!("\n  it comes through {}", self.through.join(", ")),
        };
        let source = self.source.as_ref().map_or(String::new(), |source| {
            let found = if source.count == 1 { "this row of" } else { "these rows of" };
            let mut rows = vec![source.columns.clone()];
            rows.extend(source.rows.iter().map(|cells| cells.iter().map(|cell| shorten(cell, WIDEST)).collect()));
            let more =
                if source.count > source.rows.len() as u64 { format!("\n… {} in all", count(source.count)) } else { String::new() };
            format!("\n  {found} raw.{} alone makes a difference\n{}{more}", source.table, indented(&aligned(&rows, &[])))
        });
        format!(
            "{} knows the future: {}\n  as of the end of {day} it is another table {}: {} rows differ\n{}{through}{source}",
            self.path,
            self.what(),
            self.other.text(),
            count(self.rows),
            indented(&aligned(&lines, &[]))
        )
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

impl Leaks {
    pub fn text(&self) -> String {
        let others: Vec<&str> = self.others.iter().map(|other| other.text()).collect();
        let mut parts: Vec<String> = self.leaks.iter().map(|leak| leak.text(self.day)).collect();
        let sample = if self.share < 1.0 { format!(" of {} % of the devices", 100.0 * self.share) } else { String::new() };
        parts.push(format!(
            "{} tables as of the end of {}, {} rows{sample}: {} leak, the logs up to {} compared with those {} ({} later rows)",
            self.tables.len(),
            self.day,
            count(self.rows),
            if self.leaks.is_empty() { "none".to_owned() } else { self.leaks.len().to_string() },
            self.until,
            others.join(", "),
            count(self.later_rows)
        ));
        parts.extend(self.skipped.iter().map(|why| format!("left out: {why}")));
        parts.join("\n\n")
    }
}
