//! Which table is made of which, and which column of which: as text, as DOT, or drawn.

mod drawing;

use crate::workbench::check::Checked;
use crate::workbench::text::aligned;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Graph {
    /// Each after those it reads.
    pub tables: Vec<Table>,
    /// From the table that is read to the one that reads it.
    pub edges: BTreeSet<(String, String)>,
    /// Likewise of columns, each as `events.price`; as far as the plans tell.
    pub column_edges: BTreeSet<(String, String)>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Table {
    pub name: String,
    /// raw, staging, features, checks.
    pub room: String,
    pub columns: Vec<String>,
}

/// The graph of the chosen tables, and of the raw tables that they read.
pub fn graph(checked: &Checked, chosen: &BTreeSet<String>) -> Graph {
    let planned: Vec<_> = checked.tables.iter().filter(|table| chosen.contains(&table.name)).collect();
    let raw: BTreeSet<&str> = planned.iter().flat_map(|table| &table.reads).filter_map(|read| read.strip_prefix("raw.")).collect();
    let used: BTreeSet<&String> =
        planned.iter().flat_map(|table| table.columns.iter().flat_map(|column| &column.from).chain(&table.rows_by)).collect();
    let raw_columns = |name: &str| {
        let columns = checked.catalog.sources.get(name).into_iter().flat_map(|source| source.columns.keys());
        columns.filter(|column| used.contains(&format!("raw.{name}.{column}"))).cloned().collect()
    };
    let mut tables: Vec<Table> =
        raw.iter().map(|name| Table { name: format!("raw.{name}"), room: "raw".to_owned(), columns: raw_columns(name) }).collect();
    tables.extend(planned.iter().map(|table| Table {
        name: table.name.clone(),
        room: table.room.clone(),
        columns: table.columns.iter().map(|column| column.name.clone()).collect(),
    }));
    let there = |name: &str| tables.iter().any(|table| table.name == name);
    let mut edges = BTreeSet::new();
    let mut column_edges = BTreeSet::new();
    for table in &planned {
        edges.extend(table.reads.iter().filter(|read| there(read)).map(|read| (read.clone(), table.name.clone())));
        for column in &table.columns {
            let from = column.from.iter().filter(|from| from.rsplit_once('.').is_some_and(|(table, _)| there(table)));
            column_edges.extend(from.map(|from| (from.clone(), format!("{}.{}", table.name, column.name))));
        }
    }
    Graph { tables, edges, column_edges }
}

impl Graph {
    /// A line a table; with `columns`, a line a column below it.
    pub fn text(&self, columns: bool) -> String {
        let listed = |names: Vec<&str>| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
        let reads = |name: &str| self.edges.iter().filter(|(_, to)| to == name).map(|(from, _)| from.as_str()).collect();
        let readers = |name: &str| self.edges.iter().filter(|(from, _)| from == name).map(|(_, to)| to.as_str()).collect();
        if !columns {
            let mut lines = vec![["table", "in", "reads", "read by"].map(str::to_owned).to_vec()];
            let line =
                |table: &Table| vec![table.name.clone(), table.room.clone(), listed(reads(&table.name)), listed(readers(&table.name))];
            lines.extend(self.tables.iter().map(line));
            return aligned(&lines, &[]);
        }
        let mut text = String::new();
        for table in self.tables.iter().filter(|table| table.room != "raw") {
            let _ = writeln!(text, "{}  [{}]  reads {}", table.name, table.room, listed(reads(&table.name)));
            let from = |column: &String| {
                let own = format!("{}.{column}", table.name);
                let from = self.column_edges.iter().filter(|(_, to)| *to == own).map(|(from, _)| from.as_str()).collect::<Vec<_>>();
                vec![format!("  {column}"), if from.is_empty() { "-".to_owned() } else { format!("<- {}", from.join(", ")) }]
            };
            let lines: Vec<Vec<String>> = table.columns.iter().map(from).collect();
            let _ = writeln!(text, "{}\n", aligned(&lines, &[]));
        }
        text.trim_end().to_owned()
    }

    /// Graphviz.
    pub fn dot(&self, columns: bool) -> String {
        let mut text = "digraph lineage {\n  rankdir=LR;\n  node [shape=plaintext, fontname=\"Helvetica\", fontsize=11];\n  edge [color=\"#888888\"];\n".to_owned();
        for table in &self.tables {
            let colour = drawing::colour(&table.room);
            let mut rows = format!("<TR><TD PORT=\"_\" BGCOLOR=\"{colour}\"><B>{}</B></TD></TR>", table.name);
            for column in table.columns.iter().filter(|_| columns) {
                let _ = write!(rows, "<TR><TD PORT=\"{column}\" ALIGN=\"LEFT\">{column}</TD></TR>");
            }
            let _ = writeln!(text, "  \"{}\" [label=<<TABLE BORDER=\"0\" CELLBORDER=\"1\" CELLSPACING=\"0\">{rows}</TABLE>>];", table.name);
        }
        if columns {
            for (from, to) in &self.column_edges {
                let (from, to) = (split(from), split(to));
                let _ = writeln!(text, "  \"{}\":\"{}\" -> \"{}\":\"{}\";", from.0, from.1, to.0, to.1);
            }
        }
        // Where columns say it, the tables need not; but a table may decide another's rows alone.
        let said: BTreeSet<(&str, &str)> =
            if columns { self.column_edges.iter().map(|(from, to)| (split(from).0, split(to).0)).collect() } else { BTreeSet::new() };
        for (from, to) in self.edges.iter().filter(|(from, to)| !said.contains(&(from.as_str(), to.as_str()))) {
            let _ = writeln!(text, "  \"{from}\":\"_\" -> \"{to}\":\"_\";");
        }
        text + "}"
    }

    /// One self-contained SVG.
    pub fn svg(&self, columns: bool) -> String {
        drawing::draw(self, columns)
    }

    /// Each table's distance from the raw tables: the longest way.
    fn layers(&self) -> BTreeMap<&str, usize> {
        let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
        for table in &self.tables {
            let before = self.edges.iter().filter(|(_, to)| *to == table.name).filter_map(|(from, _)| layers.get(from.as_str()));
            let layer = before.max().map_or(0, |layer| layer + 1);
            layers.insert(&table.name, layer);
        }
        layers
    }
}

/// `raw.events.uid` as table and column.
fn split(column: &str) -> (&str, &str) {
    column.rsplit_once('.').unwrap_or((column, ""))
}
