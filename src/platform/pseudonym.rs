//! Pseudonyms: HMAC-SHA-256 of (domain, id) under a secret key, cut to 128 bits. No SQL and no stage ever sees a raw id.
//!
//! A plain hash would be undone by hashing every phone number; without the key a pseudonym says nothing, and throwing the key
//! away forgets everybody at once.

use crate::error::{Error, Result};
use crate::platform::catalog::IdDomain;
use crate::platform::storage::hex;
use arrow::array::{Array, ArrayRef, StringArray, StringBuilder};
use arrow::datatypes::DataType;
use datafusion::common::cast::as_string_array;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;
use std::sync::Arc;

/// Where the key comes from.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Environment variable that holds the key.
    pub key_env: String,
    /// Or a file that holds it (a mounted secret).
    pub key_file: Option<String>,
    /// Goes into the hash: a new version gives new pseudonyms.
    pub key_version: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { key_env: "NIGHTMARKET_PSEUDONYM_KEY".into(), key_file: None, key_version: 1 }
    }
}

/// The key, ready to use.
#[derive(Clone)]
pub struct Key {
    mac: Hmac<Sha256>,
    version: u32,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(version {})", self.version)
    }
}

impl Key {
    /// Fewest bytes of a key that deserves the name.
    const SHORTEST: usize = 16;

    /// Reads the key; `Privacy` when there is none or it is too short.
    pub fn read(settings: &Settings) -> Result<Self> {
        let secret = match &settings.key_file {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| Error::privacy(format_args!("reading the pseudonym key {path}: {error}")))?
            }
            None => std::env::var(&settings.key_env).map_err(|_| {
                Error::privacy(format_args!("no pseudonym key: {} is not set", settings.key_env)).action(format_args!(
                    "set {} to a secret of at least {} characters",
                    settings.key_env,
                    Self::SHORTEST
                ))
            })?,
        };
        Self::new(secret.trim(), settings.key_version)
    }

    pub fn new(secret: &str, version: u32) -> Result<Self> {
        if secret.len() < Self::SHORTEST {
            return Err(Error::privacy("the pseudonym key is too short")
                .action(format_args!("use a secret of at least {} characters", Self::SHORTEST)));
        }
        let mac = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
        Ok(Self { mac, version })
    }

    /// Two numbers that are random to whoever does not know the key, the same for the same text.
    pub fn draw(&self, purpose: &str, text: &str) -> [u64; 2] {
        let mut mac = self.mac.clone();
        mac.update(&self.version.to_be_bytes());
        mac.update(purpose.as_bytes());
        mac.update(b"\0");
        mac.update(text.as_bytes());
        let bytes = mac.finalize().into_bytes();
        [0, 8].map(|at| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i])))
    }

    /// The pseudonym of an id: 32 hex digits.
    pub fn pseudonym(&self, domain: IdDomain, id: &str) -> String {
        let mut mac = self.mac.clone();
        mac.update(&self.version.to_be_bytes());
        mac.update(match domain {
            IdDomain::User => b"user\0",
            IdDomain::Device => b"device\0",
        });
        mac.update(id.as_bytes());
        hex(&mac.finalize().into_bytes()[..16])
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// Names the key without telling it, for step keys and manifests.
    pub fn fingerprint(&self) -> String {
        let mut mac = self.mac.clone();
        mac.update(b"fingerprint");
        mac.update(&self.version.to_be_bytes());
        hex(&mac.finalize().into_bytes()[..8])
    }

    /// `pseudonym(id)` as a function for the engine.
    pub fn function(&self, domain: IdDomain) -> ScalarUDF {
        let key = self.clone();
        let apply = move |arguments: &[ColumnarValue]| {
            let arrays = ColumnarValue::values_to_arrays(arguments)?;
            let ids: &StringArray = as_string_array(&arrays[0])?;
            let mut pseudonyms = StringBuilder::with_capacity(ids.len(), 32 * ids.len());
            for id in ids {
                pseudonyms.append_option(id.map(|id| key.pseudonym(domain, id)));
            }
            Ok(ColumnarValue::Array(Arc::new(pseudonyms.finish()) as ArrayRef))
        };
        create_udf("pseudonym", vec![DataType::Utf8], DataType::Utf8, Volatility::Immutable, Arc::new(apply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pseudonyms_depend_on_key_version_domain_and_id() {
        let key = Key::new("a secret of the test", 1).expect("long enough");
        let one = key.pseudonym(IdDomain::User, "u1");
        assert_eq!(one, key.pseudonym(IdDomain::User, "u1"));
        assert_eq!(one.len(), 32);
        let others = [
            key.pseudonym(IdDomain::Device, "u1"),
            key.pseudonym(IdDomain::User, "u2"),
            Key::new("a secret of the test", 2).expect("long enough").pseudonym(IdDomain::User, "u1"),
            Key::new("another secret of ours", 1).expect("long enough").pseudonym(IdDomain::User, "u1"),
        ];
        assert!(others.iter().all(|other| *other != one));
        assert!(Key::new("short", 1).is_err());
    }
}
