"""Models over several resolutions: one network at every scale, and the pyramid network."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms.blocks import (
    Act,
    BlockKind,
    ConvBlock,
    Level,
    Norm,
    Trace,
    expect_normalisable,
)
from neurenix_ms.checkpointing import checkpointed, recomputes
from neurenix_ms.config import Configured
from neurenix_ms.multiscale.fusion import METHODS, REDUCTIONS, FusionMethod, add, start_at_zero
from neurenix_ms.multiscale.transforms import MultiScaleTransform
from neurenix_ms.nd import (
    CONVOLUTIONS,
    SpatialDims,
    choose,
    expect_channels,
    expect_map,
    expect_positive,
)
from neurenix_ms.remember import Remembers
from neurenix_ms.resize import Resize
from neurenix_ms.sizes import (
    Target,
    expect_halvings,
    expect_scale,
    expect_scales,
    expect_target,
    fit,
    spatial,
    target_size,
)


class MultiScaleModel(Configured, nn.Module):
    """Apply one network to the input at several scales and fuse what it says.

    Use it to make any network look at several resolutions: a shared one costs no parameters per
    scale, and scales can be added and removed after training.

    Args:
        scales: Factors relative to the input.
        base_model: Network applied at every scale; None passes the scaled inputs on.
        fusion_method: "concat", "sum", "mean" (also "avg"), "max" or "attention".
        spatial_dims: Number of spatial axes.
        channels: Output channels of `base_model`; with "attention" the score head is then built at
            once, otherwise at the first forward (call it once before making an optimizer).
        share_weights: One network for all scales; False copies it for each.
        mode: Interpolation of inputs and outputs.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass before shrinking the inputs (2-D, "bilinear" or "bicubic").
        target: Size of the result: "largest" (that of the largest scale), "smallest", an index into
            `scales`, or a size.

    Shape:
        `(B, C, *S)` -> `(B, K * C_out, *T)` with "concat", else `(B, C_out, *T)`, where K is the
        number of scales and T the size of the network's output at the target scale; networks that
        give `(B, C_out)` are fused without resizing

    Raises:
        ValueError: If a scale is not finite and positive, is added twice or removed while it is the
            last one, a name is unknown, or the network's outputs do not fit each other.

    Source: Chen et al. 2016, "Attention to Scale", section 3, for the shared network and "attention".

    Examples:
        >>> model = MultiScaleModel([1.0, 0.5], nn.Conv2d(3, 8, 3, padding=1), "attention", channels=8)
        >>> model(torch.zeros(1, 3, 13, 9)).shape
        torch.Size([1, 8, 13, 9])
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.5, 0.25),
        base_model: nn.Module | None = None,
        fusion_method: FusionMethod = "concat",
        *,
        spatial_dims: SpatialDims = 2,
        channels: int | None = None,
        share_weights: bool = True,
        mode: str = "bilinear",
        align_corners: bool = False,
        antialias: bool = False,
        target: Target = "largest",
    ) -> None:
        super().__init__()
        if fusion_method not in METHODS:
            raise ValueError(f"fusion_method must be one of {list(METHODS)}, got {fusion_method!r}")
        self._scales = expect_scales(scales)
        self.fusion_method = fusion_method
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.share_weights = share_weights
        self.mode = mode
        self.align_corners = align_corners
        self.antialias = antialias
        self.target = expect_target(target, spatial_dims)
        self.shrink = MultiScaleTransform(
            [1.0],
            mode,
            spatial_dims=spatial_dims,
            align_corners=align_corners,
            antialias=antialias,
        )
        self.align = Resize(mode, spatial_dims, align_corners)
        network = nn.Identity() if base_model is None else base_model
        count = 1 if share_weights else len(self._scales)
        self.networks = nn.ModuleList(
            network if i == 0 else copy.deepcopy(network) for i in range(count)
        )
        self.scores: nn.Sequential | None = None
        if fusion_method == "attention" and channels is not None:
            self.scores = self._score_head(channels)

    @property
    def scales(self) -> list[float]:
        """The scales, in the order of fusion (a copy; see `add_scale` and `remove_scale`)."""
        return list(self._scales)

    @property
    def base_model(self) -> nn.Module | None:
        """The network of the first scale, or None where the scaled inputs are passed on."""
        network = self.networks[0]
        return None if type(network) is nn.Identity else network

    def add_scale(self, scale: float) -> None:
        """Look at one more scale from the next forward on; it comes last in the order of fusion.

        With networks of their own per scale, the new one starts as a copy of the first.
        """
        expect_scale(scale)
        if any(math.isclose(scale, known) for known in self._scales):
            raise ValueError(f"scales must differ, got {scale} which is one of {self._scales}")
        self._scales.append(float(scale))
        if not self.share_weights:
            self.networks.append(copy.deepcopy(self.networks[0]))

    def remove_scale(self, scale: float) -> None:
        """Stop looking at a scale from the next forward on."""
        index = next((i for i, s in enumerate(self._scales) if math.isclose(s, scale)), None)
        if index is None:
            raise ValueError(f"scale to remove must be one of {self._scales}, got {scale}")
        if len(self._scales) == 1:
            raise ValueError(f"the last scale cannot be removed, got {scale}")
        del self._scales[index]
        if not self.share_weights:
            del self.networks[index]

    def forward(self, x: Tensor) -> Tensor:
        maps = self._aligned(x)
        if self.fusion_method == "concat":
            return torch.cat(maps, dim=1)
        if self.fusion_method == "attention":
            weights = self._weights(maps).unbind(dim=1)
            return add([w.unsqueeze(1) * y for w, y in zip(weights, maps, strict=True)])
        return REDUCTIONS[self.fusion_method](maps)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Weight of every scale at every pixel, `(B, K, *T)`; they sum to 1 over K."""
        if self.fusion_method != "attention":
            raise ValueError(
                f"attention_weights needs fusion_method 'attention', got {self.fusion_method!r}"
            )
        return self._weights(self._aligned(x))

    def _aligned(self, x: Tensor) -> list[Tensor]:
        expect_map(x, self.spatial_dims)
        outputs = [
            self._run(network, self.shrink.at_scale(x, scale))
            for network, scale in zip(self._network_per_scale(), self._scales, strict=True)
        ]
        expect_alike(outputs, self.fusion_method == "concat")
        if outputs[0].ndim == 2:
            return outputs
        target = self.target
        if target == "largest":
            target = self._scales.index(max(self._scales))
        elif target == "smallest":
            target = self._scales.index(min(self._scales))
        size = target_size([spatial(y) for y in outputs], target)
        return [self.align(y, size) for y in outputs]

    def _network_per_scale(self) -> list[nn.Module]:
        networks = list(self.networks)
        return networks * len(self._scales) if self.share_weights else networks

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        ours = any(isinstance(module, Configured) for module in network.modules())
        return network(x) if ours else checkpointed(network, x, foreign=True)

    def _weights(self, maps: Sequence[Tensor]) -> Tensor:
        if self.scores is None:
            self.channels = maps[0].shape[1]
            self.scores = self._score_head(self.channels).to(maps[0])
        pixels = maps
        if maps[0].ndim == 2:  # a vector is a map of one pixel
            one = (1,) * self.spatial_dims
            pixels = [y.reshape(*y.shape, *one) for y in maps]
        scores = torch.cat([self.scores(y) for y in pixels], dim=1)
        return torch.softmax(scores.flatten(1) if maps[0].ndim == 2 else scores, dim=1)

    def _score_head(self, channels: int) -> nn.Sequential:
        conv = choose(CONVOLUTIONS, self.spatial_dims, "spatial_dims")
        hidden = max(channels // 4, 8)
        head = nn.Sequential(conv(channels, hidden, 3, padding=1), nn.ReLU(), conv(hidden, 1, 1))
        start_at_zero(head)
        return head

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        first = state_dict.get(f"{prefix}scores.0.weight")
        if first is not None and self.scores is None and self.fusion_method == "attention":
            self.channels = first.shape[1]
            self.scores = self._score_head(first.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def expect_alike(outputs: Sequence[Tensor], any_channels: bool) -> None:
    """Refuse outputs of a base model that cannot be fused."""
    first = outputs[0]
    for index, y in enumerate(outputs):
        if y.ndim != first.ndim:
            raise ValueError(
                f"the base model must give outputs of one rank, got shape {tuple(first.shape)} at "
                f"scale 0 and {tuple(y.shape)} at scale {index}"
            )
        if not any_channels and y.shape[1] != first.shape[1]:
            raise ValueError(
                f"the base model must give equal channels at every scale, got {first.shape[1]} at "
                f"scale 0 and {y.shape[1]} at scale {index}"
            )


class PyramidNetwork(Configured, Remembers, nn.Module):
    """Encode a map to ever coarser features, and merge them back down to a fine one.

    A light network for outputs per pixel, and a source of features at several resolutions: call it,
    then `get_features()`, or `forward_features(x)` at once.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_levels: Number of resolutions.
        base_channels: Width of the finest level; every level doubles it.
        spatial_dims: Number of spatial axes.
        pyramid_channels: Width of the way down; by default max(out_channels, base_channels).
        return_pyramid: Give the maps of all levels, finest first, instead of the finest.
        block: "double", "single" or "residual" convolution block.
        kernel_size: Odd edge of the kernels of the blocks in pixels.
        norm: As in UNet.
        act: As in UNet.
        conv_bias: Bias of the blocks' convolutions; None is only where no norm follows.
        padding_mode: As in `nn.Conv2d`.
        remember: Keep the features of the last forward for `get_features`; False saves memory.

    Shape:
        `(B, in_channels, *S)` -> `(B, out_channels, *S)`, or the list of
        `(B, out_channels, *floor(S / 2**i))`; every S at least `2**(num_levels - 1)`

    Raises:
        ValueError: If an argument is out of range or unknown, a map is too small, or has other
            channels or axes.
        RuntimeError: If `get_features` is called before any forward.

    Source: Lin et al. 2017, "Feature Pyramid Networks", figure 3. Deviation: entry i of a finer map
    takes entry i // 2 of the coarser one, without the drift of nearest interpolation on odd sizes.

    Examples:
        >>> model = PyramidNetwork(3, 2, num_levels=3, base_channels=8)
        >>> model(torch.zeros(1, 3, 13, 9)).shape
        torch.Size([1, 2, 13, 9])
        >>> [tuple(y.shape[1:]) for y in model.get_features()]
        [(8, 13, 9), (16, 6, 4), (32, 3, 2)]
    """

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
        block: BlockKind = "double",
        kernel_size: int = 3,
        norm: Norm = "batch",
        act: Act = "relu",
        conv_bias: bool | None = None,
        padding_mode: str = "zeros",
        remember: bool = True,
    ) -> None:
        super().__init__()
        expect_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            num_levels=num_levels,
            base_channels=base_channels,
        )
        width = max(out_channels, base_channels) if pyramid_channels is None else pyramid_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_levels = num_levels
        self.base_channels = base_channels
        self.spatial_dims = spatial_dims
        self.pyramid_channels = width
        self.return_pyramid = return_pyramid
        self.block = block
        self.kernel_size = kernel_size
        self.norm = norm
        self.act = act
        self.conv_bias = conv_bias
        self.padding_mode = padding_mode
        self.remember = remember
        self.feature_channels = [base_channels * 2**i for i in range(num_levels)]

        conv = choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        convs = partial(
            ConvBlock,
            block=block,
            spatial_dims=spatial_dims,
            conv_bias=conv_bias,
            kernel_size=kernel_size,
            norm=norm,
            act=act,
            padding_mode=padding_mode,
        )
        level: Level | None = None
        for depth in reversed(range(num_levels)):
            above = self.feature_channels[depth - 1] if depth else in_channels
            here = self.feature_channels[depth]
            merge = Merge(conv(here, width, 1))
            level = Level(convs(above, here), level, merge, spatial_dims=spatial_dims)
        assert level is not None
        self.level = level
        num_outputs = num_levels if return_pyramid else 1
        self.outputs = nn.ModuleList(
            conv(width, out_channels, 3, padding=1) for _ in range(num_outputs)
        )

    @recomputes
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.clear_features()
        self._expect(x)
        trace = Trace() if self.remember or self.return_pyramid else None
        finest = self.level(x, trace)
        if trace is not None and self.remember:
            self._remember(features=trace.encoded)
        if trace is None or not self.return_pyramid:
            return self.outputs[0](finest)
        return [out(y) for out, y in zip(self.outputs, reversed(trace.decoded), strict=True)]

    @recomputes
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The encoded maps of `x`, fine to coarse, without remembering them."""
        self._expect(x)
        features: list[Tensor] = []
        level: Level | None = self.level
        while level is not None:
            features.append(checkpointed(level.encode, x))
            x = features[-1] if level.pool is None else level.pool(features[-1])
            level = level.inner
        return features

    def get_features(self) -> list[Tensor]:
        """The encoded maps of the last forward, fine to coarse."""
        return list(self._recall("features"))

    def _expect(self, x: Tensor) -> None:
        expect_map(x, self.spatial_dims)
        expect_channels(x, self.in_channels)
        expect_halvings(spatial(x), self.num_levels - 1)
        if not torch.compiler.is_compiling():
            smallest = tuple(n >> (self.num_levels - 1) for n in spatial(x))
            expect_normalisable(self.norm, self.training, x.shape[0], smallest)


class Merge(nn.Module):
    """The way down one step: the features through a 1x1 convolution, plus the coarser map doubled."""

    def __init__(self, lateral: nn.Module) -> None:
        super().__init__()
        self.lateral = lateral

    def forward(self, features: Tensor, coarse: Tensor | None = None) -> Tensor:
        y = self.lateral(features)
        return y if coarse is None else y + repeated(coarse, spatial(y))


def repeated(coarse: Tensor, size: tuple[int, ...]) -> Tensor:
    """Every entry twice along every axis; a last odd entry takes the last coarse one once more."""
    doubled = Resize("nearest", coarse.ndim - 2)(coarse, tuple(2 * n for n in spatial(coarse)))
    return fit(doubled, size, mode="replicate")
