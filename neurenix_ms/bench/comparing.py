"""Comparison of the results of several variants, and the calls whose costs are measured."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.bench.forms import tensors

# largest difference, divided by the largest value: sums may be taken in another order
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
ON_A_GPU = 1e-3  # of float32, whose products are rounded there


class Results:
    """Results of one variant, with the gradients of the inputs in a training step."""

    def __init__(self, way: Callable[..., Any], inputs: tuple[Any, ...], train: bool) -> None:
        torch.manual_seed(0)
        with torch.set_grad_enabled(train):
            out = way(*inputs)
        leaves = [x for x in tensors(inputs) if x.requires_grad] if train else []
        self.outputs = [y.detach() for y in tensors(out)]
        self.gradients: list[Tensor] = []
        loss = loss_of(out) if train else None
        if leaves and loss is not None:
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            pairs = zip(found, leaves, strict=True)
            self.gradients = [torch.zeros_like(x) if g is None else g for g, x in pairs]

    def differs_from(self, other: "Results") -> str | None:
        """Return why the results cannot be compared (number or shapes of tensors); None if they can."""
        for name in ("outputs", "gradients"):
            mine, theirs = getattr(self, name), getattr(other, name)
            shapes, wanted = ([tuple(x.shape) for x in xs] for xs in (mine, theirs))
            if shapes != wanted:
                return f"{name} must have shapes {wanted}, got {shapes}"
        return None

    def error(self, other: "Results") -> float:
        """Return the largest difference, divided by the largest value of that tensor in `other`."""
        pairs = zip(self.outputs + self.gradients, other.outputs + other.gradients, strict=True)
        return max((_error(mine, theirs) for mine, theirs in pairs), default=0.0)

    def tolerance(self) -> float:
        """Return the largest difference at which results of this dtype count as equal."""
        floating = [x for x in self.outputs if x.is_floating_point() or x.is_complex()]
        widths = [
            TOLERANCES.get(x.real.dtype if x.is_complex() else x.dtype, 0.1) for x in floating
        ]
        on_gpu = any(x.is_cuda and x.dtype is torch.float32 for x in floating)
        return max([*widths, ON_A_GPU if on_gpu else 0.0])


def call_of(way: Callable[..., Any], inputs: tuple[Any, ...], train: bool) -> Callable[[], object]:
    """Return the call that is measured: forward without gradients, or forward and backward.

    Gradients are dropped at the end of each step, also those of parameters that a function closes over.
    """
    leaves: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            way(*inputs)

    def step() -> None:
        loss = loss_of(way(*inputs))
        if not leaves:
            leaves.extend(_leaves(loss))
        loss.backward()
        for x in leaves:
            x.grad = None

    return step if train else forward


def loss_of(out: Any) -> Tensor:
    """Return the mean square of every tensor that was returned, summed.

    Raises:
        ValueError: If none depends on a parameter or an input that requires gradients.
    """
    parts = [_mean_square(y) for y in tensors(out) if y.requires_grad]
    if not parts:
        raise ValueError(
            "train=True needs a module with parameters, or an input that requires gradients, got neither"
        )
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def first_tensor(inputs: Sequence[Any]) -> Tensor | None:
    """Return the tensor that shape, dtype and number of items are read off."""
    return next(iter(tensors(inputs)), None)


def _leaves(loss: Tensor) -> list[Tensor]:
    """Return the tensors that get a gradient by `loss.backward()`."""
    nodes, seen, found = [loss.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [earlier for earlier, _ in node.next_functions]
    return found


def _mean_square(y: Tensor) -> Tensor:
    real = y.abs() if y.is_complex() else y
    return (real if real.dtype is torch.float64 else real.float()).square().mean()


def _error(mine: Tensor, theirs: Tensor) -> float:
    if not theirs.numel():
        return 0.0
    wide = torch.complex128 if theirs.is_complex() or mine.is_complex() else torch.float64
    a, b = mine.detach().cpu().to(wide), theirs.detach().cpu().to(wide)
    same = (a == b) | (a.isnan() & b.isnan())  # equal infinities have no difference
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    largest = b.abs().nan_to_num(0.0, 0.0).max().item()
    if difference == 0:
        return 0.0
    return difference / largest if largest else float("inf")
