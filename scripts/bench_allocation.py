#!/usr/bin/env python3
"""`nightmarket allocate` beside HiGHS's interior point method: same tables, same machine, same number of threads, one run.

    make bench-allocation                                       # 100,000, 500,000 and 5 million pairs of segment and ad
    scripts/bench_allocation.py --pairs 100000 --seeds 3 --threads 1

An instance: every segment may see 50 of 500 ads; qualities, prices, sizes and budgets are log-normal, caps a tenth to six tenths of a
segment, and seven of ten units of money can be spent. HiGHS solves the linear program without crossover, to its default tolerance
(1e-8); its 5 million run is left out unless --highs-up-to allows it. The warm start is from the prices of the same instance
before every value, cost, supply and budget was moved by up to 5 %. Seconds are of solving alone, for both.
"""
import argparse, json, os, pathlib, subprocess, sys, tempfile, time
from benching import ROOT, enter

PACKAGES = ["numpy==2.2.6", "pyarrow==21.0.0", "highspy==1.11.0"]
ADS, ADS_A_SEGMENT = 500, 50


def instance(pairs, seed, shake=0.0):
    """Arrays by segment, by ad and by pair; `shake` moves the numbers and leaves the pairs."""
    import numpy
    random = numpy.random.default_rng(seed)
    segments = pairs // ADS_A_SEGMENT
    quality, price = numpy.exp(0.6 * random.standard_normal(ADS)), numpy.exp(0.4 * random.standard_normal(ADS))
    supply = numpy.round(200 * numpy.exp(random.standard_normal(segments))) + 1
    budget = 0.7 * price * supply.sum() / ADS * numpy.exp(0.8 * random.standard_normal(ADS))
    ad = numpy.concatenate([numpy.sort(random.choice(ADS, ADS_A_SEGMENT, replace=False)) for _ in range(segments)])
    segment = numpy.repeat(numpy.arange(segments), ADS_A_SEGMENT)
    value = quality[ad] * numpy.exp(0.5 * random.standard_normal(len(ad)))
    cost = price[ad] * numpy.exp(0.2 * random.standard_normal(len(ad)))
    cap = numpy.ceil(supply[segment] * random.uniform(0.1, 0.6, len(ad)))
    moved = numpy.random.default_rng(seed + 1_000_000)
    move = lambda numbers: numbers * (1 + shake * moved.uniform(-1, 1, len(numbers)))
    return dict(supply=move(supply), budget=move(budget), segment=segment, ad=ad, value=move(value), cost=move(cost), cap=cap)


def write(it, folder):
    import pyarrow, pyarrow.parquet
    names = lambda letter, indices: pyarrow.DictionaryArray.from_arrays(indices, [f"{letter}{i}" for i in range(indices.max() + 1)]).cast("string")
    import numpy
    table = lambda name, **columns: pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    table("candidates", segment_id=names("s", it["segment"]), ad_id=names("a", it["ad"]), value_per_impression=it["value"],
          cost_per_impression=it["cost"], max_impressions=it["cap"])
    table("segments", segment_id=names("s", numpy.arange(len(it["supply"]))), impressions=it["supply"])
    table("ads", ad_id=names("a", numpy.arange(ADS)), budget=it["budget"])


def ours(program, folder, threads, prices=None):
    """The results, and where the prices are."""
    out = folder / ("warm" if prices else "cold")
    tables = [word for name in ["candidates", "segments", "ads"] for word in (f"--{name}", folder / f"{name}.parquet")]
    command = [program, "allocate", *tables, "--out", out, "--threads", str(threads), "--output", "json"]
    printed = subprocess.run(command + (["--prices", prices] if prices else []), check=True, stdout=subprocess.PIPE).stdout
    return json.loads(printed), out / "prices.json"


def highs(it, threads):
    """(seconds, optimum)."""
    import highspy, numpy
    pairs, segments = len(it["ad"]), len(it["supply"])
    solver = highspy.Highs()
    for option, setting in [("output_flag", False), ("solver", "ipm"), ("run_crossover", "off"), ("threads", threads)]:
        solver.setOptionValue(option, setting)
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = pairs, segments + ADS
    program.sense_ = highspy.ObjSense.kMaximize
    program.col_cost_, program.col_lower_, program.col_upper_ = it["value"], numpy.zeros(pairs), it["cap"]
    program.row_lower_ = numpy.full(segments + ADS, -highspy.kHighsInf)
    program.row_upper_ = numpy.concatenate([it["supply"], it["budget"]])
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = 2 * numpy.arange(pairs + 1)
    program.a_matrix_.index_ = numpy.stack([it["segment"], segments + it["ad"]], 1).ravel()
    program.a_matrix_.value_ = numpy.stack([numpy.ones(pairs), it["cost"]], 1).ravel()
    solver.passModel(program)
    start = time.perf_counter()
    solver.run()
    return time.perf_counter() - start, solver.getInfo().objective_function_value


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pairs", default="100000,500000,5000000", help="pairs of segment and ad, by commas")
    asked.add_argument("--seeds", type=int, default=1)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--highs-up-to", type=int, default=500_000)
    asked.add_argument("--program", default=str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/nightmarket"))
    asked = asked.parse_args()
    print(f"{asked.threads} threads\n| pairs | seed | seconds | steps | gap | of whole impressions | warm: seconds | steps | HiGHS: seconds | times as fast | optimum within the bounds |")
    print("|" + "---|" * 11)
    for pairs in map(int, asked.pairs.split(",")):
        for seed in range(1, asked.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                write(instance(pairs, seed), folder)
                _, prices = ours(asked.program, folder, asked.threads)
                it = instance(pairs, seed, shake=0.05)
                write(it, folder)
                cold, _ = ours(asked.program, folder, asked.threads)
                warm, _ = ours(asked.program, folder, asked.threads, prices)
            theirs = ["", "", ""]
            if pairs <= asked.highs_up_to:
                seconds, optimum = highs(it, asked.threads)
                within = cold["lower_bound"] <= optimum * (1 + 1e-7) and cold["upper_bound"] >= optimum * (1 - 1e-7)
                theirs = [f"{seconds:.2f}", f"{seconds / cold['seconds']:.1f}", "yes" if within else f"NO: {optimum}"]
            row = [f"{pairs:,}", seed, f"{cold['seconds']:.2f}", cold["iterations"], f"{cold['gap']:.1e}", f"{cold['gap_whole']:.1e}",
                   f"{warm['seconds']:.2f}", warm["iterations"], *theirs]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    enter("allocation", PACKAGES)
    main()
