"""U-Nets in one to three dimensions, for inputs of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_made
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    MOST_LEVELS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
)
from neurenix_ms._core.recomputation import tensor_of
from neurenix_ms._core.remember import Remembers
from neurenix_ms._core.sizes import check_halvings, check_reducible, spatial
from neurenix_ms.checkpointing import recomputes
from neurenix_ms.layers.blocks import ConvSpec, Edge
from neurenix_ms.layers.conditioning import given_condition
from neurenix_ms.layers.levels import LevelFeatures
from neurenix_ms.layers.naming import Act, Norm, check_normalizable
from neurenix_ms.multiscale.decoder import (
    DeepHeads,
    FinalActivation,
    Head,
    make_ups,
    up_named,
    widths_of,
)
from neurenix_ms.multiscale.slots import (
    Block,
    Down,
    Edges,
    Skip,
    Slots,
    Upsampling,
    check_conditioned,
    kernels_of,
    nested,
    products_of,
    slots_of_levels,
)


class UNet(Configured, Remembers, nn.Module):
    """A U-Net for signals, images and volumes of any size.

    Use it where output and input have the same size: segmentation, denoising, the next state of a
    field. Outputs are logits unless `final_activation` is given.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        features: Channels of the skip connections, finest first; the bottleneck is one level deeper.
        spatial_dims: Number of spatial axes.
        bilinear: Former name of `up`: True is "linear", False "transposed".
        align_corners: As in `F.interpolate`, for linear upsampling. Set it only to load weights trained
            with it: such a network cannot run in exact tiles.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, which keeps the size (and takes a condition
            if its `forward` has a second argument for it).
        down: "max", "avg", "conv", "blur", "wavelet", "unshuffle", "strided" (by the first convolution
            of the next coarser block), or `callable(channels) -> Module`, which divides the size by
            `stride`, and may change the channels.
        up: "linear", "nearest", "transposed", "transposed_norm" (with overlap, norm and activation),
            "shuffle", "wavelet", or `callable(channels) -> Module`, which multiplies the size by
            `stride`; None follows `bilinear`.
        skip: "concat", "sum", "attention", or `callable(skip_channels, up_channels) -> Module`, called
            with the skip and the upsampled feature map, both of the same size.
        decoder_block: The block after the coarser levels, as `block`; "same" takes that.
        depth: Number of blocks per level, before and after the coarser ones.
        stride: Pixels of a level per pixel of the next coarser one.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        bottleneck_channels: Channels of the bottleneck; by default those of the last skip connection if
            upsampling has no weights, else twice as many.
        kernel_size: Kernel size in pixels, odd; None takes 7 for "convnext" and 3 for others.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        decoder_norm: As `norm`, in the blocks of the decoder; "same" takes that.
        decoder_act: As `act`, in the blocks of the decoder; "same" takes that.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        residual_channel: Input channel that is added to the output before the final activation.
        condition_channels: Length K of a vector that every block is conditioned on; None: no condition.
        deep_supervision: In training, return the outputs of all levels, finest first.
        remember: Keep the feature maps of the last forward pass for the getters; False saves memory.

    `block`, `down`, `up`, `skip`, `decoder_block`, `depth`, `stride` and `kernel_size` may be lists with
    an entry per level, finest first: `len(features) + 1` for `block`, `depth` and `kernel_size`, the
    bottleneck last, and `len(features)` for the others. An entry of `stride` or `kernel_size` may have
    a number per axis, as for volumes with thick slices.

    Shape:
        `(B, in_channels, *S)` -> `(B, out_channels, *S)`, every S at least the product of the strides,
        `2**len(features)`; with `deep_supervision`, in training, a list of such outputs for all levels
        but the bottleneck; with `condition_channels`, the second argument is a
        condition `(B, condition_channels)`

    Raises:
        ValueError: If an argument is out of range or unknown, or the input is too small or has other
            channels or axes, or the condition does not fit.
        RuntimeError: If a getter is called before a forward pass.

    Source: Ronneberger et al. 2015, "U-Net", figure 1, padded so that sizes stay; with the defaults
    the 17,267,393 parameters of the widely used bilinear variant.

    Examples:
        >>> import torch
        >>> from neurenix_ms import UNet
        >>> model = UNet(3, 1, features=[8, 16])
        >>> model(torch.zeros(2, 3, 37, 53)).shape
        torch.Size([2, 1, 37, 53])
        >>> [tuple(y.shape[1:]) for y in model.get_encoder_features()]
        [(8, 37, 53), (16, 18, 26), (16, 9, 13)]
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (64, 128, 256, 512),
        *,
        spatial_dims: SpatialDims = 2,
        bilinear: bool = True,
        align_corners: bool = False,
        block: Block | Sequence[Block] = "double",
        down: Down | Sequence[Down] = "max",
        up: Upsampling | Sequence[Upsampling] | None = None,
        skip: Skip | Sequence[Skip] = "concat",
        decoder_block: Block | Literal["same"] | Sequence[Block] = "same",
        depth: int | Sequence[int] = 1,
        stride: int | Sequence[Edge] = 2,
        conv_bias: bool | None = True,
        bottleneck_channels: int | None = None,
        kernel_size: Edges | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        decoder_norm: Norm | Literal["same"] = "same",
        decoder_act: Act | Literal["same"] = "same",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        residual_channel: int | None = None,
        condition_channels: int | None = None,
        deep_supervision: bool = False,
        remember: bool = True,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        widths = check_level_widths(features)
        check_residual(residual_channel, in_channels, out_channels)
        if deep_supervision and residual_channel is not None:
            raise ValueError(
                "deep_supervision needs residual_channel None, which only the finest output has, got "
                f"{residual_channel}"
            )
        self.up = up_named(up, bilinear)
        spec = ConvSpec(
            spatial_dims, norm=norm, act=act, conv_bias=conv_bias, padding_mode=padding_mode,
            dropout=dropout, condition_channels=condition_channels,
        )  # fmt: skip
        if callable(decoder_norm):
            check_made("decoder_norm", decoder_norm, widths[0])
        if callable(decoder_act):
            check_made("decoder_act", decoder_act)
        decoder_spec = replace(
            spec,
            norm=norm if decoder_norm == "same" else decoder_norm,
            act=act if decoder_act == "same" else decoder_act,
        )
        levels = slots_of_levels(
            len(widths), spec, kernel_size,
            block=block, down=down, up=self.up, skip=skip, depth=depth, stride=stride,
            decoder_block=decoder_block, decoder_spec=decoder_spec,
        )  # fmt: skip
        if bottleneck_channels is None:
            bottleneck_channels = widths[-1] * (1 if levels[-2].keeps_channels else 2)
        check_positive(bottleneck_channels=bottleneck_channels)
        self.features = widths
        self.bottleneck_channels = bottleneck_channels
        self.bilinear = self.up == "linear"
        self.kernel_size = kernels_of(levels) if kernel_size is None else kernel_size
        self.reductions = products_of(levels[:-1], spatial_dims)
        channels = [*widths, bottleneck_channels]
        decoders = _decoders(levels, channels, align_corners)
        self.level = nested(levels, in_channels, channels, decoders)
        check_conditioned(self.level, condition_channels)
        outputs = widths_of(levels, widths)
        self.head = Head(outputs[0], out_channels, spatial_dims, final_activation)
        self.deep_heads: DeepHeads | None = None
        if deep_supervision:
            self.deep_heads = DeepHeads(
                Head(n, out_channels, spatial_dims, final_activation) for n in outputs[1:]
            )

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        self.clear_features()
        check_input(self, x)
        condition = given_condition(x, condition, self.condition_channels)
        heads = self.deep_heads if self.training else None
        trace = LevelFeatures() if self.remember or heads is not None else None
        y = self.level(x, trace, condition)
        if trace is not None and self.remember:
            self._remember(encoder=trace.encoded, decoder=trace.decoded[1:])
        if trace is not None and heads is not None:
            return [self.head(y), *heads([tensor_of(y) for y in trace.decoded[-2:0:-1]])]
        k = self.residual_channel
        return self.head(y, None if k is None else x[:, k : k + 1])

    @recomputes
    def forward_features(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the encoded feature maps of `x`, finest first, the bottleneck last, and keep none.

        The decoder is not run. Use it in place of a forward pass and `get_encoder_features`.
        """
        check_input(self, x)
        return self.level.encoded(x, given_condition(x, condition, self.condition_channels))

    def get_encoder_features(self) -> list[Tensor]:
        """Return the encoder feature maps of the last forward pass, finest first."""
        return [tensor_of(y) for y in self._recall("encoder")]

    def get_decoder_features(self) -> list[Tensor]:
        """Return the decoder feature maps of the last forward pass, coarsest first."""
        return [tensor_of(y) for y in self._recall("decoder")]


def _decoders(
    levels: Sequence[Slots], widths: Sequence[int], align_corners: bool
) -> Iterator[nn.Module | None]:
    """Return the decoders of all levels, coarsest first; that of the bottleneck is None."""
    yield None  # before the others are made, so that a seed gives the weights that it always gave
    yield from make_ups(levels, widths, align_corners)


def check_input(model: Any, x: Tensor) -> None:
    """Raise unless the input of a U-Net has its axes and channels, and can be reduced by its strides."""
    check_rank(x, model.spatial_dims)
    check_channels(x, model.in_channels)
    if model.stride == 2:
        check_halvings(spatial(x), len(model.features))
        check_normalizable(model.norm, model.training, x, len(model.features))
    else:
        check_reducible(spatial(x), model.reductions)


def check_level_widths(features: Sequence[int]) -> list[int]:
    """Return the widths of all levels; raise unless there are 1 to 62, none below 1."""
    if not features:
        raise ValueError("features must hold at least one width, got an empty list")
    check_integer("the number of features", len(features), 1, MOST_LEVELS["num_levels"])
    check_positive(**{f"features[{i}]": n for i, n in enumerate(features)})
    return list(features)


def check_residual(channel: int | None, in_channels: int, out_channels: int) -> None:
    """Refuse a residual channel that does not exist, or several outputs for one residual."""
    if channel is None:
        return
    if not 0 <= channel < in_channels:
        raise ValueError(
            f"residual_channel must be one of the {in_channels} input channels, got {channel}"
        )
    if out_channels != 1:
        raise ValueError(f"residual_channel needs out_channels 1, got {out_channels}")
