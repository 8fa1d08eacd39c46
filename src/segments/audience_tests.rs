//! Clusters and lookalikes of users with planted tastes: sneakers, boots, phones.

use super::clusters::{Behaviour, Clusters};
use super::lookalikes::SeedList;
use super::tests::{categories, of_user, scores, settings, users};
use super::*;
use crate::model::Embeddings;
use chrono::{Days, NaiveDate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).unwrap();
const TASTES: [&str; 3] = ["sneakers", "boots", "phones"];

/// User n likes `taste(n)` and lies near its corner of a space of three numbers; behind it a habit that says nothing.
fn world(count: usize, taste: impl Fn(usize) -> usize) -> (Vec<(String, &'static str, f64)>, Embeddings) {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut rows, mut embeddings) = (Vec::new(), Embeddings { taste: 3, width: 4, ..Embeddings::default() });
    for user in 0..count {
        let liked = taste(user);
        rows.extend(users(user, user + 1, TASTES[liked], 2.0));
        embeddings.users.push(format!("u_{user:04}"));
        let mut noise = || rng.random_range(-0.2..0.2);
        embeddings.rows.extend((0..3).map(|i| f32::from(u8::from(i == liked)) + noise()).collect::<Vec<f32>>());
        embeddings.rows.push(noise());
    }
    (rows, embeddings)
}

fn found(rows: &[(String, &str, f64)], embeddings: &Embeddings, yesterday: Option<&RecordBatch>, nights: u64, k: usize) -> Clusters {
    let (scores, categories) = (scores(rows), categories());
    let inputs = inputs(&scores, &categories, None);
    let settings = Settings { clusters: clusters::Settings { k }, ..settings() };
    let behaviour = Behaviour { embeddings, yesterday, date: DATE + Days::new(nights), seed: 7 };
    clusters::find(&settings, &inputs, &behaviour).unwrap().unwrap()
}

fn inputs<'a>(scores: &'a RecordBatch, categories: &'a RecordBatch, eligible: Option<&'a BTreeSet<String>>) -> Inputs<'a> {
    Inputs { scores, categories, audiences: &[], eligible, previous: None, weights: None }
}

fn ids(clusters: &Clusters) -> Vec<(&str, u64)> {
    clusters.facts.clusters.iter().map(|cluster| (cluster.segment_id.as_str(), cluster.users)).collect()
}

#[test]
fn clusters_are_called_by_what_their_users_share() {
    // 200 like sneakers, 100 boots, 60 phones.
    let (rows, embeddings) = world(360, |user| usize::from(user >= 200) + usize::from(user >= 300));
    let clusters = found(&rows, &embeddings, None, 0, 3);
    assert_eq!(ids(&clusters), [("cluster:20261122-1", 200), ("cluster:20261122-2", 100), ("cluster:20261122-3", 60)]);
    let labels: Vec<&str> = clusters.audiences.iter().map(|audience| audience.label.as_str()).collect();
    assert_eq!(labels, ["运动鞋", "Boots", "Phones"]);
    let boots = &clusters.facts.clusters[1].interests;
    assert_eq!((boots.len(), boots[0].share), (1, 1.0), "shoes, which lie above, say nothing more");
    assert!((boots[0].lift - 3.6).abs() < 1e-9, "100 of 100 against 100 of 360");
    assert!(clusters.facts.explained.unwrap() > 0.8 && !clusters.facts.continued && clusters.facts.stability.is_none());
    assert_eq!(of_user(&clusters.members, "u_0250", "segment_id"), ["cluster:20261122-2"]);
    assert_eq!(clusters.audiences[1].users.len(), 100);
}

#[test]
fn a_cluster_keeps_its_id_while_its_users_stay_and_no_id_comes_back() {
    let (rows, embeddings) = world(360, |user| usize::from(user >= 200) + usize::from(user >= 300));
    let first = found(&rows, &embeddings, None, 0, 3);
    // The next night those of boots are many more than those of sneakers; the ids stay with the tastes.
    let (rows, embeddings) = world(360, |user| usize::from(user >= 80) + usize::from(user >= 300));
    let second = found(&rows, &embeddings, Some(&first.members), 1, 3);
    assert_eq!(ids(&second), [("cluster:20261122-1", 80), ("cluster:20261122-2", 220), ("cluster:20261122-3", 60)]);
    let stability: Vec<_> = second.facts.clusters.iter().map(|cluster| cluster.stability.unwrap()).collect();
    assert_eq!(stability, [80.0 / 200.0, 100.0 / 220.0, 1.0]);
    assert!(second.facts.gone.is_empty() && second.facts.stability.unwrap() > 0.5);
    // Phones are gone, and come back a night later: as somebody new.
    let (rows, embeddings) = world(300, |user| usize::from(user >= 80));
    let third = found(&rows, &embeddings, Some(&second.members), 2, 2);
    assert_eq!(ids(&third), [("cluster:20261122-1", 80), ("cluster:20261122-2", 220)]);
    assert_eq!(third.facts.gone, ["cluster:20261122-3"]);
    let (rows, embeddings) = world(360, |user| usize::from(user >= 80) + usize::from(user >= 300));
    let fourth = found(&rows, &embeddings, Some(&third.members), 3, 3);
    assert_eq!(ids(&fourth), [("cluster:20261122-1", 80), ("cluster:20261122-2", 220), ("cluster:20261125-1", 60)]);
}

#[test]
fn the_same_users_in_another_space_and_order_keep_their_ids() {
    let (rows, embeddings) = world(360, |user| user % 3);
    let first = found(&rows, &embeddings, None, 0, 3);
    // Another night's network has other axes.
    let turned = |row: &[f32]| vec![row[2], -row[0], row[1], row[3]];
    let turned = (0..360).rev().flat_map(|user| turned(embeddings.of(user))).collect();
    let again = Embeddings { users: embeddings.users.iter().rev().cloned().collect(), rows: turned, ..embeddings };
    let second = found(&rows, &again, Some(&first.members), 1, 3);
    assert_eq!(second.members, first.members);
    assert!(second.facts.continued && second.facts.stability == Some(1.0));
    assert_eq!(second.audiences, first.audiences);
}

#[test]
fn few_users_and_users_with_a_secret_make_no_audience() {
    // The settings allow three clusters, but phones have 30 users: below the floor of 50, and nothing is said of them.
    let (rows, embeddings) = world(330, |user| usize::from(user >= 200) + usize::from(user >= 300));
    let clusters = found(&rows, &embeddings, None, 0, 3);
    let few = &clusters.facts.clusters[2];
    assert_eq!((few.users, few.label.as_str(), few.interests.len()), (30, "cluster:20261122-3", 0));
    assert_eq!((few.withheld.as_deref(), clusters.audiences.len()), (Some("30 users are fewer than 50"), 2));
    // Most of those who like boots, and few others, are interested in a sensitive category.
    let (mut rows, embeddings) = world(330, |user| user % 3);
    rows.extend((0..330).filter(|user| user % 3 == 1 && user % 4 != 0).flat_map(|user| users(user, user + 1, "masks", 9.0)));
    let clusters = found(&rows, &embeddings, None, 0, 3);
    let withheld: Vec<bool> = clusters.facts.clusters.iter().map(|cluster| cluster.withheld.is_some()).collect();
    assert_eq!((withheld.iter().filter(|withheld| **withheld).count(), clusters.audiences.len()), (1, 2));
    assert!(clusters.audiences.iter().all(|audience| !audience.label.contains("Boots") && !audience.users.contains_key("u_0001")));
    assert_eq!(clusters.members.num_rows(), 330, "the next night still knows who was together");
}

#[test]
fn there_are_no_clusters_where_none_are_wanted_or_none_could_be_released() {
    let (rows, embeddings) = world(119, |user| user % 3);
    let clusters = found(&rows, &embeddings, None, 0, 8);
    assert_eq!((clusters.audiences.len(), clusters.members.num_rows()), (0, 0));
    assert_eq!(clusters.facts.skipped.as_deref(), Some("119 users with a taste are too few for two clusters of 60"));
    let (scores, categories) = (scores(&rows), categories());
    let none = Settings { clusters: clusters::Settings { k: 0 }, ..settings() };
    let behaviour = Behaviour { embeddings: &embeddings, yesterday: None, date: DATE, seed: 7 };
    assert!(clusters::find(&none, &inputs(&scores, &categories, None), &behaviour).unwrap().is_none());
    assert!(Settings { clusters: clusters::Settings { k: 1 }, ..settings() }.check().is_err());
}

#[test]
fn a_cluster_serves_those_whose_interests_are_too_rare() {
    // Of the 70 who like phones 10 have the label: too few for an interest, but together they are a cluster.
    let (mut rows, embeddings) = world(210, |user| user % 3);
    rows.retain(|(user, category, _)| *category != "phones" || user.as_str() < "u_0030");
    let clusters = found(&rows, &embeddings, None, 0, 3);
    let (scores, categories) = (scores(&rows), categories());
    let eligible: BTreeSet<String> = embeddings.users.iter().cloned().collect();
    let inputs = Inputs { audiences: &clusters.audiences, ..inputs(&scores, &categories, Some(&eligible)) };
    let segments = segment(&settings(), &inputs).unwrap();
    let served = of_user(&segments.user_segments, "u_0101", "segment_id");
    assert_eq!(served, [Kind::Cluster.segment_id("20261122-3")], "nobody is left for everyone");
    let cluster = segments.facts.segments.iter().find(|segment| segment.kind == "cluster").unwrap();
    assert_eq!((cluster.size, cluster.size_released), (70, 70));
    assert!(is_audience(&cluster.segment_id) && category_of(&cluster.segment_id).is_none());
}

// ---------------------------------------------------------------------------------------------------------------- lookalikes

fn list(users: impl IntoIterator<Item = usize>) -> SeedList {
    let users = users.into_iter().map(|user| format!("u_{user:04}")).collect();
    SeedList { name: "fans".into(), label: "Fans".into(), leads: false, users, size: None, keeps_seeds: false }
}

fn alike(
    rows: &[(String, &str, f64)],
    embeddings: &Embeddings,
    eligible: Option<&BTreeSet<String>>,
    list: &SeedList,
) -> (Option<Audience>, lookalikes::LookalikeFacts) {
    let (scores, categories) = (scores(rows), categories());
    lookalikes::find(&settings(), &inputs(&scores, &categories, eligible), embeddings, list, 7).unwrap()
}

/// Of 1200 users every third likes boots, 400 of them; the first 100 of these are the seeds.
fn boots() -> (Vec<(String, &'static str, f64)>, Embeddings, SeedList) {
    let (rows, embeddings) = world(1200, |user| user % 3);
    (rows, embeddings, list((0..300).filter(|user| user % 3 == 1)))
}

fn numbers(audience: &Audience) -> Vec<usize> {
    audience.users.keys().map(|user| user[2..].parse().unwrap()).collect()
}

#[test]
fn those_like_the_seeds_are_found_and_the_curve_says_how_many_there_are() {
    let (rows, embeddings, list) = boots();
    let (audience, facts) = alike(&rows, &embeddings, None, &list);
    let found = numbers(&audience.unwrap());
    assert_eq!(found.iter().filter(|user| *user % 3 == 1).count(), 300, "all of their taste, and none of the seeds: {found:?}");
    assert!(found.iter().all(|user| user % 3 != 1 || *user >= 300));
    // Hidden are 20 of 100 seeds a fold, among 1120 users ranked of whom 320 share their taste.
    let last = facts.curve.last().unwrap();
    assert_eq!((last.size, last.recall), (560, 1.0));
    assert!((last.lift - 2.0).abs() < 1e-9 && (last.precision - 20.0 / 560.0).abs() < 1e-9, "{last:?}");
    assert!(facts.curve.windows(2).all(|two| two[0].size < two[1].size && two[0].recall <= two[1].recall));
    let suggested = facts.suggested_size.unwrap();
    assert!((200..=336).contains(&suggested), "{facts:?}");
    assert_eq!((facts.size, facts.seeds, facts.seeds_known), (Some(suggested), 100, 100));
    assert!((facts.model_weight - 1.0 / 3.0).abs() < 1e-12, "100 seeds against 200 at which both judges count alike");
}

#[test]
fn the_header_says_how_many_are_wanted_and_whether_the_seeds_are_among_them() {
    let (rows, embeddings, list) = boots();
    let (audience, facts) = alike(&rows, &embeddings, None, &SeedList { size: Some(90), keeps_seeds: true, ..list.clone() });
    let found = numbers(&audience.unwrap());
    assert_eq!((found.len(), found.iter().filter(|user| **user < 300).count(), facts.size), (190, 100, Some(190)));
    assert!(found.iter().all(|user| user % 3 == 1));
    // Nobody who may not be targeted is a seed or like one.
    let eligible: BTreeSet<String> = (150..900).map(|user| format!("u_{user:04}")).collect();
    let (audience, facts) = alike(&rows, &embeddings, Some(&eligible), &list);
    assert_eq!(facts.seeds_known, 50);
    assert!(numbers(&audience.unwrap()).iter().all(|user| (150..900).contains(user) && (user % 3 != 1 || *user >= 300)));
}

#[test]
fn seeds_of_all_kinds_few_ones_and_those_with_a_secret_have_no_lookalikes() {
    let (mut rows, embeddings, seeds) = boots();
    let why = |rows: &[(String, &str, f64)], list: &SeedList| {
        let (audience, facts) = alike(rows, &embeddings, None, list);
        assert!(audience.is_none() && facts.size.is_none());
        facts.withheld.unwrap()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let anybody = list((0..1200).filter(|_| rng.random_bool(0.1)));
    assert!(why(&rows, &anybody).contains("all kinds of users"));
    assert_eq!(why(&rows, &list(0..49)), "49 seeds that may be targeted and have a taste are fewer than 50");
    let all = list(0..1200);
    assert_eq!(why(&rows, &all), "0 other users are fewer than 60");
    rows.extend((0..300).filter(|user| user % 3 == 1).flat_map(|user| users(user, user + 1, "health", 4.0)));
    assert_eq!(why(&rows, &seeds), "its seeds stand out by a category that cannot be a label");
}
