"""What the numbers of a report say about an imputation, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

CLEAR = 2
"""Standard errors by which one prediction is clearly ahead of another, and by which a gene is clearly made worse."""
_MANY_WORSE = 0.05
"""Share of the genes clearly made worse; chance alone makes 0.023."""
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

    ``posterior`` says whether the cell's own count was used once more.
    """
    reasons = [_against(heldout, name) for name in _NAMES]
    reasons.append(_against_own_count(heldout, posterior=posterior))
    reasons += [_of_genes(trust), *_of_null(null)]
    for argument, column in columns.items():
        told = f"The imputation was given {column!r} ({argument}): never test differences between its levels on the imputed values."
        reasons.append(("note", told))
    table = pd.DataFrame(reasons, columns=["kind", "reason"])
    return _SENTENCES[worst(table)], table


def worst(reasons: pd.DataFrame) -> str:
    """The kind that decides."""
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
    """Whether other genes have told anything. Without the posterior step the own count is left out on purpose."""
    lead, error = heldout.loc["own_count", "lead"], heldout.loc["own_count", "lead_se"]
    baseline, numbers = "the gene mean drawn to the cell's own count", f"lead {lead:.3f} ± {error:.3f} nats per molecule"
    if lead > CLEAR * error:
        return "good", f"Other genes tell of a gene: it is ahead of {baseline} ({numbers})."
    if not posterior:
        return "note", f"It leaves the own count out (posterior=False); {baseline} is as good or better ({numbers})."
    how = "is worse than" if lead < -CLEAR * error else "is not clearly better than"
    return "care", f"It {how} {baseline} ({numbers}): other genes seem to tell it nothing."


def _of_genes(trust: pd.DataFrame) -> tuple[str, str]:
    known = trust.dropna(subset="trust")
    above, worse = int((known["trust"] > 0).sum()), int((known["z"] < -CLEAR).sum())
    share = f"{above:,} of {len(known):,} genes ({above / max(len(known), 1):.0%})"
    text = f"{share} are predicted better than by their mean; {worse:,} clearly worse."
    return ("good" if 2 * above > len(known) and worse <= _MANY_WORSE * len(known) else "care"), text


def _of_null(null: pd.DataFrame | None) -> list[tuple[str, str]]:
    if null is None:
        return [("note", "It was not tested whether the imputation makes differences or correlations where there are none.")]
    raw, imputed = null.loc["raw"], null.loc["imputed"]
    false, chance, n = imputed["differential_genes"], raw["differential_genes"], int(imputed["tested_genes"])
    found = f"Between random halves of the cells, {false:.3g} of {n:,} imputed genes differ on average ({chance:.3g} of the counts)"
    reasons = [("care", f"{found}: it makes differences.") if false > max(1.0, chance) else ("good", f"{found}: as it should be.")]
    if imputed["correlation"] > raw["correlation"]:
        text = (
            f"Genes without any correlation have a mean absolute one of {imputed['correlation']:.3f} after imputation, of "
            f"{raw['correlation']:.3f} in the counts: do not read correlations between genes off imputed values."
        )
        reasons.append(("note", text))
    if "imputed_with_label" in null.index:
        label = null.loc["imputed_with_label", "differential_genes"]
        text = f"Given a random half as a label, it makes {label:.3g} of {n:,} genes differ between the halves"
        reasons.append(("note", f"{text}: never test a label that an imputation was given, whatever this number is."))
    return reasons
