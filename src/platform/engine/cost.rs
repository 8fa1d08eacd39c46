//! What a query took of the machine.

use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of one query, or of several that make a table.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Cost {
    /// The operators' own time on all threads; what waits for the store is not in it.
    pub cpu_seconds: f64,
    /// The most that the operators of one query held in their pool.
    pub peak_memory_bytes: u64,
    /// Written to scratch files where the pool was too small.
    pub spilled_bytes: u64,
}

impl Cost {
    /// Of a plan that has run.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>, pool: &Arc<dyn MemoryPool>) -> Self {
        let peak = pool.downcast_ref::<PeakPool>().map_or(0, |pool| pool.peak.load(Ordering::Relaxed));
        let mut cost = Self { peak_memory_bytes: peak as u64, ..Self::default() };
        let mut operators = vec![plan];
        while let Some(operator) = operators.pop() {
            operators.extend(operator.children());
            let Some(metrics) = operator.metrics() else { continue };
            let scanned = metrics.sum_by_name("time_elapsed_processing").map_or(0, |time| time.as_usize());
            cost.cpu_seconds += (metrics.elapsed_compute().unwrap_or(0) + scanned) as f64 / 1e9;
            cost.spilled_bytes += metrics.spilled_bytes().unwrap_or(0) as u64;
        }
        cost
    }

    /// Adds another query's.
    pub fn add(&mut self, other: Self) {
        self.cpu_seconds += other.cpu_seconds;
        self.peak_memory_bytes = self.peak_memory_bytes.max(other.peak_memory_bytes);
        self.spilled_bytes += other.spilled_bytes;
    }
}

/// A memory pool that remembers the most that was taken of it at once.
#[derive(Debug)]
pub(super) struct PeakPool {
    inner: Arc<dyn MemoryPool>,
    peak: AtomicUsize,
}

impl PeakPool {
    pub fn over(inner: impl MemoryPool) -> Self {
        Self { inner: Arc::new(inner), peak: AtomicUsize::new(0) }
    }

    fn note(&self) {
        self.peak.fetch_max(self.inner.reserved(), Ordering::Relaxed);
    }
}

impl std::fmt::Display for PeakPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl MemoryPool for PeakPool {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.inner.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.inner.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
        self.note();
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.inner.try_grow(reservation, additional)?;
        self.note();
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.inner.memory_limit()
    }
}
