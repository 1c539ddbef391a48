"""Accuracy, ablations, growth and speed of tl.began beside its peers; every table of docs/benchmarks.md.

    python benchmarks/run.py accuracy          held-out scores of peers and ours
    python benchmarks/run.py speed             seconds and memory of peers and ours on pbmc3k, in turns
    python benchmarks/run.py ablation          what each part of tl.began is worth
    python benchmarks/run.py growth            cells doubled from 2k to 32k, genes from 3.4k to 13.7k
    python benchmarks/run.py epoch             seconds an epoch against the machine's rate of matrix products
    python benchmarks/run.py adversary         what the adversary changes: smoothing, and correlation between permuted genes
    python benchmarks/run.py calibration       the error of held-out molecules against the standard deviation that was written

Each row runs in a process of its own, so that its peak memory is its own. Results go to docs/benchmarks/<table>.csv.
Data are read from SCIMPUTE_DATA (default ../shared/data); peers (magic-impute, scvi-tools) are needed for their rows only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from peers import knn, magic, scvi, svd

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
# The convolutional network has fixed choices; beside it the dense one with the same.
CONV_AND_DENSE = (
    {"architecture": "conv", "n_repeats": 1},
    {"n_context": 30, "penalty": 200, "width": 32, "max_epochs": 14, "n_repeats": 1},
)
LABELS = {"batch_key": "batch", "celltype_key": "cell_type"}


def began(adata: ad.AnnData, labels: bool = True, **options) -> np.ndarray:
    import scimpute

    keys = {
        argument: column for argument, column in LABELS.items() if labels and column in adata.obs and len(adata.obs[column].unique()) > 1
    }
    scimpute.tl.began(adata, **keys, **options)
    return adata.layers["began"]


METHODS = {f.__name__: f for f in (magic, knn, svd, scvi, began)}


def load(name: str, n_obs: int | None, n_vars: int | None) -> ad.AnnData:
    """A data set, or cells resampled with their molecules thinned to 90%, so that no two are the same."""
    adata = ad.read_h5ad(DATA / f"{name}.h5ad")
    rng = np.random.default_rng(0)
    if n_vars is not None:
        adata = adata[:, rng.permutation(adata.n_vars)[:n_vars]].copy()
    if n_obs is not None:
        counts = adata.X[rng.integers(adata.n_obs, size=n_obs)].tocsr()
        counts.data = rng.binomial(counts.data.astype(np.int64), 0.9).astype(np.float32)
        counts.eliminate_zeros()
        adata = ad.AnnData(counts)
    return adata


def one(task: dict) -> dict:
    """Run one row in this process."""
    import scimpute

    warnings.filterwarnings("ignore")
    adata = load(task["data"], task.get("n_obs"), task.get("n_vars"))
    scimpute.pp.thin(adata, random_state=task["seed"])
    keep = np.asarray(adata.layers["thin_train"].sum(0)).ravel() > 0
    adata = adata[:, keep].copy()
    work = ad.AnnData(adata.layers["thin_train"].copy(), obs=adata.obs.copy())
    del adata.X
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = dict(task["options"])
    if task["method"] == "began":
        options["random_state"] = task["seed"]
    start = time.perf_counter()
    prediction = METHODS[task["method"]](work, **options)
    row = {"seconds": time.perf_counter() - start, "peak_GB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20}
    row["output_GB"] = prediction.size * 4 / 2**30
    if task.get("score", True):
        adata.layers["prediction"] = np.asarray(prediction, dtype=np.float32)
        scores = scimpute.metrics.heldout(adata, "prediction")
        # Scored rows may run side by side; only the speed table is timed alone.
        row = scores.loc["prediction"].to_dict() | {f"{base}_poisson": scores.loc[base, "poisson"] for base in ("raw", "gene_mean")}
    if task["method"] == "began":
        chosen = work.uns["began"]["params"]
        row |= {name: chosen[name] for name in ("n_context", "width", "penalty", "max_epochs")}
    return row


def run(tasks: list[dict], table: str) -> pd.DataFrame:
    """Run the tasks one after the other; the CSV grows with them."""
    out = ROOT / "docs" / "benchmarks" / f"{table}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in tasks:
        done = subprocess.run([sys.executable, __file__, "one", json.dumps(task)], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        result = json.loads(lines[-1]) if lines else {"failed": done.stderr.strip().splitlines()[-1:]}
        options = ", ".join(f"{k}={v}" for k, v in task["options"].items())
        rows.append(
            {
                "data": task["data"],
                "method": task["method"],
                "options": options,
                "seed": task["seed"],
                **{k: task[k] for k in ("n_obs", "n_vars") if k in task},
                **result,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6g")
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> str:
    groups = frame.groupby(["data", "method", "options"], sort=False)
    names = [name for name in ("poisson", "mse_log", "mse_log_renormalized", "seconds", "peak_GB") if name in frame]
    table = groups[names].median(numeric_only=True)
    spread = groups["poisson" if "poisson" in frame else "seconds"]
    return table.assign(low=spread.min(), high=spread.max()).round(5).to_string()


def permuted(adata: ad.AnnData) -> ad.AnnData:
    """Every gene's counts dealt anew over the cells: no two genes are correlated any more."""
    rng, dense = np.random.default_rng(0), adata.X.toarray()
    return ad.AnnData(sp.csr_matrix(np.column_stack([rng.permutation(column) for column in dense.T])))


def adversary() -> None:
    """Spread over cells, zeros and invented correlation for several weights of the adversary, all else fixed."""
    import scimpute

    rows = []
    fixed = {"n_context": 30, "penalty": 30, "width": 64, "max_epochs": 14}
    for weight in (0, 0.1, 1, 10):
        for seed in range(3):
            adata = load("zeisel_ercc", None, None)
            scimpute.pp.thin(adata, random_state=seed)
            scimpute.tl.began(adata, layer="thin_train", adversarial_weight=weight, random_state=seed, **fixed)
            shuffled, mean = permuted(adata), adata.layers["began"]
            scimpute.tl.began(shuffled, adversarial_weight=weight, random_state=seed, **fixed)
            rank = pd.DataFrame(shuffled.layers["began"][:, :200]).rank().to_numpy()
            zeros = 1 - adata.layers["thin_train"].getnnz(axis=0) / adata.n_obs
            row = {"adversarial_weight": weight, "seed": seed, "poisson": scimpute.metrics.heldout(adata, "began").loc["began", "poisson"]}
            row["sd_of_log_rate"] = np.log(mean / mean.sum(1, keepdims=True)).std(0).mean()
            row["error_of_zero_fraction"] = np.abs(np.exp(-mean).mean(0) - zeros).mean()
            row["correlation_of_permuted_genes"] = np.abs(np.corrcoef(rank.T))[np.triu_indices(200, 1)].mean()
            last = adata.uns["began"]["history"].iloc[-1]
            row |= {name: last[name] for name in ("loss_real", "loss_fake", "k", "M") if name in last}
            rows.append(row)
    frame = pd.DataFrame(rows)
    frame.to_csv(ROOT / "docs" / "benchmarks" / "adversary.csv", index=False, float_format="%.6g")
    print(frame.groupby("adversarial_weight").mean().drop(columns="seed").round(5).to_string())


def calibration() -> None:
    """Squared error of held-out molecules over the variance that mean and standard deviation promise: 1 is right."""
    import scimpute

    rows = []
    for name in ("zeisel_ercc", "cellmix_2tech"):
        adata = load(name, None, None)
        scimpute.pp.thin(adata)
        scimpute.tl.began(adata, layer="thin_train")
        ratio = adata.layers["thin_test"].sum() / adata.layers["thin_train"].sum()
        target, mean, sd = adata.layers["thin_test"].toarray(), adata.layers["began"], adata.layers["began_sd"]
        expected = ratio * mean
        for low, high in ((0.01, 0.1), (0.1, 0.5), (0.5, 2), (2, 10), (10, np.inf)):
            here = (mean >= low) & (mean < high)
            error = np.square(target - expected)[here].mean()
            row = {"data": name, "imputed_counts": f"{low:g} to {high:g}", "entries": int(here.sum())}
            row["with_sd"] = error / (expected + np.square(ratio * sd))[here].mean()
            row["without_sd"] = error / expected[here].mean()
            rows.append(row | {"sd_over_mean": (sd[here] / mean[here]).mean()})
    frame = pd.DataFrame(rows)
    frame.to_csv(ROOT / "docs" / "benchmarks" / "calibration.csv", index=False, float_format="%.6g")
    print(frame.round(3).to_string(index=False))


def epoch() -> None:
    """Seconds an epoch of one repeat on pbmc3k beside the rate of large and of block matrix products."""
    import torch

    from scimpute import _adata, _data, _engine
    from scimpute._batches import Context
    from scimpute._blocks import Partition
    from scimpute._counts import row_sums

    adata = load("pbmc3k", None, None)
    counts = _adata.read_counts(adata, None)
    rng = np.random.default_rng(0)
    data = _data.Data.prepare(counts, row_sums(counts), (), np.arange(adata.n_vars), torch.device("cpu"), rng)
    context = Context.fit(data.train, data.size_train, 40, 0)
    partition = Partition.draw(data.genes, adata.n_vars, 576, rng)
    rows = {}
    for weight in (0.0, 0.1):
        seconds = []
        for epochs in (2, 12):
            settings = _data.Settings("dense", 576, 1, 40, 64, 30.0, epochs, 128, 2e-3, 94.0, 1.0, 0.95, weight, 1.0)
            complexity = _data.Complexity(40, 64, 30.0, epochs)
            start = time.perf_counter()
            _engine.fit_repeat(data, settings, complexity, context, partition, rng, lambda: None)
            seconds.append(time.perf_counter() - start)
        rows[f"adversarial_weight={weight}"] = (seconds[1] - seconds[0]) / 10
    cells, genes, hidden, side = adata.n_obs, partition.genes_per_block, 64, context.n_values
    products = 2 * (genes + side) * hidden + 3 * (2 * (hidden + side) * hidden // 2 + (hidden + side) * genes)
    flops = 2.0 * cells * partition.blocks * products
    a = torch.randn(2048, 2048)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        rates.append(2 * 2048**3 / (time.perf_counter() - start))
    peak = float(np.median(rates))
    print(f"floor {flops / peak:.3f} s: {flops / 1e9:.0f} GFLOP at the {peak / 1e9:.0f} GFLOP/s of a 2048 x 2048 product")
    for name, seconds in rows.items():
        print(f"{name}: {seconds:.3f} s an epoch, {flops / peak / seconds:.0%} of that rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["accuracy", "speed", "ablation", "growth", "epoch", "adversary", "calibration", "one"])
    parser.add_argument("task", nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.table == "one":
        print(json.dumps(one(json.loads(asked.task)), default=float))
    elif asked.table in ("epoch", "adversary", "calibration"):
        {"epoch": epoch, "adversary": adversary, "calibration": calibration}[asked.table]()
    elif asked.table == "growth":
        sizes = [{"n_obs": n} for n in (14000, 2000, 4000, 8000, 16000, 32000)] + [{"n_obs": 4000, "n_vars": g} for g in (3428, 6857)]
        tasks = [{"data": "pbmc3k", "method": "began", "score": False, **size} for size in sizes]
        tasks.insert(1, tasks[0] | {"method": "magic"})
        run([{**t, "options": {}, "seed": 0} for t in tasks], "growth")
    elif asked.table == "speed":
        # scVI runs a tenth of the 400 epochs it takes by default here.
        methods = [("began", {}), ("magic", {"norm": "log"}), ("knn", {}), ("svd", {}), ("scvi", {"max_epochs": 40})]
        tasks = [{"data": "pbmc3k", "method": m, "options": o, "seed": s, "score": False} for s in range(asked.seeds) for m, o in methods]
        tasks = [t for t in tasks if t["method"] != "scvi" or t["seed"] == 0]
        extra = [("cellmix_2tech", {}), *(("zeisel_ercc", options) for options in CONV_AND_DENSE)]
        tasks += [{"data": d, "method": "began", "options": o, "seed": s, "score": False} for s in range(asked.seeds) for d, o in extra]
        print(summary(run(tasks, "speed")))
    elif asked.table == "accuracy":
        methods = [
            ("svd", {}),
            ("knn", {}),
            ("magic", {"norm": "sqrt"}),
            ("magic", {"norm": "log"}),
            ("began", {"posterior": False}),
            ("began", {}),
        ]
        names = ["pbmc3k", "cellmix_2tech", "zeisel_ercc", "rnamix_celseq2"]
        tasks = [{"data": d, "method": m, "options": o, "seed": s} for d in names for m, o in methods for s in range(asked.seeds)]
        print(summary(run(tasks, "accuracy")))
    else:
        variants = [{}, {"adversarial_weight": 0}, {"adversarial_weight": 1}, {"reconstruction_weight": 0, "adversarial_weight": 1}]
        variants += [{"labels": False}, {"n_repeats": 1}, {"posterior": False}, {"n_context": 1}, {"width": 16}, {"penalty": 0}]
        names = ["cellmix_2tech", "zeisel_ercc"]
        tasks = [{"data": d, "method": "began", "options": o, "seed": s} for d in names for o in variants for s in range(asked.seeds)]
        tasks += [{"data": "zeisel_ercc", "method": "began", "options": o, "seed": s} for o in CONV_AND_DENSE for s in range(asked.seeds)]
        print(summary(run(tasks, "ablation")))


if __name__ == "__main__":
    main()
