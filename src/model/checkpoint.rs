//! A training between two epochs as one file: what an interrupted night goes on from, to the same bytes as a night that was not.

use super::artifact::{from_safetensors, to_safetensors};
use super::network::{DropoutState, Weights};
use super::training::EpochFacts;
use crate::error::{Error, Result};
use bytes::Bytes;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

/// Where a training's checkpoints come from and go to.
pub struct Checkpoints<'a> {
    /// The last one of an interrupted training.
    pub saved: Option<Bytes>,
    /// Keeps one in place of the last, after every epoch but the final one. An error ends the training.
    pub save: &'a dyn Fn(Bytes) -> Result<()>,
}

/// How far a training came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    /// What is trained how: another training's checkpoint is of no use.
    pub training: String,
    pub epochs_done: usize,
    pub rate: f64,
    pub drops: usize,
    pub halvings: usize,
    /// None: nothing was worth keeping yet.
    pub best_gain: Option<f64>,
    pub epochs: Vec<EpochFacts>,
    pub notes: Vec<String>,
}

/// Steps that the optimisers and the average of the weights have taken.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Steps {
    pub dense: i32,
    pub table: i32,
    pub average: i32,
}

pub(super) struct Checkpoint {
    pub at: At,
    /// Weights, moments and averages of the network in training, the pool of dropout, and the best weights under [`BEST`].
    pub arrays: Weights,
}

#[derive(Serialize, Deserialize)]
pub(super) struct At {
    pub progress: Progress,
    pub steps: Steps,
    pub dropout: DropoutState,
}

pub(super) const BEST: &str = "best/";
const AT: &str = "at";

impl Checkpoint {
    pub fn to_bytes(&self) -> Result<Bytes> {
        let at = serde_json::to_string(&self.at)?;
        to_safetensors(&self.arrays, Some([(AT.to_owned(), at)].into()))
    }

    /// # Errors
    /// `Contract` for what is no checkpoint of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let broken = |why: &dyn std::fmt::Display| Error::contract(format_args!("the checkpoint is broken: {why}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| broken(&error))?;
        let at =
            header.metadata().as_ref().and_then(|metadata| metadata.get(AT)).ok_or_else(|| broken(&"it does not say how far it is"))?;
        Ok(Self { at: serde_json::from_str(at).map_err(|error| broken(&error))?, arrays: from_safetensors(bytes)? })
    }
}
