//! What a query took of the machine.

use datafusion::execution::memory_pool::{MemoryPool, PeakRecordingPool};
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
        let peak = PeakRecordingPool::from_pool(&**pool).map_or(0, PeakRecordingPool::peak_reserved);
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
