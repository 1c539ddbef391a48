from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from .. import _check, _random
from .._keywords import helpful

# Distance of neighbouring spots in pixels of the full-resolution image. It stands for 100 um. A spot is 55 um wide.
_PITCH = 100.0
_MARGIN = 1.5 * _PITCH
_LONGEST = 480
"""Most pixels of the longer side of the hires image."""
_SCALE = 0.24
"""Most pixels of the hires image per pixel of the full resolution. With few spots the image stays small."""

_GLASS = np.array([0.95, 0.94, 0.96])
_EOSIN, _HEMATOXYLIN = np.array([0.06, 0.55, 0.28]), np.array([0.75, 0.95, 0.45])
"""Optical densities in red, green and blue."""


@helpful
def toy_visium(
    n_rows: int = 20,
    n_cols: int = 18,
    n_vars: int = 200,
    *,
    n_sections: int = 1,
    n_regions: int = 4,
    rank: int = 3,
    depth: float = 1000.0,
    dispersion: float = 0.1,
    random_state: int | np.random.Generator | None = 0,
) -> ad.AnnData:
    r"""Visium-like sections with a known truth: counts, positions on the hexagonal array, and stained images.

    The tissue has layers with wavy borders; each layer is a region. Spot :math:`i` of section :math:`g` has the depth :math:`l_i`
    (log-normal). Counts are Poisson, or negative binomial with variance :math:`\mu + \phi \mu^2`, with mean

    .. math:: \lambda_{ij} = l_i \; \mathrm{softmax}_j(a_j + s_{gj} + t_{\mathrm{region}(i) j} + z_i^\top w_j + b_j d_i + c_j u_i)

    Four properties of a spot decide its expression:

    - **The region** :math:`t` shows in the image (its colour), in the position and in the counts.
    - **The density of nuclei** :math:`d` changes within a few spots. It shows in the image (dark dots) and, coarsely, in the neighbours.
    - **The gradient** :math:`u` along the layers shows in the position, and not in the image.
    - **The spot's own state** :math:`z` has ``rank`` dimensions and shows in its counts alone.

    Parameters
    ----------
    n_rows, n_cols
        Number of rows of the array, and number of spots in a row.
    n_vars
        Number of genes.
    n_sections
        Number of sections. Each has its own array and image; borders and staining differ a little.
    n_regions
        Number of regions. Their sizes are as even as possible.
    rank
        Dimensions of the state of a spot.
    depth
        Mean number of molecules of a spot.
    dispersion
        :math:`\phi`; 0 for Poisson counts.
    random_state
        Seed or generator; None draws a new seed.

    Returns
    -------
    An object of ``n_sections * n_rows * n_cols`` spots x ``n_vars`` genes in the layout of :func:`scanpy.read_visium`, with

    ``X``
        Counts, CSR float32.
    ``layers["rate"]``
        :math:`\lambda`, the expected counts at the spot's own depth, dense float32.
    ``obs["in_tissue"]``, ``obs["array_row"]``, ``obs["array_col"]``
        1; row and column in the hexagonal array. Row plus column is even. A neighbour is 2 columns, or one row and one column, away.
    ``obs["section"]``, ``obs["region"]``
        ``"section0"``, ...; ``"region0"``, ...
    ``obs["density"]``, ``obs["gradient"]``
        :math:`d` and :math:`u`.
    ``obsm["spatial"]``
        x (to the right) and y (downwards) of the spot's centre in pixels of the full-resolution image, int64.
    ``uns["spatial"][section]``
        ``"images"``: ``"hires"`` and ``"lowres"``, uint8 RGB (height, width, 3), with at most 480 and 160 pixels on the longer side;
        ``"scalefactors"``; ``"metadata"``.
    ``uns["toy_visium"]``
        The parameters.

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range, or a section has fewer spots than regions.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_visium(n_sections=2)
    >>> adata.shape, list(adata.uns["spatial"])
    ((720, 200), ['section0', 'section1'])
    """
    sizes = {"n_rows": n_rows, "n_cols": n_cols, "n_vars": n_vars, "n_sections": n_sections, "n_regions": n_regions, "rank": rank}
    sizes = {name: _check.integer(name, value) for name, value in sizes.items()}
    n_rows, n_cols, n_vars, n_sections, n_regions, rank = sizes.values()
    depth = _check.number("depth", depth, 0, open_low=True)
    dispersion = _check.number("dispersion", dispersion, 0)
    if n_regions > n_rows * n_cols:
        raise ValueError(f"n_regions={n_regions} is more than the number of spots in a section, {n_rows * n_cols}")
    rng = _random.generator(random_state)

    array = np.array([(row, 2 * place + row % 2) for row in range(n_rows) for place in range(n_cols)])
    pixels = np.rint(_MARGIN + array[:, ::-1] * [_PITCH / 2, _PITCH * np.sqrt(3) / 2]).astype(np.int64)
    sections = [_Section.draw(pixels, n_regions, rng) for _ in range(n_sections)]
    names = [f"section{i}" for i in range(n_sections)]
    darkness = rng.permutation(np.linspace(0, 1, n_regions)) if n_regions > 1 else np.array([0.5])
    images = {name: _as_visium(section.image(darkness, rng)) for name, section in zip(names, sections, strict=True)}

    obs = pd.DataFrame(
        {
            "in_tissue": 1,
            "array_row": np.tile(array[:, 0], n_sections),
            "array_col": np.tile(array[:, 1], n_sections),
            "section": pd.Categorical.from_codes(np.repeat(np.arange(n_sections), len(array)), names),
            "region": pd.Categorical.from_codes(
                np.concatenate([section.region(pixels) for section in sections]), [f"region{i}" for i in range(n_regions)]
            ),
            "density": np.concatenate([section.density(pixels) for section in sections]),
            "gradient": np.concatenate([section.gradient(pixels) for section in sections]),
        },
        index=_barcodes(len(array), n_sections, rng),
    )
    rate = _rate(obs, n_vars, rank, depth, rng)
    mean = rate * rng.gamma(1 / dispersion, dispersion, rate.shape) if dispersion else rate
    return ad.AnnData(
        sp.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"gene{j}" for j in range(n_vars)]),
        obsm={"spatial": np.tile(pixels, (n_sections, 1))},
        layers={"rate": rate.astype(np.float32)},
        uns={
            "spatial": images,
            "toy_visium": {**sizes, "depth": depth, "dispersion": dispersion, "random_state": _random.describe(random_state)},
        },
    )


def _barcodes(n_spots: int, n_sections: int, rng: np.random.Generator) -> list[str]:
    """Unique sequences of sixteen letters, with the number of the section behind them."""
    letters = np.array(list("ACGT"))
    sequences: dict[str, None] = {}
    while len(sequences) < n_spots:
        sequences["".join(letters[rng.integers(4, size=16)])] = None
    return [f"{sequence}-{section}" for section in range(1, n_sections + 1) for sequence in sequences]


def _rate(obs: pd.DataFrame, n_vars: int, rank: int, depth: float, rng: np.random.Generator) -> np.ndarray:
    """Expected counts."""
    region, section = obs["region"].cat, obs["section"].cat
    state, loadings = rng.normal(size=(len(obs), rank)), 0.4 * rng.normal(size=(rank, n_vars)) / np.sqrt(rank)
    log_share = rng.normal(size=n_vars) + 0.15 * rng.normal(size=(len(section.categories), n_vars))[section.codes]
    log_share = log_share + 0.6 * rng.normal(size=(len(region.categories), n_vars))[region.codes] + state @ loadings
    for name in ("density", "gradient"):
        log_share += 0.4 * np.outer(obs[name], rng.normal(size=n_vars))
    # The mean of exp(normal) with this mean and standard deviation is 1.
    return depth * np.exp(rng.normal(-0.045, 0.3, size=(len(obs), 1))) * softmax(log_share, axis=1)


@dataclass(frozen=True)
class _Waves:
    """A smooth random function of the position with mean 0 and variance 1: a sum of cosines with similar wavelengths."""

    direction: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, wavelength: float, rng: np.random.Generator, n_waves: int = 8) -> _Waves:
        angle, length = rng.uniform(0, 2 * np.pi, n_waves), wavelength * rng.uniform(0.8, 1.25, n_waves)
        return cls(2 * np.pi / length * np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0, 2 * np.pi, n_waves))

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        return np.sqrt(2 / len(self.phase)) * sum(
            np.cos(xy @ wave + phase) for wave, phase in zip(self.direction.T, self.phase, strict=True)
        )


@dataclass(frozen=True)
class _Section:
    """Properties of the tissue at any position of a section. Positions are ``(..., 2)``, in pixels of the full-resolution image."""

    size: np.ndarray
    bends: _Waves
    nuclei: _Waves
    borders: np.ndarray
    stain: np.ndarray

    @classmethod
    def draw(cls, pixels: np.ndarray, n_regions: int, rng: np.random.Generator) -> _Section:
        size = pixels.max(axis=0) + _MARGIN
        bends = _Waves.draw(0.8 * size.max(), rng)
        nuclei, stain = _Waves.draw(5 * _PITCH, rng), rng.uniform(0.85, 1.15, 3)
        section = cls(size, bends, nuclei, np.zeros(0), stain)
        # A border lies halfway between the depths of two spots, so that each region has its share of the spots.
        depths = np.sort(section._depth(pixels))
        first = np.arange(1, n_regions) * len(depths) // n_regions
        return cls(size, bends, nuclei, (depths[first - 1] + depths[first]) / 2, stain)

    def _depth(self, xy: np.ndarray) -> np.ndarray:
        """Depth in the tissue: 0 at the outer layer, about 1 at the innermost layer."""
        return (xy @ [0.35, 0.94]) / (self.size @ [0.35, 0.94]) + 0.08 * self.bends(xy)

    def region(self, xy: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.borders, self._depth(xy))

    def density(self, xy: np.ndarray) -> np.ndarray:
        return self.nuclei(xy)

    def gradient(self, xy: np.ndarray) -> np.ndarray:
        """Position along the layers, from about -1.9 to 1.9; 0 in the middle."""
        return 3.5 * ((xy / self.size - 0.5) @ [0.94, -0.35])

    def image(self, darkness: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """The hires image, uint8 RGB, and its scale: its pixels per pixel of the full resolution."""
        scale = min(_SCALE, _LONGEST / self.size.max())
        # The lowres image needs whole blocks of 3 x 3 pixels. The small number prevents an additional block after a rounding error.
        width, height = (3 * np.ceil(self.size * scale / 3 - 1e-9)).astype(int)
        xy = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + 0.5) / scale
        grain = _standard(gaussian_filter(rng.normal(size=(height, width)), 0.06 * _PITCH * scale))
        tint = gaussian_filter(darkness[self.region(xy)], 0.1 * _PITCH * scale)
        nuclei = 1 / (1 + np.exp(-6 * (grain - 1.1 + 0.7 * self.density(xy) + 0.4 * (tint - 0.5))))
        amount = 0.55 + 0.5 * tint + 0.05 * _standard(gaussian_filter(rng.normal(size=(height, width)), 3))
        density = amount[..., None] * ((1 - 0.6 * tint)[..., None] * _EOSIN + (0.5 * tint + 0.7 * nuclei)[..., None] * _HEMATOXYLIN)
        # The area beyond the tissue is glass. The edge of the tissue is as wavy as the layers.
        edge = np.minimum(xy, self.size - xy).min(axis=-1) - _PITCH * (0.6 + 0.2 * self.bends(3 * xy))
        density *= (gaussian_filter((edge > 0).astype(float), 1.0))[..., None]
        colours = _GLASS * np.exp(-density * self.stain) + 0.012 * rng.normal(size=density.shape)
        return np.rint(255 * colours.clip(0, 1)).astype(np.uint8), float(scale)


def _standard(values: np.ndarray) -> np.ndarray:
    return values / values.std()


def _as_visium(image: tuple[np.ndarray, float]) -> dict[str, Any]:
    """An entry of ``uns["spatial"]`` in the layout of :func:`scanpy.read_visium`."""
    hires, scale = image
    height, width, _ = hires.shape
    lowres = hires.reshape(height // 3, 3, width // 3, 3, 3).mean(axis=(1, 3))
    return {
        "images": {"hires": hires, "lowres": np.rint(lowres).astype(np.uint8)},
        "scalefactors": {
            "tissue_hires_scalef": scale,
            "tissue_lowres_scalef": scale / 3,
            "spot_diameter_fullres": 0.55 * _PITCH,
            "fiducial_diameter_fullres": 0.9 * _PITCH,
        },
        "metadata": {"chemistry_description": "simulated", "software_version": "scimpute"},
    }
