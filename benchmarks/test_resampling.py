"""Wavelets, blur pooling and pixel shuffling compared with filter banks and plain PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers, plain_resampling
from benchmarks.paired import measure_forward, only_in_full
from neurenix_ms import (
    BlurPool,
    InverseWaveletTransform,
    PixelShuffle,
    PixelUnshuffle,
    WaveletTransform,
)

Way = Callable[[Any], Any]
PYWAVELETS = {
    "haar": "haar",
    "cdf53": "bior2.2",
    "cdf97": "bior4.4",
    "db2": "db2",
    "db3": "db3",
    "db4": "db4",
}


def wavelet(name: str, dims: int) -> dict[str, Way]:
    ours = WaveletTransform(name, spatial_dims=dims)  # type: ignore[arg-type]
    if name not in plain_resampling.FILTERS:  # whose borders are no mirror images
        return {"ours": ours}
    return {"plain": plain_resampling.FilterBank(name, dims), "ours": ours}


def inverse(name: str, dims: int) -> dict[str, Way]:
    forward = WaveletTransform(name, spatial_dims=dims)  # type: ignore[arg-type]
    levels: list[Tensor] = []

    def of_coefficients(backward: Way) -> Way:
        def way(x: Tensor) -> Tensor:
            if not levels:
                levels.extend(forward(x))
            return backward(levels)

        return way

    ours = of_coefficients(InverseWaveletTransform(name, spatial_dims=dims))  # type: ignore[arg-type]
    if name not in plain_resampling.FILTERS:
        return {"ours": ours}
    plain = plain_resampling.InverseFilterBank(name, dims)
    return {"plain": of_coefficients(plain), "ours": ours}


def blur(dims: int) -> dict[str, Way]:
    return {"plain": plain_resampling.BlurPool(3, dims), "ours": BlurPool(spatial_dims=dims)}


def unshuffle(dims: int) -> dict[str, Way]:
    return {"plain": plain_resampling.unshuffled, "ours": PixelUnshuffle(spatial_dims=dims)}


def shuffle(dims: int) -> dict[str, Way]:
    return {"plain": plain_resampling.shuffled, "ours": PixelShuffle(spatial_dims=dims)}


MAKERS: dict[str, Callable[[int], dict[str, Way]]] = {
    **{f"WaveletTransform {name}": partial(wavelet, name) for name in PYWAVELETS},
    **{f"InverseWaveletTransform {name}": partial(inverse, name) for name in PYWAVELETS},
    "BlurPool": blur,
    "PixelUnshuffle": unshuffle,
    "PixelShuffle": shuffle,
}
PEERS: dict[str, dict[str, Callable[[Tensor], Way]]] = {
    **{
        f"WaveletTransform {name}": {
            "ptwt": lambda x, name=theirs: peers.ptwt_wavelet(name),
            "pytorch_wavelets": lambda x, name=theirs: peers.pytorch_wavelets(name),
        }
        for name, theirs in PYWAVELETS.items()
    },
    **{
        f"InverseWaveletTransform {name}": {
            "ptwt": lambda x, name=theirs: peers.ptwt_inverse(name, x),
            "pytorch_wavelets": lambda x, name=theirs: peers.pytorch_wavelets_inverse(name, x),
        }
        for name, theirs in PYWAVELETS.items()
    },
    "BlurPool": {"timm": lambda x: peers.timm_blur(3, x.shape[1])},
    "PixelUnshuffle": {"monai": lambda x: peers.monai_unshuffle()},
    "PixelShuffle": {"monai": lambda x: peers.monai_shuffle()},
}
OTHER_RESULT = (
    "ptwt",
    "pytorch_wavelets",
)  # the peers extend the image and return larger coefficients
SIZES = [(1, 4096), (2, 64), (2, 512), (3, 48)]
LARGE = [(1, 2**20), (2, 2048), (3, 128)]
CASES = [(name, way) for name, make in MAKERS.items() for way in (*make(2), *PEERS[name])]


@pytest.mark.benchmark(group="transforms/forward")
@pytest.mark.parametrize(("dims", "size"), SIZES + LARGE)
@pytest.mark.parametrize(("block", "variant"), CASES)
def test_resampling_forward(block, dims, size, variant, measure, request):
    if variant in (*OTHER_RESULT, "timm") and dims != 2:
        pytest.skip(f"{variant} has two axes")
    if (dims, size) in LARGE:
        only_in_full(request)
    x = torch.randn(1, 8 if dims == 3 else 16, *(size,) * dims)
    ways = MAKERS[block](dims)
    if variant in PEERS[block]:
        ways[variant] = PEERS[block][variant](x)
    measure_forward(measure, ways, variant, x, same=variant not in OTHER_RESULT)
