"""Figures of the docs from docs/benchmarks/*.csv."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from tables import DATA, NAMES, ROOT, read

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "scimpute"
COLOURS = dict(zip(NAMES, mpl.color_sequences["tab10"]))


def draw() -> None:
    """Every figure whose CSVs are there."""
    for figure in (heldout, trade):
        try:
            drawn = figure()
        except FileNotFoundError:
            continue
        path = ROOT / "docs" / "images" / f"benchmark_{figure.__name__}.svg"
        path.parent.mkdir(exist_ok=True)
        drawn.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Median held-out deviance over that of the gene mean of the same split, by data set, method and variant."""
    keys = ["data", "seed"]
    base = frame[(frame["method"] == "gene_mean") & ~frame["posterior"]].set_index(keys)["poisson"]
    frame = frame.assign(relative=frame["poisson"] / base.reindex(pd.MultiIndex.from_frame(frame[keys])).to_numpy())
    return frame.groupby(["data", "method", "label", "tuned", "posterior"], sort=False)["relative"].median().reset_index()


def marker(row: Any) -> dict[str, Any]:
    return {"marker": "s" if row.tuned else "o", "color": COLOURS[row.method], "fillstyle": "full" if row.posterior else "none"}


def heldout() -> mpl.figure.Figure:
    """Held-out deviance relative to the gene mean's, every method and variant, a panel for each data set."""
    from matplotlib import pyplot as plt

    frame = relative(read("accuracy"))
    frame = frame[~frame["method"].isin(["raw", "gene_mean"]) | frame["posterior"]]
    methods = [name for name in NAMES if name in set(frame["method"])]
    figure, axes = plt.subplots(1, len(DATA), figsize=(11, 3), sharey=True)
    for axis, data in zip(axes, DATA):
        part = frame[frame["data"] == data]
        for row in part.itertuples():
            axis.plot(row.relative, methods.index(row.method), **marker(row))
        axis.axvline(1, color="0.7", linewidth=1)
        axis.set_title(data, fontsize=10)
        axis.set_xlim(part["relative"].min() - 0.02, 1.2)
    axes[0].set_yticks(range(len(methods)), [NAMES[name].strip("*") for name in methods])
    figure.supxlabel("held-out Poisson deviance over that of the gene mean (filled: with the posterior step; squares: tuned)", fontsize=9)
    figure.tight_layout()
    return figure


def trade() -> mpl.figure.Figure:
    """What is gained on held-out molecules against what is made up between permuted genes, both on cells of pbmc3k."""
    from matplotlib import pyplot as plt

    null = read("null")
    null = null[null["data"] == "pbmc3k"].groupby(["label", "posterior"])["correlation"].median()
    frame = relative(read("accuracy"))
    frame = frame[(frame["data"] == "pbmc3k") & (frame["method"] != "raw")]
    figure, axis = plt.subplots(figsize=(5.5, 4))
    for row in frame.itertuples():
        if (row.label, row.posterior) not in null:
            continue
        axis.plot(null[row.label, row.posterior], row.relative, **marker(row))
    for method in dict.fromkeys(frame["method"]):
        axis.plot([], [], "o", color=COLOURS[method], label=NAMES[method].strip("*"))
    axis.set(
        xlabel="mean |Spearman| between genes dealt anew (0 is right)", ylabel="held-out deviance over the gene mean's", ylim=(None, 1.2)
    )
    axis.legend(fontsize=8, frameon=False, title="filled: posterior; squares: tuned", title_fontsize=8)
    return figure
