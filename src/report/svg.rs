//! Small drawings as inline SVG: numbers in, markup out. Colours and light or dark come from the page's style sheet, by class;
//! a drawing that has nothing to show is `None`.
//!
//! Text inside a drawing is kept to axis ends and legends, at a size that a phone shows legibly; whatever must be read exactly
//! stands in a table beside it.

use std::fmt::Write;

/// A filled part of a bar: 0 is empty, 1 full; more than full is shown full and marked.
pub fn meter(part: f64) -> String {
    let over = if part > 1.0 { " over" } else { "" };
    let width = 100.0 * part.clamp(0.0, 1.0);
    format!(
        r#"<svg class="meter{over}" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{:.0} %"><rect class="rail" width="100" height="8"/><rect class="fill" width="{width:.1}" height="8"/></svg>"#,
        part * 100.0
    )
}

/// A value and its interval, as far as they are known.
pub type Mark = (Option<f64>, Option<(f64, f64)>);

/// One drawing per estimate with its interval, all on one scale, so that a column of them reads as a forest plot. An interval
/// that holds the `reference` is drawn pale: it says nothing.
pub fn marks(estimates: &[Mark], reference: Option<f64>) -> Vec<String> {
    let all = estimates.iter().flat_map(|(value, ends)| value.iter().copied().chain(ends.iter().flat_map(|(lo, hi)| [*lo, *hi])));
    let Some((low, high)) = range(all.chain(reference)) else { return vec![String::new(); estimates.len()] };
    let x = |value: f64| 4.0 + 152.0 * (value - low) / (high - low);
    let mark = |(value, ends): &(Option<f64>, Option<(f64, f64)>)| {
        let Some(value) = value else { return String::new() };
        let pale = match (ends, reference) {
            (Some((lo, hi)), Some(reference)) if *lo <= reference && reference <= *hi => " pale",
            _ => "",
        };
        let mut svg = format!(r#"<svg class="mark{pale}" viewBox="0 0 160 16" role="img" aria-label="estimate with its interval">"#);
        if let Some(reference) = reference {
            let _ = write!(svg, r#"<line class="reference" x1="{0:.1}" x2="{0:.1}" y1="0" y2="16"/>"#, x(reference));
        }
        if let Some((lo, hi)) = ends {
            let _ = write!(svg, r#"<line class="whisker" x1="{:.1}" x2="{:.1}" y1="8" y2="8"/>"#, x(*lo), x(*hi));
        }
        let _ = write!(svg, r#"<circle cx="{:.1}" cy="8" r="3.5"/></svg>"#, x(*value));
        svg
    };
    estimates.iter().map(mark).collect()
}

/// How many values fall between 1, 2, 5, 10, 20, 50 …: sizes spread over orders of magnitude.
pub fn histogram(values: &[f64]) -> Option<String> {
    let bin = |value: f64| {
        let power = value.max(1.0).log10().floor();
        let lead = value.max(1.0) / 10f64.powf(power);
        3 * power as usize + [2.0, 5.0].iter().filter(|edge| lead >= **edge).count()
    };
    let start = |bin: usize| [1u64, 2, 5][bin % 3] * 10u64.pow((bin / 3) as u32);
    let (first, last) = values.iter().fold((usize::MAX, 0), |(first, last), value| (first.min(bin(*value)), last.max(bin(*value))));
    if values.is_empty() || last > 54 {
        return None;
    }
    let mut counts = vec![0usize; last - first + 1];
    values.iter().for_each(|value| counts[bin(*value) - first] += 1);
    let most = *counts.iter().max()? as f64;
    let width = 300.0 / counts.len().max(4) as f64;
    let mut svg = r#"<svg class="chart" viewBox="0 0 320 130" role="img" aria-label="histogram">"#.to_owned();
    for (at, count) in counts.iter().enumerate() {
        let (x, height) = (10.0 + width * at as f64, 90.0 * *count as f64 / most);
        let (middle, y) = (x + width / 2.0, 108.0 - height);
        let _ = write!(svg, r#"<rect class="fill" x="{:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}"/>"#, x + 1.0, width - 2.0);
        if *count > 0 {
            let _ = write!(svg, r#"<text class="middle" x="{middle:.1}" y="{:.1}">{count}</text>"#, y - 3.0);
        }
        let _ = write!(svg, r#"<text x="{x:.1}" y="122">{}</text>"#, short(start(first + at) as f64));
    }
    let _ = write!(svg, r#"<line class="axis" x1="10" x2="310" y1="108" y2="108"/></svg>"#);
    Some(svg)
}

/// Lines over a shared x axis, told apart by colour and dash.
pub fn curves(x: &[f64], lines: &[(String, Vec<Option<f64>>)]) -> Option<String> {
    let (left, right) = range(x.iter().copied())?;
    let (low, high) = range(lines.iter().flat_map(|(_, values)| values.iter().flatten().copied()))?;
    let at = |x: f64, y: f64| (44.0 + 262.0 * (x - left) / (right - left), 110.0 - 96.0 * (y - low) / (high - low));
    let mut svg = format!(r#"<svg class="chart" viewBox="0 0 320 {}" role="img" aria-label="curve per epoch">"#, 132 + 14 * lines.len());
    let _ = write!(svg, r#"<path class="axis" d="M44 10V110H310"/>"#);
    let digits = if high - low < 0.01 { 5 } else { 3 };
    let _ = write!(svg, r#"<text class="end" x="40" y="18">{high:.digits$}</text><text class="end" x="40" y="112">{low:.digits$}</text>"#);
    let _ = write!(svg, r#"<text x="44" y="123">{}</text><text class="end" x="310" y="123">{}</text>"#, short(x[0]), short(x[x.len() - 1]));
    for (line, (name, values)) in lines.iter().enumerate() {
        let points: Vec<_> = x.iter().zip(values).filter_map(|(x, y)| y.map(|y| at(*x, y))).collect();
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let y = 140 + 14 * line;
        let _ = write!(svg, r#"<polyline class="line{}" points="{}"/>"#, line % 4, points.join(" "));
        let _ = write!(svg, r#"<path class="line{}" d="M44 {1}H74"/><text x="80" y="{2}">{3}</text>"#, line % 4, y - 4, y, escape(name));
    }
    Some(svg + "</svg>")
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
pub fn reliability(bins: &[Bin]) -> Option<String> {
    let highest = |bin: &Bin| bin.promised.max(bin.found).max(bin.ends.map_or(0.0, |(_, high)| high));
    let top = bins.iter().map(highest).reduce(f64::max).filter(|top| *top > 0.0)?;
    let most = bins.iter().map(|bin| bin.rows).fold(1.0, f64::max);
    let (x, y) = (|value: f64| 60.0 + 180.0 * value.max(0.0) / top, |value: f64| 200.0 - 180.0 * value.max(0.0) / top);
    let mut svg = r#"<svg class="chart" viewBox="0 0 320 232" role="img" aria-label="reliability diagram">"#.to_owned();
    svg.push_str(r#"<path class="axis" d="M60 12V200H256"/><path class="reference" d="M60 200L240 20"/>"#);
    for bin in bins {
        if let Some((low, high)) = bin.ends {
            let _ =
                write!(svg, r#"<line class="whisker" x1="{0:.1}" x2="{0:.1}" y1="{1:.1}" y2="{2:.1}"/>"#, x(bin.promised), y(low), y(high));
        }
        let r = 1.5 + 2.5 * (bin.rows / most).max(0.0).sqrt();
        let _ = write!(svg, r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="{r:.1}"/>"#, x(bin.promised), y(bin.found));
    }
    let top = format!("{:.2} %", top * 100.0);
    let _ = write!(svg, r#"<text class="end" x="56" y="24">{top}</text><text class="end" x="56" y="203">0</text>"#);
    let _ = write!(svg, r#"<text x="60" y="213">0</text><text class="middle" x="240" y="213">{top}</text>"#);
    let _ = write!(svg, r#"<text class="middle" x="150" y="227">predicted</text><text x="62" y="10">observed</text></svg>"#);
    Some(svg)
}

/// Smallest and largest value, widened where they are one.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return None;
    }
    Some(if low == high { (low - 0.5, high + 0.5) } else { (low, high) })
}

/// `20000` as `20k`.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => value.to_string(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_share_a_scale_and_pale_when_the_interval_holds_the_reference() {
        let drawn = marks(&[(Some(0.5), Some((-0.5, 1.0))), (Some(1.0), Some((0.5, 1.5))), (None, None)], Some(0.0));
        assert!(drawn[0].contains("pale") && !drawn[1].contains("pale") && drawn[2].is_empty());
        // -0.5 and 1.5 are the ends of the scale.
        assert!(drawn[0].contains(r#"x1="4.0""#) && drawn[1].contains(r#"x2="156.0""#), "{drawn:?}");
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let svg = histogram(&[100.0, 199.0, 200.0, 5_000.0]).expect("drawn");
        assert!(svg.contains(">100<") && svg.contains(">2<") && svg.contains(">5k<"), "{svg}");
        assert_eq!(svg.matches(r#"class="fill""#).count(), 6); // 100, 200, 500, 1k, 2k, 5k
        assert!(histogram(&[]).is_none());
    }

    #[test]
    fn drawings_of_nothing_or_of_one_point_are_safe() {
        assert!(curves(&[], &[]).is_none());
        assert!(reliability(&[Bin { promised: 0.0, found: 0.0, rows: 1.0, ends: None }]).is_none());
        let one = curves(&[1.0], &[("<b>".to_owned(), vec![Some(0.5)])]).expect("drawn");
        assert!(!one.contains("NaN") && !one.contains("<b>"), "{one}");
        assert!(meter(1.5).contains("over"));
    }
}
