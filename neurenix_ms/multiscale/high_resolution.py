"""High-resolution networks (HRNet) in one to three dimensions, for inputs of any size."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
)
from neurenix_ms._core.sizes import Size, fit, spatial
from neurenix_ms.checkpointing import checkpointed, recomputed, recomputes
from neurenix_ms.layers.blocks import ConvSpec, modulated
from neurenix_ms.layers.conditioning import given_condition, keyword
from neurenix_ms.layers.levels import Double
from neurenix_ms.layers.naming import Act, Norm, check_normalizable, make_act, make_norm
from neurenix_ms.multiscale.decoder import FinalActivation, Head, make_final
from neurenix_ms.multiscale.slots import Block, check_conditioned, per_level, slots_of_levels
from neurenix_ms.multiscale.streams import StreamBlock, Sum
from neurenix_ms.multiscale.unet import check_level_widths

MOST_REDUCTIONS = 8


class Joined(nn.Module):
    """All streams at the size of the finest, mixed at every pixel; outputs of the size of the input.

    Every stream is convolved with its part of the 1x1 convolution at its own size, without
    concatenating them.

    Shape:
        list of `(B, widths[i], *S_i)`, a size `S` and the condition `(B, K)` of a conditioned network ->
        `(B, out_channels, *S)`

    Source: Wang et al. 2019, section 3.2 and figure 4 (b): HRNetV2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden_channels: int,
        out_channels: int,
        reductions: int,
        spec: ConvSpec,
        final_activation: FinalActivation,
    ) -> None:
        super().__init__()
        dims = spec.spatial_dims
        has_bias = spec.norm is None if spec.conv_bias is None else spec.conv_bias
        self.points = nn.ModuleList(  # one bias is enough for the sum
            CONVOLUTIONS[dims](n, hidden_channels, 1, bias=has_bias and i == 0)
            for i, n in enumerate(widths)
        )
        self.sum = Sum(0, replace(spec, act=None), "linear")
        self.norm = make_norm(spec.norm, hidden_channels, dims)
        self.film = spec.film(hidden_channels)
        self.act = make_act(spec.act)
        self.head = Head(hidden_channels, out_channels, dims, None)
        self.enlarge = Double(dims, False, "linear", (2**reductions,) * dims)
        self.final = make_final(final_activation)

    def forward(self, streams: list[Tensor], size: Size, condition: Tensor | None = None) -> Tensor:
        maps = [point(x) for point, x in zip(self.points, streams, strict=True)]
        y = modulated(self.film, recomputed(self.norm, self.sum(*maps)), condition)
        y = recomputed(self.act, y)
        return self.final(fit(self.enlarge(self.head(y)), size))


class HighResolutionNetwork(Configured, nn.Module):
    """Parallel streams of several resolutions that exchange features repeatedly.

    Use it where outputs need both exact positions and wide context, such as key points or fine
    structures: no resolution is rebuilt from a coarser one. Without `out_channels` it is a backbone: its
    list of streams fits every decoder, neck and fusion of this library.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None returns the streams, finest first.
        features: Channels of the streams, finest first. Stage k has the first k streams.
        num_modules: Modules of every stage, each with an exchange at its end: one number, or one per
            stage.
        spatial_dims: Number of spatial axes.
        stem_reductions: Convolutions of stride 2 before the first stage: the finest stream has the size
            of the input divided by `2**stem_reductions`.
        stem_channels: Channels of these convolutions.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, along a stream; or a list, one
            per stream.
        depth: Blocks of a stream in every module, or a list, one per stream.
        up: How coarser streams are enlarged in an exchange: "nearest" or "linear".
        hidden_channels: Channels before the output layer; by default the sum of `features`.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length of the vector on which every block and every other convolution with a
            norm is conditioned, as blocks in `UNet`.

    Shape:
        `(B, in_channels, *S)`, and a `condition` `(B, condition_channels)` if the network has one ->
        `(B, out_channels, *S)`, or a list of `(B, features[i], *S_i)`, with
        `S_0 = ceil(S / 2**stem_reductions)` and each half of the one before, rounded up

    Raises:
        ValueError: If an argument is out of range or unknown, `hidden_channels` or `final_activation`
            are given without `out_channels`, the input has other channels or axes, or the condition
            does not fit.

    Source: Wang et al. 2019, "Deep High-Resolution Representation Learning for Visual Recognition",
    section 3; `out_channels`: HRNetV2. Deviations: the first stage has the same blocks and channels as
    the finest stream later on, and sizes are rounded up, so that any size works.

    Examples:
        >>> import torch
        >>> from neurenix_ms import HighResolutionNetwork
        >>> x = torch.zeros(2, 3, 37, 53)
        >>> HighResolutionNetwork(3, 1, [4, 8], stem_channels=4)(x).shape
        torch.Size([2, 1, 37, 53])
        >>> streams = HighResolutionNetwork(3, features=[4, 8], stem_reductions=0)(x)
        >>> [tuple(y.shape) for y in streams]
        [(2, 4, 37, 53), (2, 8, 19, 27)]
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        features: Sequence[int] = (18, 36, 72, 144),
        num_modules: int | Sequence[int] = 1,
        *,
        spatial_dims: SpatialDims = 2,
        stem_reductions: int = 2,
        stem_channels: int = 64,
        block: Block | Sequence[Block] = "residual",
        depth: int | Sequence[int] = 2,
        up: Literal["nearest", "linear"] = "nearest",
        hidden_channels: int | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        conv_bias: bool | None = None,
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, stem_channels=stem_channels)
        check_integer("stem_reductions", stem_reductions, 0, MOST_REDUCTIONS)
        widths = check_level_widths(features)
        modules = per_level("num_modules", num_modules, len(widths))
        check_positive(**{f"num_modules[{i}]": n for i, n in enumerate(modules)})
        spec = ConvSpec(
            spatial_dims, norm=norm, act=act, conv_bias=conv_bias, padding_mode=padding_mode,
            dropout=dropout, condition_channels=condition_channels,
        )  # fmt: skip
        levels = slots_of_levels(len(widths) - 1, spec, None, block=block, depth=depth, stride=2)
        self.features = widths
        stem = [in_channels, *[stem_channels] * stem_reductions]
        self.stem = nn.ModuleList(spec.layer(a, b, stride=2) for a, b in pairwise(stem))
        self.branch = nn.ModuleList(spec.layer(a, b, stride=2) for a, b in pairwise(widths))
        self.stages = nn.ModuleList()
        for count, num in enumerate(modules, start=1):
            stage = nn.ModuleList()
            for index in range(num):
                entering = list(widths[:count])
                if count == 1 and index == 0:
                    entering = [stem[-1]]
                stage.append(StreamBlock(levels[:count], entering, widths[:count], up))
            self.stages.append(stage)
        streams = [m.blocks for m in self.stages.modules() if isinstance(m, StreamBlock)]
        check_conditioned(nn.ModuleList(streams), condition_channels)
        self.head: Joined | None = None
        if out_channels is not None:
            hidden = sum(widths) if hidden_channels is None else hidden_channels
            check_positive(out_channels=out_channels, hidden_channels=hidden)
            self.hidden_channels = hidden
            self.head = Joined(
                widths, hidden, out_channels, stem_reductions, spec, final_activation
            )
        elif hidden_channels is not None or final_activation is not None:
            raise ValueError(
                "hidden_channels and final_activation need out_channels, got None, which returns streams"
            )

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        streams = self._streams(x, condition)
        given = keyword("condition", condition)
        return streams if self.head is None else self.head(streams, spatial(x), **given)

    @recomputes
    def forward_features(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the streams after the last exchange, finest first."""
        return self._streams(x, condition)

    def _streams(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        given = keyword("condition", given_condition(x, condition, self.condition_channels))
        halvings = len(self.stem) + len(self.branch)
        check_normalizable(self.norm, self.training, x, halvings, rounds_up=True)
        for layer in self.stem:
            x = checkpointed(layer, x, **given)
        streams = [x]
        for index, stage in enumerate(self.stages):
            if index > 0:
                streams.append(checkpointed(self.branch[index - 1], streams[-1], **given))
            for module in cast(nn.ModuleList, stage):
                streams = module(streams, **given)
        return streams
