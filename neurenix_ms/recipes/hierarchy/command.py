"""Compare single, coupled and hybrid time-steppers on a dynamical system.

`python -m neurenix_ms.recipes.hierarchy --system hopf` solves trajectories, trains a network per
stride, selects the strides to couple, and scores all forecasts on unseen trajectories. It writes a
table and a figure. An interrupted run resumes. With a file in `--data`, the trajectories are your own;
there is no hybrid with an integrator then, because their equations are not known.
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets.dynamics import SYSTEMS
from neurenix_ms.files import load, save
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.recipes.hierarchy.own import OwnSystem, of_curve
from neurenix_ms.recipes.hierarchy.report import draw, table
from neurenix_ms.recipes.hierarchy.settings import (
    NUM_STEPS,
    SETTINGS,
    STEP_SIZES,
    Settings,
    measured,
    trajectories,
)
from neurenix_ms.recipes.options import (
    add_data,
    add_time_step,
    check_at_least,
    own_array,
    readable,
    time_step,
)
from neurenix_ms.timestepping import (
    HierarchicalTimeStepper,
    IntegratorStepper,
    Selection,
    fit_hierarchy,
    select_strides,
)

NUM_SELECTING = 40  # validation trajectories by which strides are selected
INTEGRATOR_STRIDE = 4  # the error of an RK4 step of 0.04 is below the digits of the table


def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiment and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options, own = _options(argv)
    if own is None:
        title, settings, step_sizes = options.system, SETTINGS[options.system], STEP_SIZES
        data, facts = trajectories(options.system, settings.dt, options.data), {}
    else:
        title, settings, step_sizes = own.name, own.settings, own.step_sizes
        data, facts = own.parts, own.facts()
    start_of_name = "_".join([title, *(str(value)[:8] for value in facts.values())])
    if options.hidden:
        settings = dataclasses.replace(settings, hidden=options.hidden)
        facts |= {"hidden": options.hidden}
        start_of_name += "_" + "-".join(map(str, options.hidden))
    iterations = options.iterations or settings.num_iterations
    options.out.mkdir(parents=True, exist_ok=True)
    for noise, turn in itertools.product(options.noise, range(options.seeds)):
        seed = options.seed + turn
        name = f"{start_of_name}_{100 * noise:g}"
        name += ("_smoothed" if options.smooth else "") + (f"_seed{seed}" if seed else "")
        note = options.out / f"{name}.json"
        if options.fresh:
            for old in options.out.glob(f"{name}.*"):
                old.unlink()
        if note.exists() and json.loads(note.read_text())["iterations"] == iterations:
            continue
        print(f"{title}, {100 * noise:g} % noise, seed {seed}")
        seen, held_out = (
            measured(data[part], noise, seed + i, options.smooth)
            for i, part in enumerate(("train", "validation"))
        )
        fitted = settings, seen, held_out, iterations, options.horizon, seed
        model, seconds = trained(*fitted, options.out / name, step_sizes)
        system = None if own else options.system
        result = scores(system, settings, model, held_out, data["test"], step_sizes)
        result |= {
            "system": title,
            "noise": noise,
            "smoothed": options.smooth,
            "seed": seed,
            "iterations": iterations,
            "batch_size": settings.batch_size,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds),
            **facts,
        }
        write_atomically(note, json.dumps(result, indent=1).encode())
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    for result in results:
        clean = result["noise"] == 0 and not result.get("smoothed")
        this = result["system"] == title and result.get("data") == facts.get("data")
        if this and clean and not result.get("seed"):
            draw(options.out / f"{title}.png", result)
    text = table(results)
    write_atomically(options.out / "table.md", f"{text}\n".encode())
    print(f"\n{text}\n\n{options.out / 'table.md'}")
    return text


def trained(
    settings: Settings,
    seen: Tensor,
    held_out: Tensor,
    iterations: int,
    horizon: int,
    seed: int,
    path: Path,
    step_sizes: Sequence[int],
) -> tuple[HierarchicalTimeStepper, float]:
    """Train a stepper per stride; return the hierarchy and the wall time of the last run."""
    target, checkpoint = path.with_name(f"{path.name}.nx"), path.with_name(f"{path.name}.ckpt")
    torch.manual_seed(seed)
    start = time.perf_counter()
    dims = seen.shape[-1]
    model = fit_hierarchy(
        seen,
        settings.dt,
        step_sizes,
        lambda: MLP(dims, dims, settings.hidden),
        validation=held_out,
        horizon=horizon,
        num_iterations=iterations,
        batch_size=settings.batch_size,
        seed=seed,
        checkpoint=checkpoint,
    )
    save(model, target)
    twin = load(target)
    assert isinstance(twin, HierarchicalTimeStepper)
    return twin, time.perf_counter() - start


@torch.no_grad()
def scores(
    system: str | None,
    settings: Settings,
    model: HierarchicalTimeStepper,
    held_out: Tensor,
    test: Tensor,
    step_sizes: Sequence[int],
) -> dict[str, Any]:
    """Compute the mean squared errors of all forecasts, over all steps and as functions of time.

    Args:
        system: Name of the system, for the hybrid; None if its equations are not known.
        settings: Its settings.
        model: The networks of all strides.
        held_out: Trajectories by which strides are selected.
        test: Trajectories to forecast.
        step_sizes: The strides.
    """
    num_steps = min(NUM_STEPS, test.shape[1] - 1)
    every = of_curve(num_steps)
    truth, x0 = test[:, 1 : num_steps + 1], test[:, 0].float()
    selection = selected(model, held_out[:NUM_SELECTING])
    ways = {str(size): model.only([size]) for size in step_sizes}
    ways |= {"coupled": selection.hierarchy}
    result: dict[str, Any] = {}
    if system is not None:
        fine = IntegratorStepper(SYSTEMS[system].rhs, settings.dt, INTEGRATOR_STRIDE)
        coarsest = max(selection.hierarchy.step_sizes)
        if coarsest <= INTEGRATOR_STRIDE:  # the integrator must be the finest level
            coarsest = 4 * INTEGRATOR_STRIDE
        ways["hybrid"] = HierarchicalTimeStepper([fine, *model.only([coarsest]).steppers])
        result["hybrid"] = [coarsest, INTEGRATOR_STRIDE]
    errors, curves = {}, {}
    for name, way in ways.items():
        square = (way.forecast(x0, num_steps).double() - truth).square().mean(dim=(0, 2))
        errors[name] = square.mean().item()
        curves[name] = [part.mean().item() for part in square.split(every)]
    return result | {
        "selected": selection.hierarchy.step_sizes,
        "table": selection.table,
        "errors": errors,
        "curves": curves,
        "steps_of_point": every,
        "dt": settings.dt,
    }


def selected(model: HierarchicalTimeStepper, held_out: Tensor) -> Selection:
    """Select the strides to couple, from all sets without the coarsest ones.

    Dropping a coarse stride may increase the error although dropping the next one decreases it, so all
    sets are tried.
    """
    sweep = select_strides(model, held_out, tolerance=math.inf).table
    finite = [(error, strides) for strides, error in sweep if math.isfinite(error)]
    selection = select_strides(model.only(min(finite)[1]), held_out)
    return Selection(selection.hierarchy, sweep + selection.table)


def _options(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, OwnSystem | None]:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.hierarchy",
        description="Train a stepper per stride for a system, couple them, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--system", choices=list(SETTINGS), help="what is solved; hyperbolic if nothing is given"
    )
    add_time_step(parser)
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.0],
        help="standard deviation of the noise, relative to that of the states",
    )
    parser.add_argument(
        "--smooth", action="store_true", help="smooth the noisy trajectories before training"
    )
    parser.add_argument("--iterations", type=int, help="steps of Adam; by default by system")
    parser.add_argument(
        "--hidden", type=int, nargs="+", help="widths of the networks; as published if not given"
    )
    parser.add_argument("--horizon", type=int, default=1, help="strides per training window")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of weights, windows and noise"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of runs; their seeds start at --seed"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/hierarchy"), help="folder of results"
    )
    add_data(
        parser,
        "your own trajectories (N, T, D) or (T, D), the last ones unseen",
        "solved trajectories",
    )
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, hidden=1, horizon=1, noise=0, seeds=1)
    array = own_array(parser, options)
    dt = time_step(parser, options, array)
    if array is None:
        options.system = options.system or "hyperbolic"
        return options, None
    if options.system is not None:
        parser.error(f"--system is for solved trajectories, got the file {array.path} in --data")
    with readable(parser):
        return options, OwnSystem(array, dt)
