//! Numbers -> small drawings as inline SVG. Colours and light or dark come from the page's style sheet, by class; a drawing that has
//! nothing to show is `None`.
//!
//! Whatever must be read exactly stands in a table beside the drawing. Every drawing has a title and a description for those who
//! cannot see it; a drawing inside a table's row repeats what the row says, and is hidden from them.

mod graph;
mod lines;
mod marks;

pub use graph::{Node, graph};
pub use lines::{Axes, Point, Reference, Series, Ticks, lines, spark};
pub use marks::{Bin, histogram, marks, meter, reliability, scale};

use super::words::in_words;
use chrono::{Datelike, NaiveDate};

/// The opening of a drawing that a screen reader reads out.
fn opening(id: &str, class: &str, width: f64, height: f64, title: &str, description: &str) -> String {
    let (title, description) = (escape(title), escape(description));
    format!(
        r#"<svg class="{class}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{id}-title {id}-about"><title id="{id}-title">{title}</title><desc id="{id}-about">{description}</desc>"#
    )
}

/// Smallest and largest value, widened where they are one.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return None;
    }
    let half = if low == 0.0 { 0.5 } else { low.abs() / 2.0 };
    Some(if low == high { (low - half, high + half) } else { (low, high) })
}

/// About `wanted` round numbers between two others: steps of 1, 2 or 5.
fn round_numbers(low: f64, high: f64, wanted: f64) -> Vec<f64> {
    let rough = (high - low) / wanted;
    if !(rough > 0.0 && rough.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|lead| lead * power).find(|step| *step >= rough * 0.999).unwrap_or(rough);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|at| at as f64 * step).collect()
}

/// Digits that tell round numbers of this spacing apart, as a format of `words`.
fn digits(ticks: &[f64], format: &str) -> String {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let step = if format.starts_with('%') { step * 100.0 } else { step };
    let decimals = if step.is_finite() { (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) } else { 2.0 };
    format!("{}{decimals}", if format.starts_with('%') { '%' } else { '.' })
}

/// `20000` as `20k`.
fn short(value: f64, format: &str) -> String {
    match value.abs() {
        1e6.. => format!("{}M", value / 1e6),
        1e4.. => format!("{}k", value / 1e3),
        _ => in_words(value, format, false),
    }
}

/// The day of a number of days, as `22 Nov`.
fn day(number: f64) -> String {
    NaiveDate::from_num_days_from_ce_opt(number as i32).map_or_else(String::new, |date| date.format("%-d %b").to_string())
}

/// A day as a number, to draw by.
pub fn number_of_day(text: &str) -> Option<f64> {
    text.parse::<NaiveDate>().ok().map(|date| f64::from(date.num_days_from_ce()))
}

/// Safe in an element and in an attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_numbers_are_round_and_inside() {
        assert_eq!(round_numbers(0.0, 1.0, 5.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(round_numbers(0.713, 0.752, 4.0), [0.72, 0.73, 0.74, 0.75]);
        assert_eq!(digits(&round_numbers(0.713, 0.752, 4.0), ""), ".2");
        assert_eq!(digits(&[0.0, 0.005], "%"), "%1");
        assert_eq!(round_numbers(1.0, 1.0, 4.0), [1.0]);
    }

    #[test]
    fn days_are_numbers_and_back() {
        assert_eq!(day(number_of_day("2026-11-02").expect("a day")), "2 Nov");
        assert_eq!(number_of_day("x"), None);
    }
}
