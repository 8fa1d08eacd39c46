//! Texts -> ids of hashed words and n-grams.

use super::{TEXT_BUCKETS, TEXT_LENGTH};
use crate::platform::words;
use xxhash_rust::xxh3::xxh3_64;

/// Hashed words and n-grams of texts.
pub(super) struct Grams {
    offset: i32,
    ids: Vec<i32>,
}

impl Grams {
    pub fn new(offset: i32) -> Self {
        Self { offset, ids: Vec::with_capacity(TEXT_LENGTH) }
    }

    /// Those of the first distinct words.
    pub fn of<'t>(&mut self, texts: impl Iterator<Item = &'t str>) -> &[i32] {
        self.ids.clear();
        for text in texts {
            words::each(text, |word| self.add(word));
            if self.ids.len() == TEXT_LENGTH {
                break;
            }
        }
        &self.ids
    }

    fn add(&mut self, gram: &str) {
        let id = self.offset + (xxh3_64(gram.as_bytes()) % TEXT_BUCKETS as u64) as i32;
        if self.ids.len() < TEXT_LENGTH && !self.ids.contains(&id) {
            self.ids.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grams(texts: &[&str]) -> Vec<i32> {
        Grams::new(0).of(texts.iter().copied()).to_vec()
    }

    #[test]
    fn a_text_holds_the_ids_of_its_parts_whatever_the_case() {
        let name = grams(&["手机配件"]);
        assert_eq!(name.len(), 4, "the whole and three bigrams");
        assert!(grams(&["手机"]).iter().all(|gram| name.contains(gram)));
        assert_eq!(grams(&["Red SHOES"]), grams(&["red", "shoes"]));
    }
}
