//! The page of a night: whole, safe, readable without anything else, and never stopped by a fact that is missing.

use nightmarket::report::render;
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

const SECTIONS: [(&str, &str); 11] = [
    ("run", "What ran"),
    ("rows", "Rows"),
    ("model", "Model"),
    ("segments", "Segments"),
    ("targeting", "Targeting"),
    ("admit", "Admission"),
    ("off-policy", "Off-policy value"),
    ("evaluate", "The previous table, measured"),
    ("movers", "Movers"),
    ("files", "Files"),
    ("timings", "Timings"),
];

#[test]
fn the_page_holds_every_section_with_its_numbers_intervals_and_sizes() {
    let page = render(&sample()).expect("renders");
    for (id, heading) in SECTIONS {
        assert!(section(&page, id).contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    let verdict = &page[page.find("class=\"verdict").expect("a verdict")..page.find("id=\"run\"").expect("a first section")];
    for part in ["<b>Published</b>", "generation 17", "shop-2026-03-18-5b1e9c0d", "the challenger scores"] {
        assert!(verdict.contains(part), "{part} in {verdict}");
    }
    for (id, parts) in [
        ("rows", &["2,214,907", "58.4 MiB", "9,120", "251,771", "2026-03-03 to 2026-03-13 (11)"][..]),
        (
            "model",
            &[
                "0.7281",
                "[0.7093, 0.7462]",
                "43,140 rows with 841 positives",
                "-0.00159",
                "[-0.00233, -0.00086]",
                "Reliability of the model that serves: 15 bins, 43,140 rows",
            ],
        ),
        ("segments", &["鞋子", "服饰 &gt; 鞋子", "2,411", "interest:home", "no parent"]),
        ("targeting", &["400.00", "62 %", "frequency caps", "85.0 %", "19.3 %", "uses up 4 budgets", "certificate gap"]),
        ("admit", &["floor", "holds", "the smallest segment has 131 users"]),
        (
            "off-policy",
            &[
                "Identified",
                "43,140 decisions of 9,120 users",
                "effective sample size 4,120",
                "0.0225",
                "[0.0190, 0.0260]",
                "CLIPPED IPS",
                "Assumes that the logged propensities",
            ],
        ),
        (
            "evaluate",
            &[
                "2.079 %",
                "9.3 <span class=\"ci\">[5.7, 13.0]</span>",
                "p = 0.412",
                "of the planned sizes",
                "18.9 %",
                "[-7.3 %, 45.1 %]",
                "[-30.9 %, 68.7 %]",
                "fieller",
            ],
        ),
        ("movers", &["camping", "+218", "24 %", "new"]),
        ("timings", &["model&#x2f;response", "71.3 s", "reused"]),
    ] {
        let text = section(&page, id);
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
    assert_eq!(anchors, page.matches("href=\"#").count(), "every link stays on the page");
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
    facts["model"]["response"]["epochs"] = json!([{"epoch": 1, "<script>loss": 0.5}, {"epoch": 2, "<script>loss": 0.4}]);
    let page = render(&facts).expect("renders");
    assert!(!page.contains("<script") && !page.contains("\" onload=\""), "unescaped text");
    assert!(page.matches("&lt;script&gt;alert(1)").count() >= 5);
    assert!(page.contains("&lt;script&gt;loss"));
}

#[test]
fn a_skipped_stage_is_one_line_that_says_why() {
    let page = render(&json!({ "skipped": ["evaluate: no earlier table", "off policy: no propensities in the logs"] })).expect("renders");
    assert!(page.contains("<b>Nothing published</b>"));
    assert!(section(&page, "evaluate").contains("Not in this run: evaluate: no earlier table."));
    assert!(section(&page, "off-policy").contains("Not in this run: off policy: no propensities in the logs."));
    assert!(section(&page, "segments").contains("Not in this run: the run recorded no facts for it."));
}

/// Every fact in turn is taken away, made null, and made a value of another shape: the page still comes, with all its sections.
#[test]
fn no_absent_or_odd_fact_stops_the_page() {
    let facts = sample();
    let mut paths = Vec::new();
    walk(&facts, String::new(), &mut paths);
    assert!(paths.len() > 200, "the sample is rich");
    for path in &paths {
        for odd in [Value::Null, json!("text"), json!(-1.5), json!([1, [2]]), json!({"a": {"b": []}}), json!([])] {
            let mut changed = facts.clone();
            *changed.pointer_mut(path).expect("walked") = odd;
            let page = render(&changed).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(SECTIONS.iter().all(|(_, heading)| page.contains(&format!("<h2>{heading}</h2>"))), "{path}");
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
    let page = render(&facts).expect("renders");
    let top = &page[..page.find("id=\"run\"").expect("a first section")];
    assert!(top.contains("<b>Kept</b>") && top.contains("not admitted") && !top.contains(", generation"));
    assert!(top.contains("smallest 12, floor 100") && top.contains("cannot be trusted"));
    assert!(section(&page, "admit").contains("broken"));
}

#[test]
fn a_fact_of_a_later_version_is_shown_without_a_change_here() {
    let mut facts = sample();
    facts["targeting"]["duality_gap"] = json!(0.000_123);
    facts["segments"]["clusters"] = json!([{"cluster": 7, "users": 411}]);
    facts["bids"] = json!({"campaigns_changed": 4});
    let page = render(&facts).expect("renders");
    assert!(section(&page, "targeting").contains("<dt>duality gap</dt><dd>0.000123</dd>"));
    assert!(section(&page, "segments").contains("<th>cluster</th><th>users</th>"));
    assert!(page.contains("<dt>bids campaigns changed</dt><dd>4</dd>"));
}
