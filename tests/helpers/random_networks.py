"""Random networks of layers that shift, downsample, upsample and normalize feature maps."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms._core.dims import CONVOLUTIONS, POOLS, TRANSPOSED_CONVOLUTIONS

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Padded(nn.Module):
    """A convolution after padding that differs from side to side."""

    def __init__(self, conv: nn.Module, pads: list[int]) -> None:
        super().__init__()
        self.conv = conv
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


class Hourglass(nn.Module):
    """Down, a network inside, up, cropped or padded to the size of the skip, joined with it."""

    def __init__(self, down: nn.Module, inside: nn.Module, up: nn.Module, dims: int) -> None:
        super().__init__()
        self.down = down
        self.inside = inside
        self.up = up
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.inside(self.down(x)))
        pads: list[int] = []
        for axis in range(self.dims):
            pads = [0, x.shape[2 + axis] - y.shape[2 + axis], *pads]
        return torch.cat([x, F.pad(y, pads)], 1)


class Several(nn.Module):
    """A network with an early and a late output."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.first(x)
        return {"early": y, "late": self.second(y)}


def random_network(seed: int, dims: int, norms: bool = True, several: bool = True) -> nn.Module:
    """A network with one channel in; the same for the same seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    body, channels = _layers(draw, 1, dims, norms, depth=0)
    model: nn.Module = body
    if several and draw.random() < 0.3:
        tail, _ = _layers(draw, channels, dims, norms, depth=1)
        model = Several(body, tail)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model


def _layers(
    draw: random.Random, channels: int, dims: int, norms: bool, depth: int, strided: bool = True
) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for _ in range(draw.randint(2, 3 if depth else 4)):
        kind = draw.choice(["conv", "conv", "padded", "pool", "act", "norm", "glass"])
        if kind == "conv":
            width, kernel = draw.randint(1, 3), draw.randint(1, 4)
            layers.append(
                CONVOLUTIONS[dims](
                    channels,
                    width,
                    kernel,
                    stride=draw.choice([1, 1, 1, 2, 3]) if strided else 1,
                    padding=draw.randint(0, kernel // 2 + 1),
                    dilation=draw.choice([1, 1, 2, 3]),
                )
            )
            channels = width
        elif kind == "padded":
            kernel = draw.randint(1, 5)
            pads = [draw.randint(0, kernel) for _ in range(2 * dims)]
            layers.append(Padded(CONVOLUTIONS[dims](channels, 2, kernel), pads))
            channels = 2
        elif kind == "pool":
            pool = POOLS[draw.choice(["max", "avg"])][dims]
            kernel = draw.randint(2, 3)
            step = draw.randint(1, 3) if strided else 1
            layers.append(pool(kernel, step, ceil_mode=draw.random() < 0.3))
        elif kind == "act":
            layers.append(draw.choice([nn.ReLU(inplace=True), nn.CELU(inplace=True), nn.Sigmoid()]))
        elif kind == "norm" and norms:
            layers.append(_norm(draw, channels, dims))
        elif kind == "glass" and depth < 2:
            # strides that the decoder does not invert make the concatenation depend on the position
            inside, width = _layers(draw, channels, dims, norms, depth + 1, draw.random() < 0.1)
            pool = POOLS[draw.choice(["max", "avg"])][dims](2)
            up: nn.Module = nn.Upsample(scale_factor=2, mode=draw.choice(["nearest", LINEAR[dims]]))
            if draw.random() < 0.4:
                up = TRANSPOSED_CONVOLUTIONS[dims](
                    width, width, draw.randint(2, 4), stride=2, padding=draw.randint(0, 1)
                )
            layers.append(Hourglass(pool, inside, up, dims))
            channels += width
    return nn.Sequential(*layers), channels


def _norm(draw: random.Random, channels: int, dims: int) -> nn.Module:
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
    return draw.choice(
        [
            batch(channels),
            batch(channels, momentum=None),
            instance(channels, affine=True),
            instance(channels, track_running_stats=True),
            nn.GroupNorm(1, channels),
        ]
    )
