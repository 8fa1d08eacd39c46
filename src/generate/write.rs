//! Rows -> one Parquet object. Rows go in one by one; only the row group in work and the encoded bytes are held.

use crate::error::Result;
use arrow::array::{ArrayBuilder, ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::sync::Arc;

/// A table's columns, in order.
pub type Columns = &'static [(&'static str, Kind)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text that hardly repeats: a dictionary of it would only cost.
    Id,
    Text,
    Int,
    Float,
    /// Microseconds since 1970, UTC.
    Time,
}

#[derive(Clone, Copy, Debug)]
pub enum Cell<'a> {
    Text(&'a str),
    Int(i64),
    Float(f64),
    Time(i64),
    Null,
}

/// A table being written.
pub struct Table {
    schema: SchemaRef,
    builders: Vec<Builder>,
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

/// A finished file.
pub struct File {
    /// Below the raw root.
    pub path: String,
    pub bytes: Bytes,
    pub rows: u64,
}

enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Time(TimestampMicrosecondBuilder),
}

/// Rows after which the builders are handed to the Parquet writer.
const BATCH: usize = 16 * 1024;

impl Table {
    pub fn new(columns: Columns) -> Result<Self> {
        let field = |&(name, kind): &(&str, Kind)| Field::new(name, kind.data_type(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_created_by("nightmarket".to_owned())
            .set_max_row_group_row_count(Some(128 * 1024));
        for (name, kind) in columns {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(*name), matches!(kind, Kind::Text | Kind::Int));
        }
        let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.build()))?;
        Ok(Self { schema, builders: columns.iter().map(|(_, kind)| kind.builder()).collect(), writer, rows: 0 })
    }

    /// Adds one row; its cells are those of the columns, in order.
    pub fn push(&mut self, row: &[Cell<'_>]) -> Result<()> {
        assert_eq!(row.len(), self.builders.len(), "a row has a cell for each column");
        for (builder, cell) in self.builders.iter_mut().zip(row) {
            builder.push(*cell);
        }
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH as u64) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let columns = self.builders.iter_mut().map(Builder::finish).collect();
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        Ok(())
    }

    pub fn finish(mut self, path: String) -> Result<File> {
        self.flush()?;
        Ok(File { path, bytes: Bytes::from(self.writer.into_inner()?), rows: self.rows })
    }
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Kind::Id | Kind::Text => DataType::Utf8,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    fn builder(self) -> Builder {
        match self {
            Kind::Id | Kind::Text => Builder::Text(StringBuilder::new()),
            Kind::Int => Builder::Int(Int64Builder::new()),
            Kind::Float => Builder::Float(Float64Builder::new()),
            Kind::Time => Builder::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
        }
    }
}

impl Builder {
    fn push(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Builder::Text(builder), Cell::Text(text)) => builder.append_value(text),
            (Builder::Int(builder), Cell::Int(number)) => builder.append_value(number),
            (Builder::Float(builder), Cell::Float(number)) => builder.append_value(number),
            (Builder::Time(builder), Cell::Time(at)) => builder.append_value(at),
            (Builder::Text(builder), Cell::Null) => builder.append_null(),
            (Builder::Int(builder), Cell::Null) => builder.append_null(),
            (Builder::Float(builder), Cell::Null) => builder.append_null(),
            (Builder::Time(builder), Cell::Null) => builder.append_null(),
            (_, cell) => unreachable!("{cell:?} in a column of another kind"),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Text(builder) => ArrayBuilder::finish(builder),
            Builder::Int(builder) => ArrayBuilder::finish(builder),
            Builder::Float(builder) => ArrayBuilder::finish(builder),
            Builder::Time(builder) => ArrayBuilder::finish(builder),
        }
    }
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Cell::Text(text)
    }
}

impl<'a> From<&'a String> for Cell<'a> {
    fn from(text: &'a String) -> Self {
        Cell::Text(text)
    }
}

impl From<i64> for Cell<'_> {
    fn from(number: i64) -> Self {
        Cell::Int(number)
    }
}

impl From<f64> for Cell<'_> {
    fn from(number: f64) -> Self {
        Cell::Float(number)
    }
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}
