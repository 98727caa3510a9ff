"""Compare the compression of a field over time by implicit fields and by linear methods."""

import math
import statistics
from argparse import Namespace
from typing import Any

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from neurenix_ms.datasets import turbulence2d
from neurenix_ms.implicit import MultiScaleNIF, Normalizer
from neurenix_ms.meter import parameter_table
from neurenix_ms.recipes.implicit.training import train

Result = dict[str, Any]
RANKS = (1, 2, 4, 8)  # of proper orthogonal decomposition
WIDTHS = (23, 48)  # of the ShapeNet
STEPS = 3600
BITS = 32  # per number


def turbulence(options: Namespace) -> Result:
    """Compare the errors of implicit fields, POD and a cosine transform at equal compression.

    The field is decaying turbulence, or the user's own. The mesh of the turbulence is periodic, so its
    coordinates are sines and cosines. Of an implicit field, the error is that of every seed.
    """
    if options.own is None:
        flow = turbulence2d(5e-3, num_times=21, end_time=5.0, root=options.data)
        values, times, label, folder = (
            flow["vorticity"].float(),
            flow["t"],
            "vorticity",
            "turbulence",
        )
        x = torch.cartesian_prod(flow["x"].float(), flow["x"].float())
        x = torch.cat([x.sin(), x.cos()], 1)
    else:
        values, times = options.own.values, options.own.times
        label, folder = options.own.label, options.own.folder
        x = torch.cartesian_prod(*(torch.linspace(0, 1, n) for n in values.shape[1:]))
    middle = len(times) // 2
    ranks = [rank for rank in RANKS if rank < len(times)]
    shown = min(4, ranks[-1])
    result: Result = {"values": values.numel(), "models": []}
    result["fields"] = {"t": float(times[middle]), "label": label}

    for rank in ranks:
        low, numbers = low_rank(values, rank)
        _add(result, f"POD, rank {rank}", numbers, [_error(low, values)])
        if rank == shown:
            result["fields"][f"POD, rank {rank}"] = rounded(low[middle])

    t, u = times[:, None].float(), values.flatten(1)[..., None]
    networks: list[Result] = []
    for width in WIDTHS:
        errors, seconds = [], []
        for seed in options.seeds:
            torch.manual_seed(seed)
            model = MultiScaleNIF(1, x.shape[1], shape_width=width, latent_dim=2, omega_0=20.0)
            field = Normalizer(model).fit(t, x, u)
            print(f"{folder}, width {width}, seed {seed}")
            runs = options.runs / folder / str(width) / str(seed)
            steps = options.steps or STEPS
            error, cpu = train(
                field, t, x, u, runs, steps=steps, batch_size=4, iterations=0, seed=seed
            )
            errors.append(error)
            seconds.append(cpu)
            if width == WIDTHS[-1] and seed == options.seeds[0]:
                with torch.no_grad():
                    middle_field = field.at(t[middle])(x).view(values.shape[1:])
                result["fields"][f"NIF, {width} wide"] = rounded(middle_field)
        numbers = parameter_table(model)[-1][1]
        networks.append({"numbers": numbers, "errors": errors, "seconds": seconds, "width": width})

    for one in networks:
        low, numbers = cosine(values, one["numbers"])
        _add(result, "cosine transform", numbers, [_error(low, values)])
    for one in networks:
        _add(result, f"NIF, {one['width']} wide", one["numbers"], one["errors"], one["seconds"])
    result["fields"]["true"] = rounded(values[middle])
    return result


def low_rank(values: Tensor, rank: int) -> tuple[Tensor, int]:
    """Return the best approximation of a field `(T, H, W)` of a rank, and how many values it stores.

    The mean over time is not stored separately, which would cost as much as one rank.
    """
    left, scale, right = torch.linalg.svd(values.flatten(1), full_matrices=False)
    low = left[:, :rank] * scale[:rank] @ right[:rank]
    return low.view(values.shape), rank * (len(values) + values[0].numel())


def cosine(values: Tensor, numbers: int) -> tuple[Tensor, int]:
    """Return a field `(T, H, W)` from the largest coefficients of its cosine transform in all axes.

    As many coefficients are kept as fit into `numbers`, together with their positions, which count as
    the entropy of a mask of the kept ones.

    Returns:
        The field, and the number of coefficients plus that of the positions.
    """
    coefficients = torch.from_numpy(dctn(values.double().numpy(), norm="ortho"))
    total = coefficients.numel()
    kept = next(n for n in range(min(numbers, total), -1, -1) if n + positions(n, total) <= numbers)
    chosen = coefficients.flatten().abs().topk(kept).indices
    sparse = torch.zeros(total, dtype=coefficients.dtype)
    sparse[chosen] = coefficients.flatten()[chosen]
    low = torch.from_numpy(idctn(sparse.view(values.shape).numpy(), norm="ortho"))
    return low.to(values.dtype), kept + positions(kept, total)


def positions(kept: int, total: int) -> int:
    """Return how many numbers of 32 bits the positions of the kept coefficients take.

    Examples:
        >>> positions(0, 86016), positions(5000, 86016), positions(86016, 86016)
        (0, 861, 0)
    """
    share = kept / total
    bits = sum(-p * math.log2(p) for p in (share, 1 - share) if p > 0) * total
    return math.ceil(bits / BITS)


def rounded(values: Tensor) -> list[list[float]]:
    """Return values for a figure, to a thousandth of the largest where that is small."""
    digits = 3 + max(0, -math.floor(math.log10(float(values.abs().max()) or 1)))
    return [[round(value, digits) for value in row] for row in values.tolist()]


def _error(field: Tensor, values: Tensor) -> float:
    return ((field - values).norm() / values.norm()).item()


def _add(
    result: Result, name: str, numbers: int, errors: list[float], seconds: list[float] | None = None
) -> None:
    one: Result = {"name": name, "numbers": numbers, "errors": errors}
    if seconds is not None:
        one["seconds"] = round(statistics.mean(seconds))
    result["models"].append(one)
