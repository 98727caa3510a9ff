"""Nested U-Nets (UNet++) in one to three dimensions, for inputs of any size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_positive
from neurenix_ms._core.tracing import entries
from neurenix_ms.checkpointing import recomputes
from neurenix_ms.layers.blocks import ConvSpec, Edge
from neurenix_ms.layers.conditioning import given_condition
from neurenix_ms.layers.naming import Act, Norm
from neurenix_ms.multiscale.decoder import FinalActivation
from neurenix_ms.multiscale.dense_skips import Branches, DenseSkips, Encoder
from neurenix_ms.multiscale.features import (
    Channels,
    Features,
    check_encoded,
    check_encoder,
)
from neurenix_ms.multiscale.slots import (
    Block,
    Down,
    Edges,
    Skip,
    Upsampling,
    check_conditioned,
    kernels_of,
    products_of,
    slots_of_levels,
)
from neurenix_ms.multiscale.unet import check_input, check_level_widths

PER_LEVEL = {"block": 1, "depth": 1, "kernel_size": 1, "down": 0, "up": 0, "skip": 0, "stride": 0}


class NestedUNet(Configured, nn.Module):
    """A U-Net with nodes on its skip connections, which contains U-Nets of every depth.

    Use it where a `UNet` misses objects of some sizes, or where it is not known how deep the network
    should be: with `deep_supervision` all depths are trained at once, and `pruned` returns a shallower
    network that is accurate enough. It takes several times the operations of a `UNet` of the same
    widths.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        features: Channels of the nodes of every level, finest first; the bottleneck is one level deeper.
        spatial_dims: Number of spatial axes.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, which keeps the size.
        down: "max", "avg", "conv", "blur", "wavelet", "unshuffle", "strided" (by the first convolution
            of the next coarser block), or `callable(channels) -> Module`, which divides the size by
            `stride`, and may change the channels.
        up: "linear", "nearest", "transposed", "transposed_norm" (with overlap, norm and activation),
            "shuffle", "wavelet", or `callable(channels) -> Module`, which multiplies the size by
            `stride`.
        skip: "concat", "sum", "attention", or `callable(skip_channels, up_channels) -> Module`, called
            with the concatenated nodes before it and the upsampled feature map.
        depth: Number of blocks per node.
        stride: Pixels of a level per pixel of the next coarser one.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        bottleneck_channels: Channels of the bottleneck; by default twice those of the last level.
        kernel_size: Kernel size in pixels, odd; None takes 7 for "convnext" and 3 for others.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length of the vector on which every block is conditioned; None: no condition.
        deep_supervision: In training, return the outputs of all depths, that of the whole network first.
        ensemble: In evaluation, return the mean of all outputs (the paper's accurate mode), not the
            output of the whole network (its fast mode). Needs `deep_supervision`.

    `block`, `down`, `up`, `skip`, `depth`, `stride` and `kernel_size` may be lists, as in `UNet`.

    Shape:
        `(B, in_channels, *S)`, and a `condition` `(B, condition_channels)` if the network has one ->
        `(B, out_channels, *S)`, every S at least the product of the strides, `2**len(features)`; with
        `deep_supervision`, in training, a list of `len(features)` such outputs, all of the size of the
        input

    Raises:
        ValueError: If an argument is out of range or unknown, the input is too small or has other
            channels or axes, the condition does not fit, or `ensemble` is chosen without
            `deep_supervision`.

    Source: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture", equation 1 and figure 1. They weight
    all outputs equally: `DeepSupervisionLoss(loss, weights=[1] * len(features))`; without `weights`,
    that loss halves the weight from each depth to the next shallower one.

    Examples:
        >>> import torch
        >>> from neurenix_ms import NestedUNet
        >>> model = NestedUNet(3, 1, features=[8, 16], deep_supervision=True)
        >>> [tuple(y.shape) for y in model(torch.zeros(2, 3, 37, 53))]
        [(2, 1, 37, 53), (2, 1, 37, 53)]
        >>> model.pruned(1).eval()(torch.zeros(2, 3, 37, 53)).shape
        torch.Size([2, 1, 37, 53])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (32, 64, 128, 256),
        *,
        spatial_dims: SpatialDims = 2,
        block: Block | Sequence[Block] = "double",
        down: Down | Sequence[Down] = "max",
        up: Upsampling | Sequence[Upsampling] = "linear",
        skip: Skip | Sequence[Skip] = "concat",
        depth: int | Sequence[int] = 1,
        stride: int | Sequence[Edge] = 2,
        conv_bias: bool | None = None,
        bottleneck_channels: int | None = None,
        kernel_size: Edges | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
        deep_supervision: bool = False,
        ensemble: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        widths = check_level_widths(features)
        if bottleneck_channels is None:
            bottleneck_channels = 2 * widths[-1]
        check_positive(bottleneck_channels=bottleneck_channels)
        spec = ConvSpec(
            spatial_dims, norm=norm, act=act, conv_bias=conv_bias, padding_mode=padding_mode,
            dropout=dropout, condition_channels=condition_channels,
        )  # fmt: skip
        levels = slots_of_levels(
            len(widths), spec, kernel_size,
            block=block, down=down, up=up, skip=skip, depth=depth, stride=stride,
        )  # fmt: skip
        self.features = widths
        self.bottleneck_channels = bottleneck_channels
        self.kernel_size = kernels_of(levels) if kernel_size is None else kernel_size
        self.reductions = products_of(levels[:-1], spatial_dims)
        channels = [*widths, bottleneck_channels]
        self.encoder = Encoder(levels, in_channels, channels)
        self.nodes = DenseSkips(levels, channels)
        check_conditioned(self, condition_channels)
        self.branches = Branches(
            len(widths), widths[0], out_channels, spatial_dims=spatial_dims,
            final_activation=final_activation, deep_supervision=deep_supervision, ensemble=ensemble,
        )  # fmt: skip

    @recomputes
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        check_input(self, x)
        condition = given_condition(x, condition, self.condition_channels)
        return self.branches(self.nodes(self.encoder(x, condition), condition))

    @recomputes
    def forward_features(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the encoded feature maps of `x`, finest first, the bottleneck last, and keep none."""
        check_input(self, x)
        return self.encoder(x, given_condition(x, condition, self.condition_channels))

    def pruned(self, num_levels: int) -> "NestedUNet":
        """Return a copy of the sub-network of a given number of levels, for faster inference.

        Its output is that of `num_levels` before pruning: the last but one for one level less.

        Args:
            num_levels: Levels above the bottleneck to keep, 1 to `len(features)`.

        Raises:
            ValueError: If the number is out of range, or the network has no `deep_supervision`, so that
                only the whole network has an output.
        """
        check_integer("num_levels", num_levels, 1, len(self.features))
        if not self.deep_supervision:
            raise ValueError("pruned needs a network with deep_supervision True, got False")
        config: dict[str, Any] = self.config
        widths = [*self.features, self.bottleneck_channels]
        config |= {"features": widths[:num_levels], "bottleneck_channels": widths[num_levels]}
        for name, more in PER_LEVEL.items():
            if isinstance(config[name], list):
                config[name] = config[name][: num_levels + more]
        with torch.random.fork_rng(devices=[]):
            smaller = NestedUNet(**config).to(next(self.parameters()))
        state = self.state_dict()
        smaller.load_state_dict({name: state[name] for name in smaller.state_dict()})
        return smaller.train(self.training)


class NestedUNetDecoder(Configured, nn.Module):
    """The nodes of a nested U-Net, for the feature maps of any encoder.

    Use it in place of a `UNetDecoder` on a backbone, if objects of several sizes are equally important.
    It takes several times the operations at the finest feature map.

    Args:
        encoder_channels: Channels of the encoder feature maps, finest first, the bottleneck last; or a
            `Backbone` whose strides double from level to level. The nodes of a level have the same
            channels.
        out_channels: Channels of the output.
        spatial_dims: Number of spatial axes.
        block: "single", "double", "residual", "preactivation", "convnext", "inverted", or
            `callable(in_channels, out_channels) -> Module`, which keeps the size.
        up: "linear", "nearest", "transposed", "transposed_norm" (with overlap, norm and activation),
            "shuffle", "wavelet", or `callable(channels) -> Module`, which multiplies the size by
            `stride`.
        skip: "concat", "sum", "attention", or `callable(skip_channels, up_channels) -> Module`, called
            with the concatenated nodes before it and the upsampled feature map.
        depth: Number of blocks per node.
        stride: Pixels of a feature map per pixel of the next coarser one.
        conv_bias: Whether convolutions have a bias; None: only those that no norm follows.
        kernel_size: Kernel size in pixels, odd.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "tanh", None or
            `callable() -> Module`.
        padding_mode: As in `nn.Conv2d`.
        dropout: Channel dropout probability after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        condition_channels: Length of the vector on which every block is conditioned; None: no condition.
        deep_supervision: In training, return the outputs of all depths, that of all levels first.
        ensemble: In evaluation, return the mean of all outputs.

    Shape:
        list of `(B, encoder_channels[i], *S_i)`, or a dict of them, finest first, each about half the
        size of the one before, and a `condition` `(B, condition_channels)` if the decoder has one ->
        `(B, out_channels, *S_0)`; with `deep_supervision`, in training, a list of such outputs, one
        less than there are feature maps

    Raises:
        ValueError: If there are fewer than two feature maps, an option is out of range or unknown, or a
            feature map has other channels, another rank or batch size, or not about half the size of
            the one before, or the condition does not fit.

    Source: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture", equation 1.

    Examples:
        >>> import torch
        >>> from neurenix_ms import NestedUNetDecoder
        >>> decoder = NestedUNetDecoder([8, 16, 16], 1)
        >>> decoder([torch.zeros(1, 8, 37, 53), torch.zeros(1, 16, 18, 26),
        ...          torch.zeros(1, 16, 9, 13)]).shape
        torch.Size([1, 1, 37, 53])
    """

    @checked
    def __init__(
        self,
        encoder_channels: Channels,
        out_channels: int,
        *,
        spatial_dims: SpatialDims = 2,
        block: Block | Sequence[Block] = "double",
        up: Upsampling | Sequence[Upsampling] = "linear",
        skip: Skip | Sequence[Skip] = "concat",
        depth: int | Sequence[int] = 1,
        stride: int | Sequence[Edge] = 2,
        conv_bias: bool | None = None,
        kernel_size: Edges | None = None,
        norm: Norm = "batch",
        act: Act = "relu",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        condition_channels: int | None = None,
        deep_supervision: bool = False,
        ensemble: bool = False,
    ) -> None:
        super().__init__()
        widths = check_encoder(encoder_channels, stride)
        check_positive(out_channels=out_channels)
        self.encoder_channels = widths
        spec = ConvSpec(
            spatial_dims, norm=norm, act=act, conv_bias=conv_bias, padding_mode=padding_mode,
            dropout=dropout, condition_channels=condition_channels,
        )  # fmt: skip
        levels = slots_of_levels(
            len(widths) - 1, spec, kernel_size,
            block=block, up=up, skip=skip, depth=depth, stride=stride,
        )  # fmt: skip
        self.kernel_size = kernels_of(levels) if kernel_size is None else kernel_size
        self.nodes = DenseSkips(levels, widths)
        check_conditioned(self, condition_channels)
        self.branches = Branches(
            len(widths) - 1, widths[0], out_channels, spatial_dims=spatial_dims,
            final_activation=final_activation, deep_supervision=deep_supervision, ensemble=ensemble,
        )  # fmt: skip

    @recomputes
    def forward(self, features: Features, condition: Tensor | None = None) -> Tensor | list[Tensor]:
        features = check_encoded(features, self.encoder_channels, self.spatial_dims, self.stride)
        maps = entries(features, len(self.encoder_channels))
        condition = given_condition(maps[0], condition, self.condition_channels)
        return self.branches(self.nodes(list(maps), condition))
