"""U-Nets: encode to ever coarser maps, decode with the encoded maps of every resolution beside."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
)
from neurenix_ms._core.recomputation import tensor_of
from neurenix_ms._core.remember import Remembers
from neurenix_ms._core.sizes import check_halvings, spatial
from neurenix_ms.checkpointing import recomputes
from neurenix_ms.layers.blocks import BlockKind, ConvBlock, ConvSpec
from neurenix_ms.layers.levels import Level, Trace
from neurenix_ms.layers.naming import Act, Norm, check_normalizable
from neurenix_ms.multiscale.decoder import FinalActivation, Head, make_ups


class UNet(Configured, Remembers, nn.Module):
    """A U-Net for maps with one, two or three axes, of any size that can be halved often enough.

    The standard network where output and input lie on the same grid: segmentation, denoising, the
    next state of a field. Outputs are logits unless `final_activation` says otherwise.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        features: Widths of the skips, fine to coarse; the bottleneck is one level deeper.
        spatial_dims: Number of spatial axes.
        bilinear: Upsample linearly; False takes transposed convolutions.
        align_corners: Grid of the linear upsampling; True only to load weights made with it, because
            such a network cannot be cut into tiles exactly.
        block: "double", "single" or "residual" convolution block.
        conv_bias: Bias of the convolutions; None is only where no norm follows.
        bottleneck_channels: Width of the bottleneck; by default that of the last skip if `bilinear`,
            else twice that.
        kernel_size: Odd edge of the kernels in pixels.
        norm: "batch", "instance", "group", None or `callable(channels) -> Module`.
        act: "relu", "leaky_relu", "gelu", "silu", "elu", "tanh", None or `callable() -> Module`.
        padding_mode: As in `nn.Conv2d`.
        dropout: Share of channels dropped after every block.
        final_activation: None, "sigmoid", "softmax" (over channels), "softplus", "relu", a function
            or a module class.
        residual_channel: Input channel that is added to the output before the final activation.
        remember: Keep the maps of the last forward for the getters; False saves memory.

    Shape:
        `(B, in_channels, *S)` -> `(B, out_channels, *S)`, every S at least `2**len(features)`

    Raises:
        ValueError: If an argument is out of range or unknown, a map is too small, or has other
            channels or axes.
        RuntimeError: If a getter is called before any forward.

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
        block: BlockKind = "double",
        conv_bias: bool | None = True,
        bottleneck_channels: int | None = None,
        kernel_size: int = 3,
        norm: Norm = "batch",
        act: Act = "relu",
        padding_mode: str = "zeros",
        dropout: float = 0.0,
        final_activation: FinalActivation = None,
        residual_channel: int | None = None,
        remember: bool = True,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        widths = check_level_widths(features)
        check_residual(residual_channel, in_channels, out_channels)
        bottom = widths[-1] * (1 if bilinear else 2)
        if bottleneck_channels is not None:
            check_positive(bottleneck_channels=bottleneck_channels)
            bottom = bottleneck_channels
        self.features = widths
        self.bottleneck_channels = bottom

        spec = ConvSpec(spatial_dims, kernel_size, norm, act, conv_bias, padding_mode, dropout)
        blocks = partial(ConvBlock, block=block, spec=spec)
        nest = partial(Level, spatial_dims=spatial_dims)
        level = nest(blocks(widths[-1], bottom))
        for up, depth in zip(
            make_ups(widths, bottom, blocks, spatial_dims, bilinear, align_corners),
            reversed(range(len(widths))),
            strict=True,
        ):
            above = widths[depth - 1] if depth else in_channels
            level = nest(blocks(above, widths[depth]), level, up)
        self.level = level
        self.head = Head(widths[0], out_channels, spatial_dims, final_activation)

    @recomputes
    def forward(self, x: Tensor) -> Tensor:
        self.clear_features()
        self._check(x)
        trace = Trace() if self.remember else None
        y = self.level(x, trace)
        if trace is not None:
            self._remember(encoder=trace.encoded, decoder=trace.decoded[1:])
        k = self.residual_channel
        return self.head(y, None if k is None else x[:, k : k + 1])

    @recomputes
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the encoded feature maps of `x`, finest first, the bottleneck last, and keep none.

        The decoder is not run. Use it in place of a forward pass and `get_encoder_features`.
        """
        self._check(x)
        return self.level.encoded(x)

    def get_encoder_features(self) -> list[Tensor]:
        """Encoded maps of the last forward, fine to coarse, the bottleneck last."""
        return [tensor_of(y) for y in self._recall("encoder")]

    def get_decoder_features(self) -> list[Tensor]:
        """Decoded maps of the last forward, coarse to fine; the last one feeds the head."""
        return [tensor_of(y) for y in self._recall("decoder")]

    def _check(self, x: Tensor) -> None:
        check_rank(x, self.spatial_dims)
        check_channels(x, self.in_channels)
        check_halvings(spatial(x), len(self.features))
        check_normalizable(self.norm, self.training, x, len(self.features))


def check_level_widths(features: Sequence[int]) -> list[int]:
    """Refuse a U-Net without a level, and widths below one."""
    if not features:
        raise ValueError("features must hold at least one width, got an empty list")
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
