"""The experiments with implicit fields, each of which returns plain numbers."""

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurenix_ms.datasets import kuramoto_sivashinsky, travelling_wave
from neurenix_ms.files import save
from neurenix_ms.implicit import (
    MultiScaleNIF,
    Normalizer,
    PruningSchedule,
    compact,
    prune_nodes,
)
from neurenix_ms.implicit.pruning import prunable
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.implicit.compression import rounded
from neurenix_ms.recipes.implicit.training import ITERATIONS_PER_EPOCH, relative_error, train

Result = dict[str, Any]
WAYS: dict[str, tuple[Literal["l2", "contribution"], Literal["global", "layer"]]] = {
    "l2": ("l2", "global"),
    "contribution": ("contribution", "global"),
    "l2 by layer": ("l2", "layer"),
}
SHARES = PruningSchedule(0.5, 0.9, 5)
LENGTH, END_TIME = 8 * torch.pi, 8.0  # of the Kuramoto-Sivashinsky waves
SPREAD = 3.75  # coordinates from -3.75 to 3.75: the packet is narrow, and omega_0 is small


def wave(options: Namespace) -> Result:
    """Train on the traveling wave, then prune, compact and retrain in rounds, in three ways.

    The compact model is retrained, because it is the same function as the masked one at a lower cost.
    It gets more iterations the fewer nodes are left, as each costs less.
    """
    data = travelling_wave()
    t, x, u = data["t"][:, None], data["x"][:, None], data["u"][..., None]
    settings: Result = {"learning_rate": 5e-3, "seed": options.seed}
    steps = options.steps or 500
    torch.manual_seed(options.seed)
    dense = Normalizer(wave_field()).double().fit(t, x, u)
    dense.get_buffer("x_scale").div_(SPREAD)
    folder = options.runs / "wave"
    print("traveling wave, dense")
    error, _ = train(
        dense,
        t,
        x,
        u,
        folder / "dense",
        steps=3 * steps,
        iterations=options.iterations,
        **settings,
    )
    nodes = prunable(dense).shape.nodes
    result: Result = {"rounds": {}}
    best = (-1.0, 0.0)
    for way, (criterion, scope) in WAYS.items():
        small = dense
        widths = list(map(len, nodes))
        rounds: list[Result] = [
            {"sparsity": 0.0, "before": error, "error": error, "widths": widths}
        ]
        kept = [dense]
        for share in SHARES:
            left = len(nodes) * int((1 - share) * len(nodes[0]) + 1e-9)  # the same in all ways
            small = compact(small)  # a copy, so that the kept models are not modified
            prune_nodes(small, 1 - left / sum(widths), t, criterion, scope)
            small = compact(small)
            widths = list(map(len, prunable(small).shape.nodes))
            before = relative_error(small, t, x, u)
            name = f"{way.replace(' ', '_')}_{100 * share:.0f}"
            print(f"traveling wave, {name}: {widths}")
            more = ITERATIONS_PER_EPOCH * round(
                options.iterations / (1 - share) / ITERATIONS_PER_EPOCH
            )
            last, _ = train(small, t, x, u, folder / name, steps=steps, iterations=more, **settings)
            rounds.append({"sparsity": share, "before": before, "error": last, "widths": widths})
            kept.append(small)
        result["rounds"][way] = rounds
        at = max(i for i in range(len(rounds)) if i < 2 or rounds[i]["error"] <= 2 * error)
        if (rounds[at]["sparsity"], -rounds[at]["error"]) > best:
            best = rounds[at]["sparsity"], -rounds[at]["error"]
            result["costs"] = [_costs(one, dense, t) for one in kept]
            result["fields"] = _shown(dense, kept[at], data, rounds[at])
    return result


def wave_field() -> MultiScaleNIF:
    """Return the network of the traveling wave, with initial weights of similar size in all layers."""
    return MultiScaleNIF(1, 1, shape_width=128, omega_0=4.0)


@torch.no_grad()
def _costs(model: Normalizer, dense: Normalizer, t: Tensor) -> Result:
    """Return parameters, size of the file in bytes, and speed relative to the dense model."""
    x = torch.linspace(0, 1, 1000, dtype=t.dtype)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nx"
        save(model, path)
        size = path.stat().st_size
    speed = _faster(lambda: dense.forward_grid(t, x), lambda: model.forward_grid(t, x))
    return {"parameters": parameter_table(model)[-1][1], "bytes": size, "speed": speed}


def _faster(slow: Callable[[], object], fast: Callable[[], object], pairs: int = 21) -> float:
    """Return the ratio of the CPU times of two calls, the median of pairs."""
    ratios = []
    for _ in range(pairs + 2):
        start = time.process_time()
        slow()
        middle = time.process_time()
        fast()
        ratios.append((middle - start) / max(time.process_time() - middle, 1e-9))
    return statistics.median(ratios[2:])


@torch.no_grad()
def _shown(dense: Normalizer, small: Normalizer, data: dict[str, Tensor], one: Result) -> Result:
    rows = [0, 4, 9]
    t, x = data["t"][rows][:, None], data["x"][:, None]
    return {
        "t": data["t"][rows].tolist(),
        "x": data["x"].tolist(),
        "true": data["u"][rows].tolist(),
        **{
            name: [model.at(time)(x)[:, 0].tolist() for time in t]
            for name, model in (("dense", dense), ("compact", small))
        },
        **{key: one[key] for key in ("sparsity", "error")},
    }


def waves(options: Namespace) -> Result:
    """Compare a NIF and an MLP of its size on Kuramoto-Sivashinsky waves, seen and unseen."""
    ring: Result = {"num_points": 64, "num_times": 41, "end_time": END_TIME, "length": LENGTH}
    seen_nu = torch.linspace(0.2, 0.28, 20).tolist()
    unseen_nu = [(a + b) / 2 for a, b in pairwise(seen_nu)]
    seen, unseen = (
        kuramoto_sivashinsky(nu, **ring, root=options.data) for nu in (seen_nu, unseen_nu)
    )
    p, x, u = rows_of(seen)
    q, _, v = rows_of(unseen)
    torch.manual_seed(options.seed)
    nif = MultiScaleNIF(
        2, 1, shape_width=32, shape_depth=3, parameter_width=32, latent_dim=4, omega_0=15.0
    )
    count = parameter_table(nif)[-1][1]
    width = next(w for w in range(200, 1, -1) if 2 * w * w + 7 * w + 1 <= count)
    models: dict[str, nn.Module] = {"NIF": nif, "MLP": Pointwise([width] * 3)}
    result: Result = {"models": {}, "fields": {}}
    row = slice(9 * 41, 10 * 41)
    for name, model in models.items():
        field = Normalizer(model).fit(p, x, u)  # type: ignore[arg-type]
        print(f"Kuramoto-Sivashinsky, {name}")
        folder = options.runs / "waves" / name
        steps = options.steps or 1500
        error, _ = train(field, p, x, u, folder, steps=steps, batch_size=64, iterations=0)
        with torch.no_grad():
            grid = field.forward_grid(q, x)
        assert isinstance(grid, Tensor)
        result["models"][name] = {
            "parameters": parameter_table(model)[-1][1],
            "seen": error,
            "unseen": relative_error(field, q, x, v),
            "unseen_rms": (grid - v).square().mean().sqrt().item(),
        }
        result["fields"][name] = rounded(grid[row, :, 0])
    shown = unseen["u"][9]
    extent = [0, LENGTH, 0, END_TIME]
    result["fields"] |= {"true": rounded(shown), "nu": unseen_nu[9], "extent": extent}
    return result


class Pointwise(nn.Module):
    """MLP of the concatenated parameters and coordinates, with the interface of an implicit field.

    Args:
        hidden: Widths of its layers.

    Shape:
        p `(N, 2)`, x `(N, 1)` -> `(N, 1)`
    """

    parameter_dim, coordinate_dim, out_channels = 2, 1, 1

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = MLP(3, 1, hidden, act="silu")

    def forward_grid(self, p: Tensor, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
        """Evaluate every parameter at every point, `(T, N, 1)`."""
        pairs = [p[:, None].expand(-1, len(x), -1), x.expand(len(p), -1, -1)]
        return self.mlp(torch.cat(pairs, -1))


def rows_of(waves: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters (nu, t), mesh and values of all solutions."""
    nu, t = torch.meshgrid(waves["nu"], waves["t"], indexing="ij")
    p = torch.stack([nu.flatten(), t.flatten()], 1)
    return p.float(), waves["x"][:, None].float(), waves["u"].flatten(0, 1)[..., None].float()
