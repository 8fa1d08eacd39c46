//! Lines over one x axis: curves of a model, nights of a history.

use super::{day, digits, escape, opening, range, round_numbers, short};
use crate::report::words::in_words;
use std::fmt::Write;

/// One line, x rising.
pub struct Series {
    pub name: String,
    pub points: Vec<Point>,
}

#[derive(Clone, Copy)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Of the interval of y.
    pub ends: Option<(f64, f64)>,
}

pub struct Axes<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    /// How values of y are written, as in `words`.
    pub format: &'a str,
    pub ticks: Ticks,
    pub reference: Option<Reference>,
    /// The y axis begins at zero.
    pub from_zero: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Ticks {
    Numbers,
    Days,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Reference {
    /// A value of y that says nothing.
    Level(f64),
    /// x = y.
    Diagonal,
}

const WIDTH: f64 = 360.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 346.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 158.0;
/// More points are a curve; so few are marked each.
const MARKED: usize = 31;

/// Lines told apart by colour and dash, each point that stands for one night or epoch marked, its interval as a whisker.
pub fn lines(axes: &Axes, series: &[Series]) -> Option<String> {
    let series: Vec<&Series> = series.iter().filter(|line| !line.points.is_empty()).collect();
    let points = || series.iter().flat_map(|line| line.points.iter());
    let (left, right) = match range(points().map(|point| point.x))? {
        // A single night stands between its neighbours.
        _ if axes.ticks == Ticks::Days && points().all(|point| point.x == series[0].points[0].x) => {
            (series[0].points[0].x - 1.0, series[0].points[0].x + 1.0)
        }
        ends => ends,
    };
    let level = match axes.reference {
        Some(Reference::Level(level)) => Some(level),
        _ => None,
    };
    let reached = points().flat_map(|point| {
        let (low, high) = point.ends.unwrap_or((point.y, point.y));
        [point.y, low, high]
    });
    let (low, high) = range(reached.chain(level).chain(axes.from_zero.then_some(0.0)))?;
    let (low, high) = if axes.from_zero && low >= 0.0 { (0.0, high) } else { (low - 0.04 * (high - low), high + 0.04 * (high - low)) };
    let x = |value: f64| LEFT + (RIGHT - LEFT) * (value - left) / (right - left);
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);

    let legend = if series.len() > 1 { 16 * series.len().div_ceil(2) } else { 0 };
    let height = 200.0 + legend as f64;
    let mut svg = opening(axes.id, "chart", WIDTH, height, axes.title, &in_a_sentence(axes, &series));
    let ticks = round_numbers(low, high, 5.0);
    let format = digits(&ticks, axes.format);
    for tick in &ticks {
        let at = y(*tick);
        let _ = write!(svg, r#"<path class="grid" d="M{LEFT} {at:.1}H{RIGHT}"/>"#);
        let _ = write!(svg, r#"<text class="end" x="{}" y="{:.1}">{}</text>"#, LEFT - 5.0, at + 3.5, short(*tick, &format));
    }
    for (at, text) in x_ticks(axes.ticks, left, right) {
        let class = if x(at) > RIGHT - 14.0 { "end" } else { "middle" };
        let place = if class == "end" { RIGHT } else { x(at) };
        let _ = write!(svg, r#"<text class="{class}" x="{place:.1}" y="{}">{text}</text>"#, BOTTOM + 15.0);
    }
    let _ = write!(svg, r#"<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>"#);
    let _ = write!(svg, r#"<text class="middle" x="{}" y="{}">{}</text>"#, (LEFT + RIGHT) / 2.0, BOTTOM + 31.0, escape(axes.x));
    match axes.reference {
        Some(Reference::Level(level)) => {
            let _ = write!(svg, r#"<path class="reference" d="M{LEFT} {:.1}H{RIGHT}"/>"#, y(level));
        }
        Some(Reference::Diagonal) => {
            let (from, to) = (left.max(low), right.min(high));
            let _ = write!(svg, r#"<path class="reference" d="M{:.1} {:.1}L{:.1} {:.1}"/>"#, x(from), y(from), x(to), y(to));
        }
        None => {}
    }
    let several_marked =
        series.len() > 1 && series.iter().any(|line| line.points.len() <= MARKED && line.points.iter().any(|point| point.ends.is_some()));
    for (number, line) in series.iter().enumerate() {
        // Whiskers of several lines stand beside each other.
        let aside = 3.0 * (number as f64 - (series.len() - 1) as f64 / 2.0);
        draw(&mut svg, axes, number, line, &|value| x(value) + if several_marked { aside } else { 0.0 }, &y);
    }
    if series.len() > 1 {
        for (number, line) in series.iter().enumerate() {
            let (left, baseline) = (LEFT + 152.0 * (number % 2) as f64, BOTTOM + 50.0 + 16.0 * (number / 2) as f64);
            let _ = write!(svg, r#"<path class="line line{}" d="M{left} {}h22"/>"#, number % 5, baseline - 4.0);
            let _ = write!(svg, r#"<text x="{}" y="{baseline}">{}</text>"#, left + 27.0, escape(&line.name));
        }
    }
    Some(svg + "</svg>")
}

fn draw(svg: &mut String, axes: &Axes, number: usize, line: &Series, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
    let marked = line.points.len() <= MARKED;
    let class = number % 5;
    if marked {
        for (point, (low, high)) in line.points.iter().filter_map(|point| Some((point, point.ends?))) {
            let _ = write!(svg, r#"<path class="whisker whisker{class}" d="M{0:.1} {1:.1}V{2:.1}"/>"#, x(point.x), y(low), y(high));
        }
    }
    let path: Vec<String> = line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.x), y(point.y))).collect();
    let _ = write!(svg, r#"<polyline class="line line{class}" points="{}"/>"#, path.join(" "));
    if marked {
        for point in &line.points {
            let hint = format!("{}, {}: {}", line.name, at(axes.ticks, point.x), in_words(point.y, axes.format, false));
            let _ = write!(svg, r#"<circle class="dot dot{class}" cx="{:.1}" cy="{:.1}" r="2.4">"#, x(point.x), y(point.y));
            let _ = write!(svg, "<title>{}</title></circle>", escape(&hint));
        }
    }
}

fn x_ticks(ticks: Ticks, left: f64, right: f64) -> Vec<(f64, String)> {
    match ticks {
        Ticks::Days => {
            let step = ((right - left) / 4.0).ceil().max(1.0);
            let days = (0..=4).map(|back| right - step * f64::from(back)).filter(|day| *day >= left);
            days.map(|number| (number, day(number))).collect()
        }
        Ticks::Numbers => {
            let ticks = round_numbers(left, right, 5.0);
            let format = digits(&ticks, "");
            ticks.iter().map(|tick| (*tick, short(*tick, &format))).collect()
        }
    }
}

fn at(ticks: Ticks, x: f64) -> String {
    if ticks == Ticks::Days { day(x) } else { in_words(x, "", x.fract() == 0.0) }
}

/// What the drawing shows, for those who cannot see it: where each line begins and ends.
fn in_a_sentence(axes: &Axes, series: &[&Series]) -> String {
    let line = |line: &&Series| {
        let (first, last) = (line.points[0], line.points[line.points.len() - 1]);
        let value = |point: Point| in_words(point.y, axes.format, false);
        match line.points.len() {
            1 => format!("{} is {} at {}", line.name, value(first), at(axes.ticks, first.x)),
            n => format!(
                "{} goes from {} at {} to {} at {} over {n} points",
                line.name,
                value(first),
                at(axes.ticks, first.x),
                value(last),
                at(axes.ticks, last.x)
            ),
        }
    };
    format!("{} over {}: {}.", axes.y, axes.x, series.iter().map(line).collect::<Vec<_>>().join("; "))
}

/// A line without axes, as large as a word, its last point marked; it stands beside the number it ends at.
pub fn spark(values: &[Option<f64>]) -> Option<String> {
    let known: Vec<(f64, f64)> = values.iter().enumerate().filter_map(|(at, value)| Some((at as f64, (*value)?))).collect();
    let (low, high) = range(known.iter().map(|(_, value)| *value))?;
    if known.len() < 2 {
        return None;
    }
    let (last, x) = (known[known.len() - 1], |at: f64| 3.0 + 94.0 * at / (values.len() - 1) as f64);
    let y = |value: f64| 21.0 - 18.0 * (value - low) / (high - low);
    let points: Vec<String> = known.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
    Some(format!(
        r#"<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="xMinYMid" aria-hidden="true"><polyline class="line" points="{}"/><circle class="dot" cx="{:.1}" cy="{:.1}" r="2.6"/></svg>"#,
        points.join(" "),
        x(last.0),
        y(last.1)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(ticks: Ticks) -> Axes<'static> {
        let (id, title, x, y) = ("c", "AUC by night", "night", "AUC");
        Axes { id, title, x, y, format: ".4", ticks, reference: Some(Reference::Level(0.5)), from_zero: false }
    }

    fn series(name: &str, values: &[f64]) -> Series {
        let points = values.iter().enumerate().map(|(x, y)| Point { x: x as f64, y: *y, ends: Some((y - 0.1, y + 0.1)) });
        Series { name: name.to_owned(), points: points.collect() }
    }

    #[test]
    fn every_line_has_its_marks_its_whiskers_and_its_name() {
        let svg = lines(&axes(Ticks::Numbers), &[series("one", &[0.6, 0.7]), series("<b>", &[0.5, 0.4, 0.3])]).expect("drawn");
        let count = |what: &str| svg.matches(what).count();
        assert_eq!((count("<polyline"), count("<circle"), count(r#"class="whisker"#)), (2, 5, 5));
        assert!(svg.contains("<title>one, 1: 0.7000</title>") && svg.contains("&lt;b&gt;") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("AUC over night: one goes from 0.6000 at 0 to 0.7000 at 1 over 2 points"), "{svg}");
        assert!(count(r#"class="reference""#) == 1 && !svg.contains("NaN"));
    }

    #[test]
    fn nothing_and_one_point_are_safe() {
        assert!(lines(&axes(Ticks::Numbers), &[]).is_none());
        assert!(lines(&axes(Ticks::Numbers), &[series("none", &[])]).is_none());
        let one = lines(&axes(Ticks::Days), &[series("one", &[0.5])]).expect("drawn");
        assert!(!one.contains("NaN") && one.matches("<circle").count() == 1);
        assert!(spark(&[Some(1.0)]).is_none() && spark(&[]).is_none());
        let flat = spark(&[Some(1.0), None, Some(1.0)]).expect("drawn");
        assert!(!flat.contains("NaN"), "{flat}");
    }
}
