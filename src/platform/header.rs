//! The comment lines on top of a SQL file: what the table is for, and fields of the form `-- grain: user_id`.

use crate::platform::catalog::nearest;
use crate::platform::diagnostic::Diagnostic;
use std::ops::Range;

/// The fields that a header may have, each with what it says.
pub const FIELDS: [(&str, &str); 16] = [
    ("grain", "the columns that make a row unique"),
    ("owner", "the team that answers for it"),
    ("tags", "words to select tables by"),
    ("daily", "the raw table of which each day is staged once"),
    ("window", "of a feature: how far back it sees, and that its rows of a past day are kept"),
    ("not_null", "columns that are never NULL"),
    ("unique", "columns of which no value comes twice"),
    ("accepted", "the values that a column may have"),
    ("range", "the numbers between which a column lies"),
    ("relationship", "the column of another table in which each value stands"),
    ("severity", "of a check: error stops the night, warn is told"),
    ("label", "of a segment: its name for people"),
    ("place", "of a segment: before the interests of its users, or after them"),
    ("kind", "of a segment: rule, its users are the segment; seed, those like its users are"),
    ("size", "of a segment of kind seed: the users wanted"),
    ("seeds", "of a segment of kind seed: in or out, whether its own users are in it"),
];

/// A header's lines, as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// The lines that are no fields, joined.
    pub description: String,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub value: String,
    /// Where the name and the value stand; bytes of the file.
    pub name_at: Range<usize>,
    pub value_at: Range<usize>,
}

impl Header {
    pub fn read(text: &str) -> Self {
        let mut header = Self::default();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let Some(comment) = line.strip_prefix("--") else { break };
            let place = |part: &str| {
                let at = part.as_ptr() as usize - line.as_ptr() as usize;
                start + at..start + at + part.len()
            };
            let comment = comment.trim();
            match comment.split_once(':').filter(|(name, _)| is_field_name(name)) {
                Some((name, value)) => {
                    let value = value.trim();
                    let (name_at, value_at) = (place(name), place(value));
                    header.fields.push(Field { name: name.to_owned(), value: value.to_owned(), name_at, value_at });
                }
                None if header.description.is_empty() => header.description = comment.to_owned(),
                None => header.description = format!("{} {comment}", header.description),
            }
            start += line.len();
        }
        header
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The parts of a field that is a list: `user_id, category_id`.
    pub fn list(&self, name: &str) -> Vec<String> {
        let parts = self.field(name).into_iter().flat_map(|field| field.value.split(','));
        parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// What is wrong with the header by itself.
    pub fn faults(&self) -> Vec<Diagnostic> {
        let mut faults = Vec::new();
        for (at, field) in self.fields.iter().enumerate() {
            let Field { name, value, name_at, value_at } = field;
            if !FIELDS.iter().any(|(known, _)| known == name) {
                let known = FIELDS.map(|(known, _)| known);
                let fault = Diagnostic::error("header", format!("a header has no field {name}")).at(name_at.clone(), "unknown field");
                faults.push(match nearest(name, known.into_iter()) {
                    Some(near) => fault.help("a field of a similar name exists").suggest(name_at.clone(), near),
                    None => fault.help(format!("the fields are {}", known.join(", "))),
                });
            } else if self.fields[..at].iter().any(|earlier| earlier.name == *name) {
                faults.push(Diagnostic::error("header", format!("the header says {name} twice")).at(name_at.clone(), "again"));
            } else if value.is_empty() {
                faults.push(Diagnostic::error("header", format!("the header's {name} is empty")).at(name_at.clone(), "of what?"));
            } else if name == "severity" && !matches!(value.as_str(), "error" | "warn") {
                faults.push(Diagnostic::error("header", format!("no severity is called {value}")).at(value_at.clone(), "error or warn"));
            } else if name == "place" && !matches!(value.as_str(), "before" | "after") {
                faults.push(Diagnostic::error("header", format!("no place is called {value}")).at(value_at.clone(), "before or after"));
            } else if name == "kind" && !matches!(value.as_str(), "rule" | "seed") {
                faults.push(Diagnostic::error("header", format!("no segment is of kind {value}")).at(value_at.clone(), "rule or seed"));
            } else if name == "size" && value.parse::<u64>().map_or(true, |size| size == 0) {
                let fault = Diagnostic::error("header", format!("{value} is no number of users")).at(value_at.clone(), "a whole number");
                faults.push(fault.help("leave the field out to get as many users as the night suggests"));
            } else if name == "seeds" && !matches!(value.as_str(), "in" | "out") {
                faults.push(Diagnostic::error("header", format!("seeds are in or out, not {value}")).at(value_at.clone(), "in or out"));
            } else if matches!(name.as_str(), "size" | "seeds") && self.field("kind").is_none_or(|kind| kind.value != "seed") {
                let fault = Diagnostic::error("header", format!("{name} says something of seeds, and this file has none"));
                faults.push(fault.at(name_at.clone(), "without kind: seed").help("add the line `-- kind: seed`"));
            } else if name == "window" && header_days(value).is_none() {
                faults.push(Diagnostic::error("header", format!("{value} is no window")).at(value_at.clone(), "write it as 30 days"));
            } else if name == "grain" {
                let columns = self.list("grain");
                if let Some(twice) = columns.iter().enumerate().find(|(at, column)| columns[..*at].contains(column)) {
                    faults.push(Diagnostic::error("header", format!("the grain names {} twice", twice.1)).at(value_at.clone(), ""));
                }
            }
        }
        if self.field("grain").is_none() && !faults.iter().any(|fault| fault.suggestion.as_ref().is_some_and(|s| s.replacement == "grain"))
        {
            faults.push(
                Diagnostic::error("header", "the header lacks a line `-- grain: <key columns>`")
                    .at(0..0, "the header belongs here")
                    .help("name the columns that make a row unique, as in `-- grain: user_id`"),
            );
        }
        let absent = [("owner", self.field("owner").is_none()), ("description", self.description.is_empty())];
        let absent: Vec<&str> = absent.into_iter().filter(|(_, absent)| *absent).map(|(name, _)| name).collect();
        if !absent.is_empty() {
            let fault = Diagnostic::warning("header", format!("the header lacks its {}", absent.join(" and its "))).at(0..0, "");
            faults.push(fault.help("say on top in one line what the table is for, and who answers for it: `-- owner: <team>`"));
        }
        faults
    }
}

/// Whole days, `30 days` or `1 day`.
pub fn header_days(value: &str) -> Option<u64> {
    let (number, unit) = value.split_once(' ')?;
    matches!(unit.trim(), "day" | "days").then(|| number.parse().ok()).flatten().filter(|days| (1..=3660).contains(days))
}

/// A field's name is one word in small letters; what else stands before a colon is prose.
fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "-- Ads shown: each once.\n-- And clicked.\n-- grain: user_id, ad_id\n--owner:ads\nSELECT 1 -- daily: x\n";

    #[test]
    fn prose_and_fields_are_told_apart() {
        let header = Header::read(TEXT);
        assert_eq!(header.description, "Ads shown: each once. And clicked.");
        assert_eq!(header.list("grain"), ["user_id", "ad_id"]);
        assert_eq!(header.field("daily"), None, "the header ends with the first line of SQL");
        let owner = header.field("owner").expect("an owner");
        assert_eq!((&TEXT[owner.name_at.clone()], &TEXT[owner.value_at.clone()]), ("owner", "ads"));
        assert_eq!(header.faults(), []);
    }

    #[test]
    fn what_is_wanted_of_seeds_is_checked() {
        let messages = |fields: &str| {
            let faults = Header::read(&format!("-- A.\n-- grain: user_id\n-- owner: x\n{fields}")).faults();
            faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>()
        };
        assert_eq!(messages("-- kind: seed\n-- size: 500\n-- seeds: in\n"), [""; 0]);
        assert_eq!(messages("-- kind: seeds\n"), ["no segment is of kind seeds"]);
        assert_eq!(messages("-- kind: seed\n-- size: many\n"), ["many is no number of users"]);
        assert_eq!(messages("-- kind: seed\n-- size: 0\n"), ["0 is no number of users"]);
        assert_eq!(messages("-- kind: seed\n-- seeds: yes\n"), ["seeds are in or out, not yes"]);
        assert_eq!(messages("-- size: 500\n"), ["size says something of seeds, and this file has none"]);
    }

    #[test]
    fn what_a_header_lacks_or_says_twice_is_found() {
        let messages = |text: &str| Header::read(text).faults().into_iter().map(|fault| fault.message).collect::<Vec<_>>();
        assert_eq!(messages("-- A.\n-- owner: x\n"), ["the header lacks a line `-- grain: <key columns>`"]);
        assert_eq!(messages("-- A.\n-- grian: a\n-- owner: x\n"), ["a header has no field grian"]);
        assert_eq!(
            messages("-- A.\n-- grain: a\n-- grain: b\n-- owner:\n"),
            ["the header says grain twice", "the header's owner is empty"]
        );
        assert_eq!(messages("-- A.\n-- grain: a\n-- owner: x\n-- window: a month\n"), ["a month is no window"]);
        assert_eq!(header_days("30 days").zip(header_days("1 day")), Some((30, 1)));
        assert_eq!(messages("-- A.\n-- grain: a, a\n-- owner: x\n"), ["the grain names a twice"]);
        assert_eq!(messages("-- grain: a\n"), ["the header lacks its owner and its description"]);
    }
}
