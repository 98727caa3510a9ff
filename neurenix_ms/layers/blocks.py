"""Blocks of convolutions, normalizations and activations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims, choose
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms._core.tracing import one_module, sizes_are_open
from neurenix_ms.checkpointing import is_recorded, recomputed
from neurenix_ms.layers.conditioning import FiLM, film_of
from neurenix_ms.layers.inference import finished, is_inference
from neurenix_ms.layers.naming import Act, Norm, make_act, make_norm

BlockKind = Literal["single", "double", "residual"]
PADDING_MODES = dict.fromkeys(("zeros", "reflect", "replicate", "circular"))
NUM_CONVOLUTIONS = {"single": 1, "double": 2, "residual": 2}
Edge = int | Sequence[int]  # of a kernel in pixels, one number or one per axis


@dataclass(frozen=True)
class ConvSpec:
    """The arguments that all convolutions of a network share.

    Args:
        spatial_dims: Number of spatial axes.
        kernel_size: Kernel size in pixels, odd, or one per axis.
        norm: Name or maker of the normalization.
        act: Name or maker of the activation.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after a block.
        condition_channels: Length of the vector that blocks are conditioned on; None: they are not.
    """

    spatial_dims: SpatialDims = 2
    kernel_size: Edge = 3
    norm: Norm = "batch"
    act: Act = "relu"
    conv_bias: bool | None = None
    padding_mode: str = "zeros"
    dropout: float = 0.0
    condition_channels: int | None = None

    def layer(
        self, in_channels: int, out_channels: int, groups: int = 1, stride: Edge = 1
    ) -> "ConvNormAct":
        """Return the convolution with its norm and activation."""
        return ConvNormAct(
            in_channels,
            out_channels,
            spatial_dims=self.spatial_dims,
            kernel_size=self.kernel_size,
            norm=self.norm,
            act=self.act,
            conv_bias=self.conv_bias,
            padding_mode=self.padding_mode,
            groups=groups,
            stride=stride,
            condition_channels=self.condition_channels,
        )

    def film(self, channels: int) -> FiLM | None:
        """Return the layer that conditions a feature map, None if blocks are not conditioned."""
        return film_of(self.condition_channels, channels)

    def unconditioned(self) -> "ConvSpec":
        """Return the same without a condition."""
        return replace(self, condition_channels=None)

    def point(self) -> "ConvSpec":
        """Return the same with kernels of one pixel and no activation."""
        return replace(self, kernel_size=1, act=None, padding_mode="zeros")


def edges_of(kernel_size: Edge, spatial_dims: int) -> tuple[int, ...]:
    """Return the odd kernel size along every axis."""
    if isinstance(kernel_size, int):
        kernel_size = [kernel_size] * spatial_dims
    if len(kernel_size) != spatial_dims:
        raise ValueError(
            f"kernel_size must be one number or {spatial_dims}, got {list(kernel_size)}"
        )
    edges = tuple(check_integer("kernel_size", edge) for edge in kernel_size)
    for edge in edges:
        if edge < 1 or edge % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the size, got {edge}")
    return edges


class ConvNormAct(nn.Module):
    """A convolution that keeps the size, or divides it by a stride, a normalization, an activation.

    With `condition_channels`, a `FiLM` of the condition comes between norm and activation.

    Shape:
        `(B, C_in, *S)`, and the condition `(B, K)` -> `(B, C_out, *ceil(S / stride))`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: SpatialDims = 2,
        kernel_size: Edge = 3,
        norm: Norm = "batch",
        act: Act = "relu",
        conv_bias: bool | None = None,
        padding_mode: str = "zeros",
        groups: int = 1,
        stride: Edge = 1,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        convolution = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        edges = edges_of(kernel_size, spatial_dims)
        choose(PADDING_MODES, padding_mode, "padding_mode")
        self.conv = convolution(
            in_channels,
            out_channels,
            edges,
            stride=stride if isinstance(stride, int) else tuple(stride),
            padding=tuple(edge // 2 for edge in edges),
            bias=norm is None if conv_bias is None else conv_bias,
            padding_mode=padding_mode,
            groups=groups,
        )
        self.norm = make_norm(norm, out_channels, spatial_dims)
        self.act = make_act(act)
        self.film = film_of(condition_channels, out_channels)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        conv, norm, act = self.steps()
        y = conv(x)
        if is_inference(y):
            return finished(norm, act, y, self.film, condition)
        y = recomputed(norm, y)
        if condition is not None:
            y = modulated(self.film, y, condition)
        return recomputed(act, y)

    def steps(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return convolution, norm and activation, so that the caller can release each input."""
        modules: dict[str, Any] = self._modules  # attributes of a module are slow to look up
        return modules["conv"], modules["norm"], modules["act"]


def modulated(film: FiLM | None, y: Tensor, condition: Tensor | None) -> Tensor:
    """Return a feature map as scaled and shifted by a condition, if there is one."""
    if film is None or condition is None:
        return y
    return recomputed(film, y, condition)


def joined(features: tuple[Tensor, ...]) -> Tensor:
    """Concatenate feature maps along the channels, each padded with zeros to the size of the first."""
    return features[0] if len(features) == 1 else recomputed(_concatenated, *features)


def _concatenated(first: Tensor, *others: Tensor) -> Tensor:
    if type(first) is Tensor and not sizes_are_open():
        size = first.shape[2:]
        if all(y.shape[2:] == size for y in others):
            return torch.cat([first, *others], dim=1)
    return torch.cat([first, *(fit(y, spatial(first)) for y in others)], dim=1)


class ChannelDropout(nn.Module):
    """Drop whole channels; backward keeps the mask only, and recomputes the product.

    Shape:
        `(B, C, *S)` -> the same
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p}")
        self.dropout = nn.Dropout(p)

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropout.p == 0:
            return x
        mask = self.dropout(x.new_ones(x.shape[:2] + (1,) * (x.ndim - 2)))
        return recomputed(torch.mul, x, mask)


class ConvBlock(nn.Module):
    """One or two conv-norm-act on the concatenated inputs, then channel dropout.

    A residual block ends in the activation of the sum; its shortcut is the identity, or a 1x1
    convolution with a norm where the channels differ (He et al. 2016, figure 2). The first convolution
    and the shortcut have the stride.

    Shape:
        feature maps `(B, C_i, *S)`, with `C_in` channels in total, and the condition `(B, K)` of a
        conditioned block -> `(B, C_out, *ceil(S / stride))`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int | None = None,
        *,
        block: BlockKind = "double",
        spec: ConvSpec = ConvSpec(),
        stride: Edge = 1,
    ) -> None:
        super().__init__()
        count = choose(NUM_CONVOLUTIONS, block, "block")
        middle = out_channels if middle_channels is None else middle_channels
        widths = [in_channels] + [middle] * (count - 1) + [out_channels]
        self.layers = nn.ModuleList(
            spec.layer(a, b, stride=1 if i else stride) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.shortcut: nn.Module | None = None
        self.act: nn.Module = nn.Identity()
        if block == "residual":  # the last activation follows the sum
            last = cast(ConvNormAct, self.layers[-1])
            last.act, self.act = self.act, last.act
            self.shortcut = make_shortcut(in_channels, out_channels, spec, stride)
        self.dropout = ChannelDropout(spec.dropout)

    def forward(self, *features: Tensor, condition: Tensor | None = None) -> Tensor:
        modules: dict[str, Any] = self._modules  # attributes of a module are slow to look up
        shortcut, dropout = modules.get("shortcut"), modules["dropout"]
        y = in_turn(modules["layers"], features, condition)
        if shortcut is not None:
            y = recomputed(torch.add, y, shortcut(joined(features)))
            y = recomputed(self.act, y)
        return dropout(y) if self.training or is_observed(dropout) else y


def in_turn(
    layers: Iterable[ConvNormAct], features: tuple[Tensor, ...], condition: Tensor | None
) -> Tensor:
    """Apply layers one after the other to the concatenated inputs."""
    y = joined(features)
    compiling, recorded = torch.compiler.is_compiling(), is_recorded()
    inference = is_inference(y)
    for layer in layers:
        if compiling or is_observed(layer):
            y = layer(y) if condition is None else layer(y, condition)
            continue
        conv, norm, act = layer.steps()
        # no frame of a call holds the input of a step through the next ones
        y = conv(y)
        if inference:
            y = finished(norm, act, y, layer.film, condition)
            continue
        y = recomputed(norm, y) if recorded else norm(y)
        if condition is not None:
            y = modulated(layer.film, y, condition)
        y = recomputed(act, y) if recorded else act(y)
    return y


def make_shortcut(
    in_channels: int, out_channels: int, spec: ConvSpec, stride: Edge = 1
) -> nn.Module:
    """Return the identity; where channels or size differ, a 1x1 convolution with a norm."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    point = replace(spec.point().unconditioned(), conv_bias=False)
    return point.layer(in_channels, out_channels, stride=stride)


def __getattr__(name: str) -> Any:
    # pickles of whole models by earlier versions look for them here
    if name in ("Double", "Level", "Trace", "Up"):
        from neurenix_ms.layers import levels

        return getattr(levels, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
