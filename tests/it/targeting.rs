//! Segments and targeting on tables made here: rules that hold on every instance.

use nightmarket::targeting::allocate::{Problem, allocate};
use std::path::Path;

/// The fixture's optimum comes from another program (HiGHS).
#[test]
fn the_plan_comes_close_to_the_optimum_and_its_bound_holds() {
    let rows = |name: &str| -> Vec<Vec<f64>> {
        let text = std::fs::read_to_string(Path::new("testdata/fixtures").join(name)).unwrap();
        text.lines().skip(1).map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect()).collect()
    };
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("testdata/fixtures/expected.json").unwrap()).unwrap();
    let optimum = expected["allocation"]["optimum"].as_f64().unwrap();
    let candidates = rows("allocation_candidates.csv");
    let column = |at: usize| candidates.iter().map(move |row| row[at]);
    let problem = Problem {
        supply: rows("allocation_segments.csv").iter().map(|row| row[1]).collect(),
        budget: rows("allocation_ads.csv").iter().map(|row| row[1] * 1e6).collect(),
        segment: column(0).map(|id| id as usize).collect(),
        group: column(1).map(|id| id as usize).collect(),
        value: column(2).collect(),
        cost: column(3).map(|cost| cost * 1e6).collect(),
        cap: column(4).collect(),
    };
    let started = std::time::Instant::now();
    let plan = allocate(&problem).unwrap();
    let certificate = plan.certificate;
    eprintln!("{certificate:?} in {:?}", started.elapsed());
    assert!(certificate.upper_bound >= optimum * (1.0 - 1e-12), "{certificate:?}");
    assert!(certificate.value <= optimum * (1.0 + 1e-9), "{certificate:?}");
    assert!(certificate.gap < 1e-4 && certificate.gap_whole < 1e-3, "{certificate:?}");
    let binding = plan.price.iter().filter(|price| **price > 0.0).count();
    assert_eq!(binding as u64, expected["allocation"]["binding_budgets"].as_u64().unwrap());
}
