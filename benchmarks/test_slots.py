"""Blocks and gates of the slots of networks against plain ones, torchvision and MONAI."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers, plain_slots
from benchmarks.paired import measure_forward, measure_step, only_in_full, train_step
from neurenix_ms.layers.blocks import ConvSpec
from neurenix_ms.layers.residual import ConvNeXtBlock, InvertedBlock, PreActivationBlock
from neurenix_ms.multiscale.named import (
    AttentionGate,
    Shuffled,
    Sum,
    Synthesis,
    TransposedNormAct,
)

WIDTH = 32


class Twice(nn.Module):
    """A skip with one tensor in both of its places."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x, x)


MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module]]] = {
    "preactivation": (
        lambda: PreActivationBlock(WIDTH, WIDTH, ConvSpec()),
        plain_slots.PreActivation,
    ),
    "convnext": (
        lambda: ConvNeXtBlock(WIDTH, WIDTH, ConvSpec(kernel_size=7)),
        plain_slots.ConvNeXt,
    ),
    "inverted": (lambda: InvertedBlock(WIDTH, WIDTH, ConvSpec()), plain_slots.Inverted),
    "sum": (lambda: Twice(Sum()), lambda width: Twice(plain_slots.Sum(width))),
    "shuffle": (lambda: Shuffled(WIDTH, WIDTH, (2, 2), ConvSpec()), plain_slots.Shuffle),
    "wavelet": (lambda: Synthesis(WIDTH, WIDTH, ConvSpec()), plain_slots.Synthesis),
    "transposed_norm": (
        lambda: TransposedNormAct(WIDTH, WIDTH, (2, 2), ConvSpec()),
        plain_slots.TransposedNormAct,
    ),
    "attention": (lambda: Twice(AttentionGate(WIDTH, WIDTH, ConvSpec())), plain_slots.Gate),
}
PEERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "preactivation": {},
    "sum": {},
    "shuffle": {"monai": partial(peers.monai_subpixel, WIDTH)},
    "wavelet": {},
    "transposed_norm": {"monai": partial(peers.monai_transposed, WIDTH)},
    "convnext": {"torchvision": partial(peers.torchvision_convnext, WIDTH)},
    "inverted": {"torchvision": partial(peers.torchvision_inverted, WIDTH)},
    "attention": {"monai": partial(peers.monai_gate, WIDTH)},
}
CASES = [(name, way) for name in MAKERS for way in ("plain", "ours", *PEERS[name])]


def with_values_of(ours: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain` with the values of `ours`; the kernels of 1x1 convolutions are matrices there."""
    values = ours.state_dict().values()
    pairs = zip(plain.state_dict().items(), values, strict=True)
    plain.load_state_dict({name: value.reshape(old.shape) for (name, old), value in pairs})
    return plain.train(ours.training)


def ways_of(block: str, variant: str) -> dict[str, Any]:
    make, plain = MAKERS[block]
    ours = make()
    ways: dict[str, Any] = {"plain": with_values_of(ours, plain(WIDTH)), "ours": ours}
    if variant in PEERS[block]:
        ways[variant] = PEERS[block][variant]()
    return ways


@pytest.mark.benchmark(group="unet/slots")
@pytest.mark.parametrize("size", [32, 128, 512])
@pytest.mark.parametrize(("block", "variant"), CASES)
def test_slots_forward(block, size, variant, measure, request):
    if size == 512:
        only_in_full(request)
    ways = {name: way.eval() for name, way in ways_of(block, variant).items()}
    x = torch.randn(2, WIDTH, size, size)
    measure_forward(measure, ways, variant, x, same=variant in ("plain", "ours"))


@pytest.mark.benchmark(group="unet/slots-train-step")
@pytest.mark.parametrize("size", [64])
@pytest.mark.parametrize(("block", "variant"), [case for case in CASES if case[0] != "sum"])
def test_slots_train_step(block, size, variant, measure):
    ways = ways_of(block, variant)
    x = torch.randn(2, WIDTH, size, size)
    steps = {name: partial(train_step, way, x) for name, way in ways.items()}
    measure_step(measure, steps, variant, x, model=ways[variant])
