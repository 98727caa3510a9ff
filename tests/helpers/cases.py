"""Cases of the contract: how to build every public module, and its inputs at a given size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurenix_ms as nms
from neurenix_ms.msnet import MSNet

Size = tuple[int, ...]


@dataclass
class Case:
    """A public module and its input."""

    name: str
    build: Callable[[], nn.Module]
    channels: list[int]
    spatial_dims: int = 2
    is_list: bool = False
    halvings: list[int] | None = None  # of every feature map; by default 0, 1, 2, ...

    def inputs(self, size: Size, batch: int = 2, **options: Any) -> Any:
        """Return a feature map of `size`, or a list of feature maps whose finest has `size`."""
        maps = [
            torch.randn(batch, c, *(max(1, n // 2**i) for n in size), **options)
            for c, i in zip(self.channels, self.levels, strict=True)
        ]
        return maps if self.is_list else maps[0]

    @property
    def levels(self) -> Sequence[int]:
        """How often every feature map is half as large as the first."""
        return range(len(self.channels)) if self.halvings is None else self.halvings

    def shapes(self, axes: Sequence[Any]) -> list[dict[int, Any]]:
        """The dynamic shapes of the feature maps, for `torch.export`."""
        finest = 2 ** max(self.levels)
        return [{2 + k: finest // 2**i * axis for k, axis in enumerate(axes)} for i in self.levels]

    def size(self, n: int) -> Size:
        """Unequal axes, the first of them `n`."""
        return (n, n + 5, n + 2)[: self.spatial_dims]


def conv(channels_in: int, channels_out: int, spatial_dims: int) -> nn.Module:
    """A base model."""
    return nn.Sequential(
        getattr(nn, f"Conv{spatial_dims}d")(channels_in, channels_out, 3, padding=1), nn.Tanh()
    )


class ConditionedUNet(nms.UNet):
    """A conditioned network with one input, whose means are the condition."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return super().forward(x, x.flatten(2).mean(2))


class ConditionedPyramid(nms.PyramidNetwork):
    """A conditioned network with one input, whose means are the condition."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return super().forward(x, x.flatten(2).mean(2))


class ConditionedDecoder(nms.UNetDecoder):
    """A conditioned decoder whose condition is the means of its coarsest input."""

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        return super().forward(features, features[-1].flatten(2).mean(2))


def _cases(d: int) -> list[Case]:
    k: dict[str, Any] = {"spatial_dims": d}
    maps: dict[str, Callable[[], nn.Module]] = {
        "UNet": lambda: nms.UNet(3, 1, features=[4, 8], **k),
        "UNet-transposed": lambda: nms.UNet(3, 2, features=[4, 8], bilinear=False, **k),
        "UNet-residual": lambda: nms.UNet(
            3, 1, [4, 8], block="residual", norm="group", act="gelu", residual_channel=1, **k
        ),
        "UNet-single": lambda: nms.UNet(
            3, 2, [4, 8], block="single", norm=None, act="silu", final_activation="softmax", **k
        ),
        "UNet-instance": lambda: nms.UNet(3, 1, [4, 8], norm="instance", **k),
        "UNet-convnext": lambda: nms.UNet(
            3,
            1,
            [4, 8],
            block="convnext",
            down="blur",
            up="shuffle",
            skip="attention",
            norm="group",
            deep_supervision=True,
            kernel_size=3,
            **k,
        ),
        "UNet-wavelet": lambda: nms.UNet(
            3,
            1,
            [4, 4],
            block=["preactivation", "inverted", "single"],
            norm="group",
            down=["wavelet", "unshuffle"],
            up=["wavelet", "nearest"],
            skip=["sum", "concat"],
            **k,
        ),
        "UNet-decoder": lambda: nms.UNet(
            3,
            1,
            [4, 6],
            down="strided",
            up="transposed_norm",
            skip="attention",
            decoder_block=["single", "inverted"],
            decoder_norm="group",
            decoder_act="prelu",
            **k,
        ),
        "UNet-anisotropic": lambda: nms.UNet(
            3,
            1,
            [4, 6],
            stride=[[1, *[2] * (d - 1)], 2],
            kernel_size=[[1, *[3] * (d - 1)], 3, [*[3] * (d - 1), 1]],
            norm="group",
            **k,
        ),
        "UNet-conditioned": lambda: ConditionedUNet(
            3,
            1,
            [4, 8],
            block=["convnext", "residual", "preactivation"],
            depth=[1, 2, 1],
            skip="attention",
            norm="group",
            kernel_size=3,
            condition_channels=3,
            **k,
        ),
        "PyramidNetwork-conditioned": lambda: ConditionedPyramid(
            3, 2, 3, 4, block=["double", "inverted", "single"], condition_channels=3, **k
        ),
        "NestedUNet": lambda: nms.NestedUNet(3, 2, [4, 6], **k),
        "NestedUNet-slots": lambda: nms.NestedUNet(
            3,
            1,
            [4, 4],
            block="residual",
            up=["shuffle", "transposed"],
            skip="attention",
            down="conv",
            norm="group",
            deep_supervision=True,
            ensemble=True,
            **k,
        ),
        "HighResolutionNetwork": lambda: nms.HighResolutionNetwork(
            3, 2, [4, 6], stem_reductions=1, stem_channels=4, depth=1, **k
        ),
        "HighResolutionNetwork-streams": lambda: nms.HighResolutionNetwork(
            3,
            features=[4, 6],
            num_modules=[1, 2],
            stem_reductions=0,
            up="linear",
            norm="group",
            **k,
        ),
        "PyramidNetwork-slots": lambda: nms.PyramidNetwork(
            3,
            2,
            3,
            4,
            block="preactivation",
            down="conv",
            up=["linear", "transposed"],
            skip=["attention", "concat"],
            depth=[2, 1, 1],
            deep_supervision=True,
            norm="group",
            **k,
        ),
        "PyramidNetwork": lambda: nms.PyramidNetwork(3, 2, 3, 4, **k),
        "PyramidNetwork-all": lambda: nms.PyramidNetwork(3, 2, 3, 4, return_pyramid=True, **k),
        "MultiScaleModel": lambda: nms.MultiScaleModel([1, 0.5, 0.25], conv(3, 4, d), **k),
        "MultiScaleModel-max": lambda: nms.MultiScaleModel(
            [0.5, 1, 0.75], conv(3, 4, d), "max", share_weights=False, **k
        ),
        "MultiScaleModel-attention": lambda: nms.MultiScaleModel(
            [0.5, 1], conv(3, 4, d), "attention", channels=4, **k
        ),
        "MSNet": lambda: MSNet(2, 3, 2, filter_growth=2, num_layers=3, **k),
        "MultiScalePooling": lambda: nms.MultiScalePooling(**k),
        "MultiScalePooling-max": lambda: nms.MultiScalePooling([3, 4], "max", **k),
        "PyramidPooling": lambda: nms.PyramidPooling(3, 4, [1, 2, 3], **k),
        "PyramidPooling-bare": lambda: nms.PyramidPooling(3, 4, [1, 2], project=False, **k),
        "AtrousPyramidPooling": lambda: nms.AtrousPyramidPooling(3, 4, [2, 17], **k),
        "AtrousPyramidPooling-separable": lambda: nms.AtrousPyramidPooling(
            3, 4, [[3, 2, 1][:d]], separable=True, image_pooling=False, norm="group", **k
        ),
        "SpectralMixing": lambda: nms.SpectralMixing(3, 4, 3, **k),
        "SpectralMixing-bare": lambda: nms.SpectralMixing(
            3, 2, [4, 2, 3][:d], pointwise=False, act=None, **k
        ),
        "SpatialPyramidPooling": lambda: nms.SpatialPyramidPooling(**k),
        "SpatialPyramidPooling-avg": lambda: nms.SpatialPyramidPooling(3, "avg", **k),
        "MultiScaleTransform": lambda: nms.MultiScaleTransform(**k),
        "Rescale": lambda: nms.Rescale(0.5, **k),
        "PyramidDownsample": lambda: nms.PyramidDownsample(**k),
        "GaussianPyramid": lambda: nms.GaussianPyramid(**k),
        "LaplacianPyramid": lambda: nms.LaplacianPyramid(sigma=None, **k),
        "BlurPool": lambda: nms.BlurPool(**k),
        "BlurPool-even": lambda: nms.BlurPool(4, 3, padding_mode="replicate", **k),
        "PixelUnshuffle": lambda: nms.PixelUnshuffle(**k),
        "PixelUnshuffle-unequal": lambda: nms.PixelUnshuffle([1, 2, 3][:d], **k),
        "WaveletTransform": lambda: nms.WaveletTransform("cdf97", 2, **k),
        "WaveletTransform-haar": lambda: nms.WaveletTransform("haar", **k),
        "WaveletTransform-db2": lambda: nms.WaveletTransform("db2", **k),
        "WaveletTransform-db4": lambda: nms.WaveletTransform("db4", **k),
        "WaveletTransform-periodic": lambda: nms.WaveletTransform("db3", boundary="periodic", **k),
    }
    lists: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
        "FeatureFusion": (lambda: nms.FeatureFusion([3, 5], 4, **k), [3, 5]),
        "FeatureFusion-sum": (lambda: nms.FeatureFusion([3, 4], 4, "sum", **k), [3, 4]),
        "FeatureFusion-max": (lambda: nms.FeatureFusion([3, 4], 4, "max", **k), [3, 4]),
        "FeatureFusion-attention": (
            lambda: nms.FeatureFusion([3, 5], 4, "attention", **k),
            [3, 5],
        ),
        "ScaleFusion": (lambda: nms.ScaleFusion([1, 0.5], 3, 4, "mean", **k), [3, 3]),
        "AttentionFusion": (lambda: nms.AttentionFusion([3, 5], 4, **k), [3, 5]),
        "AttentionFusion-both": (
            lambda: nms.AttentionFusion([3, 5], 4, attention="both", **k),
            [3, 5],
        ),
        "PyramidFusion": (lambda: nms.PyramidFusion([3, 5, 4], 4, **k), [3, 5, 4]),
        "BidirectionalFusion": (
            lambda: nms.BidirectionalFusion([3, 5, 4], 4, repeats=2, **k),
            [3, 5, 4],
        ),
        "BidirectionalFusion-panet": (
            lambda: nms.BidirectionalFusion(
                [3, 5], 4, extra_levels=1, paths="panet", separable=False, downsample="conv", **k
            ),
            [3, 5],
        ),
        "UNetDecoder-slots": (
            lambda: nms.UNetDecoder(
                [3, 5, 4],
                2,
                block=["single", "preactivation", "double"],
                up=["shuffle", "transposed_norm"],
                skip=["sum", "attention"],
                depth=[2, 1, 1],
                kernel_size=[[1] * d, 3, 3],
                norm="group",
                deep_supervision=True,
                **k,
            ),
            [3, 5, 4],
        ),
        "UPerHead": (
            lambda: nms.UPerHead([3, 5, 4], 2, hidden_channels=4, bins=[1, 2], **k),
            [3, 5, 4],
        ),
        "DeepLabHead": (
            lambda: nms.DeepLabHead(
                [3, 5], 2, hidden_channels=4, fine_channels=3, dilations=[2, 3], **k
            ),
            [3, 5],
        ),
        "UNetDecoder-conditioned": (
            lambda: ConditionedDecoder([3, 5, 4], 2, condition_channels=4, norm=None, **k),
            [3, 5, 4],
        ),
        "UNetDecoder": (lambda: nms.UNetDecoder([3, 5, 4], 2, **k), [3, 5, 4]),
        "NestedUNetDecoder": (lambda: nms.NestedUNetDecoder([3, 5, 4], 2, **k), [3, 5, 4]),
    }
    details = 2 * (2**d - 1)
    wavelets: dict[str, Callable[[], nn.Module]] = {
        "InverseWaveletTransform": lambda: nms.InverseWaveletTransform("cdf53", **k),
        "InverseWaveletTransform-cdf97": lambda: nms.InverseWaveletTransform("cdf97", **k),
        "InverseWaveletTransform-db4": lambda: nms.InverseWaveletTransform("db4", **k),
        "InverseWaveletTransform-haar": lambda: nms.InverseWaveletTransform(**k),
    }
    return [
        Case(f"PixelShuffle-{d}d", lambda: nms.PixelShuffle(**k), [2**d], d),
        *(Case(f"{name}-{d}d", build, [3], d) for name, build in maps.items()),
        *(
            Case(f"{name}-{d}d", build, channels, d, is_list=True)
            for name, (build, channels) in lists.items()
        ),
        *(
            Case(f"{name}-{d}d", build, [details, 2], d, is_list=True, halvings=[0, 0])
            for name, build in wavelets.items()
        ),
    ]


CASES = [case for d in (1, 2, 3) for case in _cases(d)]


def to_compile(dims: Sequence[int]) -> list[Any]:
    """The cases with so many axes, all but the first of a class marked as slow."""
    cases = [case for case in CASES if case.spatial_dims in dims]
    first = {case.name.split("-")[0]: case for case in reversed(cases)}
    return [
        pytest.param(case, marks=[] if case in first.values() else [pytest.mark.slow])
        for case in cases
    ]


def plane_first() -> list[Any]:
    """All cases, those with one and three axes marked as slow."""
    return [
        pytest.param(case, marks=[] if case.spatial_dims == 2 else [pytest.mark.slow])
        for case in CASES
    ]


def build(case: Case) -> nn.Module:
    """The module, with no parameter at zero: a zero-initialized score head would hide everything."""
    model = case.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def as_list(out: Tensor | list[Tensor]) -> list[Tensor]:
    """The outputs, one or several."""
    return [out] if isinstance(out, Tensor) else list(out)


def scalar(out: Tensor | list[Tensor]) -> Tensor:
    """A sum with different weights everywhere, so that no gradient cancels."""
    return sum(
        (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).square().sum()
        for y in as_list(out)
    )
