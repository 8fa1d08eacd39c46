//! `nightmarket sql shell`: questions from a terminal, a pipe or the command line, and their answers.

use super::sql::{refuse, rendered};
use super::{Output, print};
use crate::error::Result;
use crate::workbench::{Answer, Shell, text};
use std::io::{BufRead, IsTerminal, Write};

/// Reads questions until the end of the input; a question may span lines, up to its `;`.
pub async fn run(mut shell: Shell, command: Option<String>, output: Output) -> Result<()> {
    if let Some(question) = command {
        return match shell.answer(&question).await? {
            Answer::Wrong(found) => refuse(&found, output),
            answer => answered(&answer, output),
        };
    }
    let people = std::io::stdin().is_terminal();
    if people {
        let _ = writeln!(std::io::stderr(), "the shop as of the end of {}; \\? for help", shell.date());
    }
    let mut question = String::new();
    let prompt = |question: &str| {
        if people {
            let _ = write!(std::io::stderr(), "{}", if question.is_empty() { "> " } else { "  " });
            let _ = std::io::stderr().flush();
        }
    };
    prompt(&question);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        question.push_str(&line);
        question.push('\n');
        let said = question.trim();
        let ends = line.trim().is_empty() || said.ends_with(';') || said.starts_with('\\') || ["exit", "quit", "help"].contains(&said);
        if ends && !said.is_empty() {
            match shell.answer(said).await {
                Ok(Answer::End) => return Ok(()),
                Ok(Answer::Wrong(found)) if people => drop(print(output, found.as_slice(), || rendered(&found))),
                Ok(Answer::Wrong(found)) => return refuse(&found, output),
                Ok(answer) => answered(&answer, output)?,
                // Somebody at a terminal asks again; a script must not go on.
                Err(error) if people => drop(writeln!(std::io::stderr(), "error: {error}; {}", error.next_action())),
                Err(error) => return Err(error),
            }
        }
        if ends {
            question.clear();
        }
        prompt(&question);
    }
    match question.trim() {
        "" => Ok(()),
        rest => match shell.answer(rest).await? {
            Answer::Wrong(found) => refuse(&found, output),
            answer => answered(&answer, output),
        },
    }
}

/// Rows of an answer that are printed; JSON has them all.
const PRINTED: usize = 100;

fn answered(answer: &Answer, output: Output) -> Result<()> {
    match answer {
        Answer::Rows(rows) => {
            let shown = rows.slice(0, rows.num_rows().min(PRINTED));
            let (text, json) = (text::rows_as_text(&shown)?, text::rows_as_json(rows)?);
            print(output, &json, || match rows.num_rows() {
                n if n > PRINTED => format!("{text}\n… {} rows more", text::count((n - PRINTED) as u64)),
                1 => format!("{text}\n1 row"),
                n => format!("{text}\n{n} rows"),
            })
        }
        Answer::Text(text) => print(output, text, || text.clone()),
        Answer::Wrong(_) | Answer::End => Ok(()),
    }
}
