"""Feature pyramids with a top-down and a bottom-up path: BiFPN and PANet."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import CONVOLUTIONS, POOLS, SpatialDims, choose
from neurenix_ms._core.hooks import is_observed
from neurenix_ms._core.orders import check_halving
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms._core.tracing import entries, one_module
from neurenix_ms.backbones import Backbone
from neurenix_ms.checkpointing import recomputed, recomputes
from neurenix_ms.layers.blocks import ConvNormAct, modulated
from neurenix_ms.layers.conditioning import film_of, given_condition, keyword
from neurenix_ms.layers.naming import Act, Norm, check_normalizable, make_act, make_norm
from neurenix_ms.layers.resize import enlarged
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    as_list,
    check_features,
    check_widths,
)

Paths = Literal["bifpn", "panet"]
Weighting = Literal["fast", "softmax"] | None
Downsample = Literal["max", "conv"]
Projection = Literal["level", "edge"]
MOST_REPEATS = 64
EPSILON = 1e-4  # of the fast weights (Tan et al. 2020, section 3.3)


class WeightedSum(nn.Module):
    """Add feature maps of one level with normalized weights; the last may be of the next coarser one.

    A coarser feature map is weighted before it is enlarged. No product or stack of full size is made.

    Shape:
        feature maps `(B, C, *S)`, or `(B, C, *S)` and `(B, C, *S / 2)` -> `(B, C, *S)`
    """

    def __init__(self, num_inputs: int, weighting: Weighting, enlarges: bool = False) -> None:
        super().__init__()
        self.weighting = weighting
        self.enlarges = enlarges and num_inputs > 1
        self.weights: nn.Parameter | None = None
        if weighting is not None and num_inputs > 1:
            self.weights = nn.Parameter(torch.ones(num_inputs))

    @one_module
    def forward(self, *maps: Tensor) -> Tensor:
        first, *others = maps
        if self.weights is None:
            if self.enlarges:
                return enlarged(others[0], spatial(first)).add_(first)
            total = first + others[0] if others else first
            for x in others[1:]:
                total = total.add_(x)
            return total
        weight, *weights = self.normalized(self.weights.to(first.dtype)).unbind()
        if self.enlarges:
            return enlarged(others[0] * weights[0], spatial(first)).addcmul_(first, weight)
        total = first * weight
        for x, weight in zip(others, weights, strict=True):
            total = total.addcmul_(x, weight)
        return total

    def normalized(self, weights: Tensor) -> Tensor:
        """Return weights whose sum is 1, or slightly below with "fast"."""
        if self.weighting == "softmax":
            return weights.softmax(0)
        weights = weights.relu()
        return weights / (weights.sum() + EPSILON)


class Node(nn.Module):
    """Fuse feature maps into one of the same level: weighted sum, activation, convolution, norm.

    With `condition_channels`, a `FiLM` of the condition comes last.

    Shape:
        as `WeightedSum`, and the condition `(B, K)` of a conditioned node
    """

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        *,
        enlarges: bool,
        spatial_dims: SpatialDims,
        weighting: Weighting,
        separable: bool,
        norm: Norm,
        act: Act,
        conv_bias: bool | None,
        condition_channels: int | None,
    ) -> None:
        super().__init__()
        conv = partial(CONVOLUTIONS[spatial_dims], channels, channels)
        bias = norm is None if conv_bias is None else conv_bias
        self.sum = WeightedSum(num_inputs, weighting, enlarges)
        self.act = make_act(act)
        self.depthwise = conv(3, padding=1, groups=channels, bias=False) if separable else None
        self.conv = conv(1, bias=bias) if separable else conv(3, padding=1, bias=bias)
        self.norm = make_norm(norm, channels, spatial_dims)
        self.film = film_of(condition_channels, channels)

    def steps(self, condition: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
        """Return what follows the sum, step by step, so that the caller can release each input."""
        yield partial(recomputed, self.act)
        if self.depthwise is not None:
            yield self.depthwise
        yield self.conv
        yield partial(recomputed, self.norm)
        if condition is not None:
            yield partial(modulated, self.film, condition=condition)

    def forward(self, *maps: Tensor, condition: Tensor | None = None) -> Tensor:
        y: Tensor = self.sum(*maps)
        for step in self.steps(condition):
            y = step(y)
        return y


class BidirectionalLayer(nn.Module):
    """One top-down and one bottom-up path over all levels.

    Args:
        enter: Projections of the input of every level, finest first.
        again: Those of the edges to the bottom-up path, where they have weights of their own.
        inner: Nodes of the top-down path by level.
        outer: Nodes of the bottom-up path by level.
        downs: Steps from every level to the next coarser one.
        shortcuts: Lead the input of a level to its node of the bottom-up path too.

    Shape:
        list of `(B, C_i, *S_i)`, finest first, and the condition `(B, K)` of conditioned nodes -> list
        of `(B, C, *S_i)`
    """

    def __init__(
        self,
        enter: Sequence[nn.Module],
        again: Sequence[nn.Module] | None,
        inner: Mapping[int, Node],
        outer: Mapping[int, Node],
        downs: Sequence[nn.Module],
        shortcuts: bool,
    ) -> None:
        super().__init__()
        self.num_levels = len(enter)
        self.shortcuts = shortcuts
        self.enter = nn.ModuleList(enter)
        self.again = None if again is None else nn.ModuleList(again)
        self.inner = nn.ModuleDict({str(level): node for level, node in inner.items()})
        self.outer = nn.ModuleDict({str(level): node for level, node in outer.items()})
        self.downs = nn.ModuleList(downs)

    def forward(self, maps: list[Tensor], condition: Tensor | None = None) -> list[Tensor]:
        inputs = self.top_down(list(entries(maps, self.num_levels)), condition)
        results: list[Tensor] = []
        for level, given in enumerate(inputs):
            if results:
                finer = self.downs[level - 1](results[-1])
                given.append(fit(finer, spatial(given[0])))
            if str(level) in self.outer:
                results.append(fused(self.outer[str(level)], given, condition))
            else:
                results.append(given[0])
        return results

    def top_down(self, maps: list[Tensor], condition: Tensor | None) -> list[list[Tensor]]:
        """Return what the node of every level gets from its input and from the top-down path."""
        inputs: list[list[Tensor]] = []
        above: list[Tensor] = []
        for level in reversed(range(self.num_levels)):
            own = [self.enter[level](maps[level])]
            kept = []
            if self.shortcuts and level > 0:
                kept = own[:] if self.again is None else [self.again[level](maps[level])]
            maps.pop()
            if str(level) in self.inner:
                own = [fused(self.inner[str(level)], own + above, condition)]
                kept += own
            above = own
            inputs.insert(0, kept)
        return inputs


def fused(node: Any, maps: list[Tensor], condition: Tensor | None) -> Tensor:
    """Call a node, which empties the list of its inputs as soon as they are added."""
    if is_observed(node) or torch.compiler.is_compiling():
        return node(*maps, **keyword("condition", condition))
    y: Tensor = node.sum(*maps)
    maps.clear()
    for step in node.steps(condition):
        y = step(y)
    return y


class BidirectionalFusion(Configured, nn.Module):
    """Exchange features between all levels of a pyramid, top-down and then bottom-up.

    Use it after a backbone, in place of `PyramidFusion`, if coarse levels also need the detail of fine
    ones, as for small and large objects in one image. `repeats` sets the number of exchanges. Inputs are
    multiplied by trainable weights and added in place, without stacking them.

    Args:
        in_channels: Channels of every feature map, finest first, or a `Backbone` that makes them.
        out_channels: Channels of every result.
        repeats: Number of layers, each with both paths.
        extra_levels: Number of levels to add below the coarsest one, each half its size (p6 and p7 of
            detectors).
        paths: "bifpn" connects the input of a level to both of its nodes and omits nodes with a single
            input; "panet" has one node per level and path, and its bottom-up nodes take the results of
            the top-down path.
        weighting: "fast" divides positive weights by their sum, "softmax" applies a softmax, None adds
            without weights.
        separable: Use depthwise separable 3x3 convolutions; False uses full ones.
        downsample: How a level is reduced to the next coarser one: "max" pools windows of 3 by 2, "conv"
            has a 3x3 convolution of stride 2.
        projection: Where the channels of an input differ, "level" has one 1x1 convolution per level,
            "edge" one for each of the two nodes that read it, as the published weights of EfficientDet.
        spatial_dims: Number of spatial axes.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`, after every
            convolution.
        act: Activation before the convolution of a node.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        condition_channels: Length of the vector on which every node is conditioned, as in `UNet`.

    Shape:
        list of `(B, in_channels[i], *S_i)`, each about half the size of the one before, and a
        `condition` `(B, condition_channels)` if the neck has one -> list of
        `(B, out_channels, *S_i)`, then `extra_levels` of them with `ceil(S / 2)` of the one before; a
        dict of feature maps gives an ordered dict with the same names, then "extra0", "extra1", ...

    Raises:
        ValueError: If an argument is out of range or unknown, there are fewer than two levels, the list
            is of another length, a feature map has other channels, another rank or batch size, or not
            about half the size of the one before, or the condition does not fit.

    Source: Tan et al. 2020, "EfficientDet", figure 3 and section 3.3; "panet" without weights, with
    `separable=False` and `downsample="conv"`: Liu et al. 2018, "Path Aggregation Network", section 3.1.
    Deviation: entry i of a finer feature map takes entry `i // 2` of the coarser one at every size;
    where sizes are rounded down, the last entry is taken twice.

    Examples:
        >>> import torch
        >>> from neurenix_ms import BidirectionalFusion
        >>> neck = BidirectionalFusion([8, 16], 4, repeats=2, extra_levels=1)
        >>> [tuple(y.shape) for y in neck([torch.zeros(2, 8, 13, 9), torch.zeros(2, 16, 6, 4)])]
        [(2, 4, 13, 9), (2, 4, 6, 4), (2, 4, 3, 2)]
    """

    @checked
    def __init__(
        self,
        in_channels: Channels,
        out_channels: int,
        *,
        repeats: int = 1,
        extra_levels: int = 0,
        paths: Paths = "bifpn",
        weighting: Weighting = "fast",
        separable: bool = True,
        downsample: Downsample = "max",
        projection: Projection = "level",
        spatial_dims: SpatialDims = 2,
        norm: Norm = "batch",
        act: Act = "silu",
        conv_bias: bool | None = None,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_channels, Backbone):
            in_channels.check_doubling()
        self.in_channels = check_widths(in_channels, out_channels)
        self.out_channels = out_channels
        self.repeats = check_integer("repeats", repeats, 1, MOST_REPEATS)
        self.extra_levels = check_integer("extra_levels", extra_levels, 0, 62)
        self.num_levels = len(self.in_channels) + extra_levels
        if self.num_levels < 2:
            raise ValueError(
                f"there must be at least two levels, got in_channels {self.in_channels} and "
                f"extra_levels {extra_levels}"
            )
        self.paths = paths
        self.weighting = weighting
        self.separable = separable
        self.downsample = downsample
        self.projection = projection
        self.spatial_dims = spatial_dims
        self.norm = norm
        self.act = act
        self.conv_bias = conv_bias
        self.condition_channels = condition_channels
        choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        self.extra_projection = self._projection(self.in_channels[-1]) if extra_levels else None
        self.extra = nn.ModuleList(self._down() for _ in range(extra_levels))
        first = self._layer([*self.in_channels, *[out_channels] * extra_levels])
        others = [self._layer([out_channels] * self.num_levels) for _ in range(repeats - 1)]
        self.layers = nn.ModuleList([first, *others])

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
        check_features(features, self.in_channels, self.spatial_dims)
        check_halving(features, "features")
        maps = list(entries(features, len(self.in_channels)))
        condition = given_condition(maps[-1], condition, self.condition_channels)
        maps = self._exchanged(maps, condition)
        if names is None:
            return maps
        names += [f"extra{k}" for k in range(self.extra_levels)]
        return OrderedDict(zip(names, maps, strict=True))

    @recomputes
    def _exchanged(self, maps: list[Tensor], condition: Tensor | None) -> list[Tensor]:
        if self.extra_projection is not None:
            y = self.extra_projection(maps[-1])
            for down in self.extra:
                y = down(y)
                maps.append(y)
        check_normalizable(self.norm, self.training, maps[-1])
        for layer in self.layers:
            maps = layer(maps, **keyword("condition", condition))
        return maps

    def _layer(self, widths: Sequence[int]) -> BidirectionalLayer:
        out, last = self.out_channels, self.num_levels - 1
        bifpn = self.paths == "bifpn"
        node = partial(
            Node,
            channels=out,
            spatial_dims=self.spatial_dims,
            weighting=self.weighting,
            separable=self.separable,
            norm=self.norm,
            act=self.act,
            conv_bias=self.conv_bias,
            condition_channels=self.condition_channels,
        )
        inner = {k: node(1 + (k < last), enlarges=True) for k in range(last if bifpn else last + 1)}
        outer = {
            k: node((k in inner) + (k > 0) + bifpn, enlarges=False)
            for k in range(1 if bifpn else 0, last + 1)
        }
        again = None
        if bifpn and self.projection == "edge" and list(widths) != [out] * len(widths):
            again = [nn.Identity(), *map(self._projection, widths[1:])]
        return BidirectionalLayer(
            [self._projection(n) for n in widths],
            again,
            inner,
            outer,
            [self._down() for _ in range(last)],
            shortcuts=bifpn,
        )

    def _projection(self, channels: int) -> nn.Module:
        if channels == self.out_channels:
            return nn.Identity()
        return ConvNormAct(
            channels,
            self.out_channels,
            spatial_dims=self.spatial_dims,
            kernel_size=1,
            norm=self.norm,
            act=None,
            conv_bias=self.conv_bias,
        )

    def _down(self) -> nn.Module:
        if self.downsample == "max":
            pool: nn.Module = POOLS["max"][self.spatial_dims](3, 2, 1)
            return pool
        conv = CONVOLUTIONS[self.spatial_dims]
        return conv(self.out_channels, self.out_channels, 3, stride=2, padding=1)
