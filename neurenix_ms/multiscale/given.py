"""Modules that a user brings for a slot: measured at construction, and checked at every call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.probing import memoryless_copy
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import sizes_are_open
from neurenix_ms.checkpointing import checkpointed
from neurenix_ms.layers.blocks import joined
from neurenix_ms.layers.conditioning import condition_name, keyword

PROBED = 16  # pixels per axis and stride, of the tensors that a module is measured with


def measured(
    module: nn.Module, *shapes: Sequence[int], **named: Sequence[int]
) -> tuple[int, ...] | None:
    """Return the shape of a result for tensors without memory; None if that cannot be run."""
    try:
        with memoryless_copy(module) as copied:
            given = {name: torch.empty(tuple(shape)) for name, shape in named.items()}
            y = copied(*(torch.empty(tuple(shape)) for shape in shapes), **given)
            return tuple(y.shape) if isinstance(y, Tensor) else None
    except Exception:  # of the user's code; the first call shows it
        return None


class Given(nn.Module):
    """Down- or upsampling that a user brought.

    Shape:
        `(B, C, *S)` -> `(B, C_out, *S / stride)` or `(B, C_out, *S * stride)`
    """

    def __init__(
        self,
        module: nn.Module,
        slot: str,
        channels: int,
        spatial_dims: int,
        stride: Sequence[int],
        shrinks: bool,
    ) -> None:
        super().__init__()
        self.module = module
        self.slot = slot
        self.stride = tuple(stride)
        self.shrinks = shrinks
        size = tuple(PROBED * n for n in stride)
        shape = measured(module, (2, channels, *size))
        self.out_channels = channels if shape is None else shape[1]
        if shape is not None:
            self._check(shape, size)

    def forward(self, x: Tensor) -> Tensor:
        y = call(self.module, x)
        if is_known_shape(y):
            self._check(y.shape, spatial(x))
        return y

    def _check(self, shape: Sequence[int], size: Sequence[int]) -> None:
        pairs = list(zip(size, self.stride, strict=True))
        least = tuple(n // k if self.shrinks else n * k for n, k in pairs)
        most = tuple(-(-n // k) if self.shrinks else n * k for n, k in pairs)
        fits = len(shape) == len(least) + 2 and all(
            a <= n <= b for a, n, b in zip(least, shape[2:], most, strict=True)
        )
        if not fits or shape[1] != self.out_channels:
            raise ValueError(
                f"{self.slot} must return {self.out_channels} channels of size {most} for a feature map "
                f"of size {tuple(size)}, got shape {tuple(shape)} of {type(self.module).__name__}"
            )


class GivenBlock(nn.Module):
    """A block that a user brought, for one feature map or several, which are concatenated.

    In a conditioned network it gets the condition too, if its `forward` has an argument for it.

    Shape:
        feature maps `(B, C_i, *S)`, their channels together `C_in`, and the condition `(B, K)` of a
        conditioned network -> `(B, C_out, *S)`
    """

    condition: str | None = None  # of blocks in files of earlier versions
    slot = "block"

    def __init__(
        self,
        module: nn.Module,
        in_channels: int,
        out_channels: int,
        spatial_dims: int,
        condition_channels: int | None = None,
        slot: str = "block",
    ) -> None:
        super().__init__()
        self.module = module
        self.slot = slot
        self.out_channels = out_channels
        self.condition = None if condition_channels is None else condition_name(module)
        size = (PROBED,) * spatial_dims
        named = {} if self.condition is None else {self.condition: (2, condition_channels or 0)}
        shape = measured(module, (2, in_channels, *size), **named)
        if shape is not None:
            self._check(shape, size)

    def forward(self, *maps: Tensor, condition: Tensor | None = None) -> Tensor:
        x = joined(maps)
        y = call(self.module, x, **keyword(self.condition, condition))
        if is_known_shape(y):
            self._check(y.shape, spatial(x))
        return y

    def _check(self, shape: Sequence[int], size: Sequence[int]) -> None:
        check_kept(self.slot, self.module, shape, self.out_channels, size)


class GivenSkip(nn.Module):
    """What a user brought to merge a skip and an upsampled feature map.

    Shape:
        skip `(B, C, *S)` and `(B, D, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self, module: nn.Module, skip_channels: int, deep_channels: int, spatial_dims: int
    ) -> None:
        super().__init__()
        self.module = module
        size = (PROBED,) * spatial_dims
        shape = measured(module, (2, skip_channels, *size), (2, deep_channels, *size))
        self.out_channels = skip_channels + deep_channels if shape is None else shape[1]
        if shape is not None:
            self._check(shape, size)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        y = call(self.module, skip, deep)
        if is_known_shape(y):
            self._check(y.shape, spatial(skip))
        return y

    def _check(self, shape: Sequence[int], size: Sequence[int]) -> None:
        check_kept("skip", self.module, shape, self.out_channels, size)


def check_kept(
    slot: str, module: nn.Module, shape: Sequence[int], channels: int, size: Sequence[int]
) -> None:
    """Raise unless a module returned so many channels at the size that it was given."""
    if tuple(shape[1:]) != (channels, *size):
        raise ValueError(
            f"{slot} must return {channels} channels and keep the size {tuple(size)}, got shape "
            f"{tuple(shape)} of {type(module).__name__}"
        )


def call(module: nn.Module, *inputs: Tensor, **named: Any) -> Tensor:
    """Run a module of the user; while checkpointing is enabled, under a checkpoint."""
    if torch.compiler.is_compiling():  # the whole block is under one already
        return module(*inputs, **named)
    return checkpointed(module, *inputs, foreign=True, **named)


def is_known_shape(y: Tensor) -> bool:
    """Return whether the shape of a result is known, and holds for this input alone."""
    return isinstance(y, Tensor) and not sizes_are_open()
