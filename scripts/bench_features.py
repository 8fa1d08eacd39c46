#!/usr/bin/env python3
"""The shop's feature queries in nightmarket, DuckDB and PySpark: same rows, same machine, same number of threads, one run.

    make bench-features                                         # 100,000 users over 28 days
    scripts/bench_features.py --users 200000 --repeats 5 --spark

A generated shop is ingested once. Then, in turn, every feature query of sql/shop is answered as of the last day, from Parquet to
Parquet, sorted by its grain: by the night itself (seconds of its steps), by DuckDB over the night's own canonical files (by day and
bucket of users, sorted by user and time), and by DuckDB over one file a table in the order of time, as a shop would write it. The
SQL is the same text; FIRST_VALUE as an aggregate is called FIRST in DuckDB. PySpark answers those queries that it can read. Every
answer is compared with the night's row by row, numbers to 1e-9.
"""
import argparse, json, math, os, pathlib, re, shutil, statistics, subprocess, time
from benching import ROOT, enter, measured

PACKAGES = ["duckdb==1.4.1", "pyarrow==21.0.0", "pytz==2025.2"]
SPARK = ["pyspark==4.0.1"]
DATE = "2026-11-22"
# The end of the date in Asia/Shanghai, and the job's lag of 3 hours after it.
AS_OF, CUT_OFF = "2026-11-22 16:00:00", "2026-11-22 19:00:00"


def job(folder, threads, buckets, memory_mib):
    """The shop's job on the bench's folder, with few days to learn from: the bench looks at one snapshot."""
    text = (ROOT / "jobs/shop.toml").read_text()
    text = text.replace(".night/shop/raw", str(folder / "raw")).replace(".night/shop/out", str(folder / "out"))
    text = re.sub(r"\[engine\][^\[]*", f"[engine]\nthreads = {threads}\nmemory_mib = {memory_mib}\nbuckets = {buckets}\n\n", text)
    text = re.sub(r"train_days = \d+", "train_days = 1", text)
    text += "" if "leak_share" in text else "\n[features]\nleak_share = 0.0\n"
    path = folder / "job.toml"
    path.write_text(text)
    return path


def ours(program, path, stage):
    """Seconds and folder of each step of a run up to the features, and the process's peak memory in MiB."""
    command = [program, "run", path, "--date", DATE, "--until", "features", "--log", "nightmarket=debug", *(["--from", stage] if stage else [])]
    _, peak, _, log = measured(command, NIGHTMARKET_PSEUDONYM_KEY="the key of the bench")
    found = {}
    for line in filter(lambda line: line.startswith("{"), log.splitlines()):
        fields = json.loads(line)
        if "step" in fields and "path" in fields:
            found[fields["step"]] = fields["seconds"], fields["path"].removeprefix("file://")
    return found, peak


def queries():
    """(name, grain, SQL) of the shop's features, those that others read first."""
    found = {}
    for path in sorted((ROOT / "sql/shop/features").glob("*.sql")):
        text = path.read_text()
        grain = re.search(r"^-- grain: (.*)$", text, re.M)[1].replace(" ", "").split(",")
        found[path.stem] = (path.stem, grain, re.sub(r"--[^\n]*", "", text))
    reads = lambda name: any(re.search(rf"\b{other}\b", found[name][2]) for other in found if other != name)
    return sorted(found.values(), key=lambda query: (reads(query[0]), query[0]))


def known(columns):
    """The conditions of what was known at the cut-off, as the night applies them."""
    conditions = [f"occurred_at < TIMESTAMP '{AS_OF}'"] if "occurred_at" in columns else []
    return conditions + ([f"(arrived_at < TIMESTAMP '{CUT_OFF}' OR arrived_at IS NULL)"] if "arrived_at" in columns else [])


def canonical(folder):
    """The files of a canonical table: a log's buckets over all days, a snapshot's latest day, or the one file of a table made once."""
    days = sorted(pathlib.Path(folder).glob("dt=*"))
    if any(pathlib.Path(folder).glob("bucket=*")):
        return f"{folder}/bucket=*.parquet"
    return f"{days[-1]}/*.parquet" if days else f"{folder}/all.parquet"


def view(table, columns, source):
    """SQL that makes a canonical table as of the date, outcomes cut like rows."""
    known_at = {"clicked": "clicked_at", "converted": "converted_at", "revenue": "converted_at"}
    def shown(column, kind):
        plain = f"CAST({column} AS TIMESTAMP)" if kind.startswith("TIMESTAMP") else column
        if column in known_at and known_at[column] in columns:
            seen = f"COALESCE(CAST({known_at[column]} AS TIMESTAMP) < TIMESTAMP '{CUT_OFF}', true)"
            plain = f"CASE WHEN {seen} THEN {column} END" if column == "revenue" else f"({column} AND {seen})"
        return f"{plain} AS {column}"
    select = ", ".join(shown(column, kind) for column, kind in columns.items())
    return f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM (SELECT {select} FROM {source}) WHERE {' AND '.join(known(columns)) or 'true'}"


def duck(folder, threads, memory_mib, sources):
    """Seconds of each query in DuckDB over `sources` (table -> FROM clause), and where the answers are."""
    import duckdb
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = duckdb.connect(config={"threads": threads, "memory_limit": f"{memory_mib}MB", "temp_directory": str(folder / "spill")})
    base.execute("SET TimeZone = 'UTC'")
    for table, source in sources.items():
        columns = {name: kind for name, kind, *_ in base.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        base.execute(view(table, columns, source))
    seconds = {}
    for name, grain, sql in queries():
        sql = sql.replace("$as_of", f"TIMESTAMP '{AS_OF}'").replace("FIRST_VALUE(", "FIRST(")
        out = folder / f"{name}.parquet"
        start = time.perf_counter()
        try:
            base.execute(f"COPY (SELECT * FROM ({sql}) ORDER BY {', '.join(grain)}) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
            seconds[name] = time.perf_counter() - start
        except duckdb.Error as error:
            seconds[name] = str(error).splitlines()[0][:80]
            continue
        base.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM read_parquet('{out}')")
    return seconds


def spark(folder, threads, sources):
    """Seconds of those queries that Spark SQL reads, and why not the others."""
    from pyspark.sql import SparkSession
    shutil.rmtree(folder, ignore_errors=True)
    session = (SparkSession.builder.master(f"local[{threads}]").config("spark.driver.memory", "6g").config("spark.ui.enabled", "false")
               .config("spark.sql.session.timeZone", "UTC").config("spark.sql.shuffle.partitions", str(4 * threads))
               .config("spark.sql.ansi.enabled", "false").getOrCreate())
    session.sparkContext.setLogLevel("ERROR")
    for table, paths in sources.items():
        frame = session.read.parquet(*paths)
        frame.createOrReplaceTempView(f"{table}_files")
        columns = {name: "TIMESTAMP" if kind.startswith("timestamp") else kind for name, kind in frame.dtypes}
        session.sql(view(table, columns, f"{table}_files").replace("CREATE OR REPLACE VIEW", "CREATE OR REPLACE TEMPORARY VIEW"))
    seconds = {}
    for name, grain, sql in queries():
        sql = re.sub(r"INTERVAL '(\d+) days?'", r"INTERVAL \1 DAYS", sql.replace("$as_of", f"TIMESTAMP '{AS_OF}'"))
        sql = sql.replace("DATE_PART('epoch', ", "EXTRACT(SECONDS FROM (").replace("AS DOUBLE)", "AS DOUBLE)")
        start = time.perf_counter()
        try:
            session.sql(f"SELECT * FROM ({sql}) ORDER BY {', '.join(grain)}").write.parquet(str(folder / name), compression="zstd")
            seconds[name] = time.perf_counter() - start
            session.read.parquet(str(folder / name)).createOrReplaceTempView(name)
        except Exception as error:
            seconds[name] = str(error).splitlines()[0][:80]
    session.stop()
    return seconds


def differs(ours_folder, theirs):
    """The first difference of two answers; numbers may differ by 1e-9 of their size."""
    import pyarrow.parquet, pyarrow
    files = sorted(path for path in pathlib.Path(ours_folder).glob("*.parquet") if not path.name.startswith("_"))
    mine = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in files])
    other = pyarrow.parquet.read_table(theirs).select(mine.column_names)
    if mine.num_rows != other.num_rows:
        return f"{mine.num_rows} rows and {other.num_rows}"
    key = [(name, "ascending") for name in mine.column_names if name.endswith("_id") or name == "term"]
    mine, other = mine.sort_by(key), other.sort_by(key)
    for name in mine.column_names:
        for row, (a, b) in enumerate(zip(mine[name].to_pylist(), other[name].to_pylist())):
            same = a == b or (None not in (a, b) and isinstance(a, float) and math.isclose(a, float(b), rel_tol=1e-9, abs_tol=1e-12))
            if not same:
                return f"{name} of row {row}: {a} and {b}"
    return None


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--users", type=int, default=100_000)
    asked.add_argument("--days", type=int, default=28)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--buckets", type=int, default=16)
    asked.add_argument("--memory-mib", type=int, default=2048)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--spark", action="store_true", help="PySpark too (400 MB, needs Java)")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    asked.add_argument("--program", default=str(target / "release/nightmarket"))
    asked = asked.parse_args()
    enter("spark" if asked.spark else "features", PACKAGES + (SPARK if asked.spark else []))

    folder = target.resolve() / f"bench/features/{asked.users}x{asked.days}"
    if not (folder / "raw/_world.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([asked.program, "generate", "--out", folder / "raw", "--users", str(asked.users), "--days", str(asked.days), "--seed", "7",
                        "--until", DATE], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    path = job(folder, asked.threads, asked.buckets, asked.memory_mib)
    steps, peak = ours(asked.program, path, None)
    staged = {step.split("/")[1]: where for step, (_, where) in steps.items() if step.startswith("staging/")}
    files = {name: canonical(where) for name, where in staged.items()}
    wanted = {name for name in files if any(re.search(rf"\b{name}\b", sql) for *_, sql in queries())}
    bucketed = {name: f"read_parquet('{files[name]}', hive_partitioning = false)" for name in wanted}

    import duckdb
    flat = folder / "flat"
    flat.mkdir(exist_ok=True)
    for name in wanted:
        if not (flat / f"{name}.parquet").exists():
            columns = [row[0] for row in duckdb.sql(f"DESCRIBE SELECT * FROM {bucketed[name]}").fetchall()]
            order = "ORDER BY occurred_at" if "occurred_at" in columns else ""
            duckdb.sql(f"COPY (SELECT * FROM {bucketed[name]} {order}) TO '{flat}/{name}.parquet' (FORMAT parquet, COMPRESSION zstd)")
    by_time = {name: f"read_parquet('{flat}/{name}.parquet')" for name in wanted}
    rows = duckdb.sql(f"SELECT COUNT(*) FROM {by_time['events']}").fetchone()[0]

    digests = []
    runs = {"nightmarket": [], "DuckDB, same files": [], "DuckDB, by time": []}
    for _ in range(asked.repeats):
        steps, used = ours(asked.program, path, "features")
        peak = max(peak, used)
        mine = {step.split("/")[1]: of for step, of in steps.items() if step.startswith("features/") and step.endswith(DATE)}
        digests.append(sum(seconds for step, (seconds, _) in steps.items() if step.startswith("features/_seen/")))
        runs["nightmarket"].append({name: seconds for name, (seconds, _) in mine.items()})
        runs["DuckDB, same files"].append(duck(folder / "duck_bucketed", asked.threads, asked.memory_mib, bucketed))
        runs["DuckDB, by time"].append(duck(folder / "duck_by_time", asked.threads, asked.memory_mib, by_time))
    if asked.spark:
        paths = {name: [f"{flat}/{name}.parquet"] for name in wanted}
        runs["PySpark, by time"] = [spark(folder / "spark", asked.threads, paths) for _ in range(asked.repeats)]

    print(f"{rows:,} events, {asked.users:,} users; {asked.threads} threads, {asked.memory_mib} MiB, {asked.buckets} buckets; medians of {asked.repeats}")
    print(f"nightmarket's peak memory, ingest included: {peak:.0f} MiB")
    print(f"the digests by which later nights know what to reuse, of all snapshot days: {statistics.median(digests):.2f} s")
    print("| query | " + " | ".join(runs) + " | same answer |\n|" + "---|" * (len(runs) + 2))
    total = dict.fromkeys(runs, 0.0)
    for name, *_ in queries():
        cells = []
        for who, timed in runs.items():
            seconds = [run[name] for run in timed]
            median = statistics.median(seconds) if all(isinstance(one, float) for one in seconds) else None
            total[who] += median or 0.0
            cells.append(seconds[0] if median is None else f"{median:.2f}")
        difference = differs(mine[name][1], folder / f"duck_bucketed/{name}.parquet")
        print(f"| {name} | " + " | ".join(map(str, cells)) + f" | {difference or 'yes'} |")
    print("| all | " + " | ".join(f"**{seconds:.2f}**" for seconds in total.values()) + " | |")


if __name__ == "__main__":
    main()
