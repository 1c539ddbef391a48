"""Accuracy of tl.pmi and tl.gain beside their peers on bulk expression; the tables of docs/bulk.md.

    python benchmarks/bulk.py accuracy         tcga_bulk, half of the entries hidden: in place, and for samples set aside;
                                               more rows with --methods "scimpute pmi, published" "iterative ridge" missForest
                                               "GAIN of hyperimpute" (the last needs hyperimpute)
    python benchmarks/bulk.py fractions        in place, from a tenth to nine tenths of the entries observed
    python benchmarks/bulk.py cohorts          every cohort filled by a model of the others
    python benchmarks/bulk.py growth           simulated samples and genes: seconds and memory; one size with --sizes 5000x12000

R2 of a gene is 1 - squared error / squared error of the mean of its visible values (for new samples: of its training mean), over
hidden entries; the table shows the mean over genes. A method with a parameter is tuned on entries or samples of its own training data,
hidden as in use. Data are read from SCIMPUTE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from bulk_peers import PEERS, factor_model, tuned

import scimpute

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
COVARIATES = {"categorical_covariates": ["cohort", "sex"], "continuous_covariates": "age"}
MODEL = Path(tempfile.gettempdir()) / f"bulk-{os.getpid()}.safetensors"


def load() -> ad.AnnData:
    """log2(x + 1) of the 2,000 most variable genes, samples with all covariates."""
    adata = ad.read_h5ad(DATA / "tcga_bulk.h5ad")
    adata = adata[adata.obs["age"].notna()].copy()
    dense = np.log2(adata.X.toarray().astype(np.float64) + 1)
    top = np.sort(np.argsort(dense.var(axis=0))[::-1][:2000])
    return ad.AnnData(dense[:, top].astype(np.float32), obs=adata.obs[["cohort", "sex", "age"]], var=adata.var.iloc[top][[]])


def r2(truth: np.ndarray, filled: np.ndarray, hidden: np.ndarray, mean: np.ndarray) -> float:
    left = (np.square(truth - filled) * hidden).sum(axis=0)
    return float(np.mean(1 - left / (np.square(truth - mean) * hidden).sum(axis=0)))


def design(obs: pd.DataFrame) -> np.ndarray:
    parts = [np.ones(len(obs)), *pd.get_dummies(obs[["cohort", "sex"]].astype(str)).to_numpy(float).T]
    age = obs["age"].to_numpy(float)
    return np.column_stack([*parts, (age - age.mean()) / age.std()])


def score(adata: ad.AnnData, train: np.ndarray | None, hidden: np.ndarray, seed: int, methods: list[str]) -> list[dict]:
    """R2 of the methods, in place (``train`` None) or for the samples that are not in ``train``."""
    truth = adata.X.astype(np.float64)
    visible = np.where(hidden, np.nan, truth)
    reference = visible if train is None else truth[train]
    rows = np.arange(len(truth)) if train is None else np.setdiff1d(np.arange(len(truth)), train)
    mean, sd = np.nanmean(reference, axis=0), np.maximum(np.nanstd(reference, axis=0), 1e-6)
    z = (reference - mean) / sd
    query = z if train is None else (visible[rows] - mean) / sd
    covariates = design(adata.obs)
    cohort = adata.obs["cohort"].astype(str).to_numpy()
    out = []
    for method in methods:
        rng = np.random.default_rng(seed)
        if method == "cohort mean":
            known = cohort if train is None else cohort[train]
            means = {c: np.nan_to_num(np.nanmean(z[known == c], axis=0)) for c in np.unique(known)}
            filled = np.array([means.get(c, np.zeros(z.shape[1])) for c in cohort[rows]]) * sd + mean
        elif method in PEERS:
            filled = tuned(*PEERS[method], z, query, rng) * sd + mean
        elif method == "factor model":
            a = np.column_stack([z, covariates if train is None else covariates[train]])
            b = a if train is None else np.column_stack([query, covariates[rows]])
            filled = tuned(factor_model(covariates), (10, 20, 40), a, b, rng, z.shape[1])[:, : z.shape[1]] * sd + mean
        else:
            filled, cover = ours(method, adata, train, rows, visible, seed, truth)
        row = {"method": method, "seed": seed, "r2": r2(truth[rows], filled, hidden[rows], mean)}
        if method.startswith("scimpute"):
            row["in_90_interval"] = cover
        out.append(row)
        print(row, flush=True)
    return out


def ours(method: str, adata: ad.AnnData, train, rows, visible: np.ndarray, seed: int, truth: np.ndarray) -> tuple[np.ndarray, float]:
    name, *variant = method.removeprefix("scimpute ").split(", ")
    options = {**COVARIATES, "random_state": seed, "variant": variant[0] if variant else "default"}
    function = getattr(scimpute.tl, name)
    query = ad.AnnData(visible.astype(np.float32), obs=adata.obs, var=adata.var)[rows].copy()
    if train is None:
        function(query, **options)
    else:
        function(adata[train].copy(), mode="inductive", save=MODEL, **options)
        scimpute.tl.apply(query, MODEL, unseen="average")
        MODEL.unlink()
    filled, spread = query.layers[name], query.layers[f"{name}_sd"]
    gap = np.isnan(query.X)
    return filled, float((np.abs(filled - truth[rows]) < 1.645 * spread)[gap].mean())


METHODS = ["cohort mean", "kNN", "soft SVD", "factor model", "ridge over samples", "scimpute pmi", "scimpute gain"]


def accuracy(seeds: int, methods: list[str]) -> list[dict]:
    adata, rows = load(), []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        hidden = rng.random(adata.shape) < 0.5
        train = np.sort(rng.permutation(adata.n_obs)[: int(0.75 * adata.n_obs)])
        for label, part in (("in place", None), ("new samples", train)):
            rows += [{"design": label, **row} for row in score(adata, part, hidden, seed, methods)]
    return rows


def fractions() -> list[dict]:
    adata, rows = load(), []
    for fraction in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        hidden = np.random.default_rng(0).random(adata.shape) >= fraction
        results = score(adata, None, hidden, 0, ["cohort mean", "kNN", "soft SVD", "scimpute pmi"])
        rows += [{"observed": fraction, **row} for row in results]
    return rows


def cohorts() -> list[dict]:
    adata, rows = load(), []
    hidden = np.random.default_rng(0).random(adata.shape) < 0.5
    for cohort in adata.obs["cohort"].unique():
        train = np.flatnonzero((adata.obs["cohort"] != cohort).to_numpy())
        rows += [{"cohort": cohort, **row} for row in score(adata, train, hidden, 0, ["kNN", "ridge over samples", "scimpute pmi"])]
    return rows


def growth(sizes: list[str]) -> list[dict]:
    rows = []
    for size in sizes:
        n, g = map(int, size.split("x"))
        adata = scimpute.datasets.toy_bulk(n, g, rank=20)
        scimpute.pp.hide(adata, of="all")
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        scimpute.tl.pmi(adata, layer="hidden", categorical_covariates="tissue", continuous_covariates="age")
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows.append({"samples": n, "genes": g, "seconds": seconds, "peak_above_GB": max(0, after - before) / 2**20})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["accuracy", "fractions", "cohorts", "growth"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", nargs="+", default=["500x1000", "1000x1000", "2000x1000", "500x2000", "500x4000"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    arguments = {"accuracy": (args.seeds, args.methods), "growth": (args.sizes,)}
    results = globals()[args.table](*arguments.get(args.table, ()))
    frame, path = pd.DataFrame(results), ROOT / "docs" / "benchmarks" / f"bulk_{args.table}.csv"
    keys = {"accuracy": ["method"], "growth": ["samples", "genes"]}.get(args.table)
    if keys and path.exists():
        # Keep the rows that were not run again.
        earlier = pd.read_csv(path)
        again = earlier[keys].merge(frame[keys].drop_duplicates(), how="left", indicator=True)["_merge"] == "both"
        frame = pd.concat([earlier[~again.to_numpy()], frame])
    frame.to_csv(path, index=False, float_format="%.5g")
    if args.table == "accuracy":
        print(frame.groupby(["design", "method"], sort=False)["r2"].agg(["mean", "std"]).round(4).to_string())


if __name__ == "__main__":
    main()
