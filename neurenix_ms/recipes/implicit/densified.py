"""Compare dense, pruned, densified and small implicit fields of equal training."""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms.datasets import kuramoto_sivashinsky, travelling_wave
from neurenix_ms.implicit import MultiScaleNIF, Normalizer, compact, densify, prune_nodes
from neurenix_ms.implicit.pruning import prunable
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.implicit.cases import END_TIME, LENGTH, SPREAD, rows_of
from neurenix_ms.recipes.implicit.training import train

Result = dict[str, Any]
Data = tuple[Tensor, Tensor, Tensor]
LEFT = 0.4  # parameters of the small models, by those of the dense one


@dataclass(frozen=True)
class Case:
    """Field to fit, and the training of its models.

    Args:
        title: Name in tables.
        data: Function from the folder of the data to parameters, mesh and values.
        make: Function from the width of the ShapeNet to a model.
        width: Width of the dense model.
        fewer: Nodes per layer by which a model is pruned more before it is densified.
        steps: Steps of Adam of every model, in all of its stages together; a multiple of 400.
        iterations: Iterations of L-BFGS, likewise; a multiple of 200.
        batch_size: Rows per step.
        spread: Factor of the coordinates, after they are scaled to -1 .. 1.
    """

    title: str
    data: Callable[[Path], Data]
    make: Callable[[int], MultiScaleNIF]
    width: int
    fewer: int
    steps: int
    iterations: int
    batch_size: int
    spread: float = 1.0


def wave_data(folder: Path) -> Data:
    """Return the traveling wave in double precision."""
    wave = travelling_wave()
    return wave["t"][:, None], wave["x"][:, None], wave["u"][..., None]


def waves_data(folder: Path) -> Data:
    """Return Kuramoto-Sivashinsky waves of twenty values of nu."""
    values = torch.linspace(0.2, 0.28, 20).tolist()
    return rows_of(
        kuramoto_sivashinsky(
            values, num_points=64, num_times=41, end_time=END_TIME, length=LENGTH, root=folder
        )
    )


def wave_model(width: int) -> MultiScaleNIF:
    """Return a network of the traveling wave."""
    return MultiScaleNIF(1, 1, shape_width=width, omega_0=4.0)


def waves_model(width: int) -> MultiScaleNIF:
    """Return a network of the Kuramoto-Sivashinsky waves."""
    return MultiScaleNIF(
        2,
        1,
        shape_width=width,
        shape_depth=3,
        parameter_width=32,
        latent_dim=4,
        omega_0=15.0,
    )


DENSIFIED = {
    "wave": Case("traveling wave", wave_data, wave_model, 48, 4, 800, 0, 10, SPREAD),
    "waves": Case("Kuramoto-Sivashinsky", waves_data, waves_model, 32, 2, 800, 0, 64),
}


class Stages:
    """Training of a model in stages, each with an equal fraction of all steps.

    Args:
        case: The case.
        options: Folders.
        seed: Seed of the order of the rows.
    """

    def __init__(self, case: Case, options: Namespace, seed: int) -> None:
        self.case, self.seed = case, seed
        self.data = case.data(options.data)
        self.folder = options.runs / "densified" / case.title.replace(" ", "_") / str(seed)

    def train(self, model: Normalizer, name: str, fraction: float) -> float:
        """Train a model by a fraction of the steps, and return its error."""
        print(f"{self.case.title}, seed {self.seed}, {name}")
        return train(
            model,
            *self.data,
            self.folder / name,
            steps=_rounded(self.case.steps * fraction, 100),
            batch_size=self.case.batch_size,
            iterations=_rounded(self.case.iterations * fraction, 50),
            seed=self.seed,
        )[0]

    def made(self, width: int) -> Normalizer:
        """Return an untrained model."""
        torch.manual_seed(self.seed)
        p, x, u = self.data
        model = Normalizer(self.case.make(width)).to(u.dtype).fit(p, x, u)
        model.get_buffer("x_scale").div_(self.case.spread)
        return model

    def pruned(self, model: Normalizer, width: int) -> Normalizer:
        """Return a copy of a model with fewer nodes in every layer."""
        smaller = compact(model)
        nodes = prunable(smaller).shape.nodes
        sparsity = 1 - len(nodes) * width / sum(map(len, nodes))
        prune_nodes(smaller, sparsity, self.data[0], scope="layer")
        return compact(smaller)


def densified(options: Namespace) -> Result:
    """Train all models of both fields for every seed; results are kept per field and seed."""
    result: Result = {}
    for name, case in DENSIFIED.items():
        for seed in options.seeds:
            stages = Stages(case, options, seed)
            result.setdefault(name, []).append(_run(stages))
    return result


def _run(stages: Stages) -> Result:
    case = stages.case
    start = time.process_time()
    errors: dict[str, Result] = {}

    def keep(name: str, model: Normalizer, error: float) -> None:
        widths = list(map(len, prunable(model).shape.nodes))
        errors[name] = {"parameters": size(model), "error": error, "widths": widths}

    dense = stages.made(case.width)
    keep("dense", dense, stages.train(dense, "dense", 1))
    most = LEFT * size(dense)
    width = max(w for w in range(2, case.width) if size(stages.made(w)) <= most)
    small = stages.made(width)
    keep("small", small, stages.train(small, "small", 1))
    first = stages.made(case.width)
    stages.train(first, "half", 0.5)
    pruned = stages.pruned(first, width)
    keep("pruned", pruned, stages.train(pruned, "pruned", 0.5))
    narrow = stages.pruned(first, width - case.fewer)
    stages.train(narrow, "narrow", 0.25)
    wide = _filled(narrow, stages.data[0], most)
    keep("densified", wide, stages.train(wide, "densified", 0.25))
    seconds = round(time.process_time() - start)
    return {"models": errors, "seed": stages.seed, "seconds": seconds}


def _filled(model: Normalizer, parameters: Tensor, most: float) -> Normalizer:
    """Return the model with as many new input frequencies as a number of parameters allows."""
    best, count = model, 1
    while size(wide := densify(model, count, parameters)) <= most:
        best, count = wide, count + 1
    return best


def size(model: Normalizer) -> int:
    """Return the number of parameters."""
    return int(parameter_table(model)[-1][1])


def _rounded(value: float, unit: int) -> int:
    return unit * round(value / unit)
