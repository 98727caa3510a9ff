"""MS-Net on scanned rock: solved boxes of a volume as data, and the task that trains on them."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from neurenix_ms._core.checks import check_integer
from neurenix_ms.datasets import ScannedConduction, effective_conductivity, open_array
from neurenix_ms.datasets.planes import Planes
from neurenix_ms.fitting.loading import FitData
from neurenix_ms.fitting.tasks import Arguments, FitTask, optimizer_named
from neurenix_ms.recipes.demo.report import ArchieLaw, Conductances
from neurenix_ms.recipes.fitting import EveryGeometryOnce
from neurenix_ms.recipes.msnet.models import ConductionMSNet, network_inputs, potential_of
from neurenix_ms.recipes.msnet.training import (
    CONDUCTANCE_WEIGHT,
    FLUX_WEIGHT,
    NUM_MIRRORS,
    ConductionLoss,
    TurnedConduction,
)
from neurenix_ms.training import MultiScaleTask


class RockVolume(FitData):
    """Boxes of a segmented scan, with the conduction through their pores solved, for `Conduction`.

    The flow is along the first axis. Boxes of the last planes are held out. Every box is trained on in
    sixteen mirrored and transposed variants. The solved boxes are cached, and an interrupted run
    resumes.

    Args:
        path: The scan, in a format of `open_array`, with three axes.
        pore_values: Labels of the pores.
        key: Name of the array in a file with several arrays.
        reading: Further arguments of `open_array`: shape, dtype, offset.
        size: Size of the boxes in voxels, one number or one per axis, equal across the flow.
        num_samples: Boxes to train on.
        cache: Folder for the solved boxes.
        batch_size: Boxes of a batch.
        validation: Fraction of the planes from which held-out boxes are cut; their number is this
            fraction of `num_samples`.
        seed: Seed of the positions of the boxes and of their order.

    Raises:
        ValueError: If the file is not usable, or has too few planes.
        RuntimeError: If no box conducts.

    Examples:
        >>> data = RockVolume("scan.raw", [0, 3], reading={"shape": [99, 99, 99], "dtype": "uint8"})
        >>> data.pore_values  # the file is read when training begins
        [0, 3]
    """

    def __init__(
        self,
        path: str,
        pore_values: list[int] | None = None,
        *,
        key: str | int | None = None,
        reading: dict[str, Any] | None = None,
        size: int | list[int] = 32,
        num_samples: int = 60,
        cache: str = "data",
        batch_size: int = 4,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, 0, validation, seed)
        self.path = path
        self.pore_values = [1] if pore_values is None else pore_values
        self.key = key
        self.reading = dict(reading or {})
        self.size = size
        self.num_samples = check_integer("num_samples", num_samples, 1)
        self.cache = cache

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Solve the boxes that are missing in the cache; return those to train on and those held out."""
        volume = open_array(self.path, self.key, **self.reading)
        if volume.ndim != 3:
            raise ValueError(f"{self.path} must have three axes, got shape {volume.shape}")
        edges = [self.size] * 3 if isinstance(self.size, int) else self.size
        if len(edges) != 3 or edges[1] != edges[2]:
            raise ValueError(f"size must be a number or three, the last two equal, got {edges}")
        planes = volume.shape[0]
        kept = 0 if self.validation == 0 else max(edges[0], round(self.validation * planes))
        if planes - kept < edges[0]:
            raise ValueError(
                f"{self.path} must have {2 * edges[0]} planes, {edges[0]} of them to hold boxes out, "
                f"got {planes}; set --data.validation=0 or a smaller --data.size"
            )
        self.seen = self._boxes(Planes(volume, 0, planes - kept), self.num_samples)
        self.held_out: list[dict[str, Tensor]] = []
        if kept:
            count = max(1, round(self.validation * self.num_samples))
            self.held_out = self._boxes(Planes(volume, planes - kept, planes), count)
        held_out = TurnedConduction(self.held_out) if self.held_out else None
        return TurnedConduction(self.seen), held_out

    def _boxes(self, part: Planes, count: int) -> list[dict[str, Tensor]]:
        made = ScannedConduction(
            self.cache,
            part,
            count,
            self.size,
            self.pore_values,
            seed=self.seed,
            progress=self.progress,
        )
        return [made[i] for i in range(count)]

    def order(self) -> EveryGeometryOnce:
        """Return every box once per epoch, in an order and a variant given by seed and epoch."""
        return EveryGeometryOnce(len(self.seen), self.seed, NUM_MIRRORS)

    def val_dataloader(self) -> Any:
        """Return the boxes that are held out, as they are."""
        if self.sets[1] is None:
            return []
        return DataLoader(self.sets[1], self.batch_size, sampler=range(len(self.held_out)))


class Conduction(FitTask, MultiScaleTask):
    """Train an MS-Net to predict the potential in the pores of a rock, coarse to fine.

    It is the network of `python -m neurenix_ms.recipes.msnet`, with its loss. The report compares the
    effective conductivity of the boxes that were held out with Archie's law, fitted to those trained on.

    Args:
        num_scales: Number of scales.
        num_filters: Channels of the finest scale.
        filter_growth: Ratio of the channels of a scale to those of the next finer one.
        flux: Weight of the error of the flux.
        conductance: Weight of the error of the conductance.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.

    Raises:
        ValueError: If an argument is out of range, or the boxes cannot be halved so often.

    Shape:
        see `TurnedConduction` of the recipe

    Examples:
        >>> Conduction(num_scales=2, num_filters=2).network().num_features
        3
    """

    def __init__(
        self,
        num_scales: int = 3,
        num_filters: int = 4,
        filter_growth: int = 2,
        *,
        flux: float = FLUX_WEIGHT,
        conductance: float = CONDUCTANCE_WEIGHT,
        optimizer: str = "AdamW",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 4e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
    ) -> None:
        super().__init__(
            ConductionMSNet(num_filters, filter_growth, num_scales),
            ConductionLoss(flux, conductance),
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=learning_rate,
            schedule=schedule,
        )
        self.num_scales = num_scales

    def prepare(self, data: Any) -> None:
        """Raise unless the boxes can be halved as often as the network does."""
        factor = 2 ** (self.num_scales - 1)
        edges = data.sets[0][0][0].shape[1:]
        if any(n % factor for n in edges):
            raise ValueError(
                f"size must be multiples of {factor} for {self.num_scales} scales, got {tuple(edges)}"
            )

    def network(self) -> nn.Module:
        """Return the MS-Net, which takes what `network_inputs` of the recipe returns."""
        return cast(ConductionMSNet, self.model).msnet

    @torch.no_grad()
    def report(self, data: Any) -> list[str]:
        """Return the errors of the effective conductivity, of the network and of Archie's law."""
        if not data.held_out:
            return []
        porosity = torch.stack([one["pores"].mean() for one in data.seen])
        law = ArchieLaw.fit(porosity, torch.stack([one["D_rel"] for one in data.seen]))
        true = torch.stack([one["D_rel"] for one in data.held_out])
        model = self.model.cpu().eval()
        predicted = []
        for one in data.held_out:
            pores = one["pores"][None]
            deviation = model(network_inputs(pores, one["distance"][None]))[-1]
            predicted.append(effective_conductivity(potential_of(deviation, pores), pores)[0])
        ours = Conductances.of(torch.stack(predicted), true)
        archie = Conductances.of(
            law(torch.stack([one["pores"].mean() for one in data.held_out])), true
        )
        return [
            f"error of the effective conductivity of {len(true)} boxes held out, mean and median: "
            f"MS-Net {100 * ours.mean:.1f} % and {100 * ours.median:.1f} %, "
            f"Archie {law.scale:.2f} φ^{law.exponent:.2f} {100 * archie.mean:.1f} % and "
            f"{100 * archie.median:.1f} %"
        ]
