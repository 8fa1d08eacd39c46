//! `wide_sum(x)`: SQL's SUM in twice the precision, so that a unit's sum does not depend on which thread saw which of its rows.

use crate::statistics::moments::Wide;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, Expr, GroupsAccumulator, Signature, Volatility};
use std::sync::{Arc, LazyLock};

/// The sum of the values that are not NULL; NULL without any.
pub fn wide_sum(values: Expr) -> Expr {
    static FUNCTION: LazyLock<AggregateUDF> = LazyLock::new(|| AggregateUDF::from(WideSum::new()));
    FUNCTION.call(vec![values])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WideSum {
    signature: Signature,
}

impl WideSum {
    fn new() -> Self {
        Self { signature: Signature::exact(vec![DataType::Float64], Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for WideSum {
    fn name(&self) -> &'static str {
        "wide_sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn state_fields(&self, _: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(["high", "low"].map(|name| Arc::new(Field::new(name, DataType::Float64, true))).to_vec())
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneSum(Sums::default())))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Sums::default()))
    }
}

/// The sum of each group; none where no value was seen.
#[derive(Debug, Default)]
struct Sums(Vec<Option<Wide>>);

impl Sums {
    fn take(&mut self, emit_to: EmitTo) -> Vec<Option<Wide>> {
        emit_to.take_needed(&mut self.0)
    }
}

impl GroupsAccumulator for Sums {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total_groups: usize) -> Result<()> {
        self.0.resize(total_groups, None);
        let values = values[0].as_primitive::<Float64Type>();
        for (row, &group) in groups.iter().enumerate() {
            if values.is_valid(row) && filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.0[group].get_or_insert_default().add(values.value(row));
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total_groups: usize) -> Result<()> {
        self.0.resize(total_groups, None);
        let (high, low) = (values[0].as_primitive::<Float64Type>(), values[1].as_primitive::<Float64Type>());
        for (row, &group) in groups.iter().enumerate() {
            if high.is_valid(row) {
                self.0[group].get_or_insert_default().merge(Wide::from_parts(high.value(row), low.value(row)));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = self.take(emit_to);
        Ok(Arc::new(sums.iter().map(|sum| sum.map(Wide::value)).collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let sums = self.take(emit_to);
        let part = |of: fn((f64, f64)) -> f64| -> ArrayRef {
            Arc::new(sums.iter().map(|sum| sum.map(|sum| of(sum.parts()))).collect::<Float64Array>())
        };
        Ok(vec![part(|(high, _)| high), part(|(_, low)| low)])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values[0].as_primitive::<Float64Type>();
        let kept = |row: usize| values.is_valid(row) && filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let high: Float64Array = (0..values.len()).map(|row| kept(row).then(|| values.value(row))).collect();
        let low: Float64Array = (0..values.len()).map(|row| kept(row).then_some(0.0)).collect();
        Ok(vec![Arc::new(high), Arc::new(low)])
    }

    fn size(&self) -> usize {
        self.0.capacity() * size_of::<Option<Wide>>()
    }
}

/// The sum of everything, as a single group.
#[derive(Debug)]
struct OneSum(Sums);

impl Accumulator for OneSum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values, &vec![0; values[0].len()], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states, &vec![0; states[0].len()], 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.0.0.first().copied().flatten().map(Wide::value)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let parts = self.0.0.first().copied().flatten().map(Wide::parts);
        Ok(vec![ScalarValue::Float64(parts.map(|parts| parts.0)), ScalarValue::Float64(parts.map(|parts| parts.1))])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.size()
    }
}
