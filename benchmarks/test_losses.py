"""Losses over scales and regions, with their gradients, against the plain way and other libraries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.paired import measure_step, with_peer
from neurenix_ms import LaplacianPyramid
from neurenix_ms.multiscale import LaplacianPyramidLoss
from neurenix_ms.training import DiceLoss, MultiScaleStructuralSimilarity, SpectralLoss

Ways = dict[str, Callable[[Tensor, Tensor], Tensor]]
CLASSES = 8
SCALES = (0.4, 0.6)  # of structural similarity
CASES = [
    ("DiceLoss", 128, ("plain", "ours", "monai")),
    ("LaplacianPyramidLoss", 128, ("plain", "ours")),
    ("SpectralLoss", 128, ("plain", "ours")),
    ("MultiScaleStructuralSimilarity", 128, ("ours", "torchmetrics")),
]
EVERY = [(loss, size, variant) for loss, size, variants in CASES for variant in variants]


def plain_dice(logits: Tensor, classes: Tensor) -> Tensor:
    truth = F.one_hot(classes, CLASSES).movedim(-1, 1).to(logits.dtype)
    predicted = logits.softmax(1)
    both, sums = (predicted * truth).sum((2, 3)), (predicted + truth).sum((2, 3))
    return 1 - ((2 * both + 1) / (sums + 1)).mean()


def plain_laplacian(x: Tensor, y: Tensor, pyramid: LaplacianPyramid) -> Tensor:
    return sum(F.l1_loss(a, b) for a, b in zip(pyramid(x), pyramid(y), strict=True))


def plain_spectral(x: Tensor, y: Tensor) -> Tensor:
    """A mask for every band."""
    size = x.shape[-1]
    rows, columns = torch.fft.fftfreq(size, 1 / size), torch.fft.rfftfreq(size, 1 / size)
    band = (rows[:, None] ** 2 + columns**2).sqrt().round().clamp(max=size // 2)
    twice = torch.where((columns == 0) | (columns == size // 2), 1.0, 2.0)
    powers = [torch.fft.rfft2(v, norm="forward").abs() ** 2 * twice for v in (x, y)]
    bands = range(size // 2 + 1)
    first, second = (
        torch.stack([(p * (band == k)).sum((2, 3)) for k in bands], -1) for p in powers
    )
    floor = 1e-6 * second.mean(-1, keepdim=True)
    return ((first + floor) / (second + floor)).log().abs().mean()


def torchmetrics_similarity(x: Tensor, y: Tensor) -> Tensor:
    image = peers.library("torchmetrics.functional.image")
    index = image.multiscale_structural_similarity_index_measure(
        x, y, data_range=1.0, betas=SCALES, normalize="relu"
    )
    return 1 - index


def monai_dice() -> Any:
    loss = peers.library("monai.losses").DiceLoss(
        to_onehot_y=True, softmax=True, smooth_nr=1, smooth_dr=1
    )
    return lambda logits, classes: loss(logits, classes.unsqueeze(1))


def ways(loss: str, variant: str) -> Ways:
    others = {"monai": monai_dice, "torchmetrics": lambda: torchmetrics_similarity}
    found: dict[str, Ways] = {
        "DiceLoss": {"plain": plain_dice, "ours": DiceLoss()},
        "LaplacianPyramidLoss": {
            "plain": partial(plain_laplacian, pyramid=LaplacianPyramid(4, None)),
            "ours": LaplacianPyramidLoss(4),
        },
        "SpectralLoss": {"plain": plain_spectral, "ours": SpectralLoss()},
        # other borders than those of torchmetrics
        "MultiScaleStructuralSimilarity": {"ours": MultiScaleStructuralSimilarity(weights=SCALES)},
    }
    return with_peer(found[loss], others, variant)


@pytest.mark.benchmark(group="losses/train-step")
@pytest.mark.parametrize(("loss", "size", "variant"), EVERY)
def test_losses(loss, size, variant, measure):
    if loss == "DiceLoss":
        x, y = torch.randn(2, CLASSES, size, size), torch.randint(CLASSES, (2, size, size))
    else:
        x, y = torch.rand(2, 2, 3, size, size)
    x.requires_grad_()
    found = ways(loss, variant)
    reference = "plain" if "plain" in found else "ours"
    close = 1e-4 if reference == "plain" else 0.1
    torch.testing.assert_close(found[variant](x, y), found[reference](x, y), atol=close, rtol=close)

    def step(way: Callable[[Tensor, Tensor], Tensor]) -> None:
        way(x, y).backward()
        x.grad = None

    steps = {name: partial(step, way) for name, way in found.items()}
    steps.setdefault("plain", steps["ours"])
    measure_step(measure, steps, variant, x)
