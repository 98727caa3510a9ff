"""A wrapper that returns the feature maps of any network at several resolutions, finest first."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import RenamedAttribute, renamed_arguments
from neurenix_ms._core.dims import check_channels, check_positive, check_rank
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.backbones.extracting import (
    EncoderOf,
    Extractor,
    extractor,
    is_dual_graph,
    is_encoder,
)
from neurenix_ms.backbones.inflation import CONVOLUTIONS, with_channels
from neurenix_ms.backbones.measuring import (
    Measured,
    Stride,
    first_run,
    measure,
    named_outputs,
    sorted_by_stride,
    table,
)
from neurenix_ms.backbones.naming import named_network
from neurenix_ms.backbones.tapping import taps

Normalize = Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(Configured, nn.Module):
    """Return the feature maps of any network at several resolutions, for a decoder, neck or fusion.

    Channels and strides are measured on fake tensors when the network is wrapped, and not read from its
    metadata. Every feature map has the shape `(B, C, *S)`, also for networks with channels last.
    Nothing is downloaded unless `weights` is given.

    The backbone itself can be passed to `UNetDecoder`, `PyramidFusion`, `FeatureFusion` or
    `PyramidPooling` in place of channels. For another number of input channels the pretrained kernels
    are repeated and scaled, so that an image with equal channels gives the same feature maps as before.

    Args:
        network: Name of a torchvision model, name of a timm model (extra `timm`; write
            "timm/resnet18" if torchvision has that name too), or a module. A module that returns a list,
            tuple or dict of feature maps is used unchanged. Of a `UNet` or `PyramidNetwork` the encoder
            is used. Of any other module the last feature map of every resolution is used, and the
            layers after the last one are removed.
        levels: Indices of the feature maps to return, counted from the finest; None returns all.
        in_channels: Channels of the image; None keeps those of the network. For another number the
            network is copied.
        normalize: "imagenet", or means and standard deviations per channel, applied to the image.
        weights: Weights to download, if `network` is a name, such as "DEFAULT"; any string for timm. A
            saved backbone is loaded from its file without a download.
        options: Further arguments of `timm.create_model` or of torchvision's function, if `network` is
            a name, such as `output_stride=8` or `img_size=96, strict_img_size=False`.

    Shape:
        `(B, in_channels, *S)` -> a list of `(B, channels[i], *S_i)`, `S_i` about `S / strides[i]`

    Raises:
        ValueError: If the name or an option is unknown, the network cannot be run on small images or
            traced, an output is not a feature map, or a level does not exist; the message has the table
            of measured outputs.
        TypeError: If options are given with a module.

    Examples:
        >>> from neurenix_ms import UNetDecoder
        >>> backbone = Backbone("resnet18", levels=[1, 2, 3])
        >>> backbone.channels, backbone.strides
        ([64, 128, 256], [4, 8, 16])
        >>> decoder = UNetDecoder(backbone, 1)
        >>> decoder(backbone(torch.zeros(2, 3, 61, 45))).shape
        torch.Size([2, 1, 16, 12])
    """

    mean: Tensor | None
    deviation: Tensor | None

    normalise = RenamedAttribute("normalize")

    @renamed_arguments(normalise="normalize")
    @checked
    def __init__(
        self,
        network: str | nn.Module,
        *,
        levels: Sequence[int] | None = None,
        in_channels: int | None = None,
        normalize: Normalize = None,
        weights: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options and not isinstance(network, str):
            raise TypeError(
                f"options need a network given by name, got {sorted(options)} and a "
                f"{type(network).__name__}"
            )
        if in_channels is not None:
            check_positive(in_channels=in_channels)
        self.name = network if isinstance(network, str) else None
        self.options = options
        if isinstance(network, str):
            module = named_network(network, weights, options)
        else:
            module = Extractor(network) if is_dual_graph(network) else network
            module = EncoderOf(module) if is_encoder(module) else module
        (own_channels, dims), out = first_run(module, _images(module, in_channels))
        self.spatial_dims = dims
        self.in_channels = own_channels if in_channels is None else in_channels
        if self.in_channels != own_channels:
            module = with_channels(module, self.in_channels, own_channels)
        self.levels = None if levels is None else list(levels)
        self.normalize = normalize
        self._measured: list[Measured]
        self.network, self._measured = self._opened(module, isinstance(out, Tensor))
        self.channels: list[int] = [one.channels for one in self._measured]
        self.strides: list[Stride] = [one.stride for one in self._measured]
        mean, deviation = self._statistics()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        check_rank(image, self.spatial_dims)
        check_channels(image, self.in_channels, "the image")
        if self.mean is not None and self.deviation is not None:
            image = (image - self.mean) / self.deviation
        outputs = named_outputs(call_intact(self.network, image))
        return [outputs[one.name].permute(one.axes) for one in self._measured if one.axes]

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name, without `weights`, which are in the state dict."""
        cut = self.name is None and isinstance(self.network, Extractor)
        network = self.network.network if isinstance(self.network, EncoderOf) else self.network
        return {
            "network": network if self.name is None else self.name,
            "levels": None if cut or self.levels is None else list(self.levels),
            "in_channels": self.in_channels,
            "normalize": self.normalize,
            **self.options,
        }

    @property
    def table(self) -> str:
        """Table of the measured feature maps, one line each."""
        return table(self._measured)

    def check_doubling(self) -> None:
        """Raise unless every stride is twice the one before, as a decoder requires."""
        strides = [one.strides for one in self._measured]
        halving = all(
            all(b == 2 * a for a, b in zip(fine, coarse, strict=True))
            for fine, coarse in pairwise(strides)
        )
        if len(strides) < 2 or not halving:
            raise ValueError(
                "a decoder needs two or more feature maps, each of twice the stride of the one before, "
                f"got\n{self.table}"
            )

    def _opened(self, module: nn.Module, classifies: bool) -> tuple[nn.Module, list[Measured]]:
        """Return the network of the chosen feature maps, and their measurements."""
        image = (self.in_channels, self.spatial_dims)
        if not classifies:
            return module, self._chosen(measure(module, *image))
        chosen = self._chosen(taps(module, *image) or measure(module, *image))
        if [one.name for one in chosen] == ["0"]:  # no submodule returns a feature map
            return module, chosen
        module = extractor(module, [one.name for one in chosen])
        return module, self._sorted(measure(module, *image))

    def _chosen(self, found: list[Measured]) -> list[Measured]:
        ordered = self._sorted(found)
        if self.levels is None:
            return ordered
        if not self.levels or any(not -len(ordered) <= k < len(ordered) for k in self.levels):
            raise ValueError(
                f"levels must be numbers of the {len(ordered)} feature maps, got {self.levels} and\n"
                f"{table(ordered)}"
            )
        indices = sorted({k % len(ordered) for k in self.levels})
        return [ordered[k] for k in indices]

    def _sorted(self, found: list[Measured]) -> list[Measured]:
        if not found or any(one.axes is None for one in found):
            raise ValueError(
                f"every output must be a feature map of {self.spatial_dims} spatial axes whose size "
                f"follows that of the input, got\n{table(found)}"
            )
        return sorted_by_stride(found)

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        if self.normalize is None:
            return None, None
        pair = IMAGENET if self.normalize == "imagenet" else self.normalize
        if isinstance(pair, str) or len(pair) != 2 or {len(p) for p in pair} != {self.in_channels}:
            raise ValueError(
                f"normalize must be None, 'imagenet' (3 channels) or two lists of {self.in_channels} "
                f"numbers, got {self.normalize!r}"
            )
        shape = (1, -1) + (1,) * self.spatial_dims
        mean, deviation = (torch.tensor(list(numbers)).view(shape) for numbers in pair)
        return mean, deviation


def _images(network: nn.Module, in_channels: int | None) -> list[tuple[int, int]]:
    """Return channels and spatial axes of images that a network may accept, the likeliest first."""
    convolutions = [m for m in network.modules() if isinstance(m, CONVOLUTIONS)]
    if not convolutions:
        return [(in_channels or 3, 2)]
    first = convolutions[0].in_channels
    images = []
    for dims in dict.fromkeys(conv.weight.ndim - 2 for conv in convolutions):
        # the network may rearrange blocks of pixels into channels first
        blocks = (first // edge**dims for edge in (2, 4, 8) if first % edge**dims == 0)
        images += [(channels, dims) for channels in dict.fromkeys((first, 3, 1, *blocks))]
    return images
