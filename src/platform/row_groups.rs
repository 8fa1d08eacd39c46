//! A Parquet object read one row group at a time: for tables that do not fit into memory.

use crate::error::{Context, Result};
use crate::platform::storage::{Object, Store};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use std::ops::Range;
use std::sync::Arc;

/// A Parquet object whose footer was read.
pub struct RowGroups {
    ranges: Ranges,
    metadata: ArrowReaderMetadata,
    /// Its address, for people.
    pub location: String,
}

/// Batches of rows of one row group.
pub type Batches = ParquetRecordBatchStream<Ranges>;

impl RowGroups {
    /// Reads the footer.
    pub async fn open(store: &Store, object: &Object) -> Result<Self> {
        let location = store.locate(&object.path).to_string();
        let mut ranges = Ranges { store: store.object_store(), path: store.at(&object.path), bytes: object.bytes };
        let metadata = ArrowReaderMetadata::load_async(&mut ranges, ArrowReaderOptions::new()).await;
        Ok(Self { metadata: metadata.with_context(|| format!("reading {location}"))?, ranges, location })
    }

    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Rows of each row group.
    pub fn rows(&self) -> Vec<usize> {
        self.metadata.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect()
    }

    /// Reads the columns `wanted`, by their place in the schema, of a row group, at most `batch_rows` rows at a time. In memory are the
    /// group's bytes as they are stored and one batch.
    pub fn read(&self, group: usize, wanted: &[usize], batch_rows: usize) -> Result<Batches> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.ranges.clone(), self.metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied());
        let batches = builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(batch_rows).build();
        batches.with_context(|| format!("reading {}", self.location))
    }
}

/// Byte ranges of an object.
#[derive(Clone)]
pub struct Ranges {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl AsyncFileReader for Ranges {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { self.store.get_range(&self.path, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.store.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(&'a mut self, _: Option<&'a ArrowReaderOptions>) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let bytes = self.bytes;
            Ok(Arc::new(ParquetMetaDataReader::new().load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
