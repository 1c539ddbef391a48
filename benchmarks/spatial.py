"""Spatial methods beside their peers on her2st_he (three sections with H&E) and mob_layers; the tables of docs/spatial.md.

    python benchmarks/spatial.py heldout       molecules held out, at full depth and at 300 molecules a spot
    python benchmarks/spatial.py hidden        the protocol of the source: half of the non-zero entries of her2st_he hidden
    python benchmarks/spatial.py clusters      clusters of mob_layers against its known layers
    python benchmarks/spatial.py speed         seconds on her2st_he with its image
    python benchmarks/spatial.py growth        simulated spots, four times as many at a time

Results go to docs/benchmarks/spatial_<table>.csv. Data are read from SCIMPUTE_DATA (default ../shared/data); magic-impute is needed for
its rows only. With --methods only these rows are run anew and the others stay.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from spatial_peers import PEERS, PEERS_OF_HIDDEN

import scimpute

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
SHALLOW = 300
ALL = ["counts", "position", "image"]


def load(name: str, depth: int | None = None, seed: int = 0) -> ad.AnnData:
    """A data set with rings of neighbours; ``depth`` thins it to so many molecules a spot."""
    adata = ad.read_h5ad(DATA / f"{name}.h5ad")
    counts = sp.csr_matrix(adata.X).astype(np.int64)
    if depth is not None:
        total = np.asarray(counts.sum(axis=1)).ravel()
        counts.data = np.random.default_rng(100 + seed).binomial(
            counts.data, np.repeat(np.minimum(1, depth / total), np.diff(counts.indptr))
        )
        counts.eliminate_zeros()
    adata.X = counts.astype(np.float32)
    if "section" not in adata.obs:
        adata.obs["section"] = "1"
    adata.obs["section"] = adata.obs["section"].astype("category")
    scimpute.pp.spatial_rings(adata, library_key="section")
    return adata


def began(adata: ad.AnnData, seed: int) -> np.ndarray:
    key = "section" if len(adata.obs["section"].cat.categories) > 1 else None
    return scimpute.tl.began(adata, batch_key=key, random_state=seed, copy=True).layers["began"]


def nmf(**options) -> Callable[[ad.AnnData, int], np.ndarray]:
    return lambda adata, seed: scimpute.tl.nmf(adata, library_key="section", random_state=seed, copy=True, **options).layers["nmf"]


def spatial(modalities: list[str], **options) -> Callable[[ad.AnnData, int], np.ndarray]:
    image = {"image_key": "hires"} if "image" in modalities else {}

    def impute(adata: ad.AnnData, seed: int) -> np.ndarray:
        fixed = {"modalities": modalities, "library_key": "section", "random_state": seed, "key_added": "found", "copy": True}
        return scimpute.tl.spatial(adata, **image, **fixed, **options).layers["found"]

    return impute


OURS: dict[str, Callable[[ad.AnnData, int], np.ndarray]] = {
    "tl.began": began,
    "tl.nmf, spatial_weight=0": nmf(spatial_weight=0),
    "tl.nmf": nmf(),
    "tl.spatial, counts without neighbours": spatial(["counts"], ring_weights=()),
    "tl.spatial, counts": spatial(["counts"]),
    "tl.spatial, counts + position": spatial(["counts", "position"]),
    "tl.spatial, counts + position + image": spatial(ALL),
}


def heldout(methods: list[str]) -> list[dict]:
    rows = []
    for name in ("her2st_he", "mob_layers"):
        for depth in (None, SHALLOW):
            for seed in range(3):
                adata = load(name, depth, seed)
                scimpute.pp.thin(adata, random_state=seed)
                adata = adata[:, np.asarray(adata.layers["thin_train"].sum(axis=0)).ravel() > 0].copy()
                work = adata.copy()
                work.X = adata.layers["thin_train"].copy()
                for method in methods or [*PEERS, *OURS]:
                    if "image" in method and "spatial" not in adata.uns:
                        continue
                    prediction = PEERS[method](work) if method in PEERS else OURS[method](work, seed)
                    adata.layers["found"] = np.asarray(prediction, dtype=np.float32)
                    score = scimpute.metrics.heldout(adata, "found").loc["found", "poisson"]
                    rows.append({"data": name, "molecules": depth or "all", "method": method, "seed": seed, "poisson": score})
                    print(rows[-1], flush=True)
    return rows


SQUARED = {"likelihood": "squared"}
OURS_OF_HIDDEN: dict[str, Callable[[ad.AnnData, int], np.ndarray]] = {
    "tl.nmf, spatial_weight=0": nmf(spatial_weight=0, **SQUARED),
    "tl.nmf": nmf(**SQUARED),
    "tl.spatial, counts": spatial(["counts"], **SQUARED),
    "tl.spatial, position": spatial(["position"], **SQUARED),
    "tl.spatial, image": spatial(["image"], **SQUARED),
    "tl.spatial, counts + position + image": spatial(ALL, **SQUARED),
    "tl.spatial, counts + position + image, likelihood=poisson": spatial(ALL),
}


def hidden(methods: list[str]) -> list[dict]:
    rows = []
    for seed in range(3):
        adata = load("her2st_he")
        scimpute.pp.hide(adata, random_state=seed)
        work = adata.copy()
        work.X = adata.layers["hidden"].copy()
        for method in methods or [*PEERS_OF_HIDDEN, *OURS_OF_HIDDEN]:
            prediction = PEERS_OF_HIDDEN[method](work) if method in PEERS_OF_HIDDEN else OURS_OF_HIDDEN[method](work, seed)
            adata.layers["found"] = np.asarray(prediction, dtype=np.float32)
            score = scimpute.metrics.recovery(adata, "found").loc["found"]
            rows.append({"method": method, "seed": seed, **{name: score[name] for name in ("rmse", "rmse_log1p_cp10k")}})
            print(rows[-1], flush=True)
    return rows


def clusters(methods: list[str]) -> list[dict]:
    rows = []
    adata = load("mob_layers")
    scoring = {"method": ["kmeans", "leiden"], "unlabelled": "unannotated"}
    of_rate = {
        f"{name}, posterior=False": lambda adata, seed, make=make: make(posterior=False)(adata, seed)
        for name, make in {"tl.nmf": nmf, "tl.spatial, counts + position": lambda **options: spatial(ALL[:2], **options)}.items()
    }
    peers = {name: PEERS[name] for name in ("neighbour mean", "SVD", "kNN", "MAGIC (linear)")}
    ours = {name: OURS[name] for name in OURS if "image" not in name} | of_rate
    for seed in range(3):
        for method in methods or [*peers, *ours]:
            prediction = peers[method](adata) if method in peers else ours[method](adata, seed)
            adata.layers["scored"] = np.asarray(prediction, dtype=np.float32)
            scores = scimpute.metrics.cluster_agreement(adata, "scored", "layer", random_state=seed, **scoring)
            for name in (["raw"] if not rows or rows[-1]["seed"] != seed else []) + ["scored"]:
                values = {column: scores.loc[name, column] for column in ("kmeans_ari", "leiden_ari")}
                rows.append({"method": "raw" if name == "raw" else method, "seed": seed, **values})
                print(rows[-1], flush=True)
    return rows


def timed(adata: ad.AnnData, **options) -> dict[str, float]:
    start = time.perf_counter()
    scimpute.tl.spatial(adata, key_added="found", copy=True, **options)
    return {"seconds": time.perf_counter() - start}


def speed(_: list[str]) -> list[dict]:
    adata = load("her2st_he")
    rows = []
    for seed in range(3):
        for method, options in (
            ("with image", {"image_key": "hires"}),
            ("without", {}),
            ("with image, squared", {"image_key": "hires", **SQUARED}),
        ):
            rows.append({"method": method, "seed": seed, **timed(adata, library_key="section", random_state=seed, **options)})
            print(rows[-1], flush=True)
    return rows


def growth(_: list[str]) -> list[dict]:
    rows, rng = [], np.random.default_rng(0)
    for side in (16, 32, 64, 128, 256):
        counts = sp.random(side**2, 1000, 0.1, format="csr", random_state=rng)
        counts.data = 1.0 + rng.poisson(1, counts.nnz)
        adata = ad.AnnData(counts.astype(np.float32))
        adata.obsm["spatial"] = 100.0 * np.column_stack(np.divmod(np.arange(side**2), side))
        fixed = {"n_context": 15, "width": 16, "penalty": 300.0, "max_epochs": 5, "n_repeats": 1}
        rows.append({"spots": side**2, **timed(adata, **fixed)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    tables: dict[str, Callable[[list[str]], list[dict]]] = {f.__name__: f for f in (heldout, hidden, clusters, speed, growth)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(tables))
    parser.add_argument("--methods", nargs="+", default=[])
    args = parser.parse_args()
    if args.methods and args.table in ("speed", "growth"):
        parser.error(f"{args.table} takes no --methods")
    warnings.filterwarnings("ignore")
    frame, path = pd.DataFrame(tables[args.table](args.methods)), ROOT / "docs" / "benchmarks" / f"spatial_{args.table}.csv"
    if args.methods and path.exists():
        earlier = pd.read_csv(path)
        frame = pd.concat([earlier[~earlier["method"].isin(frame["method"])], frame])
    frame.to_csv(path, index=False, float_format="%.6g")
    keys = [name for name in ("data", "molecules", "spots", "method") if name in frame]
    print(frame.drop(columns="seed", errors="ignore").groupby(keys, sort=False).agg(["mean", "std"]).round(5).to_string())


if __name__ == "__main__":
    main()
