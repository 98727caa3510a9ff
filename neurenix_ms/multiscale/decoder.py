"""The way up of a U-Net: deep maps joined to the skip of every finer resolution, then a head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integers, check_made
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import RenamedAttribute, renamed_arguments
from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims, check_positive, choose
from neurenix_ms._core.orders import check_halving
from neurenix_ms._core.tracing import entries
from neurenix_ms.backbones import Backbone
from neurenix_ms.checkpointing import checkpointed, recomputes
from neurenix_ms.layers.blocks import BlockKind, ConvBlock, ConvSpec
from neurenix_ms.layers.levels import Up
from neurenix_ms.layers.naming import Act, Norm
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    as_list,
    channels_of,
    check_features,
)

FinalActivation = (
    Literal["sigmoid", "softmax", "softplus", "relu"] | Callable[[Tensor], Tensor] | None
)
FINAL_ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "softmax": partial(nn.Softmax, dim=1),
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
    None: nn.Identity,
}


class Head(nn.Module):
    """A 1x1 convolution to the output channels, a residual input channel, a final activation.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: SpatialDims,
        final_activation: FinalActivation,
    ) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[spatial_dims](in_channels, out_channels, 1)
        self.act: Callable[[Tensor], Tensor]
        if isinstance(final_activation, type):
            self.act = check_made("final_activation", final_activation)
        elif callable(final_activation):
            self.act = final_activation
        else:
            self.act = choose(FINAL_ACTIVATIONS, final_activation, "final_activation")()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.act(y if residual is None else y + residual)


def make_ups(
    skips: Sequence[int],
    bottom: int,
    blocks: Callable[..., ConvBlock],
    spatial_dims: SpatialDims,
    bilinear: bool,
    align_corners: bool,
) -> list[Up]:
    """The steps up, coarse to fine.

    Linear upsampling leaves the channels as they are, so each step already goes down to the width of
    the next finer skip; a transposed convolution changes them itself.
    """
    ups: list[Up] = []
    deep = bottom
    for depth in reversed(range(len(skips))):
        out = skips[max(depth - 1, 0)] if bilinear else skips[depth]
        ups.append(
            Up(
                skips[depth],
                deep,
                out,
                blocks,
                spatial_dims=spatial_dims,
                bilinear=bilinear,
                align_corners=align_corners,
            )
        )
        deep = out
    return ups


class UNetDecoder(Configured, nn.Module):
    """The decoding half of a U-Net, for the maps of any encoder.

    Use it to turn a backbone that gives maps at several resolutions into a network with an output
    per pixel of its finest map.

    Args:
        encoder_channels: Channels of the encoder's maps, fine to coarse, the bottleneck last; or a
            `Backbone` whose strides double from map to map.
        out_channels: Channels of the output.
        num_scales: Number of maps; if given, it must equal that of `encoder_channels`.
        spatial_dims: Number of spatial axes.
        bilinear: Upsample linearly; False takes transposed convolutions.
        align_corners: Grid of the linear upsampling.
        block: "double", "single" or "residual".
        conv_bias: Bias of the convolutions; None is only where no norm follows.
        kernel_size: Odd edge of the kernels in pixels.
        norm: As in UNet.
        act: As in UNet.
        padding_mode: As in `nn.Conv2d`.
        dropout: Share of channels dropped after every block.
        final_activation: As in UNet.

    Shape:
        list of `(B, encoder_channels[i], *S_i)`, or a dict of them, finest first ->
        `(B, out_channels, *S_0)`; each map about half the size of the one before (upsampled by
        two, then padded or cropped at the end)

    Raises:
        ValueError: If there are fewer than two maps, `num_scales` differs, the strides of a backbone
            do not double, a map has other channels, another rank or batch size, or the maps are not
            each about half the size of the one before.

    Source: Ronneberger et al. 2015, "U-Net", figure 1, right half.

    Examples:
        >>> import torch
        >>> from neurenix_ms import UNetDecoder
        >>> decoder = UNetDecoder([8, 16, 16], 1)
        >>> decoder([torch.zeros(1, 8, 37, 53), torch.zeros(1, 16, 18, 26),
        ...          torch.zeros(1, 16, 9, 13)]).shape
        torch.Size([1, 1, 37, 53])
    """

    output_channels = RenamedAttribute("out_channels")

    @renamed_arguments(output_channels="out_channels")
    @checked
    def __init__(
        self,
        encoder_channels: Channels,
        out_channels: int,
        num_scales: int | None = None,
        *,
        spatial_dims: SpatialDims = 2,
        bilinear: bool = True,
        align_corners: bool = False,
        block: BlockKind = "double",
        conv_bias: bool | None = True,
        kernel_size: int = 3,
        norm: Norm = "batch",
        act: Act = "relu",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
    ) -> None:
        super().__init__()
        widths = check_integers("encoder_channels", channels_of(encoder_channels), minimum=1)
        check_positive(out_channels=out_channels)
        if isinstance(encoder_channels, Backbone):
            encoder_channels.check_doubling()
        if len(widths) < 2:
            raise ValueError(f"encoder_channels must name at least two maps, got {widths}")
        if num_scales is not None and num_scales != len(widths):
            raise ValueError(
                f"num_scales must equal the {len(widths)} encoder_channels, got {num_scales}"
            )
        self.encoder_channels = widths
        self.num_scales = len(widths)

        spec = ConvSpec(spatial_dims, kernel_size, norm, act, conv_bias, padding_mode, dropout)
        blocks = partial(ConvBlock, block=block, spec=spec)
        *skips, bottom = widths
        self.ups = nn.ModuleList(
            make_ups(skips, bottom, blocks, spatial_dims, bilinear, align_corners)
        )
        self.head = Head(skips[0], out_channels, spatial_dims, final_activation)

    @recomputes
    def forward(self, features: Features) -> Tensor:
        features = as_list(features)
        check_features(features, self.encoder_channels, self.spatial_dims)
        check_halving(features, "features")
        *skips, y = entries(features, self.num_scales)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            y = checkpointed(up, skip, y)
        return self.head(y)
