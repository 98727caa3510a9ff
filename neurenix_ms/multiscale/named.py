"""What the named slots of a network are made of, beside blocks and layers of torch."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms._core.tracing import one_call, one_module
from neurenix_ms.checkpointing import recomputed
from neurenix_ms.layers.blocks import ConvSpec, joined
from neurenix_ms.layers.conditioning import keyword
from neurenix_ms.layers.inference import finished, is_inference
from neurenix_ms.layers.naming import make_act, make_norm
from neurenix_ms.multiscale.lifting import WAVELETS, merge, split
from neurenix_ms.multiscale.shuffling import PixelShuffle


class Stack(nn.Sequential):
    """Blocks one after the other, the first of which concatenates what it is called with.

    Shape:
        feature maps `(B, C_i, *S)` -> `(B, C_out, *S)`
    """

    def forward(self, *maps: Tensor, condition: Tensor | None = None) -> Tensor:
        given = keyword("condition", condition)
        first, *others = self
        y = first(*maps, **given)
        for block in others:
            y = block(y, **given)
        return y


class Sum(nn.Module):
    """The sum of a skip and an upsampled feature map.

    Shape:
        two `(B, C, *S)` -> `(B, C, *S)`
    """

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return recomputed(torch.add, skip, deep)


class AttentionGate(nn.Module):
    """Weight every pixel of a skip connection by the coarser levels, and concatenate.

    The gating signal is upsampled first, so that the weights need not be; norms are those of the
    blocks.

    Shape:
        skip `(B, C, *S)` and `(B, D, *S)` -> `(B, C + D, *S)`

    Source: Oktay et al. 2018, "Attention U-Net", equations 1 and 2.
    """

    def __init__(self, skip_channels: int, deep_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        point = replace(spec.point().unconditioned(), conv_bias=True)
        middle = max(1, skip_channels // 2)
        self.of_skip = point.layer(skip_channels, middle)
        self.of_deep = point.layer(deep_channels, middle)
        self.score = point.layer(middle, 1)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return joined((recomputed(torch.mul, skip, self._weights(skip, deep)), deep))

    def _weights(self, skip: Tensor, deep: Tensor) -> Tensor:
        """Return one number from 0 to 1 for every pixel."""
        return torch.sigmoid(self.score(torch.relu(self.of_skip(skip) + self.of_deep(deep))))


class Bands(nn.Module):
    """One level of a Haar wavelet transform, all bands as channels.

    Shape:
        `(B, C, *S)` -> `(B, C * 2**axes, *ceil(S / 2))`
    """

    @one_module
    def forward(self, x: Tensor) -> Tensor:
        bands = split(x, WAVELETS["haar"], periodic=False)
        return torch.cat([fit(band, spatial(bands[0])) for band in bands], dim=1)


class Synthesis(nn.Module):
    """A 1x1 convolution to the bands of a Haar wavelet, and its inverse.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *2S)`
    """

    def __init__(self, in_channels: int, out_channels: int, spec: ConvSpec) -> None:
        super().__init__()
        bands = 2**spec.spatial_dims
        self.conv = CONVOLUTIONS[spec.spatial_dims](in_channels, out_channels * bands, 1)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return haar_merged(self.conv(x), self.out_channels)


@one_call
def haar_merged(bands: Tensor, channels: int) -> Tensor:
    """Return the feature map of so many channels that has these bands of a Haar wavelet."""
    size = tuple(2 * n for n in spatial(bands))
    return merge(bands.split(channels, dim=1), size, WAVELETS["haar"], periodic=False)


class TransposedNormAct(nn.Module):
    """A transposed convolution whose windows overlap, a normalization and an activation.

    A window is half as long again as the stride, rounded down: 3 pixels for a stride of 2.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S * stride)`
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], spec: ConvSpec
    ) -> None:
        super().__init__()
        more = tuple(n // 2 for n in stride)
        self.conv = TRANSPOSED_CONVOLUTIONS[spec.spatial_dims](
            in_channels, out_channels, tuple(n + k for n, k in zip(stride, more, strict=True)),
            stride=tuple(stride), padding=more, output_padding=more,
            bias=spec.norm is None if spec.conv_bias is None else spec.conv_bias,
        )  # fmt: skip
        self.norm = make_norm(spec.norm, out_channels, spec.spatial_dims)
        self.act = make_act(spec.act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if is_inference(y):
            return finished(self.norm, self.act, y)
        return recomputed(self.act, recomputed(self.norm, y))


class Shuffled(nn.Module):
    """A convolution whose channels are spread over blocks of pixels.

    It starts as nearest upsampling of a convolution: all pixels of a block have the same weights, and
    no checkerboard is seen.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S * stride)`

    Source: Shi et al. 2016, equation 4; Aitken et al. 2017, "Checkerboard artifact free sub-pixel
    convolution", section 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], spec: ConvSpec
    ) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[spec.spatial_dims](
            in_channels, out_channels * prod(stride), 3, padding=1
        )
        with torch.no_grad():
            for values in (self.conv.weight, self.conv.bias):
                values.copy_(values[:: prod(stride)].repeat_interleave(prod(stride), dim=0))
        self.shuffle = PixelShuffle(tuple(stride), spatial_dims=spec.spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv(x))
