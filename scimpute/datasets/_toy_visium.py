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

# Pixels of the full-resolution image from one spot to the next, which stands for 100 um. A spot is 55 um wide.
_PITCH = 100.0
_MARGIN = 1.5 * _PITCH
_LONGEST = 480
"""Pixels of the longer side of the hires image, at most."""
_SCALE = 0.24
"""Pixels of the hires image per pixel of the full resolution, at most: no more are needed, and few spots make a small image."""

_GLASS = np.array([0.95, 0.94, 0.96])
_EOSIN, _HEMATOXYLIN = np.array([0.06, 0.55, 0.28]), np.array([0.75, 0.95, 0.45])
"""Optical densities, of red, green and blue."""


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

    The tissue is in layers, its regions, whose borders are waves. With depth :math:`l_i` of a spot (log-normal) and :math:`g` of its
    section, counts are Poisson, or negative binomial with variance :math:`\mu + \phi \mu^2`, with mean

    .. math:: \lambda_{ij} = l_i \; \mathrm{softmax}_j(a_j + s_{gj} + t_{\mathrm{region}(i) j} + z_i^\top w_j + b_j d_i + c_j u_i)

    Of the four things that a spot's expression hangs on, **the region** :math:`t` can be seen in the image (its colour), from the position
    and from the counts; **the density of nuclei** :math:`d`, which changes within a few spots, in the image (dark dots) and, coarsely,
    from the neighbours; **the gradient** :math:`u` along the layers from the position, and not in the image; **the spot's own state**
    :math:`z`, of ``rank`` dimensions, from its counts alone.

    Parameters
    ----------
    n_rows, n_cols
        Rows of the array, and spots in a row.
    n_vars
        Number of genes.
    n_sections
        Number of sections, each with an array and an image of its own: its borders and its staining differ a little.
    n_regions
        Number of regions, of as many spots each as possible.
    rank
        Dimensions of the spots' own states.
    depth
        Mean number of molecules of a spot.
    dispersion
        :math:`\phi`; 0 for Poisson counts.
    random_state
        Seed, generator, or None for a fresh one.

    Returns
    -------
    An object of ``n_sections * n_rows * n_cols`` spots x ``n_vars`` genes, laid out as by :func:`scanpy.read_visium`, with

    ``X``
        Counts, CSR float32.
    ``layers["rate"]``
        :math:`\lambda`, the expected counts at the spot's own depth, dense float32.
    ``obs["in_tissue"]``, ``obs["array_row"]``, ``obs["array_col"]``
        1; row and column in the hexagonal array, where row plus column is even and a neighbour is 2 columns, or a row and a column, away.
    ``obs["section"]``, ``obs["region"]``
        ``"section0"``, ...; ``"region0"``, ...
    ``obs["density"]``, ``obs["gradient"]``
        :math:`d` and :math:`u`.
    ``obsm["spatial"]``
        x (to the right) and y (downwards) of the spot's centre in pixels of the full-resolution image, int64.
    ``uns["spatial"][section]``
        ``"images"``: ``"hires"`` and ``"lowres"``, uint8 RGB (height, width, 3), of at most 480 and 160 pixels on the longer side;
        ``"scalefactors"``; ``"metadata"``.
    ``uns["toy_visium"]``
        The parameters.

    Raises
    ------
    TypeError, ValueError
        An argument is out of its range, or a section has fewer spots than there are regions.

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
        raise ValueError(f"n_regions={n_regions} is more than a section has spots, {n_rows * n_cols}")
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
    """Sixteen letters that differ from spot to spot, and the number of the section."""
    letters = np.array(list("ACGT"))
    found: dict[str, None] = {}
    while len(found) < n_spots:
        found["".join(letters[rng.integers(4, size=16)])] = None
    return [f"{barcode}-{section}" for section in range(1, n_sections + 1) for barcode in found]


def _rate(obs: pd.DataFrame, n_vars: int, rank: int, depth: float, rng: np.random.Generator) -> np.ndarray:
    """Expected counts."""
    region, section = obs["region"].cat, obs["section"].cat
    state, loadings = rng.normal(size=(len(obs), rank)), 0.4 * rng.normal(size=(rank, n_vars)) / np.sqrt(rank)
    log_share = rng.normal(size=n_vars) + 0.15 * rng.normal(size=(len(section.categories), n_vars))[section.codes]
    log_share = log_share + 0.6 * rng.normal(size=(len(region.categories), n_vars))[region.codes] + state @ loadings
    for name in ("density", "gradient"):
        log_share += 0.4 * np.outer(obs[name], rng.normal(size=n_vars))
    # exp(normal) of this mean and spread is 1 on average
    return depth * np.exp(rng.normal(-0.045, 0.3, size=(len(obs), 1))) * softmax(log_share, axis=1)


@dataclass(frozen=True)
class _Waves:
    """A smooth random function of the position, of mean 0 and variance 1: cosines of about the same wavelength."""

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
    """What there is at any position of a section, in pixels of the full-resolution image ``(..., 2)``."""

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
        # Halfway between the depths of two spots, so that each region has its share of the spots.
        depths = np.sort(section._depth(pixels))
        first = np.arange(1, n_regions) * len(depths) // n_regions
        return cls(size, bends, nuclei, (depths[first - 1] + depths[first]) / 2, stain)

    def _depth(self, xy: np.ndarray) -> np.ndarray:
        """From 0 at the outer layer to about 1 at the innermost."""
        return (xy @ [0.35, 0.94]) / (self.size @ [0.35, 0.94]) + 0.08 * self.bends(xy)

    def region(self, xy: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.borders, self._depth(xy))

    def density(self, xy: np.ndarray) -> np.ndarray:
        return self.nuclei(xy)

    def gradient(self, xy: np.ndarray) -> np.ndarray:
        """Across what is deep, that is along the layers: 0 in the middle, from about -1.9 to 1.9."""
        return 3.5 * ((xy / self.size - 0.5) @ [0.94, -0.35])

    def image(self, darkness: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Hires image, uint8 RGB, and its pixels per pixel of the full resolution."""
        scale = min(_SCALE, _LONGEST / self.size.max())
        # Whole blocks of 3 x 3 pixels, for the lowres image; one that is full but for rounding is not followed by another.
        width, height = (3 * np.ceil(self.size * scale / 3 - 1e-9)).astype(int)
        xy = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + 0.5) / scale
        grain = _standard(gaussian_filter(rng.normal(size=(height, width)), 0.06 * _PITCH * scale))
        tint = gaussian_filter(darkness[self.region(xy)], 0.1 * _PITCH * scale)
        nuclei = 1 / (1 + np.exp(-6 * (grain - 1.1 + 0.7 * self.density(xy) + 0.4 * (tint - 0.5))))
        amount = 0.55 + 0.5 * tint + 0.05 * _standard(gaussian_filter(rng.normal(size=(height, width)), 3))
        density = amount[..., None] * ((1 - 0.6 * tint)[..., None] * _EOSIN + (0.5 * tint + 0.7 * nuclei)[..., None] * _HEMATOXYLIN)
        # Glass beyond the tissue, whose edge is as wavy as the layers.
        edge = np.minimum(xy, self.size - xy).min(axis=-1) - _PITCH * (0.6 + 0.2 * self.bends(3 * xy))
        density *= (gaussian_filter((edge > 0).astype(float), 1.0))[..., None]
        colours = _GLASS * np.exp(-density * self.stain) + 0.012 * rng.normal(size=density.shape)
        return np.rint(255 * colours.clip(0, 1)).astype(np.uint8), float(scale)


def _standard(values: np.ndarray) -> np.ndarray:
    return values / values.std()


def _as_visium(image: tuple[np.ndarray, float]) -> dict[str, Any]:
    """An entry of ``uns["spatial"]``, as :func:`scanpy.read_visium` makes it."""
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
