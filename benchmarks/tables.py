"""The tables between ``<!-- table: name -->`` and ``<!-- end -->`` in the docs, and their figures, from docs/benchmarks/*.csv.

python benchmarks/tables.py                writes them anew; a table whose CSV is not there stays as it is

A cell is the median over the seeds that were run, and their range where there are several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pandas as pd
from figures import draw
from results import DATA, NAMES, ROOT, ZEROS, order, read

PAGES = ("README.md", "docs/benchmarks.md")
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NULL = ("pbmc68k", "pbmc3k", "cellmix_2tech")
PLAIN = f"{NAMES['began']}, `posterior=False`"
ABLATIONS = {
    "": "default",
    "adversarial_weight=0": "without the adversary",
    "adversarial_weight=1": "`adversarial_weight=1`",
    "reconstruction_weight=0, adversarial_weight=1": "the adversary alone",
    "labels=False": "without labels",
    "n_repeats=1": "one repeat instead of three",
    "posterior=False": "without the posterior step",
    "n_context=1": "one context score",
    "width=16": "`width=16`",
    "penalty=0": "`penalty=0`",
    "architecture=conv, n_repeats=1": "convolutional, one repeat",
    "n_context=30, penalty=200, width=32, max_epochs=14, n_repeats=1": "dense of the same complexity, one repeat",
}


def number(value: float, digits: int = 4) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # not -0.000


def cell(values: pd.Series, digits: int = 4) -> str:
    """Median, and the range where there are several."""
    values = values.dropna()
    if values.empty:
        return ""
    middle = number(values.median(), digits)
    if len(values) < 2:
        return middle
    return f"{middle}<br>({number(values.min(), digits)}\u2013{number(values.max(), digits)})"


def markdown(columns: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def by_data(frame: pd.DataFrame, make: Callable[[pd.DataFrame], str], column: str = "data", values: Iterable[str] = DATA) -> str:
    """A row for each label, a column for each data set."""
    if frame.empty:
        raise FileNotFoundError("none of these rows was run")
    values = [value for value in values if value in set(frame[column])]
    rows = [
        [label, *(make(frame[(frame["label"] == label) & (frame[column] == value)]) for value in values)] for label in order(frame["label"])
    ]
    return markdown(["method", *map(str, values)], rows)


def steps(frame: pd.DataFrame, column: str, digits: int) -> str:
    """Median without and with the posterior step."""
    parts = [frame.loc[frame["posterior"] == step, column].dropna() for step in (False, True)]
    return " / ".join(number(part.median(), digits) if len(part) else "-" for part in parts) if any(map(len, parts)) else ""


def accuracy() -> str:
    frame = _accuracy(posterior=False)
    return by_data(frame.assign(label=frame["label"].replace(NAMES["began"], PLAIN)), lambda part: cell(part["poisson"]))


def accuracy_posterior() -> str:
    return by_data(_accuracy(posterior=True), lambda part: cell(part["poisson"]))


def _accuracy(*, posterior: bool) -> pd.DataFrame:
    frame = read("accuracy")
    return frame[frame["posterior"] == posterior]


def accuracy_log() -> str:
    frame = read("accuracy")
    frame = frame[(frame["posterior"] == (frame["method"] == "began")) & frame["mse_log"].notna()]
    names = ["mse_log", "mse_log_renormalized"]
    return by_data(frame, lambda part: " / ".join(number(part[name].median()) for name in names) if len(part) else "")


def accuracy_settings() -> str:
    """The settings that tuning took, the first seed's."""
    frame = read("accuracy")
    frame = frame[frame["tuned"] & ~frame["posterior"] & (frame["seed"] == 0)]
    return by_data(frame, lambda part: part["setting"].iloc[0].replace(", ", "<br>").replace("max_", "") if len(part) else "")


def readme() -> str:
    """Every method at the best of its defaults: peers without the posterior step, ours with it and without."""
    frame = read("accuracy")
    frame = frame[~frame["tuned"] & (frame["options"] != ZEROS) & (frame["method"] != "raw")]
    ours, default = frame["method"] == "began", f"{NAMES['began']} (default)"
    row = frame["method"].map(NAMES).mask(ours, PLAIN).mask(ours & frame["posterior"], default)
    frame = frame[ours | ~frame["posterior"]].assign(row=row)
    best = frame.groupby(["data", "row", "label"])["poisson"].median().groupby(["data", "row"]).min()
    rows = []
    for name in ("gene mean", "kNN", "SVD", "ALRA", "MAGIC", "scVI", PLAIN, default):
        scores = {data: number(best[data, name]) for data in DATA}
        rows.append([name, *(f"**{score}**" if best[data].idxmin() == name else score for data, score in scores.items())])
    return markdown(["method", *DATA], rows)


def speed() -> str:
    frame = read("speed")
    frame = frame[frame["data"] == "pbmc3k"]
    rows = []
    for label in order(frame["label"]):
        part = frame[frame["label"] == label]
        rows.append([label, cell(part["seconds"], 1), number(part["peak_GB"].median(), 2), str(len(part))])
    return markdown(["method", "seconds", "peak above the input, GiB", "runs"], rows)


def ablation() -> str:
    frame = read("ablation")
    names = ["cellmix_2tech", "zeisel_ercc"]
    rows = []
    for options, label in ABLATIONS.items():
        part = frame[frame["options"] == options]
        rows.append([label, *(cell(part.loc[part["data"] == name, "poisson"], 5) for name in names)])
    return markdown(["", *names], rows)


def growth() -> str:
    frame = read("growth").sort_values(["method", "n_obs", "n_vars"], na_position="last", kind="stable")
    rows = []
    for _, row in frame.iterrows():
        genes = 13714 if pd.isna(row["n_vars"]) else int(row["n_vars"])
        limit = number(1.5 * 2 * row["output_GB"] + 600 / 1024, 2) if row["method"] == "began" else ""
        rows.append([row["label"], f"{row['n_obs']:,.0f}", f"{genes:,}", f"{row['seconds']:.0f}", number(row["peak_GB"], 2), limit])
    return markdown(["method", "cells", "genes", "seconds", "peak above the input, GiB", "limit, GiB"], rows)


def adversary() -> str:
    frame = read("adversary").groupby("adversarial_weight").mean()
    names = {"poisson": 4, "sd_of_log_rate": 2, "error_of_zero_fraction": 3, "correlation_of_permuted_genes": 3}
    rows = []
    for weight, row in frame.iterrows():
        default = " (default)" if weight == 0.1 else ""
        rows.append([f"{weight:g}{default}", *(number(row[name], digits) for name, digits in names.items())])
    return markdown(["adversarial_weight", "held-out Poisson", "sd of log rates over cells", "error of zeros", "permuted genes"], rows)


def calibration() -> str:
    rows = []
    for row in read("calibration").itertuples():
        shown = [f"{value:.2f}" for value in (row.found_over_expected, row.with_sd, row.without_sd)]
        rows.append([row.data, row.imputed_counts.replace("10 to inf", "above 10"), f"{row.entries:,}", *shown])
    return markdown(["data", "imputed counts", "entries", "molecules found / expected", "with `began_sd`", "Poisson noise alone"], rows)


def mixtures() -> str:
    frame = read("mixtures")
    frame = frame[frame["pg"] == 3.75]
    names = ["rmse", "cell_correlation", "cell_correlation_centred", "gene_correlation"]
    rows = []
    for label in order(frame["label"]):
        part = frame[frame["label"] == label]
        rows.append([label, *(steps(part, name, 3) for name in names)])
    return markdown(["method", "RMSE of log CP10k", "correlation of a cell", "the same, centred", "correlation of a gene"], rows)


def null() -> str:
    return by_data(read("null"), lambda part: steps(part, "correlation", 3), values=NULL)


def null_genes() -> str:
    frame = read("null")
    table = by_data(frame, lambda part: steps(part, "differential_genes", 1), values=NULL)
    if "label_differential_genes" not in frame:
        return table
    labelled = frame[frame["label_differential_genes"].notna() & (frame["options"] != ZEROS)]
    cells = [steps(labelled[labelled["data"] == name], "label_differential_genes", 0) for name in NULL if name in set(frame["data"])]
    return table + f"| {NAMES['began']}, given the half | " + " | ".join(cells) + " |\n"


def trade() -> str:
    read("null")
    return (
        "![Held-out deviance against correlation of permuted genes](images/benchmark_trade.svg)\n\n"
        "pbmc3k. ALRA without the posterior step lies above the figure. MAGIC is shown with both transformations, square root and linear.\n"
    )


def partners() -> str:
    frame = read("partners")
    ours = frame["options"] == ZEROS
    rows = []
    for label in order(frame.loc[~ours, "label"]):
        part = frame[frame["label"] == label]
        # Ours with zeros is a run of its own; for a peer the zeros are further columns.
        kept, suffix = (frame[ours], "") if label == NAMES["began"] else (part, "_with_zeros")
        below = steps(part, "below_counts", 0) if label != NAMES["raw"] else ""
        with_zeros = [steps(kept, f"correlation{suffix}", 3), steps(kept, f"below_counts{suffix}", 0)]
        rows.append([label, steps(part, "correlation", 3), below, *with_zeros, *(steps(part, gene, 2) for gene in ("MS4A1", "CD8A"))])
    columns = ["mean correlation", "genes below their counts", "with zeros: mean correlation", "genes below", "MS4A1", "CD8A"]
    return markdown(["method", *columns], rows)


def clusters() -> str:
    frame = read("clusters")
    return by_data(frame, lambda part: f"{steps(part, 'kmeans_ari', 2)}; {steps(part, 'leiden_ari', 2)}" if len(part) else "")


def devices() -> str:
    """Cases that were run on both. The first run of a process on a GPU also starts CUDA, so it has a column of its own."""
    frame = read("devices")
    gpu, cpu = frame[frame["device"] == "cuda"], frame[frame["device"] == "cpu"]
    rows = []
    for case in gpu["case"].unique():
        on, off = (part[part["case"] == case].sort_values("seed") for part in (gpu, cpu))
        if off.empty:
            continue
        seconds = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in (off["seconds"].median(), *on["seconds"])]
        scores = [number(part["score"].median(), 3) for part in (off, on)]
        rows.append([case.replace("tl.began", "`tl.began`"), *seconds, number(on["gpu_GB"].max(), 2), *scores])
    columns = ["CPU, seconds", "GPU, first call", "GPU, next call", "GPU memory, GiB", "score on the CPU", "on the GPU"]
    return markdown(["", *columns], rows)


TABLES = {
    f.__name__: f
    for f in (
        accuracy,
        accuracy_posterior,
        accuracy_log,
        accuracy_settings,
        readme,
        speed,
        ablation,
        growth,
        adversary,
        calibration,
        mixtures,
        null,
        null_genes,
        trade,
        clusters,
        partners,
        devices,
    )
}


def filled(page: str) -> str:
    """A page with its tables made anew from the CSVs."""

    def table(match: re.Match[str]) -> str:
        try:
            return match[1] + TABLES[match[2]]() + match[4]
        except FileNotFoundError:
            return match[0]

    return MARKED.sub(table, page)


def main() -> None:
    for name in PAGES:
        page = (ROOT / name).read_text()
        (ROOT / name).write_text(filled(page))
    draw()


if __name__ == "__main__":
    main()
