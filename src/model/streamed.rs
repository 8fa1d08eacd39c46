//! Training rows that do not fit into memory: a first pass over them learns the feature map and keeps a sample; every epoch is another
//! pass, in another order, whose rows are encoded and shuffled block by block while the network learns from the block before.
//!
//! The order of the rows depends on the seed alone, not on which thread is faster: one thread reads and encodes, one trains, and at
//! most three blocks are in memory. The baseline and the training curve are taken from the sample, which is uniform over all rows.

use super::features::{Encoded, Encoder, FeatureMap, Fitting, Settings};
use super::training::Targets;
use crate::error::{Error, Kind, Result};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hands every training row to the second argument, table by table, with its targets: in an order that the number decides.
pub type Pass = dyn Fn(u64, &mut Take) -> Result<()> + Send + Sync;
/// `Break`: the rest is not wanted.
pub type Take<'a> = dyn FnMut(RecordBatch, Targets) -> Result<ControlFlow<()>> + 'a;

/// Where the rows come from, and how many are shuffled and encoded at a time.
#[derive(Clone)]
pub struct Streamed {
    pub pass: Arc<Pass>,
    pub block_rows: usize,
}

/// The baseline is fitted on fewer; more would make its log-odds of rare values sharper, at the cost of memory.
const SAMPLE_ROWS: usize = 1_000_000;

/// What the first pass learns.
pub struct Survey {
    fitting: Fitting<fn(&str) -> bool>,
    seed: u64,
    /// Rows whose place hashes below this share of all hashes are in the sample.
    share: f64,
    sample: Vec<(RecordBatch, Targets)>,
    rows: usize,
    positives: usize,
}

impl Survey {
    /// Of about `expected` rows.
    pub fn new(settings: &Settings, expected: usize, seed: u64) -> Self {
        let share = SAMPLE_ROWS as f64 / expected.max(1) as f64;
        let fitting = Fitting::new(settings, &[], (|_| false) as fn(&str) -> bool);
        Self { fitting, seed, share, sample: Vec::new(), rows: 0, positives: 0 }
    }

    /// Takes in some training rows.
    pub fn add(&mut self, table: &RecordBatch, targets: &Targets) -> Result<()> {
        self.fitting.add(0, table, &vec![1; table.num_rows()])?;
        let chosen = |row: usize| xxh3_64_with_seed(&((self.rows + row) as u64).to_le_bytes(), self.seed) as f64 / u64::MAX as f64;
        let chosen: Vec<bool> = (0..table.num_rows()).map(|row| chosen(row) <= self.share).collect();
        self.rows += table.num_rows();
        self.positives += targets.positive.iter().filter(|label| **label).count();
        if chosen.contains(&true) {
            let rows: Vec<usize> = (0..chosen.len()).filter(|row| chosen[*row]).collect();
            let targets = Targets {
                positive: rows.iter().map(|row| targets.positive[*row]).collect(),
                converted: targets.converted.as_ref().map(|converted| rows.iter().map(|row| converted[*row]).collect()),
            };
            self.sample.push((filter_record_batch(table, &BooleanArray::from(chosen))?, targets));
        }
        Ok(())
    }

    /// Rows seen.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The share of positives among them.
    pub fn rate(&self) -> f64 {
        self.positives as f64 / self.rows.max(1) as f64
    }

    /// The map of all rows, and the sample.
    pub(super) fn finish(self) -> Result<(FeatureMap, RecordBatch, Targets)> {
        let (tables, targets): (Vec<RecordBatch>, Vec<Targets>) = self.sample.into_iter().unzip();
        let Some(first) = tables.first() else { return Err(Error::contract("there are no training rows")) };
        let table = concat_batches(&first.schema(), &tables)?;
        Ok((self.fitting.finish(), table, together(targets)))
    }
}

fn together(all: Vec<Targets>) -> Targets {
    let known = all.iter().all(|targets| targets.converted.is_some());
    let mut positive = Vec::new();
    let mut converted = Vec::new();
    for targets in all {
        positive.extend(targets.positive);
        converted.extend(targets.converted.unwrap_or_default());
    }
    Targets { positive, converted: known.then_some(converted) }
}

/// Encoded rows of a pass with their targets.
pub(super) struct Block {
    pub rows: Encoded,
    pub targets: Targets,
}

impl Streamed {
    /// Gives `each` block of a pass to the caller's thread; another reads and encodes the next one.
    pub(super) fn blocks(&self, map: &FeatureMap, order: u64, mut each: impl FnMut(Block) -> Result<()>) -> Result<()> {
        std::thread::scope(|scope| {
            // Without room between the threads: the block that waits is the one being sent.
            let (send, receive) = sync_channel::<Block>(0);
            let reader = scope.spawn(move || {
                let encoder = Encoder::new(map);
                let mut open = empty(map);
                let mut wanted = true;
                (self.pass)(order, &mut |table, targets| {
                    extend(&mut open, encoder.encode(&table, None)?, targets);
                    if open.rows.rows >= self.block_rows {
                        wanted = send.send(std::mem::replace(&mut open, empty(map))).is_ok();
                    }
                    Ok(if wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
                })?;
                if wanted && open.rows.rows > 0 {
                    // Whoever no longer listens has an error of their own.
                    let _ = send.send(open);
                }
                Ok(())
            });
            let done = receive.iter().try_for_each(&mut each);
            // A reader in the midst of a pass must not wait for who no longer listens.
            drop(receive);
            let read = reader.join().unwrap_or_else(|panic| resume_unwind(panic));
            done.and(read)
        })
    }
}

fn empty(map: &FeatureMap) -> Block {
    let rows = Encoded { rows: 0, n_ints: map.n_ints, n_floats: map.n_floats, ints: Vec::new(), floats: Vec::new() };
    Block { rows, targets: Targets { positive: Vec::new(), converted: None } }
}

fn extend(block: &mut Block, rows: Encoded, targets: Targets) {
    block.rows.rows += rows.rows;
    block.rows.ints.extend(rows.ints);
    block.rows.floats.extend(rows.floats);
    block.targets.positive.extend(targets.positive);
    if let Some(converted) = targets.converted {
        block.targets.converted.get_or_insert_default().extend(converted);
    }
}

/// What cannot be done block by block.
pub(super) fn refused(what: &str) -> Error {
    Error::new(Kind::Usage, format_args!("{what} needs the training rows in memory"))
        .action("raise [data] memory_mib, or say streaming = false")
}
