"""Known biology that an imputation recovers, and signal that it invents; tables of docs/benchmarks.md.

    python benchmarks/evidence.py mixtures     rnamix_celseq2: cells of 3.75 to 15 pg against the pooled 30 pg profile of their mixture
    python benchmarks/evidence.py null         permuted genes, and random halves of one cell type: signal where there is none
    python benchmarks/evidence.py clusters     clusters of imputed cells against labels
    python benchmarks/evidence.py partners     marker genes of pbmc3k against genes of the same cells that no method sees

Every method of run.py's accuracy table, in the same variants, without a label that is scored: ours and scVI get the batch alone.
Rows are run and kept as those of run.py (see rows.py).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from rows import DATA, SEEDS, answer, arguments, every_method, predictions, run
from scipy import stats

import scimpute
from scimpute._counts.expressed import thresholds

TRUTH_PG = 30.0
CLUSTERED = ("cellmix_2tech", "pbmc3k", "rnamix_celseq2", "zeisel_ercc")
# The cell type of each data set that the null tests run on.
ONE_TYPE = {"pbmc3k": "Naive CD4 T", "cellmix_2tech": "H1975"}
N_SPLITS = 5
# Genes whose proteins are stained for in blood, and their stand-ins for the protein: genes of the same complex or kind of cell.
PARTNERS = {
    "CD3E": ("CD3D", "CD3G"),
    "CD2": ("CD3D", "CD3G"),
    "CD27": ("CD3D", "CD3G"),
    "CD8A": ("CD8B",),
    "CD19": ("CD79A", "CD79B"),
    "MS4A1": ("CD79A", "CD79B"),
    "CD14": ("S100A8", "LYZ"),
    "FCGR3A": ("MS4A7", "IFITM3"),
    "ITGAX": ("LST1", "CST3"),
    "NCAM1": ("GNLY", "PRF1", "GZMB"),
    "NKG7": ("GNLY", "PRF1", "GZMB"),
    "HLA-DRA": ("CD74",),
}
BELOW = 0.05
"""A gene counts as below its counts if its correlation is lower by more than this."""


def unlabelled(adata: ad.AnnData) -> ad.AnnData:
    """The counts and the batch."""
    return ad.AnnData(sp.csr_matrix(adata.X), obs=adata.obs[[name for name in ("batch",) if name in adata.obs]].copy(), var=adata.var[[]])


# Known mixtures


def mixtures(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Agreement of the cells below 30 pg, imputed together, with the sum of the 30 pg cells of their mixture, which no method sees."""
    adata = ad.read_h5ad(DATA / f"{task['data']}.h5ad")
    amount, mixture = adata.obs["mRNA_amount"].to_numpy(float), adata.obs["cell_type"].astype(str).to_numpy()
    member = pd.get_dummies(mixture)
    of_truth = member.to_numpy(float) * (amount == TRUTH_PG)[:, None]
    truth = member.to_numpy(float) @ (of_truth.T @ adata.X)
    below = amount < TRUTH_PG
    work = unlabelled(adata[below])
    if task["method"] == "pooled":
        same = member.to_numpy(float)[below]
        pairs = [({"posterior": False}, same @ (same.T @ work.X))]
    else:
        pairs = list(predictions(task, work))
    rows = []
    for row, prediction in pairs:
        work.layers["truth"], work.layers["found"] = truth[below].astype(np.float32), np.asarray(prediction, dtype=np.float32)
        for pg in np.unique(amount[below]):
            scores = scimpute.metrics.agreement(work[amount[below] == pg].copy(), "found", "truth", output="counts")
            rows.append(row | {"pg": pg} | scores.loc["found"].to_dict())
    return rows


# Null tests


def null_data(name: str) -> ad.AnnData:
    if name == "pbmc68k":
        adata = scimpute.datasets.pbmc68k()
        labels = adata.obs["bulk_labels"].astype(str)
        return adata[(labels == labels.value_counts().index[0]).to_numpy()].copy()
    adata = ad.read_h5ad(DATA / f"{name}.h5ad")
    return adata[(adata.obs["cell_type"] == ONE_TYPE[name]).to_numpy()].copy()


def null(task: dict[str, Any]) -> list[dict[str, Any]]:
    """metrics.false_signal of a method, and for ours also with the random half as a label."""
    adata = unlabelled(null_data(task["data"]))
    rows = []
    for step in task["posterior"]:
        # Only tl.began takes a label. The batch correction of a peer is something else.
        impute: Callable[..., np.ndarray] = _remembered(task, step)
        if task["method"] == "began":
            impute = _labelled(task, step)
        table = scimpute.metrics.false_signal(adata, impute, n_splits=N_SPLITS, random_state=task["seed"])
        row = {"posterior": step} | table.loc["imputed"].to_dict()
        row |= {f"raw_{name}": table.loc["raw", name] for name in ("differential_genes", "correlation")}
        if "imputed_with_label" in table.index:
            row |= {f"label_{name}": table.loc["imputed_with_label", name] for name in ("differential_genes", "correlation")}
        rows.append(row)
    return rows


def _labelled(task: dict[str, Any], step: bool) -> Callable[[ad.AnnData, str | None], np.ndarray]:
    def impute(cells: ad.AnnData, label: str | None) -> np.ndarray:
        options = {**task["options"], "posterior": step, "random_state": task["seed"], "celltype_key": label}
        return scimpute.tl.began(cells, copy=True, **options).layers["began"]

    return impute


_SEEN: dict[str, dict[bool, np.ndarray]] = {}


def _remembered(task: dict[str, Any], step: bool) -> Callable[[ad.AnnData], np.ndarray]:
    """A method with or without the posterior step; it runs once for both."""

    def impute(cells: ad.AnnData) -> np.ndarray:
        key = hashlib.sha256(cells.X.indices.tobytes() + cells.X.data.tobytes()).hexdigest()
        if key not in _SEEN:
            _SEEN[key] = {row["posterior"]: prediction for row, prediction in predictions(task, unlabelled(cells))}
        return _SEEN[key][step]

    return impute


# Clusters


def clusters(task: dict[str, Any]) -> list[dict[str, Any]]:
    """k-means and Leiden on a layer that was made from all molecules, against ``cell_type``."""
    adata = ad.read_h5ad(DATA / f"{task['data']}.h5ad")
    rows = []
    for row, prediction in predictions(task, unlabelled(adata)):
        adata.layers["found"] = np.asarray(prediction, dtype=np.float32)
        scores = scimpute.metrics.cluster_agreement(
            adata, "found", "cell_type", method=["kmeans", "leiden"], output="counts", random_state=task["seed"]
        )
        rows.append(row | scores.loc["found"].to_dict())
    return rows


# Markers and their partners


def partners(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rank correlation over cells of a marker, imputed without its partners, and the partners' counts, in a random half of the cells."""
    adata = ad.read_h5ad(DATA / f"{task['data']}.h5ad")
    adata = adata[np.random.default_rng(task["seed"]).permutation(adata.n_obs)[: adata.n_obs // 2]].copy()
    cp10k = sp.diags(1e4 / np.asarray(adata.X.sum(1)).ravel()) @ adata.X
    truth = {gene: np.asarray(cp10k[:, adata.var_names.get_indexer(others)].sum(1)).ravel() for gene, others in PARTNERS.items()}
    hidden = adata.var_names.isin([name for others in PARTNERS.values() for name in others])
    work = unlabelled(adata[:, ~hidden & (np.asarray(adata.X.sum(0)).ravel() > 0)])
    # A gene without a molecule in this half has no score.
    truth = {gene: values for gene, values in truth.items() if gene in work.var_names}

    def correlations(values: np.ndarray) -> np.ndarray:
        total = values.sum(axis=1, dtype=np.float64)
        part = values[:, work.var_names.get_indexer(list(truth))] / np.where(total > 0, total, 1)[:, None]
        return np.nan_to_num([stats.spearmanr(column, values).statistic for column, values in zip(part.T, truth.values(), strict=True)])

    of_counts = correlations(work.X.toarray())

    def scored(values: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        # A gene that is the same in all cells has no correlation: 0.
        scores = correlations(np.asarray(values, dtype=np.float64))
        return {"correlation": scores.mean(), "below_counts": int((scores < of_counts - BELOW).sum())}, scores

    rows = []
    depth = np.asarray(work.X.sum(1, dtype=np.float64)).ravel()
    lacking = None
    for row, prediction in predictions(task, work):
        row_scores, scores = scored(prediction)
        row_scores |= {"genes": len(scores)} | dict(zip(truth, scores.tolist(), strict=True))
        if task["method"] not in ("raw", "began"):
            # The zeros of fill="expressed" for a peer, by its prediction before the posterior step.
            if lacking is None:
                rates = (prediction / depth[:, None]).astype(np.float32)
                lacking = rates < thresholds(rates, work.X, depth, np.arange(work.n_vars))
            kept, _ = scored(np.where(lacking & (work.X.toarray() == 0), 0, prediction))
            row_scores |= {f"{name}_with_zeros": value for name, value in kept.items()}
        rows.append(row | row_scores)
    return rows


TABLES = {f.__name__: f for f in (mixtures, null, clusters, partners)}


def one(task: dict[str, Any]) -> list[dict[str, Any]]:
    return TABLES[task["table"]](task)


def tasks_of(table: str, seeds: int) -> list[dict[str, Any]]:
    names = {"mixtures": ["rnamix_celseq2"], "null": ["pbmc68k", *ONE_TYPE], "clusters": CLUSTERED, "partners": ["pbmc3k"]}[table]
    tasks = [task for name in names for task in every_method(name)]
    if table == "mixtures":
        pooled = {"data": names[0], "method": "pooled", "options": {}, "tuned": False, "posterior": [False]}
        tasks.insert(2, pooled)
    return [{**task, "seed": seed} for task in tasks for seed in range(seeds)]


def main() -> None:
    args = arguments(__doc__, list(TABLES)).parse_args()
    if args.table == "one":
        answer(one, args)
        return
    warnings.filterwarnings("ignore")
    frame = run(__file__, args.table, tasks_of(args.table, max(SEEDS, args.seeds)), args)
    keys = [name for name in ("data", "pg", "method", "options", "tuned", "posterior") if name in frame]
    print(frame.groupby(keys, sort=False, dropna=False).median(numeric_only=True).round(4).to_string())


if __name__ == "__main__":
    main()
