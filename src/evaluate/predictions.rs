//! Last night's predictions against the day: does the table's p_click say what happened, on the ads that were chosen because of it?
//!
//! The largest of many estimates is likely one of the lucky ones (maximisation bias), so a model that was calibrated over all its rows can
//! still promise too much on those that the plan picks. The table's p_click is meant at the reference position; what is expected of an
//! impression is that times the ratio of its own position.

use super::EvaluateSettings;
use super::night::Rows;
use super::positions::Positions;
use crate::error::Result;
use crate::statistics::metrics::{self, Bin, ReliabilityLine};
use crate::statistics::{Estimate, psi};
use crate::types::{column, optional_column};
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Predictions {
    /// Impressions whose pair of segment and ad is in the table with a prediction, and those not.
    pub rows: u64,
    pub rows_without: u64,
    /// Whether what is expected was corrected for the positions.
    pub at_own_position: bool,
    /// Clicks that were promised over clicks that came: above 1 promises too much.
    pub calibration: Option<Estimate>,
    pub calibration_by_arm: BTreeMap<String, Option<Estimate>>,
    pub ece: Option<f64>,
    pub line: Option<ReliabilityLine>,
    pub reliability: Vec<Bin>,
    /// Segments whose interval does not hold 1, of those with clicks enough to tell; the farthest first.
    pub segments_judged: u64,
    pub segments_off: Vec<SegmentOff>,
    pub drift: Option<Drift>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SegmentOff {
    pub segment_id: String,
    pub clicks: u64,
    pub calibration: Estimate,
}

/// Tonight's table against last night's, each weighted by its planned impressions.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Drift {
    pub mean_before: f64,
    pub mean_after: f64,
    /// Population stability index over tenths of last night's predictions: above 0.1 look, above 0.25 act.
    pub psi: f64,
}

/// A segment with fewer clicks says nothing of its calibration.
const ENOUGH_CLICKS: u64 = 25;
const SHOWN: usize = 20;

pub fn measure(
    settings: &EvaluateSettings,
    rows: &Rows,
    served: &RecordBatch,
    tonight: &RecordBatch,
    positions: Option<&Positions>,
    skipped: &mut Vec<String>,
) -> Result<Option<Predictions>> {
    let promised = promised(served)?;
    let looked_at = |row: usize| positions.map_or(1.0, |positions| positions.ratio_of(rows, row));
    let expected: Vec<Option<f64>> = (0..rows.count())
        .map(|row| {
            let segment = rows.segments[row].as_deref()?;
            Some((promised.get(&(segment, rows.ads[row].as_str()))? * looked_at(row)).clamp(0.0, 1.0))
        })
        .collect();
    let known: Vec<usize> = (0..rows.count()).filter(|&row| expected[row].is_some()).collect();
    if known.is_empty() {
        skipped.push("predictions: no impression's segment and ad are in the table that served".into());
        return Ok(None);
    }
    let value = |row: usize| expected[row].unwrap_or(0.0);
    let click = |row: usize| f64::from(u8::from(rows.clicked[row]));
    let ratio = |of: &dyn Fn(usize) -> bool| {
        rows.ratio(settings.alpha, |row| if expected[row].is_some() && of(row) { [value(row), click(row)] } else { [0.0, 0.0] })
    };
    let labels: Vec<bool> = known.iter().map(|&row| rows.clicked[row]).collect();
    let scores: Vec<f64> = known.iter().map(|&row| value(row)).collect();
    let arms: std::collections::BTreeSet<&String> = rows.arms.iter().flatten().collect();
    let mut clicks: BTreeMap<&str, u64> = BTreeMap::new();
    for &row in &known {
        *clicks.entry(rows.segments[row].as_deref().unwrap_or_default()).or_default() += u64::from(rows.clicked[row]);
    }
    clicks.retain(|_, clicks| *clicks >= ENOUGH_CLICKS);
    let mut segments_off: Vec<SegmentOff> = Vec::new();
    for (&segment, &clicks) in &clicks {
        let found = ratio(&|row| rows.segments[row].as_deref() == Some(segment));
        let off = found.filter(|found| found.interval.is_some_and(|interval| interval.low > 1.0 || interval.high < 1.0));
        segments_off.extend(off.map(|calibration| SegmentOff { segment_id: segment.to_owned(), clicks, calibration }));
    }
    segments_off.sort_by(|a, b| b.calibration.value.ln().abs().total_cmp(&a.calibration.value.ln().abs()));
    segments_off.truncate(SHOWN);
    Ok(Some(Predictions {
        rows: known.len() as u64,
        rows_without: (rows.count() - known.len()) as u64,
        at_own_position: positions.is_some(),
        calibration: ratio(&|_| true),
        calibration_by_arm: arms.iter().map(|arm| ((*arm).clone(), ratio(&|row| rows.arms[row].as_ref() == Some(*arm)))).collect(),
        ece: metrics::ece(&labels, &scores),
        line: metrics::reliability_line(&labels, &scores),
        reliability: metrics::reliability(&labels, &scores, 15),
        segments_judged: clicks.len() as u64,
        segments_off,
        drift: drift(&weighted(served)?, &weighted(tonight)?),
    }))
}

/// p_click of each pair of segment and ad: the same in every arm.
fn promised(segment_ads: &RecordBatch) -> Result<HashMap<(&str, &str), f64>> {
    let (segments, ads) = (column::<StringArray>(segment_ads, "segment_id")?, column::<StringArray>(segment_ads, "ad_id")?);
    let Some(p_click) = optional_column::<Float64Array>(segment_ads, "p_click")? else { return Ok(HashMap::new()) };
    let rows = (0..segment_ads.num_rows()).filter(|&row| p_click.is_valid(row));
    Ok(rows.map(|row| ((segments.value(row), ads.value(row)), p_click.value(row))).collect())
}

/// Predictions with the impressions planned for them.
fn weighted(segment_ads: &RecordBatch) -> Result<Vec<(f64, u64)>> {
    let (Some(p_click), planned) =
        (optional_column::<Float64Array>(segment_ads, "p_click")?, column::<Int64Array>(segment_ads, "impressions_planned")?)
    else {
        return Ok(Vec::new());
    };
    let rows = (0..segment_ads.num_rows()).filter(|&row| p_click.is_valid(row) && planned.value(row) > 0);
    Ok(rows.map(|row| (p_click.value(row), planned.value(row).unsigned_abs())).collect())
}

const BINS: usize = 10;

fn drift(before: &[(f64, u64)], after: &[(f64, u64)]) -> Option<Drift> {
    let total = |rows: &[(f64, u64)]| rows.iter().map(|(_, planned)| planned).sum::<u64>();
    let mean = |rows: &[(f64, u64)]| rows.iter().map(|(p, planned)| p * *planned as f64).sum::<f64>() / total(rows) as f64;
    let mut sorted = before.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The prediction at each tenth of the planned impressions.
    let (mut cuts, mut so_far) = (Vec::new(), 0);
    for (p, planned) in &sorted {
        so_far += planned;
        while cuts.len() + 1 < BINS && so_far * BINS as u64 >= total(before) * (cuts.len() as u64 + 1) {
            cuts.push(*p);
        }
    }
    let counts = |rows: &[(f64, u64)]| {
        let mut counts = [0; BINS];
        rows.iter().for_each(|(p, planned)| counts[cuts.partition_point(|cut| cut < p)] += planned);
        counts
    };
    let psi = psi::of_counts(&counts(before), &counts(after))?;
    Some(Drift { mean_before: mean(before), mean_after: mean(after), psi })
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;
    use arrow::array::ArrayRef;
    use std::sync::Arc;

    fn promises(p_click: [f64; 2]) -> RecordBatch {
        let texts = |cells: [&str; 2]| Arc::new(StringArray::from(cells.to_vec())) as ArrayRef;
        RecordBatch::try_from_iter([
            ("segment_id", texts(["s", "s"])),
            ("ad_id", texts(["a", "b"])),
            ("p_click", Arc::new(Float64Array::from(p_click.to_vec())) as ArrayRef),
            ("impressions_planned", Arc::new(Int64Array::from(vec![10, 10])) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn what_was_promised_is_held_against_the_clicks() {
        let shown = |ad: &'static str, first: u64, clicks: u64| {
            (0..10).map(move |at| Seen { user: first + at, ad, clicked: at < clicks, ..Seen::default() })
        };
        let stranger = Seen { user: 77, ad: "of no table", clicked: true, ..Seen::default() };
        let rows = rows(&shown("a", 0, 1).chain(shown("b", 20, 1)).chain([stranger]).collect::<Vec<_>>());
        let (served, tonight) = (promises([0.2, 0.1]), promises([0.3, 0.1]));
        let found = measure(&EvaluateSettings::default(), &rows, &served, &tonight, None, &mut Vec::new()).unwrap().expect("known rows");
        assert_eq!((found.rows, found.rows_without, found.at_own_position, found.segments_judged), (20, 1, false, 0));
        // 10 x 0.2 + 10 x 0.1 promised, 2 clicks came.
        assert!((found.calibration.expect("clicks").value - 1.5).abs() < 1e-12, "{:?}", found.calibration);
        assert!((found.calibration_by_arm["champion"].expect("clicks").value - 1.5).abs() < 1e-12);
        let drift = found.drift.expect("two tables");
        assert!((drift.mean_before - 0.15).abs() < 1e-12 && (drift.mean_after - 0.2).abs() < 1e-12 && drift.psi > 0.25, "{drift:?}");
        let unmoved = measure(&EvaluateSettings::default(), &rows, &served, &served, None, &mut Vec::new()).unwrap().expect("known rows");
        assert!(unmoved.drift.expect("two tables").psi.abs() < 1e-12);
    }

    #[test]
    fn a_table_that_promised_nothing_of_the_day_is_said() {
        let mut skipped = Vec::new();
        let rows = rows(&[Seen { ad: "of no table", ..Seen::default() }]);
        let (served, tonight) = (promises([0.2, 0.1]), promises([0.2, 0.1]));
        assert_eq!(measure(&EvaluateSettings::default(), &rows, &served, &tonight, None, &mut skipped).unwrap(), None);
        assert!(skipped[0].starts_with("predictions: no impression"), "{skipped:?}");
    }
}
