"""The verdict of a report: reasons from its numbers, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

CLEAR = 2
"""Standard errors of a clear lead of one prediction over another, and of a clear loss of a gene."""
_MANY_WORSE = 0.05
"""Highest acceptable share of genes with a clear loss; chance alone gives 0.023."""
_SENTENCES = {
    "bad": "Do not use this imputation.",
    "care": "Use this imputation with care.",
    "good": "The held-out molecules support this imputation.",
}
_NAMES = {
    "gene_mean": "the gene mean",
    "raw": "the counts themselves",
    "knn": "the mean of similar cells",
}


def verdict(
    heldout: pd.DataFrame,
    trust: pd.DataFrame,
    null: pd.DataFrame | None,
    columns: Mapping[str, str],
    *,
    posterior: bool = True,
) -> tuple[str, pd.DataFrame]:
    """A sentence, and its reasons: ``kind`` (``"good"``, ``"care"``, ``"bad"``, or ``"note"``, which does not count) and ``reason``.

    ``posterior`` says whether the imputation had the posterior step, which uses the cell's own count once more.
    """
    reasons = [_against(heldout, name) for name in _NAMES]
    reasons.append(_against_own_count(heldout, posterior=posterior))
    reasons += [_of_genes(trust), *_of_null(null)]
    for argument, column in columns.items():
        note = f"The imputation used {column!r} ({argument}): never test differences between its levels on the imputed values."
        reasons.append(("note", note))
    table = pd.DataFrame(reasons, columns=["kind", "reason"])
    return _SENTENCES[worst(table)], table


def worst(reasons: pd.DataFrame) -> str:
    """The worst kind among the reasons, which decides the verdict."""
    return next(kind for kind in _SENTENCES if kind in set(reasons["kind"]))


def _against(heldout: pd.DataFrame, baseline: str) -> tuple[str, str]:
    lead, error = heldout.loc[baseline, "lead"], heldout.loc[baseline, "lead_se"]
    numbers = f"{abs(lead):.3f} ± {error:.3f} nats per molecule"
    if lead > CLEAR * error:
        return "good", f"It predicts held-out molecules better than {_NAMES[baseline]}, by {numbers}."
    if lead < -CLEAR * error:
        return "bad", f"It predicts held-out molecules worse than {_NAMES[baseline]}, by {numbers}."
    kind = "care" if baseline == "knn" else "bad"
    return (
        kind,
        f"It does not predict held-out molecules clearly better than {_NAMES[baseline]} (lead {lead:.3f} ± {error:.3f} nats per molecule).",
    )


def _against_own_count(heldout: pd.DataFrame, *, posterior: bool) -> tuple[str, str]:
    """Whether other genes add information. Without the posterior step the own count is left out on purpose."""
    lead, error = heldout.loc["own_count", "lead"], heldout.loc["own_count", "lead_se"]
    baseline, numbers = "the gene mean combined with the cell's own count", f"lead {lead:.3f} ± {error:.3f} nats per molecule"
    if lead > CLEAR * error:
        return "good", f"Other genes add information: the imputation is ahead of {baseline} ({numbers})."
    if not posterior:
        return "note", f"It leaves the own count out (posterior=False); {baseline} is as good or better ({numbers})."
    how = "is worse than" if lead < -CLEAR * error else "is not clearly better than"
    return "care", f"It {how} {baseline} ({numbers}): other genes seem to add no information."


def _of_genes(trust: pd.DataFrame) -> tuple[str, str]:
    scored = trust.dropna(subset="trust")
    above, worse = int((scored["trust"] > 0).sum()), int((scored["z"] < -CLEAR).sum())
    share = f"{above:,} of {len(scored):,} genes ({above / max(len(scored), 1):.0%})"
    text = f"{share} are predicted better than by their mean; {worse:,} clearly worse."
    return ("good" if 2 * above > len(scored) and worse <= _MANY_WORSE * len(scored) else "care"), text


def _of_null(null: pd.DataFrame | None) -> list[tuple[str, str]]:
    if null is None:
        return [("note", "It was not tested whether the imputation creates false differences or correlations.")]
    raw, imputed = null.loc["raw"], null.loc["imputed"]
    false, chance, n = imputed["differential_genes"], raw["differential_genes"], int(imputed["tested_genes"])
    text = f"Between random halves of the cells, {false:.3g} of {n:,} imputed genes differ on average ({chance:.3g} in the counts)"
    reasons = [("care", f"{text}: it makes differences.") if false > max(1.0, chance) else ("good", f"{text}: as it should be.")]
    if imputed["correlation"] > raw["correlation"]:
        text = (
            f"Uncorrelated genes have a mean absolute correlation of {imputed['correlation']:.3f} after imputation and of "
            f"{raw['correlation']:.3f} in the counts: do not read correlations between genes off imputed values."
        )
        reasons.append(("note", text))
    if "imputed_with_label" in null.index:
        label = null.loc["imputed_with_label", "differential_genes"]
        text = f"With a random half as a label, {label:.3g} of {n:,} imputed genes differ between the halves"
        reasons.append(("note", f"{text}: never test a label that an imputation used, whatever this number is."))
    return reasons
