//! How a network is trained: rates, stopping, precision.

use crate::model::network::Spec;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// Below so many units bfloat16's conversions cost what its products save.
const WIDE: usize = 128;

/// How to train.
#[derive(Clone, Debug)]
pub(in crate::model) struct Schedule {
    pub epochs: usize,
    pub patience: usize,
    pub batch_size: usize,
    /// A small table still gets so many steps an epoch.
    pub min_steps: usize,
    pub learning_rate: f64,
    pub rates: RateSchedule,
    /// When an epoch did not help, the learning rate falls to this share; 1: it stays.
    pub rate_drop: f64,
    /// And the weights of the best epoch are taken up again.
    pub go_back: bool,
    pub monitor: Monitor,
    pub weight_decay: f64,
    pub embedding_l2: f64,
    pub dropout: f64,
    /// Decay of the average of the weights that is kept in their place; 0: the weights themselves.
    pub ema: f64,
    pub precision: Precision,
    pub device: String,
    pub threads: usize,
}

/// What tells on the validation rows whether an epoch helped.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Monitor {
    /// How well the rows are ranked. Where the scores are calibrated afterwards, overconfidence costs nothing.
    Auc,
    /// Log-loss before calibration.
    Logloss,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RateSchedule {
    /// When an epoch did not help on the validation rows; in the end that stops the training.
    Plateau,
    /// Along half a cosine to zero over all epochs, none of which is left out; the best is kept (arXiv 1608.03983).
    Cosine,
}

impl RateSchedule {
    /// The rate when a share of all steps is `done`.
    pub fn at(self, rate: f64, done: f64) -> f64 {
        match self {
            Self::Plateau => rate,
            Self::Cosine => rate * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        }
    }
}

/// Of the hidden layers' products while training; weights, sums and scoring are always of 32 bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16 where the processor multiplies it faster and the layers are wide enough to gain.
    Auto,
    Float32,
    Bfloat16,
}

impl Precision {
    /// The type of the hidden layers' products.
    pub(super) fn products(self, spec: &Spec, device: Device) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
            Self::Auto if spec.widest() >= WIDE && (device != Device::Cpu || multiplies_bfloat16()) => Kind::BFloat16,
            Self::Auto => Kind::Float,
        }
    }
}

/// Whether the processor has instructions for it.
fn multiplies_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
