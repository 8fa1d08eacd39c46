#!/usr/bin/env python3
"""What the allocation is worth when it is served: the night's plan beside the plans people make without one, in generated shops.

    make bench-serving                                # 20 shops of 3,000 users
    scripts/bench_serving.py --seeds 3 --users 1000

For each seed a shop is generated and its night is run. Then the next day is served three times in the same world, with the same random
numbers, segments, budgets, frequency caps and the same estimates of what an impression is worth: by the night's plan, by a
proportional split (each segment's opportunities go to its ads in proportion to the campaigns' budgets; what a campaign cannot pay or a
cap forbids goes to the others, until nothing moves) and by a greedy plan (the pair of most value per cost first). Everybody is served
by the plan; there is no explore arm and no holdout. The value of a day is what the world's truth says of its impressions: p(click) x
p(conversion) x price of the item. An impression ends where its budget or cap ends, as at an ad server.

The same shops tell whether the night's report can be believed: how many of its intervals (CTR of the day by arm, lift of champion over
holdout, off-policy value of tonight's table) hold the true CTR of what was shown, and of the day that the table then served.
"""
import argparse, collections, json, math, os, pathlib, shutil, statistics, sys
from benching import ROOT, enter, measured

PACKAGES = ["pyarrow==21.0.0"]
DATE, NEXT = "2026-11-22", "2026-11-23"
SECRET = "the key of the bench"
PLANS = ["nightmarket", "proportional", "greedy"]


def call(*command):
    return measured(command, NIGHTMARKET_PSEUDONYM_KEY=SECRET)[2]


def job(folder, name, extra=""):
    text = (ROOT / "jobs/shop.toml").read_text()
    text = text.replace(".night/shop/raw", str(folder / "raw")).replace(".night/shop/out", str(folder / "out"))
    path = folder / name
    path.write_text(text + "\n[features]\nleak_share = 0.0\n" + extra)
    return path


def rows(path):
    import pyarrow.parquet
    return pyarrow.parquet.read_table(path).to_pylist()


def day(folder, table, date=DATE):
    return [row for path in sorted((folder / f"raw/{table}/dt={date}").glob("*.parquet")) for row in rows(path)]


class Market:
    """The night's estimates as its table shows them: its explore arm has a row for every ad that may be shown."""

    def __init__(self, folder, tables):
        self.campaigns = {row["campaign"]: row for row in day(folder, "campaigns")}
        self.ads = {row["ad_id"]: row for row in day(folder, "ads")}
        segment_ads = rows(tables / "segment_ads.parquet")
        primary = collections.Counter(row["segment_id"] for row in rows(tables / "user_segments.parquet") if row["rank"] == 1)
        shown = [row for row in segment_ads if row["p_click"] is not None]
        # Opportunities are planned impressions over propensities; both are summed, because impressions are whole.
        shares = {"champion": 0.85, "explore": 0.10, "holdout": 0.05}
        planned, likely = collections.Counter(), collections.Counter()
        for row in shown:
            planned[row["segment_id"]] += row["impressions_planned"]
            likely[row["segment_id"]] += row["propensity"] * shares[row["arm"]]
        self.supply = {segment: planned[segment] / likely[segment] for segment in planned if likely[segment]}
        self.pairs = {}
        for row in shown:
            if row["arm"] == "explore" and row["segment_id"] in self.supply:
                ad = self.ads[row["ad_id"]]
                cost = ad["bid"] * row["p_click"] if ad["bid_type"].strip().lower() == "cpc" else ad["bid"] / 1000
                cap = row["frequency_cap"] * primary[row["segment_id"]] if row["frequency_cap"] else float("inf")
                worth = row["p_click"] * row["p_conversion"] * row["value"]  # of an impression; the table has that of a conversion
                self.pairs[row["segment_id"], row["ad_id"]] = dict(value=worth, cost=cost, cap=cap, times=row["frequency_cap"])

    def budget(self, ad):
        return max(self.campaigns[self.ads[ad]["campaign"]]["daily_budget"], 0.0)

    def proportional(self):
        left, money, x = dict(self.supply), {}, collections.Counter()
        mates = collections.Counter(self.ads[ad]["campaign"] for ad in {ad for _, ad in self.pairs})
        for campaign in mates:
            money[campaign] = max(self.campaigns[campaign]["daily_budget"], 0.0)
        for _ in range(200):
            weights = {}
            for (segment, ad), pair in self.pairs.items():
                campaign = self.ads[ad]["campaign"]
                if money[campaign] > 1e-6 and x[segment, ad] < pair["cap"] - 1e-9 and left[segment] > 1e-9:
                    weights[segment, ad] = self.budget(ad) / mates[campaign]
            total, wanted, spend = collections.Counter(), {}, collections.Counter()
            for (segment, _), weight in weights.items():
                total[segment] += weight
            for (segment, ad), weight in weights.items():
                pair = self.pairs[segment, ad]
                wanted[segment, ad] = min(left[segment] * weight / total[segment], pair["cap"] - x[segment, ad])
                spend[self.ads[ad]["campaign"]] += wanted[segment, ad] * pair["cost"]
            moved = 0.0
            for (segment, ad), impressions in wanted.items():
                campaign = self.ads[ad]["campaign"]
                impressions *= min(1.0, money[campaign] / spend[campaign]) if spend[campaign] else 1.0
                x[segment, ad] += impressions
                left[segment] -= impressions
                moved += impressions
            for campaign, amount in spend.items():
                money[campaign] -= min(amount, money[campaign])
            if moved < 1e-6 * sum(self.supply.values()):
                break
        return x

    def greedy(self):
        left, x = dict(self.supply), collections.Counter()
        money = {campaign: max(row["daily_budget"], 0.0) for campaign, row in self.campaigns.items()}
        worth = lambda pair: self.pairs[pair]["value"] / max(self.pairs[pair]["cost"], 1e-12)
        for segment, ad in sorted(self.pairs, key=lambda pair: (-worth(pair), pair)):
            pair, campaign = self.pairs[segment, ad], self.ads[ad]["campaign"]
            x[segment, ad] = max(min(left[segment], pair["cap"], money[campaign] / pair["cost"] if pair["cost"] else float("inf")), 0.0)
            left[segment] -= x[segment, ad]
            money[campaign] -= x[segment, ad] * pair["cost"]
        return x


def policy(folder, tables, market, plan):
    """A folder with the tables of a plan, as an ad server reads them."""
    import pyarrow, pyarrow.parquet
    target = folder / plan
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(tables / "user_segments.parquet", target)
    night = pyarrow.parquet.read_table(tables / "segment_ads.parquet")
    if plan == "nightmarket":
        mine = [row for row in night.to_pylist() if row["arm"] == "champion" and row["p_click"] is not None]
    else:
        x = getattr(market, plan)()
        version = f"{plan}-{night['policy_version'][0].as_py()}"
        mine = [dict(policy_version=version, segment_id=segment, ad_id=ad, arm="champion", propensity=min(n / market.supply[segment], 1.0),
                     frequency_cap=market.pairs[segment, ad]["times"], bid_multiplier=1.0) for (segment, ad), n in sorted(x.items()) if n > 0]
    fields = [night.schema.field(name).with_nullable(True) for name in
              ["policy_version", "segment_id", "ad_id", "arm", "propensity", "frequency_cap", "bid_multiplier"]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{field.name: row[field.name] for field in fields} for row in mine], schema=pyarrow.schema(fields)),
                                target / "segment_ads.parquet")
    return target


def true_ctr(shop, date):
    """arm -> true p(click) of a shown impression on a day."""
    truth = {row["impression_id"]: row["p_click"] for path in (shop / f"truth/impressions/dt={date}").glob("*.parquet") for row in rows(path)}
    arms = {row["impression_id"]: row["arm"] for path in (shop / f"ad_impressions/dt={date}").glob("*.parquet") for row in rows(path)}
    sums = collections.defaultdict(list)
    for number, arm in arms.items():
        if number in truth:
            sums[arm].append(truth[number])
    return {arm: statistics.mean(p) for arm, p in sums.items()}


def held(report, today, tomorrow):
    """name of an interval of the report -> whether it holds the truth; without those that the report does not give."""
    found = {}

    def look(name, interval, truth):
        if interval and truth is not None:
            found[name] = interval["low"] <= truth <= interval["high"]

    for arm in report["evaluate"]["arms"]:
        look(f"CTR of {arm['arm']}", arm["ctr"]["interval"], today.get(arm["arm"]))
    for lift in report["evaluate"]["lift"]:
        if lift["metric"] == "ctr" and {lift["treatment"], lift["control"]} <= set(today):
            look(f"lift of {lift['treatment']} over {lift['control']}", lift["absolute"]["interval"], today[lift["treatment"]] - today[lift["control"]])
    if report["off_policy"] and report["off_policy"]["verdict"]["kind"] == "identified":
        for estimate in report["off_policy"]["estimates"]:
            look(f"tonight's table by {estimate['estimator']}", estimate["interval"], tomorrow["champion"])
    return found


def served(folder, market, shop):
    """(true value, spend) of the day in a copy of the shop; no budget and no cap may be exceeded."""
    # Some records are malformed: an item without a price counts for no plan.
    price = {row["sku"]: row["price"] for path in sorted((folder / "raw/items").rglob("*.parquet")) for row in rows(path)
             if row["price"] is not None and 0 < row["price"] < math.inf}
    truth = {row["impression_id"]: row for path in (shop / f"truth/impressions/dt={NEXT}").glob("*.parquet") for row in rows(path)}
    shown = {row["impression_id"]: row for path in (shop / f"ad_impressions/dt={NEXT}").glob("*.parquet") for row in rows(path)}
    clicks = {row["impression_id"]: row for path in (shop / f"ad_clicks/dt={NEXT}").glob("*.parquet") for row in rows(path)}
    owner = {row["device_id"]: row["uid"] for path in (shop / f"identities/dt={NEXT}").glob("*.parquet") for row in rows(path)}
    value, spend, seen = 0.0, collections.Counter(), collections.Counter()
    for number, row in shown.items():
        ad, true = market.ads.get(row["ad_id"]), truth.get(number)
        if ad is None or true is None or ad["sku"] not in price:
            continue
        value += true["p_click"] * true["p_conversion"] * price[ad["sku"]]
        spend[ad["campaign"]] += (row["charge"] or 0.0) + (clicks[number]["charge"] or 0.0 if number in clicks else 0.0)
        seen[owner.get(row["device_id"], row["device_id"]), row["ad_id"]] += 1
    over = [campaign for campaign, amount in spend.items() if amount > max(market.campaigns[campaign]["daily_budget"], 0.0) + 1e-6]
    caps = {ad: market.campaigns[row["campaign"]]["frequency_cap"] for ad, row in market.ads.items()}
    often = [pair for pair, times in seen.items() if caps[pair[1]] and times > caps[pair[1]]]
    if over or often:
        sys.exit(f"{shop}: budgets exceeded {over[:3]}, caps exceeded {often[:3]}")
    return value, sum(spend.values())


def one(program, folder, users, seed):
    """plan -> (value, spend) of one seed, and "intervals": which of the night's hold the truth."""
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    call(program, "generate", "--out", folder / "raw", "--users", users, "--days", 28, "--seed", seed, "--until", DATE)
    call(program, "run", job(folder, "job.toml"), "--date", DATE)
    report = json.loads((folder / f"out/reports/dt={DATE}/report.json").read_text())
    tables = folder / "out" / json.loads(call(program, "history", folder / "job.toml", "--output", "json"))[-1]["tables"]
    market = Market(folder, tables)
    everybody = job(folder, "everybody.toml", "\n[targeting.shares]\nchampion = 1.0\nexplore = 0.0\nholdout = 0.0\n")
    found = {}
    for plan in PLANS:
        shop = folder / f"raw_{plan}"
        shutil.copytree(folder / "raw", shop, copy_function=os.link)
        call(program, "generate", "--continue", shop, "--date", NEXT, "--policy", policy(folder, tables, market, plan), "--job", everybody)
        found[plan] = served(folder, market, shop)
        if plan == "nightmarket":
            intervals = held(report, true_ctr(folder / "raw", DATE), true_ctr(shop, NEXT))
        shutil.rmtree(shop)
    found["intervals"] = intervals
    done.write_text(json.dumps(found))
    for heavy in ["raw", "out"]:
        shutil.rmtree(folder / heavy)
    return found


def interval(numbers):
    """Mean and its 95 % interval by Student's t."""
    quantiles = {2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 19: 2.093}
    mean = statistics.mean(numbers)
    if len(numbers) < 3:
        return mean, None, None
    degrees = len(numbers) - 1
    half = quantiles[max(known for known in quantiles if known <= degrees)] * statistics.stdev(numbers) / len(numbers) ** 0.5
    return mean, mean - half, mean + half


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--users", type=int, default=3000)
    asked.add_argument("--seeds", type=int, default=20)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    asked.add_argument("--program", default=str(target / "release/nightmarket"))
    asked = asked.parse_args()
    enter("serving", PACKAGES)
    found = []
    for seed in range(1, asked.seeds + 1):
        found.append(one(asked.program, target.resolve() / f"bench/serving/{asked.users}/{seed}", asked.users, seed))
        print(f"seed {seed}: " + ", ".join(f"{plan} {value:.0f} for {spend:.0f}" for plan, (value, spend) in found[-1].items() if plan in PLANS), file=sys.stderr, flush=True)
    print(f"{asked.seeds} shops of {asked.users} users: conversion value of the day by the truth, means over the seeds")
    print("| plan | value | spend | value per spend | the night's plan beside it, value [95 %] | value per spend [95 %] |\n|---|---|---|---|---|---|")
    for plan in PLANS:
        value, spend = (statistics.mean(one[plan][i] for one in found) for i in (0, 1))
        ratios = [[one["nightmarket"][0] / one[plan][0] - 1 for one in found],
                  [one["nightmarket"][0] / one["nightmarket"][1] / (one[plan][0] / one[plan][1]) - 1 for one in found]]
        cells = []
        for numbers in ratios:
            mean, low, high = interval(numbers)
            cells.append("" if plan == "nightmarket" else f"{mean:+.1%}" + (f" [{low:+.1%}, {high:+.1%}]" if low is not None else ""))
        print(f"| {plan} | {value:.0f} | {spend:.0f} | {value / spend:.2f} | {cells[0]} | {cells[1]} |")
    print("\n| interval of the report | nights that give it | hold the truth |\n|---|---|---|")
    for name in sorted({name for one in found for name in one["intervals"]}):
        yes = [one["intervals"][name] for one in found if name in one["intervals"]]
        print(f"| {name} | {len(yes)} | {sum(yes)} |")


if __name__ == "__main__":
    main()
