//! nightmarket: the nightly job of an e-commerce ad shop.
//!
//! This page is the architecture. Modules stand in dependency order: a module uses only modules listed above it, and a test
//! holds the code to that. To find anything, start where the data starts and walk down.

// Vocabulary.
pub mod error;
pub mod types;

// Platform: specs, storage, the query engine, the SQL catalog, the run.
pub mod platform;

// Statistics: pure functions on columns.
pub mod statistics;

// Ads to segments under budgets: pure arrays, and plain tables.
pub mod allocate;

// Stages, in the order of the night.
pub mod ingest;
pub mod features;
pub mod dataset;
pub mod model;
pub mod train;
pub mod gate;
pub mod segments;
pub mod targeting;
pub mod admit;
pub mod publish;
pub mod deliver;
pub mod evaluate;
pub mod report;

// What machines are told of a night.
pub mod telemetry;

// Every stage's settings in one file.
pub mod spec;

// A shop with known truth, for demonstrations and tests.
pub mod generate;

// Assembly.
pub mod workbench;
pub mod pipeline;
pub mod cli;
