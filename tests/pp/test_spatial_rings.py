"""Rings of neighbours of an object, and reading positions, sections and graphs."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scimpute import _anndata, _space, datasets, pp, tl
from scimpute._anndata.sections import read_sections
from scimpute._anndata.space import read_rings

DATA = Path(os.environ.get("SCIMPUTE_DATA", Path(__file__).parents[3] / "shared" / "data"))
WRITTEN = {"obsp/spatial_connectivities", "obsp/spatial_distances", "obsp/spatial_ring2", "uns/spatial_neighbors", "uns/spatial_rings"}


@functools.cache
def made(n_sections: int) -> ad.AnnData:
    return datasets.toy_visium(7, 6, 5, n_sections=n_sections)


def visium(n_sections: int = 1) -> ad.AnnData:
    return made(n_sections).copy()


def plain(points: Any) -> ad.AnnData:
    """Nothing but positions."""
    points = np.asarray(points)
    return ad.AnnData(np.ones((len(points), 2), np.float32), obsm={"spatial": points})


def degrees(adata: ad.AnnData, name: str) -> np.ndarray:
    return np.asarray(adata.obsp[name].sum(axis=1)).ravel().astype(int)


def apart(adata: ad.AnnData) -> ad.AnnData:
    """The same with the sections side by side, and without what says where in its array a spot is."""
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1e5 * adata.obs["section"].cat.codes.to_numpy()[:, None]
    for name in ("array_row", "array_col"):
        del adata.obs[name]
    return adata


@pytest.fixture
def sections() -> ad.AnnData:
    """Two sections with something in every slot."""
    adata = visium(2)
    adata.raw = adata.copy()
    adata.obsp["other"] = sp.identity(adata.n_obs, format="csr")
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    return adata


@pytest.fixture
def foreign() -> ad.AnnData:
    """Two sections with somebody else's graph: weighted, directed, with a diagonal, and across the sections."""
    adata = apart(visium(2))
    graph = sp.random(adata.n_obs, adata.n_obs, 0.03, format="csr", random_state=0) + sp.identity(adata.n_obs)
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(graph)
    adata.obsp["spatial_distances"] = adata.obsp["spatial_connectivities"] * 3
    params = {"n_neighbors": 5, "coord_type": "generic", "radius": 2.5}
    adata.uns["spatial_neighbors"] = {"connectivities_key": "spatial_connectivities", "params": params}
    return adata


# What is written


def test_only_the_promised_keys_are_new(sections, fingerprint, states):
    before, state = fingerprint(sections), states()
    assert pp.spatial_rings(sections, library_key="section") is None
    after = fingerprint(sections)
    assert states() == state
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == WRITTEN
    params = {"n_rings": 2, "graph": "own", "library_key": "section", "n_neighs": 6, "coord_type": "grid", "lattice": "hexagonal"}
    assert sections.uns["spatial_rings"] == {"method": "spatial_rings", "params": params, "rings": ["spatial_ring2"]}
    pp.spatial_rings(sections, library_key="section")  # replaces its own
    assert fingerprint(sections) == after


def test_is_written_as_by_squidpy(sections):
    pp.spatial_rings(sections, library_key="section", key_added="near")
    for name, dtype in (("near_connectivities", np.float32), ("near_distances", np.float32), ("near_ring2", np.float32)):
        matrix = sections.obsp[name]
        assert isinstance(matrix, sp.csr_matrix)
        assert matrix.dtype == dtype
        assert matrix.indices.dtype == np.int32
        assert np.all(matrix.data == 1)
    entry = dict(sections.uns["near_neighbors"])
    assert entry.pop("method") == "spatial_rings"
    params = {"coord_type": "grid", "n_neighbors": 6, "n_rings": 1, "delaunay": False, "transform": None}
    assert entry == {"connectivities_key": "near_connectivities", "distances_key": "near_distances", "params": params}
    pp.spatial_rings(sections, library_key="section", coord_type="generic", n_neighs=4)
    assert sections.obsp["spatial_distances"].dtype == np.float64
    assert sections.uns["spatial_neighbors"]["params"] == {"coord_type": "generic", "n_neighbors": 4, "transform": None}
    assert {"near_ring2", "spatial_ring2"} <= set(sections.obsp)


def test_copy(sections, fingerprint):
    before = fingerprint(sections)
    done = pp.spatial_rings(sections, library_key="section", copy=True)
    assert fingerprint(sections) == before
    pp.spatial_rings(sections, library_key="section")
    assert fingerprint(done) == fingerprint(sections)


def test_fewer_rings_the_second_time_leave_none_of_the_first(sections):
    pp.spatial_rings(sections, library_key="section", n_rings=4)
    assert {"spatial_ring2", "spatial_ring3", "spatial_ring4"} <= set(sections.obsp)
    pp.spatial_rings(sections, library_key="section", n_rings=1)
    assert set(sections.obsp) == {"other", "spatial_connectivities", "spatial_distances"}
    assert sections.uns["spatial_rings"]["rings"] == []


@pytest.mark.parametrize("n_rings", [1, 3])
def test_survives_a_file(sections, fingerprint, tmp_path, n_rings):
    pp.spatial_rings(sections, library_key="section", n_rings=n_rings)
    expected = fingerprint(sections)
    sections.write_h5ad(tmp_path / "rings.h5ad")
    again = ad.read_h5ad(tmp_path / "rings.h5ad")
    assert {name: value for name, value in fingerprint(again).items() if "obsp" in name} == {
        name: value for name, value in expected.items() if "obsp" in name
    }
    pp.spatial_rings(again, library_key="section", n_rings=1)  # is known to be ours
    assert "spatial_ring3" not in again.obsp


def test_view_and_backed(sections, fingerprint, tmp_path):
    before = fingerprint(sections)
    view = sections[::2]
    with pytest.warns(ad.ImplicitModificationWarning) as caught:
        pp.spatial_rings(view, library_key="section")
    assert len(caught) == 1
    assert fingerprint(sections) == before
    assert not view.is_view
    sections.write_h5ad(tmp_path / "backed.h5ad")
    backed = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    with pytest.warns(UserWarning, match="in memory only"):
        pp.spatial_rings(backed, library_key="section")
    assert backed.obsp["spatial_ring2"].shape == (84, 84)
    with pytest.raises(ValueError, match="copy=True is not possible"):
        pp.spatial_rings(backed, copy=True)
    backed.file.close()


class Fault(Exception):
    pass


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])
def test_a_failure_at_any_write_changes_nothing(sections, fingerprint, monkeypatch, earlier, error):
    if earlier:
        pp.spatial_rings(sections, library_key="section", n_rings=4)
    before, failures = fingerprint(sections), 0
    slot = type(sections.obsp)
    for nth in range(1, 20):
        calls = iter(range(1, 1000))

        def counted(self, *arguments, original, calls=calls, nth=nth):
            if next(calls) == nth:
                raise error
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            for name in ("__setitem__", "__delitem__"):
                original = getattr(slot, name)
                patch.setattr(slot, name, lambda *arguments, original=original, counted=counted: counted(*arguments, original=original))
            try:
                pp.spatial_rings(sections, library_key="section")
                break
            except error:
                failures += 1
        assert fingerprint(sections) == before
    assert failures == (5 if earlier else 3)


@pytest.mark.parametrize("step", [_space.graph.symmetric, _space.graph.further_rings, _anndata.write.write])
def test_a_failure_on_the_way_changes_nothing(sections, fingerprint, replace_everywhere, step):
    before = fingerprint(sections)

    def fail(*_: Any, **__: Any) -> None:
        raise Fault

    replace_everywhere(step, fail)
    with pytest.raises(Fault):
        pp.spatial_rings(sections, library_key="section")
    assert fingerprint(sections) == before


# Which spots are neighbours


def test_hexagons(sections):
    pp.spatial_rings(sections, library_key="section")
    inside = sections.obs["array_row"].between(2, 4) & sections.obs["array_col"].between(4, 7)
    assert inside.sum() == 12
    assert np.all(degrees(sections, "spatial_connectivities")[inside] == 6)
    assert np.all(degrees(sections, "spatial_ring2")[inside] == 12)
    # In pixels, neighbours are one spacing away, and the second ring is 2 or the square root of 3 of it away.
    xy, section = sections.obsm["spatial"], sections.obs["section"].cat.codes.to_numpy()
    for name, low, high in (("spatial_connectivities", 99, 101), ("spatial_ring2", 172, 201)):
        rows, columns = sections.obsp[name].nonzero()
        assert np.all(section[rows] == section[columns])
        far = np.linalg.norm(xy[rows] - xy[columns], axis=1)
        assert low < far.min() <= far.max() < high


def test_a_hole_has_no_substitute():
    adata = visium()
    hole = int(np.flatnonzero((adata.obs["array_row"] == 3) & (adata.obs["array_col"] == 5))[0])
    pp.spatial_rings(adata)
    beside = adata.obsp["spatial_connectivities"][hole].indices
    left = np.delete(np.arange(adata.n_obs), hole)
    other = adata[left].copy()
    pp.spatial_rings(other)
    lost = degrees(adata, "spatial_connectivities")[left] - degrees(other, "spatial_connectivities")
    assert np.array_equal(left[lost == 1], beside)
    assert lost.sum() == 6


def lattice(rows: int = 6, columns: int = 6, **obs: Any) -> ad.AnnData:
    """A square one, in pixels."""
    array = np.array([(row, column) for row in range(rows) for column in range(columns)])
    adata = plain(array[:, ::-1] * 140.5 + np.random.default_rng(0).normal(0, 3, array.shape))
    adata.obs["array_row"], adata.obs["array_col"] = array.T
    for name, value in obs.items():
        adata.obs[name] = value
    return adata


def interleaved(adata: ad.AnnData, change: Callable[[pd.Series], pd.Series] = lambda values: values) -> ad.AnnData:
    """The second of two joined samples lies between the spots of the first."""
    for name in ("array_row", "array_col"):
        adata.obs[name] = change(adata.obs[name])
    adata.obsm["spatial"] = adata.obsm["spatial"] + np.outer(np.arange(84) >= 42, [7.3, 5.1])
    return adata


def without_array(adata: ad.AnnData) -> ad.AnnData:
    del adata.obs["array_row"]
    return adata


def with_image(adata: ad.AnnData) -> ad.AnnData:
    adata.uns["spatial"] = {"slide": {}}
    return adata


def third_column(adata: ad.AnnData) -> ad.AnnData:
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"], np.zeros(adata.n_obs)])
    return adata


SCATTERED = np.random.default_rng(0).normal(size=(40, 2))


@pytest.mark.parametrize(
    ("make", "coord_type", "found"),
    [
        (visium, None, "hexagonal"),
        (visium, "grid", "hexagonal"),
        (visium, "generic", "none"),
        (lattice, None, "square"),
        (lambda: lattice(array_row=0.5), None, "none"),
        (lambda: lattice(array_row=np.nan), None, "none"),
        (lambda: lattice(array_row="3"), None, "none"),
        (lambda: lattice(array_row=pd.array(np.arange(36) // 6, dtype="Int64"), array_col=np.arange(36) % 6 * 1.0), None, "square"),
        (lambda: lattice(array_row=np.arange(36) // 6 * 2, array_col=np.arange(36) % 6 * 2), None, "square"),
        (lambda: without_array(lattice()), None, "none"),
        (lambda: without_array(lattice()), "grid", "measured"),
        (lambda: with_image(without_array(lattice())), None, "measured"),
        (lambda: without_array(visium()), None, "measured"),
        (lambda: with_image(plain(SCATTERED)), None, "none"),
        (lambda: plain(SCATTERED), "grid", "measured"),
        (lambda: third_column(lattice()), None, "none"),
    ],
)
def test_the_kind_of_coordinates(make, coord_type, found):
    adata = make()
    pp.spatial_rings(adata, coord_type=coord_type)
    params = adata.uns["spatial_rings"]["params"]
    assert params["lattice"] == found
    assert params["coord_type"] == adata.uns["spatial_neighbors"]["params"]["coord_type"] == ("generic" if found == "none" else "grid")


def test_pixels_say_the_same_as_the_array():
    for make, n_neighs in ((visium, 6), (lattice, 4), (lattice, 6), (lattice, 8)):
        by_array, by_pixels = make(), without_array(with_image(make()))
        for adata in (by_array, by_pixels):
            pp.spatial_rings(adata, n_neighs=n_neighs)
        for name in ("spatial_connectivities", "spatial_ring2"):
            assert np.array_equal(by_array.obsp[name].toarray(), by_pixels.obsp[name].toarray())


def test_any_kind_of_positions():
    """Row 47."""
    points = np.random.default_rng(0).integers(0, 1000, (30, 2))
    expected = pp.spatial_rings(plain(points.astype(float)), copy=True).obsp
    adata = plain(points)
    for kind in (
        points,
        points.astype(np.float32),
        points.astype(">f8"),
        np.asfortranarray(points),
        pd.DataFrame(points, adata.obs_names, ["x", "y"]),
    ):
        adata.obsm["spatial"] = kind
        done = pp.spatial_rings(adata, copy=True).obsp
        for name in ("spatial_connectivities", "spatial_ring2"):
            assert np.array_equal(done[name].toarray(), expected[name].toarray())
        np.testing.assert_allclose(done["spatial_distances"].toarray(), expected["spatial_distances"].toarray())
    deep = np.column_stack([points, np.arange(30) * 1e6])
    adata.obsm["spatial"] = deep
    pp.spatial_rings(adata, n_neighs=1)
    assert adata.obsp["spatial_connectivities"][3].indices.tolist() in ([2], [4], [2, 4])


def test_identical_positions():
    """Row 48."""
    adata = plain(np.repeat([[0.0, 0.0], [5.0, 5.0]], 10, axis=0))
    with pytest.warns(UserWarning, match="18 of 20 spots have the same position.*No column of obs tells them apart"):
        pp.spatial_rings(adata, n_neighs=4)
    graph = adata.obsp["spatial_connectivities"]
    assert graph.diagonal().sum() == 0
    assert degrees(adata, "spatial_connectivities").min() >= 4
    assert np.all(np.isfinite(adata.obsp["spatial_distances"].data))


# Sections, rows 49 and 50


def test_small_sections_are_capped_with_one_warning():
    adata = plain(np.random.default_rng(0).normal(size=(30, 2)))
    adata.obs["slide"] = ["big"] * 21 + ["five"] * 5 + ["four"] * 4
    with pytest.warns(UserWarning, match=r"n_neighs=6, but sections \['five', 'four'\] have no more than that many spots") as caught:
        pp.spatial_rings(adata, library_key="slide")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert np.all(degrees(adata, "spatial_connectivities")[21:] == [4] * 5 + [3] * 4)
    assert degrees(adata, "spatial_ring2")[21:].sum() == 0
    with pytest.warns(UserWarning, match="n_neighs=30, but the object has 30 spots, no more than that many") as caught:
        pp.spatial_rings(adata, n_neighs=30, coord_type="generic")
    assert len(caught) == 1
    assert np.all(degrees(adata, "spatial_connectivities") == 29)


def test_a_section_of_one_spot_is_isolated():
    adata = plain(np.random.default_rng(0).normal(size=(30, 2)))
    adata.obs["slide"] = ["a"] * 29 + ["b"]
    with pytest.warns(UserWarning, match=r"library_key='slide': \['b'\] have 1 or 2 cells each") as caught:
        pp.spatial_rings(adata, library_key="slide")
    assert len(caught) == 1
    assert (degrees(adata, "spatial_connectivities") == 0).tolist() == [False] * 29 + [True]
    lonely = plain(np.zeros((1, 2)))
    with pytest.warns(UserWarning, match="the object has 1 spots"):
        pp.spatial_rings(lonely)
    assert lonely.obsp["spatial_ring2"].nnz == 0


def test_several_sections_without_a_key(sections):
    sections.obs["array_col"] += 12 * sections.obs["section"].cat.codes.to_numpy()
    with pytest.warns(UserWarning, match=r"uns\['spatial'\] has 2 sections, \['section0', 'section1'\], but without library_key") as caught:
        pp.spatial_rings(sections)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    section = sections.obs["section"].cat.codes.to_numpy()
    rows, columns = sections.obsp["spatial_connectivities"].nonzero()
    assert np.any(section[rows] != section[columns])


@pytest.mark.parametrize("n_sections", [1, 2])
def test_flags_beside_the_sections_are_no_sections(n_sections):
    adata = visium(n_sections)
    if n_sections == 2:
        apart(adata)
    adata.uns["spatial"] |= {"is_single": True, "note": "a slide"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pp.spatial_rings(adata)
    found = [str(warning.message) for warning in caught]
    assert len(found) == n_sections - 1
    assert all("has 2 sections, ['section0', 'section1']" in message for message in found)


def joined(**changes: Any) -> ad.AnnData:
    """Two samples joined with anndata.concat, which drops uns: spots of both are at the same places."""
    parts = {name: visium() for name in ("S1", "S2")}
    both = ad.concat(parts, label="library_id", index_unique="-")
    both.obs = both.obs.assign(**{name: make(both) for name, make in changes.items()})
    return both


JOINED = {
    "by their array": (lambda a: None, "42 of 84 spots have the same row and column of the array"),
    "by a few of them": (lambda a: a[a.obs["library_id"].eq("S1") | a.obs["array_row"].eq(0)].copy(), "6 of 48 spots"),
    "by their positions": (without_array, "42 of 84 spots have the same position"),
    "interleaved, in text": (lambda a: interleaved(a, lambda values: values.astype(str)), "42 of 84 spots have the same row"),
    "interleaved, in categories": (lambda a: interleaved(a, lambda values: values.astype("category")), "42 of 84 spots have the same row"),
    "interleaved, with a gap": (
        lambda a: interleaved(a, lambda values: values.mask(np.arange(84) == 3)),
        "41 of 84 spots have the same row",
    ),
    "elsewhere in the image": (lambda a: a.obsm.__setitem__("spatial", a.obsm["spatial"] + np.arange(84)[:, None] / 10), "of the array"),
}


@pytest.mark.parametrize("row", JOINED)
@pytest.mark.parametrize("call", ["rings", "spatial", "nmf"])
def test_samples_joined_at_the_same_places(row, call, edited, refused):
    edit, message = JOINED[row]
    calls = {"rings": pp.spatial_rings, "spatial": tl.spatial, "nmf": tl.nmf}
    refused(edited(joined(), edit), calls[call], ValueError, f"{message}.*pass library_key='library_id'")


def test_samples_joined_at_the_same_places_of_the_array_have_no_nearest_spots_together(refused):
    message = "42 of 84 spots have the same row and column of the array.*pass library_key='library_id'"
    refused(interleaved(joined()), lambda a: pp.spatial_rings(a, coord_type="generic"), ValueError, message)
    pp.spatial_rings(interleaved(joined()), coord_type="generic", library_key="library_id")


def test_the_column_that_tells_joined_samples_apart(refused):
    adata = joined(depth=lambda a: np.arange(84), age=lambda a: np.linspace(0, 1, 84), half=lambda a: np.arange(84) % 2)
    refused(adata, pp.spatial_rings, ValueError, r"obs\['library_id'\] tells them apart: pass library_key='library_id'")
    # A column that does not is no section either.
    refused(adata, lambda a: pp.spatial_rings(a, library_key="half"), ValueError, "pass library_key='library_id'")
    adata.obs["sample"] = adata.obs["library_id"].astype(str).str.lower()
    refused(adata, pp.spatial_rings, ValueError, r"The columns \['library_id', 'sample'\] of obs tell them apart")
    del adata.obs["library_id"], adata.obs["sample"]
    refused(adata, pp.spatial_rings, ValueError, r"No column of obs tells them apart.*anndata.concat\(..., label='library_id'\)")


def test_joined_samples_that_are_told_apart():
    adata = joined()
    pp.spatial_rings(adata, library_key="library_id")
    rows, columns = adata.obsp["spatial_connectivities"].nonzero()
    assert len(rows) == 2 * visium_edges()
    assert np.array_equal(adata.obs["library_id"].to_numpy()[rows], adata.obs["library_id"].to_numpy()[columns])
    pp.spatial_rings(adata, library_key="library_id", n_rings=3)  # and once more


def visium_edges() -> int:
    return pp.spatial_rings(visium(), copy=True).obsp["spatial_connectivities"].nnz


def test_joined_samples_that_lie_side_by_side_are_told_apart_by_that():
    """Places in the array say nothing where neighbours are those of the positions: as with sections in three dimensions."""
    adata = joined()
    code = adata.obs["library_id"].cat.codes.to_numpy()
    for positions in (
        adata.obsm["spatial"] + 1e6 * code[:, None],
        np.column_stack([adata.obsm["spatial"], 1e6 * code]),
    ):
        adata.obsm["spatial"] = positions
        pp.spatial_rings(adata, coord_type="generic")
        rows, columns = adata.obsp["spatial_connectivities"].nonzero()
        assert np.array_equal(code[rows], code[columns])


def test_a_given_graph_across_joined_samples():
    adata = joined()
    graph = sp.csr_matrix(np.eye(84, k=1) + np.eye(84, k=-1))
    adata.obsp["spatial_connectivities"] = graph
    with pytest.warns(
        UserWarning, match=r"obsp\['spatial_connectivities'\] joins spots of several sections.*pass library_key='library_id'"
    ):
        pp.spatial_rings(adata)
    pp.spatial_rings(adata, library_key="library_id")
    adata.obsp["spatial_connectivities"] = graph.multiply(np.kron(np.eye(2), np.ones((42, 42)))).tocsr()
    pp.spatial_rings(adata)


def test_cells_at_the_same_pixel_are_of_one_section():
    points = np.random.default_rng(0).normal(size=(100, 2))
    points[:4] = points[4:8]
    adata = plain(points)
    adata.obs["type"] = np.arange(100) % 2
    pp.spatial_rings(adata)


def test_how_the_sections_are_called_and_ordered_does_not_matter(sections):
    expected = pp.spatial_rings(sections, library_key="section", copy=True).obsp["spatial_ring2"].toarray()
    for column in (sections.obs["section"].cat.codes.to_numpy(), sections.obs["section"].cat.add_categories(["none"]).astype(object)):
        sections.obs["slide"] = column
        done = pp.spatial_rings(sections, library_key="slide", copy=True)
        assert np.array_equal(done.obsp["spatial_ring2"].toarray(), expected)
    order = np.random.default_rng(0).permutation(sections.n_obs)
    done = pp.spatial_rings(sections[order].copy(), library_key="section", copy=True)
    assert np.array_equal(done.obsp["spatial_ring2"].toarray(), expected[order][:, order])


# A graph that is there, rows 51 and 52


def test_a_given_graph_stays_as_it_is(foreign, fingerprint, monkeypatch):
    said = []
    monkeypatch.setattr("scimpute.pp._spatial_rings.logg.info", lambda text, **_: said.append(text))
    before = fingerprint(foreign)
    pp.spatial_rings(foreign, n_rings=3)
    after = fingerprint(foreign)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"obsp/spatial_ring2", "obsp/spatial_ring3", "uns/spatial_rings"}
    assert foreign.uns["spatial_rings"]["params"] == {"n_rings": 3, "graph": "given"}
    assert any("obsp['spatial_connectivities'] is there already; it stays as it is" in text for text in said)
    # Symmetric, without the diagonal: two steps, and not one.
    graph = foreign.obsp["spatial_connectivities"].toarray() > 0
    graph = (graph | graph.T) & ~np.eye(len(graph), dtype=bool)
    expected = (graph.astype(int) @ graph > 0) & ~graph & ~np.eye(len(graph), dtype=bool)
    assert np.array_equal(foreign.obsp["spatial_ring2"].toarray() > 0, expected)
    pp.spatial_rings(foreign, library_key="section")
    assert {**fingerprint(foreign), **before} == fingerprint(foreign)
    assert "spatial_ring3" not in foreign.obsp
    section = foreign.obs["section"].cat.codes.to_numpy()
    rows, columns = foreign.obsp["spatial_ring2"].nonzero()
    assert np.all(section[rows] == section[columns])


@pytest.mark.parametrize("kind", [np.asarray, sp.csc_matrix, sp.csr_array, lambda x: sp.csr_matrix(x.astype(np.int64))])
def test_any_kind_of_graph(foreign, kind):
    dense = np.rint(foreign.obsp["spatial_connectivities"].toarray() + 0.4)
    foreign.obsp["spatial_connectivities"] = sp.csr_matrix(dense)
    expected = pp.spatial_rings(foreign, copy=True).obsp["spatial_ring2"].toarray()
    foreign.obsp["spatial_connectivities"] = kind(dense)
    assert np.array_equal(pp.spatial_rings(foreign, copy=True).obsp["spatial_ring2"].toarray(), expected)


def test_a_graph_made_over_ours_is_given(sections, fingerprint):
    apart(sections)
    pp.spatial_rings(sections, library_key="section", n_rings=3)
    sections.obsp["spatial_connectivities"] = sp.csr_matrix(np.eye(sections.n_obs, k=1, dtype=np.float32))
    sections.uns["spatial_neighbors"] = {"connectivities_key": "spatial_connectivities", "params": {"n_neighbors": 1}}
    before = fingerprint(sections)
    pp.spatial_rings(sections)
    after = fingerprint(sections)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"obsp/spatial_ring2", "obsp/spatial_ring3", "uns/spatial_rings"}
    assert np.array_equal(sections.obsp["spatial_ring2"].toarray(), np.eye(sections.n_obs, k=2) + np.eye(sections.n_obs, k=-2))


def test_what_a_given_graph_was_made_with_may_be_repeated(foreign, refused):
    refused(foreign, lambda a: pp.spatial_rings(a, n_neighs=4), ValueError, "stays as it is, so n_neighs=4 would have no effect")
    refused(foreign, lambda a: pp.spatial_rings(a, n_neighs=4, coord_type="grid"), ValueError, "n_neighs=4 and coord_type='grid' would")
    pp.spatial_rings(foreign, n_neighs=5, coord_type="generic")
    assert "spatial_ring2" in foreign.obsp


def test_isolated_spots_and_graphs_cut_with_the_object(sections):
    pp.spatial_rings(sections, library_key="section")
    some = sections[[0, 20, 41, 42, 60, 83]].copy()
    pp.spatial_rings(some, library_key="section")
    assert some.obsp["spatial_connectivities"].nnz == some.obsp["spatial_ring2"].nnz == 0
    assert [ring.nnz for ring in read_rings(some, 3)] == [0, 0, 0]


def change(name: str, value: float):
    def edit(adata: ad.AnnData) -> None:
        adata.obsp[name].data[3] = value

    return edit


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite values; delete it"), (np.inf, "NaN or infinite"), (-2.0, r"negative values \(min -2\)")],
)
def test_bad_graphs(foreign, refused, value, message):
    foreign.obsp["spatial_connectivities"].data[3] = value
    refused(foreign, pp.spatial_rings, ValueError, rf"adata.obsp\['spatial_connectivities'\] has {message}")
    refused(foreign, lambda a: read_rings(a, 2), ValueError, message)


# What is read by others


def test_rings_are_read_or_found_and_nothing_is_written(sections, foreign, fingerprint):
    before = fingerprint(sections)
    found = read_rings(sections, 3, read_sections(sections, "section"))
    assert fingerprint(sections) == before
    pp.spatial_rings(sections, library_key="section", n_rings=3)
    names = ("spatial_connectivities", "spatial_ring2", "spatial_ring3")
    for again in (found, read_rings(sections, 3), read_rings(sections, 3, read_sections(sections, "section"))):
        assert len(again) == 3
        for ring, name in zip(again, names, strict=True):
            assert ring.dtype == np.float32
            assert np.array_equal(ring.toarray(), sections.obsp[name].toarray())
    # Somebody else's.
    section = foreign.obs["section"].cat.codes.to_numpy()
    for library_key in (None, "section"):
        first, second = read_rings(foreign, 2, None if library_key is None else read_sections(foreign, library_key))
        graph = foreign.obsp["spatial_connectivities"].toarray() > 0
        graph = (graph | graph.T) & ~np.eye(len(graph), dtype=bool)
        graph &= (section[:, None] == section) | (library_key is None)
        assert np.array_equal(first.toarray() > 0, graph)
        assert not second.multiply(first).nnz


def test_the_further_rings_belong_to_the_first(sections):
    """Those that are stored may be older than the graph, or belong to spots that are gone."""
    pp.spatial_rings(sections, library_key="section")
    expected = read_rings(sections, 2)[1].toarray()
    sections.obsp["spatial_ring2"] = sp.identity(sections.n_obs, format="csr")
    assert np.array_equal(read_rings(sections, 2)[1].toarray(), expected)


# Faults, by the numbers of the project's fault table

NO_SPATIAL = r"positions of the spots: obsm key 'spatial' not found; available: \['X_spatial'\]; did you mean 'X_spatial'"


def rename(adata: ad.AnnData) -> None:
    adata.obsm["X_spatial"] = adata.obsm.pop("spatial")


def positions(edit: Any):
    def apply(adata: ad.AnnData) -> None:
        adata.obsm["spatial"] = edit(adata.obsm["spatial"].astype(float))

    return apply


def at(row: int, value: float):
    def edit(points: np.ndarray) -> np.ndarray:
        points[row : row + 2, 1] = value
        return points

    return positions(edit)


FAULTS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "1-type": (lambda a: a.X.toarray(), {}, TypeError, "expected AnnData, got ndarray"),
    "35-key": (None, {"library_key": "sections"}, KeyError, "library_key: obs column 'sections' not found.*did you mean 'section'"),
    "36-nan": (
        lambda a: a.obs.__setitem__("slide", np.where(np.arange(a.n_obs) == 4, None, "x")),
        {"library_key": "slide"},
        ValueError,
        "library_key='slide' is missing in 1 cells",
    ),
    "45-no-positions": (rename, {}, KeyError, NO_SPATIAL),
    "46-nan": (at(3, np.nan), {}, ValueError, r"adata.obsm\['spatial'\] is NaN or infinite for 2 spots \(first: '[ACGT]{16}-1'\)"),
    "46-inf": (at(5, -np.inf), {}, ValueError, "is NaN or infinite for 2 spots"),
    "47-one-column": (positions(lambda x: x[:, :1]), {}, ValueError, r"has shape \(42, 1\), expected \(42, 2\) or \(42, 3\)"),
    "47-four-columns": (positions(lambda x: np.hstack([x, x])), {}, ValueError, r"has shape \(42, 4\)"),
    "47-text": (positions(lambda x: x.astype(str)), {}, TypeError, "has dtype <U32, expected numbers"),
    "47-grid-in-3d": (third_column, {"coord_type": "grid"}, ValueError, "coord_type='grid' is for positions in two dimensions"),
    "62-n_neighs": (None, {"n_neighs": 0}, ValueError, "n_neighs must be at least 1, got 0"),
    "62-n_neighs-float": (None, {"n_neighs": 6.0}, ValueError, "n_neighs must be a whole number"),
    "62-n_rings": (None, {"n_rings": 0}, ValueError, "n_rings must be at least 1, got 0"),
    "62-n_rings-type": (None, {"n_rings": "2"}, TypeError, "n_rings must be a whole number"),
    "65-coord_type": (None, {"coord_type": "hex"}, ValueError, r"coord_type must be one of \['grid', 'generic'\], got 'hex'"),
    "66-slash": (None, {"key_added": "a/b"}, ValueError, "key_added must be a non-empty string without '/'"),
    "66-ring-taken": (
        lambda a: a.obsp.__setitem__("spatial_ring3", np.eye(a.n_obs)),
        {"n_rings": 3},
        ValueError,
        r"key_added='spatial': obsp\['spatial_ring3'\] exist and were not written by spatial_rings",
    ),
    "66-distances-taken": (
        lambda a: a.obsp.__setitem__("spatial_distances", np.eye(a.n_obs)),
        {},
        ValueError,
        r"obsp\['spatial_distances'\]",
    ),
    "66-uns-taken": (lambda a: a.uns.__setitem__("spatial_neighbors", {"x": 1}), {}, ValueError, r"uns\['spatial_neighbors'\] exist"),
    "66-record-taken": (lambda a: a.uns.__setitem__("spatial_rings", {"x": 1}), {}, ValueError, r"uns\['spatial_rings'\] exist"),
    "69-hexagons": (None, {"n_neighs": 4}, ValueError, "on Visium's hexagonal grid, where a spot has 6 neighbours"),
    "69-grid": (None, {"n_neighs": 10}, ValueError, "n_neighs=10, but on a grid a spot has 4 or 8 neighbours"),
    "copy": (None, {"copy": "yes"}, TypeError, "copy must be True or False"),
}


@pytest.mark.parametrize("row", FAULTS)
def test_faults(row, edited, refused):
    edit, options, error, message = FAULTS[row]
    refused(edited(visium(), edit), lambda a: pp.spatial_rings(a, **options), error, message)


# Against squidpy, and on real data


@pytest.mark.filterwarnings("ignore")  # what squidpy and all that it imports say
@pytest.mark.parametrize("library_key", [None, "slide"])
@pytest.mark.parametrize("coord_type", ["grid", "generic"])
def test_as_squidpy(coord_type, library_key):
    """The first ring is that of squidpy, made symmetric: the same entries under the same keys, of the same types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        squidpy = pytest.importorskip("squidpy", exc_type=ImportError)
    # With n_neighs=6, squidpy takes some diagonals of a square lattice whose spots are a little beside their places. Which of spots
    # that are equally far are the nearest, as at the border of Visium's array, is for neither to say.
    scattered = plain(np.random.default_rng(1).normal(size=(90, 2)))
    for adata, n_neighs in [(visium(), 6), (lattice(9, 8), 4)] if coord_type == "grid" else [(scattered, 6), (lattice(9, 8), 4)]:
        adata.obs["slide"] = pd.Categorical(np.where(np.arange(adata.n_obs) < adata.n_obs // 2, "a", "b"))
        theirs = adata.copy()
        squidpy.gr.spatial_neighbors(theirs, coord_type=coord_type, n_neighs=n_neighs, library_key=library_key)
        pp.spatial_rings(adata, coord_type=coord_type, n_neighs=n_neighs, library_key=library_key)
        for name in ("spatial_connectivities", "spatial_distances"):
            ours, other = adata.obsp[name], theirs.obsp[name]
            assert (type(ours), ours.dtype, ours.indices.dtype) == (type(other), other.dtype, other.indices.dtype)
            np.testing.assert_allclose(ours.toarray(), other.maximum(other.T).toarray(), rtol=1e-12)
        entry = dict(adata.uns["spatial_neighbors"])
        assert entry.pop("method") == "spatial_rings"
        # Which of the settings it lists depends on its version.
        shared = entry["params"].keys() & theirs.uns["spatial_neighbors"]["params"].keys()
        assert {"n_neighbors", "coord_type", "transform"} <= shared
        for each in (entry, theirs.uns["spatial_neighbors"]):
            each["params"] = {name: each["params"][name] for name in shared}
        assert entry == theirs.uns["spatial_neighbors"]
        before = {name: theirs.obsp[name].toarray() for name in theirs.obsp}
        pp.spatial_rings(theirs, library_key=library_key)
        assert theirs.uns["spatial_rings"]["params"]["graph"] == "given"
        for name, value in before.items():
            assert np.array_equal(theirs.obsp[name].toarray(), value)
        np.testing.assert_array_equal(theirs.obsp["spatial_ring2"].toarray(), adata.obsp["spatial_ring2"].toarray())


@pytest.mark.skipif(not (DATA / "her2st_he.h5ad").exists(), reason="her2st_he.h5ad is not in SCIMPUTE_DATA")
def test_her2st():
    """Three sections on a square lattice with holes, whose rows and columns are in obs as those of Visium are."""
    adata = ad.read_h5ad(DATA / "her2st_he.h5ad")
    pp.spatial_rings(adata, library_key="section")
    assert adata.uns["spatial_rings"]["params"]["lattice"] == "square"
    first, second = degrees(adata, "spatial_connectivities"), degrees(adata, "spatial_ring2")
    assert (first.max(), second.max()) == (4, 8)
    assert np.median(first) == 4
    assert (first == 0).sum() <= 1
