//! Facts in words: numbers as people read them, no digit that means nothing.

use super::values::{ends, estimate, get, keys, number, rows};
use minijinja::context;
use minijinja::value::{Rest, Value, ValueKind};

/// A fact in words: `n` whole, `.4` four decimals, `+4` with its sign, `%2` per cent with two decimals, `±1` per cent with its sign,
/// `b` bytes, `t` a time span, `p` a probability of chance; else a whole number in full and any other with four significant digits.
pub fn show(value: &Value, format: &str) -> String {
    match number(value) {
        Some(number) => in_words(number, format, value.is_integer()),
        None => plain(value),
    }
}

pub fn in_words(number: f64, format: &str, whole: bool) -> String {
    let mut letters = format.chars();
    let kind = letters.next();
    let digits = letters.as_str().parse().unwrap_or(0);
    match kind {
        Some('n') => grouped(&format!("{number:.0}")),
        Some('.') => grouped(&format!("{number:.digits$}")),
        Some('+') => signed(number, digits),
        Some('%') => format!("{} %", grouped(&format!("{:.digits$}", number * 100.0))),
        Some('±') => format!("{} %", signed(number * 100.0, digits)),
        Some('b') => bytes(number),
        Some('t') => span(number),
        Some('p') if (0.0..0.001).contains(&number) => "< 0.001".to_owned(),
        Some('p') => format!("{number:.3}"),
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

/// With a true minus, as wide as the plus.
fn signed(number: f64, digits: usize) -> String {
    let text = grouped(&format!("{:.digits$}", number.abs()));
    match number {
        _ if text.chars().all(|c| !c.is_ascii_digit() || c == '0') => text,
        0.0.. => format!("+{text}"),
        _ => format!("−{text}"),
    }
}

/// `1234567.5` as `1,234,567.5`.
fn grouped(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("−", rest));
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
pub fn plain(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => "–".to_owned(),
        ValueKind::Bool => if value.is_true() { "yes" } else { "no" }.to_owned(),
        ValueKind::Number => number(value).map_or_else(|| value.to_string(), |number| in_words(number, "", value.is_integer())),
        ValueKind::Seq => value.try_iter().map(|items| items.map(|item| plain(&item)).collect::<Vec<_>>().join(", ")).unwrap_or_default(),
        _ => match ends(value) {
            Some((low, high)) => between(low, high, ""),
            None => value.to_string(),
        },
    }
}

/// An interval, as in every table of the page.
fn between(low: f64, high: f64, format: &str) -> String {
    format!("[{}, {}]", in_words(low, format, false), in_words(high, format, false))
}

pub fn words(text: &str) -> String {
    text.replace('_', " ")
}

/// What the trade writes in capitals.
const CAPITALS: [&str; 17] =
    ["auc", "cpa", "cpc", "cpm", "ctr", "cvr", "dm", "dr", "dros", "ess", "ips", "mips", "roas", "roi", "sndr", "snips", "srm"];

/// A metric or an estimator by its name: `clipped_ips` as `clipped IPS`.
pub fn name(text: &str) -> String {
    let capital = |word: &str| if CAPITALS.contains(&word) { word.to_uppercase() } else { word.to_owned() };
    words(text).split(' ').map(capital).collect::<Vec<_>>().join(" ")
}

/// Begun with a capital and ended with one full stop.
pub fn sentence(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Days in a row by their ends: `2026-03-03 to 2026-03-13 (11)`.
pub fn days(value: &Value) -> String {
    let days: Vec<String> = value.try_iter().map(|days| days.map(|day| plain(&day)).collect()).unwrap_or_default();
    match days.as_slice() {
        [first, .., last] if value.kind() == ValueKind::Seq => format!("{first} to {last} ({})", days.len()),
        _ => plain(value),
    }
}

/// The estimate `key` of a row in words; without a format, with two digits of its interval's half-width, for more would mean nothing.
pub fn value_of(row: &Value, key: &str, format: &str) -> String {
    let (value, ends) = estimate(row, key);
    value.map_or_else(|| "–".to_owned(), |value| in_words(value, &precise(format, ends), false))
}

/// Its interval in the same words; empty without one.
pub fn interval_of(row: &Value, key: &str, format: &str) -> String {
    let (_, ends) = estimate(row, key);
    let format = precise(format, ends);
    ends.map(|(low, high)| between(low, high, &format)).unwrap_or_default()
}

fn precise(format: &str, ends: Option<(f64, f64)>) -> String {
    match ends.map(|(low, high)| (high - low).abs() / 2.0).filter(|half| format.is_empty() && *half > 0.0) {
        Some(half) => format!(".{}", (1.0 - half.log10().floor()).clamp(0.0, 9.0)),
        None => format.to_owned(),
    }
}

/// Why a section is absent: the skipped stage's own line, when one names it.
pub fn why(skipped: &Value, section: &str) -> String {
    let lines: Vec<String> = skipped.try_iter().map(|lines| lines.map(|line| plain(&line)).collect()).unwrap_or_default();
    let section = words(section);
    let named = |line: &&String| words(&line.to_lowercase()).split(':').next().is_some_and(|head| head.contains(&section));
    lines.iter().find(named).cloned().unwrap_or_else(|| "the run recorded no facts for it".to_owned())
}

/// Rows of a table of facts that the template does not know; the rest is in the JSON.
const OTHER_ROWS: usize = 50;

/// What a section holds beside its `known` keys: single facts as `[name, text]` pairs, nested ones by their path; lists of maps
/// as tables of `{name, columns, rows, all}`.
pub fn others(section: &Value, known: Rest<String>) -> Value {
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
        for key in rows.iter().take(OTHER_ROWS).flat_map(keys) {
            if !columns.contains(&key) {
                columns.push(key);
            }
        }
        let cells = |row: &Value| columns.iter().map(|key| show(&get(row, key), "")).collect::<Vec<_>>();
        let shown: Vec<Vec<String>> = rows.iter().take(OTHER_ROWS).map(cells).collect();
        let columns: Vec<String> = columns.iter().map(|key| words(key)).collect();
        tables.push(context! { name => words(path), columns => columns, rows => shown, all => rows.len() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        let shown = |value: f64, format: &str| show(&Value::from(value), format);
        assert_eq!(show(&Value::from(1_234_567u64), ""), "1,234,567");
        assert_eq!(shown(-1_234.5, ".2"), "−1,234.50");
        assert_eq!(shown(0.012_346, ""), "0.01235");
        assert_eq!(shown(12.0, ""), "12");
        assert_eq!(shown(12_345.6, ""), "12,346");
        assert_eq!(shown(0.012_346, "%2"), "1.23 %");
        assert_eq!((shown(0.01, "+3"), shown(-0.01, "+3"), shown(0.0, "+0")), ("+0.010".into(), "−0.010".into(), "0".into()));
        assert_eq!((shown(0.123, "±1"), shown(-0.0004, "±1")), ("+12.3 %".into(), "0.0 %".into()));
        assert_eq!(shown(3_500_000.0, "b"), "3.3 MiB");
        assert_eq!((shown(0.0004, "p"), shown(0.4117, "p")), ("< 0.001".into(), "0.412".into()));
        assert_eq!((name("clipped_ips"), sentence(" its log-loss is low.")), ("clipped IPS".into(), "Its log-loss is low.".into()));
        assert_eq!(days(&Value::from(vec!["2026-03-03", "2026-03-04"])), "2026-03-03 to 2026-03-04 (2)");
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
            "auc": 0.73, "auc_ci": [0.71, 0.75], "night": {"auc": 0.7, "auc_ci": [0.6, 0.8]}
        }));
        assert_eq!((value_of(&row, "cpa", ""), interval_of(&row, "cpa", "")), ("9.3".into(), "[5.7, 13.0]".into()));
        assert_eq!((value_of(&row, "auc", ".3"), interval_of(&row, "auc", ".3")), ("0.730".into(), "[0.710, 0.750]".into()));
        assert_eq!(interval_of(&row, "night.auc", ".1"), "[0.6, 0.8]");
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
