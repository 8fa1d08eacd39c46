//! Tables of text for a terminal, and rows as data.

use crate::error::Result;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Every cell as text; NULL as `NULL`, an empty string as `(empty)`.
pub fn cells(rows: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("NULL");
    let columns =
        rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<std::result::Result<Vec<_>, _>>()?;
    let cell = |formatter: &ArrayFormatter<'_>, row: usize| match formatter.value(row).to_string() {
        text if text.is_empty() => "(empty)".to_owned(),
        text => text,
    };
    Ok((0..rows.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect())
}

/// As [`cells`], for people: numbers are cut to the digits that say something.
pub fn shown(rows: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let mut cells = cells(rows)?;
    for (at, column) in rows.columns().iter().enumerate() {
        if let Some(values) = column.as_primitive_opt::<Float64Type>() {
            for (row, value) in values.iter().enumerate().filter_map(|(row, value)| Some((row, value?))) {
                cells[row][at] = number(value);
            }
        }
    }
    Ok(cells)
}

/// Rows under their columns' names; numbers stand right, and a long cell is cut.
pub fn rows_as_text(rows: &RecordBatch) -> Result<String> {
    let schema = rows.schema();
    let mut lines = vec![schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>()];
    // The more columns, the less room for each.
    let most = if schema.fields().len() > 6 { 20 } else { 32 };
    lines.extend(shown(rows)?.into_iter().map(|cells| cells.iter().map(|cell| shorten(cell, most)).collect()));
    let numeric: Vec<bool> = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
    Ok(aligned(&lines, &numeric))
}

/// Rows as an array of objects.
pub fn rows_as_json(rows: &RecordBatch) -> Result<serde_json::Value> {
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    match writer.into_inner() {
        bytes if bytes.is_empty() => Ok(serde_json::Value::Array(Vec::new())),
        bytes => Ok(serde_json::from_slice(&bytes)?),
    }
}

/// Lines in columns, two blanks apart; the first line is the head.
pub fn aligned(lines: &[Vec<String>], right: &[bool]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let line = |cells: &Vec<String>| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let blanks = " ".repeat(widths[column] - width(cell));
            text += &match right.get(column).copied().unwrap_or(false) {
                true => format!("{blanks}{cell}  "),
                false => format!("{cell}{blanks}  "),
            };
        }
        text.trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn shorten(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut short = String::new();
    for letter in text.chars() {
        if width(&short) + width(letter.encode_utf8(&mut [0; 4])) >= most {
            break;
        }
        short.push(letter);
    }
    short + "…"
}

/// Columns of a terminal that a text takes: the letters of East Asia and pictures take two each.
fn width(text: &str) -> usize {
    let wide = |letter: char| {
        matches!(letter, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}' | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}' | '\u{20000}'..='\u{3fffd}')
    };
    text.chars().map(|letter| if wide(letter) { 2 } else { 1 }).sum()
}

/// A number as people read it: at most six digits that say something.
pub fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let magnitude = value.abs().log10().floor();
    match magnitude {
        -4.0..=5.0 => {
            let digits = (5.0 - magnitude).clamp(0.0, 9.0) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        _ => format!("{value:.4e}"),
    }
}

/// `12,345`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_lose_nothing_that_matters() {
        let shown = [
            (0.0, "0"),
            (3.0, "3"),
            (-2.5, "-2.5"),
            (0.1 + 0.2, "0.3"),
            (1234.5678, "1234.57"),
            (1e-7, "1.0000e-7"),
            (1e300, "1.0000e300"),
        ];
        for (value, text) in shown {
            assert_eq!(number(value), text);
        }
        assert_eq!([count(7), count(1234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
    }

    #[test]
    fn columns_stand_under_each_other_whatever_the_script() {
        let lines = [vec!["a".to_owned(), "n".to_owned()], vec!["程序".to_owned(), "10".to_owned()]];
        assert_eq!(aligned(&lines, &[false, true]), "a      n\n程序  10");
        assert_eq!([shorten("abcdef", 4), shorten("程序程序", 4), shorten("程序", 4)], ["abc…", "程…", "程序"]);
    }
}
