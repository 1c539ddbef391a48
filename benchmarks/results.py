"""The results in docs/benchmarks/*.csv as tables.py and figures.py read them: the data sets, and the names and order of methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
DATA = ("pbmc3k", "cellmix_2tech", "zeisel_ercc", "rnamix_celseq2")
NAMES = {
    "raw": "no imputation",
    "gene_mean": "gene mean",
    "pooled": "pooled by the true mixture",
    "svd": "SVD",
    "knn": "kNN",
    "magic": "MAGIC",
    "alra": "ALRA",
    "scvi": "scVI",
    "began": "**scimpute**",
}
ZEROS = "fill=expressed"
OPTIONS = {
    ZEROS: '`fill="expressed"`',
    "norm=sqrt": "square root",
    "norm=log": "log",
    "norm=linear": "linear",
    "max_epochs=100": "",  # the default of scVI on pbmc3k, as the page says
    "max_epochs=40": "40 epochs",
}


def read(name: str) -> pd.DataFrame:
    """A CSV with a column ``label`` for the method and its variant; FileNotFoundError where it was not run."""
    frame = pd.read_csv(ROOT / "docs" / "benchmarks" / f"{name}.csv", dtype={"options": str})
    if "failed" in frame:
        frame = frame[frame["failed"].isna()]
    if "method" in frame:
        frame["options"] = frame["options"].fillna("") if "options" in frame else ""
        tuned = frame["tuned"] if "tuned" in frame else pd.Series(data=False, index=frame.index)
        frame["label"] = [_label(*row) for row in zip(frame["method"], frame["options"], tuned)]
    return frame


def _label(method: str, options: str, tuned: bool) -> str:
    return ", ".join(filter(None, [NAMES.get(method, method), "tuned" if tuned else OPTIONS.get(options, options)]))


def order(labels: Iterable[str]) -> list[str]:
    """Methods in the order of :data:`NAMES`, variants as they come, tuned ones after them."""
    names = list(NAMES.values())
    found = list(dict.fromkeys(labels))
    return sorted(found, key=lambda label: (names.index(label.split(", ")[0]), label.endswith("tuned"), found.index(label)))
