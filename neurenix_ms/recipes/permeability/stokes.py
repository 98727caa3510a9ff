"""Stokes flow and conduction in the voxels of periodic porous media, solved with sparse matrices.

The length of a voxel, the viscosity and the force per volume are 1. So the mean velocity of the box is
its permeability, in squares of a voxel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse import linalg

NUM_AXES = 3
MAX_ITERATIONS = 5000
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Flow:
    """Flow driven by a unit force along one axis.

    Args:
        faces: Velocity `(3, *S)` through the faces: entry `i` of component `a` is the one between voxel
            `i` and the next one along axis `a`; 0 at solid.
        velocity: Velocity `(3, *S)` at the centers of the voxels, the mean of both faces of each.
        permeability: Mean velocity of the whole box along the force, in squares of a voxel.
        divergence: Largest difference of inflow and outflow of a voxel.
    """

    faces: Array
    velocity: Array
    permeability: float
    divergence: float


class StaggeredGrid:
    """Sparse matrices of the pores of a periodic box, on a staggered (MAC) grid.

    Velocities are at the faces between two pore voxels, pressure and potential at the centers of pore
    voxels. The velocity of a face at solid is 0. Along a wall, which is half a voxel away from the
    velocities next to it, it is 0 on the wall.

    Args:
        pores: Boolean array of three axes, True in pores.

    Raises:
        ValueError: If the array is not boolean with three axes, or has no pores or no solid.

    Source: Harlow and Welch 1965, "Numerical calculation of time-dependent viscous incompressible flow".

    Examples:
        >>> channel = np.ones((2, 2, 5), dtype=bool)
        >>> channel[:, :, 4] = False  # a solid plane: four voxels are open
        >>> k = StaggeredGrid(channel).flow(axis=0).permeability
        >>> round(k * 5 / 4, 6), (4**2 + 2) / 12  # of the open part, and its closed form on voxels
        (1.5, 1.5)
    """

    def __init__(self, pores: Array) -> None:
        if pores.dtype != bool or pores.ndim != NUM_AXES:
            raise ValueError(
                f"pores must be a boolean array of three axes, got {pores.dtype} of shape {pores.shape}"
            )
        if pores.all() or not pores.any():
            raise ValueError(f"pores must have pores and solid, got a porosity of {pores.mean():g}")
        self.pores = pores
        self.open = [pores & np.roll(pores, -1, axis) for axis in range(NUM_AXES)]
        self.gradients = [self._gradient(axis) for axis in range(NUM_AXES)]
        self.divergences = [-gradient.T.tocsr() for gradient in self.gradients]
        self._viscous: list[Any] | None = None

    def flow(self, axis: int, tolerance: float = 1e-6) -> Flow:
        """Solve for the flow that a unit force along an axis drives.

        The pressure is found by conjugate gradients on its Schur complement, each step with a
        factorization of the viscous terms, which is made once for all axes.

        Args:
            axis: Axis of the force.
            tolerance: Largest norm of the divergence, relative to that without a pressure.

        Raises:
            RuntimeError: If it is not reached in 5000 steps.
        """
        if self._viscous is None:
            self._viscous = [_factorized(self._viscous_terms(a)) for a in range(NUM_AXES)]
        viscous = self._viscous

        def without_divergence(pressure: Array) -> Array:
            return -sum(
                divergence @ solve(gradient @ pressure)
                for divergence, solve, gradient in zip(
                    self.divergences, viscous, self.gradients, strict=True
                )
            )

        free = viscous[axis](np.ones(self.gradients[axis].shape[0]))
        inflow = -self.divergences[axis] @ free
        pressure = _conjugate_gradients(without_divergence, inflow, tolerance)
        velocities = [
            -solve(g @ pressure) for solve, g in zip(viscous, self.gradients, strict=True)
        ]
        velocities[axis] = velocities[axis] + free
        left = sum(d @ v for d, v in zip(self.divergences, velocities, strict=True))
        faces = np.zeros((NUM_AXES, *self.pores.shape))
        for component, where, values in zip(faces, self.open, velocities, strict=True):
            component[where] = values
        centers = [(faces[a] + np.roll(faces[a], 1, a)) / 2 for a in range(NUM_AXES)]
        return Flow(faces, np.stack(centers), float(faces[axis].mean()), float(np.abs(left).max()))

    def conductivity(self, axis: int, tolerance: float = 1e-6) -> float:
        """Solve for the conductivity along an axis, relative to the empty box.

        Args:
            axis: Axis of the mean gradient of the potential.
            tolerance: Largest norm of the divergence of the flux, relative to that of a linear one.

        Raises:
            RuntimeError: If it is not reached in 5000 steps.
        """

        def outflow(potential: Array) -> Array:
            return -sum(
                divergence @ (gradient @ potential)
                for divergence, gradient in zip(self.divergences, self.gradients, strict=True)
            )

        linear = self.divergences[axis] @ np.ones(self.gradients[axis].shape[0])
        potential = _conjugate_gradients(outflow, linear, tolerance)
        return float(np.sum(1 + self.gradients[axis] @ potential) / self.pores.size)

    def _gradient(self, axis: int) -> Any:
        """Return the matrix of the differences between the voxels of every open face."""
        number = np.cumsum(self.pores).reshape(self.pores.shape) - 1
        where = self.open[axis]
        low, high = number[where], np.roll(number, -1, axis)[where]
        rows = np.arange(len(low))
        values = np.concatenate([np.ones(len(low)), -np.ones(len(low))])
        places = np.concatenate([rows, rows]), np.concatenate([high, low])
        return scipy.sparse.csr_matrix((values, places), (len(low), int(self.pores.sum())))

    def _viscous_terms(self, axis: int) -> Any:
        """Return minus the Laplacian of the velocity through the faces along an axis."""
        where = self.open[axis]
        solid = ~(self.pores | np.roll(self.pores, -1, axis))  # both voxels of a face
        number = np.cumsum(where).reshape(where.shape) - 1
        diagonal = np.zeros(int(where.sum()))
        rows, columns = [], []
        for other in range(NUM_AXES):
            for step in (1, -1):
                beside = np.roll(where, step, other)[where]
                # the velocity is 0 at a face at solid, and half a voxel away if both voxels are solid
                wall = np.where(np.roll(solid, step, other)[where], 2.0, 1.0)
                diagonal += np.where(beside, 1.0, wall)
                rows.append(np.flatnonzero(beside))
                columns.append(np.roll(number, step, other)[where][beside])
        row, column = np.concatenate(rows), np.concatenate(columns)
        size = len(diagonal), len(diagonal)
        between = scipy.sparse.csc_matrix((-np.ones(len(row)), (row, column)), size)
        return (between + scipy.sparse.diags(diagonal)).tocsc()


def _factorized(matrix: Any) -> Any:
    """Return a function that solves with a symmetric positive matrix."""
    if not matrix.shape[0]:
        return lambda force: force
    options = {"SymmetricMode": True}
    ordering = "MMD_AT_PLUS_A"
    return linalg.splu(matrix, ordering, diag_pivot_thresh=0.0, options=options).solve


def _conjugate_gradients(apply: Any, right: Array, tolerance: float) -> Array:
    """Solve a consistent system whose matrix is symmetric and positive up to constants."""
    size = len(right), len(right)
    operator = linalg.LinearOperator(size, matvec=apply, dtype=float)
    # rounding leaves a right-hand side that is 0 in exact arithmetic, as in straight channels
    solution, failed = linalg.cg(
        operator, right, rtol=tolerance, atol=1e-12, maxiter=MAX_ITERATIONS
    )
    if failed:
        raise RuntimeError(
            f"the solver must reach a tolerance of {tolerance:g}, got none after {MAX_ITERATIONS} steps"
        )
    return np.asarray(solution)
