"""The sections of a report. Each says how to read it and what a bad sign is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .._replay import RESULT, Imputation
from . import figures
from .page import figure, items, paragraph, table

_FEW = 10
"""Number of molecules below which the trust in one gene is mostly chance."""
_N_GENES = 10
"""Genes in the tables of the highest and the lowest trust."""
_ROWS = {
    "raw": "counts as they are",
    "gene_mean": "gene mean",
    "own_count": "gene mean and own count",
    "knn": "kNN (15 cells)",
    RESULT: "this imputation",
    "imputed_with_label": "this imputation, half as label",
}


def what_was_run(imputation: Imputation, key: str, arguments: list[str]) -> str:
    """Method, parameters, and the chosen complexity."""
    params, entry = imputation.params, imputation.entry
    n, g = imputation.counts.shape
    what = "a saved model, applied with tl.apply" if imputation.applied else "trained on this object"
    text = paragraph(
        f"Key {key!r} was written by tl.{imputation.method} of scimpute {entry.get('version', '(unknown version)')} ({what}), from "
        f"{n:,} cells x {g:,} genes with {int(imputation.counts.sum(dtype='float64')):,} molecules."
    )
    if imputation.columns:
        text += paragraph("The imputation used these labels. Never test them on the imputed values:")
        text += items(f"obs[{column!r}], as {argument}" for argument, column in imputation.columns.items())
    else:
        text += paragraph("The imputation used no label of the cells.")
    text += paragraph(
        "All parameters, as they were recorded. A bad sign is a value that you did not intend: another layer, or no batch_key although "
        "there are batches."
    )
    order = [*(name for name in arguments if name in params), *(name for name in params if name not in arguments)]
    text += table(pd.DataFrame({"value": [_value(params[name]) for name in order]}, index=order), "Parameters", index="parameter")
    text += _chosen(imputation)
    squared = imputation.squared
    unit = "squared error of logs" if squared else "nats per molecule"
    recorded = entry.get("heldout", {})
    if recorded and squared:
        text += paragraph(
            "The training held out some of the non-zero entries, too. The network should be below the gene mean; there is no posterior, "
            "because a missing entry has no count."
        )
    elif recorded:
        text += paragraph(
            "The training held out some of the counts, too. The network alone should be below the gene mean. The posterior, if there is "
            "one, uses the cell's own count once more and should be below the network. Neither gain shows that genes inform each other, "
            "because the network also reads the cell's own count of the gene. If most of the gain comes from the posterior, the own count "
            "does most of the work."
        )
    if recorded:
        frame = pd.DataFrame({unit: [float(value) for value in recorded.values()]}, index=list(recorded))
        text += table(frame, "Held out in the training (lower is better)", index="prediction")
    if squared:
        text += paragraph(
            "likelihood='squared' treats every zero as missing. The hidden molecules below treat a zero as an observation, so such an "
            "imputation seldom predicts them well."
        )
    if isinstance(entry.get("contribution"), pd.DataFrame):
        text += paragraph(
            f"Contribution of each modality: the rise of the {'squared error' if squared else 'deviance'} without it. A modality near or "
            "below 0 adds nothing to the imputation."
        )
        text += table(entry["contribution"], "Contributions of the modalities", index="modality")
    return text


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _chosen(imputation: Imputation) -> str:
    chosen = imputation.entry.get("chosen", {})
    if not chosen:
        return ""
    text = paragraph(f"Choice of the network's complexity: {chosen.get('why', 'not recorded')}.")
    candidates = chosen.get("candidates")
    if isinstance(candidates, pd.DataFrame):
        text += paragraph(
            f"Each candidate and its score, {'the squared error of logs' if imputation.squared else 'in nats per held-out molecule'} "
            "(lower is better). Most candidates have similar scores. If the best candidate is at the edge and has a large lead, more would "
            "have helped. The choice takes fewer context scores if their score is within a standard error, and a longer training only if "
            "its score is clearly better."
        )
        frame = candidates.astype(dict.fromkeys(("n_context", "width", "steps"), int))
        frame["taken"] = np.where(candidates["taken"], "taken", "")
        text += table(frame.set_axis([str(i + 1) for i in range(len(candidates))]), "Candidates", index="candidate")
    return text


def heldout(scores: pd.DataFrame, frac: float, imputation: Imputation) -> str:
    """Scores of the imputation and the baselines."""
    again = "The model was applied" if imputation.applied else "The imputation was run"
    text = paragraph(
        f"{1 - frac:.0%} of the molecules were hidden at random. {again} again on the rest, in a copy and with the same settings. "
        "Each row predicts the hidden molecules. Lower is better in every column. Trust poisson, the Poisson deviance."
    )
    if "target_batch" in imputation.params:
        text += paragraph("target_batch was left out here and in the null test: the molecules of a cell belong to its own batch.")
    if imputation.params.get("fill") == "expressed":
        text += paragraph("fill='all' was used here and in the null test: the zeros of fill='expressed' are not expected counts.")
    if imputation.genes is not None:
        text += paragraph(
            "Only some genes were imputed. The scores cover these genes, at the depth of all genes. The baselines see all genes."
        )
    if imputation.applied:
        text += paragraph(
            "If the model was trained on these very cells, it has seen the hidden molecules, and its scores here are too good. Only new "
            "cells test a saved model."
        )
    frame = scores.drop(columns=["lead", "lead_se", "poisson_openproblems"]).rename(index=_ROWS)
    lead = [f"{a:.3f} ± {error:.3f}" if a == a else "" for a, error in zip(scores["lead"], scores["lead_se"], strict=True)]
    frame.insert(1, "lead of the imputation", lead)
    text += table(frame, "Scores on hidden molecules", index="prediction")
    return text + paragraph(
        "The lead is the advantage of the imputation over a row, in nats per hidden molecule, with its standard error over cells. A lead "
        "below twice its standard error is a bad sign. Over the gene mean: do not use the imputation. Over kNN: a simpler method does as "
        "well. Over the gene mean combined with the cell's own count of the gene: other genes add no information. The counts themselves "
        "do badly because a zero predicts that a molecule is impossible."
    )


def trust(genes: pd.DataFrame) -> str:
    """Which genes to believe."""
    scored = genes.dropna(subset="trust")
    text = paragraph(
        "Trust is the share of a gene's hidden deviance that the imputation explains beyond the gene's mean. 1 would predict every "
        "molecule, 0 is no better than the mean, and below 0 the imputation made the gene worse. z is the gain in its standard errors. "
        "With few molecules, even the true rates explain little. A bad sign is many genes below 0, above all abundant genes. Do not use "
        "genes with z below -2."
    )
    if scored.empty:
        return text + paragraph("No gene has a molecule in both parts, so no gene has a score.")
    above, clear, worse = (int(hit.sum()) for hit in (scored["trust"] > 0, scored["z"] > 2, scored["z"] < -2))
    text += paragraph(
        f"{above:,} of {len(scored):,} genes are above 0, {clear:,} of them clearly (z above 2); clearly below (z below -2): {worse:,}. "
        f"{len(genes) - len(scored):,} genes have too few molecules for a score. The median is {scored['trust'].median():.3f}."
    )
    alt = (
        f"Histogram of the trust in {len(scored)} genes, median {scored['trust'].median():.3f}, and trust against the number of held-out "
        f"molecules; {above} genes are above 0."
    )
    text += figure(figures.trust(scored), alt, "Each dot is a gene. Values below -1 are drawn at -1.")
    many = scored[scored["molecules"] >= _FEW]
    many = many if len(many) > _N_GENES else scored
    order = many.sort_values("trust", ascending=False, kind="stable")
    floor = f"{_FEW} or more hidden molecules" if len(many) < len(scored) or many["molecules"].min() >= _FEW else "a hidden molecule"
    text += table(order.head(_N_GENES), f"Highest trust, of {len(many):,} genes with {floor}", index="gene")
    return text + table(order.tail(_N_GENES)[::-1], f"Lowest trust, of {len(many):,} genes with {floor}", index="gene")


def null(false_signal: pd.DataFrame | None, why: str, n_splits: int) -> str:
    """The experiments on data without any signal."""
    text = paragraph(
        "The cells were split at random into two halves, between which no gene differs. The counts of each gene were permuted over the "
        "cells, after which no genes are correlated. Any signal beyond chance comes from the imputation."
    )
    if false_signal is None:
        return text + paragraph(f"The test was not made. {why}")
    text += table(false_signal.rename(index=_ROWS), f"False signal in data without any ({n_splits} splits into halves)", index="values")
    rows = [
        "counts as they are: the level of chance. differential_genes should be about 0.",
        "this imputation: far more differential genes than in the counts, or a much higher correlation, are bad signs.",
    ]
    if "imputed_with_label" in false_signal.index:
        rows.append(
            "this imputation, half as label: the imputation also used the random half as celltype_key. Each of these genes is a false "
            "positive: never test a label that an imputation used, however small the number is."
        )
    return text + items(rows)


def training(imputation: Imputation) -> str:
    """Training curves."""
    history = imputation.entry.get("history")
    if not isinstance(history, pd.DataFrame):
        return paragraph("A saved model was applied; nothing was trained.")
    text = paragraph(
        "These curves are from the training of the imputation itself, one line for each repeat. "
        f"The {'squared error of held-out entries' if imputation.squared else 'deviance of held-out molecules'} should fall and level off. "
        "A rise at the end, or lines far apart, are bad signs. With an adversary, its two losses should settle, and k should stay off 1."
    )
    stopped = ", ".join(dict.fromkeys(map(str, imputation.entry.get("stopped", ())))) or "not recorded"
    alt = f"Training curves of {history['repeat'].nunique()} repeats over {int(history['epoch'].max()) + 1} epochs."
    return text + figure(figures.training(history, squared=imputation.squared), alt, f"How the training ended: {stopped}.")


def markers(means: pd.DataFrame, column: str | None, conditioned: bool, pictures: dict[str, Any]) -> str:
    """Markers of groups before and after. ``conditioned``: the imputation used the groups. ``pictures`` has the figures."""
    origin = f"The groups are the levels of obs[{column!r}]."
    if column is None:
        origin = "The groups are k-means clusters of the raw counts. Clusters of imputed values would show artefacts of the imputation."
    if conditioned:
        origin += " The imputation used this label, so it may have created differences between its levels."
    text = paragraph(
        f"{origin} The markers are the highest in scanpy's rank_genes_groups (t-test) of log1p(CP10k) of the raw counts. Markers should "
        "stay high in their group and not appear in others. If a difference vanishes, the imputation smoothed it away. If one appears, "
        "the imputation created it."
    )
    if means.empty:
        return text + paragraph("Markers need two groups, one of them with at least 10 cells. There are none.")
    text += figure(
        pictures["heatmap"],
        f"Two heat maps of the mean of {means['gene'].nunique()} markers in {means['group'].nunique()} groups, before and after.",
        "Means of log1p(CP10k), as shares of the highest mean that the gene has in any group, before or after.",
    )
    names = {"before_in": "before: in", "before_out": "others", "after_in": "after: in", "after_out": "others "}
    frame = means.rename(columns=names).set_index("group")
    text += table(frame, "Mean log1p(CP10k) of the markers in their group and in the other cells", index="group")
    genes = pictures["genes"]
    where = pictures["where"]
    return text + figure(
        pictures["embedding"],
        f"{genes} before and after imputation, on {where}.",
        f"Before and after on {where}, with one colour scale for each gene.",
    )


def when_not() -> str:
    """Warnings from the README."""
    return items(
        [
            "Never test a label that the imputation used, nor clusters found on imputed values. Test labels from another source, or test "
            "on the counts themselves.",
            "An imputed matrix is smoother than the cells are: correlations between genes and p-values computed on it are too good. Use "
            "it to cluster, embed and plot. The layer with standard deviations shows where the imputation knows little. Find marker "
            "genes on the counts: on imputed values a test calls nearly every gene a marker.",
            "Do not use the imputation if it does not clearly beat the gene mean on hidden molecules (section 2). Leave out genes that it "
            "made worse (section 3).",
            "This page is about these cells. Make it again after another filter, another batch or other settings.",
        ]
    )
