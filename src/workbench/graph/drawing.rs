//! A lineage drawn in layers, raw tables left: each table a box, each edge a curve that bends around what lies between.

use super::{Graph, Table, split};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const HEAD: f64 = 22.0;
const ROW: f64 = 15.0;
const GAP: f64 = 16.0;
/// Room between two layers, for the curves.
const LANE: f64 = 90.0;
const MARGIN: f64 = 20.0;
/// Of one letter, at the size of the style below.
const LETTER: f64 = 6.7;
/// Height that a curve keeps free where it passes a layer.
const PASS: f64 = 8.0;

/// A box, or a place where a curve passes a layer.
enum Cell<'a> {
    Box(&'a Table),
    Pass,
}

struct Placed<'a> {
    cell: Cell<'a>,
    layer: usize,
    height: f64,
    /// Of its upper edge.
    y: f64,
    before: Vec<usize>,
    after: Vec<usize>,
}

pub fn colour(room: &str) -> &'static str {
    match room {
        "raw" => "#e7e5e4",
        "staging" => "#dbeafe",
        "features" => "#dcfce7",
        _ => "#fef3c7",
    }
}

pub fn draw(graph: &Graph, columns: bool) -> String {
    let (mut cells, chains) = cells(graph, columns);
    let mut layers: Vec<Vec<usize>> = Vec::new();
    for (at, cell) in cells.iter().enumerate() {
        layers.resize_with(layers.len().max(cell.layer + 1), Vec::new);
        layers[cell.layer].push(at);
    }
    order(&cells, &mut layers);
    arrange(&mut cells, &layers);

    let widths: Vec<f64> = layers.iter().map(|layer| layer.iter().map(|at| width(&cells[*at], columns)).fold(0.0, f64::max)).collect();
    let left = |layer: usize| MARGIN + widths[..layer].iter().map(|width| width + LANE).sum::<f64>();
    let bottom = cells.iter().map(|cell| cell.y + cell.height).fold(0.0, f64::max);
    let (full_width, full_height) = (widths.iter().map(|width| width + LANE).sum::<f64>() - LANE + 2.0 * MARGIN, bottom + MARGIN);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full_width:.0} {full_height:.0}" width="{full_width:.0}" height="{full_height:.0}" role="img" aria-label="lineage">
<style>
text {{ font: 11px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1c1917; }}
.head {{ font-weight: 600; }}
.box {{ fill: #ffffff; stroke: #a8a29e; }}
.edge {{ fill: none; stroke: #78716c; stroke-opacity: 0.55; }}
.edge:hover {{ stroke: #b91c1c; stroke-opacity: 1; stroke-width: 2; }}
</style>
<rect width="100%" height="100%" fill="#ffffff"/>
"##
    );

    // Curves first: the boxes lie on top of them.
    let name_of = |at: usize| match cells[at].cell {
        Cell::Box(table) => Some(table),
        Cell::Pass => None,
    };
    let place: BTreeMap<&str, usize> = (0..cells.len()).filter_map(|at| Some((name_of(at)?.name.as_str(), at))).collect();
    let row = |at: usize, column: Option<&str>| {
        let found = column.and_then(|column| name_of(at)?.columns.iter().position(|name| name == column));
        cells[at].y + found.map_or(HEAD / 2.0, |row| HEAD + ROW * (row as f64 + 0.5))
    };
    let mut curve = |from: (&str, Option<&str>), to: (&str, Option<&str>)| {
        let (Some(&start), Some(&end)) = (place.get(from.0), place.get(to.0)) else { return };
        let mut points = vec![(left(cells[start].layer) + widths[cells[start].layer], row(start, from.1))];
        for pass in chains.get(&(start, end)).into_iter().flatten() {
            let (x, y) = (left(cells[*pass].layer), cells[*pass].y + PASS / 2.0);
            points.extend([(x, y), (x + widths[cells[*pass].layer], y)]);
        }
        points.push((left(cells[end].layer), row(end, to.1)));
        let mut path = format!("M{:.1} {:.1}", points[0].0, points[0].1);
        for (at, pair) in points.windows(2).enumerate() {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            // Between layers a curve; along a layer that is passed, a straight line.
            let _ = match at % 2 {
                0 => write!(path, " C{:.1} {y0:.1} {:.1} {y1:.1} {x1:.1} {y1:.1}", (x0 + x1) / 2.0, (x0 + x1) / 2.0),
                _ => write!(path, " L{x1:.1} {y1:.1}"),
            };
        }
        let end = |(table, column): (&str, Option<&str>)| column.map_or(table.to_owned(), |column| format!("{table}.{column}"));
        let _ = writeln!(svg, r#"<path class="edge" d="{path}"><title>{} → {}</title></path>"#, end(from), end(to));
    };
    let mut said = BTreeSet::new();
    if columns {
        for (from, to) in &graph.column_edges {
            let (from, to) = (split(from), split(to));
            said.insert((from.0, to.0));
            curve((from.0, Some(from.1)), (to.0, Some(to.1)));
        }
    }
    for (from, to) in graph.edges.iter().filter(|(from, to)| !said.contains(&(from.as_str(), to.as_str()))) {
        curve((from, None), (to, None));
    }

    for cell in &cells {
        let Cell::Box(table) = cell.cell else { continue };
        let (x, y, width, height) = (left(cell.layer), cell.y, widths[cell.layer], cell.height);
        let _ = writeln!(svg, r#"<rect class="box" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="3"/>"#);
        let _ = writeln!(
            svg,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="2" fill="{}"/>"#,
            x + 1.0,
            y + 1.0,
            width - 2.0,
            HEAD - 2.0,
            colour(&table.room)
        );
        let _ = writeln!(svg, r#"<text class="head" x="{:.1}" y="{:.1}">{}</text>"#, x + 8.0, y + 15.0, table.name);
        for (at, column) in table.columns.iter().enumerate().filter(|_| columns) {
            let _ = writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{column}</text>"#, x + 8.0, y + HEAD + ROW * at as f64 + 11.5);
        }
    }
    svg + "</svg>"
}

fn width(cell: &Placed<'_>, columns: bool) -> f64 {
    let Cell::Box(table) = cell.cell else { return 0.0 };
    let names = table.columns.iter().filter(|_| columns).chain([&table.name]);
    names.map(|name| name.chars().count()).max().unwrap_or(0) as f64 * LETTER + 18.0
}

/// (from, to) -> the cells that an edge passes on its way.
type Chains = BTreeMap<(usize, usize), Vec<usize>>;

/// The boxes and, for each edge over several layers, the places where it passes those between.
fn cells<'a>(graph: &'a Graph, columns: bool) -> (Vec<Placed<'a>>, Chains) {
    let layers = graph.layers();
    let mut cells: Vec<Placed<'a>> = Vec::new();
    for table in &graph.tables {
        let rows = if columns { table.columns.len() as f64 } else { 0.0 };
        let height = HEAD + ROW * rows + if rows > 0.0 { 4.0 } else { 0.0 };
        cells.push(Placed {
            cell: Cell::Box(table),
            layer: layers[table.name.as_str()],
            height,
            y: 0.0,
            before: Vec::new(),
            after: Vec::new(),
        });
    }
    let place: BTreeMap<&str, usize> = graph.tables.iter().enumerate().map(|(at, table)| (table.name.as_str(), at)).collect();
    let mut chains = BTreeMap::new();
    for (from, to) in &graph.edges {
        let (Some(&start), Some(&end)) = (place.get(from.as_str()), place.get(to.as_str())) else { continue };
        let mut chain = Vec::new();
        let mut last = start;
        for layer in cells[start].layer + 1..cells[end].layer {
            cells.push(Placed { cell: Cell::Pass, layer, height: PASS, y: 0.0, before: vec![last], after: Vec::new() });
            let pass = cells.len() - 1;
            cells[last].after.push(pass);
            chain.push(pass);
            last = pass;
        }
        cells[last].after.push(end);
        cells[end].before.push(last);
        chains.insert((start, end), chain);
    }
    (cells, chains)
}

/// Orders each layer by the mean place of the neighbours, to and fro, which uncrosses most edges (Sugiyama et al. 1981).
fn order(cells: &[Placed<'_>], layers: &mut [Vec<usize>]) {
    let mut rank = vec![0.0; cells.len()];
    let number =
        |layer: &[usize], rank: &mut [f64]| layer.iter().enumerate().for_each(|(at, cell)| rank[*cell] = at as f64 / layer.len() as f64);
    layers.iter().for_each(|layer| number(layer, &mut rank));
    for sweep in 0..12 {
        let forth = sweep % 2 == 0;
        let turns: Vec<usize> = if forth { (1..layers.len()).collect() } else { (0..layers.len().saturating_sub(1)).rev().collect() };
        for turn in turns {
            let mean = |cell: &usize| {
                let neighbours = if forth { &cells[*cell].before } else { &cells[*cell].after };
                match neighbours.len() {
                    0 => rank[*cell],
                    n => neighbours.iter().map(|other| rank[*other]).sum::<f64>() / n as f64,
                }
            };
            let mut keyed: Vec<(f64, usize)> = layers[turn].iter().map(|cell| (mean(cell), *cell)).collect();
            keyed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            layers[turn] = keyed.into_iter().map(|(_, cell)| cell).collect();
            number(&layers[turn], &mut rank);
        }
    }
}

/// Gives each cell its height on the page: as near to its neighbours as the order allows.
fn arrange(cells: &mut [Placed<'_>], layers: &[Vec<usize>]) {
    for layer in layers {
        let mut y = MARGIN;
        for at in layer {
            cells[*at].y = y;
            y += cells[*at].height + GAP;
        }
    }
    let turns = (1..layers.len()).chain((0..layers.len()).rev()).chain(1..layers.len()).collect::<Vec<_>>();
    for turn in turns {
        let middle = |cell: &Placed<'_>| cell.y + cell.height / 2.0;
        let wish = |at: usize| {
            let neighbours: Vec<f64> = cells[at].before.iter().chain(&cells[at].after).map(|other| middle(&cells[*other])).collect();
            match neighbours.len() {
                0 => cells[at].y,
                n => neighbours.iter().sum::<f64>() / n as f64 - cells[at].height / 2.0,
            }
        };
        let wishes: Vec<f64> = layers[turn].iter().map(|at| wish(*at)).collect();
        // Down from the top, then up from the bottom; between the two lies a place without overlap.
        let (mut down, mut up) = (wishes.clone(), wishes);
        for at in 1..layers[turn].len() {
            down[at] = down[at].max(down[at - 1] + cells[layers[turn][at - 1]].height + GAP);
        }
        for at in (0..layers[turn].len().saturating_sub(1)).rev() {
            up[at] = up[at].min(up[at + 1] - cells[layers[turn][at]].height - GAP);
        }
        for (at, cell) in layers[turn].iter().enumerate() {
            cells[*cell].y = (down[at] + up[at]) / 2.0;
        }
    }
    let top = cells.iter().map(|cell| cell.y).fold(f64::INFINITY, f64::min);
    if top.is_finite() {
        cells.iter_mut().for_each(|cell| cell.y += MARGIN - top);
    }
}
