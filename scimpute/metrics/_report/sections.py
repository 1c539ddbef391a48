"""The sections of a report, each with how to read it and what would be a bad sign."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .._replay import RESULT, Imputation
from . import figures
from .page import figure, items, paragraph, table

_FEW = 10
"""Molecules below which the trust in one gene is little but chance."""
_SHOWN = 10
_ROWS = {
    "raw": "counts as they are",
    "gene_mean": "gene mean",
    "own_count": "gene mean and own count",
    "knn": "kNN (15 cells)",
    RESULT: "this imputation",
    "imputed_with_label": "this imputation, half as label",
}


def what_was_run(imputation: Imputation, key: str, arguments: list[str]) -> str:
    """Method, parameters, and what was chosen."""
    params, entry = imputation.params, imputation.entry
    n, g = imputation.counts.shape
    what = "a saved model, applied with tl.apply" if imputation.applied else "trained on this object"
    text = paragraph(
        f"Key {key!r} was written by tl.{imputation.method} of scimpute {entry.get('version', '(unknown version)')} ({what}), from "
        f"{n:,} cells x {g:,} genes with {int(imputation.counts.sum(dtype='float64')):,} molecules."
    )
    if imputation.columns:
        text += paragraph("It was told, and must therefore never be tested for on the imputed values:")
        text += items(f"obs[{column!r}], as {argument}" for argument, column in imputation.columns.items())
    else:
        text += paragraph("It was told no label of the cells.")
    text += paragraph(
        "All parameters, as they were recorded. A bad sign is one that you did not mean: another layer, no batch_key where there are "
        "batches."
    )
    order = [*(name for name in arguments if name in params), *(name for name in params if name not in arguments)]
    text += table(pd.DataFrame({"value": [_value(params[name]) for name in order]}, index=order), "Parameters", index="parameter")
    text += _chosen(imputation)
    squared = imputation.squared
    unit = "squared error of logs" if squared else "nats per molecule"
    recorded = entry.get("heldout", {})
    if recorded and squared:
        text += paragraph(
            "During the training some of the entries that are not zero were held out, too. The network should be below the gene mean; "
            "there is no posterior, as nothing was counted at an entry that is missing."
        )
    elif recorded:
        text += paragraph(
            "During the training some of the counts were held out too. The network alone should be below the gene mean, and the "
            "posterior (where there is one), which uses the cell's own count once more, below the network. Neither gain shows that genes "
            "inform each other, as the network reads the cell's own count of the gene, too; a large part of the gain from the posterior is "
            "a sign that the own count does most of it."
        )
    if recorded:
        frame = pd.DataFrame({unit: [float(value) for value in recorded.values()]}, index=list(recorded))
        text += table(frame, "Held out in the training (lower is better)", index="prediction")
    if squared:
        text += paragraph(
            "With likelihood='squared' every zero was taken for missing. Hidden molecules, below, take a zero for an observation, and "
            "such an imputation seldom does well on them."
        )
    if isinstance(entry.get("contribution"), pd.DataFrame):
        text += paragraph(
            f"What each modality was worth: by how much the {'squared error' if squared else 'deviance'} rises without it. One near or "
            "below 0 tells the imputation nothing."
        )
        text += table(entry["contribution"], "Contributions of the modalities", index="modality")
    return text


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _chosen(imputation: Imputation) -> str:
    chosen = imputation.entry.get("chosen", {})
    if not chosen:
        return ""
    text = paragraph(f"How complex the network is was settled so: {chosen.get('why', 'not recorded')}.")
    tried = chosen.get("candidates")
    if isinstance(tried, pd.DataFrame):
        text += paragraph(
            f"Every candidate and its score, {'the squared error of logs' if imputation.squared else 'in nats per held-out molecule'} "
            "(lower is better). Candidates that are much alike are the rule; a best one at the edge, with a large lead, is a sign that "
            "more would have helped. Fewer context scores are taken where their score is within a standard error, and a longer training "
            "only where it is clearly better."
        )
        frame = tried.astype(dict.fromkeys(("n_context", "width", "steps"), int))
        frame["taken"] = np.where(tried["taken"], "taken", "")
        text += table(frame.set_axis([str(i + 1) for i in range(len(tried))]), "Candidates", index="candidate")
    return text


def heldout(scores: pd.DataFrame, frac: float, imputation: Imputation) -> str:
    """Scores beside the baselines."""
    again = "The model was applied" if imputation.applied else "The imputation was run"
    text = paragraph(
        f"{1 - frac:.0%} of the molecules were hidden at random. {again} again on the rest, in a copy and with the same settings, and "
        "each row predicts the hidden molecules. Lower is better in every column; poisson, the Poisson deviance, is the one to trust."
    )
    if "target_batch" in imputation.params:
        text += paragraph("target_batch was left out here and in the null test: the molecules of a cell are of its own batch.")
    if imputation.params.get("fill") == "expressed":
        text += paragraph("fill='all' was used here and in the null test: zeros where a gene is not expressed are no expected counts.")
    if imputation.genes is not None:
        text += paragraph("Only some genes were imputed. The scores are of these, at the depth of all genes, of which the baselines know.")
    if imputation.applied:
        text += paragraph(
            "If the model was trained on these very cells, it has seen the hidden molecules, and its scores here are too good. Only new "
            "cells test a saved model."
        )
    shown = scores.drop(columns=["lead", "lead_se", "poisson_openproblems"]).rename(index=_ROWS)
    lead = [f"{a:.3f} ± {error:.3f}" if a == a else "" for a, error in zip(scores["lead"], scores["lead_se"], strict=True)]
    shown.insert(1, "lead of the imputation", lead)
    text += table(shown, "Scores on hidden molecules", index="prediction")
    return text + paragraph(
        "The lead is by how much the imputation is ahead of a row, in nats per hidden molecule, with its standard error over cells. A "
        "lead over the gene mean that is not at least twice its standard error is the sign not to use the imputation; one over kNN, that "
        "a simpler method does as well; one over the gene mean drawn to the cell's own count of the gene, that other genes tell nothing. "
        "The counts themselves do badly because a zero says that a molecule is impossible."
    )


def trust(found: pd.DataFrame) -> str:
    """Which genes to believe."""
    known = found.dropna(subset="trust")
    text = paragraph(
        "Trust is the share of a gene's hidden deviance that the imputation explains beyond the gene's mean: 1 would be the very "
        "molecules, 0 is no better than the mean, and below 0 the gene was made worse. z is the gain in its standard errors. Few "
        "molecules leave little to explain even for the truth. A bad sign is many genes below 0, above all abundant ones; do not use "
        "genes with z below -2."
    )
    if known.empty:
        return text + paragraph("No gene had a molecule in both parts; nothing can be said of any.")
    above, clear, worse = (int(hit.sum()) for hit in (known["trust"] > 0, known["z"] > 2, known["z"] < -2))
    text += paragraph(
        f"{above:,} of {len(known):,} genes are above 0, {clear:,} of them clearly (z above 2); clearly below (z below -2): {worse:,}. "
        f"{len(found) - len(known):,} genes had too few molecules to say. The median is {known['trust'].median():.3f}."
    )
    alt = (
        f"Histogram of the trust in {len(known)} genes, median {known['trust'].median():.3f}, and trust against the number of held-out "
        f"molecules; {above} genes are above 0."
    )
    text += figure(figures.trust(known), alt, "Each dot is a gene. Values below -1 are drawn at -1.")
    many = known[known["molecules"] >= _FEW]
    many = many if len(many) > _SHOWN else known
    order = many.sort_values("trust", ascending=False, kind="stable")
    floor = f"{_FEW} or more hidden molecules" if len(many) < len(known) or many["molecules"].min() >= _FEW else "a hidden molecule"
    text += table(order.head(_SHOWN), f"Highest trust, of {len(many):,} genes with {floor}", index="gene")
    return text + table(order.tail(_SHOWN)[::-1], f"Lowest trust, of {len(many):,} genes with {floor}", index="gene")


def null(found: pd.DataFrame | None, why: str, n_splits: int) -> str:
    """The experiments in which there is nothing to be found."""
    text = paragraph(
        "The cells were dealt at random into two halves, between which no gene differs, and the counts of every gene were dealt anew "
        "over the cells, after which no genes are correlated. What is found all the same was made by the imputation."
    )
    if found is None:
        return text + paragraph(f"The test was not made. {why}")
    text += table(found.rename(index=_ROWS), f"What is found where there is nothing ({n_splits} deals into halves)", index="values")
    rows = [
        "counts as they are: what chance gives. differential_genes should be about 0.",
        "this imputation: far more differential genes than in the counts, or a much higher correlation, are bad signs.",
    ]
    if "imputed_with_label" in found.index:
        rows.append(
            "this imputation, half as label: it was also given the random half as celltype_key. Every gene found here is false: a "
            "label that an imputation was given can never be tested afterwards, however small the number is."
        )
    return text + items(rows)


def training(imputation: Imputation) -> str:
    """The curves."""
    history = imputation.entry.get("history")
    if not isinstance(history, pd.DataFrame):
        return paragraph("A saved model was applied; nothing was trained.")
    text = paragraph(
        "A line for each repeat, of the training of the imputation itself. "
        f"The {'squared error of held-out entries' if imputation.squared else 'deviance of held-out molecules'} should fall and level off; "
        "one that rises at the end, or lines far apart, are bad signs. With an adversary its two losses should settle, and k stay off 1."
    )
    stopped = ", ".join(dict.fromkeys(map(str, imputation.entry.get("stopped", ())))) or "not recorded"
    alt = f"Training curves of {history['repeat'].nunique()} repeats over {int(history['epoch'].max()) + 1} epochs."
    return text + figure(figures.training(history, squared=imputation.squared), alt, f"How the training ended: {stopped}.")


def markers(table_of: pd.DataFrame, column: str | None, given: bool, shown: dict[str, Any]) -> str:
    """Markers of groups before and after; ``shown`` has the figures."""
    origin = f"The groups are those of obs[{column!r}]."
    if column is None:
        origin = "The groups are k-means clusters of the raw counts; clusters of imputed values would show what the imputation made."
    if given:
        origin += " The imputation was given this label, so that differences between its levels may be its own work."
    text = paragraph(
        f"{origin} The markers are the highest in scanpy's rank_genes_groups (t-test) of log1p(CP10k) of the raw counts. Markers should "
        "stay high in their group and not appear in others; a difference that vanishes was smoothed away, one that grows out of nothing "
        "was made."
    )
    if table_of.empty:
        return text + paragraph("There are not two groups, one of them with at least 10 cells; no markers were looked for.")
    text += figure(
        shown["heatmap"],
        f"Two heat maps of the mean of {table_of['gene'].nunique()} markers in {table_of['group'].nunique()} groups, before and after.",
        "Means of log1p(CP10k), as shares of the highest mean that the gene has in any group, before or after.",
    )
    names = {"before_in": "before: in", "before_out": "others", "after_in": "after: in", "after_out": "others "}
    frame = table_of.rename(columns=names).set_index("group")
    text += table(frame, "Mean log1p(CP10k) of the markers in their group and in the other cells", index="group")
    genes = shown["genes"]
    where = shown["where"]
    return text + figure(
        shown["embedding"],
        f"{genes} before and after imputation, on {where}.",
        f"Before and after on {where}, with one colour scale a gene.",
    )


def when_not() -> str:
    """From the README."""
    return items(
        [
            "Never test a label that the imputation was given, nor clusters found on imputed values. Test labels that came from "
            "elsewhere, or on the counts themselves.",
            "An imputed matrix is smoother than the cells are: correlations between genes and p-values computed on it are too good. Use "
            "it to cluster, embed and plot, and look at the layer with standard deviations to see where it knows little. Find marker "
            "genes on the counts: on imputed values a test calls nearly every gene a marker.",
            "Do not use it where it does not clearly beat the gene mean on hidden molecules (section 2), and leave out genes that it "
            "made worse (section 3).",
            "This page is about these cells. After another filter, another batch or other settings, make it again.",
        ]
    )
