//! The words of a text, in scripts with spaces between them and without.

/// Calls `add` with each: words of scripts with spaces, bigrams and short whole runs of scripts without; in lower case.
pub fn each(text: &str, mut add: impl FnMut(&str)) {
    let text = text.to_lowercase();
    for run in runs(&text) {
        let starts: Vec<usize> = run.char_indices().map(|(at, _)| at).chain([run.len()]).collect();
        let chars = starts.len() - 1;
        if !run.starts_with(without_spaces) || chars <= 8 {
            add(run);
        }
        if run.starts_with(without_spaces) && chars > 2 {
            starts.windows(3).for_each(|at| add(&run[at[0]..at[2]]));
        }
    }
}

/// Longest stretches of letters and digits that are all of a script with, or all of one without spaces.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
        let first = rest.chars().next()?;
        let same = |c: char| c.is_alphanumeric() && without_spaces(c) == without_spaces(first);
        let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

/// Chinese, Japanese and their neighbours.
fn without_spaces(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn chinese_is_cut_into_bigrams_and_english_into_words() {
        assert_eq!(runs("iPhone15 手机配件, 新款!").collect::<Vec<_>>(), ["iPhone15", "手机配件", "新款"]);
        assert_eq!(words("手机配件"), ["手机配件", "手机", "机配", "配件"]);
        assert_eq!(words("Red SHOES, 新款"), ["red", "shoes", "新款"]);
    }
}
