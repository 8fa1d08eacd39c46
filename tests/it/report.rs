//! The page of a night: whole, safe, readable without anything else, and never stopped by a fact that is missing.

use crate::shop::{DATE, NEXT, Shop};
use nightmarket::report::{render, render_index, render_trend};
use serde_json::{Value, json};

fn sample() -> Value {
    let text = std::fs::read_to_string("testdata/report/sample.json").expect("the sample night");
    serde_json::from_str(&text).expect("JSON")
}

/// The page's text between the section with this id and the next.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let start = page.find(&format!("<section id=\"{id}\"")).unwrap_or_else(|| panic!("no section {id}"));
    &page[start..start + page[start..].find("</section>").expect("a section ends")]
}

const SECTIONS: [(&str, &str); 9] = [
    ("money", "Money"),
    ("experiments", "Experiments"),
    ("models", "Models"),
    ("segments", "Segments"),
    ("features", "Features"),
    ("data", "Data quality"),
    ("lineage", "Lineage"),
    ("timings", "Timings and cost"),
    ("configuration", "Configuration and fingerprints"),
];

fn head(id: &str, heading: &str) -> String {
    format!("<h2 id=\"{id}-head\">{heading}</h2>")
}

/// What stands above the first section: the verdict, what changed, the numbers of the day.
fn top(page: &str) -> &str {
    &page[page.find("<header id=\"verdict\"").expect("a verdict")..page.find("<section id=\"money\"").expect("a first section")]
}

#[test]
fn the_page_holds_every_section_with_its_numbers_intervals_and_sizes() {
    let page = render(&sample()).expect("renders");
    for (id, heading) in SECTIONS {
        assert!(section(&page, id).contains(&head(id, heading)), "{heading}");
    }
    for part in [
        "<h1>Night of Wednesday 18 March 2026</h1>",
        "<b>Published</b><small>generation 17</small>",
        "<b>Challenger scores</b><small>passed the gate</small>",
        "<b>Admitted</b><small>4 checks hold</small>",
        "<small>p = 0.412</small>",
        "What changed since 17 March",
        "<s>champion</s> → <b>challenger</b>",
        "2.3 times its usual change",
        "<b>720.00</b>",
        "+19 % over holdout [−7 %, 45 %]",
    ] {
        assert!(top(&page).contains(part), "{part} in {}", top(&page));
    }
    for (id, parts) in [
        (
            "money",
            &[
                "9,000",
                "2.48 <span class=\"ci\">[1.08, 3.88]</span>",
                "400.00",
                "62 %",
                "frequency caps",
                "0.10 %",
                "uses up 4 budgets",
                "19.3 %",
            ][..],
        ),
        (
            "experiments",
            &[
                "18.9 %",
                "[−7.3 %, 45.1 %]",
                "fieller",
                "of the planned sizes",
                "2.08 % <span class=\"ci\">[1.91 %, 2.25 %]</span>",
                "9.3 <span class=\"ci\">[5.7, 13.0]</span>",
                "Identified",
                "43,140 decisions of 9,120 users",
                "effective sample size 4,120",
                "0.0225",
                "clipped IPS",
                "Assumes that the logged propensities",
                "Incremental ROAS: 2.54 <span class=\"ci\">[−1.10, 6.80]</span>",
                "7,210 users of the champion against 418 of the holdout",
                "promised 1.041 <span class=\"ci\">[0.968, 1.119]</span> times the clicks that came",
                "interest:camping",
                "38 % of them are still expected",
                "A cap of 3 looks a day",
                "1 of them before noon",
            ],
        ),
        (
            "models",
            &[
                "0.7281",
                "[0.7093, 0.7462]",
                "43,140 rows of one day with 841 clicks",
                "−0.00159",
                "[−0.00233, −0.00086]",
                "&lt; 0.001",
                "15 bins of equal count",
                "Epoch 6 was kept",
            ],
        ),
        ("segments", &["鞋子", "服饰 &gt; 鞋子", "2,411", "interest:home", "no parent", "camping", "+218", "+24 %"]),
        (
            "segments",
            &[
                "rank-biased, p = 0.9",
                "84 %",
                "鞋子 · 户外",
                "61 % of the scatter",
                "46 users are fewer than 100",
                "像近期买家",
                "chart-like-1",
                "1,544",
            ],
        ),
        ("features", &["Importance by permutation", "user_activity.n_clicks_30d", "0.0409", "shuffled 3 times over 4,000 rows"]),
        (
            "data",
            &[
                "2,214,907",
                "58.4 MiB",
                "9,120",
                "251,771",
                "2026-03-03 to 2026-03-13 (11)",
                "the smallest segment has 131 users",
                "holds",
                "bids: no auction logs",
            ],
        ),
        ("lineage", &["raw.events", "user__activity", "response model", "segment_ads", "raw.events → events"]),
        ("timings", &["usually 2 min 33 s (median of 7 nights)", "At 0.40 an hour", "2.1 GiB", "model/response", "71.3 s"]),
        ("configuration", &["shop-2026-03-18-5b1e9c0d", "9c1f0a77e2b84d5f", "segments floor", "Asia/Shanghai"]),
    ] {
        let text = section(&page, id).replace("&#x2f;", "/");
        for part in parts {
            assert!(text.contains(part), "{part} in {id}: {text}");
        }
    }
}

#[test]
fn the_page_needs_no_network_and_no_script() {
    let page = render(&sample()).expect("renders").to_lowercase();
    for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<link", "<iframe", "href=\"//"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let anchors = page.matches("href=").count();
    assert_eq!(anchors, page.matches("href=\"#").count() + 1, "every link but the one to all nights stays on the page");
    assert!(page.contains("href=\"../index.html\""));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print") && page.contains("name=\"viewport\""));
}

#[test]
fn text_from_the_shop_is_escaped_wherever_it_stands() {
    let hostile = "<script>alert(1)</script>\" onload=\"x";
    let mut facts = sample();
    facts["segments"]["segments"][0]["label"] = json!(hostile);
    facts["movers"]["ads"][0]["id"] = json!(hostile);
    facts["publish"]["reason"] = json!(hostile);
    facts["run"][hostile] = json!(hostile);
    facts["skipped"] = json!([hostile]);
    facts["money"]["campaigns"][0]["campaign_id"] = json!(hostile);
    facts["lineage"]["tables"][0]["table"] = json!(hostile);
    facts["diagnosis"]["models"][0]["name"] = json!(hostile);
    facts["changes"][0]["what"] = json!(hostile);
    let page = render(&facts).expect("renders");
    assert!(!page.contains("<script") && !page.contains("\" onload=\""), "unescaped text");
    assert!(page.replace("&#x2f;", "/").matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() >= 9);
}

#[test]
fn a_skipped_stage_is_one_line_that_says_why() {
    let page = render(&json!({ "skipped": ["evaluate: no earlier table", "off policy: no propensities in the logs"] })).expect("renders");
    assert!(top(&page).contains("<b>Nothing published</b>") && top(&page).contains("No earlier report to compare with"));
    assert!(section(&page, "experiments").contains("Not in this run: evaluate: no earlier table."));
    assert!(section(&page, "experiments").contains("Not in this run: off policy: no propensities in the logs."));
    assert!(section(&page, "segments").contains("Not in this run: the run recorded no facts for it."));
}

/// Every fact in turn is taken away and made a value of two other shapes: the page still comes, with all its sections.
#[test]
fn no_absent_or_odd_fact_stops_the_page() {
    let facts = sample();
    let mut paths = Vec::new();
    walk(&facts, String::new(), &mut paths);
    assert!(paths.len() > 200, "the sample is rich");
    let odds = [Value::Null, json!("text"), json!(-1.5), json!([1, [2]]), json!({"a": {"b": []}}), json!([])];
    for (at, path) in paths.iter().enumerate() {
        for odd in [&odds[at % 6], &odds[(at + 3) % 6]] {
            let mut changed = facts.clone();
            changed.pointer_mut(path).expect("walked").clone_from(odd);
            let page = render(&changed).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(SECTIONS.iter().all(|(id, heading)| page.contains(&head(id, heading))), "{path}");
        }
        let (parent, key) = path.rsplit_once('/').expect("a pointer");
        let mut changed = facts.clone();
        if changed.pointer_mut(parent).expect("walked").as_object_mut().is_some_and(|map| map.remove(key).is_some()) {
            render(&changed).unwrap_or_else(|error| panic!("without {path}: {error}"));
        }
    }
    for odd in [Value::Null, json!({}), json!([]), json!("facts")] {
        render(&odd).expect("renders");
    }
}

/// The pointer of every fact; of a long list, its first two entries.
fn walk(value: &Value, path: String, paths: &mut Vec<String>) {
    if !path.is_empty() {
        paths.push(path.clone());
    }
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, format!("{path}/{key}"), paths)),
        Value::Array(items) => items.iter().take(2).enumerate().for_each(|(at, value)| walk(value, format!("{path}/{at}"), paths)),
        _ => {}
    }
}

#[test]
fn a_kept_table_and_an_alarm_stand_at_the_top() {
    let mut facts = sample();
    facts["publish"] = json!({"state": "kept", "generation": null, "policy_version": "p", "reason": "not admitted"});
    facts["admit"] = json!({"admitted": false, "checks": [{"name": "segment_floor", "ok": false, "finding": "smallest 12, floor 100"}]});
    facts["evaluate"]["srm"] = json!({"p": 0.0001, "alarm": true});
    facts["took"]["seconds"] = json!(400.0);
    let page = render(&facts).expect("renders");
    let top = top(&page);
    assert!(top.contains("<b>Kept</b>") && top.contains("not admitted") && !top.contains("generation"), "{top}");
    assert!(top.contains("smallest 12, floor 100") && top.contains("cannot be trusted") && top.contains("p &lt; 0.001"), "{top}");
    assert_eq!(
        (top.matches("class=\"stop\"").count(), top.matches("class=\"look\"").count()),
        (2, 3),
        "two alarms; kept, skipped and slow"
    );
    assert!(section(&page, "data").contains("broken"));
}

#[test]
fn a_fact_of_a_later_version_is_shown_without_a_change_here() {
    let mut facts = sample();
    facts["targeting"]["duality_gap"] = json!(0.000_123);
    facts["segments"]["communities"] = json!([{"cluster": 7, "users": 411}]);
    facts["evaluate"]["fatigue"] = json!([{"exposure": 1, "ctr": 0.021}, {"exposure": 2, "ctr": 0.017}]);
    facts["drift"] = json!([{"table": "user__last", "column": "price", "psi": 0.31}]);
    facts["bids"] = json!({"campaigns_changed": 4});
    let page = render(&facts).expect("renders");
    assert!(section(&page, "money").contains("<dt>duality gap</dt><dd>0.000123</dd>"));
    assert!(section(&page, "segments").contains("<th scope=\"col\">cluster</th><th scope=\"col\">users</th>"));
    assert!(section(&page, "experiments").contains("<th scope=\"col\">exposure</th>"));
    assert!(section(&page, "features").contains("1 comparisons of a column") && section(&page, "features").contains("0.310"));
    assert!(section(&page, "configuration").contains("<dt>bids campaigns changed</dt><dd>4</dd>"));
}

/// A large shop's page stays small: what is long is cut, and says so.
#[test]
fn a_night_of_a_hundred_thousand_rows_of_facts_stays_below_two_megabytes() {
    let mut facts = sample();
    let many = |rows: usize, row: &dyn Fn(usize) -> Value| Value::Array((0..rows).map(row).collect());
    facts["targeting"]["campaigns"] =
        many(20_000, &|n| json!({"campaign_id": format!("c_{n}"), "budget": n, "planned_spend": n / 2, "planned_impressions": n}));
    facts["money"]["campaigns"] = many(20_000, &|n| json!({"campaign_id": format!("c_{n}"), "spend": n, "revenue": n}));
    facts["segments"]["segments"] =
        many(5_000, &|n| json!({"segment_id": format!("s_{n}"), "label": "鞋子", "path": "服饰 > 鞋子", "size_released": n}));
    facts["features"] = many(3_000, &|n| json!({"table": format!("t_{n}"), "day": "2026-03-18", "rows": n}));
    facts["diagnosis"]["importance"]["features"] = many(2_000, &|n| json!({"feature": format!("f_{n}"), "auc_drop": 1.0 / (n + 1) as f64}));
    facts["timings"] =
        many(5_000, &|n| json!({"stage": format!("features/t_{n}/dt=2026-03-18"), "seconds": 0.1, "rows": n, "reused": false}));
    facts["lineage"]["tables"] = many(
        300,
        &|n| json!({"table": format!("t_{n}"), "kind": (["raw", "canonical", "features"][n % 3]), "reads": [format!("t_{}", n / 2)]}),
    );
    facts["unheard_of"] = many(50_000, &|n| json!({"n": n, "text": "x".repeat(80)}));
    let page = render(&facts).expect("renders");
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert!(section(&page, "money").contains("The largest 25 of 20000"));
    assert!(section(&page, "configuration").contains("the first 50 of 50,000"));
}

fn nights() -> Vec<Value> {
    sample()["history"].as_array().expect("a history").clone()
}

#[test]
fn the_pages_over_many_nights_name_each_and_what_to_look_at() {
    let index = render_index(&nights()).expect("renders");
    assert!(index.find("dt=2026-03-18/report.html") < index.find("dt=2026-03-05/report.html"), "the latest first");
    assert_eq!(index.matches("/report.html\"").count(), nights().len() + 1, "one link a night, and one to the latest");
    assert!(index.contains("checks broken: 1") && index.contains("value not identified"));
    let trend = render_trend(&nights()).expect("renders");
    assert!(trend.contains("14 nights up to 18 March 2026"));
    for (drawing, lines) in [("trend-auc", 3), ("trend-ctr", 3), ("trend-roas", 1)] {
        let start = trend.find(&format!("aria-labelledby=\"{drawing}-title")).unwrap_or_else(|| panic!("no {drawing}"));
        let svg = &trend[start..start + trend[start..].find("</svg>").expect("a drawing ends")];
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (lines, lines * nights().len()), "{drawing}");
    }
    for odd in [json!({}), json!({"date": 5, "models": [1], "roas": "x"})] {
        render_index(std::slice::from_ref(&odd)).expect("renders");
        render_trend(&[odd]).expect("renders");
    }
    render_index(&[]).expect("renders");
}

/// The night's history, changes and usual durations come from the reports before it, and a rerun finds the same.
#[test]
fn nights_in_a_row_are_compared_with_each_other() {
    let shop = Shop::served();
    let read = |file: &str| std::fs::read(shop.root.join("out/reports").join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let json = |file: &str| serde_json::from_slice::<Value>(&read(file)).expect("JSON");
    let first = json(&format!("dt={DATE}/report.json"));
    assert_eq!((&first["compared_with"], first["history"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
    shop.night(NEXT).expect("the second night runs");
    let second = json(&format!("dt={NEXT}/report.json"));
    assert_eq!(second["compared_with"], json!(DATE));
    let dates: Vec<&Value> = second["history"].as_array().expect("a history").iter().map(|night| &night["date"]).collect();
    assert_eq!(dates, [&json!(DATE), &json!(NEXT)]);
    assert!(!second["changes"].as_array().expect("changes").is_empty());
    assert_eq!(second["took"]["nights"], 1);
    let stages = second["took"]["stages"].as_array().expect("stages");
    let model = stages.iter().find(|stage| stage["stage"] == "model").expect("it trained");
    assert!(model["usual_seconds"].as_f64().expect("the first night trained") > 0.0);

    // Against the data at hand: every contestant has its curves, every feature its importance, the day its money.
    let contestants: Vec<&Value> = second["diagnosis"]["models"].as_array().expect("models").iter().map(|model| &model["name"]).collect();
    assert_eq!(contestants, ["challenger", "baseline", "champion"].map(|name| json!(name)).iter().collect::<Vec<_>>());
    let features = second["diagnosis"]["importance"]["features"].as_array().expect("importance");
    assert_eq!(Some(features.len()), second["model"]["response"]["features"].as_array().map(Vec::len));
    let campaigns = second["money"]["campaigns"].as_array().expect("campaigns");
    let spend: f64 = campaigns.iter().filter_map(|campaign| campaign["spend"].as_f64()).sum();
    assert!((spend - second["money"]["total"]["spend"].as_f64().expect("spend")).abs() < 1e-6, "{spend}");
    let lineage = second["lineage"]["tables"].as_array().expect("tables");
    for table in lineage {
        for read in table["reads"].as_array().expect("reads") {
            assert!(lineage.iter().any(|other| other["table"] == *read), "{} reads {read}, which is not there", table["table"]);
        }
    }

    // A rerun: the same facts but for durations, and the digest keeps what the first run took.
    let digest = json(&format!("dt={NEXT}/digest.json"));
    shop.night(NEXT).expect("runs again");
    let steady = |mut facts: Value| {
        for key in ["timings", "took", "ledger"] {
            facts.as_object_mut().expect("facts").remove(key);
        }
        // Not the same run: the table was there already.
        facts["publish"] = Value::Null;
        facts["history"].as_array_mut().and_then(|nights| nights.pop());
        facts["changes"] = Value::Null;
        facts
    };
    assert_eq!(steady(json(&format!("dt={NEXT}/report.json"))), steady(second));
    let again = json(&format!("dt={NEXT}/digest.json"));
    assert_eq!((&again["seconds"]["model"], &again["took"]), (&digest["seconds"]["model"], &digest["took"]));
    let index = String::from_utf8(read("index.html")).expect("UTF-8");
    assert!(index.contains(&format!("dt={DATE}/report.html")) && index.contains(&format!("dt={NEXT}/report.html")));
}

/// The description of the facts names every section of a night's facts, and no other.
#[test]
fn the_facts_are_described() {
    let described = std::fs::read_to_string("src/report/facts.md").expect("the description");
    let named: Vec<&str> = described.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let facts = Shop::served();
    let facts: Value =
        serde_json::from_slice(&std::fs::read(facts.root.join(format!("out/reports/dt={DATE}/report.json"))).expect("read")).expect("JSON");
    for key in facts.as_object().expect("facts").keys() {
        assert!(named.contains(&key.as_str()), "src/report/facts.md does not describe {key}");
    }
    let version = facts["schema_version"].as_u64().expect("a version");
    assert!(described.contains(&format!("`schema_version` is {version}")), "the description is of another version");
}
