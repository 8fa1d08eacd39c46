#!/usr/bin/env python3
"""An A/B test over 100 million rows of Parquet: seconds and peak memory of `nightmarket evaluate ab`, and of DuckDB for the sums alone.

    make bench-ab                       # 100 million rows, 10 million users
    scripts/bench_ab.py --rows 20000000

Three tables of the same size: rows that are users, rows sorted by user, and the same rows shuffled. DuckDB gets the same memory
and threads and only sums by user, then by arm: the part of the work that grows with the table. The clicks' lift is 2 % of 3 %.
"""
import argparse, json, os, pathlib, sys
from benching import ROOT, enter, measured

PACKAGES = ["duckdb==1.4.1", "pyarrow==21.0.0", "numpy==2.3.3"]
ROWS_AT_ONCE = 1_000_000
ROWS_OF_A_USER = 10
METRICS = ["--metric", "ctr=clicks/impressions", "--metric", "revenue", "--cuped", "revenue=pre_revenue"]


def write(path, rows, users_of_block):
    """A table in blocks; `users_of_block` gives the users of the rows from `start` on."""
    import numpy, pyarrow, pyarrow.parquet
    schema = pyarrow.schema([("user_id", pyarrow.int64()), ("arm", pyarrow.string()), ("impressions", pyarrow.int64()),
                             ("clicks", pyarrow.int64()), ("revenue", pyarrow.float64()), ("pre_revenue", pyarrow.float64())])
    half_written = path.with_suffix(".part")
    with pyarrow.parquet.ParquetWriter(half_written, schema, compression="zstd") as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, rows - start)
            random = numpy.random.default_rng([7, start])
            users = users_of_block(start, n, random)
            treated = (users * 2654435761 >> 7) % 2 == 1
            impressions = random.integers(1, 5, n)
            clicks = random.binomial(impressions, numpy.where(treated, 0.0306, 0.03))
            before = random.exponential(1.0, n).round(2)
            revenue = (0.5 * before + random.exponential(1.0, n)).round(2)
            arm = pyarrow.array(numpy.where(treated, "treatment", "control"))
            writer.write_table(pyarrow.table([users, arm, impressions, clicks, revenue, before], schema=schema))
    half_written.rename(path)


DUCK = """
import duckdb, sys
path, threads, memory, by_user = sys.argv[1:]
base = duckdb.connect(config={"threads": int(threads), "memory_limit": memory + "MB", "temp_directory": path + ".spill", "preserve_insertion_order": False})
unit = f"SELECT arm, SUM(clicks) c, SUM(impressions) i, SUM(revenue) r, SUM(pre_revenue) p FROM '{path}' GROUP BY user_id, arm"
rows = f"SELECT arm, clicks c, impressions i, revenue r, pre_revenue p FROM '{path}'"
print(base.execute(f"SELECT arm, COUNT(*), SUM(c), SUM(i), SUM(r), SUM(c*c), SUM(i*i), SUM(c*i), SUM(r*r), SUM(p*p), SUM(r*p) "
                   f"FROM ({unit if by_user == 'yes' else rows}) GROUP BY arm ORDER BY arm").fetchall())
"""


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=100_000_000)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--memory-mib", type=int, default=2048)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    asked.add_argument("--program", default=str(target / "release/nightmarket"))
    asked = asked.parse_args()
    enter("ab", PACKAGES)
    import numpy

    folder = target.resolve() / f"bench/ab/{asked.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    users = asked.rows // ROWS_OF_A_USER
    # A step coprime to the number of rows visits each of them once, out of order.
    step = next(step for step in range(int(asked.rows * 0.618), asked.rows) if numpy.gcd(step, asked.rows) == 1)
    tables = {
        "rows are users": (lambda start, n, _: numpy.arange(start, start + n), []),
        "sorted by user": (lambda start, n, _: numpy.arange(start, start + n) // ROWS_OF_A_USER, ["--unit", "user_id"]),
        "shuffled": (lambda start, n, _: (numpy.arange(start, start + n) * step % asked.rows) // ROWS_OF_A_USER, ["--unit", "user_id"]),
    }
    print(f"{asked.rows:,} rows, {users:,} users of {ROWS_OF_A_USER} rows; {asked.threads} threads, DuckDB with {asked.memory_mib} MiB")
    print("| table | seconds | peak MiB | CTR lift [95 %] | DuckDB, sums alone: seconds | peak MiB |\n|---|---|---|---|---|---|")
    for name, (users_of_block, unit) in tables.items():
        path = folder / f"{name.replace(' ', '_')}.parquet"
        if not path.exists():
            write(path, asked.rows, users_of_block)
        command = [asked.program, "evaluate", "ab", "--table", path, "--arm", "arm", "--control", "control", *unit, *METRICS, "--output", "json"]
        seconds, peak, out, _ = measured(command)
        lift = json.loads(out)["metrics"]["ctr"]["treatment"]["relative"]
        low, high = lift["ci95"]
        theirs, their_peak, *_ = measured([sys.executable, "-c", DUCK, path, asked.threads, asked.memory_mib, "yes" if unit else "no"])
        print(f"| {name} | {seconds:.1f} | {peak:.0f} | {lift['estimate']:.4f} [{low:.4f}, {high:.4f}] | {theirs:.1f} | {their_peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
