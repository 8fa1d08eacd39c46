//! The ads that a segment may see, where there are too many to score each of them for each segment.
//!
//! Two recommenders name ads for a segment:
//!
//! - collaborative: ads clicked by those who clicked what the segment's users clicked. The similarity of two ads is the cosine of the
//!   sets of their clickers, less where few clicked both (Sarwar et al., WWW 2001).
//! - content: ads whose titles are about what the segment's users search for, by the cosine of tf-idf vectors of their words.
//!
//! Their lists are merged by reciprocal ranks (Cormack et al., SIGIR 2009). A quarter of the room falls to ads by chance, other ones every
//! night: nobody has clicked a new ad yet, and what is shown for comparison must not be chosen for the segment.

use crate::error::Result;
use crate::platform::words;
use crate::segments::full;
use arrow::array::{RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What the recommenders go by.
#[derive(Clone, Copy)]
pub struct Signs<'a> {
    /// user_id, segment_id: whom each segment serves.
    pub primary: &'a RecordBatch,
    /// user_id, ad_id, each once: who clicked what.
    pub clicks: &'a RecordBatch,
    /// user_id, term, each once; `None` where searches are not known.
    pub searches: Option<&'a RecordBatch>,
    /// Ad -> title.
    pub titles: &'a BTreeMap<&'a str, &'a str>,
}

/// The ads of each segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    pub by_segment: BTreeMap<String, BTreeSet<String>>,
    /// Those among them that chance chose.
    pub by_chance: BTreeMap<String, BTreeSet<String>>,
    pub facts: CandidateFacts,
}

/// How many pairs of a segment and an ad came from where; one that both recommenders named counts for both.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CandidateFacts {
    pub collaborative: u64,
    pub content: u64,
    /// By chance, whoever else named them.
    pub by_chance: u64,
}

/// A rank's share of the merged score is one over this and the rank.
const RANK_CONSTANT: f64 = 60.0;
/// The share of a segment's room that chance fills.
const CHANCE: f64 = 0.25;
/// A pair of ads with so many common clickers counts half.
const PRIOR_CLICKERS: f64 = 5.0;
/// Ads of a user who clicked more than this say little of each other.
const MOST_CLICKED: usize = 100;

/// `most` of the ads, which are more, for each segment; `seed` decides what falls to chance.
pub fn choose(most: usize, ads: &BTreeSet<&str>, signs: &Signs, seed: u64) -> Result<Candidates> {
    let (users, segments) = (full::<StringArray>(signs.primary, "user_id")?, full::<StringArray>(signs.primary, "segment_id")?);
    let segment_of: HashMap<&str, &str> = users.iter().flatten().zip(segments.iter().flatten()).collect();
    let collaborative = by_clicks(&segment_of, ads, signs.clicks)?;
    let content = match signs.searches {
        Some(searches) => by_words(&segment_of, ads, searches, signs.titles)?,
        None => BTreeMap::new(),
    };
    let mut found = Candidates { by_segment: BTreeMap::new(), by_chance: BTreeMap::new(), facts: CandidateFacts::default() };
    for segment in segment_of.values().copied().collect::<BTreeSet<&str>>() {
        let lists = [collaborative.get(segment), content.get(segment)].map(|list| list.map_or(&[][..], Vec::as_slice));
        let mut drawn: Vec<(u64, &str)> =
            ads.iter().map(|ad| (xxh3_64_with_seed(format!("{segment}\n{ad}").as_bytes(), seed), *ad)).collect();
        drawn.sort_unstable();
        let chance = ((most as f64 * CHANCE).ceil() as usize).min(most);
        let mut chosen: BTreeSet<&str> = drawn[..chance].iter().map(|(_, ad)| *ad).collect();
        found.by_chance.insert(segment.to_owned(), owned(&chosen));
        let mut merged: BTreeMap<&str, f64> = BTreeMap::new();
        for list in lists {
            for (rank, ad) in list.iter().enumerate() {
                *merged.entry(ad).or_default() += 1.0 / (RANK_CONSTANT + rank as f64 + 1.0);
            }
        }
        for ad in ranked(merged).into_iter().chain(drawn[chance..].iter().map(|(_, ad)| *ad)) {
            if chosen.len() < most {
                chosen.insert(ad);
            }
        }
        let named = |list: &[&str]| list.iter().filter(|ad| chosen.contains(*ad)).count() as u64;
        found.facts.collaborative += named(lists[0]);
        found.facts.content += named(lists[1]);
        found.facts.by_chance += chance as u64;
        found.by_segment.insert(segment.to_owned(), owned(&chosen));
    }
    Ok(found)
}

fn owned(ads: &BTreeSet<&str>) -> BTreeSet<String> {
    ads.iter().map(|ad| (*ad).to_owned()).collect()
}

/// Best first: the live ads with a score above zero.
type Lists<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn ranked<'a>(scores: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<&'a str> {
    let mut scores: Vec<(&str, f64)> = scores.into_iter().filter(|(_, score)| *score > 0.0).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    scores.into_iter().map(|(ad, _)| ad).collect()
}

fn by_clicks<'a>(segment_of: &HashMap<&'a str, &'a str>, live: &BTreeSet<&'a str>, clicks: &'a RecordBatch) -> Result<Lists<'a>> {
    let (users, ads) = (full::<StringArray>(clicks, "user_id")?, full::<StringArray>(clicks, "ad_id")?);
    let mut clicked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (user, ad) in users.iter().flatten().zip(ads.iter().flatten()) {
        clicked.entry(user).or_default().insert(ad);
    }
    let mut clickers: BTreeMap<&str, f64> = BTreeMap::new();
    let mut both: HashMap<&str, BTreeMap<&str, f64>> = HashMap::new();
    let mut of_segment: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for (user, ads) in clicked.iter().filter(|(_, ads)| ads.len() <= MOST_CLICKED) {
        for ad in ads {
            *clickers.entry(ad).or_default() += 1.0;
            for other in ads.iter().filter(|other| live.contains(*other)) {
                *both.entry(ad).or_default().entry(other).or_default() += 1.0;
            }
        }
        if let Some(segment) = segment_of.get(user) {
            let counts = of_segment.entry(segment).or_default();
            ads.iter().for_each(|ad| *counts.entry(ad).or_default() += 1.0);
        }
    }
    let similarity = |ad: &str, other: &str, common: f64| {
        let cosine = common / (clickers[ad] * clickers[other]).sqrt();
        if ad == other { cosine } else { cosine * common / (common + PRIOR_CLICKERS) }
    };
    let list = |counts: &BTreeMap<&'a str, f64>| {
        let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
        for (ad, clicks) in counts {
            for (other, common) in both.get(ad).into_iter().flatten() {
                *scores.entry(other).or_default() += clicks * similarity(ad, other, *common);
            }
        }
        ranked(scores)
    };
    Ok(of_segment.iter().map(|(segment, counts)| (*segment, list(counts))).collect())
}

fn by_words<'a>(
    segment_of: &HashMap<&'a str, &'a str>,
    live: &BTreeSet<&'a str>,
    searches: &'a RecordBatch,
    titles: &BTreeMap<&'a str, &'a str>,
) -> Result<Lists<'a>> {
    // Word -> the live ads that have it in their titles, and how often.
    let mut holders: HashMap<String, BTreeMap<&str, f64>> = HashMap::new();
    for ad in live {
        words::each(titles.get(ad).copied().unwrap_or_default(), |word| {
            *holders.entry(word.to_owned()).or_default().entry(ad).or_default() += 1.0;
        });
    }
    let weight = |word: &str| holders.get(word).map_or(0.0, |ads| (1.0 + live.len() as f64 / ads.len() as f64).ln());
    let mut norms: BTreeMap<&str, f64> = BTreeMap::new();
    let mut sorted: Vec<&String> = holders.keys().collect();
    sorted.sort_unstable();
    for word in &sorted {
        holders[*word].iter().for_each(|(ad, times)| *norms.entry(ad).or_default() += (times * weight(word)).powi(2));
    }
    let (users, terms) = (full::<StringArray>(searches, "user_id")?, full::<StringArray>(searches, "term")?);
    let mut by_term: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for (user, term) in users.iter().flatten().zip(terms.iter().flatten()) {
        if let Some(segment) = segment_of.get(user) {
            *by_term.entry((segment, term)).or_default() += 1.0;
        }
    }
    let mut profiles: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    for ((segment, term), users) in by_term {
        let profile = profiles.entry(segment).or_default();
        words::each(term, |word| {
            if holders.contains_key(word) {
                *profile.entry(word.to_owned()).or_default() += users;
            }
        });
    }
    let list = |profile: &BTreeMap<String, f64>| {
        let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
        for (word, users) in profile {
            for (ad, times) in &holders[word] {
                *scores.entry(ad).or_default() += users * times * weight(word).powi(2);
            }
        }
        ranked(scores.into_iter().map(|(ad, score)| (ad, score / norms[ad].sqrt())))
    };
    Ok(profiles.iter().map(|(segment, profile)| (*segment, list(profile))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::table;
    use arrow::array::ArrayRef;
    use std::sync::Arc;

    fn pairs(names: [&str; 2], rows: &[(String, String)]) -> RecordBatch {
        let strings = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        table([
            (names[0], strings(rows.iter().map(|row| row.0.as_str()).collect()), false),
            (names[1], strings(rows.iter().map(|row| row.1.as_str()).collect()), false),
        ])
        .unwrap()
    }

    /// Users 0..10 are of segment a, 10..20 of segment b, 20..30 of none. Ads: ad_00 to ad_29.
    fn chosen(most: usize, clicks: &[(usize, usize)], searches: &[(usize, &str)], titles: &[(&str, &str)]) -> Candidates {
        let user = |user: usize| format!("u_{user:02}");
        let ids: Vec<String> = (0..30).map(|ad| format!("ad_{ad:02}")).collect();
        let ads: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let primary: Vec<_> = (0..20).map(|i| (user(i), if i < 10 { "a" } else { "b" }.to_owned())).collect();
        let clicks: Vec<_> = clicks.iter().map(|(i, ad)| (user(*i), ids[*ad].clone())).collect();
        let searches: Vec<_> = searches.iter().map(|(i, term)| (user(*i), (*term).to_owned())).collect();
        let signs = Signs {
            primary: &pairs(["user_id", "segment_id"], &primary),
            clicks: &pairs(["user_id", "ad_id"], &clicks),
            searches: Some(&pairs(["user_id", "term"], &searches)),
            titles: &titles.iter().copied().collect(),
        };
        choose(most, &ads, &signs, 7).unwrap()
    }

    #[test]
    fn what_the_likes_of_a_segment_click_is_its_candidate() {
        // Segment a clicks 3; outside of it whoever clicks 3 clicks 4; segment b clicks 9.
        let clicks: Vec<(usize, usize)> =
            (0..5).map(|i| (i, 3)).chain((20..30).flat_map(|i| [(i, 3), (i, 4)])).chain((10..15).map(|i| (i, 9))).collect();
        let found = chosen(5, &clicks, &[], &[]);
        assert!(["ad_03", "ad_04"].iter().all(|ad| found.by_segment["a"].contains(*ad)), "{found:?}");
        assert!(found.by_segment["b"].contains("ad_09"));
        assert_eq!((found.facts.collaborative, found.facts.content), (3, 0));
    }

    #[test]
    fn a_new_ad_is_found_by_its_title_in_either_script() {
        let searches = [(1, "跑步鞋"), (2, "跑步鞋"), (11, "Running Shoes")];
        let titles = [("ad_20", "新款跑步鞋男"), ("ad_21", "running shoes for men"), ("ad_22", "phone")];
        let found = chosen(4, &[], &searches, &titles);
        assert!(found.by_segment["a"].contains("ad_20") && found.by_segment["b"].contains("ad_21"), "{found:?}");
        assert_eq!((found.facts.collaborative, found.facts.content), (0, 2));
    }

    #[test]
    fn a_quarter_is_chance_and_other_ads_every_night() {
        let found = chosen(8, &[(0, 3)], &[], &[]);
        for segment in ["a", "b"] {
            assert_eq!((found.by_segment[segment].len(), found.by_chance[segment].len()), (8, 2));
            assert!(found.by_chance[segment].is_subset(&found.by_segment[segment]));
        }
        assert_eq!(found, chosen(8, &[(0, 3)], &[], &[]));
        let nobody = pairs(["user_id", "ad_id"], &[]);
        let primary = pairs(["user_id", "segment_id"], &[("u".to_owned(), "a".to_owned())]);
        let signs = Signs { primary: &primary, clicks: &nobody, searches: None, titles: &BTreeMap::new() };
        let ids: Vec<String> = (0..30).map(|ad| format!("ad_{ad:02}")).collect();
        let ads: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let tried: BTreeSet<String> =
            (0..40).flat_map(|night| choose(4, &ads, &signs, night).unwrap().by_segment.remove("a").unwrap()).collect();
        assert_eq!(tried.len(), 30, "in forty nights every ad was tried");
    }
}
