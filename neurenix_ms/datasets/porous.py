"""Dataset of porous geometries with the potential and conductance of their pores."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from neurenix_ms._core.arguments import checked
from neurenix_ms.datasets.cache import SampleCache

MAX_DRAWS = 1000
GENERATORS = ("blobs", "overlapping_spheres", "polydisperse_spheres", "fibers")


class PorousConduction(Dataset[dict[str, Tensor]]):
    """Random porous media and the steady conduction (or diffusion) through their pores.

    A geometry is drawn by porespy, pores that do not connect the two end faces are turned into
    solid, and taufactor solves Laplace's equation in what remains: potential -0.5 and +0.5 on the
    end faces of axis 0, no flux through solid and through the other faces. Geometries without
    a connected path, or without solid, are drawn again. In 2-D these are many (half of the blobs
    at a porosity of 0.5), so the lower end of the range is rare there. Solutions that did not
    converge are reported by a warning and replaced in the same way.

    Sample `i` depends on `seed`, `i` and the parameters below only, not on `num_samples` and not
    on earlier runs. Samples are computed at construction, with a progress bar, and cached under
    `root` in a folder for this set of parameters; a second run, or one after an interruption,
    computes only missing samples. Corrupted or foreign files are reported and computed again.

    Args:
        root: Folder for the cached samples.
        num_samples: Number of samples.
        size: Cells along each axis, one number or one per axis; at least 4.
        spatial_dims: 2 or 3.
        generator: `"blobs"` (a thresholded, blurred noise), `"overlapping_spheres"` (solid
            spheres at random places, discs in 2-D), `"polydisperse_spheres"` (the same, of several
            radii) or `"fibers"` (straight solid cylinders in random directions, 3-D only).
        porosity: Lower and upper end of the range from which the porosity is drawn uniformly.
            Removing unconnected pores lowers it.
        seed: Seed of all samples, not negative.
        grain_radius: Radius of the spheres or fibers in cells; blobs are blurred over half of it,
            and polydisperse spheres have from half of it to one and a half.
        tolerance: A solution has converged when the flux through its layers differs by no more
            than this fraction of the largest. At 1e-3, the error of `D_rel` is about 3e-4 at most.
        max_iterations: Largest number of sweeps before a solution counts as not converged; at least
            200, since taufactor compares every hundredth with the one before.
        device: Device on which taufactor solves, `"cpu"` or `"cuda"`; not a recorded parameter.
        progress: Show a progress bar while samples are computed.

    Shape:
        An item is a dict of float32 tensors. Lengths are in cells, the potential is in units of
        the difference between the two end faces.

        - `pores`: `(1, *S)`, 1 in connected pores, 0 in solid.
        - `distance`: `(1, *S)`, distance in cells from the center of a pore cell to that of the
          nearest solid cell, 0 in solid. The faces of the box do not count as solid.
        - `potential`: `(1, *S)`, between -0.5 and 0.5, rising along axis 0; 0 in solid.
        - `D_rel`: `()`, conductance relative to the empty box, between 0 and 1.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If samples must be computed and porespy, taufactor or scipy is missing.
        RuntimeError: If none of 1000 draws is a usable geometry.
        IndexError: If there is no such sample.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     data = PorousConduction(root, 1, size=16, spatial_dims=2, progress=False)
        ...     data[0]["potential"].shape
        torch.Size([1, 16, 16])
    """

    @checked
    def __init__(
        self,
        root: str | os.PathLike[str],
        num_samples: int,
        size: int | Sequence[int] = 64,
        spatial_dims: Literal[2, 3] = 3,
        generator: Literal[
            "blobs", "overlapping_spheres", "polydisperse_spheres", "fibers"
        ] = "blobs",
        porosity: tuple[float, float] = (0.3, 0.7),
        seed: int = 0,
        *,
        grain_radius: int = 4,
        tolerance: float = 1e-3,
        max_iterations: int = 10_000,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        shape = tuple(size) if isinstance(size, Sequence) else (size,) * spatial_dims
        if len(shape) != spatial_dims or min(shape) < 4:
            raise ValueError(
                f"size must be at least 4 along each of {spatial_dims} axes, got {size}"
            )
        if generator not in GENERATORS:
            raise ValueError(f"generator must be one of {list(GENERATORS)}, got {generator!r}")
        if generator == "fibers" and spatial_dims != 3:
            raise ValueError(f'generator "fibers" needs spatial_dims 3, got {spatial_dims}')
        if len(porosity) != 2 or not 0 < porosity[0] <= porosity[1] < 1:
            raise ValueError(
                f"porosity must be a range (low, high) between 0 and 1, got {porosity}"
            )
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if grain_radius < 1:
            raise ValueError(f"grain_radius must be at least 1 cell, got {grain_radius}")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
        if max_iterations < 200:
            raise ValueError(f"max_iterations must be at least 200, got {max_iterations}")
        self.root = root
        self.num_samples = num_samples
        self.size = size
        self.shape = shape
        self.spatial_dims = spatial_dims
        self.generator = generator
        self.porosity = porosity
        self.seed = seed
        self.grain_radius = grain_radius
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.device = device
        self.progress = progress
        parameters = {
            "size": list(shape),
            "generator": generator,
            "porosity": [float(bound) for bound in porosity],
            "seed": seed,
            "grain_radius": grain_radius,
            "tolerance": tolerance,
            "max_iterations": max_iterations,
        }
        self.cache = SampleCache(
            root,
            f"porous_conduction_{spatial_dims}d",
            parameters,
            self._make,
            packages=("porespy", "taufactor"),
        )
        self.cache.fill(num_samples, progress=progress)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index must lie between 0 and {self.num_samples - 1}, got {index}")
        return {name: value.float() for name, value in self.cache[index].items()}

    def _make(self, index: int) -> dict[str, Tensor]:
        sample = first_solved(
            partial(self._draw, index), index, self.tolerance, self.max_iterations, self.device
        )
        if sample is not None:
            return sample
        raise RuntimeError(
            f"none of {MAX_DRAWS} geometries of sample {index} conducts with a converged solution; "
            f"ask for a higher porosity than {self.porosity} or more than {self.max_iterations} "
            "iterations"
        )

    def _draw(self, index: int, draw: int) -> Any:
        """Return a boolean array of the connected pores of one geometry."""
        import numpy as np

        porespy = import_solvers()[0]
        random = np.random.default_rng([self.seed, index, draw])
        porosity = random.uniform(*self.porosity)
        seed = int(random.integers(2**32))
        state = np.random.get_state()  # porespy seeds numpy's global generator
        try:
            pores = _generated(self.generator, self.shape, self.grain_radius, porosity, seed)
        finally:
            np.random.set_state(state)
        return porespy.filters.trim_nonpercolating_paths(pores, axis=0)


def _generated(
    generator: str, shape: tuple[int, ...], radius: int, porosity: float, seed: int
) -> Any:
    """Return a boolean array of the pores of one geometry, unconnected ones included."""
    import numpy as np

    if generator == "fibers":
        return _fibers(shape, radius, porosity, seed)
    make = getattr(import_solvers()[0].generators, generator)
    if generator == "blobs":
        # porespy blurs over mean(shape) / (40 blobiness) cells
        blobiness = np.mean(shape) / (40 * radius / 2)
        return make(shape, porosity=porosity, blobiness=blobiness, seed=seed)
    if generator == "polydisperse_spheres":
        import scipy.stats

        radii = scipy.stats.uniform(loc=radius / 2, scale=radius)
        return make(shape, porosity=porosity, dist=radii, r_min=1, seed=seed)
    return make(shape, r=radius, porosity=porosity, seed=seed)


def _fibers(shape: tuple[int, ...], radius: int, porosity: float, seed: int) -> Any:
    """Place straight fibers, endless and in random directions, until the porosity is reached."""
    import numpy as np

    random = np.random.default_rng(seed)
    middle = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    cells = np.meshgrid(*middle, indexing="ij", sparse=True)
    reach = np.linalg.norm(shape) / 2 + radius  # radius of a sphere around the box
    pores = np.ones(shape, dtype=bool)
    while pores.mean() > porosity:
        direction, *across = np.linalg.qr(random.normal(size=(3, 3)))[0].T
        # uniform in the disc across the fiber, so that all lines through the sphere are as likely
        place = random.uniform(-reach, reach, size=2)
        if np.linalg.norm(place) > reach:
            continue
        place = place @ np.stack(across)
        offsets = [x - np.float32(p) for x, p in zip(cells, place, strict=True)]
        along = sum(x * np.float32(d) for x, d in zip(offsets, direction, strict=True))
        pores &= sum(x * x for x in offsets) - along * along > radius**2
    return pores


def first_solved(
    draw: Callable[[int], Any],
    index: int,
    tolerance: float,
    max_iterations: int,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor] | None:
    """Draw geometries until one conducts and its solution converges; None if none does.

    Args:
        draw: Returns the connected pores of the draw of a number.
        index: Number of the sample, for warnings.
        tolerance: Largest relative difference of the flux through the layers of a solution.
        max_iterations: Largest number of sweeps, at least 200.
        device: Device of the solver.
    """
    for number in range(MAX_DRAWS):
        pores = draw(number)
        if not pores.any() or pores.all():
            continue
        sample = solved(pores, tolerance, max_iterations, device)
        if sample is not None:
            return sample
        warnings.warn(
            f"draw {number} of sample {index} is omitted: taufactor did not converge to "
            f"{tolerance} in {max_iterations} iterations; the next draw replaces it",
            stacklevel=3,
        )
    return None


def solved(
    pores: Any, tolerance: float, max_iterations: int, device: str | torch.device = "cpu"
) -> dict[str, Tensor] | None:
    """Solve for the potential in pores that connect the end faces; None if it does not converge.

    Args:
        pores: Boolean array of two or three axes.
        tolerance: Largest relative difference of the flux through the layers of a solution.
        max_iterations: Largest number of sweeps, at least 200.
        device: Device of the solver.

    Returns:
        An item of `PorousConduction`.
    """
    _, taufactor, ndimage = import_solvers()
    volume = pores.reshape(*pores.shape, *(1,) * (3 - pores.ndim))
    solver = taufactor.Solver(volume.astype("float32"), device=device)
    with contextlib.redirect_stdout(io.StringIO()):  # taufactor prints its warnings
        solver.solve(iter_limit=max_iterations, verbose=False, conv_crit=tolerance)
    # one ghost layer on every side
    potential = solver.field[0, 1:-1, 1:-1, 1:-1].reshape(pores.shape).cpu()
    conductance = float(solver.D_rel[0])
    # taufactor counts a flux of NaN as converged
    if not (bool(solver.converged) and conductance > 0 and bool(potential.isfinite().all())):
        return None
    return {
        "pores": torch.from_numpy(pores)[None],
        "distance": torch.from_numpy(ndimage.distance_transform_edt(pores)).float()[None],
        "potential": potential[None],
        "D_rel": torch.tensor(conductance),
    }


@checked
def effective_conductivity(potential: Tensor, pores: Tensor) -> Tensor:
    """Compute the conductance of a box relative to the empty box from the potential in its pores.

    The flux between neighboring pore cells is summed over each layer of faces along the first
    spatial axis, averaged over the layers and divided by that of an empty box. A solution has the
    same flux in every layer. In a prediction the mean averages local errors, whereas the energy of
    the gradient would add their squares.

    The difference of the potential between the two end faces of the box is 1, and the faces lie
    half a cell beyond the centers of the first and last cell, so the empty box of N cells has
    steps of 1/N. Only the N - 1 layers between cells count, as in taufactor, so that its solution
    has its `D_rel`. The result is differentiable in both arguments; `pores` may be fractions.

    Args:
        potential: Potential at the centers of the cells; its values in solid have no effect.
        pores: 1 in pores, 0 in solid.

    Shape:
        `(B, 1, *S)` and `(B, 1, *S)` -> `(B,)`, for one to three spatial axes

    Raises:
        ValueError: If the shapes differ from these, or the first axis has a single cell.

    Examples:
        >>> potential = (torch.arange(8) + 0.5).view(1, 1, 8, 1) / 8 - 0.5
        >>> channel = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 8, 4)
        >>> effective_conductivity(potential.expand(1, 1, 8, 4), channel)
        tensor([0.5000])
    """
    if not 3 <= potential.ndim <= 5 or potential.shape[1] != 1:
        raise ValueError(
            f"potential must be (B, 1) and 1 to 3 spatial axes, got shape {tuple(potential.shape)}"
        )
    if pores.shape != potential.shape:
        raise ValueError(
            f"pores must have the shape {tuple(potential.shape)} of the potential, "
            f"got {tuple(pores.shape)}"
        )
    num_cells = potential.shape[2]
    if num_cells < 2:
        raise ValueError(f"the first spatial axis must have 2 cells or more, got {num_cells}")
    pores = pores.to(potential.dtype)
    open_faces = pores[:, :, 1:] * pores[:, :, :-1]
    steps = potential[:, :, 1:] - potential[:, :, :-1]
    return num_cells * (steps * open_faces).flatten(1).mean(dim=1)


def import_solvers() -> tuple[Any, Any, Any]:
    """Return porespy, taufactor and scipy.ndimage."""
    try:
        import porespy
        import scipy.ndimage
        import taufactor
    except ImportError as error:
        raise ImportError(
            "PorousConduction needs porespy, taufactor and scipy: "
            "pip install 'neurenix_ms[datasets]'"
        ) from error
    return porespy, taufactor, scipy.ndimage
