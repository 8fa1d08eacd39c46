//! Marks of single numbers: bars in a table's row, estimates with their intervals, sizes, calibration.

use super::{digits, opening, range, round_numbers, short};
use crate::report::values::Estimate;
use crate::report::words::in_words;
use std::fmt::Write;

/// A filled part of a bar: 0 is empty, 1 full; more than full is shown full and marked.
pub fn meter(part: f64) -> String {
    let over = if part > 1.0 { " over" } else { "" };
    let width = 100.0 * part.clamp(0.0, 1.0);
    format!(
        r#"<svg class="meter{over}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"><rect class="rail" width="100" height="8"/><rect class="fill" width="{width:.1}" height="8"/></svg>"#
    )
}

/// One drawing per estimate with its interval, all on one scale, so that a column of them reads as a forest plot. An interval
/// that holds the `reference` is drawn pale: it says nothing.
pub fn marks(estimates: &[Estimate], reference: Option<f64>) -> Vec<String> {
    let Some(x) = across(estimates, reference) else { return vec![String::new(); estimates.len()] };
    let mark = |(value, ends): &Estimate| {
        let Some(value) = value else { return String::new() };
        let pale = match (ends, reference) {
            (Some((low, high)), Some(reference)) if *low <= reference && reference <= *high => " pale",
            _ => "",
        };
        let mut svg = format!(r#"<svg class="mark{pale}" viewBox="0 0 180 18" aria-hidden="true">"#);
        if let Some(reference) = reference {
            let _ = write!(svg, r#"<path class="reference" d="M{:.1} 0V18"/>"#, x(reference));
        }
        if let Some((low, high)) = ends {
            let _ = write!(svg, r#"<path class="whisker" d="M{:.1} 9H{:.1}"/>"#, x(*low), x(*high));
        }
        let _ = write!(svg, r#"<circle class="dot" cx="{:.1}" cy="9" r="3.6"/></svg>"#, x(*value));
        svg
    };
    estimates.iter().map(mark).collect()
}

/// The scale of the same estimates' `marks`, for the foot of their column.
pub fn scale(estimates: &[Estimate], reference: Option<f64>, format: &str) -> Option<String> {
    let x = across(estimates, reference)?;
    let (low, high) = reach(estimates, reference)?;
    // As many labels as have room.
    let fits = |ticks: &Vec<f64>| {
        let widest = ticks.iter().map(|tick| short(*tick, &digits(ticks, format)).chars().count()).max().unwrap_or(0);
        ticks.windows(2).all(|pair| x(pair[1]) - x(pair[0]) > 6.5 * widest as f64)
    };
    let ticks = [4.0, 3.0, 2.0, 1.0].map(|wanted| round_numbers(low, high, wanted)).into_iter().find(fits)?;
    let format = digits(&ticks, format);
    let mut svg = r#"<svg class="mark" viewBox="0 0 180 18" aria-hidden="true"><path class="axis" d="M6 1H174"/>"#.to_owned();
    for tick in ticks {
        let class = match x(tick) {
            ..20.0 => "start",
            160.0.. => "end",
            _ => "middle",
        };
        let _ = write!(svg, r#"<path class="axis" d="M{0:.1} 1v3"/><text class="{class}" x="{0:.1}" y="15">"#, x(tick));
        let _ = write!(svg, "{}</text>", short(tick, &format));
    }
    Some(svg + "</svg>")
}

fn reach(estimates: &[Estimate], reference: Option<f64>) -> Option<(f64, f64)> {
    let all = estimates.iter().flat_map(|(value, ends)| value.iter().copied().chain(ends.iter().flat_map(|(low, high)| [*low, *high])));
    range(all.chain(reference))
}

fn across(estimates: &[Estimate], reference: Option<f64>) -> Option<impl Fn(f64) -> f64 + use<>> {
    let (low, high) = reach(estimates, reference)?;
    Some(move |value: f64| 6.0 + 168.0 * (value - low) / (high - low))
}

/// How many values fall between 1, 2, 5, 10, 20, 50 …: sizes spread over orders of magnitude.
pub fn histogram(id: &str, title: &str, values: &[f64]) -> Option<String> {
    let bin = |value: f64| {
        let power = value.max(1.0).log10().floor();
        let lead = value.max(1.0) / 10f64.powf(power);
        3 * power as usize + [2.0, 5.0].iter().filter(|edge| lead >= **edge).count()
    };
    let start = |bin: usize| ([1u64, 2, 5][bin % 3] * 10u64.pow((bin / 3) as u32)) as f64;
    let (first, last) = values.iter().fold((usize::MAX, 0), |(first, last), value| (first.min(bin(*value)), last.max(bin(*value))));
    if values.is_empty() || last > 54 {
        return None;
    }
    let mut counts = vec![0usize; last - first + 1];
    values.iter().for_each(|value| counts[bin(*value) - first] += 1);
    let most = *counts.iter().max()? as f64;
    let width = (332.0 / counts.len() as f64).min(60.0);
    let said = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let said: Vec<String> = said.map(|(at, count)| format!("{count} from {}", in_words(start(first + at), "n", true))).collect();
    let mut svg = opening(id, "chart", 360.0, 170.0, title, &format!("How many there are of each size: {}.", said.join(", ")));
    for (at, count) in counts.iter().enumerate() {
        let (x, height) = (14.0 + width * at as f64, 120.0 * *count as f64 / most);
        let (middle, y) = (x + width / 2.0, 142.0 - height);
        let _ = write!(svg, r#"<rect class="fill" x="{:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}"/>"#, x + 1.5, width - 3.0);
        if *count > 0 {
            let _ = write!(svg, r#"<text class="middle" x="{middle:.1}" y="{:.1}">{count}</text>"#, y - 4.0);
        }
        let _ = write!(svg, r#"<text x="{:.1}" y="157">{}</text>"#, x + 1.5, short(start(first + at), ""));
    }
    let _ = write!(svg, r#"<path class="axis" d="M14 142H346"/></svg>"#);
    Some(svg)
}

/// One bin of a reliability diagram.
pub struct Bin {
    pub promised: f64,
    pub found: f64,
    pub rows: f64,
    /// Of `found`.
    pub ends: Option<(f64, f64)>,
}

/// Predicted against observed rate, a dot per bin with its interval, the dot's area by rows; on the diagonal a prediction is true.
pub fn reliability(id: &str, title: &str, bins: &[Bin]) -> Option<String> {
    let highest = |bin: &Bin| bin.promised.max(bin.found).max(bin.ends.map_or(0.0, |(_, high)| high));
    let top = bins.iter().map(highest).reduce(f64::max).filter(|top| *top > 0.0)?;
    let most = bins.iter().map(|bin| bin.rows).fold(1.0, f64::max);
    let (x, y) = (|value: f64| 56.0 + 290.0 * value.max(0.0) / top, |value: f64| 158.0 - 144.0 * value.max(0.0) / top);
    let covered = bins.iter().filter(|bin| bin.ends.is_some_and(|(low, high)| low <= bin.promised && bin.promised <= high)).count();
    let about = format!(
        "Observed over predicted rate in {} bins, up to {}; in {covered} bins the interval of the observed rate holds the predicted one.",
        bins.len(),
        in_words(top, "%2", false)
    );
    let mut svg = opening(id, "chart", 360.0, 200.0, title, &about);
    let ticks = round_numbers(0.0, top, 4.0);
    let format = digits(&ticks, "%");
    for tick in &ticks {
        let text = short(*tick, &format);
        let _ = write!(
            svg,
            r#"<path class="grid" d="M56 {0:.1}H346"/><text class="end" x="51" y="{1:.1}">{text}</text>"#,
            y(*tick),
            y(*tick) + 3.5
        );
        let _ = write!(svg, r#"<text class="middle" x="{:.1}" y="173">{text}</text>"#, x(*tick));
    }
    svg.push_str(r#"<path class="axis" d="M56 158H346"/><path class="reference" d="M56 158L346 14"/>"#);
    svg.push_str(r#"<text class="middle" x="201" y="189">predicted</text><text x="60" y="12">observed</text>"#);
    for bin in bins {
        if let Some((low, high)) = bin.ends {
            let _ = write!(svg, r#"<path class="whisker" d="M{:.1} {:.1}V{:.1}"/>"#, x(bin.promised), y(low), y(high));
        }
        let r = 1.8 + 2.2 * (bin.rows / most).max(0.0).sqrt();
        let _ = write!(svg, r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="{r:.1}">"#, x(bin.promised), y(bin.found));
        let hint = [bin.promised, bin.found].map(|rate| in_words(rate, "%2", false));
        let _ = write!(svg, "<title>predicted {}, observed {}, {} rows</title></circle>", hint[0], hint[1], in_words(bin.rows, "n", true));
    }
    Some(svg + "</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_share_a_scale_and_pale_when_the_interval_holds_the_reference() {
        let estimates = [(Some(0.5), Some((-0.5, 1.0))), (Some(1.0), Some((0.5, 1.5))), (None, None)];
        let drawn = marks(&estimates, Some(0.0));
        assert!(drawn[0].contains("pale") && !drawn[1].contains("pale") && drawn[2].is_empty());
        // -0.5 and 1.5 are the ends of the scale.
        assert!(drawn[0].contains("M6.0 9H") && drawn[1].contains("H174.0"), "{drawn:?}");
        let scale = scale(&estimates, Some(0.0), "%1").expect("a scale");
        assert!(scale.contains(">0 %<") && scale.contains(">100 %<"), "{scale}");
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let svg = histogram("h", "sizes", &[100.0, 199.0, 200.0, 5_000.0]).expect("drawn");
        assert!(svg.contains(">100<") && svg.contains(">2<") && svg.contains(">5,000<"), "{svg}");
        assert_eq!(svg.matches(r#"class="fill""#).count(), 6); // 100, 200, 500, 1k, 2k, 5k
        assert!(svg.contains("2 from 100, 1 from 200, 1 from 5,000"), "{svg}");
        assert!(histogram("h", "", &[]).is_none());
    }

    #[test]
    fn a_diagram_of_nothing_is_none_and_one_of_bins_has_a_dot_each() {
        assert!(reliability("r", "", &[Bin { promised: 0.0, found: 0.0, rows: 1.0, ends: None }]).is_none());
        let bin = |promised, found| Bin { promised, found, rows: 10.0, ends: Some((found - 0.01, found + 0.01)) };
        let svg = reliability("r", "calibration", &[bin(0.02, 0.025), bin(0.05, 0.1)]).expect("drawn");
        assert_eq!((svg.matches("<circle").count(), svg.matches("whisker").count()), (2, 2));
        assert!(svg.contains("in 1 bins the interval"), "{svg}");
        assert!(meter(1.5).contains("over"));
    }
}
