"""Errors of the conductance of unseen media: of a network, of fitted laws, and of solver steps."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.datasets import effective_conductivity
from neurenix_ms.datasets.porous import solved
from neurenix_ms.meter import count_flops, parameter_table, peak_resident_bytes
from neurenix_ms.recipes.demo.models import linear_field
from neurenix_ms.recipes.demo.report import ArchieLaw
from neurenix_ms.recipes.msnet.data import Samples, SampleSet
from neurenix_ms.recipes.msnet.models import (
    ConductionMSNet,
    levelled,
    network_inputs,
    potential_of,
)
from neurenix_ms.recipes.msnet.refinement import energy_conductivity, refined

BRUGGEMAN = ArchieLaw(1.0, 1.5)
TOLERANCE = 1e-3  # of the solver, as for the samples
MAX_ITERATIONS = 10_000


class Laws:
    """Archie's law, fitted to the samples of the training in several ways.

    Args:
        seen: Samples to train on, a list for every size.
        num_kinds: Number of kinds of media, which alternate in each list.
    """

    def __init__(self, seen: Sequence[Samples], num_kinds: int) -> None:
        self.by_size = [fitted(samples) for samples in seen]
        self.by_kind = [
            [fitted(samples[kind::num_kinds]) for kind in range(num_kinds)]
            if len(samples) >= 2 * num_kinds
            else []
            for samples in seen
        ]
        self.sizes = [samples[0]["pores"].shape[-1] for samples in seen]

    def errors(self, unseen: SampleSet) -> dict[str, list[float]]:
        """Return the relative error of every law for every sample."""
        laws: dict[str, Sequence[ArchieLaw]] = {
            _name(size): [law] for size, law in zip(self.sizes, self.by_size, strict=True)
        }
        by_kind = self.by_kind[self._nearest(unseen)]
        if unseen.of_seen_kinds and len(by_kind) > 1:
            laws["Archie, a fit for each medium"] = by_kind
        laws["Bruggeman"] = [BRUGGEMAN]
        return {
            name: [
                _off(float(law[i % len(law)](one["pores"].mean())), one)
                for i, one in enumerate(unseen.samples)
            ]
            for name, law in laws.items()
        }

    def same(self, unseen: SampleSet) -> str:
        """Return the name of the law fitted at the size of samples, or at the next smaller one."""
        return _name(self.sizes[self._nearest(unseen)])

    def _nearest(self, unseen: SampleSet) -> int:
        return max(i for i, size in enumerate(self.sizes) if size <= unseen.size)

    def noted(self) -> dict[str, Any]:
        """Return the coefficients."""
        return {
            "sizes": self.sizes,
            "by_size": [[law.scale, law.exponent] for law in self.by_size],
            "by_kind": [[[law.scale, law.exponent] for law in laws] for laws in self.by_kind],
        }


def _name(size: int) -> str:
    return f"Archie, fitted at {size}\u00b3"


def fitted(samples: Samples) -> ArchieLaw:
    """Return Archie's law, both of its coefficients fitted to samples."""
    porosity = torch.stack([one["pores"].mean() for one in samples])
    return ArchieLaw.fit(porosity, torch.stack([one["D_rel"] for one in samples]))


def predict(
    model: ConductionMSNet, sample: dict[str, Tensor], tile_size: int | None = None
) -> Tensor:
    """Return the predicted potential `(1, 1, *S)` of a sample.

    Args:
        model: The network.
        sample: Item of `PorousConduction`.
        tile_size: Size of a tile in voxels; None: all at once.
    """
    pores, distance = sample["pores"][None], sample["distance"][None]
    inputs = network_inputs(pores, distance)
    potential = potential_of(model.msnet.predict(inputs, tile_size), pores)
    return levelled(potential, pores) if model.level else potential


def scored_start(
    start_of: Callable[[dict[str, Tensor]], Tensor], samples: Samples, num_steps: Sequence[int]
) -> dict[str, Any]:
    """Return the errors of potentials, and of those after some steps of conjugate gradients.

    Args:
        start_of: Returns the approximate potential of a sample.
        samples: Unseen samples of one size.
        num_steps: Numbers of steps, in increasing order.

    Returns:
        Relative errors of the conductance of every sample after every number of steps, by the mean flux
        and by the energy; R² of the potential and of its deviation from the linear field before them.
    """
    flux: dict[str, list[float]] = {str(steps): [] for steps in num_steps}
    energy: dict[str, list[float]] = {str(steps): [] for steps in num_steps}
    fields, deviations = _Variance(), _Variance()
    for one in samples:
        pores, truth = one["pores"][None], one["potential"][None]
        start = start_of(one)
        for steps, potential in zip(num_steps, refined(start, pores, num_steps), strict=True):
            flux[str(steps)].append(_off(float(effective_conductivity(potential, pores)), one))
            energy[str(steps)].append(_off(float(energy_conductivity(potential, pores)), one))
        linear = linear_field(tuple(pores.shape[2:]))
        fields.add(start, truth, pores)
        deviations.add(start - linear, truth - linear, pores)
    scores = {"flux": flux, "energy": energy}
    return scores | {"r2": fields.explained(), "r2_deviation": deviations.explained()}


def add_fitted(
    scores: dict[str, Any], unseen: dict[str, SampleSet], seen: dict[str, SampleSet]
) -> None:
    """Add the errors after a correction `D = scale * predicted**exponent`, fitted as Archie's law.

    Both numbers are fitted to samples of the training, of the same size or of the next smaller one.

    Args:
        scores: Scores of all sets by name, to which "fitted" is added for the unseen ones.
        unseen: Samples to test with.
        seen: Samples of the training.
    """
    for name, one in unseen.items():
        source = max(
            (other for other in seen if seen[other].size <= one.size),
            key=lambda other: seen[other].size,
        )
        known = torch.tensor([float(sample["D_rel"]) for sample in seen[source].samples])
        true = torch.tensor([float(sample["D_rel"]) for sample in one.samples])
        fitted: dict[str, dict[str, list[float]]] = {"flux": {}, "energy": {}}
        for kind, by_steps in fitted.items():
            for steps, errors in scores[name][kind].items():
                law = ArchieLaw.fit(_positive(scores[source][kind][steps], known), known)
                predicted = law(_positive(errors, true))
                by_steps[steps] = [round(float(x), 5) for x in predicted / true - 1]
        scores[name]["fitted"] = fitted


def _positive(errors: list[float], true: Tensor) -> Tensor:
    """Return the predicted conductances, positive so that they have a logarithm."""
    return ((1 + torch.tensor(errors)) * true).clamp(min=1e-6)


def linear_start(sample: dict[str, Tensor]) -> Tensor:
    """Return the linear field with equal flux through all layers, from which plain steps start."""
    pores = sample["pores"][None]
    return levelled(linear_field(tuple(pores.shape[2:])).expand_as(pores), pores)


def costs(model: ConductionMSNet, samples: Samples, tile_size: int) -> dict[str, Any]:
    """Measure the CPU time and memory of predictions, of steps and of the solver, for one sample each.

    Args:
        model: The network.
        samples: Samples of different sizes, the largest last.
        tile_size: Size of a tile in voxels, for boxes that are larger.

    Returns:
        The number of parameters; FLOPs of the smallest size; for every size the seconds of the
        prediction of the whole box and in tiles, of ten steps of conjugate gradients, and of the solver,
        the peak bytes of both predictions, and their largest difference, relative to the drop of the
        potential.
    """
    smallest = torch.zeros(1, 3, *samples[0]["pores"].shape[1:])
    result: dict[str, Any] = {
        "parameters": parameter_table(model)[-1][1],
        "flops": count_flops(lambda: model(smallest)),
        "tile": tile_size,
        "sizes": {},
    }
    peaks = []
    for one in samples:
        pores = one["pores"][None]
        whole, in_tiles = (partial(predict, model, one, tile) for tile in (None, tile_size))
        calls: dict[str, Callable[[], Any]] = {
            "whole": whole,
            "ten_steps": partial(refined, linear_start(one), pores, [10]),
            "solver": partial(solved, pores[0, 0].numpy() > 0, TOLERANCE, MAX_ITERATIONS),
        }
        size = pores.shape[-1]
        peaks.append((size, "whole_bytes", whole))
        known = result["sizes"][str(size)] = {name: _seconds(call) for name, call in calls.items()}
        if size > tile_size:
            known["difference"] = float((whole() - in_tiles()).abs().max())
            known["tiles"] = _seconds(in_tiles)  # the plan is made before
            peaks.append((size, "tiles_bytes", in_tiles))
    for size, name, call in peaks:  # last, since it slows down allocations
        result["sizes"][str(size)][name] = peak_resident_bytes(call)
    return result


def _seconds(call: Callable[[], Any]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def _off(predicted: float, sample: dict[str, Tensor]) -> float:
    """Return the relative error of a conductance, with its sign."""
    return round(predicted / float(sample["D_rel"]) - 1, 5)


class _Variance:
    """Ratio of explained variance over the pores of all samples."""

    def __init__(self) -> None:
        self.wrong = self.count = self.sum = self.squares = 0.0

    def add(self, predicted: Tensor, true: Tensor, pores: Tensor) -> None:
        inside = pores > 0
        values = true[inside].double()
        self.wrong += float((predicted[inside].double() - values).square().sum())
        self.count += len(values)
        self.sum += float(values.sum())
        self.squares += float(values.square().sum())

    def explained(self) -> float:
        spread = self.squares - self.sum**2 / self.count
        return round(1 - self.wrong / spread, 5)
