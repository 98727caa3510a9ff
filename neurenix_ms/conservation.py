"""Mass of density fields, mass-conserving corrections, a loss, and autoregressive rollouts."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_tensor
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import choose
from neurenix_ms._core.inplace import call_intact

Reduction = Literal["mean", "sum", "none"]
Conserve = Literal["scale", "shift"] | Callable[[Tensor, Tensor], Tensor] | None
Reduce = Callable[[Tensor], Tensor]
LOSS_REDUCTIONS: dict[str, Reduce] = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}


@checked
def total_mass(
    x: Tensor, mask: Tensor | None = None, cell_area: Tensor | float | None = None
) -> Tensor:
    """Return the sum of a density over all cells of the mask, each multiplied by its area.

    Densities are not clipped: negative values reduce the mass, and a NaN in a cell of the mask makes the
    mass of its sample and channel NaN. Values outside of the mask have no influence, even NaN. Densities
    in half precision are summed in float32.

    Args:
        x: Density, mass per area (or volume).
        mask: Cells to include (true, or not 0); all by default.
        cell_area: Area of a cell, one number or one per cell; 1 by default.

    Shape:
        `(B, C, *S)`, mask and area broadcastable to it -> `(B, C)`

    Raises:
        ValueError: If the density has no spatial axes, or mask or area cannot be broadcast to it.

    Examples:
        >>> total_mass(torch.ones(1, 1, 4, 5), cell_area=0.5)
        tensor([[10.]])
    """
    return _weighed(x, mask, cell_area).sum(dim=tuple(range(2, x.ndim)))


@checked
def conserve_mass(
    pred: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    cell_area: Tensor | float | None = None,
    method: Literal["scale", "shift"] = "scale",
    eps: float = 1e-12,
) -> Tensor:
    """Correct a density so that its mass is that of a reference, for every sample and channel.

    "scale" multiplies the non-negative part, so densities stay non-negative and empty cells stay
    empty. "shift" adds one constant to all cells of the mask, and is linear. Both are differentiable.
    Cells outside of the mask become 0.

    "scale" distributes the mass evenly if the prediction has no mass (at most `eps`), and returns zeros
    if the mass of the reference is 0 or negative. Without any cell in the mask the result is 0. A NaN
    in a cell of the mask, in either density, makes that sample and channel NaN.

    Args:
        pred: Density to correct.
        reference: Density with the required mass, such as that of the previous step.
        mask: Cells to include.
        cell_area: Area of a cell.
        method: "scale" or "shift".
        eps: Largest mass of a prediction that is treated as empty.

    Shape:
        `(B, C, *S)` twice -> `(B, C, *S)`

    Raises:
        ValueError: If the method is unknown, or the shapes do not fit.

    Examples:
        >>> before, after = torch.full((1, 1, 2, 2), 3.0), torch.tensor([[[[1.0, 3.0], [-1.0, 0.0]]]])
        >>> conserve_mass(after, before)
        tensor([[[[3., 9.],
                  [0., 0.]]]])
    """
    choose({"scale": 0, "shift": 0}, method, "method")
    _check_same_shape(pred=pred, reference=reference)
    mass = partial(_mass_per_cell, mask=mask, cell_area=cell_area)
    # masked first, because a NaN outside of the mask would make the gradient NaN
    pred, kind = _masked(pred, mask), pred.dtype
    wanted, even = mass(reference), _even_share(pred, mask, cell_area)
    if method == "shift":
        kept = pred + (wanted - mass(pred)) * even
    else:
        positive, wanted = pred.clamp(min=0), wanted.clamp(min=0)
        given = mass(positive)
        empty = given <= eps
        # in one pass over all cells: an even density, or a multiple of the prediction
        factor = torch.where(empty, 0, wanted / torch.where(empty, 1, given))
        kept = torch.addcmul(torch.where(empty, wanted * even, 0), positive, factor)
    return _masked(kept, mask).to(kind)


@checked
def mass_error(
    pred: Tensor,
    true: Tensor,
    mask: Tensor | None = None,
    cell_area: Tensor | float | None = None,
) -> Tensor:
    """Return the excess mass of a prediction, in which negative densities are set to 0.

    Use it as a metric in addition to the usual ones: a forecast may have small errors in every cell and
    still lose mass in every step. As a loss use `MassConservationLoss`, which has a gradient everywhere.

    Args:
        pred: Predicted density.
        true: True density, which is not clipped.
        mask: Cells to include.
        cell_area: Area of a cell.

    Shape:
        `(B, C, *S)` twice -> `(B, C)`, in units of mass, negative if mass is missing

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> mass_error(torch.tensor([[[2.0, -5.0, 1.0]]]), torch.ones(1, 1, 3))
        tensor([[0.]])
    """
    _check_same_shape(pred=pred, true=true)
    return total_mass(pred.clamp(min=0), mask, cell_area) - total_mass(true, mask, cell_area)


class MassConservationLoss(Described, nn.Module):
    """The absolute difference of the masses of two densities.

    Add it with a weight to the loss of a surrogate, as a soft form of `conserve_mass`. It does not clip
    negative densities, so that they have a gradient. A NaN in a cell of the mask makes the loss NaN.

    Args:
        mask: Cells to include.
        cell_area: Area of a cell.
        reduction: "mean" or "sum" over samples and channels, or "none".

    Shape:
        `(B, C, *S)` twice -> a scalar, or `(B, C)` with "none"

    Raises:
        ValueError: If the reduction is unknown, or the shapes do not fit.

    Examples:
        >>> loss = MassConservationLoss(cell_area=2.0)
        >>> loss(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))
        tensor(6.)
    """

    mask: Tensor | None
    cell_area: Tensor | float | None

    @checked
    def __init__(
        self,
        mask: Tensor | None = None,
        cell_area: Tensor | float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.reduce = choose(LOSS_REDUCTIONS, reduction, "reduction")
        self.register_buffer("mask", mask, persistent=False)
        if isinstance(cell_area, Tensor):
            self.register_buffer("cell_area", cell_area, persistent=False)
        else:
            self.cell_area = cell_area

    def forward(self, pred: Tensor, true: Tensor) -> Tensor:
        _check_same_shape(pred=pred, true=true)
        masses = (total_mass(x, self.mask, self.cell_area) for x in (pred, true))
        return self.reduce((next(masses) - next(masses)).abs())


@checked
def rollout(
    model: Callable[[Tensor], Tensor],
    density: Tensor,
    fields: Tensor,
    steps: int,
    conserve: Conserve = None,
) -> Tensor:
    """Run a model on its own predictions for several steps, with the driving fields of each step.

    Use it to evaluate a surrogate of one step over many steps, in which its errors accumulate, and to
    train through several steps. For a system without driving fields use a `TimeStepper`.

    Args:
        model: Takes `(B, 1 + F, *S)`, the density first, and returns the next density `(B, 1, *S)`.
        density: Initial density.
        fields: Fields of every step, or one set for all steps.
        steps: Number of steps.
        conserve: "scale" or "shift" gives every prediction the initial mass by `conserve_mass`; a
            function of the prediction and the initial density, such as a `functools.partial` of
            `conserve_mass` with a mask, is applied instead; None does not correct the predictions.

    Shape:
        density `(B, 1, *S)` and fields `(B, T, F, *S)` with `T >= steps`, or `(B, F, *S)`
        -> `(B, steps, *S)`

    Raises:
        ValueError: If there are fewer fields than steps, or a shape does not fit.

    Examples:
        >>> decay = lambda x: 0.5 * x[:, :1]
        >>> rollout(decay, torch.ones(1, 1, 1), torch.zeros(1, 3, 2, 1), 3).flatten()
        tensor([0.5000, 0.2500, 0.1250])
    """
    if density.ndim < 3 or density.shape[1] != 1:
        raise ValueError(f"density must be (B, 1, *S), got shape {tuple(density.shape)}")
    if fields.ndim == density.ndim:
        fields = fields.unsqueeze(1).expand(-1, max(1, steps), *(-1,) * (density.ndim - 1))
    if fields.ndim != density.ndim + 1 or fields.shape[3:] != density.shape[2:]:
        raise ValueError(
            f"fields must be (B, T, F, *S) with the sizes {tuple(density.shape[2:])} of the density, "
            f"got {tuple(fields.shape)}"
        )
    if not 1 <= steps <= fields.shape[1]:
        raise ValueError(f"steps must be 1 to {fields.shape[1]}, one per field, got {steps}")
    kept = _conserving(conserve)
    start, predictions = density, []
    for field in fields[:, :steps].unbind(1):
        density = check_tensor("what model returns", model(torch.cat([density, field], dim=1)))
        _check_same_shape(**{"what model returns": density, "density": start})
        density = check_tensor("what conserve returns", call_intact(kept, density, start))
        predictions.append(density)
    return torch.cat(predictions, dim=1)


def _conserving(conserve: Conserve) -> Callable[[Tensor, Tensor], Tensor]:
    if callable(conserve):
        return conserve
    methods: dict[str | None, Callable[[Tensor, Tensor], Tensor]] = {
        None: lambda density, _: density,
        "scale": lambda density, start: conserve_mass(density, start, method="scale"),
        "shift": lambda density, start: conserve_mass(density, start, method="shift"),
    }
    return choose(methods, conserve, "conserve")


def _weighed(x: Tensor, mask: Tensor | None, cell_area: Tensor | float | None) -> Tensor:
    if x.ndim < 3:
        raise ValueError(f"x must be a density (B, C, *S), got shape {tuple(x.shape)}")
    _check_real(x=x)
    masked = _masked(x.float() if x.dtype in (torch.half, torch.bfloat16) else x, mask)
    if isinstance(cell_area, Tensor):
        check_fit("cell_area", cell_area, x)
        return _masked(masked * cell_area, mask)  # the area outside of the mask may be NaN
    return masked if cell_area is None else masked * cell_area


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set cells outside of the mask to 0; a product with the mask would keep their NaN."""
    if mask is None:
        return x
    check_fit("mask", mask, x)
    return torch.where(mask.bool(), x, 0)


def _mass_per_cell(x: Tensor, mask: Tensor | None, cell_area: Tensor | float | None) -> Tensor:
    """Return the mass, in a shape that can be broadcast to the density."""
    return _weighed(x, mask, cell_area).sum(dim=tuple(range(2, x.ndim)), keepdim=True)


def _even_share(x: Tensor, mask: Tensor | None, cell_area: Tensor | float | None) -> Tensor | float:
    """Return the density of a unit of mass that is the same in all cells of the mask."""
    if mask is None and cell_area is None:
        return 1 / max(1, math.prod(x.shape[2:]))
    area = _mass_per_cell(torch.ones_like(x), mask, cell_area)
    return 1 / torch.where(area > 0, area, 1)


def check_fit(name: str, given: Tensor, x: Tensor) -> None:
    """Raise unless a mask or an area can be broadcast to a density."""
    _check_real(**{name: given})
    sizes = zip(reversed(given.shape), reversed(x.shape), strict=False)
    if given.ndim > x.ndim or any(n not in (1, m) for n, m in sizes):
        shapes = f"{tuple(x.shape)}, got {tuple(given.shape)}"
        raise ValueError(f"{name} must be broadcastable to {shapes}")
    if given.device != x.device and (given.ndim or given.is_meta):
        raise ValueError(f"{name} must be on {x.device}, where the density is, got {given.device}")


def _check_real(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.dtype.is_complex:
            raise ValueError(f"{name} must hold real numbers, got {x.dtype}")


def _check_same_shape(**densities: Tensor) -> None:
    (name, pred), (other_name, other) = densities.items()
    _check_real(**densities)
    if pred.shape != other.shape or pred.ndim < 3:
        shapes = f"{tuple(pred.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{name} and {other_name} must have one shape (B, C, *S), got {shapes}")
