"""``tl.nmf``: what is written, what the spatial contribution does, what is refused."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import scimpute
from scimpute.models.factor import FactorGenerator

QUICK = {"max_epochs": 2, "n_factors": 4, "progress": False}


@pytest.fixture
def tissue() -> ad.AnnData:
    return scimpute.datasets.toy_visium(8, 8, 30)


def run(adata: ad.AnnData, **changes: Any) -> Any:
    return scimpute.tl.nmf(adata, **QUICK | changes)


def test_log_rate_by_hand():
    rng = torch.Generator().manual_seed(0)
    start, log_share = torch.randn(5, 3, generator=rng), torch.randn(1, 1, 4, generator=rng)
    generator = FactorGenerator(4, start, log_share, rng, spot_weight=0.1, depth_slope=-0.5)
    inputs, rows = torch.randn(1, 2, 7, generator=rng), torch.tensor([3, 1])
    # The start: the gene's share, at the spot's depth.
    torch.testing.assert_close(generator(inputs, (), [rows]), log_share - 0.5 * inputs[..., -1:])
    torch.testing.assert_close(generator.spot_factors, start)
    for parameter in (generator.gene_factors, generator.last):
        torch.nn.init.normal_(parameter, generator=rng)
    u, v = start, generator.gene_factors
    with torch.no_grad():
        found = generator(inputs, (), [rows])
        for place, i in enumerate(rows.tolist()):
            for j in range(4):
                hidden = torch.nn.functional.gelu(generator.left(u[i]) + generator.right(v[j]))
                expected = log_share[0, 0, j] + u[i] @ v[j] + generator.last @ hidden - 0.5 * inputs[0, place, -1]
                torch.testing.assert_close(found[0, place, j], expected)
    penalty = v.square().sum() + generator.last.square().sum()
    torch.testing.assert_close(generator.penalty(), penalty[None])


def test_factors_are_in_the_order_of_the_object(tissue):
    run(tissue, max_epochs=60, spatial_weight=0, posterior=False, output="rate", penalty=10.0)
    assert tissue.obsm["X_nmf"].shape == (64, 4)
    assert tissue.varm["NMF"].shape == (30, 4)
    assert tissue.obsm["X_nmf"].dtype == tissue.varm["NMF"].dtype == np.float32
    logs = np.log(tissue.layers["nmf"])
    product = tissue.obsm["X_nmf"] @ tissue.varm["NMF"].T
    logs, product = (x - x.mean(axis=0) for x in (logs, product))
    some = product.std(axis=0) > 0.1
    assert some.sum() > 5
    assert np.corrcoef(logs[:, some].ravel(), product[:, some].ravel())[0, 1] > 0.9


def test_other_key(tissue):
    run(tissue, key_added="factors")
    assert {"X_factors"} <= set(tissue.obsm)
    assert {"FACTORS"} <= set(tissue.varm)
    assert tissue.uns["factors"]["method"] == "nmf"


@pytest.mark.parametrize(("slot", "name"), [("obsm", "X_nmf"), ("varm", "NMF")])
def test_factors_of_others_are_not_overwritten(tissue, refused, slot, name):
    getattr(tissue, slot)[name] = np.ones((tissue.n_obs if slot == "obsm" else tissue.n_vars, 2))
    refused(tissue, run, ValueError, f"{slot}.*{name}.*not written by nmf")


def test_neighbours_are_drawn_together(tissue):
    scimpute.pp.spatial_rings(tissue)
    near = tissue.obsp["spatial_connectivities"]
    mean = near.multiply(1 / near.sum(axis=1)).tocsr()
    apart = []
    for weight in (0.0, 0.3, 30.0):
        run(tissue, spatial_weight=weight, max_epochs=40, posterior=False, output="rate", penalty=10.0)
        logs = np.log(tissue.layers["nmf"])
        apart.append(np.square(logs - mean @ logs).mean())
    assert apart[0] > apart[1] > 2 * apart[2]


def test_plain_factorisation_needs_no_positions(tissue):
    expected = run(tissue, spatial_weight=0, copy=True).layers["nmf"]
    del tissue.obsm["spatial"]
    np.testing.assert_array_equal(run(tissue, spatial_weight=0, copy=True).layers["nmf"], expected)


def test_predicts_held_out_molecules():
    adata = scimpute.datasets.toy_visium(16, 14, 60, depth=300)
    scimpute.pp.thin(adata)
    scimpute.tl.nmf(adata, layer="thin_train", n_factors=8, progress=False)
    scores = scimpute.metrics.heldout(adata, "nmf")["poisson"]
    assert scores["nmf"] < scores["gene_mean"] < scores["raw"]


def test_vectors_of_spots_have_their_prior_whatever_that_of_the_genes(tissue):
    run(tissue, penalty=0.0, spatial_weight=0, max_epochs=30)
    assert np.square(tissue.obsm["X_nmf"]).mean() < 1.2


def test_gradient_of_spots_that_are_there_twice():
    """It is summed in one order, also by several threads."""
    rng = torch.Generator().manual_seed(0)
    generator = FactorGenerator(3, torch.randn(50, 128, generator=rng), torch.zeros(1, 1, 3), rng, spot_weight=0.1, depth_slope=0.0)
    torch.nn.init.normal_(generator.gene_factors, generator=rng)
    rows, inputs = torch.randint(0, 50, (600,), generator=rng), torch.zeros(1, 600, 4)
    threads, found = torch.get_num_threads(), set()
    torch.set_num_threads(4)
    try:
        for _ in range(20):
            generator.zero_grad()
            generator(inputs, (), [rows]).square().sum().backward()
            found.add(generator.scaled_spots.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_what_others_call_alike_stays(tissue):
    run(tissue)
    tissue.obsm["nmf"], tissue.layers["X_nmf"] = np.ones((64, 2)), tissue.X.copy()
    run(tissue, random_state=1)
    assert "nmf" in tissue.obsm
    assert "X_nmf" in tissue.layers


def test_some_genes_are_those_of_all(tissue):
    """The vectors come from all genes, and so do the rates of those that are asked for."""
    run(tissue, posterior=False)
    whole = tissue.copy()
    run(tissue, posterior=False, genes=["gene7", "gene3"])
    assert "nmf" not in tissue.layers
    np.testing.assert_allclose(tissue.obsm["nmf"], whole[:, ["gene7", "gene3"]].layers["nmf"], rtol=1e-5)
    for slot, name in (("obsm", "X_nmf"), ("varm", "NMF")):
        np.testing.assert_array_equal(getattr(tissue, slot)[name], getattr(whole, slot)[name])
    run(tissue, posterior=False)
    assert "nmf" not in tissue.obsm
    np.testing.assert_array_equal(tissue.layers["nmf"], whole.layers["nmf"])
    tissue.obsm["nmf"] = np.ones((64, 2))
    with pytest.raises(ValueError, match=r"obsm\['nmf'\] exist and were not written by nmf"):
        run(tissue, genes=["gene7", "gene3"])
    with pytest.raises(KeyError, match="did you mean 'gene7'"):
        run(tissue, genes=["Gene7"])


@pytest.mark.filterwarnings("error::UserWarning")
def test_sections_do_not_matter_without_neighbours():
    run(scimpute.datasets.toy_visium(6, 6, 30, n_sections=2), spatial_weight=0)


def test_warnings_point_at_the_caller(tissue):
    tissue.X[3] = 0
    tissue.X.eliminate_zeros()
    with pytest.warns(UserWarning, match="no molecules") as caught:
        run(tissue)
    assert caught[0].filename == __file__


def test_one_gene(tissue, refused):
    refused(tissue[:, :1].copy(), run, ValueError, "at least 2 genes, got 1")


def test_more_factors_than_there_can_be(tissue):
    run(tissue, n_factors=500)
    assert tissue.obsm["X_nmf"].shape[1] == tissue.uns["nmf"]["params"]["n_factors"] == 29


FAULTS = {
    "no factors": ({"n_factors": 0}, ValueError, "n_factors"),
    "half a factor": ({"n_factors": 2.5}, ValueError, "n_factors"),
    "weight below 0": ({"spatial_weight": -1.0}, ValueError, "spatial_weight"),
    "contribution of no ring": ({"ring_weights": ()}, ValueError, "pass spatial_weight=0"),
    "unknown section": ({"library_key": "sections"}, KeyError, "sections"),
    "key of no kind": ({"key_added": 3}, ValueError, "key_added"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_refused(tissue, refused, arguments, error, message):
    refused(tissue, lambda adata: run(adata, **arguments), error, message)


def test_without_positions(tissue, refused):
    del tissue.obsm["spatial"]
    refused(tissue, run, KeyError, "spatial")
