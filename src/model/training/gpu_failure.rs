//! What is done where a GPU fails: no night is lost to it.

use super::schedule::Schedule;
use super::{HALVINGS, Trained};
use crate::error::Result;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A batch is not halved below this: it is not what fills the memory.
const SMALLEST_BATCH: usize = 64;

/// Where a GPU runs out of memory the batch is halved, and at last, or at once when the GPU fails otherwise, the CPU is taken.
pub(super) fn with_less(wanted: &Schedule, attempt: impl Fn(&Schedule) -> Result<Trained>) -> Result<Trained> {
    let mut schedule = wanted.clone();
    let mut notes = Vec::new();
    loop {
        let panic = match catch_unwind(AssertUnwindSafe(|| attempt(&schedule))) {
            Ok(outcome) => return outcome.map(|trained| Trained { notes: [notes, trained.notes].concat(), ..trained }),
            Err(panic) => panic,
        };
        let Some(why) = of(&*panic).filter(|_| schedule.device != "cpu") else { resume_unwind(panic) };
        let smaller = schedule.batch_size / 2;
        let note = if why == GpuFailure::OutOfMemory && smaller >= SMALLEST_BATCH && notes.len() < HALVINGS {
            schedule.batch_size = smaller;
            format!("{}: the batch was halved to {smaller}", why.text())
        } else {
            schedule = Schedule { device: "cpu".into(), ..wanted.clone() };
            format!("{}: trained on the CPU", why.text())
        };
        tracing::warn!("{note}");
        notes.push(note);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GpuFailure {
    OutOfMemory,
    Other,
}

impl GpuFailure {
    pub fn text(self) -> &'static str {
        match self {
            Self::OutOfMemory => "the GPU ran out of memory",
            Self::Other => "the GPU failed",
        }
    }
}

/// libtorch's binding panics with the text of the error.
pub(super) fn of(panic: &(dyn std::any::Any + Send)) -> Option<GpuFailure> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    let of_gpu = ["CUDA", "CUBLAS", "CUDNN"].iter().any(|name| text.contains(name));
    let out_of_memory = text.contains("out of memory") || text.contains("ALLOC_FAILED");
    of_gpu.then_some(if out_of_memory { GpuFailure::OutOfMemory } else { GpuFailure::Other })
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{Monitor, Precision, RateSchedule};
    use super::*;
    use crate::model::network::Weights;
    use std::cell::RefCell;

    fn schedule() -> Schedule {
        Schedule {
            epochs: 1,
            patience: 0,
            batch_size: 512,
            min_steps: 1,
            learning_rate: 0.1,
            rates: RateSchedule::Plateau,
            rate_drop: 1.0,
            go_back: false,
            monitor: Monitor::Auc,
            weight_decay: 0.0,
            embedding_l2: 0.0,
            dropout: 0.0,
            ema: 0.0,
            precision: Precision::Float32,
            device: "auto".into(),
            threads: 1,
        }
    }

    /// What is tried, (batch, device), when every attempt on a GPU panics so; and the notes.
    fn tried(panics: &str) -> (Vec<(usize, String)>, Vec<String>) {
        let tried = RefCell::new(Vec::new());
        let trained = with_less(&schedule(), |schedule| {
            tried.borrow_mut().push((schedule.batch_size, schedule.device.clone()));
            assert!(schedule.device == "cpu", "{panics}");
            Ok(Trained { weights: Weights::new(), epochs: Vec::new(), notes: vec!["its own".into()] })
        });
        (tried.into_inner(), trained.expect("the CPU trains").notes)
    }

    #[test]
    fn a_full_gpu_gets_smaller_batches_and_then_the_cpu_trains_as_wanted() {
        let (tried, notes) = tried("CUDA out of memory. Tried to allocate 2.00 GiB");
        let batches: Vec<usize> = tried.iter().map(|(batch, _)| *batch).collect();
        assert_eq!(batches, [512, 256, 128, 64, 512]);
        assert_eq!(tried[4].1, "cpu");
        assert!(notes.len() == 5 && notes[0].contains("halved to 256") && notes[3].contains("CPU") && notes[4] == "its own", "{notes:?}");
    }

    #[test]
    fn a_gpu_that_fails_otherwise_is_left_at_once() {
        let (tried, notes) = tried("CUDA error: an illegal memory access was encountered");
        assert_eq!(tried, [(512, "auto".to_owned()), (512, "cpu".to_owned())]);
        assert!(notes[0].contains("the GPU failed"), "{notes:?}");
    }

    #[test]
    #[should_panic(expected = "a bug of ours")]
    fn any_other_panic_goes_on() {
        tried("a bug of ours");
    }
}
