//! An experiment's results in words and columns.

use super::checks::describe;
use super::experiment::{Effect, Held, Outcome, Results};
use std::collections::BTreeMap;
use std::fmt;

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "units   {}\n", split(&self.units))?;
        outcomes(f, &self.metrics)?;
        if let Some(breakdown) = &self.breakdown {
            for (level, found) in &breakdown.levels {
                let units = split(&found.units);
                writeln!(f, "\n{} = {level}: {units}", breakdown.column)?;
                outcomes(f, &found.metrics)?;
                writeln!(f, "{}", describe(&found.checks))?;
            }
        }
        write!(f, "\n{}", describe(&self.checks))?;
        self.assumptions.iter().try_for_each(|assumption| write!(f, "\nassumes {assumption}"))
    }
}

fn split(units: &BTreeMap<String, u64>) -> String {
    units.iter().map(|(arm, units)| format!("{arm} {units}")).collect::<Vec<_>>().join(", ")
}

const WIDTHS: [usize; 7] = [24, 12, 12, 12, 10, 22, 22];

fn row(f: &mut fmt::Formatter<'_>, cells: [&str; 7], last: &str) -> fmt::Result {
    for (i, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        // Names to the left, numbers to the right.
        if i < 2 { write!(f, "{cell:<width$} ")? } else { write!(f, "{cell:>width$} ")? }
    }
    writeln!(f, "{last:>10}")
}

fn outcomes(f: &mut fmt::Formatter<'_>, metrics: &BTreeMap<String, BTreeMap<String, Outcome>>) -> fmt::Result {
    if metrics.is_empty() {
        return writeln!(f, "no comparison: see the checks");
    }
    row(f, ["metric", "arm", "control", "value", "lift", "95 % interval", "always valid"], "p adjusted")?;
    for (metric, arms) in metrics {
        for (arm, outcome) in arms {
            let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.6}"));
            let [lift, interval, valid] = match (&outcome.relative, &outcome.absolute) {
                (Some(effect), _) => effect_cells(effect, |share| format!("{:+.2}%", 100.0 * share)),
                (None, Some(effect)) => effect_cells(effect, |change| format!("{change:+.5}")),
                (None, None) => ["-", "-", "-"].map(str::to_owned),
            };
            let p = outcome
                .p_adjusted
                .or_else(|| outcome.guardrail.as_ref()?.p_adjusted)
                .map_or_else(|| "-".to_owned(), |p| format!("{p:.2e}"));
            row(f, [metric, arm, &value(outcome.control_value), &value(outcome.value), &lift, &interval, &valid], &p)?;
            beside(f, outcome)?;
        }
    }
    Ok(())
}

fn effect_cells(effect: &Effect, show: impl Fn(f64) -> String) -> [String; 3] {
    let interval =
        |ends: Option<[f64; 2]>| ends.map_or_else(|| "unbounded".to_owned(), |[low, high]| format!("[{}, {}]", show(low), show(high)));
    [show(effect.estimate), interval(effect.ci95), interval(effect.always_valid_ci95)]
}

/// What only some metrics have, a line each.
fn beside(f: &mut fmt::Formatter<'_>, outcome: &Outcome) -> fmt::Result {
    let stated = |size: f64, relative: bool| if relative { format!("{:+.2} %", 100.0 * size) } else { format!("{size:+}") };
    if let Some(guardrail) = &outcome.guardrail {
        let verdict = match guardrail.verdict {
            Held::Holds => "holds",
            Held::Broken => "is broken",
            Held::Unknown => "is not decided by these data",
        };
        writeln!(f, "    guardrail of {} {verdict}", stated(guardrail.margin, guardrail.margin_is_relative))?;
    }
    if let Some(cuped) = &outcome.cuped {
        writeln!(f, "    CUPED took out {:.1} % of the variance (theta {:.4})", 100.0 * cuped.variance_removed, cuped.theta)?;
    }
    if let Some(detectable) = outcome.minimum_detectable.and_then(|detectable| detectable.relative) {
        writeln!(f, "    so many units find {:.2} % four times in five", 100.0 * detectable)?;
    }
    if let Some(power) = &outcome.power {
        let (chance, needed) = (power.power.map_or(f64::NAN, |power| 100.0 * power), power.units_needed.unwrap_or(0));
        writeln!(
            f,
            "    {} would be found with {chance:.0} %; 80 % take {needed} units",
            stated(power.expected, power.expected_is_relative)
        )?;
    }
    if let Some([low, high]) = outcome.bootstrap.and_then(|bootstrap| bootstrap.relative_ci95) {
        writeln!(f, "    bootstrap by unit [{:+.2} %, {:+.2} %]", 100.0 * low, 100.0 * high)?;
    }
    Ok(())
}
