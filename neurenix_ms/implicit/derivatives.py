"""Exact derivatives of a field with respect to parameters and coordinates.

All derivatives use reverse mode over reverse mode, because the swish has no second derivative in
forward mode. They can be differentiated once more by the weights, so residuals of equations can be
losses.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown

Field = Callable[[Tensor, Tensor], Tensor]


@checked
def gradient(model: Field, p: Tensor, x: Tensor) -> Tensor:
    """Compute the first derivatives of every field value by parameters and coordinates.

    One backward pass per field value is enough for all pairs, as no pair depends on another.

    Args:
        model: Function from p `(N, P)` and x `(N, d)` to `(N, out)`, each pair independently.
        p: Parameters.
        x: Points.

    Returns:
        `(N, out, P + d)`, parameters first.

    Examples:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> gradient(lambda p, x: p * x**2, torch.full((2, 1), 2.0), x)
        tensor([[[ 1.,  4.]],
        <BLANKLINE>
                [[ 9., 12.]]])
    """
    rows = _inputs(p, x)
    return _derivative(_joined(model, p.shape[1]))(rows)


@checked
def hessian(model: Field, p: Tensor, x: Tensor) -> Tensor:
    """Compute the second derivatives of every field value by parameters and coordinates.

    Use it for mixed derivatives. For the Laplacian alone, `laplacian` costs less, as it omits the
    parameters.

    Args:
        model: Function from p `(N, P)` and x `(N, d)` to `(N, out)`, each pair independently.
        p: Parameters.
        x: Points.

    Returns:
        `(N, out, P + d, P + d)`, parameters first.

    Examples:
        >>> hessian(lambda p, x: p * x**2, torch.full((1, 1), 2.0), torch.ones(1, 1))
        tensor([[[[0., 2.],
                  [2., 4.]]]])
    """
    rows = _inputs(p, x)
    return _derivative(_derivative(_joined(model, p.shape[1])))(rows)


@checked
def laplacian(model: Field, p: Tensor, x: Tensor) -> Tensor:
    """Compute the Laplacian, the sum of the second derivatives along each coordinate.

    It is exact at any point and needs no mesh. Use it for residuals of equations as losses, and to
    inspect a trained field. The memory grows with the number of points.

    Args:
        model: Function from p `(N, P)` and x `(N, d)` to `(N, out)`, each pair independently.
        p: Parameters.
        x: Points.

    Returns:
        `(N, out)`

    Examples:
        >>> laplacian(lambda p, x: (x**2).sum(1, keepdim=True), torch.zeros(1, 1), torch.ones(1, 3))
        tensor([[6.]])
    """
    _inputs(p, x)
    second = _derivative(_derivative(lambda points: model(p, points)))(x)
    return second.diagonal(dim1=-2, dim2=-1).sum(-1)


@checked
def time_derivative(model: Field, p: Tensor, x: Tensor, axis: int = 0) -> Tensor:
    """Compute the derivative with respect to one of the parameters, usually time.

    Use it for the left-hand side of an evolution equation, or for the sensitivity of a field to a
    physical parameter. `gradient` returns it together with the derivatives by coordinates.

    Args:
        model: Function from p `(N, P)` and x `(N, d)` to `(N, out)`, each pair independently.
        p: Parameters.
        x: Points.
        axis: Index of the parameter.

    Returns:
        `(N, out)`

    Raises:
        ValueError: If there is no such parameter.

    Examples:
        >>> time_derivative(lambda p, x: p * x**2, torch.zeros(1, 1), torch.full((1, 1), 3.0))
        tensor([[9.]])
    """
    _inputs(p, x)
    if not -p.shape[1] <= axis < p.shape[1]:
        raise ValueError(f"axis must name a column of p, of shape {tuple(p.shape)}, got {axis}")
    return _derivative(lambda q: model(q, x))(p)[..., axis]


def _joined(model: Field, num_parameters: int) -> Callable[[Tensor], Tensor]:
    return lambda q: model(q[:, :num_parameters], q[:, num_parameters:])


def _inputs(p: Tensor, x: Tensor) -> Tensor:
    if p.ndim != 2 or x.ndim != 2 or len(p) != len(x):
        raise ValueError(
            "p and x must be pairs (N, P) and (N, d) of equal number, "
            f"got shapes {tuple(p.shape)} and {tuple(x.shape)}"
        )
    check_floating(p=p, x=x)
    return torch.cat([p, x], dim=1)


def _derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function from rows to the derivatives of their results, in a new last axis."""

    def derivative(rows: Tensor) -> Tensor:
        slopes = jacrev(lambda q: function(q).sum(0))(rows)
        return slopes.movedim(-2, 0)

    return derivative


def check_floating(**tensors: Tensor) -> None:
    """Raise unless all tensors hold real floating point numbers, which derivatives need."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {shown(value)}")
