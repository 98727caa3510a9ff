"""Residual blocks: pre-activation, ConvNeXt and inverted bottleneck."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.hooks import is_watched
from neurenix_ms._core.tracing import one_module, sizes_are_open
from neurenix_ms.checkpointing import recomputed
from neurenix_ms.layers.blocks import ChannelDropout, ConvSpec, in_turn, joined, modulated
from neurenix_ms.layers.conditioning import FiLM
from neurenix_ms.layers.naming import make_act, make_norm

EXPANSION = {"convnext": 4, "inverted": 6}
LAYER_SCALE = 1e-6  # of a new ConvNeXt block


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of every pixel.

    Shape:
        `(B, C, *S)` -> the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6)
        y = y.movedim(-1, 1)
        # torch.export compares strides, and other sizes would not fit those of a permuted result
        return y.contiguous() if torch.compiler.is_exporting() else y


class PixelGELU(nn.GELU):
    """GELU, 1.6 times as fast on a CPU where the channels are the last axis in memory.

    PyTorch has a fast kernel of oneDNN for contiguous tensors only, so it is given such a view.

    Shape:
        `(B, C, *S)` -> the same
    """

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        # what runs in tiles makes the same calls at every size, and layouts vary with the size
        same = sizes_are_open() or is_watched()
        if same or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
            return super().forward(x)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice, and the input added.

    Shape:
        feature maps `(B, C_i, *S)`, their channels together `C_in`, and the condition `(B, K)` of a
        conditioned block -> `(B, C_out, *S)`

    Source: He et al. 2016, "Identity mappings in deep residual networks", figure 1 (b).
    """

    def __init__(self, in_channels: int, out_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        widths = (in_channels, out_channels)
        self.norms = nn.ModuleList(make_norm(spec.norm, n, spec.spatial_dims) for n in widths)
        self.acts = nn.ModuleList(make_act(spec.act) for _ in widths)
        self.convs = nn.ModuleList(spec.layer(n, out_channels).conv for n in widths)
        if spec.condition_channels is not None:
            self.films = nn.ModuleList(FiLM(spec.condition_channels, n) for n in widths)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = spec.point().layer(in_channels, out_channels).conv
        self.dropout = ChannelDropout(spec.dropout)

    def forward(self, *features: Tensor, condition: Tensor | None = None) -> Tensor:
        x = joined(features)
        y = x
        for i, (act, conv) in enumerate(zip(self.acts, self.convs, strict=True)):
            # in one expression: no name holds the result of the norm during the convolution
            y = conv(recomputed(act, self._normed(i, y, condition)))
        return self.dropout(recomputed(torch.add, y, self.shortcut(x)))

    def _normed(self, i: int, y: Tensor, condition: Tensor | None) -> Tensor:
        """Return the feature map in front of an activation, scaled and shifted by the condition."""
        if condition is None:
            return recomputed(self.norms[i], y)
        return recomputed(self.films[i], recomputed(self.norms[i], y), condition)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm, and two dense layers per pixel, scaled, and the input added.

    The norm is a layer norm over channels and the activation GELU, whatever `norm` and `act` other
    blocks have. Where the channels differ, a 1x1 convolution comes first.

    Shape:
        feature maps `(B, C_i, *S)`, their channels together `C_in`, and the condition `(B, K)` of a
        conditioned block -> `(B, C_out, *S)`

    Source: Liu et al. 2022, "A ConvNet for the 2020s", figure 4 and section 2.6.
    """

    def __init__(self, in_channels: int, out_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        dims, wide = spec.spatial_dims, EXPANSION["convnext"] * out_channels
        plain = ConvSpec(dims, spec.kernel_size, None, None, True, spec.padding_mode)
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = plain.point().layer(in_channels, out_channels).conv
        self.depthwise = plain.layer(out_channels, out_channels, groups=out_channels).conv
        self.norm = ChannelNorm(out_channels)
        self.film = spec.film(out_channels)
        self.expand = plain.point().layer(out_channels, wide).conv
        self.act = PixelGELU()
        self.reduce = plain.point().layer(wide, out_channels).conv
        self.scale = nn.Parameter(torch.full((out_channels,), LAYER_SCALE))
        self.per_channel = (-1, *[1] * dims)
        self.dropout = ChannelDropout(spec.dropout)

    def forward(self, *features: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.project(joined(features))
        # in one expression: no name holds a feature map of four times the channels
        y = self.reduce(recomputed(self.act, self.expand(self._normed(x, condition))))
        return self.dropout(torch.addcmul(x, self.scale.view(self.per_channel), y))

    def _normed(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y = recomputed(self.norm, self.depthwise(x))
        return y if condition is None else modulated(self.film, y, condition)


class InvertedBlock(nn.Module):
    """A 1x1 convolution to more channels, a depthwise one, a 1x1 one back, and the input added.

    The sum is only where the channels are equal.

    Shape:
        feature maps `(B, C_i, *S)`, their channels together `C_in`, and the condition `(B, K)` of a
        conditioned block -> `(B, C_out, *S)`

    Source: Sandler et al. 2018, "MobileNetV2", table 1, with an expansion of 6.
    """

    def __init__(self, in_channels: int, out_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        wide = EXPANSION["inverted"] * in_channels
        one = replace(spec, kernel_size=1, padding_mode="zeros", dropout=0.0)
        self.expand = one.layer(in_channels, wide)
        self.depthwise = spec.layer(wide, wide, groups=wide)
        self.reduce = spec.point().layer(wide, out_channels)
        self.is_residual = in_channels == out_channels
        self.dropout = ChannelDropout(spec.dropout)

    def forward(self, *features: Tensor, condition: Tensor | None = None) -> Tensor:
        x = joined(features)
        y = in_turn((self.expand, self.depthwise, self.reduce), (x,), condition)
        return self.dropout(recomputed(torch.add, y, x) if self.is_residual else y)
