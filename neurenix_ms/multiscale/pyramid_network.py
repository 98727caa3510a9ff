"""Feature pyramids with top-down fusion."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import overload

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.orders import check_descending
from neurenix_ms._core.recomputation import tensor_of
from neurenix_ms._core.remember import Remembers
from neurenix_ms._core.sizes import check_halvings, check_reducible, spatial
from neurenix_ms._core.tracing import entries
from neurenix_ms.checkpointing import recomputes
from neurenix_ms.layers.blocks import ConvSpec, Edge
from neurenix_ms.layers.conditioning import FiLM, given_condition
from neurenix_ms.layers.levels import LevelFeatures
from neurenix_ms.layers.naming import Act, Norm, check_normalizable
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    as_list,
    channels_of,
    check_features,
    check_widths,
)
from neurenix_ms.multiscale.merging import merge_of
from neurenix_ms.multiscale.slots import (
    Block,
    Down,
    Edges,
    Skip,
    Upsampling,
    check_conditioned,
    kernels_of,
    nested,
    products_of,
    slots_of_levels,
)


class PyramidNetwork(Configured, Remembers, nn.Module):
    """Compute feature maps at several resolutions and fuse them top-down.

    Use it as a light network with one output per pixel, or as a source of features at several
    resolutions, by `forward_features(x)`, or `get_features()` after a forward pass.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_levels: Number of resolutions.
        base_channels: Channels of the finest level; every level doubles them.
        spatial_dims: Number of spatial axes.
        pyramid_channels: Channels of the top-down path; by default max(out_channels, base_channels).
        return_pyramid: Return the outputs of all levels, finest first, instead of the finest.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, which keeps the size (and takes a condition
            if its `forward` has a second argument for it).
        down: "max", "avg", "conv", "blur", "wavelet", "unshuffle", "strided" (by the first convolution
            of the next coarser block), or `callable(channels) -> Module`, which divides the size by
            `stride`, and may change the channels.
        up: "nearest", "linear", "transposed", "transposed_norm" (with overlap, norm and activation),
            "shuffle", "wavelet", or `callable(channels) -> Module`, which multiplies the size by
            `stride`.
        skip: "sum", "concat", "attention", or `callable(skip_channels, up_channels) -> Module`, called
            with a feature map of `pyramid_channels` and the upsampled one; if it returns other
            channels, a 1x1 convolution follows.
        depth: Number of blocks per level.
        stride: Pixels of a level per pixel of the next coarser one.
        kernel_size: Kernel size in pixels, odd; None takes 7 for "convnext" and 3 for others.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        conv_bias: Whether the convolutions of blocks have a bias; None: only those that no norm follows.
        padding_mode: As in `nn.Conv2d`.
        condition_channels: Length K of a vector that every block is conditioned on; None: no condition.
        deep_supervision: In training, return the outputs of all levels, finest first.
        remember: Keep the features of the last forward pass for `get_features`; False saves memory.

    `block`, `down`, `up`, `skip`, `depth`, `stride` and `kernel_size` may be lists with an entry per
    level, finest first: `num_levels` for `block`, `depth` and `kernel_size`, one less for the others.
    An entry of `stride` or `kernel_size` may have a number per axis.

    Shape:
        `(B, in_channels, *S)` -> `(B, out_channels, *S)`, or the list of
        `(B, out_channels, *floor(S / 2**i))`; every S at least the product of the strides,
        `2**(num_levels - 1)`; with `condition_channels`, the second argument is a
        condition `(B, condition_channels)`

    Raises:
        ValueError: If an argument is out of range or unknown, or the input is too small or has other
            channels or axes, or the condition does not fit.
        RuntimeError: If `get_features` is called before a forward pass.

    Source: Lin et al. 2017, "Feature Pyramid Networks", figure 3. Deviation: entry i of a finer
    feature map gets entry i // 2 of the coarser one, without the drift of nearest interpolation at odd
    sizes.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PyramidNetwork
        >>> model = PyramidNetwork(3, 2, num_levels=3, base_channels=8)
        >>> model(torch.zeros(1, 3, 13, 9)).shape
        torch.Size([1, 2, 13, 9])
        >>> [tuple(y.shape[1:]) for y in model.get_features()]
        [(8, 13, 9), (16, 6, 4), (32, 3, 2)]
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_levels: int = 3,
        base_channels: int = 64,
        *,
        spatial_dims: SpatialDims = 2,
        pyramid_channels: int | None = None,
        return_pyramid: bool = False,
        block: Block | Sequence[Block] = "double",
        down: Down | Sequence[Down] = "max",
        up: Upsampling | Sequence[Upsampling] = "nearest",
        skip: Skip | Sequence[Skip] = "sum",
        depth: int | Sequence[int] = 1,
        stride: int | Sequence[Edge] = 2,
        kernel_size: Edges | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        conv_bias: bool | None = None,
        padding_mode: str = "zeros",
        condition_channels: int | None = None,
        deep_supervision: bool = False,
        remember: bool = True,
    ) -> None:
        super().__init__()
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            num_levels=num_levels,
            base_channels=base_channels,
        )
        width = max(out_channels, base_channels) if pyramid_channels is None else pyramid_channels
        check_positive(pyramid_channels=width)
        self.pyramid_channels = width
        self.feature_channels = [base_channels * 2**i for i in range(num_levels)]

        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        spec = ConvSpec(
            spatial_dims, 3, norm, act, conv_bias, padding_mode,
            condition_channels=condition_channels,
        )  # fmt: skip
        levels = slots_of_levels(
            num_levels - 1, spec, kernel_size,
            block=block, down=down, up=up, skip=skip, depth=depth, stride=stride,
        )  # fmt: skip
        self.kernel_size = kernels_of(levels) if kernel_size is None else kernel_size
        self.reductions = products_of(levels[:-1], spatial_dims)
        channels = self.feature_channels
        merges = (
            merge_of(None if n == channels[-1] else slots, n, width, spatial_dims)
            for slots, n in zip(reversed(levels), reversed(channels), strict=True)
        )
        self.level = nested(levels, in_channels, channels, merges)
        check_conditioned(self.level, condition_channels)
        num_outputs = num_levels if return_pyramid or deep_supervision else 1
        self.outputs = nn.ModuleList(
            conv(width, out_channels, 3, padding=1) for _ in range(num_outputs)
        )

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        self.clear_features()
        self._check(x)
        condition = given_condition(x, condition, self.condition_channels)
        several = self.return_pyramid or (self.deep_supervision and self.training)
        trace = LevelFeatures(decoded=several) if self.remember or several else None
        finest = self.level(x, trace, condition)
        if trace is not None and self.remember:
            self._remember(features=trace.encoded)
        if trace is None or not several:
            return self.outputs[0](finest)
        levels = map(tensor_of, reversed(trace.decoded))
        return [out(y) for out, y in zip(self.outputs, levels, strict=True)]

    @recomputes
    def forward_features(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the encoder feature maps of `x`, finest first, without keeping them."""
        self._check(x)
        return self.level.encoded(x, given_condition(x, condition, self.condition_channels))

    def get_features(self) -> list[Tensor]:
        """Return the encoder feature maps of the last forward pass, finest first."""
        return [tensor_of(y) for y in self._recall("features")]

    def _check(self, x: Tensor) -> None:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        if self.stride == 2:
            check_halvings(spatial(x), self.num_levels - 1)
            check_normalizable(self.norm, self.training, x, self.num_levels - 1)
        else:
            check_reducible(spatial(x), self.reductions)


class PyramidFusion(Configured, nn.Module):
    """Fuse the feature maps of a backbone top-down (FPN).

    Use it as the neck between a backbone and heads that read every scale. The list is finest first, as
    is the result.

    Args:
        in_channels: Channels of every feature map, one number for all, or a `Backbone` that makes them.
        out_channels: Channels of every result; by default those of the (first) feature map.
        num_scales: Number of feature maps, if `in_channels` is one number.
        spatial_dims: Number of spatial axes.
        condition_channels: Length of the vector on which every result is conditioned, as blocks in
            `UNet`.

    Shape:
        list of `(B, in_channels[i], *S_i)`, and a `condition` `(B, condition_channels)` if the neck has
        one -> list of `(B, out_channels, *S_i)`; a dict of feature maps, finest first, gives an ordered
        dict with the same names, as torchvision's networks expect

    Raises:
        ValueError: If a count is below 1, the list has another length, a feature map has other
            channels, another rank or batch size, or the condition does not fit.

    Source: Lin et al. 2017, "Feature Pyramid Networks", section 3; arithmetic of torchvision's
    `FeaturePyramidNetwork`.

    Examples:
        >>> import torch
        >>> from neurenix_ms import PyramidFusion
        >>> neck = PyramidFusion([8, 16], 4)
        >>> [tuple(y.shape) for y in neck([torch.zeros(1, 8, 13, 9), torch.zeros(1, 16, 6, 4)])]
        [(1, 4, 13, 9), (1, 4, 6, 4)]
    """

    @checked
    def __init__(
        self,
        in_channels: int | Channels,
        out_channels: int | None = None,
        num_scales: int = 4,
        *,
        spatial_dims: SpatialDims = 2,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_scales=num_scales)
        widths = (
            [in_channels] * num_scales if isinstance(in_channels, int) else channels_of(in_channels)
        )
        out = widths[0] if out_channels is None and widths else (out_channels or 0)
        self.widths = check_widths(widths, out)
        self.in_channels = in_channels if isinstance(in_channels, int) else widths
        self.out_channels = out
        self.num_scales = len(widths)
        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        self.laterals = nn.ModuleList(conv(n, out, 1) for n in widths)
        self.outputs = nn.ModuleList(conv(out, out, 3, padding=1) for _ in widths)
        self.resize = Resize("nearest", spatial_dims)
        self.films: nn.ModuleList | None = None
        if condition_channels is not None:
            self.films = nn.ModuleList(FiLM(condition_channels, out) for _ in widths)

    @overload
    def forward(
        self, features: Sequence[Tensor], condition: Tensor | None = None
    ) -> list[Tensor]: ...
    @overload
    def forward(
        self, features: Mapping[str, Tensor], condition: Tensor | None = None
    ) -> dict[str, Tensor]: ...
    def forward(
        self, features: Features, condition: Tensor | None = None
    ) -> list[Tensor] | dict[str, Tensor]:
        names = list(features) if isinstance(features, Mapping) else None
        features = as_list(features)
        check_features(features, self.widths, self.spatial_dims)
        check_descending(features, "features")
        features = entries(features, len(self.widths))
        condition = given_condition(features[-1], condition, self.condition_channels)
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + self.resize(maps[finer + 1], spatial(maps[finer]))
        results = [output(x) for output, x in zip(self.outputs, maps, strict=True)]
        if self.films is not None:
            results = [film(y, condition) for film, y in zip(self.films, results, strict=True)]
        return results if names is None else OrderedDict(zip(names, results, strict=True))
