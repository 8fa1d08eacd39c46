//! The facts of a night -> one HTML page that needs nothing else: no network, no script, readable on a phone and on paper.
//!
//! `template.html` is the page; this module gives it numbers in words and `svg` gives it drawings. Every fact is optional,
//! because every stage may be skipped, and a fact that the template does not know is still shown: a stage can find something new
//! without this module hearing of it.

mod svg;

use crate::error::{Error, Result};
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, UndefinedBehavior, context};

/// The page of one night's facts.
///
/// # Errors
/// `Internal` when the template itself is broken; no fact, absent or odd, makes it fail.
pub fn render(facts: &serde_json::Value) -> Result<String> {
    let broken = |error: minijinja::Error| Error::internal(format_args!("the report's template: {error:#}"));
    let mut page = Environment::new();
    page.set_undefined_behavior(UndefinedBehavior::Chainable);
    page.set_trim_blocks(true);
    page.set_lstrip_blocks(true);
    page.add_filter("rows", |value: &Value| Value::from(rows(value)));
    page.add_filter("largest", largest);
    page.add_filter("show", |value: &Value, format: Option<&str>| show(value, format.unwrap_or("")));
    page.add_filter("words", |value: &Value| words(&plain(value)));
    page.add_filter("value", value_of);
    page.add_filter("interval", interval_of);
    page.add_filter("why", why);
    page.add_filter("others", others);
    page.add_filter("total", |value: &Value, key: &str| column(&rows(value), key).into_iter().flatten().sum::<f64>());
    page.add_filter("part", |value: &Value, whole: &Value| Some(number(value)? / number(whole).filter(|whole| *whole > 0.0)?));
    page.add_filter("change", |row: &Value| number(&get(row, "after")).unwrap_or(0.0) - number(&get(row, "before")).unwrap_or(0.0));
    page.add_filter("meter", |value: &Value| drawing(number(value).map(svg::meter)));
    page.add_filter("marks", marks);
    page.add_filter("histogram", |value: &Value, key: &str| drawing(svg::histogram(&finite(&rows(value), key))));
    page.add_filter("curves", curves);
    page.add_filter("reliability", reliability);
    page.add_template("report.html", include_str!("template.html")).map_err(broken)?;
    let template = page.get_template("report.html").map_err(broken)?;
    template.render(context! { facts => Value::from_serialize(facts) }).map_err(broken)
}

/// The maps of a list; nothing of anything else.
fn rows(value: &Value) -> Vec<Value> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Vec::new();
    }
    value.try_iter().map(|items| items.filter(|item| item.kind() == ValueKind::Map).collect()).unwrap_or_default()
}

/// The rows with the largest `key` first (by its distance from zero), equal ones as they came.
fn largest(value: &Value, key: &str) -> Value {
    let mut rows = rows(value);
    let size = |row: &Value| number(&get(row, key)).map_or(-1.0, f64::abs);
    rows.sort_by(|a, b| size(b).total_cmp(&size(a)));
    Value::from(rows)
}

fn get(row: &Value, key: &str) -> Value {
    row.get_attr(key).unwrap_or_default()
}

fn number(value: &Value) -> Option<f64> {
    if !value.is_number() {
        return None;
    }
    f64::try_from(value.clone()).ok().filter(|number| number.is_finite())
}

fn column(rows: &[Value], key: &str) -> Vec<Option<f64>> {
    rows.iter().map(|row| number(&get(row, key))).collect()
}

fn finite(rows: &[Value], key: &str) -> Vec<f64> {
    column(rows, key).into_iter().flatten().collect()
}

/// The two ends of an interval, `{low, high}` or `[low, high]`.
fn ends(value: &Value) -> Option<(f64, f64)> {
    match value.kind() {
        ValueKind::Map => Some((number(&get(value, "low"))?, number(&get(value, "high"))?)),
        ValueKind::Seq if value.len() == Some(2) => {
            Some((number(&value.get_item_by_index(0).ok()?)?, number(&value.get_item_by_index(1).ok()?)?))
        }
        _ => None,
    }
}

/// The number `key` of a row with its interval: a number with `key_ci` or `interval` beside it, or a map of `value` or `estimate` and
/// `interval`.
fn estimate(row: &Value, key: &str) -> (Option<f64>, Option<(f64, f64)>) {
    let found = get(row, key);
    if found.kind() == ValueKind::Map {
        let value = number(&get(&found, "value")).or_else(|| number(&get(&found, "estimate")));
        return (value, ends(&get(&found, "interval")));
    }
    let beside = ends(&get(row, &format!("{key}_ci"))).or_else(|| ends(&get(row, "interval")).filter(|_| key == "value"));
    (number(&found), beside)
}

/// A fact in words: `n` whole, `.4` four decimals, `+4` with its sign, `%2` per cent with two decimals, `b` bytes, `t` a time
/// span; else a whole number in full and any other with four significant digits.
fn show(value: &Value, format: &str) -> String {
    match number(value) {
        Some(number) => in_words(number, format, value.is_integer()),
        None => plain(value),
    }
}

fn in_words(number: f64, format: &str, whole: bool) -> String {
    let digits = format.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    match format.get(..1) {
        Some("n") => grouped(&format!("{number:.0}")),
        Some(".") => grouped(&format!("{number:.digits$}")),
        Some("+") => format!("{number:+.digits$}"),
        Some("%") => format!("{:.digits$} %", number * 100.0),
        Some("b") => bytes(number),
        Some("t") => span(number),
        _ if whole => grouped(&format!("{number:.0}")),
        _ if number == 0.0 => "0".to_owned(),
        _ => {
            // Four significant digits without an exponent down to a millionth: 12.34, 0.001234.
            let magnitude = number.abs().log10().floor();
            if magnitude < -6.0 {
                return format!("{number:.3e}");
            }
            let decimals = (3.0 - magnitude).clamp(0.0, 9.0) as usize;
            let text = format!("{number:.decimals$}");
            grouped(if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text })
        }
    }
}

/// `1234567.5` as `1,234,567.5`.
fn grouped(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

fn bytes(number: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = if number < 1.0 { 0 } else { (number.log2() / 10.0).floor().min(4.0) as usize };
    let scaled = number / 1024f64.powi(power as i32);
    if power == 0 { format!("{scaled:.0} B") } else { format!("{scaled:.1} {}", units[power]) }
}

fn span(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1000.0),
        ..100.0 => format!("{seconds:.1} s"),
        ..6000.0 => format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor()),
        _ => format!("{:.0} h {:02.0} min", (seconds / 3600.0).floor(), (seconds / 60.0 % 60.0).floor()),
    }
}

/// A fact that is no number, as text; a dash where there is none.
fn plain(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => "–".to_owned(),
        ValueKind::Bool => if value.is_true() { "yes" } else { "no" }.to_owned(),
        ValueKind::Number => number(value).map_or_else(|| value.to_string(), |number| in_words(number, "", value.is_integer())),
        ValueKind::Seq => value.try_iter().map(|items| items.map(|item| plain(&item)).collect::<Vec<_>>().join(", ")).unwrap_or_default(),
        _ => match ends(value) {
            Some((low, high)) => format!("[{}, {}]", in_words(low, "", false), in_words(high, "", false)),
            None => value.to_string(),
        },
    }
}

fn words(text: &str) -> String {
    text.replace('_', " ")
}

/// The estimate `key` of a row in words; without a format, with two digits of its interval's half-width, for more would mean nothing.
fn value_of(row: &Value, key: &str, format: &str) -> String {
    let (value, ends) = estimate(row, key);
    value.map_or_else(|| "–".to_owned(), |value| in_words(value, &precise(format, ends), false))
}

/// Its interval in the same words; empty without one.
fn interval_of(row: &Value, key: &str, format: &str) -> String {
    let (_, ends) = estimate(row, key);
    let format = precise(format, ends);
    ends.map(|(low, high)| format!("[{}, {}]", in_words(low, &format, false), in_words(high, &format, false))).unwrap_or_default()
}

fn precise(format: &str, ends: Option<(f64, f64)>) -> String {
    match ends.map(|(low, high)| (high - low).abs() / 2.0).filter(|half| format.is_empty() && *half > 0.0) {
        Some(half) => format!(".{}", (1.0 - half.log10().floor()).clamp(0.0, 9.0)),
        None => format.to_owned(),
    }
}

/// Why a section is absent: the skipped stage's own line, when one names it.
fn why(skipped: &Value, section: &str) -> String {
    let lines: Vec<String> = skipped.try_iter().map(|lines| lines.map(|line| plain(&line)).collect()).unwrap_or_default();
    let section = words(section);
    let named = |line: &&String| words(&line.to_lowercase()).split(':').next().is_some_and(|head| head.contains(&section));
    lines.iter().find(named).cloned().unwrap_or_else(|| "the run recorded no facts for it".to_owned())
}

/// What a section holds beside its `known` keys: single facts as `[name, text]` pairs, nested ones by their path; lists of maps
/// as tables of `{name, columns, rows}`.
fn others(section: &Value, known: Rest<String>) -> Value {
    let (mut pairs, mut tables) = (Vec::new(), Vec::new());
    for key in keys(section).into_iter().filter(|key| !known.contains(key)) {
        collect(&key, &get(section, &key), &mut pairs, &mut tables);
    }
    context! { pairs => pairs, tables => tables }
}

fn collect(path: &str, value: &Value, pairs: &mut Vec<Vec<String>>, tables: &mut Vec<Value>) {
    let rows = rows(value);
    if value.kind() == ValueKind::Map && ends(value).is_none() {
        for key in keys(value) {
            collect(&format!("{path} {key}"), &get(value, &key), pairs, tables);
        }
    } else if rows.is_empty() {
        if !value.is_none() && (value.kind() != ValueKind::Seq || value.len() > Some(0)) {
            pairs.push(vec![words(path), show(value, "")]);
        }
    } else {
        let mut columns: Vec<String> = Vec::new();
        for key in rows.iter().flat_map(keys) {
            if !columns.contains(&key) {
                columns.push(key);
            }
        }
        let cells: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|key| show(&get(row, key), "")).collect()).collect();
        tables.push(context! { name => words(path), columns => columns.iter().map(|key| words(key)).collect::<Vec<_>>(), rows => cells });
    }
}

fn keys(map: &Value) -> Vec<String> {
    if map.kind() != ValueKind::Map {
        return Vec::new();
    }
    map.try_iter().map(|keys| keys.map(|key| key.to_string()).collect()).unwrap_or_default()
}

fn drawing(svg: Option<String>) -> Value {
    svg.map(Value::from_safe_string).unwrap_or_default()
}

/// One drawing per row of the estimate `key` with its interval, all on one scale; `reference` is the value that says nothing.
fn marks(value: &Value, key: &str, reference: Option<f64>) -> Value {
    let rows = rows(value);
    let estimates: Vec<_> = rows.iter().map(|row| estimate(row, key)).collect();
    Value::from(svg::marks(&estimates, reference).into_iter().map(Value::from_safe_string).collect::<Vec<_>>())
}

/// The lines over `x` of every key that ends in `suffix`.
fn curves(value: &Value, x: &str, suffix: &str) -> Value {
    let rows = rows(value);
    let names: Vec<String> = rows.first().map(keys).unwrap_or_default().into_iter().filter(|key| key.ends_with(suffix)).collect();
    let lines: Vec<_> = names.iter().map(|key| (words(key), column(&rows, key))).collect();
    drawing(svg::curves(&finite(&rows, x), &lines))
}

fn reliability(value: &Value) -> Value {
    let bin = |row: &Value| {
        let rows = number(&get(row, "rows")).unwrap_or(1.0);
        Some(svg::Bin {
            promised: number(&get(row, "score"))?,
            found: number(&get(row, "rate"))?,
            rows,
            ends: ends(&get(row, "rate_interval")),
        })
    };
    drawing(svg::reliability(&rows(value).iter().filter_map(bin).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        let shown = |value: f64, format: &str| show(&Value::from(value), format);
        assert_eq!(show(&Value::from(1_234_567u64), ""), "1,234,567");
        assert_eq!(shown(-1_234.5, ".2"), "-1,234.50");
        assert_eq!(shown(0.012_346, ""), "0.01235");
        assert_eq!(shown(12.0, ""), "12");
        assert_eq!(shown(12_345.6, ""), "12,346");
        assert_eq!(shown(0.012_346, "%2"), "1.23 %");
        assert_eq!(shown(0.01, "+3"), "+0.010");
        assert_eq!(shown(3_500_000.0, "b"), "3.3 MiB");
        assert_eq!((shown(0.25, "t"), shown(61.25, "t"), shown(150.0, "t")), ("250 ms".into(), "61.2 s".into(), "2 min 30 s".into()));
        assert_eq!((shown(f64::NAN, "n"), show(&Value::UNDEFINED, "n")), ("NaN".into(), "–".into()));
    }

    #[test]
    fn what_the_template_does_not_know_is_still_found() {
        let section = Value::from_serialize(serde_json::json!({
            "known": 1, "users_labelled": 812, "solver": {"gap": 0.0125}, "binding": ["c1", "c2"], "prices": [{"campaign_id": "c1", "price": 0.5}]
        }));
        let found = serde_json::to_value(others(&section, Rest(vec!["known".into()]))).expect("JSON");
        assert_eq!(found["pairs"], serde_json::json!([["binding", "c1, c2"], ["solver gap", "0.0125"], ["users labelled", "812"]]));
        assert_eq!(found["tables"][0]["columns"], serde_json::json!(["campaign id", "price"]));
    }

    #[test]
    fn an_estimate_has_the_digits_that_its_interval_gives_it() {
        let row = Value::from_serialize(serde_json::json!({
            "cpa": {"value": 9.3371, "interval": {"low": 5.677, "high": 13.0}}, "roi": {"value": 2.5, "interval": null},
            "auc": 0.73, "auc_ci": [0.71, 0.75]
        }));
        assert_eq!((value_of(&row, "cpa", ""), interval_of(&row, "cpa", "")), ("9.3".into(), "[5.7, 13.0]".into()));
        assert_eq!((value_of(&row, "auc", ".3"), interval_of(&row, "auc", ".3")), ("0.730".into(), "[0.710, 0.750]".into()));
        assert_eq!((value_of(&row, "roi", ""), interval_of(&row, "roi", "")), ("2.5".into(), String::new()));
        assert_eq!((value_of(&row, "none", ""), interval_of(&row, "none", "")), ("–".into(), String::new()));
    }

    #[test]
    fn an_absent_section_tells_its_own_reason() {
        let skipped = Value::from_serialize(serde_json::json!(["off-policy: no propensities", "evaluate: no earlier table"]));
        assert_eq!(why(&skipped, "evaluate"), "evaluate: no earlier table");
        assert_eq!(why(&Value::UNDEFINED, "gate"), "the run recorded no facts for it");
    }
}
