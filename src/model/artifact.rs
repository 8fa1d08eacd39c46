//! A trained model as files: weights as safetensors, all else as JSON, and a list of their hashes that loading checks.
//!
//! Nothing in an artefact is executable. The same model gives the same bytes.

use super::network::{Weight, Weights};
use crate::error::{Error, Result};
use bytes::Bytes;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// A model at rest. [`super::response::Response`] and [`super::interest::Interest`] turn into one and back.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// Which of the models it is.
    pub kind: String,
    /// JSON: feature map, layers, settings, calibrators, validation metrics.
    pub model: String,
    pub weights: Weights,
}

const WEIGHTS: &str = "weights.safetensors";
const MODEL: &str = "model.json";
const CONTENTS: &str = "artifact.json";
/// Of the layout of the files.
const FORMAT: u32 = 1;

/// `artifact.json`.
#[derive(Serialize, Deserialize)]
struct Contents {
    format: u32,
    kind: String,
    /// File -> sha256.
    files: BTreeMap<String, String>,
}

impl Artifact {
    pub fn to_files(&self) -> Result<BTreeMap<String, Bytes>> {
        let weights = to_safetensors(&self.weights, None)?;
        let mut files = BTreeMap::from([(WEIGHTS.to_owned(), weights), (MODEL.to_owned(), Bytes::from(self.model.clone()))]);
        let hashes = files.iter().map(|(name, bytes)| (name.clone(), sha256(bytes))).collect();
        let contents = Contents { format: FORMAT, kind: self.kind.clone(), files: hashes };
        files.insert(CONTENTS.to_owned(), Bytes::from(serde_json::to_vec_pretty(&contents)?));
        Ok(files)
    }

    /// # Errors
    /// `Contract` when a file is absent or is not what the artefact was written with.
    pub fn from_files(files: &BTreeMap<String, Bytes>) -> Result<Self> {
        let file = |name: &str| files.get(name).ok_or_else(|| broken(format_args!("{name} is absent")));
        let contents: Contents = serde_json::from_slice(file(CONTENTS)?).map_err(|error| broken(format_args!("{CONTENTS}: {error}")))?;
        if contents.format != FORMAT {
            return Err(broken(format_args!("format {} is not {FORMAT}, which this version reads", contents.format)));
        }
        for name in [WEIGHTS, MODEL] {
            if contents.files.get(name) != Some(&sha256(file(name)?)) {
                return Err(broken(format_args!("{name} does not have the sha256 that {CONTENTS} gives")));
            }
        }
        let model = String::from_utf8(file(MODEL)?.to_vec()).map_err(|error| broken(format_args!("{MODEL}: {error}")))?;
        let weights = from_safetensors(file(WEIGHTS)?)?;
        Ok(Self { kind: contents.kind, model, weights })
    }

    /// Identifies the content: the hash of the hashes.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(sha256(&self.to_files()?[CONTENTS]))
    }

    /// The described model, when this is one of `kind`.
    pub(super) fn described<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Result<T> {
        if self.kind != kind {
            return Err(broken(format_args!("it holds a model of kind {}, not {kind}", self.kind)));
        }
        serde_json::from_str(&self.model).map_err(|error| broken(format_args!("{MODEL}: {error}")))
    }
}

pub(super) fn to_safetensors(weights: &Weights, metadata: Option<HashMap<String, String>>) -> Result<Bytes> {
    let bytes: BTreeMap<&String, (Dtype, Vec<u8>)> = weights.iter().map(|(name, weight)| (name, bytes(weight))).collect();
    let views = weights.iter().map(|(name, weight)| {
        let (dtype, bytes) = &bytes[name];
        Ok((name, TensorView::new(*dtype, weight.shape.clone(), bytes)?))
    });
    let views = views.collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let file = views.and_then(|views| serialize(views, metadata)).map_err(|error| Error::internal(format_args!("safetensors: {error}")))?;
    Ok(Bytes::from(file))
}

/// # Errors
/// `Contract` for what is not such a file, or holds numbers of another kind.
pub(super) fn from_safetensors(file: &[u8]) -> Result<Weights> {
    let tensors = SafeTensors::deserialize(file).map_err(|error| broken(format_args!("{WEIGHTS}: {error}")))?;
    let mut weights = Weights::new();
    for (name, view) in tensors.iter() {
        let data = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
            Dtype::BF16 => view.data().chunks_exact(2).map(|x| from_bfloat16(u16::from_le_bytes([x[0], x[1]]))).collect(),
            other => return Err(broken(format_args!("{WEIGHTS}: {name} is {other:?}, not F32 or BF16"))),
        };
        weights.insert(name.to_owned(), Weight { shape: view.shape().to_vec(), data });
    }
    Ok(weights)
}

/// An array as it is stored: in bfloat16 where that loses nothing.
fn bytes(weight: &Weight) -> (Dtype, Vec<u8>) {
    match is_bfloat16(weight) {
        true => (Dtype::BF16, weight.data.iter().flat_map(|x| bfloat16(*x).to_le_bytes()).collect()),
        false => (Dtype::F32, weight.data.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}

/// Bytes that the arrays take in the artefact.
pub(super) fn stored_bytes(weights: &Weights) -> usize {
    weights.values().map(|weight| weight.data.len() * if is_bfloat16(weight) { 2 } else { 4 }).sum()
}

fn is_bfloat16(weight: &Weight) -> bool {
    weight.data.iter().all(|x| from_bfloat16(bfloat16(*x)).to_bits() == x.to_bits())
}

/// Rounds every number to the nearest bfloat16.
pub(super) fn round_to_bfloat16(weight: &mut Weight) {
    weight.data.iter_mut().for_each(|x| *x = from_bfloat16(bfloat16(*x)));
}

/// The nearest of a finite number, of two the even one: the upper half of its bits.
fn bfloat16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.saturating_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn from_bfloat16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

pub(super) fn broken(why: impl std::fmt::Display) -> Error {
    Error::contract(format_args!("the model artefact is broken: {why}")).action("train again: delete the model's folder of that date")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_the_nearest_bfloat16_and_ties_to_the_even_one() {
        let rounded = |x: f32| from_bfloat16(bfloat16(x));
        let step = 2.0_f32.powi(-7);
        assert_eq!(rounded(1.0 + 0.4 * step), 1.0);
        assert_eq!(rounded(-1.0 - 0.6 * step), -1.0 - step);
        assert_eq!(rounded(1.0 + 0.5 * step), 1.0);
        assert_eq!(rounded(1.0 + 1.5 * step), 1.0 + 2.0 * step);
        assert_eq!(rounded(0.0), 0.0);
    }
}
