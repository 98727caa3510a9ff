"""Convolution bricks: conv-norm-act blocks, the step up to a skip, and the nest of resolutions."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, POOLS, TRANSPOSED_CONVOLUTIONS, SpatialDims, choose
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.recomputation import Kept
from neurenix_ms._core.sizes import fit, spatial, twice
from neurenix_ms._core.tracing import one_module
from neurenix_ms.checkpointing import checkpointed, is_recorded, kept, recomputed
from neurenix_ms.layers.naming import Act, Norm, make_act, make_norm
from neurenix_ms.layers.resize import Resize

BlockKind = Literal["single", "double", "residual"]
PADDING_MODES = dict.fromkeys(("zeros", "reflect", "replicate", "circular"))
NUM_CONVOLUTIONS = {"single": 1, "double": 2, "residual": 2}


class ConvNormAct(nn.Module):
    """A convolution that keeps the size, a normalization, an activation.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: SpatialDims = 2,
        kernel_size: int = 3,
        norm: Norm = "batch",
        act: Act = "relu",
        conv_bias: bool | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the size, got {kernel_size}")
        choose(PADDING_MODES, padding_mode, "padding_mode")
        bias = norm is None if conv_bias is None else conv_bias
        self.conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=bias,
            padding_mode=padding_mode,
        )
        self.norm = make_norm(norm, out_channels, spatial_dims)
        self.act = make_act(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.conv(x))

    def finish(self, y: Tensor) -> Tensor:
        """What follows the convolution, and is cheap enough to be done again in backward."""
        modules: dict[str, Any] = self._modules  # attributes of a module are slow to look up
        norm, act = modules["norm"], modules["act"]
        if not is_recorded():
            return act(norm(y))
        return recomputed(act, recomputed(norm, y))


def joined(maps: tuple[Tensor, ...]) -> Tensor:
    """The channels of all maps in one, each map padded with zeros to the size of the first."""
    return maps[0] if len(maps) == 1 else recomputed(_concatenated, *maps)


def _concatenated(first: Tensor, *others: Tensor) -> Tensor:
    return torch.cat([first, *(fit(y, spatial(first)) for y in others)], dim=1)


class ChannelDropout(nn.Module):
    """Drop whole channels; only the mask is kept for backward, so the map can be recomputed.

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
    """One or two conv-norm-act over one map or several joined, then channel dropout.

    A residual block ends in the activation of the sum; its shortcut is the identity, or a 1x1
    convolution with a norm where the channels differ (He et al. 2016, figure 2).

    Shape:
        maps `(B, C_i, *S)`, their channels together `C_in` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int | None = None,
        *,
        block: BlockKind = "double",
        act: Act = "relu",
        dropout: float = 0.0,
        **conv: Any,
    ) -> None:
        super().__init__()
        count = choose(NUM_CONVOLUTIONS, block, "block")
        middle = out_channels if middle_channels is None else middle_channels
        widths = [in_channels] + [middle] * (count - 1) + [out_channels]
        acts: list[Act] = [act] * count
        if block == "residual":
            acts[-1] = None
        layers = (
            ConvNormAct(a, b, act=layer_act, **conv)
            for (a, b), layer_act in zip(pairwise(widths), acts, strict=True)
        )
        self.layers = nn.ModuleList(layers)
        self.shortcut: nn.Module | None = None
        if block == "residual":
            self.shortcut = nn.Identity()
            if in_channels != out_channels:
                point = {**conv, "kernel_size": 1, "conv_bias": False, "padding_mode": "zeros"}
                self.shortcut = ConvNormAct(in_channels, out_channels, act=None, **point)
        self.act = make_act(act if block == "residual" else None)
        self.dropout = ChannelDropout(dropout)

    def forward(self, *maps: Tensor) -> Tensor:
        y = self._convolved(maps)
        if self.shortcut is not None:
            y = recomputed(self.act, recomputed(torch.add, y, self.shortcut(joined(maps))))
        return self.dropout(y)

    def _convolved(self, maps: tuple[Tensor, ...]) -> Tensor:
        y = joined(maps)
        for layer in cast(list[ConvNormAct], list(self.layers)):
            if torch.compiler.is_compiling() or is_observed(layer):
                y = layer(y)
            else:  # in two steps: the frames of a call would hold its input through norm and act
                y = layer.conv(y)
                y = layer.finish(y)
        return y


class Double(nn.Module):
    """Linear upsampling by exactly two on every axis.

    Shape:
        `(B, C, *S)` -> `(B, C, *2S)`
    """

    def __init__(self, spatial_dims: SpatialDims, align_corners: bool) -> None:
        super().__init__()
        self.resize = Resize("linear", spatial_dims, align_corners)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._doubled, x)

    def _doubled(self, x: Tensor) -> Tensor:
        return self.resize(x, twice(spatial(x)))


class Up(nn.Module):
    """A deep map upsampled by two, joined to the skip of that resolution, and a block over both.

    Shape:
        skip `(B, C, *S)` and deep map `(B, D, *S / 2)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        skip_channels: int,
        deep_channels: int,
        out_channels: int,
        block: Callable[..., nn.Module],
        *,
        spatial_dims: SpatialDims,
        bilinear: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.up: nn.Module
        if bilinear:
            joined = skip_channels + deep_channels
            self.up = Double(spatial_dims, align_corners)
            self.block = block(joined, out_channels, joined // 2)
        else:
            transposed = TRANSPOSED_CONVOLUTIONS[spatial_dims]
            self.up = transposed(deep_channels, skip_channels, 2, stride=2)
            self.block = block(2 * skip_channels, out_channels)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return self.block(skip, self.up(deep))


class Level(nn.Module):
    """One resolution and all that is deeper: encode, the level inside at half the size, decode.

    Everything below a resolution is one submodule with one map in and one map out, both at its own
    resolution; pooling before it and upsampling after it belong to the level outside.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        encode: nn.Module,
        inner: "Level | None" = None,
        decode: nn.Module | None = None,
        *,
        spatial_dims: SpatialDims,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.inner = inner
        self.pool: nn.Module | None = None if inner is None else POOLS["max"][spatial_dims](2)
        self.decode = decode

    def forward(self, x: Tensor, trace: "Trace | None" = None) -> Tensor:
        skip = checkpointed(self.encode, x)
        maps = [skip]
        if self.inner is not None and self.pool is not None:
            half = recomputed(self.pool, skip)
            maps.append(self.inner(half) if trace is None else self.inner(half, trace))
        out = skip if self.decode is None else checkpointed(self.decode, *maps)
        if trace is not None:
            trace.add(skip, out)
        return out

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Return the encoded feature maps of this level and all deeper ones, without decoding."""
        features: list[Tensor] = []
        level: Level | None = self
        while level is not None:
            features.append(checkpointed(level.encode, x))
            x = features[-1] if level.pool is None else level.pool(features[-1])
            level = level.inner
        return features


class Trace:
    """The feature maps of one pass through nested levels.

    Args:
        decoded: Keep the decoded ones too.
    """

    def __init__(self, decoded: bool = True) -> None:
        self.keeps_decoded = decoded
        self.encoded: list[Tensor | Kept] = []
        self.decoded: list[Tensor | Kept] = []

    def add(self, encoded: Tensor, decoded: Tensor) -> None:
        """Levels report from the inside out: encoded maps fine to coarse, decoded ones the reverse."""
        self.encoded.insert(0, kept(encoded))
        if self.keeps_decoded:
            self.decoded.append(kept(decoded))
