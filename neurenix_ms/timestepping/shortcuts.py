"""Linear shortcuts of steppers, fitted by least squares before the other layers are trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from neurenix_ms.layers.mlp import MLP
from neurenix_ms.timestepping.banks import Bank
from neurenix_ms.timestepping.windows import Windows, nonzero

MOST_ROWS = 4096  # pairs of states that a fit uses
NUM_BLOCKS = 5  # of the cross-validation
RIDGES = [10.0**i for i in range(-14, 3, 2)]  # relative to the largest squared singular value


@dataclass(frozen=True)
class Shortcuts:
    """Affine maps from standardized states to scaled changes, and the scale of what they leave.

    Args:
        weight: One matrix per stride, `(K, D, D)`, multiplied from the right.
        bias: Constant changes, `(K, 1, D)`.
        rest: Standard deviation of the changes that the maps do not predict, `(K, 1, D)`.
    """

    weight: Tensor
    bias: Tensor
    rest: Tensor


class BankWithShortcuts(nn.Module):
    """Bank whose networks are trained on what fixed linear maps leave.

    Shape:
        `(K, B, D)` -> the same
    """

    def __init__(self, bank: Bank, shortcuts: Shortcuts) -> None:
        super().__init__()
        self.bank = bank
        self.shortcuts = shortcuts

    def forward(self, x: Tensor) -> Tensor:
        linear = torch.baddbmm(self.shortcuts.bias, x, self.shortcuts.weight)
        return torch.addcmul(linear, self.shortcuts.rest, self.bank(x))

    def tensors(self, k: int) -> list[Tensor]:
        """Return the trained tensors of network k, to copy from and into."""
        return self.bank.tensors(k)

    @torch.no_grad()
    def unpacked(self) -> list[nn.Module]:
        """Return the networks with the current weights and their shortcuts, once after training."""
        networks = self.bank.unpacked()
        for k, network in enumerate(cast(list[MLP], networks)):
            rest = self.shortcuts.rest[k, 0]
            last = cast(nn.Linear, network.layers[-1])
            last.weight.mul_(rest[:, None])
            last.bias.mul_(rest).add_(self.shortcuts.bias[k, 0])
            network.linear.requires_grad_(True).weight.copy_(self.shortcuts.weight[k].T)
        return networks


@torch.no_grad()
def prepared(networks: Sequence[nn.Module], trajectories: Tensor) -> bool:
    """Return whether the networks are MLPs with a shortcut, and set the outputs of these to 0."""
    have = [isinstance(network, MLP) and network.shortcut for network in networks]
    if any(have) and not all(have):
        raise ValueError(
            f"all networks or none must be an MLP with a shortcut, got {sum(have)} of {len(have)}"
        )
    if not any(have):
        return False
    if trajectories.ndim != 3:
        raise ValueError(
            f"shortcuts are for vectors, trajectories (N, T, D), got {tuple(trajectories.shape)}"
        )
    for network in cast(list[MLP], list(networks)):
        network.linear.requires_grad_(False).weight.zero_()
        last = cast(nn.Linear, network.layers[-1])
        last.weight.zero_()
        last.bias.zero_()
    return True


def fitted_shortcuts(
    trajectories: Tensor,
    step_sizes: Sequence[int],
    windows: Windows,
    mean: Tensor,
    std: Tensor,
    scale: Tensor,
) -> Shortcuts:
    """Fit an affine map per stride by ridge regression in double precision.

    The penalty is chosen by cross-validation on blocks of successive pairs of states.

    Args:
        trajectories: `(N, T, D)`.
        step_sizes: The strides.
        windows: "all" for pairs of states anywhere, "start" for those from row 0 only.
        mean: Means of the features, `(D,)`.
        std: Standard deviations of the features, `(D,)`.
        scale: Standard deviations of the changes over every stride, `(K, D)`.
    """
    maps = []
    for stride, unit in zip(step_sizes, scale.double(), strict=True):
        num_starts = trajectories.shape[1] - stride if windows == "all" else 1
        first, last = (
            trajectories[:, offset : offset + num_starts].flatten(0, 1) for offset in (0, stride)
        )
        every = -(-len(first) // MOST_ROWS)
        first, last = first[::every].double(), last[::every].double()
        maps.append(_fitted((first - mean.double()) / std.double(), (last - first) / unit))
    weight, bias, rest = (torch.stack(parts).to(trajectories) for parts in zip(*maps, strict=True))
    return Shortcuts(weight, bias, rest)


def _fitted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, bias and the deviation of the residuals of the map from `x` to `y`."""
    errors = torch.zeros(len(RIDGES), dtype=x.dtype, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for block in rows.chunk(NUM_BLOCKS) if len(x) >= 2 * NUM_BLOCKS else ():
        kept = torch.ones_like(rows, dtype=torch.bool)
        kept[block] = False
        weights, biases = _ridge(x[kept], y[kept])
        errors += (x[block] @ weights + biases - y[block]).square().sum(dim=(1, 2))
    weights, biases = _ridge(x, y)
    best = int(errors.argmin()) if errors.any() else len(RIDGES) - 1
    weight, bias = weights[best], biases[best]
    rest = nonzero((x @ weight + bias - y).square().mean(dim=0).sqrt())
    return weight, bias, rest[None]


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps of all penalties, `(R, D, D)` and `(R, 1, D)`."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    u, s, vh = torch.linalg.svd(x - x_mean, full_matrices=False)
    penalty = torch.tensor(RIDGES).to(s)[:, None] * s.max().square()
    gain = torch.where(s > 0, s / (s.square() + penalty), 0.0)  # (R, rank)
    weights = vh.T @ (gain[..., None] * (u.T @ (y - y_mean)))
    return weights, (y_mean - x_mean @ weights).unsqueeze(1)
