//! The allocation against an exact solver and on plain tables: the bound holds, the plan keeps every constraint, and what cannot be
//! planned is refused in one sentence.

use microlp::{ComparisonOp, OptimizationDirection};
use nightmarket::allocate::explain::mendings;
use nightmarket::allocate::{Problem, allocate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// The last three were once beyond the search: kinks in the way of a step, a plan that stayed where it was, steps from kink to kink.
#[test]
fn the_bounds_enclose_the_optimum_under_every_kind_of_constraint() {
    for seed in (0..300).chain([329, 502, 7607]) {
        let problem = random_problem(&mut ChaCha8Rng::seed_from_u64(seed));
        let plan = allocate(&problem, None, 1).unwrap();
        let certificate = plan.certificate;
        assert!(certificate.gap <= 1e-4 && certificate.max_violation == 0.0, "{seed} {certificate:?}");
        let whole: Vec<f64> = plan.whole.iter().map(|n| *n as f64).collect();
        assert!(problem.violation(&whole) <= 1e-12, "{seed}");
        if let Some(optimum) = optimum(&problem, &problem.value) {
            let hair = 1e-7 * optimum.abs().max(1.0);
            let enclosed = certificate.upper_bound >= optimum - hair && certificate.value <= optimum + hair;
            assert!(enclosed, "{seed} {optimum} {certificate:?}");
        }
        assert_eq!(plan, allocate(&problem, None, 2).unwrap(), "{seed}");
        let warm = allocate(&problem, Some(&plan.prices), 1).unwrap().certificate;
        assert!(warm.gap <= 1e-4, "{seed} {warm:?}");
    }
}

fn random_problem(random: &mut ChaCha8Rng) -> Problem {
    let (segments, ads, groups) = (random.random_range(1..12), random.random_range(1..8), random.random_range(0..3));
    let mut some = |most: f64| if random.random_bool(0.1) { 0.0 } else { random.random_range(0.0..most) };
    let supply = (0..segments).map(|_| some(2000.0)).collect();
    let budget = (0..ads).map(|ad| if ad == 3 { f64::INFINITY } else { some(300e6) }).collect();
    let mut problem = Problem::of_budgets(supply, budget);
    problem.group_budget = (0..groups).map(|_| some(400e6)).collect();
    problem.penalty = 30.0;
    for ad in 0..ads {
        problem.group[ad] = random.random_range(0..=groups);
        problem.minimum[ad] = if random.random_bool(0.3) { random.random_range(0.0..1500.0) } else { 0.0 };
        problem.min_roi[ad] = if random.random_bool(0.3) { random.random_range(0.0..4e-6) } else { 0.0 };
    }
    for segment in 0..segments {
        for ad in (0..ads).filter(|_| random.random_bool(0.7)).collect::<Vec<_>>() {
            problem.segment.push(segment);
            problem.ad.push(ad);
            problem.value.push(if random.random_bool(0.1) { 0.0 } else { random.random_range(0.0..3.0) });
            problem.cost.push(if random.random_bool(0.1) { 0.0 } else { random.random_range(0f64..2e6).round() });
            problem.cap.push(if random.random_bool(0.1) { f64::INFINITY } else { random.random_range(0.0..1000.0) });
        }
    }
    problem
}

/// What an impression of a minimum costs buys a thousand others, each worth twice as much: ten of the penalty are cheaper.
#[test]
fn the_least_shortfall_is_told_where_the_plan_of_most_value_is_short_by_more() {
    let of_group = |micros: f64| Problem {
        minimum: vec![10.0, 0.0],
        group_budget: vec![micros],
        penalty: 10.0,
        segment: vec![0, 0],
        ad: vec![0, 1],
        value: vec![0.5, 1.0],
        cost: vec![1e6, 1e3],
        cap: vec![f64::INFINITY; 2],
        ..Problem::of_budgets(vec![1e6], vec![100e6; 2])
    };
    for (budget, least) in [(12e6, 0.0), (6e6, 4.0)] {
        let problem = of_group(budget);
        let plan = allocate(&problem, None, 1).unwrap();
        assert!(plan.certificate.shortfall > 9.9, "{:?}", plan.certificate);
        let found = mendings(&problem, &plan, 1).unwrap();
        let lacking: f64 = found.iter().map(|mending| mending.lower_minimum_by).sum();
        assert!((lacking - least).abs() < 1e-2, "{budget}: {found:?}");
        assert!(found.iter().all(|mending| mending.ad == 0 && mending.raise_budget_by.is_none()), "the group pays: {found:?}");
    }
    // Alone and with money for six, the ad needs that of four more.
    let alone = Problem { group_budget: vec![], budget: vec![6e6, 100e6], ..of_group(0.0) };
    let found = mendings(&alone, &allocate(&alone, None, 1).unwrap(), 1).unwrap();
    assert!((found[0].lower_minimum_by - 4.0).abs() < 1e-2 && (found[0].raise_budget_by.unwrap() - 4e6).abs() < 1e4, "{found:?}");
}

#[test]
fn no_plan_is_short_of_the_minima_by_less_than_the_mendings_say() {
    let mut infeasible = 0;
    for seed in 0..100 {
        let problem = random_problem(&mut ChaCha8Rng::seed_from_u64(seed));
        let plan = allocate(&problem, None, 1).unwrap();
        let found = mendings(&problem, &plan, 1).unwrap();
        assert_eq!(found, mendings(&problem, &plan, 2).unwrap(), "{seed}");
        let lacking: f64 = found.iter().map(|mending| mending.lower_minimum_by).sum();
        // Nothing is worth much, a missing impression costs one: the optimum is the least shortfall.
        let worth: Vec<f64> = problem.value.iter().map(|value| 1e-6 * value).collect();
        let Some(optimum) = optimum(&Problem { penalty: 1.0, ..problem.clone() }, &worth) else { continue };
        let hair = 2e-4 * problem.minimum.iter().sum::<f64>() + 0.2;
        assert!((lacking + optimum).abs() <= hair, "{seed}: {lacking} {optimum}");
        infeasible += u64::from(lacking > 1.0);
    }
    assert!(infeasible > 20, "{infeasible}");
}

/// Of the plan of most `worth`, by the simplex method; none where it fails on a degenerate instance.
fn optimum(problem: &Problem, worth: &[f64]) -> Option<f64> {
    let mut lp = microlp::Problem::new(OptimizationDirection::Maximize);
    let x: Vec<_> = (0..problem.value.len()).map(|pair| lp.add_var(worth[pair], (0.0, problem.cap[pair]))).collect();
    let terms = |of: &dyn Fn(usize) -> bool, coefficient: &dyn Fn(usize) -> f64| -> Vec<_> {
        (0..x.len()).filter(|pair| of(*pair)).map(|pair| (x[pair], coefficient(pair))).collect()
    };
    let cost = |pair: usize| problem.cost[pair] / 1e6;
    for (segment, supply) in problem.supply.iter().enumerate() {
        lp.add_constraint(&terms(&|pair| problem.segment[pair] == segment, &|_| 1.0)[..], ComparisonOp::Le, *supply);
    }
    for ad in 0..problem.budget.len() {
        let mine = |pair: usize| problem.ad[pair] == ad;
        if problem.budget[ad].is_finite() {
            lp.add_constraint(&terms(&mine, &cost)[..], ComparisonOp::Le, problem.budget[ad] / 1e6);
        }
        let below = |pair: usize| problem.min_roi[ad] * problem.cost[pair] - problem.value[pair];
        if problem.min_roi[ad] > 0.0 {
            lp.add_constraint(&terms(&mine, &below)[..], ComparisonOp::Le, 0.0);
        }
        if problem.minimum[ad] > 0.0 {
            let short = lp.add_var(-problem.penalty, (0.0, f64::INFINITY));
            let mut row = terms(&mine, &|_| 1.0);
            row.push((short, 1.0));
            lp.add_constraint(&row[..], ComparisonOp::Ge, problem.minimum[ad]);
        }
    }
    for (group, budget) in problem.group_budget.iter().enumerate() {
        let ours = |pair: usize| problem.group_of(problem.ad[pair]) == Some(group);
        lp.add_constraint(&terms(&ours, &cost)[..], ComparisonOp::Le, budget / 1e6);
    }
    lp.solve().ok().map(|solution| solution.objective())
}

// -------------------------------------------------------------------------------------------------------------------- tables

fn command(folder: &Path, tables: [&str; 3], more: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    for (flag, table) in ["--candidates", "--segments", "--ads"].into_iter().zip(tables) {
        program.args([flag, table]);
    }
    program.arg("--out").arg(folder).args(["--output", "json"]).args(more);
    let args: Vec<_> = program.get_args().map(ToOwned::to_owned).collect();
    Command::new(env!("CARGO_BIN_EXE_nightmarket")).arg("allocate").args(args).output().expect("starts")
}

#[track_caller]
fn results(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const FIXTURES: [&str; 3] =
    ["testdata/fixtures/allocation_candidates.csv", "testdata/fixtures/allocation_segments.csv", "testdata/fixtures/allocation_ads.csv"];

/// The optimum comes from another program (HiGHS).
#[test]
fn the_fixture_reaches_its_optimum_with_the_same_bytes_on_any_threads_and_starts_warm() {
    let expected: Value = serde_json::from_str(&std::fs::read_to_string("testdata/fixtures/expected.json").unwrap()).unwrap();
    let optimum = expected["allocation"]["optimum"].as_f64().unwrap();
    let folders = [(); 4].map(|()| TempDir::new().unwrap());
    let mut found = Vec::new();
    for (folder, threads) in folders.iter().zip(["1", "2", "8"]) {
        found.push(results(&command(folder.path(), FIXTURES, &["--threads", threads])));
    }
    let prices = folders[0].path().join("prices.json");
    found.push(results(&command(folders[3].path(), FIXTURES, &["--prices", prices.to_str().unwrap()])));
    for found in &found {
        let number = |name: &str| found[name].as_f64().unwrap();
        assert!(number("upper_bound") >= optimum && number("lower_bound") <= optimum * (1.0 + 1e-12), "{optimum} {found}");
        assert!(number("gap") <= 1e-4 && number("max_violation") == 0.0, "{found}");
        assert_eq!(found["campaigns"].as_array().unwrap().len(), 40);
    }
    for file in ["plan.parquet", "campaigns.parquet", "prices.json", "certificate.json"] {
        let bytes = |folder: &TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert!(bytes(&folders[0]) == bytes(&folders[1]) && bytes(&folders[0]) == bytes(&folders[2]), "{file}");
    }
    assert!(found[3]["iterations"].as_u64() < found[0]["iterations"].as_u64(), "{} {}", found[3]["iterations"], found[0]["iterations"]);
}

const CANDIDATES: &str =
    "segment_id,ad_id,value_per_impression,cost_per_impression,max_impressions\ns,a,2,0.5,100\ns,b,1,0.5,\nempty,c,1,1,\n";
const SEGMENTS: &str = "segment_id,impressions\ns,150\nempty,0\n";
const ADS: &str = "ad_id,budget,min_impressions\na,20,\nb,1000,\nc,5,\nd,5,\ne,0,10\n";

fn on(candidates: &str, segments: &str, ads: &str) -> Output {
    let folder = TempDir::new().unwrap();
    let paths = [("candidates.csv", candidates), ("segments.csv", segments), ("ads.csv", ads)].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    command(&folder.path().join("out"), [&paths[0], &paths[1], &paths[2]], &[])
}

#[test]
fn every_ad_is_told_what_holds_it_back() {
    let found = results(&on(CANDIDATES, SEGMENTS, ADS));
    assert!((found["value_whole"].as_f64().unwrap() - (2.0 * 40.0 + 110.0 - 10.0 * 20.0)).abs() < 1e-6, "{found}");
    let told: Vec<_> = found["campaigns"].as_array().unwrap().iter().map(|campaign| campaign["binding_constraint"].clone()).collect();
    // The last has neither money nor a segment: money comes first.
    assert_eq!(told, ["budget", "supply", "no_supply", "no_segment", "budget"]);
    assert_eq!(found["campaigns"][0]["impressions"], 40);
    assert_eq!(found["campaigns"][0]["unspent_reason"], Value::Null);
    // A unit of money buys two impressions, each worth one more than those of the other ad.
    assert!((found["campaigns"][0]["shadow_price"].as_f64().unwrap() - 2.0).abs() < 1e-2, "{found}");
    assert_eq!(found["campaigns"][4]["mend"]["lower_min_impressions_by"], 10.0);
    assert_eq!((&found["shortfall"], &found["least_shortfall"]), (&Value::from(10.0), &Value::from(10.0)));
}

#[test]
fn bad_tables_are_refused_with_file_column_and_row() {
    let candidates = |row: &str| format!("{CANDIDATES}{row}\n");
    for (output, words) in [
        (on(&candidates("s,c,-1,1,"), SEGMENTS, ADS), ["candidates.csv", "value_per_impression", "row 4"]),
        (on(&candidates("s,c,NaN,1,"), SEGMENTS, ADS), ["candidates.csv", "value_per_impression", "row 4"]),
        (on(&candidates("s,c,much,1,"), SEGMENTS, ADS), ["candidates.csv", "value_per_impression", "row 4"]),
        (on(&candidates("s,zz,1,1,"), SEGMENTS, ADS), ["candidates.csv", "ad_id", "row 4"]),
        (on(&candidates("s,a,1,1,"), SEGMENTS, ADS), ["candidates.csv", "stands in row 1", "row 4"]),
        (on(CANDIDATES, SEGMENTS, &format!("{ADS}f,-3,\n")), ["ads.csv", "budget", "row 6"]),
        (on(CANDIDATES, "segment_id,impressions\n", ADS), ["segments.csv", "no rows", "deliver"]),
    ] {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(30), "{told}");
        assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
    }
    let output = on(CANDIDATES, SEGMENTS, "ad_id\na\n");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
