//! Object storage: one folder on local disk, S3, GCS or Azure, behind `object_store`.
//!
//! Only `PutMode::Create` and whole-object overwrites are used, because these work on every store. Objects appear whole or not
//! at all; a stage writes its files first and its `_manifest.json` last, so a folder without a manifest is unfinished work.

use crate::error::{Context, Error, Kind, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use url::Url;

/// A folder in an object store.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<dyn ObjectStore>,
    /// The folder in `root`. object_store's own PrefixStore leaves the whole path in the answer to a HEAD, so that DataFusion
    /// takes the file for another one and reads no rows.
    prefix: Path,
    url: Url,
}

/// One file as a manifest records it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the manifest's folder.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// Rows of a table; absent for other files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows: Option<u64>,
    /// `name: type` of each column of a table.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub schema: Vec<String>,
}

/// One object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub path: String,
    pub bytes: u64,
    /// The store's own mark of this version of the object, to recognise an unchanged one without reading it.
    pub version: String,
    /// When it was written.
    pub modified: DateTime<Utc>,
}

/// What became of a create-only write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is ours.
    Ours,
    /// An object of that name with other content was there first.
    Theirs,
}

impl Store {
    /// Opens `file:///…`, `s3://bucket/…`, `gs://…`, `az://…` or a path of this machine (made when absent). Credentials and
    /// endpoints of cloud stores come from the usual environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    pub fn open(location: &str) -> Result<Self> {
        let url = locate(location)?;
        if url.scheme() == "file" {
            let folder = url.to_file_path().map_err(|()| Error::usage(format_args!("store {location} is not a local path")))?;
            // A full disk may have room again; nothing else here mends itself.
            let unusable = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::Interrupted => Error::from(error),
                _ => Error::usage(error),
            };
            std::fs::create_dir_all(&folder).map_err(unusable).with_context(|| format!("store {location}: making its folder"))?;
            let inner = object_store::local::LocalFileSystem::new_with_prefix(&folder).map_err(Error::usage);
            let inner = inner.with_context(|| format!("store {location}"))?;
            return Ok(Self::over(Arc::new(inner), url));
        }
        let options = std::env::vars().filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix)));
        let options = options.map(|(name, value)| (name.to_ascii_lowercase(), value));
        // Nothing is asked of the store yet: what fails here is the URL or a setting.
        let opened = object_store::parse_url_opts(&url, options).map_err(Error::usage);
        let (inner, prefix) = opened.with_context(|| format!("store {location}"))?;
        Ok(Self { root: inner.into(), prefix, url })
    }

    /// As [`Store::open`], for a place that must be there already: a folder of this machine is not made.
    pub fn open_existing(location: &str) -> Result<Self> {
        if let Ok(folder) = locate(location)?.to_file_path()
            && !folder.is_dir()
        {
            return Err(Error::usage(format_args!("store {location}: there is no folder {}", folder.display())));
        }
        Self::open(location)
    }

    /// A store over a given implementation; tests use it to inject faults.
    pub fn over(root: Arc<dyn ObjectStore>, url: Url) -> Self {
        Self { root, prefix: Path::default(), url }
    }

    /// The folder `prefix` of this store, as a store.
    pub fn child(&self, prefix: &str) -> Self {
        Self { root: self.root.clone(), prefix: self.at(prefix), url: self.locate(prefix) }
    }

    /// The address of an object or folder, for people, logs and ad servers.
    pub fn locate(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{}", self.url.path().trim_end_matches('/'), path));
        url
    }

    /// The whole store in which this one is a folder; its paths are those of [`Store::at`].
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        self.root.clone()
    }

    /// An object's path in the whole store. A listed name is taken as it is: encoding a `~` or a `%` of it would look for another object.
    pub fn at(&self, path: &str) -> Path {
        let below = Path::parse(path).unwrap_or_else(|_| Path::from(path));
        self.prefix.parts().chain(below.parts()).collect()
    }

    /// The whole object; `InputMissing` when there is none.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        self.get_optional(path).await?.ok_or_else(|| Error::new(Kind::InputMissing, format_args!("{} does not exist", self.locate(path))))
    }

    /// The whole object, when there is one.
    pub async fn get_optional(&self, path: &str) -> Result<Option<Bytes>> {
        match self.root.get_opts(&self.at(path), GetOptions::default()).await {
            Ok(found) => Ok(Some(found.bytes().await.with_context(|| format!("reading {}", self.locate(path)))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from(error).context(format_args!("reading {}", self.locate(path)))),
        }
    }

    /// Writes an object whole, over an older one if there is one.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<FileEntry> {
        let entry = FileEntry { path: path.into(), bytes: bytes.len() as u64, sha256: sha256(&bytes), rows: None, schema: Vec::new() };
        let written = self.root.put(&self.at(path), PutPayload::from_bytes(bytes)).await;
        written.with_context(|| format!("writing {}", self.locate(path)))?;
        Ok(entry)
    }

    /// Writes an object only if none of that name exists. After a lost answer a store may say `AlreadyExists` to the retry of a
    /// write that succeeded, so the object is read back: ours is ours, whoever's retry it was.
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<Created> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.root.put_opts(&self.at(path), PutPayload::from_bytes(bytes.clone()), options).await {
            Ok(_) => Ok(Created::Ours),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(if self.get(path).await? == bytes { Created::Ours } else { Created::Theirs })
            }
            Err(error) => Err(Error::from(error).context(format_args!("creating {}", self.locate(path)))),
        }
    }

    /// All objects below `prefix`, sorted by path; or the object of that very path.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>> {
        let path = self.at(prefix);
        let listing = || format!("listing {}", self.locate(prefix));
        let mut found: Vec<_> = self.root.list(Some(&path)).try_collect().await.with_context(listing)?;
        // Only a file has an ending; to ask for a folder as if it were an object puzzles some stores.
        if found.is_empty() && path.extension().is_some() {
            match self.root.head(&path).await {
                Ok(object) => found.push(object),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(Error::from(error).context(listing())),
            }
        }
        let below = |path: &Path| path.prefix_match(&self.prefix).map(|parts| parts.collect::<Path>()).unwrap_or_default();
        let mut objects: Vec<_> = found
            .into_iter()
            .map(|meta| Object {
                path: below(&meta.location).to_string(),
                bytes: meta.size,
                version: meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339()),
                modified: meta.last_modified,
            })
            .collect();
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(objects)
    }

    pub async fn delete(&self, path: &str) -> Result<()> {
        self.root.delete(&self.at(path)).await.with_context(|| format!("deleting {}", self.locate(path)))
    }

    /// Writes record batches as one Parquet object, zstd, rows in the order given.
    pub async fn write_parquet(&self, path: &str, schema: SchemaRef, batches: &[RecordBatch]) -> Result<FileEntry> {
        let bytes = parquet_bytes(schema.clone(), batches).with_context(|| format!("encoding {path}"))?;
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let mut entry = self.put(path, bytes).await?;
        entry.rows = Some(rows);
        entry.schema = schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect();
        Ok(entry)
    }

    /// Reads a Parquet object of moderate size whole.
    pub async fn read_parquet(&self, path: &str) -> Result<RecordBatch> {
        let bytes = self.get(path).await?;
        parquet_table(bytes).with_context(|| format!("reading {}", self.locate(path)))
    }
}

/// The URL of a location; a plain path is taken from the working directory.
fn locate(location: &str) -> Result<Url> {
    if location.contains("://") {
        return Url::parse(location).map_err(|error| Error::usage(format_args!("store {location} is not a URL: {error}")));
    }
    let path = std::path::absolute(location).with_context(|| format!("store {location}"))?;
    Url::from_file_path(&path).map_err(|()| Error::usage(format_args!("store {location} is not a path")))
}

/// Parquet, zstd level 3. `created_by` is fixed, so that the bytes depend on the rows alone.
pub fn parquet_bytes(schema: SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("nightmarket".to_owned())
        .set_max_row_group_row_count(Some(128 * 1024))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(Bytes::from(writer.into_inner()?))
}

/// A whole Parquet file as one record batch.
pub fn parquet_table(bytes: Bytes) -> Result<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    // The file's own Arrow schema carries field metadata that a written table need not have.
    let schema = reader.schema().clone();
    // All rows as one batch from the start: joining many would hold the table twice.
    let rows = usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0).max(1);
    let mut batches = reader.with_batch_size(rows).build()?.collect::<std::result::Result<Vec<_>, _>>()?;
    match batches.len() {
        1 => Ok(batches.remove(0)),
        _ => Ok(arrow::compute::concat_batches(&schema, &batches)?),
    }
}

/// Hex SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

/// The day in `…/dt=2026-11-22/…`.
pub fn day_of(path: &str, partition: &str) -> Option<NaiveDate> {
    // A store may show the `=` of a folder escaped.
    path.split('/').find_map(|part| part.replace("%3D", "=").strip_prefix(partition)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn create_is_won_once_and_a_retry_of_the_winner_is_still_ours() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8")).expect("a store");
        assert_eq!(store.create("c/1.json", Bytes::from_static(b"a")).await.expect("created"), Created::Ours);
        assert_eq!(store.create("c/1.json", Bytes::from_static(b"a")).await.expect("retried"), Created::Ours);
        assert_eq!(store.create("c/1.json", Bytes::from_static(b"b")).await.expect("raced"), Created::Theirs);
        assert_eq!(store.child("c").get("1.json").await.expect("read"), Bytes::from_static(b"a"));
    }

    #[tokio::test]
    async fn a_folder_lists_its_own_paths_and_a_file_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8")).expect("a store").child("a").child("b");
        store.put("dt=1/x.csv", Bytes::from_static(b"x")).await.expect("written");
        for (prefix, found) in [("", 1), ("dt=1", 1), ("dt=1/x.csv", 1), ("dt=2", 0), ("dt", 0)] {
            let paths: Vec<String> = store.list(prefix).await.expect("listed").into_iter().map(|object| object.path).collect();
            assert_eq!(paths, vec!["dt=1/x.csv"; found], "{prefix}");
        }
    }
}
