//! Training rows that stay in their files: which files and row groups there are, and passes over them in seeded orders.
//!
//! An epoch reads the row groups in an order of its own; the model shuffles the rows of as many groups as its block holds. So a file
//! in the order of time should have row groups much smaller than a block. CSV files of this machine are first turned into Parquet
//! in a temporary folder, whose space they need once more.

use super::TrainSpec;
use super::table::{self, Labelled};
use crate::error::{Context, Error, Result};
use crate::model::{ModelSettings, Streamed, Survey, TextEncoder, encoded_bytes};
use crate::platform::row_groups::RowGroups;
use crate::platform::storage::{Object, Store};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use tempfile::TempDir;

/// Rows read, split and encoded at a time.
const BATCH: usize = 32_768;
/// Rows of a row group of what was CSV.
const GROUP: usize = 65_536;
/// A CSV file is at least so much smaller than its encoded rows could be.
const CSV_GROWTH: u64 = 16;

/// The table of a spec, whose training rows are read again in every epoch.
pub(super) struct Table {
    spec: TrainSpec,
    encoder: Option<Arc<TextEncoder>>,
    files: Vec<RowGroups>,
    groups: Vec<Group>,
    /// Of CSV files as Parquet: it goes with the table.
    _spool: Option<TempDir>,
    /// What the columns of CSV files are.
    csv_schema: Option<Arc<Schema>>,
}

#[derive(Clone, Copy)]
struct Group {
    file: usize,
    group: usize,
    /// The number of its first row among the rows of all files.
    first: u64,
}

/// What the first pass found.
pub(super) struct FirstPass {
    pub survey: Survey,
    pub valid: Labelled,
    pub test: Option<Labelled>,
}

/// The table of a spec where its rows are to be streamed: because it says so, or because their encoded matrix would pass its
/// `memory_mib`.
pub(super) async fn open(spec: &TrainSpec, encoder: Option<&Arc<TextEncoder>>, settings: &ModelSettings) -> Result<Option<Arc<Table>>> {
    let location = spec.data.location()?;
    let sorted = spec.data.split.as_ref().is_some_and(|split| split.shares.is_some() && split.column.is_some());
    let wanted = spec.data.streaming;
    if wanted == Some(false) || sorted && wanted.is_none() {
        return Ok(None);
    }
    if sorted {
        return Err(Error::usage("shares in the order of a column need the whole table in memory")
            .action("say from which value on rows validate, as [data.split] valid_from, or streaming = false"));
    }
    let memory = (spec.data.memory_mib as u64) << 20;
    let (store, objects) = table::list(location).await?;
    let csv: u64 = objects.iter().filter(|object| is_csv(object)).map(|object| object.bytes).sum();
    if csv > 0 && location.contains("://") {
        return match wanted {
            Some(true) => Err(Error::usage(format_args!("{location}: CSV is streamed from files of this machine only"))
                .action("write Parquet there, or copy the files here")),
            _ => Ok(None),
        };
    }
    if wanted.is_none() && objects.iter().all(is_csv) && csv < memory / CSV_GROWTH {
        return Ok(None);
    }
    let mut rows = 0;
    let mut csv_schema = None;
    let mut schema = None;
    for object in &objects {
        let found = if is_csv(object) {
            let (file, lines) = csv_file(&store, object)?;
            rows += lines;
            table::csv(spec, file, &mut csv_schema)?.schema()
        } else {
            let file = RowGroups::open(&store, object).await?;
            rows += file.rows().iter().sum::<usize>() as u64;
            let wanted = table::wanted(spec, file.schema());
            table::conform(spec, &RecordBatch::new_empty(Arc::new(file.schema().project(&wanted)?)))?.schema()
        };
        schema.get_or_insert(found);
    }
    let schema = schema.unwrap_or_else(|| Arc::new(Schema::empty()));
    let features = table::label(spec, encoder.map(Arc::as_ref), RecordBatch::new_empty(schema))?.features.schema();
    let of_a_row = encoded_bytes(&features, &settings.features) as u64;
    if wanted.is_none() && rows * of_a_row <= memory {
        return Ok(None);
    }
    tracing::info!(rows, encoded_mib = (rows * of_a_row) >> 20, "training rows are streamed");
    Ok(Some(Arc::new(Table::new(spec, encoder.cloned(), &store, &objects, csv_schema).await?)))
}

fn is_csv(object: &Object) -> bool {
    object.path.ends_with(".csv")
}

/// A CSV file of this machine, at its start, and about how many lines it has.
fn csv_file(store: &Store, object: &Object) -> Result<(File, u64)> {
    let path = local(store, object)?;
    let opening = || format!("reading {}", path.display());
    let mut file = File::open(&path).with_context(opening)?;
    let mut start = Vec::new();
    file.by_ref().take(1 << 20).read_to_end(&mut start).with_context(opening)?;
    file.rewind().with_context(opening)?;
    let lines = start.iter().filter(|byte| **byte == b'\n').count().max(1) as u64;
    Ok((file, object.bytes * lines / start.len().max(1) as u64))
}

fn local(store: &Store, object: &Object) -> Result<PathBuf> {
    let url = store.locate(&object.path);
    url.to_file_path().map_err(|()| Error::usage(format_args!("{url} is not a file of this machine")))
}

impl Table {
    async fn new(
        spec: &TrainSpec,
        encoder: Option<Arc<TextEncoder>>,
        store: &Store,
        objects: &[Object],
        mut csv_schema: Option<Arc<Schema>>,
    ) -> Result<Self> {
        let mut files = Vec::new();
        let mut spool = None;
        for (number, object) in objects.iter().enumerate() {
            if !is_csv(object) {
                files.push(RowGroups::open(store, object).await?);
                continue;
            }
            let folder: &TempDir = match &mut spool {
                Some(folder) => folder,
                none => none.insert(TempDir::new().context("making a temporary folder for CSV as Parquet")?),
            };
            let name = format!("{number}.parquet");
            let reading = || format!("reading {}", store.locate(&object.path));
            let (file, _) = csv_file(store, object)?;
            as_parquet(spec, file, &mut csv_schema, folder.path().join(&name)).with_context(reading)?;
            let here = Store::open(&folder.path().display().to_string())?;
            let object = here.list(&name).await?.into_iter().next().ok_or_else(|| Error::internal("a spooled file is not there"))?;
            files.push(RowGroups::open(&here, &object).await?);
        }
        let mut groups = Vec::new();
        let mut first = 0;
        for (file, row_groups) in files.iter().enumerate() {
            for (group, rows) in row_groups.rows().into_iter().enumerate() {
                groups.push(Group { file, group, first });
                first += rows as u64;
            }
        }
        Ok(Self { spec: spec.clone(), encoder, files, groups, _spool: spool, csv_schema })
    }

    fn rows(&self) -> usize {
        self.files.iter().flat_map(RowGroups::rows).sum()
    }

    /// Learns the feature map and reads the rows that validate and test, which stay in memory.
    pub async fn first_pass(&self, settings: &ModelSettings) -> Result<FirstPass> {
        let spec = &self.spec;
        let mut survey = Survey::new(&settings.features, self.rows(), spec.seed);
        let mut others: [Vec<RecordBatch>; 2] = Default::default();
        self.pass(None, &mut |first, rows| {
            let [train, valid, test] = table::split(spec, first, rows)?;
            if train.num_rows() > 0 {
                let train = table::label(spec, self.encoder.as_deref(), train).context("the train rows")?;
                survey.add(&train.features, &train.targets)?;
            }
            others.iter_mut().zip([valid, test]).filter(|(_, rows)| rows.num_rows() > 0).for_each(|(all, rows)| all.push(rows));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut schema = self.csv_schema.clone();
        let mut named = async |location: &Option<String>| match location {
            Some(location) => Ok::<_, Error>(Some(table::files(spec, location, &mut schema).await?)),
            None => Ok(None),
        };
        let of_files = [named(&spec.data.valid).await?, named(&spec.data.test).await?];
        let mut labelled = Vec::new();
        for ((rows, of_file), name) in others.into_iter().zip(of_files).zip(["valid", "test"]) {
            let rows = match (rows.first(), of_file) {
                (Some(first), _) => Some(concat_batches(&first.schema(), &rows)?),
                (None, of_file) => of_file.filter(|rows| rows.num_rows() > 0),
            };
            labelled.push(
                rows.map(|rows| table::label(spec, self.encoder.as_deref(), rows).with_context(|| format!("the {name} rows")))
                    .transpose()?,
            );
        }
        let (test, valid) = (labelled.pop().flatten(), labelled.pop().flatten());
        if survey.rows() == 0 {
            return Err(table::empty("train"));
        }
        Ok(FirstPass { survey, valid: valid.ok_or_else(|| table::empty("valid"))?, test })
    }

    /// The training rows as the model asks for them.
    pub fn streamed(self: &Arc<Self>, settings: &ModelSettings, features: &SchemaRef) -> Streamed {
        let table = self.clone();
        // Two blocks, each at most a quarter of the memory.
        let quarter = (self.spec.data.memory_mib << 20) / 4 / encoded_bytes(features, &settings.features).max(1);
        let pass = move |order: u64, take: &mut crate::model::Take| {
            table.pass(Some(order), &mut |first, rows| {
                let [train, ..] = table::split(&table.spec, first, rows)?;
                if train.num_rows() == 0 {
                    return Ok(ControlFlow::Continue(()));
                }
                let Labelled { features, targets, .. } =
                    table::label(&table.spec, table.encoder.as_deref(), train).context("the train rows")?;
                take(features, targets)
            })
        };
        Streamed { pass: Arc::new(pass), block_rows: self.spec.data.buffer_rows.min(quarter).max(1) }
    }

    /// Gives all rows to `take`, with the number of the first of them: in the order of the files, or with the row groups in the order
    /// of a seed. Another thread reads ahead.
    fn pass(&self, order: Option<u64>, take: &mut dyn FnMut(u64, RecordBatch) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut groups = self.groups.clone();
        if let Some(seed) = order {
            groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            let reader = scope.spawn(move || self.read(&groups, &send));
            for (first, rows) in &receive {
                if take(first, rows)?.is_break() {
                    return Ok(());
                }
            }
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sends the rows of these groups until nobody listens.
    fn read(&self, groups: &[Group], send: &SyncSender<(u64, RecordBatch)>) -> Result<()> {
        // The caller's runtime waits for the training.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            for Group { file, group, first } in groups {
                let file = &self.files[*file];
                let reading = || format!("reading {}", file.location);
                let mut first = *first;
                let mut batches = file.read(*group, &table::wanted(&self.spec, file.schema()), BATCH)?;
                while let Some(batch) = batches.next().await {
                    let rows = table::conform(&self.spec, &batch.with_context(reading)?).with_context(reading)?;
                    let number = rows.num_rows() as u64;
                    if send.send((first, rows)).is_err() {
                        return Ok(());
                    }
                    first += number;
                }
            }
            Ok(())
        })
    }
}

/// Rewrites a CSV file as Parquet. In memory are the rows of one row group.
fn as_parquet(spec: &TrainSpec, file: File, schema: &mut Option<Arc<Schema>>, to: PathBuf) -> Result<()> {
    let reader = table::csv(spec, file, schema)?;
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(GROUP)).build();
    let mut writer = ArrowWriter::try_new(File::create(to)?, reader.schema(), Some(properties))?;
    for rows in reader {
        writer.write(&rows.map_err(table::not_as_declared)?)?;
    }
    writer.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    /// Two files of 1000 and 500 rows, in row groups of 100; `x` is the number of the row.
    async fn table(folder: &TempDir) -> Table {
        let path = folder.path().display().to_string();
        for (name, range) in [("a", 0..1000), ("b", 1000..1500)] {
            let columns = ["x", "label"].map(|name| (name, Arc::new(Int64Array::from_iter_values(range.clone())) as _, true));
            let rows = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(100)).build();
            let file = File::create(folder.path().join(format!("{name}.parquet"))).expect("a file");
            let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).expect("a writer");
            writer.write(&rows).expect("written");
            writer.close().expect("closed");
        }
        let toml = format!("[data]\ntrain = \"{path}\"\n[columns]\nlabel = \"label\"\n");
        let spec: TrainSpec = crate::platform::job::parse_toml(&toml, "spec").expect("a spec");
        let (store, objects) = table::list(&path).await.expect("files");
        Table::new(&spec, None, &store, &objects, None).await.expect("a table")
    }

    fn pass(table: &Table, order: Option<u64>) -> Vec<i64> {
        let mut all = Vec::new();
        let mut take = |first: u64, rows: RecordBatch| {
            let x = rows.column_by_name("x").expect("a column").as_primitive::<Int64Type>();
            assert_eq!(x.value(0), first as i64, "the number of the first row");
            all.extend(x.values().iter().copied());
            Ok(ControlFlow::Continue(()))
        };
        table.pass(order, &mut take).expect("a pass");
        all
    }

    #[tokio::test]
    async fn a_pass_gives_every_row_once_in_an_order_of_its_seed() {
        let folder = TempDir::new().expect("a temporary folder");
        let table = table(&folder).await;
        assert_eq!(pass(&table, None), (0..1500).collect::<Vec<_>>());
        let one = pass(&table, Some(1));
        assert_eq!(one, pass(&table, Some(1)));
        assert_ne!(one, pass(&table, Some(2)));
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1500).collect::<Vec<_>>());
        assert_ne!(sorted, one);
    }

    #[tokio::test]
    async fn a_pass_ends_where_no_more_is_wanted() {
        let folder = TempDir::new().expect("a temporary folder");
        let table = table(&folder).await;
        let mut seen = 0;
        let mut take = |_, rows: RecordBatch| {
            seen += rows.num_rows();
            Ok(if seen >= 300 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        table.pass(Some(1), &mut take).expect("a pass");
        assert_eq!(seen, 300);
        let error = table.pass(None, &mut |_, _| Err(Error::contract("this row is wrong"))).expect_err("the error of who takes");
        assert!(error.to_string().contains("this row is wrong"), "{error}");
    }
}
