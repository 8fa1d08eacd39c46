//! What a segment's users search for more than others do: the words by which people know it.
//!
//! Terms are counted over users, not over searches, and one that fewer than the lowest floor of a segment's users searched for is not
//! told. A term is told only where it is known to lead to categories of which labels may be made: one that leads elsewhere, or of
//! which nothing is known, may be about what nobody should be known for.

use super::tables::{full, members};
use super::{LOWEST_FLOOR, Segments, Taxonomy, tables};
use crate::error::Result;
use arrow::array::{Float64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A search term.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Keyword {
    pub term: String,
    /// Of the segment's users who searched for it.
    pub share: f64,
    /// Over the share of all released users.
    pub lift: f64,
}

/// What is known of searches.
#[derive(Clone, Copy)]
pub struct Searches<'a> {
    /// user_id, term: each once.
    pub terms: &'a RecordBatch,
    /// term, category_id, share of what the term leads to.
    pub leads: &'a RecordBatch,
}

const KEYWORDS: usize = 5;
const LEAST_LIFT: f64 = 1.2;
/// A term of which a larger share leads to what cannot be a label is not told.
const MOST_ELSEWHERE: f64 = 0.1;
/// Nor is one of which less is known to lead to what can.
const LEAST_KNOWN: f64 = 0.5;

impl Segments {
    /// Gives every segment its keywords, best first.
    pub fn add_keywords(&mut self, searches: Searches, taxonomy: &Taxonomy) -> Result<()> {
        let mut keywords = keywords(&self.user_segments, searches, taxonomy)?;
        for segment in &mut self.facts.segments {
            segment.keywords = keywords.remove(&segment.segment_id).unwrap_or_default();
        }
        self.segments = tables::segments_table(&self.facts.segments)?;
        Ok(())
    }
}

/// By segment, by share x ln(lift): what both many of its users and few others search for.
fn keywords(user_segments: &RecordBatch, searches: Searches, taxonomy: &Taxonomy) -> Result<BTreeMap<String, Vec<Keyword>>> {
    let told = may_be_told(searches.leads, taxonomy)?;
    let members = members(user_segments)?;
    let users: BTreeSet<&str> = members.values().flatten().copied().collect();
    let mut terms_of: HashMap<&str, Vec<&str>> = HashMap::new();
    let (of_user, terms) = (full::<StringArray>(searches.terms, "user_id")?, full::<StringArray>(searches.terms, "term")?);
    for (user, term) in of_user.iter().flatten().zip(terms.iter().flatten()) {
        if users.contains(user) && told.contains(term) {
            terms_of.entry(user).or_default().push(term);
        }
    }
    let mut by_all: HashMap<&str, u64> = HashMap::new();
    terms_of.values().flatten().for_each(|term| *by_all.entry(term).or_default() += 1);
    let of_segment = |(segment, members): (&&str, &HashSet<&str>)| {
        let mut by_term: BTreeMap<&str, u64> = BTreeMap::new();
        members.iter().filter_map(|user| terms_of.get(user)).flatten().for_each(|term| *by_term.entry(term).or_default() += 1);
        let keyword = |(term, count): (&str, u64)| {
            let share = count as f64 / members.len() as f64;
            Keyword { term: term.to_owned(), share, lift: share * users.len() as f64 / by_all[term] as f64 }
        };
        let many = by_term.into_iter().filter(|(_, count)| *count >= LOWEST_FLOOR);
        let mut found: Vec<Keyword> = many.map(keyword).filter(|keyword| keyword.lift >= LEAST_LIFT).collect();
        let worth = |keyword: &Keyword| keyword.share * keyword.lift.ln();
        found.sort_by(|a, b| worth(b).total_cmp(&worth(a)).then_with(|| a.term.cmp(&b.term)));
        found.truncate(KEYWORDS);
        ((*segment).to_owned(), found)
    };
    Ok(members.iter().map(of_segment).collect())
}

/// The terms that lead to possible labels, and hardly anywhere else.
fn may_be_told<'a>(leads: &'a RecordBatch, taxonomy: &Taxonomy) -> Result<BTreeSet<&'a str>> {
    let (terms, categories) = (full::<StringArray>(leads, "term")?, full::<StringArray>(leads, "category_id")?);
    let shares = full::<Float64Array>(leads, "share")?;
    let mut known: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for row in 0..leads.num_rows() {
        let (all, elsewhere) = known.entry(terms.value(row)).or_default();
        *all += shares.value(row);
        *elsewhere += if taxonomy.may_be_label(categories.value(row)) { 0.0 } else { shares.value(row) };
    }
    let is_told = |all: f64, elsewhere: f64| elsewhere <= MOST_ELSEWHERE * all && all - elsewhere >= LEAST_KNOWN;
    Ok(known.into_iter().filter(|(_, (all, elsewhere))| is_told(*all, *elsewhere)).map(|(term, _)| term).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{categories, scores, settings, users};
    use super::super::{Inputs, segment, table};
    use super::*;
    use arrow::array::ArrayRef;
    use std::sync::Arc;

    /// Two segments of 200 users each; what u_0000 to u_0399 search for, and where terms lead.
    fn found(searched: &[(std::ops::Range<usize>, &str)], leads: &[(&str, &str, f64)]) -> Segments {
        let rows: Vec<_> = users(0, 200, "boots", 5.0).into_iter().chain(users(200, 400, "phones", 5.0)).collect();
        let (scores, categories) = (scores(&rows), categories());
        let inputs = Inputs { scores: &scores, categories: &categories, audiences: &[], eligible: None, previous: None, weights: None };
        let mut segments = segment(&settings(), &inputs).unwrap();
        let terms: Vec<(String, &str)> =
            searched.iter().flat_map(|(users, term)| users.clone().map(|user| (format!("u_{user:04}"), *term))).collect();
        let strings = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        let terms = table([
            ("user_id", strings(terms.iter().map(|row| row.0.as_str()).collect()), false),
            ("term", strings(terms.iter().map(|row| row.1).collect()), false),
        ])
        .unwrap();
        let leads = table([
            ("term", strings(leads.iter().map(|row| row.0).collect()), false),
            ("category_id", strings(leads.iter().map(|row| row.1).collect()), false),
            ("share", Arc::new(Float64Array::from_iter_values(leads.iter().map(|row| row.2))) as ArrayRef, false),
        ])
        .unwrap();
        segments.add_keywords(Searches { terms: &terms, leads: &leads }, &Taxonomy::read(&categories).unwrap()).unwrap();
        segments
    }

    fn of<'a>(segments: &'a Segments, id: &str) -> Vec<&'a str> {
        let segment = segments.facts.segments.iter().find(|segment| segment.segment_id == id).unwrap();
        segment.keywords.iter().map(|keyword| keyword.term.as_str()).collect()
    }

    #[test]
    fn a_segment_is_known_by_what_many_of_it_and_few_others_search_for() {
        let searched = [(0..120, "靴子"), (0..90, "warm boots"), (150..210, "everything"), (0..400, "gift"), (200..330, "phone case")];
        let leads = [
            ("靴子", "boots", 0.8),
            ("warm boots", "boots", 0.9),
            ("everything", "boots", 0.9),
            ("gift", "boots", 0.5),
            ("phone case", "phones", 0.7),
        ];
        let segments = found(&searched, &leads);
        assert_eq!(of(&segments, "interest:boots"), ["靴子", "warm boots", "everything"]);
        assert_eq!(of(&segments, "interest:phones"), ["phone case"]);
        let boots = &segments.facts.segments[0];
        assert!((boots.keywords[0].share - 0.6).abs() < 1e-12 && (boots.keywords[0].lift - 2.0).abs() < 1e-12, "{boots:?}");
        let told = full::<StringArray>(&segments.segments, "keywords").unwrap();
        assert_eq!(told.value(0), "靴子, warm boots, everything");
    }

    #[test]
    fn few_people_a_sensitive_goal_and_an_unknown_one_are_not_told() {
        let searched = [(0..49, "rare"), (0..150, "mask"), (0..150, "nobody knows where"), (0..150, "both")];
        let leads = [("rare", "boots", 0.9), ("mask", "masks", 0.9), ("both", "boots", 0.8), ("both", "health", 0.1)];
        assert_eq!(of(&found(&searched, &leads), "interest:boots"), [""; 0]);
    }
}
