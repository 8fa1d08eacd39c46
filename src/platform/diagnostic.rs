//! What is wrong with a file, where, and what to write instead: printed as a compiler prints it, or given as data.

use crate::error::Error;
use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One finding in one file.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The rule's name, for people who search and programs that filter: `unknown-column`.
    pub rule: &'static str,
    pub message: String,
    pub file: PathBuf,
    /// From 1; absent when the finding is about the file as a whole.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    /// What the caret says.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
    pub suggestion: Option<Suggestion>,
    pub notes: Vec<String>,
    #[serde(skip)]
    span: Option<Range<usize>>,
    #[serde(skip)]
    text: Arc<str>,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
}

/// Text to put in the place of other text.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Suggestion {
    /// Bytes of the file that are replaced.
    pub span: Range<usize>,
    pub replacement: String,
}

impl Diagnostic {
    pub fn error(rule: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, rule, message.into())
    }

    pub fn warning(rule: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, rule, message.into())
    }

    fn new(severity: Severity, rule: &'static str, message: String) -> Self {
        let (label, help, suggestion, notes) = (String::new(), None, None, Vec::new());
        let (file, line, column, span, text) = (PathBuf::new(), None, None, None, Arc::from(""));
        Self { severity, rule, message, file, line, column, label, help, suggestion, notes, span, text }
    }

    /// Where the caret stands and what it says; bytes of the file.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.span = Some(span);
        self.label = label.into();
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What to write instead of the text at `span`.
    pub fn suggest(mut self, span: Range<usize>, replacement: impl Into<String>) -> Self {
        self.suggestion = Some(Suggestion { span, replacement: replacement.into() });
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The file that the spans mean.
    pub fn within(mut self, file: &Path, text: &str) -> Self {
        self.file = file.to_owned();
        self.text = Arc::from(text);
        if let Some(span) = &mut self.span {
            // An empty place, as the end of the file is, still deserves a caret.
            let start = floor_char_boundary(text, span.start);
            *span = start..floor_char_boundary(text, span.end).max(start);
            let before = &text[..start];
            self.line = Some(before.matches('\n').count() + 1);
            self.column = Some(before.rsplit('\n').next().unwrap_or_default().chars().count() + 1);
        }
        self
    }

    pub fn span(&self) -> Option<&Range<usize>> {
        self.span.as_ref()
    }

    /// As a compiler prints it: message, file and line, the line itself with a caret, and what to write instead.
    pub fn render(&self, colour: bool) -> String {
        let path = self.file.display().to_string();
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut main = Group::with_title(level.primary_title(&self.message).id(self.rule));
        match &self.span {
            Some(span) => {
                let caret = AnnotationKind::Primary.span(span.clone()).label(&self.label);
                main = main.element(Snippet::source(&*self.text).path(&path).annotation(caret));
            }
            None => main = main.element(annotate_snippets::Origin::path(&path)),
        }
        main = main.elements(self.notes.iter().map(|note| Level::NOTE.message(note)));
        let mut report = Vec::new();
        match (&self.help, &self.suggestion) {
            (help, Some(Suggestion { span, replacement })) => {
                let title = help.as_deref().unwrap_or("write instead");
                let patch = Patch::new(span.clone(), replacement);
                report.push(main);
                report.push(Level::HELP.secondary_title(title).element(Snippet::source(&*self.text).path(&path).patch(patch)));
            }
            (Some(help), None) => report.push(main.element(Level::HELP.message(help))),
            (None, None) => report.push(main),
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&report)
    }
}

/// One line: `sql/shop/features/user__a.sql:3:8: no column pirce; did you mean price?`
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        match (&self.suggestion, &self.help) {
            (Some(Suggestion { replacement, .. }), _) if !replacement.is_empty() => write!(f, "; did you mean {replacement}?"),
            (_, Some(help)) => write!(f, "; {help}"),
            _ => Ok(()),
        }
    }
}

impl From<Diagnostic> for Error {
    fn from(found: Diagnostic) -> Self {
        Error::usage(found).action("see `nightmarket check`, correct the file and run again")
    }
}

/// Byte offset of a place that a parser gives as line and column, both from 1, columns in characters; the end of the text for a
/// place that it does not know (line 0) or that lies beyond.
pub fn offset(text: &str, line: u64, column: u64) -> usize {
    let Some(before) = (line as usize).checked_sub(1) else { return text.len() };
    let start = text.split_inclusive('\n').take(before).map(str::len).sum::<usize>();
    let skip = (column as usize).saturating_sub(1);
    start + text[start..].chars().take(skip).map(char::len_utf8).sum::<usize>()
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_by_line_and_column_in_characters() {
        let text = "-- 小\nSELECT '程序', pirce\n";
        let at = offset(text, 2, 14);
        assert_eq!(&text[at..at + 5], "pirce");
        assert_eq!(offset(text, 0, 0), text.len());
        assert_eq!(offset(text, 9, 9), text.len());
    }

    #[test]
    fn a_finding_is_printed_as_a_compiler_prints_it_and_as_one_line() {
        let text = "SELECT\n    SUM(pirce) AS spent\nFROM events\n";
        let found = Diagnostic::error("unknown-column", "no column pirce")
            .at(15..20, "not a column of events")
            .help("a column of a similar name exists")
            .suggest(15..20, "price")
            .within(Path::new("features/user__a.sql"), text);
        let printed = "\
error[unknown-column]: no column pirce
 --> features/user__a.sql:2:9
  |
2 |     SUM(pirce) AS spent
  |         ^^^^^ not a column of events
  |
help: a column of a similar name exists
  |
2 -     SUM(pirce) AS spent
2 +     SUM(price) AS spent
  |";
        assert_eq!(found.render(false), printed);
        assert_eq!(found.to_string(), "features/user__a.sql:2:9: no column pirce; did you mean price?");
        assert_eq!((found.line, found.column), (Some(2), Some(9)));
    }

    #[test]
    fn a_finding_about_the_end_of_a_file_or_a_whole_file_is_printed_too() {
        let end = Diagnostic::error("syntax", "expected )").at(8..8, "here").within(Path::new("a.sql"), "SELECT (");
        assert!(end.render(false).contains("a.sql:1:9"), "{}", end.render(false));
        let whole = Diagnostic::warning("syntax", "empty").help("write a SELECT").within(Path::new("a.sql"), "");
        assert!(
            whole.render(false).contains("--> a.sql") && whole.render(false).contains("help: write a SELECT"),
            "{}",
            whole.render(false)
        );
    }
}
