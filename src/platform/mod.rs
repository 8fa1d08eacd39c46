//! What every stage stands on: where bytes live, what a job says, how SQL runs, and what one run of the night is.

pub mod storage;
pub mod catalog;
pub mod job;
pub mod engine;
pub mod run;
