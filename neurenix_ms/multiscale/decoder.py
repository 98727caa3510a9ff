"""The expanding path of a U-Net, and its head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_made
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import RenamedAttribute, renamed_arguments
from neurenix_ms._core.dims import CONVOLUTIONS, SpatialDims, check_positive, choose
from neurenix_ms._core.tracing import entries
from neurenix_ms.checkpointing import checkpointed, recomputes
from neurenix_ms.layers.blocks import ConvSpec, Edge
from neurenix_ms.layers.conditioning import given_condition, keyword
from neurenix_ms.layers.levels import Up
from neurenix_ms.layers.naming import Act, Norm
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    check_encoded,
    check_encoder,
)
from neurenix_ms.multiscale.slots import (
    Block,
    Edges,
    Skip,
    Slots,
    Upsampling,
    check_conditioned,
    kernels_of,
    slots_of_levels,
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


def make_final(final_activation: FinalActivation) -> Callable[[Tensor], Tensor]:
    """Return the final activation, by name or as given."""
    if isinstance(final_activation, type):
        return check_made("final_activation", final_activation)
    if callable(final_activation):
        return final_activation
    return choose(FINAL_ACTIVATIONS, final_activation, "final_activation")()


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
        self.act = make_final(final_activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.act(y if residual is None else y + residual)


def make_ups(levels: Sequence[Slots], widths: Sequence[int], align_corners: bool) -> list[Up]:
    """Return the decoder levels, coarsest first, for the channels of all levels, finest first.

    Upsampling without weights leaves the channels as they are, so each step already goes down to the
    width of the next finer skip; one with weights changes them itself.
    """
    *skips, deep = widths
    ups: list[Up] = []
    for depth in reversed(range(len(skips))):
        level, skip = levels[depth], skips[depth]
        out = skips[max(depth - 1, 0)] if level.keeps_channels else skip
        up, channels = level.make_up(deep, skip, align_corners)
        merge, joined = level.make_skip(skip, channels)
        middle = None
        if level.keeps_channels:
            middle = skip if level.skip == "sum" else joined // 2
        ups.append(Up(up, level.make_decoder(joined, out, middle), merge))
        deep = out
    return ups


def widths_of(levels: Sequence[Slots], skips: Sequence[int]) -> list[int]:
    """Return the channels of every decoded feature map, finest first."""
    kept = [level.keeps_channels for level in levels[: len(skips)]]
    return [skips[max(d - 1, 0)] if kept[d] else skips[d] for d in range(len(skips))]


class DeepHeads(nn.ModuleList):
    """Heads of the coarser decoded feature maps, finest first.

    Shape:
        list of `(B, C_i, *S_i)` -> list of `(B, C_out, *S_i)`
    """

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [head(y) for head, y in zip(self, maps, strict=True)]


def up_named(up: Any, bilinear: bool) -> Any:
    """Return the upsampling that `bilinear` stands for, where none is named."""
    return ("linear" if bilinear else "transposed") if up is None else up


class UNetDecoder(Configured, nn.Module):
    """The decoder of a U-Net, for the feature maps of any encoder.

    Use it to turn a backbone with feature maps at several resolutions into a network with one output
    per pixel of the finest feature map.

    Args:
        encoder_channels: Channels of the encoder feature maps, finest first, the bottleneck last; or
            a `Backbone` whose strides double from level to level.
        out_channels: Channels of the output.
        num_scales: Number of feature maps; if given, it must equal that of `encoder_channels`.
        spatial_dims: Number of spatial axes.
        bilinear: Former name of `up`: True is "linear", False "transposed".
        align_corners: As in `F.interpolate`, for linear upsampling.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, which keeps the size (and takes a condition
            if its `forward` has a second argument for it).
        up: "linear", "nearest", "transposed", "transposed_norm" (with overlap, norm and activation),
            "shuffle", "wavelet", or `callable(channels) -> Module`, which multiplies the size by
            `stride`; None follows `bilinear`.
        skip: "concat", "sum", "attention", or `callable(skip_channels, up_channels) -> Module`, called
            with the skip and the upsampled feature map, both of the same size.
        depth: Number of blocks per level.
        stride: Pixels of a feature map per pixel of the next coarser one.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        kernel_size: Kernel size in pixels, odd; None takes 7 for "convnext" and 3 for others.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length K of a vector that every block is conditioned on; None: no condition.
        deep_supervision: In training, return the outputs of all levels, finest first.

    `block`, `up`, `skip`, `depth`, `stride` and `kernel_size` may be lists with an entry per level,
    finest first: one per encoder feature map for `block`, `depth` and `kernel_size` (that of the last
    is not used), one less for the others. An entry of `stride` or `kernel_size` may have a number per
    axis.

    Shape:
        list of `(B, encoder_channels[i], *S_i)`, or a dict of them, finest first ->
        `(B, out_channels, *S_0)`; each about half the size of the one before (upsampled by
        two, then padded or cropped at the end); with `deep_supervision`, in training, a list of such
        outputs for all feature maps but the last; with `condition_channels`, the second argument is a
        condition `(B, condition_channels)`

    Raises:
        ValueError: If there are fewer than two feature maps, `num_scales` differs, the strides of a
            backbone do not double, or a feature map has other channels, another rank or batch size, or
            not about half the size of the one before.

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
        block: Block | Sequence[Block] = "double",
        up: Upsampling | Sequence[Upsampling] | None = None,
        skip: Skip | Sequence[Skip] = "concat",
        depth: int | Sequence[int] = 1,
        stride: int | Sequence[Edge] = 2,
        conv_bias: bool | None = True,
        kernel_size: Edges | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        widths = check_encoder(encoder_channels, stride)
        check_positive(out_channels=out_channels)
        if num_scales is not None and num_scales != len(widths):
            raise ValueError(
                f"num_scales must equal the {len(widths)} encoder_channels, got {num_scales}"
            )
        self.encoder_channels = widths
        self.num_scales = len(widths)

        self.up = up_named(up, bilinear)
        spec = ConvSpec(
            spatial_dims, norm=norm, act=act, conv_bias=conv_bias, padding_mode=padding_mode,
            dropout=dropout, condition_channels=condition_channels,
        )  # fmt: skip
        levels = slots_of_levels(
            len(widths) - 1, spec, kernel_size,
            block=block, up=self.up, skip=skip, depth=depth, stride=stride,
        )  # fmt: skip
        self.bilinear = self.up == "linear"
        self.kernel_size = kernels_of(levels) if kernel_size is None else kernel_size
        self.ups = nn.ModuleList(make_ups(levels, widths, align_corners))
        check_conditioned(self.ups, condition_channels)
        outputs = widths_of(levels, widths[:-1])
        self.head = Head(outputs[0], out_channels, spatial_dims, final_activation)
        self.deep_heads: DeepHeads | None = None
        if deep_supervision:
            self.deep_heads = DeepHeads(
                Head(n, out_channels, spatial_dims, final_activation) for n in outputs[1:]
            )

    @recomputes
    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        features = check_encoded(features, self.encoder_channels, self.spatial_dims, self.stride)
        *skips, y = entries(features, self.num_scales)
        given = keyword("condition", given_condition(y, condition, self.condition_channels))
        decoded: list[Tensor] = []
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            y = checkpointed(up, skip, y, **given)
            if self.deep_heads is not None and self.training:
                decoded.insert(0, y)
        if decoded and self.deep_heads is not None:
            return [self.head(y), *self.deep_heads(decoded[1:])]
        return self.head(y)
