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
use std::collections::BTreeMap;

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
        let bytes: BTreeMap<&String, Vec<u8>> =
            self.weights.iter().map(|(name, weight)| (name, weight.data.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
        let views = self.weights.iter().map(|(name, weight)| Ok((name, TensorView::new(Dtype::F32, weight.shape.clone(), &bytes[name])?)));
        let views = views.collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
        let weights =
            views.and_then(|views| serialize(views, None)).map_err(|error| Error::internal(format_args!("safetensors: {error}")))?;
        let mut files = BTreeMap::from([(WEIGHTS.to_owned(), Bytes::from(weights)), (MODEL.to_owned(), Bytes::from(self.model.clone()))]);
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
        let tensors = SafeTensors::deserialize(file(WEIGHTS)?).map_err(|error| broken(format_args!("{WEIGHTS}: {error}")))?;
        let mut weights = Weights::new();
        for (name, view) in tensors.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(broken(format_args!("{WEIGHTS}: {name} is {:?}, not F32", view.dtype())));
            }
            let data = view.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
            weights.insert(name.to_owned(), Weight { shape: view.shape().to_vec(), data });
        }
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

pub(super) fn broken(why: impl std::fmt::Display) -> Error {
    Error::contract(format_args!("the model artefact is broken: {why}")).action("train again: delete the model's folder of that date")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
