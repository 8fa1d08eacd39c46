//! What every stage stands on: where bytes live, what a job says, how SQL runs, and what one run of the night is.

pub mod catalog;
pub mod checks;
pub mod diagnostic;
pub mod engine;
pub mod expectation;
pub mod header;
pub mod http;
pub mod job;
pub mod pseudonym;
pub mod row_groups;
pub mod run;
pub mod server;
pub mod statement;
pub mod storage;
pub mod survey;
pub mod table;
pub mod words;
