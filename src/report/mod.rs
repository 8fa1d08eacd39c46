//! The facts of a night -> one HTML page that needs nothing else: no network, no script, readable on a phone and on paper.
//!
//! `page/` holds the pages; this module gives them numbers in `words`, `table`s and drawings (`draw`). Every fact is optional,
//! because every stage may be skipped, and a fact that the page does not know is still shown: a stage can find something new
//! without this module hearing of it. What is followed over many nights is their `digest`; what moved since the last is `changes`.

pub mod changes;
pub mod digest;
mod draw;
mod table;
mod values;
mod words;

use crate::error::{Error, Result};
use draw::{Axes, Point, Reference, Series, Ticks};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use values::{column, estimate, finite, get, keys, number, rows};

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What an hour of the machine costs, in the currency of the budgets; 0: unknown, and the report gives no cost.
    pub machine_cost_per_hour: f64,
}

/// The page of one night's facts.
///
/// # Errors
/// `Internal` when the template itself is broken; no fact, absent or odd, makes it fail.
pub fn render(facts: &serde_json::Value) -> Result<String> {
    page("night.html", context! { facts => Value::from_serialize(facts) })
}

/// How the numbers of some nights went: one page of their digests, oldest first.
pub fn render_trend(digests: &[serde_json::Value]) -> Result<String> {
    page("trend.html", context! { nights => Value::from_serialize(digests) })
}

/// A list of all nights, latest first, from their digests, oldest first.
pub fn render_index(digests: &[serde_json::Value]) -> Result<String> {
    page("index.html", context! { nights => Value::from_serialize(digests.iter().rev().collect::<Vec<_>>()) })
}

const PAGES: [(&str, &str); 17] = [
    ("style.css", include_str!("page/style.css")),
    ("base.html", include_str!("page/base.html")),
    ("macros.html", include_str!("page/macros.html")),
    ("night.html", include_str!("page/night.html")),
    ("verdict.html", include_str!("page/verdict.html")),
    ("money.html", include_str!("page/money.html")),
    ("experiments.html", include_str!("page/experiments.html")),
    ("effects.html", include_str!("page/effects.html")),
    ("models.html", include_str!("page/models.html")),
    ("segments.html", include_str!("page/segments.html")),
    ("features.html", include_str!("page/features.html")),
    ("data.html", include_str!("page/data.html")),
    ("lineage.html", include_str!("page/lineage.html")),
    ("timings.html", include_str!("page/timings.html")),
    ("configuration.html", include_str!("page/configuration.html")),
    ("trend.html", include_str!("page/trend.html")),
    ("index.html", include_str!("page/index.html")),
];

fn page(name: &str, context: Value) -> Result<String> {
    let broken = |error: minijinja::Error| Error::internal(format_args!("the report's template: {error:#}"));
    let mut pages = Environment::new();
    pages.set_undefined_behavior(UndefinedBehavior::Chainable);
    pages.set_trim_blocks(true);
    pages.set_lstrip_blocks(true);
    pages.add_filter("rows", |value: &Value| Value::from(rows(value)));
    pages.add_filter("largest", values::largest);
    pages.add_filter("show", |value: &Value, format: Option<&str>| words::show(value, format.unwrap_or("")));
    pages.add_filter("words", |value: &Value| words::words(&words::plain(value)));
    pages.add_filter("name", |value: &Value| words::name(&words::plain(value)));
    pages.add_filter("sentence", |value: &Value| words::sentence(&words::plain(value)));
    pages.add_filter("chance", |p: &Value| format!("p = {}", words::show(p, "p")).replace("= <", "<"));
    pages.add_filter("value", words::value_of);
    pages.add_filter("interval", words::interval_of);
    pages.add_filter("day", day);
    pages.add_filter("moment", moment);
    pages.add_filter("why", words::why);
    pages.add_filter("others", words::others);
    pages.add_filter("find", |value: &Value, key: &str, wanted: &str| {
        rows(value).into_iter().find(|row| get(row, key).as_str() == Some(wanted)).unwrap_or_default()
    });
    pages.add_filter("at", |row: &Value, path: &str| get(row, path));
    pages.add_filter("total", |value: &Value, key: &str| finite(&rows(value), key).iter().fold(0.0, |sum, value| sum + value));
    pages.add_filter("part", |value: &Value, whole: &Value| Some(number(value)? / number(whole).filter(|whole| *whole > 0.0)?));
    pages.add_filter("minus", |value: &Value, other: &Value| Some(number(value)? - number(other)?));
    pages.add_filter("with", with);
    pages.add_filter("table", table::table);
    pages.add_filter("spark", |value: &Value, key: &str| drawing(draw::spark(&column(&rows(value), key))));
    pages.add_filter("histogram", |value: &Value, key: &str, id: &str, title: &str| {
        drawing(draw::histogram(id, title, &finite(&rows(value), key)))
    });
    pages.add_filter("reliability", reliability);
    pages.add_filter("series", series);
    pages.add_filter("curves", curves);
    pages.add_filter("lines", lines);
    pages.add_filter("lineage", lineage);
    for (name, text) in PAGES {
        pages.add_template(name, text).map_err(broken)?;
    }
    pages.get_template(name).and_then(|page| page.render(context)).map_err(broken)
}

/// `2026-11-22` as `Sunday 22 November 2026`, or as the format says.
fn day(value: &Value, format: Option<&str>) -> String {
    let text = words::plain(value);
    let Ok(date) = text.parse::<chrono::NaiveDate>() else { return text };
    date.format(format.unwrap_or("%A %-d %B %Y")).to_string()
}

/// `2026-11-22T16:00:00Z` as `22 November, 16:00 UTC`.
fn moment(value: &Value) -> String {
    let text = words::plain(value);
    let Ok(time) = text.parse::<chrono::DateTime<chrono::Utc>>() else { return text };
    time.format("%-d %B, %H:%M UTC").to_string()
}

/// Each row with one more fact: `name`, the quotient of two others, or their difference where `minus` says so.
fn with(value: &Value, name: &str, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let (of, by, minus) = (options.get::<&str>("of")?, options.get::<Option<&str>>("by")?, options.get::<Option<&str>>("minus")?);
    options.assert_all_used()?;
    let made = |row: &Value| {
        let value = number(&get(row, of));
        match (by, minus) {
            (Some(by), _) => Some(value? / number(&get(row, by)).filter(|by| *by > 0.0)?),
            (None, Some(minus)) => Some(value.unwrap_or(0.0) - number(&get(row, minus)).unwrap_or(0.0)),
            (None, None) => value,
        }
    };
    let row = |row: &Value| {
        let mut map: BTreeMap<String, Value> = keys(row).into_iter().map(|key| (key.clone(), get(row, &key))).collect();
        map.insert(name.to_owned(), Value::from(made(row)));
        Value::from(map)
    };
    Ok(rows(value).iter().map(row).collect())
}

fn drawing(svg: Option<String>) -> Value {
    svg.map(Value::from_safe_string).unwrap_or_default()
}

fn reliability(value: &Value, id: &str, title: &str) -> Value {
    let bin = |row: &Value| {
        let rows = number(&get(row, "rows")).unwrap_or(1.0);
        Some(draw::Bin {
            promised: number(&get(row, "score"))?,
            found: number(&get(row, "rate"))?,
            rows,
            ends: values::ends(&get(row, "rate_interval")),
        })
    };
    drawing(draw::reliability(id, title, &rows(value).iter().filter_map(bin).collect::<Vec<_>>()))
}

/// One line for each `[name, key]` over the rows' `x`, as `lines` draws them.
fn series(value: &Value, x: &str, named: Vec<Vec<String>>) -> Value {
    let rows = rows(value);
    let place = |row: &Value| number(&get(row, x)).or_else(|| draw::number_of_day(get(row, x).as_str()?));
    let line = |name: &str, key: &str| {
        let point = |row: &Value| {
            let (y, ends) = estimate(row, key);
            let (low, high) = ends.unzip();
            Some(context! { x => place(row)?, y => y?, low => low, high => high })
        };
        context! { name => name, points => rows.iter().filter_map(point).collect::<Vec<_>>() }
    };
    named.iter().filter_map(|pair| Some(line(pair.first()?, pair.get(1)?))).collect()
}

/// One line for each row, from its list of `[x, y]` under `key`.
fn curves(value: &Value, key: &str) -> Value {
    let line = |row: &Value| {
        let pairs = get(row, key).try_iter().map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        let point = |pair: &Value| {
            let (x, y) = values::ends(pair)?;
            Some(context! { x => x, y => y })
        };
        context! { name => words::plain(&get(row, "name")), points => pairs.iter().filter_map(point).collect::<Vec<_>>() }
    };
    rows(value).iter().map(line).collect()
}

/// Draws series: `id`, `title`, `x` and `y` say what it is; `format` how y is written; `days` that x is a date; `level` or `diagonal`
/// the reference; `zero` that y begins there.
fn lines(value: &Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let flag = |name: &str| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    let level = number(&options.get::<Option<Value>>("level")?.unwrap_or_default()).map(Reference::Level);
    let axes = Axes {
        id: options.get("id")?,
        title: options.get("title")?,
        x: options.get("x")?,
        y: options.get("y")?,
        format: options.get::<Option<&str>>("format")?.unwrap_or(""),
        ticks: if flag("days")? { Ticks::Days } else { Ticks::Numbers },
        reference: if flag("diagonal")? { Some(Reference::Diagonal) } else { level },
        from_zero: flag("zero")?,
    };
    options.assert_all_used()?;
    let point = |point: &Value| {
        let ends = number(&get(point, "low")).zip(number(&get(point, "high")));
        Some(Point { x: number(&get(point, "x"))?, y: number(&get(point, "y"))?, ends })
    };
    let line = |line: &Value| Series {
        name: words::words(&words::plain(&get(line, "name"))),
        points: rows(&get(line, "points")).iter().filter_map(point).collect(),
    };
    Ok(drawing(draw::lines(&axes, &rows(value).iter().map(line).collect::<Vec<_>>())))
}

/// The graph of `[{table, kind, rows, reads}]`; a kind is a column, in the order in which kinds come.
fn lineage(value: &Value, id: &str, title: &str) -> Value {
    let tables = rows(value);
    let name = |row: &Value| words::plain(&get(row, "table"));
    let mut kinds: Vec<String> = Vec::new();
    for kind in tables.iter().map(|row| words::plain(&get(row, "kind"))) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let node = |row: &Value| {
        let kind = words::plain(&get(row, "kind"));
        let note = number(&get(row, "rows")).map(|rows| format!("{} rows", words::in_words(rows, "n", true)));
        draw::Node { name: name(row), column: kinds.iter().position(|other| *other == kind).unwrap_or(0), note: note.unwrap_or_default() }
    };
    let place: BTreeMap<String, usize> = tables.iter().enumerate().map(|(at, row)| (name(row), at)).collect();
    let mut edges = Vec::new();
    for (to, row) in tables.iter().enumerate() {
        let reads = get(row, "reads");
        if reads.kind() == ValueKind::Seq {
            edges.extend(reads.try_iter().into_iter().flatten().filter_map(|read| Some((*place.get(read.as_str()?)?, to))));
        }
    }
    let heads: Vec<&str> = kinds.iter().map(String::as_str).collect();
    drawing(draw::graph(id, title, &heads, &tables.iter().map(node).collect::<Vec<_>>(), &edges))
}
