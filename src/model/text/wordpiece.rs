//! Text -> ids of word pieces, as a `tokenizer.json` of the BERT family says: cleaned, lower-cased and without accents, cut at spaces,
//! punctuation and Chinese characters, each word into the longest pieces that the vocabulary knows (Wu et al., arXiv 1609.08144).
//!
//! The same ids as those of the Python package tokenizers, but that a special token's name within a text is text.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::HashMap;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// A tokenizer with its vocabulary.
#[derive(Debug)]
pub(super) struct WordPiece {
    normalizer: Normalizer,
    model: Model,
    unknown: i64,
    first: i64,
    last: i64,
    /// With the first and the last token.
    longest: usize,
}

/// What of `tokenizer.json` is read.
#[derive(Deserialize)]
struct File {
    normalizer: Normalizer,
    pre_tokenizer: PreTokenizer,
    model: Model,
    truncation: Option<Truncation>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    BertNormalizer {
        clean_text: bool,
        handle_chinese_chars: bool,
        /// None: where it is lower-cased.
        strip_accents: Option<bool>,
        lowercase: bool,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    BertPreTokenizer,
}

#[derive(Debug, Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Kind,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: HashMap<String, i64>,
}

#[derive(Debug, Deserialize)]
enum Kind {
    WordPiece,
}

#[derive(Deserialize)]
struct Truncation {
    max_length: usize,
}

impl WordPiece {
    /// Reads a `tokenizer.json`; `positions` is the longest row of ids that the network takes.
    ///
    /// # Errors
    /// `Contract` for another kind of tokenizer.
    pub fn parse(json: &str, positions: usize) -> Result<Self> {
        let wrong = |why: &dyn std::fmt::Display| {
            Error::contract(format_args!("tokenizer.json: {why}"))
                .action("take a model with a BertNormalizer, a BertPreTokenizer and a WordPiece vocabulary")
        };
        let File { normalizer, pre_tokenizer: PreTokenizer::BertPreTokenizer, model, truncation } =
            serde_json::from_str(json).map_err(|error| wrong(&error))?;
        let Kind::WordPiece = model.kind;
        let id = |token: &str| model.vocab.get(token).copied().ok_or_else(|| wrong(&format_args!("the vocabulary lacks {token}")));
        let (unknown, first, last) = (id(&model.unk_token)?, id("[CLS]")?, id("[SEP]")?);
        let longest = truncation.map_or(positions, |truncation| truncation.max_length.min(positions)).max(2);
        Ok(Self { normalizer, unknown, first, last, longest, model })
    }

    /// The largest id that it can give.
    pub fn largest(&self) -> i64 {
        self.model.vocab.values().copied().max().unwrap_or(0)
    }

    /// `[CLS]`, the pieces of the text as far as there is room, `[SEP]`.
    pub fn ids(&self, text: &str) -> Vec<i64> {
        let mut ids = vec![self.first];
        let normal = self.normalizer.apply(text);
        for word in words(&normal) {
            if ids.len() >= self.longest {
                break;
            }
            self.pieces(word, &mut ids);
        }
        ids.truncate(self.longest - 1);
        ids.push(self.last);
        ids
    }

    /// Appends the pieces of a word: always the longest that begins the rest; the unknown token where some rest has none.
    fn pieces(&self, word: &str, ids: &mut Vec<i64>) {
        let before = ids.len();
        let mut rest = word;
        let known = word.chars().count() <= self.model.max_input_chars_per_word;
        while known && !rest.is_empty() {
            let prefix = if rest.len() < word.len() { self.model.continuing_subword_prefix.as_str() } else { "" };
            let mut piece = format!("{prefix}{rest}");
            let found = loop {
                match self.model.vocab.get(&piece) {
                    Some(id) => break Some((*id, piece.len() - prefix.len())),
                    None => drop(piece.pop()),
                }
                if piece.len() == prefix.len() {
                    break None;
                }
            };
            let Some((id, length)) = found else { break };
            ids.push(id);
            rest = &rest[length..];
        }
        if !rest.is_empty() {
            ids.truncate(before);
            ids.push(self.unknown);
        }
    }
}

impl Normalizer {
    fn apply(&self, text: &str) -> String {
        let Self::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } = self;
        let mut normal = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                _ if *clean_text && is_dirt(c) => {}
                _ if *clean_text && c.is_whitespace() => normal.push(' '),
                _ if *handle_chinese_chars && is_chinese(c) => normal.extend([' ', c, ' ']),
                _ => normal.push(c),
            }
        }
        if strip_accents.unwrap_or(*lowercase) {
            normal = normal.nfd().filter(|c| c.general_category() != GeneralCategory::NonspacingMark).collect();
        }
        if *lowercase { normal.chars().flat_map(char::to_lowercase).collect() } else { normal }
    }
}

/// Stretches without a space, and every punctuation mark for itself.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(char::is_whitespace).flat_map(|stretch| {
        let mut rest = stretch;
        std::iter::from_fn(move || {
            let first = rest.chars().next()?;
            let end = if is_punctuation(first) { first.len_utf8() } else { rest.find(is_punctuation).unwrap_or(rest.len()) };
            let (word, after) = rest.split_at(end);
            rest = after;
            Some(word)
        })
    })
}

fn is_dirt(c: char) -> bool {
    let control = || matches!(c.general_category(), GeneralCategory::Control | GeneralCategory::Format | GeneralCategory::PrivateUse);
    matches!(c, '\0' | '\u{fffd}') || !matches!(c, '\t' | '\n' | '\r') && control()
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// The blocks of CJK ideographs that BERT cuts at.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2a6df}'
        | '\u{2a700}'..='\u{2b73f}' | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}' | '\u{2f800}'..='\u{2fa1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(longest: usize) -> WordPiece {
        let tokens = ["[UNK]", "[CLS]", "[SEP]", "run", "##ning", "##n", "shoe", "##s", "手", "机", ",", "cafe", "!"];
        let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let json = serde_json::json!({
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10, "vocab": vocab},
            "truncation": null,
        });
        WordPiece::parse(&json.to_string(), longest).expect("a tokenizer")
    }

    #[test]
    fn words_are_cut_into_the_longest_known_pieces() {
        let ids = |text: &str| tokenizer(64).ids(text)[1..].split_last().expect("an end").1.to_vec();
        assert_eq!(ids("Running SHOES"), [3, 4, 6, 7]);
        assert_eq!(ids("runn"), [3, 5]);
        assert_eq!(ids("runner"), [0], "a word with an unknown rest is unknown as a whole");
        assert_eq!(ids("Café!\u{200b}"), [11, 12], "accents and what cannot be seen are gone");
        assert_eq!(ids("shoes,手机\n机"), [6, 7, 10, 8, 9, 9]);
        assert_eq!(ids("runrunrunrun"), [0], "eleven characters are more than ten");
        assert_eq!(ids(""), [0_i64; 0]);
    }

    #[test]
    fn a_long_text_keeps_its_start_and_the_last_token() {
        assert_eq!(tokenizer(5).ids("shoes shoes shoes"), [1, 6, 7, 6, 2]);
        assert_eq!(tokenizer(64).largest(), 12);
    }

    #[test]
    fn another_kind_of_tokenizer_is_refused_by_name() {
        let error = WordPiece::parse(r#"{"normalizer": {"type": "NFC"}, "pre_tokenizer": null, "model": {}}"#, 8).expect_err("refused");
        assert!(error.to_string().contains("BertNormalizer"), "{error}");
    }
}
