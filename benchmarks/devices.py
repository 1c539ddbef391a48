"""Every method on the CPU and on a GPU: seconds, and whether the scores agree; a table of docs/benchmarks.md.

    python benchmarks/devices.py all           every case on the CPU, and on the GPU where there is one; or cpu or cuda; --cases for some

Each case runs in a process of its own, twice with two seeds: the first run on a GPU also starts CUDA and loads its kernels.
Some random numbers are drawn on the device, so scores are compared, not values. Results go to docs/benchmarks/devices.csv,
beside those of other machines. Data are read from SCIMPUTE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import anndata as ad
import pandas as pd
import torch
from rows import LABELS, ROOT
from run import load
from spatial import load as load_sections

import scimpute

SEEDS = 2


def bulk() -> ad.AnnData:
    adata = scimpute.datasets.toy_bulk(500, 1000, rank=20)
    scimpute.pp.hide(adata, of="all")
    return adata


IMAGE = {"library_key": "section", "image_key": "hires"}
BULK = {"layer": "hidden", "categorical_covariates": "tissue", "continuous_covariates": "age"}
CASES: dict[str, tuple[Callable[[], ad.AnnData], str, dict[str, Any]]] = {
    "tl.began, pbmc3k": (lambda: load("pbmc3k", None, None), "began", {}),
    "tl.began, cellmix_2tech with labels": (lambda: load("cellmix_2tech", None, None), "began", LABELS),
    "tl.began, conv, zeisel_ercc": (lambda: load("zeisel_ercc", None, None), "began", {"architecture": "conv", "n_repeats": 1}),
    "tl.began, 32,000 cells": (lambda: load("pbmc3k", 32_000, None), "began", {}),
    "tl.nmf, her2st_he": (lambda: load_sections("her2st_he"), "nmf", {"library_key": "section"}),
    "tl.spatial, her2st_he with image": (lambda: load_sections("her2st_he"), "spatial", IMAGE),
    "tl.pmi, 500 x 1,000": (bulk, "pmi", BULK),
    "tl.gain, 500 x 1,000": (bulk, "gain", BULK),
}


def measured(case: str, device: str) -> list[dict[str, Any]]:
    """Rows of a case: seconds, GPU memory, and the held-out score."""
    make, name, options = CASES[case]
    key = "spatial_imputed" if name == "spatial" else name
    adata, rows = make(), []
    for seed in range(SEEDS):
        start = time.perf_counter()
        getattr(scimpute.tl, name)(adata, device=device, random_state=seed, progress=False, **options)
        row = {"case": case, "device": device, "seed": seed, "seconds": time.perf_counter() - start}
        if device != "cpu":
            row["gpu_GB"] = torch.cuda.max_memory_allocated() / 2**30
        if name in ("pmi", "gain"):
            row["score"] = scimpute.metrics.recovery(adata, key).loc[key, "rmse"]
        else:
            row["score"] = adata.uns[key]["heldout"]["posterior"]
        rows.append(row)
        del adata.layers[key], adata.layers[f"{key}_sd"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=["all", "cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    here = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    path = ROOT / "docs" / "benchmarks" / "devices.csv"
    keys = ["case", "device", "machine", "seed"]
    for device in here if args.device == "all" else [args.device]:
        for case in args.cases:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows = pd.DataFrame(pool.submit(measured, case, device).result()).assign(machine=machine())
            earlier = [pd.read_csv(path)] if path.exists() else []
            pd.concat([*earlier, rows]).drop_duplicates(keys, keep="last").to_csv(path, index=False, float_format="%.6g")
            print(rows.round(4).to_string(index=False), flush=True)


def machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main()
