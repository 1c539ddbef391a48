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
    """Find the neighbours of each spot, ring by ring: the first ring as in squidpy, then the spots exactly 2, 3, ... steps away.

    If there is already a graph of another function, such as :mod:`squidpy.gr`, it stays unchanged and becomes the first ring. Only the
    further rings are added.

    Parameters
    ----------
    adata
        Object with the positions of the spots (or cells) in ``obsm["spatial"]``, in two or three dimensions.
    n_neighs
        Neighbours of a spot in the first ring. ``"generic"``: the nearest spots. If spot A has B as a neighbour, B also gets A, so that
        the graph is symmetric. ``"grid"``: 6 on Visium's hexagonal grid. On a square grid 4 (also with the default, 6) or, with the
        diagonals, 8. A spot at a border or a hole has fewer.
    n_rings
        Number of rings. Ring 2 has the neighbours of neighbours, without the first ring and the spot itself, and so on.
    library_key
        Column of ``obs`` with the section (slide) of each spot: no edge joins two sections.
    coord_type
        ``"grid"``: spots on a lattice. ``"generic"``: spots or cells anywhere. None chooses ``"grid"`` if ``obs["array_row"]`` and
        ``obs["array_col"]`` have whole numbers, or if ``uns["spatial"]`` exists and the positions are near-regular. squidpy checks only
        ``uns["spatial"]``.
    key_added
        Prefix of the names of the results.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy with ``copy=True``. The function writes the following entries. The first three have the names and content of squidpy.

    ``adata.obsp[f"{key_added}_connectivities"]``
        First ring: ones, CSR float32, symmetric.
    ``adata.obsp[f"{key_added}_distances"]``
        Distances in the first ring: 1 on a grid, Euclidean otherwise. A distance of 0 is not stored.
    ``adata.uns[f"{key_added}_neighbors"]``
        The keys of both matrices and their parameters.
    ``adata.obsp[f"{key_added}_ring2"]``, ...
        Further rings, each ones, CSR float32, symmetric.
    ``adata.uns[f"{key_added}_rings"]``
        The parameters and the names of the further rings. The parameter ``"lattice"`` is ``"hexagonal"``, ``"square"``, ``"measured"``
        (known from the positions only) or ``"none"``.

    Raises
    ------
    KeyError
        ``obsm["spatial"]`` or the column of ``obs`` does not exist.
    ValueError
        Positions are NaN or do not have 2 or 3 columns; spots of one section are at the same place, as in joined samples (pass
        ``library_key``); an existing graph has NaN or negative values; ``n_neighs`` does not fit the grid; ``n_neighs`` or ``coord_type``
        differs from the settings of an existing graph; a key is in use.

    Notes
    -----
    ``obs`` shows whether a grid is hexagonal. In Visium's array every other column of each row is empty, so row plus column is even in
    all spots. Array rows and columns (also of a square grid) then determine the neighbours. Without them, spots are neighbours up to 1.3
    times the most common distance (with the diagonals of a square grid, 1.3 times the distance along the diagonal). A missing spot is not
    a neighbour, and no other spot replaces it.

    For the further rings, an asymmetric graph is made symmetric and its diagonal is ignored. Call this function again after you select
    some of the spots: the old rings may join spots whose connection is gone.

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
    foreign = keys.connectivities(key_added) in names_in(adata, "obsp") and not _is_ours(adata, key_added)
    earlier = _earlier(adata, key_added, foreign)
    _check_free(adata, key_added, n_rings, earlier, foreign)
    warn_of_spots_off_tissue(adata, "taken as neighbours of the others")

    params: dict[str, Any] = {"n_rings": n_rings, "graph": "given" if foreign else "own"}
    if library_key is not None:
        params["library_key"] = library_key
    obsp, uns = {}, {}
    if foreign:
        _check_settings(adata, key_added, n_neighs, coord_type)
        sections = None if library_key is None else read_sections(adata, library_key)
        further = read_rings(adata, n_rings, sections, key_added)[1:]
        logg.info(f"adata.obsp[{keys.connectivities(key_added)!r}] is there already; it stays as it is and only further rings are added")
    else:
        graph = find_neighbours(adata, read_sections(adata, library_key), n_neighs, coord_type)
        further = further_rings(graph.connectivities, n_rings)
        params |= {"n_neighs": n_neighs, "coord_type": graph.coord_type, "lattice": graph.lattice or "none"}
        obsp = {keys.connectivities(key_added): graph.connectivities, keys.distances(key_added): graph.distances}
        uns = {keys.neighbors(key_added): _as_squidpy(key_added, n_neighs, graph.coord_type)}
    rings = {keys.ring(key_added, number): ring for number, ring in enumerate(further, start=2)}
    key = keys.rings(key_added)
    uns[key] = {"params": params, "rings": list(rings)}
    return write(adata, key, _NAME, {"obsp": {**obsp, **rings}}, uns, earlier={"obsp": earlier}, copy=copy)


def _is_ours(adata: AnnData, key: str) -> bool:
    """Whether this function wrote the first ring. Its mark is in squidpy's place in ``uns``: another graph overwrites the mark."""
    return written_by(adata, keys.neighbors(key)) == _NAME


def _earlier(adata: AnnData, key: str, foreign: bool) -> set[str]:
    """Names in ``obsp`` that an earlier call of this function wrote."""
    names = set(map(str, records(adata)[keys.rings(key)]["rings"])) if written_by(adata, keys.rings(key)) == _NAME else set()
    if not foreign and _is_ours(adata, key):
        names |= {keys.connectivities(key), keys.distances(key)}
    return names


def _check_free(adata: AnnData, key: str, n_rings: int, earlier: set[str], foreign: bool) -> None:
    """Refuse to overwrite entries of other functions."""
    names = {keys.ring(key, number) for number in range(2, n_rings + 1)} | (set() if foreign else {keys.distances(key)})
    conflicts = [f"obsp[{name!r}]" for name in sorted(names - earlier) if name in names_in(adata, "obsp")]
    entries = [keys.rings(key)] if foreign else [keys.rings(key), keys.neighbors(key)]
    conflicts += [f"uns[{name!r}]" for name in entries if name in names_in(adata, "uns") and written_by(adata, name) != _NAME]
    if conflicts:
        raise ValueError(
            f"key_added={key!r}: {', '.join(conflicts)} exist and were not written by {_NAME}; choose another key or delete them"
        )


def _check_settings(adata: AnnData, key: str, n_neighs: int, coord_type: str | None) -> None:
    """Refuse settings that differ from the existing graph: they would have no effect."""
    params = params_of(adata, keys.neighbors(key))
    settings = []
    if n_neighs not in (N_NEIGHS, params.get("n_neighbors")):
        settings.append(f"n_neighs={n_neighs}")
    if coord_type not in (None, params.get("coord_type")):
        settings.append(f"coord_type={coord_type!r}")
    if settings:
        raise ValueError(
            f"adata.obsp[{keys.connectivities(key)!r}] exists and stays as it is, so {' and '.join(settings)} would have no effect; "
            "leave it out, delete the graph, or choose another key_added"
        )


def _as_squidpy(key: str, n_neighs: int, coord_type: str) -> dict[str, Any]:
    """The entry of ``uns`` that squidpy writes for such a graph."""
    params: dict[str, Any] = {"coord_type": coord_type, "n_neighbors": n_neighs, "transform": None}
    if coord_type == "grid":
        params |= {"n_rings": 1, "delaunay": False}
    return {"connectivities_key": keys.connectivities(key), "distances_key": keys.distances(key), "params": params}
