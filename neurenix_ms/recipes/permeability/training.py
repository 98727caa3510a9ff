"""Train an MSNet on the flow through periodic boxes, with resumption."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms.recipes.fitting import EveryGeometryOnce, fit
from neurenix_ms.recipes.permeability.data import Sample
from neurenix_ms.recipes.permeability.models import FlowMSNet, surface
from neurenix_ms.recipes.permeability.stokes import NUM_AXES
from neurenix_ms.training import MultiScaleLoss, MultiScaleTask

BATCH_SIZE = 2
LEARNING_RATE = 4e-3
GRADIENT_CLIP = 1.0
PERMEABILITY_WEIGHT = 0.5
NUM_MIRRORS = 16


class TurnedFlow(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of boxes with the flow along each axis, in sixteen variants, mirrored and transposed.

    The velocity along the flow is the same if a medium is mirrored along any axis.

    Args:
        samples: Boxes with equal sizes along all axes.
        constant: That of Kozeny and Carman, by which velocities are divided.

    Shape:
        An item is the input `(2, *S)` and the target `(2, *S)`: velocity and pore mask. The first items
        are those of all boxes with the flow along axis 0, then along axes 1 and 2, then mirrored.
    """

    def __init__(self, samples: Sequence[Sample], constant: float) -> None:
        self.samples = samples
        self.units = [float(constant * ratio) for ratio in hydraulic(samples)]
        self.radii = [float(radius) for radius in hydraulic_radii(samples)]

    @property
    def num_geometries(self) -> int:
        """Number of items before mirroring."""
        return NUM_AXES * len(self.samples)

    def __len__(self) -> int:
        return NUM_MIRRORS * self.num_geometries

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        way, which = divmod(index, self.num_geometries)
        axis, box = divmod(which, len(self.samples))
        one = self.samples[box]
        turned, mirrors = divmod(way, 8)
        axes = [i for i in range(NUM_AXES) if mirrors >> i & 1]
        fields = one["pores"], one["distance"] / self.radii[box], one["velocity"][axis]
        pores, distance, velocity = (x.movedim(axis, 0).flip(axes) for x in fields)
        if turned:
            pores, distance, velocity = (x.transpose(1, 2) for x in (pores, distance, velocity))
        return torch.stack([pores, distance]), torch.stack([velocity / self.units[box], pores])


def hydraulic_radii(samples: Sequence[Sample]) -> Tensor:
    """Return the volume of the pores divided by their surface, in voxels."""
    pores = torch.stack([one["pores"] for one in samples])
    return pores.flatten(1).mean(1) / surface(pores)


def hydraulic(samples: Sequence[Sample]) -> Tensor:
    """Return porosity times squared hydraulic radius, a constant times which is Kozeny-Carman's law."""
    porosity = torch.stack([one["pores"].mean() for one in samples])
    return porosity * hydraulic_radii(samples).square()


class FlowLoss(nn.Module):
    """Sum of the errors of the velocity at all scales and of the relative error of the permeability.

    The first is `MultiScaleLoss` over the pores, the loss of the published network.

    Shape:
        list of velocities, coarsest first, and velocity and pore mask `(B, 2, *S)` -> `()`
    """

    def __init__(self) -> None:
        super().__init__()
        self.field = MultiScaleLoss()

    def forward(self, velocities: Sequence[Tensor], target: Tensor) -> Tensor:
        velocity, pores = target[:, :1], target[:, 1:]
        truth = velocity.flatten(1).mean(1)
        off = (velocities[-1].flatten(1).mean(1) - truth).abs() / truth
        loss: Tensor = self.field(velocities, velocity, pores)
        return loss + PERMEABILITY_WEIGHT * off.mean()


def train(
    model: FlowMSNet,
    data: TurnedFlow,
    epochs: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Train `model` in place, or resume from `folder/last.ckpt` if it exists.

    Args:
        model: The network.
        data: Boxes to train on.
        epochs: Passes over all boxes with the flow along each axis.
        folder: Folder in which `last.ckpt` is written after every epoch.
        seed: Seed of the order.
        progress: Show a progress bar.

    Returns:
        Wall time and CPU time in seconds.
    """
    sampler = EveryGeometryOnce(data.num_geometries, seed, NUM_MIRRORS)
    loader = DataLoader(data, BATCH_SIZE, sampler=sampler)
    task = MultiScaleTask(model, FlowLoss(), learning_rate=LEARNING_RATE, schedule="one_cycle")
    return fit(task, loader, epochs, folder, progress=progress, gradient_clip=GRADIENT_CLIP)
