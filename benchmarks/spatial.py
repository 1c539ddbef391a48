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
from peers import knn, magic, svd

import scimpute

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
SHALLOW = 300
ALL = ["counts", "position", "image"]


def load(name: str, depth: int | None = None, seed: int = 0) -> ad.AnnData:
    """A data set, its molecules thinned to ``depth`` a spot where one is given, with the rings of neighbours."""
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


# Baselines and peers: each takes an object with counts in X and gives counts


def size_of(adata: ad.AnnData) -> np.ndarray:
    return np.maximum(np.asarray(adata.X.sum(axis=1)).ravel(), 1)[:, None]


def gene_share(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.sum(axis=0)).ravel() / adata.X.sum()


def section_mean(adata: ad.AnnData) -> np.ndarray:
    total = pd.get_dummies(adata.obs["section"]).to_numpy(float)
    share = total.T @ adata.X
    return (total @ (share / share.sum(axis=1, keepdims=True))) * size_of(adata)


def neighbour_mean(adata: ad.AnnData, shrink: float = 0.0) -> np.ndarray:
    """Molecules of the neighbours together, and ``shrink`` molecules as all spots have them."""
    near = (adata.obsp["spatial_connectivities"] @ adata.X).toarray() + shrink * gene_share(adata)
    near[near.sum(axis=1) == 0] = gene_share(adata)
    return near / near.sum(axis=1, keepdims=True) * size_of(adata)


def shrunken_neighbour_mean(adata: ad.AnnData) -> np.ndarray:
    """The same with the spot itself, shrunk by the number of molecules that predicts a tenth of them best."""
    inner = adata.copy()
    inner.obsp["spatial_connectivities"] = (adata.obsp["spatial_connectivities"] + sp.eye(adata.n_obs)).tocsr()
    scimpute.pp.thin(inner, key_added="inner")
    inner.X = inner.layers["inner_train"]
    grid = (300, 1000, 3000, 10_000, 30_000, 100_000)
    for shrink in grid:
        inner.layers[str(shrink)] = neighbour_mean(inner, shrink).astype(np.float32)
    scores = scimpute.metrics.heldout(inner, [str(shrink) for shrink in grid], key="inner")["poisson"]
    inner.X = adata.X
    return neighbour_mean(inner, float(min(grid, key=lambda shrink: scores[str(shrink)])))


def began(adata: ad.AnnData, seed: int) -> np.ndarray:
    key = "section" if len(adata.obs["section"].cat.categories) > 1 else None
    return scimpute.tl.began(adata, batch_key=key, random_state=seed, copy=True).layers["began"]


def nmf(**options) -> Callable[[ad.AnnData, int], np.ndarray]:
    return lambda adata, seed: scimpute.tl.nmf(adata, library_key="section", random_state=seed, copy=True, **options).layers["nmf"]


def spatial(modalities: list[str], **options) -> Callable[[ad.AnnData, int], np.ndarray]:
    image = {"image_key": "hires"} if "image" in modalities else {}

    def impute(adata: ad.AnnData, seed: int) -> np.ndarray:
        told = {"modalities": modalities, "library_key": "section", "random_state": seed, "key_added": "found", "copy": True}
        return scimpute.tl.spatial(adata, **image, **told, **options).layers["found"]

    return impute


PEERS: dict[str, Callable[[ad.AnnData], np.ndarray]] = {
    "gene mean": lambda adata: gene_share(adata) * size_of(adata),
    "section mean": section_mean,
    "neighbour mean": neighbour_mean,
    "neighbour mean, shrunk": shrunken_neighbour_mean,
    "SVD": svd,
    "kNN": knn,
    "MAGIC (linear)": magic,
}
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
                    found = PEERS[method](work) if method in PEERS else OURS[method](work, seed)
                    adata.layers["found"] = np.asarray(found, dtype=np.float32)
                    score = scimpute.metrics.heldout(adata, "found").loc["found", "poisson"]
                    rows.append({"data": name, "molecules": depth or "all", "method": method, "seed": seed, "poisson": score})
                    print(rows[-1], flush=True)
    return rows


# Half of the non-zero entries hidden: zeros are missing


def of_non_zeros(adata: ad.AnnData, group: np.ndarray) -> np.ndarray:
    """Mean of the visible non-zero counts of the gene in the group; of all groups where there is none."""
    member = pd.get_dummies(group).to_numpy(float)
    total, number = member.T @ adata.X, member.T @ (adata.X > 0)
    overall = np.asarray(adata.X.sum(axis=0)).ravel() / np.maximum(adata.X.getnnz(axis=0), 1)
    return member @ np.where(number > 0, total / np.maximum(number, 1), overall)


def neighbours_at_depth(adata: ad.AnnData) -> np.ndarray:
    """Mean of the neighbours' visible non-zero shares times the depth; the gene's mean where none has any."""
    share = sp.diags(1 / size_of(adata)[:, 0]) @ adata.X
    near = adata.obsp["spatial_connectivities"]
    total, number = (near @ share).toarray(), (near @ (adata.X > 0).astype(float)).toarray()
    return np.where(number > 0, total / np.maximum(number, 1) * size_of(adata), of_non_zeros(adata, np.zeros(adata.n_obs)))


def ridge(adata: ad.AnnData) -> np.ndarray:
    """Logs of the visible non-zero counts of each gene on tile features, position, section and depth; strength by hidden entries."""
    from scimpute import _side

    work = adata.copy()
    scimpute.pp.tiles(work, library_key="section")
    tiles = work.obsm["tiles"]
    codes = adata.obs["section"].cat.codes.to_numpy().astype(np.int64)
    coordinates = np.asarray(adata.obsm["spatial"], float)
    places = _side.positions(coordinates, _side.extents(coordinates, codes)[codes], codes, int(codes.max()) + 1)
    depth = np.log(size_of(adata) / np.median(size_of(adata)))
    features = np.column_stack([np.ones(adata.n_obs), _side.standardised(tiles, _side.moments(tiles)), places, depth]).astype(float)

    def fit(visible: np.ndarray, strength: float) -> np.ndarray:
        seen, logs = (visible > 0).astype(float), np.log(np.maximum(visible, 1))
        mean = (seen * logs).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        prior = strength * np.eye(features.shape[1])
        prior[0, 0] = 1e-6
        out = np.empty_like(visible, dtype=float)
        for gene, rows in enumerate(seen.T.astype(bool)):
            x = features[rows]
            out[:, gene] = features @ np.linalg.solve(x.T @ x + prior, x.T @ (logs[rows, gene] - mean[gene])) + mean[gene]
        return np.exp(out)

    visible = adata.X.toarray()
    aside = (visible > 0) & (np.random.default_rng(0).random(visible.shape) < 0.1)
    errors = {}
    for strength in (3.0, 10.0, 30.0, 100.0):
        found = fit(np.where(aside, 0, visible), strength)
        errors[strength] = np.square(np.log(found[aside]) - np.log(visible[aside])).mean()
    return fit(visible, min(errors, key=lambda strength: errors[strength]))


SQUARED = {"likelihood": "squared"}
PEERS_OF_HIDDEN: dict[str, Callable[[ad.AnnData], np.ndarray]] = {
    "gene mean": lambda adata: of_non_zeros(adata, np.zeros(adata.n_obs)),
    "section mean": lambda adata: of_non_zeros(adata, adata.obs["section"].to_numpy()),
    "neighbour mean x depth": neighbours_at_depth,
    "ridge on image, position, section, depth": ridge,
}
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
            found = PEERS_OF_HIDDEN[method](work) if method in PEERS_OF_HIDDEN else OURS_OF_HIDDEN[method](work, seed)
            adata.layers["found"] = np.asarray(found, dtype=np.float32)
            score = scimpute.metrics.recovery(adata, "found").loc["found"]
            rows.append({"method": method, "seed": seed, **{name: score[name] for name in ("rmse", "rmse_log1p_cp10k")}})
            print(rows[-1], flush=True)
    return rows


def clusters(methods: list[str]) -> list[dict]:
    rows = []
    adata = load("mob_layers")
    asked = {"method": ["kmeans", "leiden"], "unlabelled": "unannotated"}
    of_rate = {
        f"{name}, posterior=False": lambda adata, seed, make=make: make(posterior=False)(adata, seed)
        for name, make in {"tl.nmf": nmf, "tl.spatial, counts + position": lambda **options: spatial(ALL[:2], **options)}.items()
    }
    peers = {name: PEERS[name] for name in ("neighbour mean", "SVD", "kNN", "MAGIC (linear)")}
    ours = {name: OURS[name] for name in OURS if "image" not in name} | of_rate
    for seed in range(3):
        for method in methods or [*peers, *ours]:
            found = peers[method](adata) if method in peers else ours[method](adata, seed)
            adata.layers["scored"] = np.asarray(found, dtype=np.float32)
            scores = scimpute.metrics.cluster_agreement(adata, "scored", "layer", random_state=seed, **asked)
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
    asked = parser.parse_args()
    if asked.methods and asked.table in ("speed", "growth"):
        parser.error(f"{asked.table} takes no --methods")
    warnings.filterwarnings("ignore")
    frame, path = pd.DataFrame(tables[asked.table](asked.methods)), ROOT / "docs" / "benchmarks" / f"spatial_{asked.table}.csv"
    if asked.methods and path.exists():
        earlier = pd.read_csv(path)
        frame = pd.concat([earlier[~earlier["method"].isin(frame["method"])], frame])
    frame.to_csv(path, index=False, float_format="%.6g")
    keys = [name for name in ("data", "molecules", "spots", "method") if name in frame]
    print(frame.drop(columns="seed", errors="ignore").groupby(keys, sort=False).agg(["mean", "std"]).round(5).to_string())


if __name__ == "__main__":
    main()
