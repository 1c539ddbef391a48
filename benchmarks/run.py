"""Accuracy, ablations, growth and speed of tl.began beside its peers; with evidence.py, every table of docs/benchmarks.md.

    python benchmarks/run.py all               every table and figure of the docs: all scripts beside this one
    python benchmarks/run.py accuracy          held-out scores: every peer at its defaults and tuned, with and without the posterior step
    python benchmarks/run.py speed             seconds and memory of peers and ours on pbmc3k, in turns
    python benchmarks/run.py ablation          what each part of tl.began is worth
    python benchmarks/run.py growth            cells doubled from 2k to 32k, genes from 3.4k to 13.7k
    python benchmarks/run.py epoch             seconds an epoch against the machine's rate of matrix products
    python benchmarks/run.py adversary         what the adversary changes: smoothing, and correlation between permuted genes
    python benchmarks/run.py calibration       the error of held-out molecules against the standard deviation that was written

Each row runs in a process of its own, so that its peak memory is its own. Results go to docs/benchmarks/<table>.csv; rows that are there
are not run again (see rows.py), and tables.py writes the tables of the docs.
Data are read from SCIMPUTE_DATA (default ../shared/data); peers (magic-impute, scvi-tools) are needed for their rows only.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from peers import PEERS
from rows import DATA, ROOT, SEEDS, answer, arguments, began, every_method, predictions, run, text

# The convolutional network has fixed choices; beside it the dense one with the same.
CONV_AND_DENSE = (
    {"architecture": "conv", "n_repeats": 1},
    {"n_context": 30, "penalty": 200, "width": 32, "max_epochs": 14, "n_repeats": 1},
)
# What "all" runs, in order.
ALL = {
    "run.py": ["accuracy", "ablation", "speed", "growth", "epoch", "adversary", "calibration"],
    "evidence.py": ["mixtures", "null", "clusters", "partners"],
    "bulk.py": ["accuracy", "fractions", "cohorts", "growth"],
    "spatial.py": ["heldout", "hidden", "clusters", "speed", "growth"],
    "devices.py": ["all"],
}


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


def one(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one task, in this process."""
    import scimpute

    adata = load(task["data"], task.get("n_obs"), task.get("n_vars"))
    scimpute.pp.thin(adata, random_state=task["seed"])
    keep = np.asarray(adata.layers["thin_train"].sum(0)).ravel() > 0
    adata = adata[:, keep].copy()
    work = ad.AnnData(adata.layers["thin_train"].copy(), obs=adata.obs.copy())
    del adata.X
    if task["table"] in ("speed", "growth"):
        return [timed(task, work)]
    rows = []
    for row, prediction in predictions(task, work):
        adata.layers["prediction"] = np.asarray(prediction, dtype=np.float32)
        rows.append(row | scimpute.metrics.heldout(adata, "prediction").loc["prediction"].to_dict())
    return rows


def timed(task: dict[str, Any], work: ad.AnnData) -> dict[str, Any]:
    """Seconds and memory of a method alone: peers without the posterior step."""
    method = began if task["method"] == "began" else PEERS[task["method"]]
    key = "random_state" if method is began else "seed"
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    prediction = method(work, **task["options"], **{key: task["seed"]})
    row = {"seconds": time.perf_counter() - start, "peak_GB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20}
    row["output_GB"] = prediction.size * 4 / 2**30
    if method is began:
        chosen = work.uns["began"]["params"]
        row["setting"] = text({name: chosen[name] for name in ("n_context", "width", "penalty", "max_epochs")})
    return row


def summary(frame: pd.DataFrame) -> str:
    keys = [name for name in ("data", "method", "options", "tuned", "posterior") if name in frame]
    groups = frame.groupby(keys, sort=False, dropna=False)
    names = [name for name in ("poisson", "mse_log", "mse_log_renormalized", "seconds", "peak_GB") if name in frame]
    spread = groups["poisson" if "poisson" in frame else "seconds"]
    return groups[names].median(numeric_only=True).assign(low=spread.min(), high=spread.max()).round(5).to_string()


def permuted(adata: ad.AnnData) -> ad.AnnData:
    """The counts of every gene permuted over the cells, so that no two genes are correlated."""
    rng, dense = np.random.default_rng(0), adata.X.toarray()
    return ad.AnnData(sp.csr_matrix(np.column_stack([rng.permutation(column) for column in dense.T])))


def adversary() -> None:
    """Spread over cells, zeros and correlation of permuted genes for several weights of the adversary, all else fixed."""
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
            row["found_over_expected"] = target[here].sum() / expected[here].sum()
            rows.append(row | {"sd_over_mean": (sd[here] / mean[here]).mean()})
    frame = pd.DataFrame(rows)
    frame.to_csv(ROOT / "docs" / "benchmarks" / "calibration.csv", index=False, float_format="%.6g")
    print(frame.round(3).to_string(index=False))


def epoch() -> None:
    """Seconds an epoch of one repeat on pbmc3k beside the rate of large and of block matrix products."""
    import torch

    from scimpute._anndata.counts import read_counts
    from scimpute._counts.began import BeganEngine
    from scimpute._counts.context import Context
    from scimpute._counts.fit import train_repeat
    from scimpute._counts.molecules import MoleculeSplit
    from scimpute._counts.partition import Partition
    from scimpute._counts.settings import Complexity, checked_settings
    from scimpute._counts.split import SplitInContext
    from scimpute._sparse import row_sums

    adata = load("pbmc3k", None, None)
    counts = read_counts(adata, None)
    rng = np.random.default_rng(0)
    data = MoleculeSplit.prepare(counts, row_sums(counts), (), np.arange(adata.n_vars), torch.device("cpu"), rng)
    context = Context.fit(data.train, data.size_train, 40, 0)
    source = SplitInContext(data, context)
    partition = Partition.draw(data.genes, adata.n_vars, 576, rng)
    left_open = dict.fromkeys(("n_context", "width", "penalty", "max_epochs", "batch_size"), "auto")
    settings = checked_settings(adata.n_obs, block_size=576, n_repeats=1, learning_rate=2e-3, **left_open)
    rows = {}
    for weight in (0.0, 0.1):
        seconds = []
        for epochs in (2, 12):
            engine, complexity = BeganEngine("dense", 94.0, 1.0, 0.95, weight, 1.0), Complexity(40, 64, 30.0, epochs)
            start = time.perf_counter()
            train_repeat(source, engine, settings, complexity, partition, rng, lambda: None, lambda: None)
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


def everything(options: list[str]) -> None:
    """Every table, one after the other; the error at the end names those that failed."""
    failed = []
    here = Path(__file__).parent
    for script, tables in ALL.items():
        for table in tables:
            resumes = script == "evidence.py" or (script == "run.py" and table not in ("epoch", "adversary", "calibration"))
            if subprocess.run([sys.executable, here / script, table, *(options if resumes else [])]).returncode:
                failed.append(f"{script} {table}")
    if subprocess.run([sys.executable, here / "tables.py"]).returncode:
        failed.append("tables.py")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def tasks_of(table: str, seeds: int) -> list[dict[str, Any]]:
    """The rows of a table."""
    if table == "growth":
        sizes = [{"n_obs": n} for n in (14000, 2000, 4000, 8000, 16000, 32000)] + [{"n_obs": 4000, "n_vars": g} for g in (3428, 6857)]
        tasks = [{"data": "pbmc3k", "method": "began", "options": {}, "seed": 0, **size} for size in sizes]
        return [tasks[0], tasks[0] | {"method": "magic"}, *tasks[1:]]
    if table == "speed":
        # scVI runs a tenth of the 400 epochs it takes by default here.
        methods = [("began", {}), ("magic", {"norm": "linear"}), ("alra", {}), ("knn", {}), ("svd", {}), ("scvi", {"max_epochs": 40})]
        tasks = [{"data": "pbmc3k", "method": m, "options": o, "seed": s} for s in range(seeds) for m, o in methods]
        tasks = [t for t in tasks if t["method"] != "scvi" or t["seed"] == 0]
        extra = [("cellmix_2tech", {}), *(("zeisel_ercc", options) for options in CONV_AND_DENSE)]
        return tasks + [{"data": d, "method": "began", "options": o, "seed": s} for s in range(seeds) for d, o in extra]
    if table == "accuracy":
        names = ["pbmc3k", "cellmix_2tech", "zeisel_ercc", "rnamix_celseq2"]
        return [{**task, "seed": s} for d in names for task in every_method(d) for s in range(seeds)]
    variants: list[dict[str, Any]] = [{}, {"adversarial_weight": 0}, {"adversarial_weight": 1}]
    variants += [{"reconstruction_weight": 0, "adversarial_weight": 1}, {"labels": False}, {"n_repeats": 1}, {"posterior": False}]
    variants += [{"n_context": 1}, {"width": 16}, {"penalty": 0}]
    names = ["cellmix_2tech", "zeisel_ercc"]
    tasks = [{"data": d, "method": "began", "options": o, "seed": s} for d in names for o in variants for s in range(seeds)]
    return tasks + [{"data": "zeisel_ercc", "method": "began", "options": o, "seed": s} for o in CONV_AND_DENSE for s in range(seeds)]


def main() -> None:
    alone = {"epoch": epoch, "adversary": adversary, "calibration": calibration}
    parser = arguments(__doc__, ["all", "accuracy", "speed", "ablation", "growth", *alone])
    args = parser.parse_args()
    if args.table == "one":
        answer(one, args)
    elif args.table == "all":
        everything(sys.argv[2:])
    elif args.table in alone:
        alone[args.table]()
    else:
        timed = args.table in ("speed", "growth")
        frame = run(__file__, args.table, tasks_of(args.table, max(SEEDS, args.seeds)), args, timed=timed)
        print(summary(frame))


if __name__ == "__main__":
    main()
