"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .output import Output, say

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_MARKERS = ("CD79A", "CD3D", "GNLY", "FCER1A")
"""B cells, T cells, NK cells, dendritic cells."""


def demo(out_dir: str = ".", random_state: int = 0) -> None:
    """Impute 700 real blood cells and score the result on held-out molecules, in under a minute and without a download.

    Parameters
    ----------
    out_dir
        Existing directory for scimpute_demo.h5ad and scimpute_demo.png.
    random_state
        Seed.
    """
    from .. import datasets, metrics, pp, tl

    table, picture = (Path(out_dir, f"scimpute_demo.{kind}") for kind in ("h5ad", "png"))
    targets = Output(table), Output(picture, "png")
    adata = datasets.pbmc68k()
    pp.thin(adata, random_state=random_state)
    tl.began(adata, layer="thin_train", size_key="n_counts", key_added="began", random_state=random_state)
    scores = metrics.heldout(adata, ["began"])
    targets[1].write(lambda path: _draw(adata, scores, path))
    targets[0].write(adata.write_h5ad)
    say(
        f"{adata.n_obs} cells x {adata.n_vars} genes (Zheng et al. 2017), imputed from nine tenths of their molecules, scored on the rest:",
        scores.to_string(float_format="{:.4f}".format),
        "Lower is better, and poisson is the column to trust (why: help(scimpute.metrics.heldout)); "
        "raw (the counts as they are) and gene_mean (every cell the average cell) are the baselines.",
        f"Wrote {table} and {picture}; next: sc.pl.umap(sc.read_h5ad({str(table)!r}), color={_MARKERS[0]!r}, layer='began')",
    )


def _draw(adata: AnnData, scores: pd.DataFrame, path: Path) -> None:
    """Draw markers before and after (left), held-out scores and training curves (right), in 1600 x 1100 pixels."""
    from matplotlib.figure import Figure

    from .. import pl

    figure = Figure(figsize=(14.4, 9.9), dpi=1600 / 14.4, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.3, 1), wspace=0.05).flat
    left.suptitle(f"Marker genes of B, T, NK and dendritic cells, {adata.n_obs} blood cells", fontweight="bold")
    right.suptitle("Score and training", fontweight="bold")
    pl.imputed(adata, _MARKERS, ax=list(left.subplots(len(_MARKERS), 2).flat), size=14, show=False)
    dots, *curves = right.subplots(4, 1)
    # The score is known up to a constant, so its zero means nothing. Therefore it is drawn as dots, not as bars.
    for height, (name, score) in enumerate(scores["poisson"].iloc[::-1].items()):
        color = "#0072B2" if name == "began" else "0.45"
        dots.plot(score, height, "o", color=color, ms=9)
        dots.annotate(f"{score:.3f}", (score, height), xytext=(9, 0), textcoords="offset points", va="center", color=color)
    dots.set_yticks(range(len(scores)), scores.index[::-1])
    dots.set(title="Score on held-out molecules (lower is better)", xlabel="Poisson deviance per entry, up to a constant")
    dots.margins(x=0.2, y=0.35)
    dots.grid(axis="y", color="0.9")
    dots.set_axisbelow(True)
    dots.spines[["top", "right"]].set_visible(False)
    pl.training(adata, ax=curves, show=False)
    figure.savefig(path, format="png")
