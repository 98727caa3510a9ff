"""Integer arithmetic on spatial sizes: scaling, halving, and the choice of a common size."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neurenix_ms._core.checks import check_number
from neurenix_ms._core.tracing import is_jit_tracing, is_known, one_call

Size = tuple[int, ...]
Target = str | int | Sequence[int]


@one_call
def spatial(x: Tensor) -> Size:
    """Return the spatial size `S` of a tensor of shape `(B, C, *S)`."""
    return tuple(x.shape[2:])


@one_call
def scaled(size: Sequence[int], scale: float | Sequence[float]) -> Size:
    """Return every axis times `scale` (one number, or one per axis), rounded down, at least 1."""
    scales = [scale] * len(size) if isinstance(scale, (int, float)) else scale
    if (
        is_jit_tracing()
    ):  # sizes are tensors here, and Python's arithmetic would turn them into constants
        return tuple(
            torch.as_tensor(n).double().mul(factor).floor().long().clamp(min=1)  # type: ignore[misc]
            for n, factor in zip(size, scales, strict=True)
        )
    if not torch.compiler.is_compiling():
        return tuple(max(1, math.floor(n * factor)) for n, factor in zip(size, scales, strict=True))
    # math.floor stays symbolic while a model is compiled; int() would fix the example's size
    return tuple(
        _at_least_one(math.floor(n * factor)) for n, factor in zip(size, scales, strict=True)
    )


def _at_least_one(n: Any) -> Any:
    """Return `max(1, n)`, also for a symbolic size; a known size stays a plain number."""
    if is_known(n >= 1):
        return n
    return 1 if is_known(n < 1) else torch.sym_max(1, n)


@one_call
def twice(size: Sequence[int]) -> Size:
    """Return twice the length of every axis."""
    return tuple(2 * n for n in size)


@one_call
def multiplied(size: Sequence[int], factors: Sequence[int]) -> Size:
    """Return every axis times its factor."""
    return tuple(n * factor for n, factor in zip(size, factors, strict=True))


def check_scale(scale: float, name: str = "scale") -> float:
    """Return `scale`, or raise if it is not a finite positive number."""
    return check_number(name, scale, above=0)


def check_scales(scales: Sequence[float]) -> list[float]:
    """Return the scales as a list, or raise if it is empty or one is not finite and positive."""
    if len(scales) == 0:
        raise ValueError("scales must hold at least one scale, got an empty list")
    return [check_scale(scale, f"scales[{i}]") for i, scale in enumerate(scales)]


@one_call
def check_halvings(size: Sequence[int], num_halvings: int) -> None:
    """Raise unless every axis can be halved `num_halvings` times."""
    if is_jit_tracing():
        return
    smallest = 2**num_halvings
    if any(n < smallest for n in size):
        raise ValueError(
            f"every spatial size must be at least {smallest} to be halved {num_halvings} times, "
            f"got {tuple(size)}"
        )


@one_call
def check_reducible(size: Sequence[int], factors: Sequence[int]) -> None:
    """Raise unless every axis has at least as many pixels as the strides multiply to."""
    if is_jit_tracing():
        return
    if any(n < factor for n, factor in zip(size, factors, strict=True)):
        raise ValueError(
            f"every spatial size must be at least the product of its strides, {tuple(factors)}, got "
            f"{tuple(size)}"
        )


def check_target(target: Target, spatial_dims: int) -> Target:
    """Return `target`, or raise unless it is 'largest', 'smallest', an index or a size."""
    if isinstance(target, str):
        valid = target in ("largest", "smallest")
    elif isinstance(target, int):
        valid = not isinstance(target, bool)
    else:
        valid = len(target) == spatial_dims and all(n >= 1 for n in target)
    if not valid:
        raise ValueError(
            "target must be 'largest', 'smallest', an index or a size of "
            f"{spatial_dims} axes, got {target!r}"
        )
    return target


@one_call
def target_size(sizes: Sequence[Size], target: Target) -> Size:
    """Return the size to which all features are resized; of equally large ones, the first."""
    if isinstance(target, str):
        chosen = sizes[0]
        for size in sizes[1:]:  # `max(key=)` cannot be traced
            larger = math.prod(size) > math.prod(chosen)
            smaller = math.prod(size) < math.prod(chosen)
            if larger if target == "largest" else smaller:
                chosen = size
        return chosen
    if isinstance(target, int):
        if not -len(sizes) <= target < len(sizes):
            raise ValueError(f"target must be an index into {len(sizes)} features, got {target}")
        return sizes[target]
    return tuple(int(n) for n in target)


def equal(a: Sequence[int], b: Sequence[int]) -> bool:
    """Return whether two sizes are equal; while tracing, whether they are equal for every input."""
    if is_jit_tracing():
        return False
    if torch.compiler.is_compiling():
        return all(is_known(m == n) for m, n in zip(a, b, strict=True))
    return tuple(a) == tuple(b)


@one_call
def fit(x: Tensor, size: Size, mode: str = "constant") -> Tensor:
    """Crop or pad `x` at the end of every axis to `size`; `mode` is the padding mode of `F.pad`."""
    if equal(spatial(x), size):
        return x
    missing = [want - have for want, have in zip(size, spatial(x), strict=True)]
    return F.pad(x, [d for m in reversed(missing) for d in (0, m)], mode)
