//! Where tables come from: boxes in columns, lines from what is read to what is made of it.

use super::{escape, opening};
use std::collections::BTreeMap;
use std::fmt::Write;

pub struct Node {
    pub name: String,
    /// Which column it stands in.
    pub column: usize,
    /// A second, smaller line.
    pub note: String,
}

const BOX: (f64, f64) = (150.0, 30.0);
const GAP: (f64, f64) = (56.0, 10.0);
const HEAD: f64 = 24.0;

/// `heads` name the columns; `edges` are indices of nodes, from what is read.
pub fn graph(id: &str, title: &str, heads: &[&str], nodes: &[Node], edges: &[(usize, usize)]) -> Option<String> {
    if nodes.is_empty() {
        return None;
    }
    let places = places(heads.len(), nodes, edges);
    let rows = places.iter().map(|(_, row)| row + 1).max().unwrap_or(0);
    let width = heads.len() as f64 * (BOX.0 + GAP.0) - GAP.0 + 2.0;
    let height = HEAD + rows as f64 * (BOX.1 + GAP.1);
    let corner = |at: usize| {
        let (column, row) = places[at];
        (1.0 + column as f64 * (BOX.0 + GAP.0), HEAD + row as f64 * (BOX.1 + GAP.1))
    };
    let about = format!("{} tables and {} dependencies in {} columns; the table below lists them.", nodes.len(), edges.len(), heads.len());
    let mut svg = opening(id, "graph", width, height, title, &about);
    for (column, head) in heads.iter().enumerate() {
        let _ = write!(svg, r#"<text class="head" x="{:.0}" y="13">{}</text>"#, 1.0 + column as f64 * (BOX.0 + GAP.0), escape(head));
    }
    for &(from, to) in edges {
        let ((x1, y1), (x2, y2)) = (corner(from), corner(to));
        let (y1, y2) = (y1 + BOX.1 / 2.0, y2 + BOX.1 / 2.0);
        // A table that reads another of its own column: an arc beside the column instead of a line through it.
        let (start, bend, back) = match x2 > x1 {
            true => (x1 + BOX.0, (x1 + BOX.0 + x2) / 2.0, (x1 + BOX.0 + x2) / 2.0),
            false => (x1, x1 - GAP.0 / 2.0, x2 - GAP.0 / 2.0),
        };
        let _ = write!(svg, r#"<path class="edge" d="M{start:.0} {y1:.0}C{bend:.0} {y1:.0} {back:.0} {y2:.0} {x2:.0} {y2:.0}">"#);
        let _ = write!(svg, "<title>{} → {}</title></path>", escape(&nodes[from].name), escape(&nodes[to].name));
    }
    for (at, node) in nodes.iter().enumerate() {
        let (x, y) = corner(at);
        let _ = write!(svg, r#"<g><rect class="box" x="{x:.0}" y="{y:.0}" width="{}" height="{}" rx="4"/>"#, BOX.0, BOX.1);
        let _ = write!(svg, r#"<text class="name" x="{:.0}" y="{:.0}">{}</text>"#, x + 7.0, y + 13.0, escape(&clipped(&node.name)));
        let _ = write!(svg, r#"<text x="{:.0}" y="{:.0}">{}</text></g>"#, x + 7.0, y + 25.0, escape(&node.note));
    }
    Some(svg + "</svg>")
}

/// Longer names would leave the box; the table beside the drawing has them in full.
fn clipped(name: &str) -> String {
    if name.chars().count() <= 24 { name.to_owned() } else { name.chars().take(23).chain(['…']).collect() }
}

/// The column and row of each node. Within a column nodes stand where those they read stand on average (the barycentre heuristic of
/// Sugiyama), so that few lines cross; equal ones as they came.
fn places(columns: usize, nodes: &[Node], edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut row: BTreeMap<usize, f64> = BTreeMap::new();
    let mut places = vec![(0, 0); nodes.len()];
    for column in 0..columns {
        let mut members: Vec<usize> = (0..nodes.len()).filter(|at| nodes[*at].column == column).collect();
        let height = |at: &usize| {
            let read: Vec<f64> = edges.iter().filter(|(_, to)| to == at).filter_map(|(from, _)| row.get(from)).copied().collect();
            if read.is_empty() { f64::MAX } else { read.iter().sum::<f64>() / read.len() as f64 }
        };
        let heights: BTreeMap<usize, f64> = members.iter().map(|at| (*at, height(at))).collect();
        members.sort_by(|a, b| heights[a].total_cmp(&heights[b]));
        for (number, at) in members.into_iter().enumerate() {
            places[at] = (column, number);
            row.insert(at, number as f64);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_beside_what_they_read() {
        let node = |name: &str, column| Node { name: name.to_owned(), column, note: String::new() };
        let nodes = [node("a", 0), node("b", 0), node("of b", 1), node("of a", 1), node("of nothing", 1)];
        let edges = [(1, 2), (0, 3)];
        assert_eq!(places(2, &nodes, &edges), [(0, 0), (0, 1), (1, 1), (1, 0), (1, 2)]);
        let svg = graph("g", "lineage", &["one", "two"], &nodes, &edges).expect("drawn");
        assert_eq!((svg.matches(r#"class="box""#).count(), svg.matches(r#"class="edge""#).count()), (5, 2));
        assert!(svg.contains("<title>b → of b</title>"), "{svg}");
        assert!(graph("g", "", &[], &[], &[]).is_none());
    }
}
