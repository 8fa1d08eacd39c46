//! The logs as they might have been: which raw rows could not have been known on a day, and what stands there instead.

use super::Case;
use crate::error::Result;
use crate::ingest::{self, Logs, Part};
use crate::types::column;
use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{filter_record_batch, take};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Other logs, of which the features of the day must be the same.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Other {
    /// Without the rows that happened after the day.
    Happened,
    /// Without the rows that arrived after the day's cut-off.
    Arrived,
    /// Without either.
    Known,
    /// With the values of either drawn from all rows of the day.
    Shuffled,
}

impl Other {
    pub fn text(self) -> &'static str {
        match self {
            Other::Happened => "without what happened later",
            Other::Arrived => "without what arrived later",
            Other::Known => "without what happened or arrived later",
            Other::Shuffled => "with the values of later rows shuffled",
        }
    }
}

/// A raw row: its part and its place there.
pub type Row = (usize, u32);

/// The logs, and what of them is later.
pub struct World<'a> {
    pub case: &'a Case<'a>,
    pub settings: &'a ingest::Settings,
    pub logs: &'a Logs,
    /// Of each part: which rows happened, and which arrived, later.
    happened: Vec<Vec<bool>>,
    arrived: Vec<Vec<bool>>,
}

impl<'a> World<'a> {
    pub fn new(case: &'a Case<'a>, settings: &'a ingest::Settings, logs: &'a Logs) -> Result<Self> {
        let mut world = Self { case, settings, logs, happened: Vec::new(), arrived: Vec::new() };
        let (as_of, cut_off) = (case.run.job.as_of(case.day), case.run.job.cut_off(case.day));
        for part in &logs.parts {
            let source = &part.source;
            let event = source.occurred_at.as_ref().or(source.day_column.as_ref());
            let after = |name: Option<&String>, end: i64| -> Result<Option<Vec<bool>>> {
                let Some(name) = name.filter(|_| !part.decides_people) else { return Ok(None) };
                let times = column::<TimestampMicrosecondArray>(&part.rows, name)?;
                Ok(Some(times.iter().map(|time| time.is_some_and(|time| time >= end)).collect()))
            };
            let happened = after(event, as_of.timestamp_micros())?;
            let arrived = after(source.arrived_at.as_ref(), cut_off.timestamp_micros())?;
            // Without a time of its own a row came with its day.
            let undated = happened.is_none() && arrived.is_none();
            let later = undated && !part.decides_people && part.day.is_some_and(|day| day > case.day);
            let with_its_day = vec![later; part.rows.num_rows()];
            world.happened.push(happened.unwrap_or_else(|| with_its_day.clone()));
            world.arrived.push(arrived.unwrap_or(with_its_day));
        }
        Ok(world)
    }

    /// The rows of a part that are not as they were in the other logs.
    pub fn later_of(&self, part: usize, other: Other) -> Vec<u32> {
        let either = self.happened[part].iter().zip(&self.arrived[part]).enumerate();
        let later = either.filter(|(_, (happened, arrived))| match other {
            Other::Happened => **happened,
            Other::Arrived => **arrived,
            Other::Known | Other::Shuffled => **happened || **arrived,
        });
        later.map(|(row, _)| row as u32).collect()
    }

    pub fn later(&self, other: Other) -> u64 {
        (0..self.logs.parts.len()).map(|part| self.later_of(part, other).len() as u64).sum()
    }

    /// A part's rows in the other logs; those that are `back` are as they were.
    pub fn rows(&self, at: usize, part: &Part, back: &[Row], other: Option<Other>) -> Result<RecordBatch> {
        let Some(other) = other else { return Ok(part.rows.clone()) };
        let back: HashSet<u32> = back.iter().filter(|(of, _)| *of == at).map(|(_, row)| *row).collect();
        let later: Vec<u32> = self.later_of(at, other).into_iter().filter(|row| !back.contains(row)).collect();
        if other == Other::Shuffled {
            return self.shuffled(part, &later);
        }
        let mut keep = vec![true; part.rows.num_rows()];
        later.iter().for_each(|row| keep[*row as usize] = false);
        Ok(filter_record_batch(&part.rows, &BooleanArray::from(keep))?)
    }

    /// The part with the values of some rows drawn anew from all its rows, column by column; key and times stay.
    fn shuffled(&self, part: &Part, later: &[u32]) -> Result<RecordBatch> {
        let source = &part.source;
        let times = [&source.occurred_at, &source.arrived_at, &source.day_column];
        let stays = |name: &String| source.key.contains(name) || times.iter().any(|time| time.as_ref() == Some(name));
        let schema = part.rows.schema();
        let columns = schema.fields().iter().zip(part.rows.columns()).map(|(field, values)| -> Result<ArrayRef> {
            if stays(field.name()) {
                return Ok(values.clone());
            }
            let drawn = |row: u32| xxh3_64_with_seed(format!("{} {row}", field.name()).as_bytes(), self.case.run.job.seed);
            let mut places: Vec<u32> = (0..values.len() as u32).collect();
            later.iter().for_each(|row| places[*row as usize] = (drawn(*row) % values.len() as u64) as u32);
            Ok(take(values, &UInt32Array::from(places), None)?)
        });
        Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
    }
}
