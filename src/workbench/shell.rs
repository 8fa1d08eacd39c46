//! Questions over the shop's tables as of a date, one line after another.

use crate::error::{Error, Result};
use crate::platform::catalog::nearest;
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::platform::engine;
use crate::platform::run::resolve_date;
use crate::platform::statement;
use crate::workbench::check::{Checked, Column};
use crate::workbench::lint;
use crate::workbench::plan::plan;
use crate::workbench::tables::{Desk, open_more};
use crate::workbench::text::aligned;
use arrow::array::RecordBatch;
use datafusion::prelude::SessionContext;
use std::path::Path;

/// A desk with the tables opened so far.
pub struct Shell {
    desk: Desk,
    checked: Checked,
    context: SessionContext,
}

pub enum Answer {
    Rows(RecordBatch),
    Text(String),
    /// What is wrong with the question.
    Wrong(Vec<Diagnostic>),
    End,
}

pub const HELP: &str = "\
SELECT … ;         ask; a question ends with ; or an empty line
\\d                 list the tables
\\d TABLE           the columns of a table
\\as_of 2026-11-22  look at the end of another day
\\q                 leave";

impl Shell {
    pub fn new(desk: Desk, checked: Checked) -> Result<Self> {
        let context = engine::session(&desk.run.engine)?;
        Ok(Self { desk, checked, context })
    }

    pub fn date(&self) -> chrono::NaiveDate {
        self.desk.run.date
    }

    /// Answers one question or command.
    pub async fn answer(&mut self, text: &str) -> Result<Answer> {
        let text = text.trim().trim_end_matches(';').trim_end();
        match text.split_once(char::is_whitespace).unwrap_or((text, "")) {
            ("\\q" | "exit" | "quit", "") => Ok(Answer::End),
            ("\\?" | "help", "") => Ok(Answer::Text(HELP.to_owned())),
            ("\\d", "") => Ok(Answer::Text(self.tables())),
            ("\\d", table) => self.describe(table.trim()).await,
            ("\\as_of", day) => self.move_to(day.trim()),
            (command, _) if command.starts_with('\\') => {
                Err(Error::usage(format_args!("no command {command}")).action("\\? lists the commands"))
            }
            _ => self.ask(text).await,
        }
    }

    fn tables(&self) -> String {
        let lines: Vec<Vec<String>> =
            self.checked.tables.iter().map(|table| vec![table.name.clone(), table.grain.join(", "), table.description.clone()]).collect();
        aligned(&lines, &[])
    }

    async fn describe(&mut self, table: &str) -> Result<Answer> {
        let Some(found) = self.checked.table(table) else {
            let hint =
                nearest(table, self.checked.tables.iter().map(|table| table.name.as_str())).map(|near| format!("; did you mean {near}?"));
            return Err(Error::usage(format_args!("no table {table}{}", hint.unwrap_or_default())));
        };
        let line = |column: &Column| vec![column.name.clone(), column.kind.clone(), column.comment.clone().unwrap_or_default()];
        let lines: Vec<Vec<String>> = found.columns.iter().map(line).collect();
        Ok(Answer::Text(aligned(&lines, &[])))
    }

    fn move_to(&mut self, day: &str) -> Result<Answer> {
        let date = resolve_date(day, &self.desk.run.job)?;
        self.desk.run = self.desk.run.on(date);
        self.context = engine::session(&self.desk.run.engine)?;
        Ok(Answer::Text(format!("as of the end of {date}")))
    }

    async fn ask(&mut self, text: &str) -> Result<Answer> {
        let within =
            |found: Vec<Diagnostic>| Answer::Wrong(found.into_iter().map(|found| found.within(Path::new("question"), text)).collect());
        let select = match statement::parse(text) {
            Ok(select) => select,
            Err(found) => return Ok(within(vec![found])),
        };
        let mut wrong = Vec::new();
        for (table, at) in &select.reads {
            if self.checked.catalog.queries().any(|query| query.name == *table) {
                continue;
            }
            let found = Diagnostic::error("unknown-table", format!("{table} is no table of this shop")).at(at.clone(), "unknown table");
            let names = self.checked.catalog.queries().map(|query| query.name.as_str());
            wrong.push(match nearest(table.trim_start_matches("raw."), names) {
                Some(near) => found.suggest(at.clone(), near),
                None => found.help("\\d lists the tables"),
            });
        }
        wrong.extend(lint::lint(&self.context, text, &select).into_iter().filter(|found| found.severity == Severity::Error));
        if !wrong.is_empty() {
            return Ok(within(wrong));
        }
        open_more(&self.desk, &self.context, select.reads.keys().map(String::as_str)).await?;
        if let Err(found) = plan(&self.context, text, &select, self.desk.run.as_of()).await {
            return Ok(within(found));
        }
        let rows = engine::collect(engine::plan_sql(&self.context, text, self.desk.run.as_of()).await?).await?;
        Ok(Answer::Rows(rows))
    }
}
