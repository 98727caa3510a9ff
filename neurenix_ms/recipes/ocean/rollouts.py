"""Samples of drifting density, and the scores of steps that are rolled out on them."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.conservation import Conserve, rollout
from neurenix_ms.datasets import DriftDensity
from neurenix_ms.recipes.ocean.scores import scores
from neurenix_ms.recipes.ocean.training import Maps, Sample

HELD_OUT_SEED = 1000  # added to that of the training samples
Step = Callable[[Tensor], Tensor]
Unseen = Mapping[str, tuple[Tensor, Tensor]]
Shown = dict[str, dict[str, Tensor]]


def samples_of(
    currents: Mapping[str, Any], count: int, seed: int, options: argparse.Namespace
) -> list[Sample]:
    """Return samples of one kind of currents, from the cache if they are there.

    Args:
        currents: Options of `DriftDensity` that make the kind.
        count: Number of samples.
        seed: Their seed.
        options: The command line.
    """
    made = DriftDensity(
        options.cache,
        count,
        options.size,
        options.steps,
        num_particles=options.particles,
        seed=seed,
        progress=not options.quiet,
        **currents,
    )
    return [made[i] for i in range(count)]


def stacked(samples: list[Sample], maps_of: Maps) -> tuple[Tensor, Tensor]:
    """Stack densities `(B, T + 1, N, N)` and fields `(B, T, F, N, N)` of samples."""
    density, fields = zip(*map(maps_of, samples), strict=True)
    return torch.stack(density), torch.stack(fields)


@torch.no_grad()
def scored(
    step: Step, unseen: Unseen, shown: Shown, name: str, conserve: Conserve = None
) -> dict[str, Any]:
    """Return the scores of a step on all kinds; store the first sample's prediction in `shown`."""
    run: dict[str, Any] = {}
    for kind, (density, fields) in unseen.items():
        predicted = rollout(step, density[:, :1], fields, fields.shape[1], conserve)
        run[kind] = scores(predicted, density[:, 1:])
        if kind in shown:
            shown[kind][name] = predicted[0]
    return run
