//! A list of facts -> an HTML table: every head has its scope, numbers stand under each other, and what is wider than a phone scrolls
//! in its own frame.
//!
//! A column is `[head, key, how]`. `how` is the format of a number (see `words`) or one of: `text`, `list KEY` (of each entry),
//! `code`, `words`, `name` (of a metric), `days`, `check`
//! (holds or broken), `meter` (a bar of a share), `estimate FORMAT` (with its interval), `forest REFERENCE FORMAT` (its drawing), `change FORMAT`
//! (with its sign). `minor` before it hides the column on a phone.

use super::draw::{self, escape};
use super::values::{Estimate, estimate, get, largest, number, rows};
use super::words::{days, interval_of, name, plain, show, value_of, words};
use minijinja::value::{Kwargs, Value, ValueKind};
use std::fmt::Write;

/// Rows shown unless the caller says otherwise; the rest is in the JSON.
const LIMIT: usize = 20;

struct Column {
    head: String,
    key: String,
    kind: String,
    arguments: Vec<String>,
    minor: bool,
}

/// `|table(caption, columns=[…], by=key, limit=n, mark=value)`: `by` puts the largest first, `mark` stresses the row whose first cell
/// it is. Nothing for an empty list.
pub fn table(list: &Value, caption: &str, options: Kwargs) -> Result<Value, minijinja::Error> {
    let columns: Vec<Vec<String>> = options.get("columns")?;
    let limit: usize = options.get::<Option<usize>>("limit")?.unwrap_or(LIMIT);
    let marked = options.get::<Option<Value>>("mark")?.map(|value| plain(&value));
    let sorted = options.get::<Option<String>>("by")?.map(|key| largest(list, &key));
    options.assert_all_used()?;
    let all = rows(sorted.as_ref().unwrap_or(list));
    if all.is_empty() {
        return Ok(Value::from_safe_string(String::new()));
    }
    let shown = &all[..all.len().min(limit)];
    // A column of which no row knows anything says nothing, unless it is the row's head.
    let known = |column: &Column| shown.iter().any(|row| !get(row, &column.key).is_none() && !get(row, &column.key).is_undefined());
    let columns = columns.into_iter().filter_map(column).enumerate().filter(|(at, column)| *at == 0 || known(column));
    let columns: Vec<Column> = columns.map(|(_, column)| column).collect();
    let drawn: Vec<Vec<String>> = columns.iter().map(|column| drawings(column, shown)).collect();

    let mut html = String::from(r#"<div class="wide" role="region" tabindex="0" aria-label=""#);
    let _ = write!(html, r#"{0}"><table><caption><span>{0}</span></caption><thead><tr>"#, escape(caption));
    for column in &columns {
        let _ = write!(html, r#"<th scope="col"{}>{}</th>"#, class(column), escape(&column.head));
    }
    html.push_str("</tr></thead><tbody>\n");
    for (at, row) in shown.iter().enumerate() {
        let stressed = marked.as_ref().is_some_and(|marked| columns.first().is_some_and(|first| plain(&get(row, &first.key)) == *marked));
        html.push_str(if stressed { r#"<tr class="marked">"# } else { "<tr>" });
        for (number, column) in columns.iter().enumerate() {
            let cell = if column.kind == "forest" { drawn[number][at].clone() } else { cell(column, row) };
            let (open, close) = if number == 0 { (r#"th scope="row""#, "th") } else { ("td", "td") };
            let _ = write!(html, "<{open}{}>{cell}</{close}>", class(column));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>");
    html.push_str(&foot(&columns, shown));
    html.push_str("</table></div>");
    if all.len() > shown.len() {
        let which = if sorted.is_some() { "largest" } else { "first" };
        let _ = write!(html, r#"<p class="note">The {which} {} of {}; all of them in report.json.</p>"#, shown.len(), all.len());
    }
    Ok(Value::from_safe_string(html))
}

fn column(parts: Vec<String>) -> Option<Column> {
    let [head, key, how] = <[String; 3]>::try_from(parts).ok()?;
    let minor = how.starts_with("minor ");
    let mut arguments = how.trim_start_matches("minor ").split(' ').map(str::to_owned);
    let kind = arguments.next().unwrap_or_default();
    Some(Column { head, key, kind, arguments: arguments.collect(), minor })
}

impl Column {
    fn is_text(&self) -> bool {
        ["text", "list", "code", "words", "name", "days", "check", "meter", "forest"].contains(&self.kind.as_str())
    }

    fn argument(&self, at: usize) -> &str {
        self.arguments.get(at).map_or("", String::as_str)
    }

    fn reference(&self) -> Option<f64> {
        self.argument(0).parse().ok()
    }
}

fn class(column: &Column) -> &'static str {
    match (column.is_text(), column.minor) {
        (true, false) => "",
        (true, true) => r#" class="minor""#,
        (false, false) => r#" class="n""#,
        (false, true) => r#" class="n minor""#,
    }
}

fn cell(column: &Column, row: &Value) -> String {
    let value = get(row, &column.key);
    match column.kind.as_str() {
        "text" => escape(&plain(&value)),
        "list" => {
            let items = value.try_iter().into_iter().flatten();
            let items: Vec<String> = items.map(|item| plain(&get(&item, column.argument(0)))).collect();
            if items.is_empty() { "–".to_owned() } else { escape(&items.join(", ")) }
        }
        "words" => escape(&words(&plain(&value))),
        "name" => escape(&name(&plain(&value))),
        "days" => escape(&days(&value)),
        "code" if value.is_none() || value.is_undefined() => "–".to_owned(),
        "code" => format!("<code>{}</code>", escape(&plain(&value))),
        "check" if value.kind() == ValueKind::Bool => {
            if value.is_true() { r#"<span class="fine">holds</span>"# } else { r#"<span class="bad">broken</span>"# }.to_owned()
        }
        "check" => escape(&plain(&value)),
        "meter" => number(&value).map_or_else(
            || "–".to_owned(),
            |share| format!(r#"<span class="nowrap">{} {}</span>"#, draw::meter(share), show(&value, "%0")),
        ),
        "change" => escape(&show(&value, column.argument(0))),
        "estimate" => {
            let interval = interval_of(row, &column.key, column.argument(0));
            let interval = if interval.is_empty() { interval } else { format!(r#" <span class="ci">{}</span>"#, escape(&interval)) };
            escape(&value_of(row, &column.key, column.argument(0))) + &interval
        }
        format => escape(&show(&value, format)),
    }
}

fn estimates(column: &Column, rows: &[Value]) -> Vec<Estimate> {
    rows.iter().map(|row| estimate(row, &column.key)).collect()
}

fn drawings(column: &Column, rows: &[Value]) -> Vec<String> {
    if column.kind != "forest" {
        return Vec::new();
    }
    draw::marks(&estimates(column, rows), column.reference())
}

/// The scale below a column of drawings.
fn foot(columns: &[Column], rows: &[Value]) -> String {
    if columns.iter().all(|column| column.kind != "forest") {
        return String::new();
    }
    let scale = |column: &Column| {
        let drawn = (column.kind == "forest").then(|| draw::scale(&estimates(column, rows), column.reference(), column.argument(1)));
        format!("<td{}>{}</td>", class(column), drawn.flatten().unwrap_or_default())
    };
    format!("<tfoot><tr>{}</tr></tfoot>", columns.iter().map(scale).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(list: serde_json::Value, columns: &[[&str; 3]], rest: &[(&str, Value)]) -> String {
        let columns: Vec<Vec<&str>> = columns.iter().map(|column| column.to_vec()).collect();
        let options: Kwargs = rest.iter().cloned().chain([("columns", Value::from_serialize(columns))]).collect();
        table(&Value::from_serialize(list), "Rates", options).expect("a table").to_string()
    }

    #[test]
    fn heads_have_their_scope_and_cells_their_kind() {
        let rows = json!([
            {"arm": "holdout<", "share": 0.25, "ctr": {"value": 0.02, "interval": {"low": 0.01, "high": 0.03}}, "ok": true},
            {"arm": "champion", "share": 0.5, "ctr": null, "ok": false}
        ]);
        let columns = [
            ["arm", "arm", "text"],
            ["share", "share", "meter"],
            ["CTR", "ctr", "estimate %1"],
            ["", "ctr", "forest 0 %0"],
            ["check", "ok", "minor check"],
        ];
        let html = made(rows, &columns, &[("by", Value::from("share"))]);
        assert!(html.contains(r#"<th scope="col">arm</th>"#) && html.contains(r#"<th scope="row">champion</th>"#), "{html}");
        assert!(html.find("champion") < html.find("holdout&lt;"), "the largest share first");
        assert!(html.contains(r#"2.0 % <span class="ci">[1.0 %, 3.0 %]</span>"#) && html.contains(r#"<td class="n">–</td>"#), "{html}");
        assert!(html.contains(r#"<td class="minor"><span class="bad">broken</span></td>"#) && html.contains("50 %"));
        assert!(html.contains("<tfoot>") && html.matches("class=\"mark").count() == 2, "one mark and the scale: {html}");
    }

    #[test]
    fn a_long_table_says_how_much_it_leaves_out() {
        let rows: Vec<_> = (0..30).map(|n| json!({"n": n})).collect();
        let html = made(json!(rows), &[["n", "n", ""]], &[("limit", Value::from(5))]);
        assert_eq!(html.matches(r#"scope="row""#).count(), 5);
        assert!(html.contains("The first 5 of 30"));
        assert_eq!(made(json!([]), &[["n", "n", ""]], &[]), "");
    }
}
