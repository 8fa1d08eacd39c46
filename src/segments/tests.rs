use super::*;
use crate::types::column;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, StringArray};
use std::sync::Arc;

pub(super) fn settings() -> Settings {
    Settings { labels_per_user: 2, floor: 50, enter: 60, ..Settings::default() }
}

/// shoes > sneakers, shoes > boots; health (sensitive) > masks; phones.
pub(super) fn categories() -> RecordBatch {
    let rows = [
        ("shoes", None, "鞋子", Some(false)),
        ("sneakers", Some("shoes"), "运动鞋", Some(false)),
        ("boots", Some("shoes"), "Boots", Some(false)),
        ("health", None, "Health", Some(true)),
        ("masks", Some("health"), "Masks", Some(false)),
        ("lost", Some("nowhere"), "Lost", Some(false)),
        ("unsaid", None, "Unsaid", None),
        ("ring_a", Some("ring_b"), "Ring A", Some(false)),
        ("ring_b", Some("ring_a"), "Ring B", Some(false)),
        ("phones", None, "Phones", Some(false)),
    ];
    table([
        ("category_id", Arc::new(StringArray::from_iter_values(rows.map(|row| row.0))) as ArrayRef, false),
        ("parent_id", Arc::new(rows.map(|row| row.1).into_iter().collect::<StringArray>()), true),
        ("name", Arc::new(StringArray::from_iter_values(rows.map(|row| row.2))), false),
        ("sensitive", Arc::new(rows.map(|row| row.3).into_iter().collect::<BooleanArray>()), true),
    ])
    .unwrap()
}

pub(super) fn scores(rows: &[(String, &str, f64)]) -> RecordBatch {
    table([
        ("user_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))) as ArrayRef, false),
        ("category_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1))), false),
        ("score", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2 / 10.0))), false),
        ("above_base", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
    ])
    .unwrap()
}

pub(super) fn users(from: usize, to: usize, category: &'static str, above: f64) -> Vec<(String, &'static str, f64)> {
    (from..to).map(|user| (format!("u_{user:04}"), category, above)).collect()
}

pub(super) fn of_user(rows: &RecordBatch, user: &str, what: &str) -> Vec<String> {
    let (users, values) = (column::<StringArray>(rows, "user_id").unwrap(), column::<StringArray>(rows, what).unwrap());
    users.iter().zip(values).filter(|(id, _)| *id == Some(user)).map(|(_, value)| value.unwrap().to_owned()).collect()
}

fn run(rows: &[(String, &str, f64)], eligible: Option<&BTreeSet<String>>, previous: Option<&RecordBatch>) -> Segments {
    let (scores, categories) = (scores(rows), categories());
    segment(&settings(), &Inputs { scores: &scores, categories: &categories, audiences: &[], eligible, previous, weights: None }).unwrap()
}

#[test]
fn labels_are_ordered_by_above_base_and_keep_their_score() {
    let mut rows = users(0, 70, "phones", 1.0);
    rows.extend(users(0, 70, "boots", 3.0));
    rows.extend(users(0, 70, "sneakers", 2.0));
    let segments = run(&rows, None, None);
    assert_eq!(of_user(&segments.labels_before_floor, "u_0003", "category_id"), ["boots", "sneakers"]);
    assert_eq!(of_user(&segments.labels_before_floor, "u_0003", "label"), ["Boots", "运动鞋"]);
    // Nobody's first segment is sneakers, nor everyone: they would serve nobody.
    assert_eq!(of_user(&segments.user_segments, "u_0003", "segment_id"), ["interest:boots"]);
    assert_eq!(column::<Float64Array>(&segments.user_segments, "score").unwrap().value(0), 0.3);
    assert_eq!(segments.facts.segments[0].path, "鞋子 > Boots");
}

#[test]
fn sensitive_unknown_and_rootless_categories_never_become_labels() {
    let mut rows = users(0, 200, "phones", 0.1);
    for category in ["health", "masks", "lost", "unsaid", "ring_a", "never_heard_of"] {
        rows.extend(users(0, 200, category, 9.0));
    }
    let segments = run(&rows, None, None);
    let labels = column::<StringArray>(&segments.labels_before_floor, "category_id").unwrap();
    assert!(labels.iter().all(|label| label == Some("phones")));
    assert_eq!((segments.facts.sensitive_categories, segments.facts.unknown_categories), (5, 1));
    assert_eq!(segments.facts.segments.len(), 1);
}

#[test]
fn a_rule_leads_its_users_or_stands_in_for_their_interests_and_keeps_the_floor() {
    let named = |from: usize, to: usize| (from..to).map(|user| format!("u_{user:04}")).collect::<BTreeSet<_>>();
    let rule = |name: &str, leads: bool, users| Audience {
        segment_id: Kind::Rule.segment_id(name),
        label: name.to_uppercase(),
        kind: Kind::Rule,
        leads,
        users: BTreeSet::into_iter(users).map(|user| (user, 1.0)).collect(),
    };
    let rules = [rule("few", true, named(0, 10)), rule("vip", true, named(0, 65)), rule("idle", false, named(60, 195))];
    let (scores, categories, eligible) = (scores(&users(0, 130, "phones", 1.0)), categories(), named(0, 200));
    let inputs =
        Inputs { scores: &scores, categories: &categories, audiences: &rules, eligible: Some(&eligible), previous: None, weights: None };
    let segments = segment(&settings(), &inputs).unwrap();
    let of = |user| of_user(&segments.user_segments, user, "segment_id");
    assert_eq!(of("u_0003"), ["rule:vip", "interest:phones"], "those few are served by the next of their segments");
    assert_eq!(of("u_0100"), ["interest:phones", "rule:idle"]);
    assert_eq!(of("u_0150"), ["rule:idle"]);
    assert_eq!(of("u_0199"), [""; 0], "5 users of everyone are too few");
    let withheld: Vec<_> = segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size)).collect();
    assert_eq!(withheld, [("everyone", 5), ("rule:few", 10)]);
    let vip = segments.facts.segments.iter().find(|it| it.segment_id == "rule:vip").unwrap();
    assert_eq!((vip.label.as_str(), vip.kind.as_str(), vip.size, vip.size_released), ("VIP", "rule", 65, 65));
}

#[test]
fn a_small_segment_is_merged_into_its_parent_and_the_better_rank_stays() {
    let mut rows = users(0, 40, "boots", 1.0);
    rows.extend(users(10, 59, "sneakers", 2.0));
    rows.extend(users(0, 55, "phones", 0.5));
    let segments = run(&rows, None, None);
    // 40 boots and 49 sneakers are 59 distinct users: one below a new segment's 60, so shoes itself is dropped.
    let withheld: Vec<_> = segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size, it.merged_into.as_deref())).collect();
    assert_eq!(
        withheld,
        [
            ("interest:boots", 40, Some("interest:shoes")),
            ("interest:phones", 25, None),
            ("interest:shoes", 59, None),
            ("interest:sneakers", 49, Some("interest:shoes"))
        ]
    );
    assert_eq!(of_user(&segments.user_segments, "u_0020", "segment_id"), ["everyone"]);

    rows.extend(users(59, 61, "boots", 1.0));
    let segments = run(&rows, None, None);
    assert_eq!(of_user(&segments.user_segments, "u_0020", "segment_id"), ["interest:shoes"]);
    let shoes = segments.facts.segments.iter().find(|it| it.segment_id == "interest:shoes").unwrap();
    assert_eq!((shoes.size, shoes.size_released), (61, 61));
}

#[test]
fn a_segment_that_would_serve_few_is_withheld_and_its_users_are_served_by_the_next_one() {
    // Sneakers have 120 users and are the first of 3; boots are the first of 62, and of 2 more who would have sneakers first.
    let mut rows = users(0, 120, "sneakers", 1.0);
    rows.extend(users(3, 120, "phones", 2.0));
    rows.extend(users(0, 2, "boots", 0.5));
    rows.extend(users(200, 262, "boots", 0.5));
    let segments = run(&rows, None, None);
    let served: Vec<_> = ["u_0000", "u_0002", "u_0003", "u_0200"].map(|user| of_user(&segments.user_segments, user, "segment_id")).into();
    // Nothing is left for the third: everyone would serve one user.
    assert_eq!(served, [vec!["interest:boots"], vec![], vec!["interest:phones"], vec!["interest:boots"]]);
    let withheld: Vec<_> = segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size)).collect();
    assert_eq!(withheld, [(EVERYONE, 1), ("interest:sneakers", 3)]);
    assert_eq!(segments.facts.users_released, 120 - 1 + 62);

    // Above sneakers lie shoes, once they have users of their own.
    rows.extend(users(300, 370, "shoes", 1.0));
    let segments = run(&rows, None, None);
    assert_eq!(of_user(&segments.user_segments, "u_0002", "segment_id"), ["interest:shoes"]);
    assert_eq!(segments.facts.withheld.iter().map(|it| it.segment_id.as_str()).collect::<Vec<_>>(), ["interest:sneakers"]);
}

#[test]
fn a_segment_of_yesterday_stays_down_to_the_floor() {
    let rows = users(0, 55, "phones", 1.0);
    let yesterday = run(&users(5, 65, "phones", 1.0), None, None);
    assert_eq!(of_user(&yesterday.user_segments, "u_0005", "segment_id"), ["interest:phones"]);
    let tonight = run(&rows, None, Some(&yesterday.user_segments));
    let phones = tonight.facts.segments.iter().find(|it| it.segment_id == "interest:phones").unwrap();
    assert_eq!(phones.stability, Some(50.0 / 65.0));
    assert!(run(&rows, None, None).facts.segments.iter().all(|it| it.segment_id == EVERYONE && it.stability.is_none()));
    assert!(run(&users(0, 49, "phones", 1.0), None, Some(&yesterday.user_segments)).facts.segments.is_empty());
}

#[test]
fn only_eligible_users_are_counted_and_those_without_a_score_are_in_everyone() {
    let rows = users(0, 100, "phones", 1.0);
    let eligible: BTreeSet<String> = (41..101).map(|user| format!("u_{user:04}")).collect();
    let segments = run(&rows, Some(&eligible), None);
    assert_eq!(segments.facts.segments.len(), 1);
    assert_eq!((segments.facts.users, segments.facts.users_with_labels, segments.facts.users_released), (60, 59, 60));
    assert_eq!(of_user(&segments.user_segments, "u_0100", "segment_id"), ["everyone"]);
    assert!(of_user(&segments.user_segments, "u_0040", "segment_id").is_empty());
    assert!(of_user(&segments.labels_before_floor, "u_0040", "category_id").is_empty());
}

#[test]
fn weights_count_for_the_floor() {
    let (scores, categories) = (scores(&users(0, 2, "phones", 1.0)), categories());
    let weights = BTreeMap::from([("u_0000".to_owned(), 59)]);
    let inputs =
        Inputs { scores: &scores, categories: &categories, audiences: &[], eligible: None, previous: None, weights: Some(&weights) };
    let segments = segment(&settings(), &inputs).unwrap();
    assert_eq!(segments.facts.segments.iter().map(|it| (it.segment_id.as_str(), it.size)).collect::<Vec<_>>(), [(EVERYONE, 59)]);
}

#[test]
fn bad_scores_and_settings_are_refused() {
    let categories = categories();
    for bad in [f64::NAN, f64::INFINITY, 11.0] {
        let scores = scores(&[("u".to_owned(), "phones", bad)]);
        let inputs = Inputs { scores: &scores, categories: &categories, audiences: &[], eligible: None, previous: None, weights: None };
        assert_eq!(segment(&settings(), &inputs).unwrap_err().kind, crate::error::Kind::Contract);
    }
    assert!(Settings { floor: 49, ..settings() }.check().is_err());
    assert!(Settings { enter: 49, ..settings() }.check().is_err());
    assert!(Settings { labels_per_user: 0, ..settings() }.check().is_err());
}

#[test]
fn affinity_is_the_mean_click_probability_against_the_category() {
    let rows = [("a", "x", 0.02), ("a", "x", 0.04), ("b", "x", 0.01), ("a", "y", 0.01), ("b", "y", 0.01)];
    let scores = interest_from_response(rows).unwrap();
    let above = column::<Float64Array>(&scores, "above_base").unwrap().values().to_vec();
    assert_eq!(column::<Float64Array>(&scores, "score").unwrap().values(), &[0.03, 0.01, 0.01, 0.01]);
    for (found, expected) in above.iter().zip([0.5, 0.0, -0.5, 0.0]) {
        assert!((found - expected).abs() < 1e-12, "{above:?}");
    }
    assert!(interest_from_response([("a", "x", f64::NAN)]).is_err());
}

#[test]
fn one_primary_segment_a_user() {
    let mut rows = users(0, 70, "phones", 1.0);
    rows.extend(users(0, 130, "boots", 0.5));
    let primary = primary_users(&run(&rows, None, None).user_segments).unwrap();
    assert_eq!(primary.num_rows(), 130);
    assert_eq!(of_user(&primary, "u_0001", "segment_id"), ["interest:phones"]);
    assert_eq!(of_user(&primary, "u_0080", "segment_id"), ["interest:boots"]);
}
