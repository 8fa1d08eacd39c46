//! The analyst's tools: what is wrong with a file, what a table holds, what a change does to it, what is made of what.
//!
//! `check` plans every file over empty tables and reads no data; `preview`, `diff` and the shell compute what they are asked for,
//! as of a date, and leave the night's own files alone.

mod blame;
mod check;
pub mod diff;
mod explain;
mod graph;
mod judge;
pub mod last_run;
mod layout;
pub mod leak;
mod lineage;
mod lint;
mod new;
mod plan;
mod preview;
mod profile;
pub mod select;
mod shell;
pub mod tables;
mod test;
pub mod text;

pub use check::{Checked, Column, Planned, check};
pub use diff::Diff;
pub use explain::{plans, plans_without_rows};
pub use graph::{Graph, graph};
pub use new::{Written, new};
pub use preview::{Preview, preview, rows_of_no_key};
pub use profile::{Profile, profile};
pub use shell::{Answer, HELP, Shell};
pub use tables::Desk;
pub use test::{Tested, test};
