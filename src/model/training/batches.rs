//! The training rows of an epoch, in batches: resident on the device, or block after block of a stream.

use super::Targets;
use crate::error::Result;
use crate::model::features::{Encoded, FeatureMap};
use crate::model::streamed::Streamed;
use crate::model::table::{Ids, Order, Rows};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use tch::{Device, Tensor};

/// Training rows.
#[derive(Clone, Copy)]
pub(in crate::model) struct Source<'a> {
    /// All of them or, where they are streamed, a sample: for the curve and for the rates at which outputs start.
    pub rows: &'a Encoded,
    pub targets: &'a Targets,
    pub streamed: Option<Stream<'a>>,
}

/// Rows that come from elsewhere in every epoch.
#[derive(Clone, Copy)]
pub(in crate::model) struct Stream<'a> {
    pub from: &'a Streamed,
    pub map: &'a FeatureMap,
    /// How many there are.
    pub rows: usize,
}

impl<'a> Source<'a> {
    pub fn resident(rows: &'a Encoded, targets: &'a Targets) -> Self {
        Self { rows, targets, streamed: None }
    }

    pub fn len(&self) -> usize {
        self.streamed.map_or(self.rows.rows, |stream| stream.rows)
    }
}

/// The training rows in batches, in an order of each epoch's own.
pub(super) enum Batches<'a> {
    Resident(Resident<'a>),
    /// With the seed of the orders.
    Streamed(Stream<'a>, u64),
}

/// Rows that are on the device all the while.
pub(super) struct Resident<'a> {
    rows: Rows<'a>,
    /// [rows, 1 or 3]
    y: Tensor,
    order: Order,
    len: usize,
}

pub(super) struct Batch {
    pub ids: Ids,
    pub floats: Tensor,
    pub y: Tensor,
    /// The share of the epoch that was done before it.
    pub done: f64,
}

impl Batches<'_> {
    pub fn epoch(
        &mut self,
        epoch: usize,
        batch_size: usize,
        rng: &mut ChaCha8Rng,
        device: Device,
        mut step: impl FnMut(Batch),
    ) -> Result<()> {
        match self {
            Self::Resident(resident) => {
                resident.order.shuffle(rng, device);
                resident.batches(batch_size, step);
                Ok(())
            }
            Self::Streamed(stream, seed) => {
                // Of the epoch alone, so that an interrupted training finds its place without reading.
                let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(epoch as u64));
                let mut before = 0;
                stream.from.blocks(stream.map, rng.next_u64(), |block| {
                    let mut resident = Resident::new(&block.rows, &block.targets, device);
                    resident.order.shuffle(&mut rng, device);
                    let (start, share) = (before as f64 / stream.rows as f64, block.rows.rows as f64 / stream.rows as f64);
                    resident.batches(batch_size, |batch| step(Batch { done: start + share * batch.done, ..batch }));
                    before += block.rows.rows;
                    Ok(())
                })
            }
        }
    }

    /// The generator and the order stand where an epoch leaves them.
    pub fn skip_epoch(&mut self, rng: &mut ChaCha8Rng, device: Device) {
        if let Self::Resident(resident) = self {
            resident.order.shuffle(rng, device);
        }
    }
}

impl<'a> Resident<'a> {
    pub fn new(rows: &'a Encoded, targets: &Targets, device: Device) -> Self {
        Self { rows: Rows::on(device, rows), y: target_matrix(targets, device), order: Order::new(rows.rows), len: rows.rows }
    }

    fn batches(&self, batch_size: usize, mut step: impl FnMut(Batch)) {
        let steps = self.len.div_ceil(batch_size);
        for i in 0..steps {
            let range = part(self.len, steps, i);
            let (ids, floats) = self.rows.chosen(&self.order, range.clone());
            let y = self.y.index_select(0, &self.order.chosen(range));
            step(Batch { ids, floats, y, done: i as f64 / steps as f64 });
        }
    }
}

/// Rows of step `step` of `steps` of nearly equal size: no last batch of a row or two.
fn part(rows: usize, steps: usize, step: usize) -> Range<usize> {
    step * rows / steps..(step + 1) * rows / steps
}

/// [rows, 1] or, with conversions, [rows, 3]: click, click and conversion, whether that is known.
fn target_matrix(targets: &Targets, device: Device) -> Tensor {
    let number = |flag: bool| f32::from(u8::from(flag));
    let values: Vec<f32> = match &targets.converted {
        None => targets.positive.iter().map(|click| number(*click)).collect(),
        Some(converted) => {
            let row =
                |(click, flag): (&bool, &Option<bool>)| [number(*click), number(*click && *flag == Some(true)), number(flag.is_some())];
            targets.positive.iter().zip(converted).flat_map(row).collect()
        }
    };
    Tensor::from_slice(&values).view([targets.positive.len() as i64, -1]).to_device(device)
}
