"""``tl.spatial``: what it is told, what it refuses, and that each modality is worth something where it should be."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scimpute
from scimpute import _sparse
from scimpute._counts.minibatches import CellBatches, Context
from scimpute._counts.molecules import MoleculeSplit
from scimpute._counts.partition import Partition
from scimpute._save import load_model, save_model
from scimpute._space.features import edge_scale, extents, neighbour_weights, position_features
from scimpute._space.side import SideInformation
from scimpute.models.batch import Batch
from scimpute.models.likelihood import Poisson
from scimpute.models.multimodal import CODE_SIZE, MultimodalGenerator, TileEncoder
from scimpute.models.spatial import SpatialModel

QUICK = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}
KEY = "spatial_imputed"


@pytest.fixture
def tissue() -> ad.AnnData:
    return scimpute.datasets.toy_visium(8, 8, 30)


@pytest.fixture
def sections() -> ad.AnnData:
    return scimpute.datasets.toy_visium(6, 6, 30, n_sections=2)


def run(adata: ad.AnnData, image_key: str | None = None, **changes: Any) -> Any:
    return scimpute.tl.spatial(adata, image_key, **QUICK | changes)


# What is told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, ["counts", "position"]),
        ({"image_key": "hires"}, ["counts", "position", "image"]),
        ({"tile_features": "tiles"}, ["counts", "position", "image"]),
        ({"modalities": "counts"}, ["counts"]),
        ({"modalities": ["image", "counts"], "image_key": "lowres"}, ["counts", "image"]),
        ({"modalities": ["position"], "posterior": False}, ["position"]),
        ({"modalities": ["image"], "image_key": "hires", "posterior": False}, ["image"]),
        ({"modalities": ["image", "position"], "tile_features": "tiles", "posterior": False, "spatial_weight": 0.1}, ["position", "image"]),
        ({"image_key": "hires", "edge_weight": "image", "modalities": ["counts"]}, ["counts"]),
    ],
    ids=str,
)
def test_any_of_the_modalities(tissue, fingerprint, arguments, told):
    scimpute.pp.tiles(tissue)
    before = fingerprint(tissue)
    run(tissue, **arguments)
    after = fingerprint(tissue)
    assert set(after) - set(before) == {f"layers/{KEY}", f"layers/{KEY}_sd", f"uns/{KEY}"}
    assert {name: after[name] for name in before} == before
    table = tissue.uns[KEY]["contribution"]
    assert list(table.index) == told == tissue.uns[KEY]["params"]["modalities"]
    assert table["weight"].sum() == pytest.approx(1)
    assert np.isfinite(tissue.layers[KEY]).all()
    assert (tissue.layers[KEY] >= 0).all()


@pytest.mark.parametrize("modalities", [["position"], ["image"], ["position", "image"]], ids=str)
def test_without_counts_the_counts_of_the_spot_say_nothing(tissue, modalities):
    """Two spots at the same place with the same image get the same rate, whatever was counted there."""
    scimpute.pp.tiles(tissue)
    tissue.obsm["spatial"][1] = tissue.obsm["spatial"][0]
    tissue.obsm["tiles"][1] = tissue.obsm["tiles"][0]
    picture = {"tile_features": "tiles"} if "image" in modalities else {}
    run(tissue, modalities=modalities, posterior=False, output="rate", max_epochs=10, **picture)
    np.testing.assert_allclose(tissue.layers[KEY][0], tissue.layers[KEY][1], rtol=1e-4)
    assert not np.allclose(tissue.layers[KEY][0], tissue.layers[KEY][-1], rtol=1e-3)


def test_neighbours_are_of_the_own_section(sections, monkeypatch):
    seen: list[SideInformation] = []
    prepare = MoleculeSplit.prepare
    monkeypatch.setattr(MoleculeSplit, "prepare", lambda *args: seen.append(args[-1]) or prepare(*args))
    run(sections, library_key="section", spatial_weight=0.1)
    codes = sections.obs["section"].cat.codes.to_numpy()
    assert len(seen[0].rings) == 2
    for ring in seen[0].rings:
        ring = ring.tocoo()
        assert ring.nnz
        assert (codes[ring.row] == codes[ring.col]).all()
    assert sections.uns[KEY]["conditioned_on"]["library_key"]["column"] == "section"
    assert "spatial_connectivities" not in sections.obsp, "made and not kept"


def test_the_graph_of_the_object_is_used(tissue):
    nobody = tissue.copy()
    nobody.obsp["spatial_connectivities"] = sp.csr_matrix((tissue.n_obs, tissue.n_obs))
    for adata in (nobody, tissue):
        run(adata, modalities="counts")
    blind = tissue.copy()
    run(blind, modalities="counts", ring_weights=())
    assert not np.array_equal(nobody.layers[KEY], tissue.layers[KEY])
    assert np.isfinite(nobody.layers[KEY]).all()


def test_the_spatial_contribution_smooths(tissue):
    scimpute.pp.spatial_rings(tissue)
    apart = []
    for weight in (0.0, 30.0):
        run(tissue, spatial_weight=weight, posterior=False, output="rate", max_epochs=30)
        rate = np.log(tissue.layers[KEY])
        ring = neighbour_weights(tissue.obsp["spatial_connectivities"], None)
        apart.append(np.square(rate - ring @ rate).mean() / rate.var(axis=0).mean())
        assert ("spatial" in tissue.uns[KEY]["history"]) == (weight > 0)
    assert apart[1] < 0.9 * apart[0]


# The parts


def test_two_draws_estimate_the_distance_from_the_mean():
    rng = np.random.default_rng(0)
    ring = neighbour_weights(sp.random(30, 30, 0.2, random_state=0, format="csr"), None)
    ring.data = rng.random(ring.nnz)
    ring = (sp.diags(1 / np.maximum(np.asarray(ring.sum(1)).ravel(), 1e-12)) @ ring).tocsr()
    side = SideInformation(("counts",), {}, [ring], (1.0,), 1.0)
    y = rng.normal(size=30)
    rows = np.arange(30)
    total = np.zeros(30)
    for _ in range(20_000):
        one, other = side.draw_neighbours(rows, rng)[0]
        total += (y - y[one]) * (y - y[other])
    has = np.diff(ring.indptr) > 0
    np.testing.assert_allclose(total / 20_000, np.where(has, np.square(y - ring @ y), 0), atol=0.05)


def test_a_spot_without_neighbours_gets_itself():
    ring = sp.csr_matrix(([1.0], ([0], [2])), shape=(4, 4))
    found = SideInformation((), {}, [ring], (1.0,), 1.0).draw_neighbours(np.array([3, 0, 1]), np.random.default_rng(0))
    np.testing.assert_array_equal(found, [[[3, 2, 1], [3, 2, 1]]])


def test_scores_of_a_ring_are_of_its_molecules_together():
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(2.0, (5, 7)).astype(np.float32))
    size = np.asarray(counts.sum(1)).ravel()
    ring = neighbour_weights(sp.csr_matrix(np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0] * 5], float)), None)
    loadings = rng.normal(size=(7, 3)).astype(np.float32)
    found = SideInformation(("counts",), {}, [ring], (1.0,), 0.0).neighbour_scores(counts, size, loadings)
    pooled = (counts.toarray()[1] + counts.toarray()[2]) / (size[1] + size[2]) * 1e4
    np.testing.assert_allclose(found[0], np.sqrt(pooled).astype(np.float32) @ loadings, rtol=1e-5)
    assert (found[3] == 0).all()


def test_positions_are_of_the_section_and_know_no_unit():
    rng = np.random.default_rng(2)
    xy, codes = rng.random((20, 2)), np.repeat([0, 1], 10)

    def scaled(xy: np.ndarray, known: np.ndarray) -> np.ndarray:
        return position_features(xy, extents(xy, codes)[codes], known, 2)

    found = scaled(xy, codes)
    moved = xy.copy()
    moved[codes == 1] = 40 * moved[codes == 1] + 1000
    np.testing.assert_allclose(scaled(moved, codes), found, atol=1e-5)
    assert np.abs(found).max() <= 1.0001
    np.testing.assert_array_equal(found[:, -2:], np.eye(2)[codes])
    assert (scaled(xy, np.full(20, -1))[:, -2:] == 0).all()


def test_neighbours_that_look_alike_count_more():
    ring = sp.csr_matrix(np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]], float))
    weights = neighbour_weights(ring, np.array([[0.0], [0.1], [3.0]]))
    assert weights[0, 1] > 0.8
    np.testing.assert_allclose(np.asarray(weights.sum(1)).ravel(), 1)


def test_how_far_neighbours_are_apart_may_be_that_of_other_spots():
    ring = sp.csr_matrix(np.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], float))
    likeness = np.array([[0.0], [1.0], [2.0], [5.0]])
    assert edge_scale(ring, likeness) == np.median([1, 4, 1, 4, 9, 9])
    weights = neighbour_weights(ring, likeness, 3.0).toarray()
    np.testing.assert_allclose(weights[0, 2] / weights[0, 1], np.exp(-(4 - 1) / 3), rtol=1e-6)
    np.testing.assert_allclose(neighbour_weights(ring[:3, :3], likeness[:3], 3.0).toarray()[0], weights[0, :3], rtol=1e-6)
    assert edge_scale(ring, np.zeros((4, 1))) == edge_scale(sp.csr_matrix((4, 4)), likeness) == 1


def test_a_spot_like_none_of_its_neighbours_keeps_them():
    ring = sp.csr_matrix(np.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], float))
    weights = neighbour_weights(ring, np.array([[1e4], [0.0], [0.1], [0.2]]))
    np.testing.assert_allclose(np.asarray(weights.sum(1)).ravel(), 1, rtol=1e-6)
    alike = neighbour_weights(ring, np.zeros((4, 3)))
    np.testing.assert_allclose(alike.toarray()[0], [0, 0.5, 0.5, 0])


def test_scores_do_not_depend_on_the_chunks(replace_everywhere):
    rng = np.random.default_rng(4)
    counts = sp.csr_matrix(rng.poisson(0.5, (23, 9)).astype(np.float32))
    ring = neighbour_weights(sp.random(23, 23, 0.2, random_state=1, format="csr"), None)
    side = SideInformation(("counts",), {}, [ring, ring @ ring], (1.0, 0.5), 0.0)
    arguments = counts, np.asarray(counts.sum(1)).ravel(), rng.normal(size=(9, 2)).astype(np.float32)
    whole = side.neighbour_scores(*arguments)
    original = _sparse.chunks
    replace_everywhere(original, lambda n, width: original(n, width, 3 * width))
    np.testing.assert_allclose(side.neighbour_scores(*arguments), whole, rtol=1e-5)


def modal(features: dict[str, tuple[int, ...]], levels: tuple[int, ...] = ()) -> MultimodalGenerator:
    start, rng = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    return MultimodalGenerator(2, 6, 4, levels, features, torch.zeros(2, 1, 6), start, rng, width=8)


def test_the_code_of_a_modality_that_is_left_out_does_not_matter():
    generator = modal({"counts": (3,), "position": (5,), "image": (3, 16, 16)}).eval()
    torch.nn.init.normal_(generator.inner.output.weight)
    rng = torch.Generator().manual_seed(2)
    inputs, features = torch.randn(2, 9, 10, generator=rng), [torch.randn(9, 3, generator=rng), torch.randn(9, 5, generator=rng)]
    tiles = [torch.randint(0, 255, (9, 3, 16, 16), generator=rng, dtype=torch.uint8) for _ in range(2)]
    inputs[1, :, 6:] = inputs[0, :, 6:]
    with torch.no_grad():
        whole = [generator(inputs, (), [*features, tile]) for tile in tiles]
        assert not torch.allclose(*whole)
        with generator.without("image"):
            torch.testing.assert_close(*[generator(inputs, (), [*features, tile]) for tile in tiles])
        with generator.without("counts"):
            other = generator(torch.randn(2, 9, 10, generator=rng), (), [torch.randn(9, 3, generator=rng), features[1], tiles[0]])
            torch.testing.assert_close(generator(inputs, (), [*features, tiles[0]]), other)
        torch.testing.assert_close(generator(inputs, (), [*features, tiles[0]]), whole[0])


def test_start_of_the_layers_does_not_touch_the_global_generator():
    state = torch.get_rng_state()
    first, second = (TileEncoder(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    tiles = torch.randint(0, 255, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(tiles), second(tiles))
    assert first(tiles).shape == (2, CODE_SIZE)


def test_a_spot_without_neighbours_has_no_spatial_loss():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(3.0, (12, 6)).astype(np.float32))
    size = np.asarray(counts.sum(1)).ravel()
    ring = sp.csr_matrix(([1.0, 1.0], ([2, 5], [5, 2])), shape=(12, 12))
    side = SideInformation(("counts",), {}, [ring], (1.0,), 1.0)
    partition = Partition(np.arange(6), np.arange(6), 1, 6)
    batches = CellBatches(counts, size, (), partition, Context.fit(counts, size, 2, 0), torch.device("cpu"), side)
    batch = batches.thinned(np.array([1, 2, 5, 7, 0, 3, 4, 6]), rng)
    assert batch.inputs.shape[1] == 8 + 2 * 2
    assert batch.neighbours.tolist() == [[[0, 9], [0, 11]]]


def test_spatial_loss_by_hand():
    generator = modal({"counts": (0,)}).eval()
    torch.nn.init.normal_(generator.inner.output.weight)
    share = torch.rand(2, 1, 6)
    module = SpatialModel(generator, Poisson(), penalty=0.0, spatial_weight=2.0, share=share)
    # Three spots, then two neighbours of each of the first two, in one ring.
    inputs = torch.randn(2, 7, 10)
    nothing = torch.zeros(0)
    features = (torch.zeros(7, 0),)
    batch = Batch(inputs, (), nothing.long(), nothing, torch.ones(3), features, torch.tensor([[[3, 4], [5, 6]]]), (0.5,))
    (_, loss), *_ = module.losses(batch)
    with torch.no_grad():
        y = generator(inputs, (), features)
        expected = sum((share * (y[:, [i]] - y[:, [3 + i]]) * (y[:, [i]] - y[:, [5 + i]])).sum() for i in range(2)) / 2
        poisson = y[:, :3].clamp(max=0).exp().sum() / 3
    torch.testing.assert_close(loss.detach(), poisson + 2.0 * 0.5 * expected)


# It learns


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_modality_beats_the_gene_mean_and_all_together_are_best(seed):
    adata = scimpute.datasets.toy_visium(16, 14, 60, depth=150, random_state=seed)
    scimpute.pp.thin(adata, random_state=seed)
    scimpute.pp.tiles(adata)
    options = {"layer": "thin_train", "n_repeats": 1, "n_context": 10, "width": 32, "penalty": 30.0, "max_epochs": 40, "posterior": False}
    runs = {"position": {"modalities": "position"}, "image": {"modalities": "image", "tile_features": "tiles"}}
    runs |= {"counts": {"modalities": "counts", "ring_weights": ()}, "all": {"tile_features": "tiles"}}
    for name, arguments in runs.items():
        scimpute.tl.spatial(adata, key_added=name, progress=False, random_state=seed, **options | arguments)
    scores = scimpute.metrics.heldout(adata, list(runs))["poisson"]
    assert (scores[["position", "image", "counts"]] < scores["gene_mean"]).all()
    assert scores["all"] < scores[["position", "image", "counts"]].min()
    assert (adata.uns["all"]["contribution"]["contribution"] > 0).all()


# Saved models


APPLIED = [
    {},
    {"image_key": "hires", "edge_weight": "image"},
    {"tile_features": "tiles", "output": "log1p"},
    {"modalities": ["image", "position"], "image_key": "lowres", "posterior": False},
]


@pytest.mark.parametrize("arguments", APPLIED, ids=str)
def test_applied_to_the_spots_of_the_training(sections, tmp_path, arguments):
    scimpute.pp.tiles(sections, library_key="section")
    path = tmp_path / "model.safetensors"
    run(sections, library_key="section", save=path, n_repeats=2, **arguments)
    scimpute.tl.apply(sections, path, key_added="again")
    for suffix in ("", "_sd"):
        np.testing.assert_allclose(sections.layers["again" + suffix], sections.layers[KEY + suffix], rtol=1e-5)
    wanted = sections.uns[KEY]["params"] | {"device": "cpu"}
    assert wanted.items() <= sections.uns["again"]["params"].items()


def of_nearly_one_size(adata: ad.AnnData) -> ad.AnnData:
    """Spots of two sections that are 11.2 and 10.4 pixels wide: tiles of both get 11, of the latter alone they would get 10."""
    for entry, diameter in zip(adata.uns["spatial"].values(), (11.2, 10.4)):
        factors = entry["scalefactors"]
        factors["spot_diameter_fullres"] = diameter / factors["tissue_hires_scalef"]
    return adata


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_key": "hires"},
        {"image_key": "hires", "edge_weight": "image", "modalities": "counts"},
        {"tile_features": "tiles", "edge_weight": "image"},
    ],
    ids=str,
)
def test_applied_to_a_section_of_the_training_gives_what_the_training_gave(sections, tmp_path, arguments):
    of_nearly_one_size(sections)
    # Colours that differ between the sections, and so do their moments and how far neighbours are apart.
    dark = sections.uns["spatial"]["section1"]["images"]
    dark["hires"] = (dark["hires"] * 0.4).astype(dark["hires"].dtype)
    scimpute.pp.tiles(sections, library_key="section")
    path = tmp_path / "model.safetensors"
    run(sections, library_key="section", save=path, max_epochs=20, posterior=False, **arguments)
    for name in sections.obs["section"].cat.categories:
        part = sections[sections.obs["section"] == name].copy()
        scimpute.tl.apply(part, path, key_added="again")
        np.testing.assert_allclose(part.layers["again"], part.layers[KEY], rtol=1e-5)


def test_applied_to_a_new_section(tmp_path):
    adata = scimpute.datasets.toy_visium(10, 10, 60, n_sections=3, depth=300)
    names = list(adata.obs["section"].cat.categories)
    new = (adata.obs["section"] == names[-1]).to_numpy()
    train, query = adata[~new].copy(), adata[new].copy()
    train.uns["spatial"] = {name: adata.uns["spatial"][name] for name in names[:-1]}
    query.uns["spatial"] = {names[-1]: adata.uns["spatial"][names[-1]]}
    path = tmp_path / "model.safetensors"
    scimpute.tl.spatial(train, "hires", library_key="section", max_epochs=30, n_repeats=1, save=path, progress=False)
    scimpute.pp.thin(query)
    with pytest.raises(ValueError, match="the model does not know"):
        scimpute.tl.apply(query, path, layer="thin_train")
    scimpute.tl.apply(query, path, layer="thin_train", unseen="average")
    scores = scimpute.metrics.heldout(query, KEY)["poisson"]
    assert scores[KEY] < scores["gene_mean"]


def test_applied_to_some_spots_of_a_section_that_is_known(sections, tmp_path):
    path = tmp_path / "model.safetensors"
    run(sections, library_key="section", modalities="position", save=path, max_epochs=20)
    some = sections[np.r_[0:10, 40:60]].copy()
    scimpute.tl.apply(some, path, key_added="again")
    expected = sections[some.obs_names].layers[KEY]
    np.testing.assert_allclose(some.layers["again"], expected, rtol=1e-4)
    assert np.ptp(np.log(expected), axis=0).max() > 0.01


def test_applied_to_another_slide_of_the_same_name(sections, tmp_path):
    path = tmp_path / "model.safetensors"
    run(sections, library_key="section", modalities="position", save=path, max_epochs=20)
    expected = sections.layers[KEY].copy()
    sections.obsm["spatial"] = sections.obsm["spatial"] * 10
    with pytest.warns(UserWarning, match="scaled to the section's own extent") as caught:
        scimpute.tl.apply(sections, path)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(sections.layers[KEY], expected, rtol=1e-4)
    sections.obsm["spatial"] = np.column_stack([sections.obsm["spatial"], np.zeros(sections.n_obs)])
    with pytest.raises(ValueError, match="has 3 columns, the model was trained with 2"):
        scimpute.tl.apply(sections, path)


def test_applied_without_the_column_of_the_only_section(tissue, tmp_path):
    path = tmp_path / "model.safetensors"
    run(tissue, library_key="section", save=path)
    del tissue.obs["section"]
    scimpute.tl.apply(tissue, path, key_added="again")
    np.testing.assert_allclose(tissue.layers["again"], tissue.layers[KEY], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tile_moments", {"tile_features": "tiles"}),
        ("extents", {"tile_features": "tiles"}),
        ("tile_size", {"image_key": "hires"}),
        ("colour_moments", {"image_key": "hires", "edge_weight": "image"}),
        ("edge_scales", {"image_key": "hires", "edge_weight": "image"}),
    ],
)
def test_applied_from_a_file_that_lacks_a_part(tissue, tmp_path, name, arguments):
    scimpute.pp.tiles(tissue)
    path = tmp_path / "model.safetensors"
    run(tissue, save=path, **arguments)
    tensors, metadata = load_model(path)
    del tensors[name]
    save_model(path, tensors, metadata)
    with pytest.raises(ValueError, match=f"not hold a whole model of tl.spatial.*{name}"):
        scimpute.tl.apply(tissue, path)


def test_neighbours_are_looked_at_once_for_all_repeats(tissue, monkeypatch):
    looked: list[sp.csr_matrix] = []
    scores = SideInformation.neighbour_scores
    monkeypatch.setattr(
        SideInformation, "neighbour_scores", lambda self, counts, *rest: looked.append(counts) or scores(self, counts, *rest)
    )
    run(tissue, n_repeats=3)
    assert len(looked) == 2  # the training part, and the whole


def test_applied_with_other_features(tissue, tmp_path, fingerprint):
    scimpute.pp.tiles(tissue)
    path = tmp_path / "model.safetensors"
    run(tissue, tile_features="tiles", save=path)
    tissue.obsm["tiles"] = tissue.obsm["tiles"][:, :7]
    before = fingerprint(tissue)
    with pytest.raises(ValueError, match="has 7 features, the model was trained on 36"):
        scimpute.tl.apply(tissue, path)
    assert fingerprint(tissue) == before


# Faults


def without(*names: str) -> Any:
    def edit(adata: ad.AnnData) -> None:
        for name in names:
            slot, key = name.split("/")
            del getattr(adata, slot)[key]

    return edit


def nan_features(adata: ad.AnnData) -> None:
    adata.obsm["tiles"] = np.full((adata.n_obs, 2), np.nan)


def nan_position(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][3, 0] = np.nan


REFUSED = {
    "45-no positions": (without("obsm/spatial"), {}, KeyError, r"obsm key 'spatial' not found"),
    "46-nan position": (nan_position, {}, ValueError, "NaN or infinite for 1 spots"),
    "53-no image": (without("uns/spatial"), {"image_key": "hires"}, KeyError, "spatial"),
    "53-no such image": (None, {"image_key": "huge"}, KeyError, "'huge'.*hires"),
    "69-two images": (None, {"image_key": "hires", "tile_features": "tiles"}, ValueError, "two sources of the image"),
    "69-image not used": (None, {"image_key": "hires", "modalities": ["counts"]}, ValueError, "'image' is not among the modalities"),
    "image asked for": (None, {"modalities": ["image"]}, ValueError, "need an image: pass image_key, or tile_features"),
    "edges by no image": (None, {"edge_weight": "image", "modalities": ["counts"]}, ValueError, "need an image"),
    "no features": (None, {"tile_features": "tiles"}, KeyError, r"tile_features: obsm key 'tiles' not found"),
    "features NaN": (nan_features, {"tile_features": "tiles"}, ValueError, r"obsm\['tiles'\] is NaN or infinite for 64 spots"),
    "65-modality": (None, {"modalities": ["smell"]}, ValueError, "modalities must be one of"),
    "no modality": (None, {"modalities": []}, ValueError, "must name some of"),
    "twice": (None, {"modalities": ["counts", "counts"]}, ValueError, "each once"),
    "posterior of no kind": (None, {"posterior": "False"}, TypeError, "posterior"),
    "edges of nobody": (
        None,
        {"modalities": "image", "image_key": "hires", "edge_weight": "image", "posterior": False},
        ValueError,
        "use none",
    ),
    "no names": (None, {"modalities": 5}, TypeError, "modalities must be a name or several"),
    "posterior of nothing": (None, {"modalities": ["position"], "posterior": True}, ValueError, "pass posterior=False"),
    "rings": (None, {"ring_weights": 1.0}, TypeError, "sequence of numbers"),
    "negative ring": (None, {"ring_weights": (1.0, -1.0)}, ValueError, "ring_weights"),
    "smooth with nobody": (None, {"ring_weights": (), "spatial_weight": 1.0}, ValueError, "ring_weights has none"),
    "negative weight": (None, {"spatial_weight": -1.0}, ValueError, "spatial_weight"),
    "66-key of the images": (None, {"key_added": "spatial"}, ValueError, "holds the images"),
    "35-library": (None, {"library_key": "nope"}, KeyError, "'nope'"),
    "6-few spots": (lambda a: a[:9].copy(), {}, ValueError, "at least 10 spots, got 9"),
    "17-negative": (lambda a: a.X.data.__setitem__(0, -1.0), {}, ValueError, "negative"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused(tissue, edited, refused, row):
    edit, arguments, error, message = REFUSED[row]
    adata = edited(tissue, edit)
    refused(adata, lambda a: run(a, **arguments), error, message)


def test_50_several_sections_without_a_key_warn_once(sections):
    sections.obs["array_row"] += 100 * sections.obs["section"].cat.codes.to_numpy()
    with pytest.warns(UserWarning, match="without library_key all spots are read as one section") as caught:
        run(sections, modalities="counts")
    assert len(caught) == 1


def test_48_all_at_one_place(tissue):
    tissue.obsm["spatial"][:] = 5
    for name in ("array_row", "array_col"):
        del tissue.obs[name]
    with pytest.warns(UserWarning, match="63 of 64 spots have the same position"):
        run(tissue)
    assert np.isfinite(tissue.layers[KEY]).all()


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True], ["0", "1"]], ids=str)
def test_spots_off_the_tissue(values, tmp_path):
    tissue = scimpute.datasets.toy_visium(6, 6, 20)
    tissue.obs["in_tissue"] = np.array(values)[(np.arange(36) >= 6).astype(int)]
    path = tmp_path / "model.safetensors"
    calls = {
        "taken as neighbours": scimpute.pp.spatial_rings,
        "trained on, and are neighbours": lambda a: run(a, save=path),
        "imputed, and are neighbours": lambda a: scimpute.tl.apply(a, path, key_added="again"),
        "trained on, and": lambda a: scimpute.tl.nmf(a, max_epochs=1),
        "trained on. Drop": lambda a: scimpute.tl.began(a, max_epochs=1, n_repeats=1, n_context=2, penalty=1.0),
    }
    for said, call in calls.items():
        with pytest.warns(
            UserWarning, match=rf"6 of 36 spots are not on the tissue \(obs\['in_tissue'\] is {values[0]}\).*{said}"
        ) as caught:
            call(tissue)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    how = str(caught[0].message).split("first: adata = ")[1]
    assert len(eval(how, {"adata": tissue})) == 30
    scimpute.pp.spatial_rings(tissue[6:].copy())


@pytest.mark.parametrize("arguments", [{}, {"likelihood": "squared"}, {"spatial_weight": 0.1, "modalities": "counts"}], ids=str)
def test_some_genes(tissue, tmp_path, arguments):
    """All genes inform what is told of a spot; a saved model gives the same genes."""
    path = tmp_path / "model.safetensors"
    run(tissue, genes=["gene7", "gene3"], save=path, **arguments)
    assert KEY not in tissue.layers
    assert list(tissue.obsm[KEY].columns) == list(tissue.obsm[f"{KEY}_sd"].columns) == ["gene7", "gene3"]
    assert tissue.uns[KEY]["params"]["genes"] == ["gene7", "gene3"]
    assert len(tissue.uns[KEY]["inverse_dispersion"]) == 2
    counts = tissue[:, ["gene7", "gene3"]].X.toarray()
    assert np.corrcoef(tissue.obsm[KEY].to_numpy().ravel(), counts.ravel())[0, 1] > 0.3
    scimpute.tl.apply(tissue, path, key_added="again")
    np.testing.assert_allclose(tissue.obsm["again"], tissue.obsm[KEY], rtol=1e-4, atol=1e-4)
    changed = tissue.copy()
    changed.X = sp.csr_matrix(np.where(np.arange(30) == 20, changed.X.toarray()[::-1], changed.X.toarray()))
    run(changed, genes=["gene7", "gene3"], **arguments)
    assert not np.array_equal(changed.obsm[KEY], tissue.obsm[KEY])
