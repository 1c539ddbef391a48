"""Figures of the docs from docs/benchmarks/*.csv."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from results import DATA, NAMES, ROOT, ZEROS, order, read

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
    # The zeros of fill="expressed" are not expected counts.
    frame = frame[frame["options"] != ZEROS]
    base = frame[(frame["method"] == "gene_mean") & ~frame["posterior"]].set_index(keys)["poisson"]
    frame = frame.assign(relative=frame["poisson"] / base.reindex(pd.MultiIndex.from_frame(frame[keys])).to_numpy())
    return frame.groupby(["data", "method", "label", "tuned", "posterior"], sort=False)["relative"].median().reset_index()


def marker(row: Any) -> dict[str, Any]:
    return {"marker": "s" if row.tuned else "o", "color": COLOURS[row.method], "fillstyle": "full" if row.posterior else "none"}


def handles() -> list[mpl.lines.Line2D]:
    """Legend of the markers; a colour is a method."""
    kinds = {
        "without posterior step, defaults": ("o", "none"),
        "without posterior step, tuned": ("s", "none"),
        "with posterior step, defaults": ("o", "full"),
        "with posterior step, tuned": ("s", "full"),
    }
    return [
        mpl.lines.Line2D([], [], linestyle="", marker=marker_of, fillstyle=fill, color="0.3", label=label)
        for label, (marker_of, fill) in kinds.items()
    ]


def heldout() -> mpl.figure.Figure:
    """Held-out deviance relative to the gene mean's, every method and variant, a panel for each data set."""
    from matplotlib import pyplot as plt

    frame = relative(read("accuracy"))
    frame = frame[~frame["method"].isin(["raw", "gene_mean"]) | frame["posterior"]]
    # A row for each of a peer's defaults; the tuned one stands in the first of them.
    row_of = frame["label"].str.removesuffix(", tuned").where(~frame["tuned"], frame["method"].map(NAMES))
    first = {method: part["label"].iloc[0] for method, part in frame[~frame["tuned"]].groupby("method", sort=False)}
    row_of = row_of.where(~frame["tuned"], frame["method"].map(first))
    rows = order(row_of)[::-1]
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharey=True, layout="constrained")
    for axis, data in zip(axes.flat, DATA):
        here = frame["data"] == data
        for row, place in zip(frame[here].itertuples(), row_of[here], strict=True):
            axis.plot(row.relative, rows.index(place), **marker(row))
        axis.axvline(1, color="0.7", linewidth=1)
        axis.set_title(data, fontsize=10)
        axis.set_xlim(frame.loc[here, "relative"].min() - 0.02, 1.25)
        axis.grid(axis="y", color="0.93")
    axes[0, 0].set_yticks(range(len(rows)), [label.strip("*") for label in rows])
    figure.legend(handles=handles(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.supxlabel("held-out Poisson deviance over that of the gene mean (lower is better; above 1.25 not shown)", fontsize=9)
    return figure


def trade() -> mpl.figure.Figure:
    """Held-out deviance against the correlation between permuted genes, both on cells of pbmc3k."""
    from matplotlib import pyplot as plt

    null = read("null")
    null = null[null["data"] == "pbmc3k"].groupby(["label", "posterior"])["correlation"].median()
    frame = relative(read("accuracy"))
    frame = frame[(frame["data"] == "pbmc3k") & (frame["method"] != "raw")]
    frame = frame[[pair in null for pair in zip(frame["label"], frame["posterior"])]]
    figure, axis = plt.subplots(figsize=(5.5, 4))
    for row in frame.itertuples():
        axis.plot(null[row.label, row.posterior], row.relative, **marker(row))
    colours = [
        mpl.lines.Line2D([], [], linestyle="", marker="o", color=COLOURS[method], label=NAMES[method].strip("*"))
        for method in dict.fromkeys(frame["method"])
    ]
    axis.set(
        xlabel="mean |Spearman| between permuted genes (0 is right)", ylabel="held-out deviance over the gene mean's", ylim=(None, 1.2)
    )
    axis.legend(handles=colours + handles(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return figure
