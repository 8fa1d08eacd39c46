//! `nightmarket evaluate ab|ope|metrics` as others call it: the numbers of other libraries under the promised keys, published results on
//! real logs, and for every kind of bad table a check with a name instead of a wrong number.

use nightmarket::statistics::ab;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const AB_USERS: &str = "testdata/fixtures/ab_users.csv";
const ROUNDS: &str = "testdata/fixtures/ope_rounds.csv";
const SCORES: &str = "testdata/fixtures/scores.csv";

const AB: &str =
    "ab --unit user_id --arm arm --control control --metric ctr=clicks/impressions --metric revenue --cuped revenue=pre_revenue";
const OPE: &str = "ope --lambda 10 --lambda-sub-gaussian 0.1 --bootstrap 200";
const METRICS: &str = "metrics --label label --score score_a --group user_id --bootstrap 100";

// ------------------------------------------------------------------------------------------------------------------- how it is called

struct Answer {
    code: i32,
    json: Value,
    stderr: String,
}

fn evaluate(command: &str, table: &Path) -> Answer {
    let mut program = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    program.arg("evaluate").args(command.split(' ')).args(["--output", "json", "--table"]).arg(table);
    let output = program.output().expect("starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    Answer { code: output.status.code().expect("an exit code"), json: serde_json::from_str(&text).unwrap_or_default(), stderr }
}

#[track_caller]
fn found(command: &str, table: &Path) -> Value {
    let answer = evaluate(command, table);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    answer.json
}

/// The status and the finding of the worst check of a name.
fn check<'a>(json: &'a Value, name: &str) -> (&'a str, &'a str) {
    let rank = |status: &str| ["ok", "skipped", "warning", "failed"].iter().position(|known| *known == status).expect("a status");
    let named = json["checks"].as_array().expect("checks").iter().filter(|check| check["name"] == name);
    let worst = named.max_by_key(|check| rank(check["status"].as_str().expect("a status"))).unwrap_or_else(|| panic!("no {name}: {json}"));
    (worst["status"].as_str().expect("a status"), worst["finding"].as_str().expect("a finding"))
}

/// A table as rows of cells, the header first.
#[derive(Clone)]
struct Csv(Vec<Vec<String>>);

impl Csv {
    fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(path).expect("a fixture");
        Self(text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect())
    }

    fn place(&self, column: &str) -> usize {
        self.0[0].iter().position(|name| name == column).unwrap_or_else(|| panic!("no column {column}"))
    }

    fn numbers(&self, column: &str) -> Vec<f64> {
        let place = self.place(column);
        self.0[1..].iter().map(|row| row[place].parse().expect("a number")).collect()
    }

    /// One cell, by its row from 0.
    fn with(mut self, row: usize, column: &str, cell: &str) -> Self {
        let place = self.place(column);
        self.0[row + 1][place] = cell.to_owned();
        self
    }

    /// A column, in its place or after the last one.
    fn with_column(mut self, column: &str, of: impl Fn(usize, &[String]) -> String) -> Self {
        if !self.0[0].iter().any(|name| name == column) {
            self.0.iter_mut().for_each(|row| row.push(column.to_owned()));
        }
        let place = self.place(column);
        for (number, row) in self.0.iter_mut().skip(1).enumerate() {
            let cell = of(number, row);
            row[place] = cell;
        }
        self
    }

    fn without_column(mut self, column: &str) -> Self {
        let place = self.place(column);
        self.0.iter_mut().for_each(|row| drop(row.remove(place)));
        self
    }

    fn keep(mut self, of: impl Fn(usize, &[String]) -> bool) -> Self {
        let rows = self.0.split_off(1);
        self.0.extend(rows.into_iter().enumerate().filter(|(number, row)| of(*number, row)).map(|(_, row)| row));
        self
    }

    fn text(&self) -> String {
        self.0.iter().map(|row| row.join(",") + "\n").collect()
    }
}

/// The answer on a table of its own.
fn on(command: &str, table: &Csv) -> Answer {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("table.csv");
    std::fs::write(&path, table.text()).expect("written");
    evaluate(command, &path)
}

/// The table must be refused by this check, in a sentence that says these words, with the exit code of a broken contract.
#[track_caller]
fn refused(command: &str, table: &Csv, name: &str, words: &str) -> Value {
    let answer = on(command, table);
    assert_eq!(answer.code, 30, "{}", answer.stderr);
    let (status, finding) = check(&answer.json, name);
    assert_eq!(status, "failed", "{finding}");
    assert!(finding.contains(words), "{finding}");
    assert!(answer.stderr.contains(finding), "{}", answer.stderr);
    answer.json
}

/// The numbers stand, and this check says what to look at.
#[track_caller]
fn warned(command: &str, table: &Csv, name: &str, words: &str) -> Value {
    let answer = on(command, table);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let (status, finding) = check(&answer.json, name);
    assert_eq!(status, "warning", "{finding}");
    assert!(finding.contains(words), "{finding}");
    answer.json
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string("testdata/fixtures/expected.json").expect("a fixture")).expect("JSON")
}

/// Every number of `expected` stands under the same key of `found`.
#[track_caller]
fn assert_agrees(found: &Value, expected: &Value, tolerance: f64, path: &str) {
    match expected {
        Value::Object(keys) => keys.iter().for_each(|(key, value)| assert_agrees(&found[key], value, tolerance, &format!("{path}/{key}"))),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| assert_agrees(&found[i], value, tolerance, &format!("{path}/{i}")));
        }
        expected => {
            let (found, expected) = (found.as_f64().unwrap_or_else(|| panic!("{path}: {found}")), expected.as_f64().expect("a number"));
            assert!((found / expected - 1.0).abs() <= tolerance, "{path}: {found} is not {expected}");
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------------ experiments

#[test]
fn an_experiment_says_what_gbstats_says_under_the_promised_keys() {
    let (json, expected) = (found(AB, Path::new(AB_USERS)), expected());
    let revenue = &json["metrics"]["revenue"]["treatment"];
    assert_agrees(&json["metrics"]["ctr"]["treatment"], &expected["ab"]["ctr_ratio"], 1e-10, "ctr");
    assert_agrees(revenue, &expected["ab"]["revenue_cuped"], 1e-10, "revenue");
    assert_agrees(&revenue["cuped"]["theta"], &expected["cuped_theta"], 1e-10, "theta");
    assert_agrees(&revenue["cuped"]["unadjusted_absolute"], &expected["ab"]["revenue_mean"]["absolute"], 1e-10, "absolute");
    assert_agrees(&revenue["cuped"]["unadjusted_relative"], &expected["ab"]["revenue_mean"]["relative"], 1e-10, "relative");
    assert_agrees(&json["srm"]["p"], &expected["ab"]["srm_p_5050_split"], 1e-10, "srm");
    let checks = json["checks"].as_array().expect("checks");
    assert!(checks.iter().all(|check| check["status"] == "ok"), "{checks:?}");
    let srm = checks.iter().find(|check| check["name"] == "srm").expect("named");
    assert_eq!(srm["p"], json["srm"]["p"]);
}

#[test]
fn rows_of_a_unit_are_summed_wherever_they_stand() {
    // Every user's row falls apart into two, and all are shuffled.
    let whole = Csv::read(AB_USERS);
    let halves = |second: bool| {
        let mut part = whole.clone();
        for column in ["impressions", "clicks", "revenue", "pre_revenue"] {
            let numbers = whole.numbers(column);
            let cut = |number: f64| if column == "impressions" || column == "clicks" { (number / 2.0).floor() } else { number / 4.0 };
            part = part.with_column(column, |row, _| if second { numbers[row] - cut(numbers[row]) } else { cut(numbers[row]) }.to_string());
        }
        part
    };
    let (mut rows, more) = (halves(false), halves(true));
    rows.0.extend(more.0.into_iter().skip(1));
    rows.0[1..].shuffle(&mut ChaCha8Rng::seed_from_u64(1));
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("rows.csv");
    std::fs::write(&path, rows.text()).expect("written");
    let json = found(AB, &path);
    assert_agrees(&json["metrics"]["ctr"]["treatment"], &expected()["ab"]["ctr_ratio"], 1e-10, "ctr");
    assert_agrees(&json["metrics"]["revenue"]["treatment"], &expected()["ab"]["revenue_cuped"], 1e-10, "revenue");
    assert_eq!(json, found(&format!("{AB} --threads 1"), &path), "the threads change nothing");

    // The same experiment as a spec.
    let spec = folder.path().join("experiment.toml");
    let text = "unit = \"user_id\"\narm = \"arm\"\ncontrol = \"control\"\n[metric.ctr]\nvalue = \"clicks/impressions\"\n\
                [metric.revenue]\nvalue = \"revenue\"\ncuped = \"pre_revenue\"\n";
    std::fs::write(&spec, text).expect("written");
    assert_eq!(json, found(&format!("ab --spec {}", spec.display()), &path));
}

/// Three arms of 3,000 users on two platforms: `better` clicks a third more, `same` does not.
fn three_arms() -> Csv {
    let mut generator = ChaCha8Rng::seed_from_u64(5);
    let habits = Beta::new(2.0, 18.0).expect("shapes");
    let mut text = "user,arm,platform,impressions,clicks,cost,revenue\n".to_owned();
    for user in 0..9_000 {
        let arm = ["control", "better", "same"][user % 3];
        let (seen, rate) = (generator.random_range(5..30), habits.sample(&mut generator) * if arm == "better" { 1.33 } else { 1.0 });
        let clicks = (0..seen).filter(|_| generator.random_bool(rate)).count();
        let platform = if generator.random_bool(0.5) { "ios" } else { "web" };
        let cost = 0.1 * clicks as f64 + 0.01;
        writeln!(text, "{user},{arm},{platform},{seen},{clicks},{cost},{}", 2.0 * cost * generator.random::<f64>())
            .expect("a string takes any text");
    }
    Csv(text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

#[test]
fn several_arms_metrics_guardrails_levels_and_a_bootstrap() {
    let command = "ab --unit user --arm arm --control control --metric ctr=clicks/impressions --metric roas=revenue/cost \
                   --metric roi=(revenue-cost)/cost --metric arpu=revenue --proportion clicker=clicks>0 --guardrail views=impressions:-5% \
                   --guardrail spend=cost:1% --expect ctr=5% --by platform --bootstrap 400 --share control=1 --share better=1 --share same=1";
    let answer = on(command, &three_arms());
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let (json, metrics) = (&answer.json, &answer.json["metrics"]);
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));

    // What is planted is found, and only that.
    assert!(number(&metrics["ctr"]["better"]["relative"]["ci95"][0]) > 0.25, "{metrics}");
    assert!(number(&metrics["ctr"]["same"]["p_adjusted"]) > 0.05, "{metrics}");
    // A shift by one changes neither the difference nor what is known of it.
    assert_agrees(&metrics["roi"]["same"]["absolute"]["estimate"], &metrics["roas"]["same"]["absolute"]["estimate"], 1e-9, "roi");
    assert_agrees(&metrics["roi"]["same"]["absolute"]["p"], &metrics["roas"]["same"]["absolute"]["p"], 1e-9, "roi");

    // p-values are adjusted over metrics and arms, guardrails apart.
    let names = ["arpu", "clicker", "ctr", "roas", "roi"];
    let each = || names.iter().flat_map(|name| ["better", "same"].map(|arm| &metrics[*name][arm]));
    let adjusted = ab::benjamini_hochberg(&each().map(|outcome| number(&outcome["absolute"]["p"])).collect::<Vec<_>>());
    each().zip(&adjusted).for_each(|(outcome, p)| assert!((number(&outcome["p_adjusted"]) - p).abs() < 1e-12, "{outcome}"));
    let guardrails = || ["spend", "views"].iter().flat_map(|name| ["better", "same"].map(|arm| &metrics[*name][arm]["guardrail"]));
    let adjusted = ab::holm(&guardrails().map(|guardrail| number(&guardrail["p"])).collect::<Vec<_>>());
    guardrails().zip(&adjusted).for_each(|(guardrail, p)| assert!((number(&guardrail["p_adjusted"]) - p).abs() < 1e-12, "{guardrail}"));
    let verdict = |name: &str, arm: &str| metrics[name][arm]["guardrail"]["verdict"].as_str().expect("a verdict").to_owned();
    assert_eq!([verdict("views", "better"), verdict("views", "same")], ["holds", "holds"], "{metrics}");
    assert_eq!([verdict("spend", "better"), verdict("spend", "same")], ["broken", "unknown"], "{metrics}");

    // Beside the formulas: the bootstrap and the power.
    for (name, arm) in [("ctr", "better"), ("arpu", "same"), ("clicker", "better")] {
        let outcome = &metrics[name][arm];
        let width = |ends: &Value| number(&ends[1]) - number(&ends[0]);
        let ratio = width(&outcome["bootstrap"]["relative_ci95"]) / width(&outcome["relative"]["ci95"]);
        assert!((0.85..1.15).contains(&ratio), "{name} of {arm}: {ratio}");
    }
    let outcome = &metrics["ctr"]["same"];
    let (power, detectable) = (number(&outcome["power"]["power"]), number(&outcome["minimum_detectable"]["relative"]));
    assert_eq!(power < 0.8, detectable > 0.05, "{outcome}");
    assert_eq!(number(&outcome["power"]["units_needed"]) > 6000.0, power < 0.8, "{outcome}");

    // Levels hold every unit once and say of themselves what the whole says of itself.
    let units = |level: &str| json["breakdown"]["levels"][level]["units"]["control"].as_u64().expect("units");
    assert_eq!(units("ios") + units("web"), 3000);
    assert!(number(&json["breakdown"]["levels"]["ios"]["metrics"]["ctr"]["better"]["relative"]["ci95"][0]) > 0.15);
    assert_eq!(check(json, "srm").0, "ok");
}

#[test]
fn an_arm_without_units_or_with_one_compares_nothing() {
    let table = Csv::read(AB_USERS);
    let arm = table.place("arm");
    let only = |name: &'static str| table.clone().keep(|_, row| row[arm] == name);
    for (table, words) in [
        (only("treatment"), "arm control has no units"),
        (only("control"), "only arm control has units"),
        (table.clone().keep(|row, cells| cells[arm] != "control" || row == 0), "a single unit in control"),
        (table.clone().keep(|_, _| false), "the table has no units"),
    ] {
        assert_eq!(refused(AB, &table, "empty_arm", words)["metrics"], serde_json::json!({}));
    }
    refused(&format!("{AB} --share control=0.5 --share third=0.5"), &table, "empty_arm", "arm third has no units");
}

#[test]
fn a_metric_without_numbers_is_withheld_and_the_others_stand() {
    let table = Csv::read(AB_USERS);
    let zero = table.clone().with_column("clicks", |_, _| "0".into());
    let not_finite = |cell| table.clone().with(7, "revenue", cell);
    for (table, metric, other, name, words) in [
        (zero, "ctr", "revenue", "all_zero_metric", "ctr is 0 for every unit"),
        (not_finite("NaN"), "revenue", "ctr", "not_finite", "revenue is NaN or infinite for 1 of 8060 units"),
        (not_finite("inf"), "revenue", "ctr", "not_finite", "revenue is NaN or infinite for 1 of 8060 units"),
    ] {
        let json = refused(AB, &table, name, words);
        let withheld = &json["metrics"][metric]["treatment"];
        assert!(withheld["absolute"].is_null() && withheld["value"].is_null() && withheld["relative"].is_null(), "{withheld}");
        assert!(json["metrics"][other]["treatment"]["absolute"]["estimate"].is_f64());
    }
    let constant = table.clone().with_column("clicks", |_, row| row[2].clone());
    refused(AB, &constant, "no_variation", "the same for every unit");
    let words = table.clone().with(5000, "revenue", "dear");
    refused(AB, &words, "text_metric", "column revenue holds text, such as \"dear\", in 1 rows");
    refused(&format!("{AB} --metric who=arm"), &table, "text_metric", "column arm holds text");
    refused(&format!("{AB} --proportion views=impressions"), &table, "not_a_proportion", "values other than 0 and 1");
    let absent = on(&format!("{AB} --metric x=nothing"), &table);
    assert_eq!(absent.code, 2);
    assert!(absent.stderr.contains("nothing") && absent.stderr.contains("pre_revenue"), "{}", absent.stderr);
}

#[test]
fn units_that_are_in_both_arms_nowhere_or_too_heavy_are_named() {
    let table = Csv::read(AB_USERS);
    let arm = table.place("arm");
    let in_both = |units: usize| {
        let mut both = table.clone();
        let mut more = table.0[1..=units].to_vec();
        more.iter_mut().for_each(|row| row[arm] = "treatment".into());
        both.0.extend(more);
        both
    };
    let json = warned(AB, &in_both(1), "units_in_several_arms", "1 of 8060 units");
    assert_eq!(json["units"]["control"], 3999, "it is in neither");
    assert_eq!(refused(AB, &in_both(500), "units_in_several_arms", "500 of 8060 units")["metrics"], serde_json::json!({}));
    warned(AB, &table.clone().with(3, "arm", ""), "missing_keys", "1 no arm");
    warned(AB, &table.clone().with(3, "user_id", ""), "missing_keys", "1 rows name no unit");
    warned(AB, &table.clone().with(3, "revenue", ""), "missing_values", "revenue is empty for 1 of 8060 units");
    warned(AB, &table.clone().with(3, "revenue", "1e6"), "metric_outliers", "one unit carries 100 %");
    warned(AB, &table.clone().keep(|row, _| row % 100 == 0), "too_little_data", "active of");
    let doubled = table
        .clone()
        .with_column("revenue", |_, row| if row[1] == "treatment" { format!("{}0", row[4].replacen('.', "", 1)) } else { row[4].clone() });
    warned(AB, &doubled, "suspicious_uplift", "more often a mistake");
    let json =
        refused(&format!("{AB} --share control=0.9 --share treatment=0.1"), &table, "srm", "the assignment or the logging is broken");
    assert_eq!(json["srm"]["alarm"], true);
    let few_controls = table.clone().keep(|row, cells| cells[arm] != "control" || row % 4 != 0);
    warned(AB, &few_controls, "srm", "if another was planned");
}

#[test]
fn a_unit_without_one_metric_still_counts_for_the_others() {
    let command = format!("{AB} --bootstrap 100");
    let [clean, broken] = [Csv::read(AB_USERS), Csv::read(AB_USERS).with(7, "revenue", "NaN")].map(|table| on(&command, &table).json);
    // Alike but for the p-value over all metrics, of which one has none.
    let ctr = |json: &Value| {
        let mut outcome = json["metrics"]["ctr"]["treatment"].clone();
        outcome.as_object_mut().expect("an outcome").remove("p_adjusted");
        outcome
    };
    assert!(ctr(&clean)["bootstrap"]["relative_ci95"][0].is_f64(), "{clean}");
    assert_eq!(ctr(&clean), ctr(&broken));
    assert!(broken["metrics"]["revenue"]["treatment"]["absolute"].is_null(), "{broken}");
}

#[test]
fn a_breakdown_by_everybody_one_day_and_unripe_outcomes_are_named() {
    let table = Csv::read(AB_USERS);
    let json = refused(&format!("{AB} --by user_id"), &table, "breakdown_levels", "more than 100 values");
    assert!(json["breakdown"].is_null() && json["metrics"]["ctr"]["treatment"]["absolute"]["estimate"].is_f64());
    let day = |of: fn(usize) -> String| table.clone().with_column("at", move |row, _| of(row));
    let times = format!("{AB} --time at --window-days 7");
    let one_day = day(|row| format!("2026-03-01T{:02}:00:00Z", row % 24));
    warned(&times, &one_day, "days_of_data", "one day");
    warned(&times, &one_day, "label_maturity", "100.0 % of the rows are younger than 7 days");
    let two_weeks = day(|row| format!("2026-03-{:02}", 1 + row % 14));
    let json = warned(&times, &two_weeks, "label_maturity", "younger than 7 days");
    assert_eq!(check(&json, "days_of_data"), ("ok", "the table spans 14 days"));
    let ripe = on(&format!("{times} --as-of 2026-04-01"), &two_weeks);
    assert_eq!(check(&ripe.json, "label_maturity").0, "ok");
    refused(&times, &day(|_| "yesterday".into()), "not_a_time", "column at is no time in 8060 of 8060 rows");
}

#[test]
fn a_level_is_judged_by_its_own_checks_and_shows_no_lift_that_they_forbid() {
    // Every other control of a stretch is on the web and everybody else there on ios: the whole is split as planned, those two are not.
    let table = three_arms().with_column("platform", |row, _| {
        let platform = match row {
            0..4500 => "app",
            4500..8900 if row % 6 == 0 => "web",
            4500..8900 => "ios",
            _ => "tiny",
        };
        platform.to_owned()
    });
    let command = "ab --unit user --arm arm --control control --metric ctr=clicks/impressions --by platform \
                   --share control=1 --share better=1 --share same=1";
    let json = warned(command, &table, "levels_withheld", "ios fails srm; web fails empty_arm and srm");
    assert_eq!(check(&json, "srm").0, "ok");
    let levels = &json["breakdown"]["levels"];
    for (name, verdict) in [("app", "ok"), ("ios", "failed"), ("tiny", "warning"), ("web", "failed")] {
        let level = &levels[name];
        assert_eq!(level["verdict"], verdict, "{name}: {level}");
        let lift = level["metrics"]["ctr"]["better"]["relative"]["estimate"].as_f64();
        assert_eq!(lift.is_some(), verdict != "failed", "{name}: {level}");
    }
    assert!(check(&levels["tiny"], "too_little_data").1.contains("active of 33 units"), "{levels}");
    assert_eq!((levels["ios"]["srm"]["alarm"].clone(), levels["app"]["srm"]["alarm"].clone()), (true.into(), false.into()));

    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("table.csv");
    std::fs::write(&path, table.text()).expect("written");
    let mut program = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    let output = program.arg("evaluate").args(command.split(' ')).arg("--table").arg(&path).output().expect("starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let ios = text.split("platform = ios").nth(1).and_then(|rest| rest.split("platform = tiny").next()).expect("a level");
    assert!(ios.contains("no comparison") && ios.contains("FAILED  srm"), "{ios}");
}

// ------------------------------------------------------------------------------------------------------------------ logged decisions

#[test]
fn off_policy_values_are_obps_under_the_promised_keys() {
    let (json, expected) = (found(OPE, Path::new(ROUNDS)), &expected()["ope"]);
    assert_eq!(json["verdict"], "identified");
    assert_agrees(&json["ess"], &expected["ess"], 1e-10, "ess");
    assert_agrees(&json["max_weight"], &expected["max_weight"], 1e-10, "max_weight");
    let estimates = json["estimates"].as_object().expect("estimates");
    for (name, key) in [
        ("ips", "ips"),
        ("clipped_ips", "clipped_ips_10"),
        ("snips", "snips"),
        ("sub_gaussian_ips", "sub_gaussian_ips_0.1"),
        ("dm", "dm"),
        ("dr", "dr"),
        ("sndr", "sndr"),
        ("switch_dr", "switch_dr_10"),
        ("dros", "dros_10"),
        ("sub_gaussian_dr", "sub_gaussian_dr_0.1"),
    ] {
        let estimate = &estimates[name];
        assert_agrees(&estimate["value"], &expected[key], 1e-10, name);
        let [low, value, high] =
            [&estimate["ci95"][0], &estimate["value"], &estimate["ci95"][1]].map(|end| end.as_f64().expect("a number"));
        assert!(low < value && value < high, "{name}: {estimate}");
        assert!(estimate["assumption"].as_str().is_some_and(|assumption| !assumption.is_empty()));
    }
    assert_eq!(estimates.len(), 10);
}

#[test]
fn rows_without_a_user_are_users_of_their_own() {
    let table = Csv::read(ROUNDS);
    let half = |nobody: fn(usize) -> String| {
        table.clone().with_column("user_id", move |row, _| if row < 1000 { (row / 4).to_string() } else { nobody(row) })
    };
    let json = warned(OPE, &half(|_| String::new()), "missing_users", "user_id is empty in 1000 of 2000 rows");
    let width = |json: &Value| {
        let ends = &json["estimates"]["ips"]["ci95"];
        ends[1].as_f64().expect("a number") - ends[0].as_f64().expect("a number")
    };
    let alone = on(OPE, &half(|row| format!("n{row}"))).json;
    let one_user = on(OPE, &half(|_| "n".to_owned())).json;
    let ratio = width(&json) / width(&alone);
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    assert!(width(&one_user) > 1.15 * width(&json), "as one user half of the rows would widen the interval");
}

#[test]
fn the_target_policy_may_be_one_column_numbered_otherwise_or_fitted_for() {
    let table = Csv::read(ROUNDS);
    let action = table.place("action");
    let bare = (0..5).fold(table.clone(), |table, number| table.without_column(&format!("qhat{number}")));
    let of_logged: Vec<String> = bare.0[1..].iter().map(|row| row[bare.place(&format!("target_p{}", row[action]))].clone()).collect();

    // The probability of the logged action alone: nothing that needs the others.
    let logged = (0..5).fold(bare.clone(), |table, number| table.without_column(&format!("target_p{number}")));
    let logged = logged.with_column("target_p", |row, _| of_logged[row].clone());
    let json = on(OPE, &logged).json;
    assert_agrees(&json["estimates"]["ips"]["value"], &expected()["ope"]["ips"], 1e-10, "ips");
    assert!(json["estimates"].get("dm").is_none() && json["q"].as_str().is_some_and(|q| q.starts_with("none")), "{json}");

    // Actions from 1, and rewards predicted by means, cross-fitted by user.
    let mut from_one = bare.clone().with_column("action", |_, row| (row[action].parse::<u32>().expect("a number") + 1).to_string());
    let renamed = |name: &String| match name.strip_prefix("target_p") {
        Some(number) => format!("target_p{}", number.parse::<u32>().expect("a number") + 1),
        None => name.clone(),
    };
    from_one.0[0] = from_one.0[0].iter().map(renamed).collect();
    let from_one = from_one.with_column("user_id", |row, _| (row / 4).to_string());
    let json = on(OPE, &from_one).json;
    assert_agrees(&json["estimates"]["ips"]["value"], &expected()["ope"]["ips"], 1e-10, "ips");
    assert_eq!(json["users"], 500);
    assert!(json["q"].as_str().is_some_and(|q| q.contains("cross-fitted by user") && q.contains("fitted again")), "{json}");
    let dr = &json["estimates"]["dr"];
    assert!((dr["value"].as_f64().expect("a number") - 0.1537).abs() < 0.01, "{dr}");

    // Marginal weights: of the action itself they keep the value of ips in mean, of nothing they are all the mean weight.
    let nothing = bare.with_column("segment", |_, _| "all".into());
    let json = on(&format!("{OPE} --embedding segment"), &nothing).json;
    let (weight, earned) =
        (json["diagnostics"]["mean_weight"].as_f64().expect("a number"), json["logged"]["value"].as_f64().expect("a number"));
    assert!((json["estimates"]["mips"]["value"].as_f64().expect("a number") - weight * earned).abs() < 1e-12);
}

/// P(item at each position) of Bernoulli Thompson sampling with the priors that served, as a policy's own table.
fn thompson_sampling() -> String {
    const DRAWS: usize = 100_000;
    let text = std::fs::read_to_string("testdata/open_bandit/prior_bts.yaml").expect("a file");
    let priors: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let column =
        |name: &str| -> Vec<f64> { priors["all"][name].as_sequence().expect("a list").iter().filter_map(|value| value.as_f64()).collect() };
    let items: Vec<Beta<f64>> = column("alpha").into_iter().zip(column("beta")).map(|(a, b)| Beta::new(a, b).expect("shapes")).collect();
    let mut generator = ChaCha8Rng::seed_from_u64(2);
    let mut shown = vec![[0_u32; 3]; items.len()];
    for _ in 0..DRAWS {
        let draw: Vec<f64> = items.iter().map(|item| item.sample(&mut generator)).collect();
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.select_nth_unstable_by(2, |&a, &b| draw[b].total_cmp(&draw[a]));
        order[..3].sort_unstable_by(|&a, &b| draw[b].total_cmp(&draw[a]));
        (0..3).for_each(|position| shown[order[position]][position] += 1);
    }
    let mut table = "item_id,position,target_p\n".to_owned();
    for (item, counts) in shown.iter().enumerate() {
        for (position, count) in (1..).zip(counts) {
            writeln!(table, "{item},{position},{}", f64::from(*count) / DRAWS as f64).expect("a string takes any text");
        }
    }
    table
}

#[test]
fn published_values_lie_inside_the_intervals_on_the_open_bandit_logs() {
    let folder = TempDir::new().expect("a temporary folder");
    let [sampling, uniform] = ["sampling.csv", "uniform.csv"].map(|name| folder.path().join(name));
    std::fs::write(&sampling, thompson_sampling()).expect("written");
    std::fs::write(&uniform, (0..80).fold("item_id,target_p\n".to_owned(), |text, item| text + &format!("{item},0.0125\n")))
        .expect("written");
    let command = |policy: &Path| {
        let policy = policy.display();
        format!("ope --action item_id --reward click --propensity propensity_score --features position --target-policy {policy}")
    };

    let json = found(&command(&sampling), Path::new("testdata/open_bandit/random.parquet"));
    assert_eq!(json["verdict"], "identified");
    for (estimator, published) in [("ips", 0.004553), ("dr", 0.004727), ("dm", 0.003545)] {
        let interval = &json["estimates"][estimator]["ci95"];
        let [low, high] = [&interval[0], &interval[1]].map(|end| end.as_f64().expect("a number"));
        assert!(low < published && published < high, "{estimator}: {published} is outside {interval}");
    }
    assert!(json["q"].as_str().is_some_and(|q| q.contains("fitted again in every replicate")), "{}", json["q"]);

    let json = found(&command(&uniform), Path::new("testdata/open_bandit/bts.parquet"));
    assert_eq!(json["verdict"], "not identified");
    assert!(json["reason"].as_str().is_some_and(|reason| reason.contains("340 of 10000 rows, 500 are needed")), "{}", json["reason"]);
}

#[test]
fn decisions_that_cannot_be_are_refused_by_name_and_give_no_value() {
    let table = Csv::read(ROUNDS);
    let outside = "logging_propensity lies outside (0, 1] in 1 of 2000 rows";
    let mut bad = vec![
        ("reward", "NaN", "not_finite", "reward is empty, NaN or infinite in 1 of 2000 rows"),
        ("reward", "", "not_finite", "reward is empty, NaN or infinite in 1 of 2000 rows"),
        ("reward", "much", "text_metric", "column reward holds text, such as \"much\""),
        ("target_p0", "1.4", "target_distribution", "1 target probabilities lie outside [0, 1]"),
        ("target_p0", "0.9", "target_sums_to_one", "do not sum to one, but to 1."),
        ("target_p0", "NaN", "target_sums_to_one", "1 of 2000 rows do not sum to one"),
        ("qhat1", "inf", "predictions", "predicted rewards are no numbers"),
        ("action", "9", "actions", "action is no number that a column target_p… ends with in 1 of 2000 rows"),
    ];
    bad.extend(["0", "-0.1", "1.5", "NaN", ""].map(|cell| ("logging_propensity", cell, "propensities", outside)));
    for (column, cell, name, words) in bad {
        let json = refused(OPE, &table.clone().with(3, column, cell), name, words);
        assert_eq!(json["verdict"], "invalid input");
        assert_eq!(json["estimates"], serde_json::json!({}), "{column} {cell}");
    }
    refused(OPE, &table.clone().with_column("reward", |_, _| "0".into()), "all_zero_metric", "reward is 0 in all 2000 rows");
    refused(OPE, &table.clone().keep(|_, _| false), "too_little_data", "the table has no decisions");
    let none = on("ope --target what_it_would_do", &table);
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains("--target-policy"), "{}", none.stderr);
}

#[test]
fn decisions_that_were_not_drawn_as_they_say_are_not_identified() {
    let table = Csv::read(ROUNDS);
    let place = table.place("logging_propensity");
    for factor in [0.5, 1.5] {
        let off = table
            .clone()
            .with_column("logging_propensity", |_, row| (row[place].parse::<f64>().expect("a number") * factor).min(1.0).to_string());
        let json = warned(OPE, &off, "mean_weight", "instead of one");
        assert_eq!(json["verdict"], "not identified", "{factor}");
        assert!(json["reason"].as_str().is_some_and(|reason| reason.contains("the mean weight is")), "{}", json["reason"]);
    }
    let few = warned(OPE, &table.keep(|row, _| row < 40), "too_little_data", "of 40 rows have a reward");
    assert_eq!(few["verdict"], "not identified");
    let one_day = Csv::read(ROUNDS).with_column("at", |_, _| "2026-03-01".into());
    warned(&format!("{OPE} --time at --window-days 2"), &one_day, "label_maturity", "younger than 2 days");
}

// ----------------------------------------------------------------------------------------------------------------------------- scores

#[test]
fn metrics_are_those_of_scikit_learn() {
    let expected = &expected()["metrics"];
    let both = found(&format!("{METRICS} --score score_b"), Path::new(SCORES));
    for name in ["score_a", "score_b"] {
        assert_agrees(&both["metrics"][name], &expected[name], 1e-12, name);
    }
    assert_agrees(&both["delong"][0], &expected["delong"], 1e-12, "delong");
    assert_agrees(&both["metrics"]["score_a"]["isotonic_fit_at"], &expected["isotonic_fit_at"], 1e-9, "isotonic");
    // A single score's metrics stand at the top as well.
    let alone = found(METRICS, Path::new(SCORES));
    assert_agrees(&alone, &expected["score_a"], 1e-12, "score_a");
    let auc = &alone["auc_ci95"];
    assert!(auc[0].as_f64() < alone["auc"].as_f64() && alone["auc"].as_f64() < auc[1].as_f64());
}

#[test]
fn scores_of_kept_negatives_are_corrected_and_calibration_is_shown_by_level() {
    // Training that kept a fifth of the negatives promises p / (p + (1 - p) / 5): the correction brings p back.
    let table = Csv::read(SCORES);
    let scores = table.numbers("score_a");
    let inflated = table.clone().with_column("score_a", |row, _| (5.0 * scores[row] / (5.0 * scores[row] + 1.0 - scores[row])).to_string());
    let inflated = inflated.with_column("campaign", |row, _| ["a", "b"][row % 2].into());
    let answer = on(&format!("{METRICS} --negatives-kept 0.2 --by campaign"), &inflated);
    assert_agrees(&answer.json["logloss"], &expected()["metrics"]["score_a"]["logloss"], 1e-9, "logloss");
    let levels = &answer.json["calibration_by"]["campaign"];
    assert_eq!((levels["a"]["rows"].as_u64(), levels["b"]["rows"].as_u64()), (Some(1500), Some(1500)));
    assert!(levels["a"]["ratio_ci95"][0].as_f64() < levels["a"]["ratio"].as_f64());
}

#[test]
fn labels_and_scores_that_mean_nothing_are_refused_by_name() {
    let table = Csv::read(SCORES);
    for (column, cell, name, words) in [
        ("label", "2", "label_values", "column label is neither 0 nor 1 in 1 of 3000 rows"),
        ("label", "", "label_values", "column label is neither 0 nor 1 in 1 of 3000 rows"),
        ("score_a", "NaN", "not_finite", "score_a is empty, NaN or infinite in 1 rows"),
        ("score_a", "good", "text_metric", "column score_a holds text, such as \"good\""),
    ] {
        assert_eq!(refused(METRICS, &table.clone().with(3, column, cell), name, words)["metrics"], serde_json::json!({}));
    }
    refused(METRICS, &table.clone().with_column("label", |_, _| "1".into()), "too_little_data", "all 3000 labels are 1");
    refused(METRICS, &table.clone().keep(|_, _| false), "too_little_data", "the table has no rows");
    let json = warned(METRICS, &table.clone().with(3, "score_a", "1.2"), "not_probabilities", "promises no probability");
    assert!(json["auc"].is_f64() && json["logloss"].is_null() && json["calibration_ratio"].is_null());
    let words = table.with_column("label", |_, row| if row[0] == "1" { "true".into() } else { "False".into() });
    assert_agrees(&on(METRICS, &words).json["auc"], &expected()["metrics"]["score_a"]["auc"], 1e-12, "auc");
}
