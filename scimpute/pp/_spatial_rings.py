from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanpy import logging as logg

from .. import _check
from .._anndata import keys
from .._anndata.read import names_in
from .._anndata.results import params_of, records, written_by
from .._anndata.sections import read_sections, warn_of_spots_off_tissue
from .._anndata.space import COORD_TYPES, N_NEIGHS, find_neighbours, read_rings
from .._anndata.write import check_writable, write
from .._keywords import helpful
from .._space.graph import further_rings

if TYPE_CHECKING:
    from anndata import AnnData

_NAME = "spatial_rings"


@helpful
def spatial_rings(
    adata: AnnData,
    *,
    n_neighs: int = 6,
    n_rings: int = 2,
    library_key: str | None = None,
    coord_type: str | None = None,
    key_added: str = "spatial",
    copy: bool = False,
) -> AnnData | None:
    """Find the neighbours of every spot, ring by ring: the first as squidpy does, and the spots exactly 2, 3, ... steps away.

    A graph that is there already and that this function did not write, such as that of :mod:`squidpy.gr`, is taken as it is: it stays
    untouched, and only the further rings are added.

    Parameters
    ----------
    adata
        Object with the positions of the spots (or cells) in ``obsm["spatial"]``, in two or three dimensions.
    n_neighs
        Neighbours of a spot in the first ring. ``"generic"``: its nearest spots, and those it is among the nearest of, so that the graph
        is symmetric. ``"grid"``: 6 on Visium's hexagonal grid; on a square one 4 (also where 6, the default, is given) or, with the
        diagonals, 8. A spot at a border or a hole has fewer.
    n_rings
        Number of rings. Ring 2 has the neighbours of neighbours, without the first ring and the spot itself, and so on.
    library_key
        Column of ``obs`` with the section (slide) of each spot: no edge joins two sections.
    coord_type
        ``"grid"``: spots on a lattice. ``"generic"``: spots or cells anywhere. None: ``"grid"`` where ``obs["array_row"]`` and
        ``obs["array_col"]`` have whole numbers, or ``uns["spatial"]`` is there and the positions are near-regular. squidpy looks
        at ``uns["spatial"]`` alone.
    key_added
        What the results are called by.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. Written are, the first three named and made as by squidpy,

    ``adata.obsp[f"{key_added}_connectivities"]``
        First ring: ones, CSR float32, symmetric.
    ``adata.obsp[f"{key_added}_distances"]``
        Its distances: 1 on a grid, Euclidean otherwise (0, at the same place, is not stored).
    ``adata.uns[f"{key_added}_neighbors"]``
        The keys of both and their parameters.
    ``adata.obsp[f"{key_added}_ring2"]``, ...
        Further rings, each ones, CSR float32, symmetric.
    ``adata.uns[f"{key_added}_rings"]``
        The parameters, among them the ``"lattice"`` that was found (``"hexagonal"``, ``"square"``, ``"measured"`` where only the
        positions tell, ``"none"``), and the names of the further rings.

    Raises
    ------
    KeyError
        There is no ``obsm["spatial"]``, or no such column of ``obs``.
    ValueError
        Positions are NaN or not 2 or 3 columns; spots of one section are at the same place, as in samples that were joined: pass
        ``library_key``; the graph that is there has NaN or negative values; ``n_neighs`` does not fit the grid,
        or it or ``coord_type`` differs from what the graph that is there was made with; a key is taken.

    Notes
    -----
    Whether a grid is hexagonal is seen from ``obs``: in Visium's array every other column of every row is empty, so that row plus
    column is even in all spots. Its rows and columns (also those of a square grid) then say who is next to whom; without them, spots
    count as neighbours up to 1.3 times the distance between most (with the diagonals of a square grid, 1.3 times that of the
    diagonal). A missing spot is no neighbour, and no other takes its place.

    A graph that is not symmetric is made so for the further rings; its diagonal is not regarded. After taking a subset of the spots,
    call this again: rings of the whole may then join spots whose connection is gone.

    Examples
    --------
    >>> import scimpute
    >>> adata = scimpute.datasets.toy_visium()
    >>> scimpute.pp.spatial_rings(adata)
    >>> int(adata.obsp["spatial_connectivities"].sum(axis=1).max()), int(adata.obsp["spatial_ring2"].sum(axis=1).max())
    (6, 12)
    """
    check_writable(adata, copy)
    _check.key_name("key_added", key_added)
    n_neighs, n_rings = _check.integer("n_neighs", n_neighs), _check.integer("n_rings", n_rings)
    if coord_type is not None:
        _check.option("coord_type", coord_type, COORD_TYPES)
    given = keys.connectivities(key_added) in names_in(adata, "obsp") and not _is_ours(adata, key_added)
    earlier = _earlier(adata, key_added, given)
    _check_free(adata, key_added, n_rings, earlier, given)
    warn_of_spots_off_tissue(adata, "taken as neighbours of the others")

    params: dict[str, Any] = {"n_rings": n_rings, "graph": "given" if given else "own"}
    if library_key is not None:
        params["library_key"] = library_key
    obsp, uns = {}, {}
    if given:
        _check_settings(adata, key_added, n_neighs, coord_type)
        sections = None if library_key is None else read_sections(adata, library_key)
        further = read_rings(adata, n_rings, sections, key_added)[1:]
        logg.info(f"adata.obsp[{keys.connectivities(key_added)!r}] is there already; it stays as it is and only further rings are added")
    else:
        found = find_neighbours(adata, read_sections(adata, library_key), n_neighs, coord_type)
        further = further_rings(found.connectivities, n_rings)
        params |= {"n_neighs": n_neighs, "coord_type": found.coord_type, "lattice": found.lattice or "none"}
        obsp = {keys.connectivities(key_added): found.connectivities, keys.distances(key_added): found.distances}
        uns = {keys.neighbors(key_added): _as_squidpy(key_added, n_neighs, found.coord_type)}
    rings = {keys.ring(key_added, number): ring for number, ring in enumerate(further, start=2)}
    key = keys.rings(key_added)
    uns[key] = {"params": params, "rings": list(rings)}
    return write(adata, key, _NAME, {"obsp": {**obsp, **rings}}, uns, earlier={"obsp": earlier}, copy=copy)


def _is_ours(adata: AnnData, key: str) -> bool:
    """Whether the first ring is of this function: the mark lies where squidpy's would be, so another graph takes it away."""
    return written_by(adata, keys.neighbors(key)) == _NAME


def _earlier(adata: AnnData, key: str, given: bool) -> set[str]:
    """What this function wrote to obsp before."""
    names = set(map(str, records(adata)[keys.rings(key)]["rings"])) if written_by(adata, keys.rings(key)) == _NAME else set()
    if not given and _is_ours(adata, key):
        names |= {keys.connectivities(key), keys.distances(key)}
    return names


def _check_free(adata: AnnData, key: str, n_rings: int, earlier: set[str], given: bool) -> None:
    """Refuse to overwrite what this function did not write."""
    names = {keys.ring(key, number) for number in range(2, n_rings + 1)} | (set() if given else {keys.distances(key)})
    taken = [f"obsp[{name!r}]" for name in sorted(names - earlier) if name in names_in(adata, "obsp")]
    entries = [keys.rings(key)] if given else [keys.rings(key), keys.neighbors(key)]
    taken += [f"uns[{name!r}]" for name in entries if name in names_in(adata, "uns") and written_by(adata, name) != _NAME]
    if taken:
        raise ValueError(f"key_added={key!r}: {', '.join(taken)} exist and were not written by {_NAME}; choose another key or delete them")


def _check_settings(adata: AnnData, key: str, n_neighs: int, coord_type: str | None) -> None:
    """Refuse settings that the graph which is there does not have: they would have no effect."""
    made_with = params_of(adata, keys.neighbors(key))
    wanted = []
    if n_neighs not in (N_NEIGHS, made_with.get("n_neighbors")):
        wanted.append(f"n_neighs={n_neighs}")
    if coord_type not in (None, made_with.get("coord_type")):
        wanted.append(f"coord_type={coord_type!r}")
    if wanted:
        raise ValueError(
            f"adata.obsp[{keys.connectivities(key)!r}] is there already and is taken as it is, so {' and '.join(wanted)} would have no "
            "effect; leave it out, delete the graph, or choose another key_added"
        )


def _as_squidpy(key: str, n_neighs: int, coord_type: str) -> dict[str, Any]:
    """What squidpy writes beside such a graph."""
    params: dict[str, Any] = {"coord_type": coord_type, "n_neighbors": n_neighs, "transform": None}
    if coord_type == "grid":
        params |= {"n_rings": 1, "delaunay": False}
    return {"connectivities_key": keys.connectivities(key), "distances_key": keys.distances(key), "params": params}
