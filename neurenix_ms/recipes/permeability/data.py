"""Periodic porous media, with the flow along each of their axes."""

import os

import numpy as np
import scipy.sparse.csgraph
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from torch import Tensor

from neurenix_ms.datasets import SampleCache
from neurenix_ms.recipes.permeability.stokes import NUM_AXES, Array, StaggeredGrid

Kind = tuple[str, int]  # generator and radius
Sample = dict[str, Tensor]

KINDS: list[Kind] = [(name, radius) for name in ("blobs", "spheres") for radius in (4, 6)]
POROSITY = (0.35, 0.65)
TOLERANCE = 1e-4  # of the divergence, relative to that without a pressure
LEAST_CONDUCTIVITY = 1e-3  # along every axis; less is a medium without a way through
MAX_DRAWS = 1000


def boxes(
    root: str | os.PathLike[str], count: int, size: int, seed: int, *, progress: bool = True
) -> list[Sample]:
    """Return solved boxes, which alternate between the kinds, from a cache.

    Args:
        root: Folder of the cache.
        count: Number of boxes.
        size: Voxels along each axis.
        seed: Seed of all boxes; box `i` depends on it and on `i` only.
        progress: Show a progress bar while boxes are solved.
    """
    parameters = {
        "size": size,
        "seed": seed,
        "kinds": [list(kind) for kind in KINDS],
        "porosity": list(POROSITY),
        "tolerance": TOLERANCE,
    }
    cache = SampleCache(
        root, "permeability", parameters, lambda i: solved_box(i, size, seed), ("scipy",)
    )
    cache.fill(count, progress=progress)
    return [cache[i] for i in range(count)]


def solved_box(index: int, size: int, seed: int) -> Sample:
    """Draw a medium and solve for the flow along each of its axes.

    Args:
        index: Number of the box, which gives its kind.
        size: Voxels along each axis.
        seed: Seed of all boxes.

    Shape:
        `pores` and `distance` `(S, S, S)`, `velocity` `(3, S, S, S)`, whose entry `a` is the component
        along axis `a` of the flow along it; `permeability` and `conductivity` `(3,)`.

    Raises:
        RuntimeError: If none of 1000 draws lets flow through along all axes.
    """
    kind = KINDS[index % len(KINDS)]
    for draw in range(MAX_DRAWS):
        random = np.random.default_rng([seed, index, draw])
        pores = largest_component(_drawn(kind, size, random.uniform(*POROSITY), random))
        grid = StaggeredGrid(pores)
        conductivity = [grid.conductivity(axis) for axis in range(NUM_AXES)]
        if min(conductivity) > LEAST_CONDUCTIVITY:
            break
    else:
        raise RuntimeError(
            f"one of {MAX_DRAWS} media of {kind} with {size} voxels must let flow through along all "
            "axes, got none"
        )
    flows = [grid.flow(axis, TOLERANCE) for axis in range(NUM_AXES)]
    velocity = np.stack([flow.velocity[axis] for axis, flow in enumerate(flows)])
    return {
        "pores": torch.from_numpy(pores).float(),
        "distance": torch.from_numpy(periodic_distance(pores)).float(),
        "velocity": torch.from_numpy(velocity).float(),
        "permeability": torch.tensor([flow.permeability for flow in flows]),
        "conductivity": torch.tensor(conductivity),
    }


def periodic_distance(pores: Array) -> Array:
    """Return the distance of every pore voxel to the nearest solid one, in voxels, across the faces."""
    half = [n // 2 for n in pores.shape]
    around = np.pad(pores, [(n, n) for n in half], mode="wrap")
    inside = tuple(slice(n, n + m) for n, m in zip(half, pores.shape, strict=True))
    return np.asarray(distance_transform_edt(around)[inside])


def largest_component(pores: Array) -> Array:
    """Return the largest connected part of the pores of a periodic box."""
    labels, count = label(pores)
    pairs = []
    for axis in range(NUM_AXES):
        last, first = (np.take(labels, i, axis).ravel() for i in (-1, 0))
        pairs.append(np.stack([last, first])[:, (last > 0) & (first > 0)])
    joined = np.concatenate(pairs, axis=1)
    links = scipy.sparse.coo_matrix((np.ones(joined.shape[1]), joined), (count + 1,) * 2)
    _, parts = scipy.sparse.csgraph.connected_components(links, directed=False)
    voxels = np.where(labels > 0, parts[labels], -1)
    sizes = np.bincount(voxels[voxels >= 0])
    return np.asarray(voxels == sizes.argmax())


def _drawn(kind: Kind, size: int, porosity: float, random: np.random.Generator) -> Array:
    name, radius = kind
    if name == "blobs":
        noise = gaussian_filter(random.normal(size=(size,) * NUM_AXES), radius / 2, mode="wrap")
        return np.asarray(noise < np.quantile(noise, porosity))
    cells = np.meshgrid(*[np.arange(size)] * NUM_AXES, indexing="ij", sparse=True)
    pores = np.ones((size,) * NUM_AXES, dtype=bool)
    while pores.mean() > porosity:
        apart = [x - place for x, place in zip(cells, random.uniform(0, size, 3), strict=True)]
        apart = [x - size * np.round(x / size) for x in apart]  # to the nearest image
        pores &= sum(x * x for x in apart) > radius**2
    return pores
