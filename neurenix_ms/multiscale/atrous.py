"""Pooling by parallel convolutions of several dilations (ASPP)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dilation import is_mostly_padding, tap_by_tap
from neurenix_ms._core.dims import (
    BATCH_NORMS,
    CONVOLUTIONS,
    CONVOLVE,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.sizes import Size, spatial
from neurenix_ms._core.tracing import one_module, placeholder_in, sizes_are_open
from neurenix_ms.backbones import Backbone
from neurenix_ms.checkpointing import recomputed, recomputes
from neurenix_ms.layers.blocks import ChannelDropout, modulated
from neurenix_ms.layers.conditioning import FiLM, film_of, given_condition, keyword
from neurenix_ms.layers.naming import Act, Norm, check_normalizable, make_act, make_norm

MOST_BRANCHES = 64


class DilatedConvolution(nn.Module):
    """A 3x3 convolution with dilation that keeps the size, full or depthwise separable.

    Where the dilation reaches across a whole axis, all taps but the middle ones read padding. They
    are left out then, so a feature map that is small for its dilation costs less, not more.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilation: Size,
        *,
        separable: bool,
        bias: bool,
        spatial_dims: SpatialDims,
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[spatial_dims]
        self.dilation = dilation
        self.convolve = CONVOLVE[spatial_dims]
        wide: dict[str, Any] = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.point: nn.Module | None = None
        if separable:
            self.conv = conv(in_channels, in_channels, groups=in_channels, bias=False, **wide)
            self.point = conv(in_channels, out_channels, 1, bias=bias)
        else:
            self.conv = conv(in_channels, out_channels, bias=bias, **wide)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) if self._has_to_be_called(x) else self._convolved(x)
        return y if self.point is None else self.point(y)

    def _has_to_be_called(self, x: Tensor) -> bool:
        traced = sizes_are_open() or placeholder_in((x,)) is not None
        # what runs in tiles does the same at every size
        return traced or is_observed(self.conv) or torch._C._is_torch_function_mode_enabled()

    def _convolved(self, x: Tensor) -> Tensor:
        reach = [d if d < n else 0 for d, n in zip(self.dilation, spatial(x), strict=True)]
        weight = self.conv.weight
        for axis, d in enumerate(reach, start=2):
            if d == 0:
                weight = weight.narrow(axis, 1, 1)
        if self.point is not None:
            if any(reach):
                y: Tensor = self.conv(x)
                return y
            # torch would convolve a depthwise kernel of one pixel channel by channel
            return x * weight.view(1, -1, *(1,) * len(reach))
        bias, dilation = self.conv.bias, tuple(max(1, d) for d in reach)
        if is_mostly_padding(x, weight, dilation):
            y = tap_by_tap(x, weight, dilation)
            return y if bias is None else y + bias.view(-1, *(1,) * len(reach))
        y = self.convolve(x, weight, bias, 1, tuple(reach), dilation, self.conv.groups)
        return y


class Branch(nn.Module):
    """A convolution, a norm, a `FiLM` of the condition if there is one, and an activation.

    Shape:
        `(B, C_in, *S)`, and the condition `(B, K)` of a conditioned branch -> `(B, C_out, *S)`
    """

    def __init__(
        self, conv: nn.Module, norm: nn.Module, act: Act, film: FiLM | None = None
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.act = make_act(act)
        self.film = film

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = recomputed(self.norm, self.conv(x))
        return recomputed(self.act, modulated(self.film, y, condition))


class ImageBranch(Branch):
    """The mean over the whole feature map, a 1x1 convolution, a norm and an activation.

    Batch norm has no variance to take from one value per channel: for a batch of one in training it
    normalizes with its running statistics, and leaves them.

    Shape:
        `(B, C_in, *S)`, and the condition `(B, K)` of a conditioned branch ->
        `(B, C_out, *(1,) * axes)`
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        conv: Any = self.conv
        norm: Any = self.norm
        y = conv(x.mean(tuple(range(2, 2 + len(conv.kernel_size))), keepdim=True))
        single = self.training and placeholder_in((y,)) is None and y.shape[0] == 1
        if single and type(norm) in BATCH_NORMS.values():
            y = F.batch_norm(
                y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        else:
            y = norm(y)
        z: Tensor = self.act(modulated(self.film, y, condition))
        return z


class JoinedProjection(nn.Module):
    """Concatenate feature maps and convolve them, one after the other.

    Every feature map meets its slice of the weight as soon as it is given, and `added` sums the results,
    where one of a single pixel counts for all pixels, so no concatenated or enlarged tensor is made.

    Shape:
        feature maps `(B, C_i, *S)` or `(B, C_i, *(1,) * axes)`, one call each -> `(B, C, *S)`
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_channels: int,
        *,
        bias: bool,
        spatial_dims: SpatialDims,
        kernel_size: int = 1,
    ) -> None:
        super().__init__()
        self.widths = list(widths)
        self.padding = kernel_size // 2
        conv = CONVOLUTIONS[spatial_dims](sum(widths), out_channels, kernel_size, bias=bias)
        self.weight, self.bias = conv.weight, conv.bias
        self.convolve = CONVOLVE[spatial_dims]

    @one_module
    def forward(self, x: Tensor, index: int) -> Tensor:
        start = sum(self.widths[:index])
        weight = self.weight.narrow(1, start, self.widths[index])
        bias = None if index else self.bias  # added once to the sum
        y: Tensor = self.convolve(x, weight, bias, padding=self.padding)
        return y

    @staticmethod
    def added(total: Tensor | None, part: Tensor) -> Tensor:
        """Return the sum of the results so far, which it overwrites, and the next one.

        It is no step of `forward`, because `fully_shard` wraps the inputs of a module into views.
        """
        return part if total is None else total.add_(part)


class AtrousPyramidPooling(Configured, nn.Module):
    """Convolve a feature map with several dilations in parallel, and mix the results.

    Use it on the coarsest feature map of a network for context at several widths without loss of
    resolution. `PyramidPooling` costs less, and is enough if only global context is needed. Without
    `image_pooling` this module can run in tiles.

    Args:
        in_channels: Channels of the feature map, or a `Backbone` whose coarsest one it is.
        out_channels: Channels of every branch and of the result.
        dilations: Dilations of the 3x3 branches, each a number or one per axis.
        spatial_dims: Number of spatial axes.
        separable: Use depthwise separable convolutions in the branches with dilation.
        image_pooling: Add a branch of the mean over the whole feature map.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`; the image branch has
            none with "instance".
        act: Activation of branches and projection.
        dropout: Probability of dropping a channel after the projection.
        condition_channels: Length of a vector on which all branches and the projection are conditioned,
            as in `UNet`.

    Shape:
        `(B, in_channels, *S)`, and a `condition` `(B, condition_channels)` if the module has one ->
        `(B, out_channels, *S)`

    Raises:
        ValueError: If a count or dilation is below 1, the feature map has other channels or axes, or the
            condition does not fit.

    Source: Chen et al. 2017, "Rethinking Atrous Convolution", section 3.3; `separable` Chen et al. 2018,
    "Encoder-Decoder with Atrous Separable Convolution", section 3.1. Deviation: for a batch of one in
    training the batch norm of the image branch takes its running statistics.

    Examples:
        >>> import torch
        >>> from neurenix_ms import AtrousPyramidPooling
        >>> pool = AtrousPyramidPooling(64, 32, dilations=[2, 4, (6, 3)])
        >>> pool(torch.zeros(1, 64, 13, 9)).shape
        torch.Size([1, 32, 13, 9])
    """

    @checked
    def __init__(
        self,
        in_channels: int | Backbone,
        out_channels: int,
        dilations: Sequence[int | Sequence[int]] = (12, 24, 36),
        *,
        spatial_dims: SpatialDims = 2,
        separable: bool = False,
        image_pooling: bool = True,
        norm: Norm = "batch",
        act: Act = "relu",
        dropout: float = 0.0,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_channels, Backbone):
            in_channels = in_channels.channels[-1]
        check_positive(in_channels=in_channels, out_channels=out_channels)
        choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        check_integer("the number of dilations", len(dilations), 1, MOST_BRANCHES)
        self.in_channels = in_channels
        self.dilations = [d if isinstance(d, int) else list(d) for d in dilations]
        conv, bias = CONVOLUTIONS[spatial_dims], norm is None

        def branch(layer: nn.Module) -> Branch:
            return Branch(layer, make_norm(norm, out_channels, spatial_dims), act, film())

        def film() -> FiLM | None:
            return film_of(condition_channels, out_channels)

        self.branches = nn.ModuleList([branch(conv(in_channels, out_channels, 1, bias=bias))])
        for dilation in per_axis(self.dilations, spatial_dims):
            layer = DilatedConvolution(
                in_channels,
                out_channels,
                dilation,
                separable=separable,
                bias=bias,
                spatial_dims=spatial_dims,
            )
            self.branches.append(branch(layer))
        if image_pooling:
            of_image = None if norm == "instance" else norm
            self.branches.append(
                ImageBranch(
                    conv(in_channels, out_channels, 1, bias=of_image is None),
                    make_norm(of_image, out_channels, spatial_dims),
                    act,
                    film(),
                )
            )
        self.project = JoinedProjection(
            [out_channels] * len(self.branches), out_channels, bias=bias, spatial_dims=spatial_dims
        )
        self.project_norm = make_norm(norm, out_channels, spatial_dims)
        self.project_film = film()
        self.project_act = make_act(act)
        self.drop = ChannelDropout(dropout)

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        check_normalizable(self.norm, self.training, x)
        condition = given_condition(x, condition, self.condition_channels)
        given = keyword("condition", condition)
        y: Any = None
        for index, branch in enumerate(self.branches):
            y = self.project.added(y, self.project(branch(x, **given), index))
        y = modulated(self.project_film, recomputed(self.project_norm, y), condition)
        return self.drop(recomputed(self.project_act, y))


def per_axis(dilations: Sequence[int | Sequence[int]], spatial_dims: int) -> list[Size]:
    """Return every dilation as one number per axis, or raise if one is below 1 or of other length."""
    found = []
    for index, entry in enumerate(dilations):
        axes = (entry,) * spatial_dims if isinstance(entry, int) else tuple(entry)
        if len(axes) != spatial_dims or min(axes) < 1:
            raise ValueError(
                f"dilations[{index}] must be a number of at least 1, or {spatial_dims} of them, "
                f"got {entry}"
            )
        found.append(axes)
    return found
