"""An image in, the maps of a network at several resolutions out, finest first."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurenix_ms.backbones.extracting import Extractor, extractor, is_dual_graph
from neurenix_ms.backbones.inflation import first_convolution, with_channels
from neurenix_ms.backbones.measuring import (
    Measured,
    Stride,
    evaluating,
    measure,
    named_outputs,
    probe_shapes,
    run,
    table,
)
from neurenix_ms.backbones.tapping import taps
from neurenix_ms.nd import expect_channels, expect_map

Normalise = Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(nn.Module):
    """Take the maps of any network at several resolutions, for a decoder, neck or fusion behind it.

    Channels and strides are measured by running the network on small inputs when it is wrapped, never
    taken from what it says of itself. Every map comes out as `(B, C, *S)`, also where the network
    keeps its channels last. Nothing is downloaded unless `weights` asks for it.

    Hand the backbone itself to `UNetDecoder`, `PyramidFusion`, `FeatureFusion` or `PyramidPooling`
    in place of channels. Weights of other input channels repeat the pretrained kernels, so that an
    image that is the same in all channels gives what it gave before.

    Args:
        network: Name of a torchvision model, name of a timm model (extra `timm`; write
            "timm/resnet18" where torchvision has that name too), or a module: one that returns a list,
            tuple or dict of maps is used as it is; in one that returns something else, the last map of
            every resolution is looked for, and the rest is cut off.
        levels: Which of the maps, counted from the finest; None takes all.
        in_channels: Channels of the image; None leaves them as they are; others
            are read by a copy of the network.
        normalise: "imagenet", or means and standard deviations per channel, applied to the image.
        weights: With a name: those to download, such as "DEFAULT"; any text for timm's.

    Shape:
        `(B, in_channels, *S)` -> a list of `(B, channels[i], *S_i)`, `S_i` about `S / strides[i]`

    Raises:
        ValueError: If the name is unknown, the network cannot be run on small maps or traced, an output
            is no map, or a level does not exist; with the table of what was measured.

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

    def __init__(
        self,
        network: str | nn.Module,
        *,
        levels: Sequence[int] | None = None,
        in_channels: int | None = None,
        normalise: Normalise = None,
        weights: Any = None,
    ) -> None:
        super().__init__()
        module = _named(network, weights) if isinstance(network, str) else network
        if is_dual_graph(module):
            module = Extractor(module)
        found = first_convolution(module)
        self.spatial_dims = 2 if found is None else found[1].weight.ndim - 2
        self.in_channels = found[1].in_channels if found is not None else in_channels or 3
        if in_channels is not None and in_channels != self.in_channels:
            module = with_channels(module, in_channels)
            self.in_channels = in_channels
        self.levels = None if levels is None else list(levels)
        self.normalise = normalise
        self._measured: list[Measured]
        self.network, self._measured = self._opened(module)
        self.channels: list[int] = [one.channels for one in self._measured]
        self.strides: list[Stride] = [one.stride for one in self._measured]
        mean, deviation = self._statistics()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_map(image, self.spatial_dims)
        expect_channels(image, self.in_channels, "the image")
        if self.mean is not None and self.deviation is not None:
            image = (image - self.mean) / self.deviation
        outputs = named_outputs(self.network(image))
        return [outputs[one.name].permute(one.axes) for one in self._measured if one.axes]

    @property
    def table(self) -> str:
        """What was measured, one line per map."""
        return table(self._measured)

    def expect_halving(self) -> None:
        """Refuse to stand before a decoder that doubles the size from map to map."""
        strides = [one.strides for one in self._measured]
        halving = all(
            all(b == 2 * a for a, b in zip(fine, coarse, strict=True))
            for fine, coarse in pairwise(strides)
        )
        if len(strides) < 2 or not halving:
            raise ValueError(
                "a decoder needs two or more maps, each of twice the stride of the one before, got\n"
                f"{self.table}"
            )

    def _opened(self, module: nn.Module) -> tuple[nn.Module, list[Measured]]:
        """The network that returns the chosen maps, and what they are."""
        probe = (self.in_channels, self.spatial_dims)
        with evaluating(module):
            out = run(module, probe_shapes(*probe)[0])
        if isinstance(out, Tensor):
            chosen = self._chosen(taps(module, *probe) or measure(module, *probe))
            if [one.name for one in chosen] == ["0"]:  # no parts, or parts that give no map
                return module, chosen
            module = extractor(module, [one.name for one in chosen])
            return module, self._sorted(measure(module, *probe))
        return module, self._chosen(measure(module, *probe))

    def _chosen(self, found: list[Measured]) -> list[Measured]:
        ordered = self._sorted(found)
        if self.levels is None:
            return ordered
        if not self.levels or any(not -len(ordered) <= k < len(ordered) for k in self.levels):
            raise ValueError(
                f"levels must be numbers of the {len(ordered)} maps, got {self.levels} and\n"
                f"{table(ordered)}"
            )
        indices = sorted({k % len(ordered) for k in self.levels})
        return [ordered[k] for k in indices]

    def _sorted(self, found: list[Measured]) -> list[Measured]:
        if not found or any(one.axes is None for one in found):
            raise ValueError(
                f"every output must be a map of {self.spatial_dims} spatial axes whose size follows "
                f"that of the input, got\n{table(found)}"
            )
        return sorted(found, key=lambda one: torch.tensor(one.strides).prod().item())

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        if self.normalise is None:
            return None, None
        pair = IMAGENET if self.normalise == "imagenet" else self.normalise
        if isinstance(pair, str) or len(pair) != 2 or {len(p) for p in pair} != {self.in_channels}:
            raise ValueError(
                f"normalise must be None, 'imagenet' (3 channels) or two lists of {self.in_channels} "
                f"numbers, got {self.normalise!r}"
            )
        shape = (1, -1) + (1,) * self.spatial_dims
        mean, deviation = (torch.tensor(list(numbers)).view(shape) for numbers in pair)
        return mean, deviation


def _named(name: str, weights: Any) -> nn.Module:
    """A model of torchvision, or of timm."""
    from torchvision import models

    if name in models.list_models():
        return models.get_model(name, weights=weights)
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no model of torchvision; those of timm need pip install 'neurenix_ms[timm]'"
        ) from error
    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        raise ValueError(f"network must name a model of torchvision or timm, got {name!r}")
    return timm.create_model(bare, features_only=True, pretrained=weights is not None)
