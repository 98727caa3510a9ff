"""Compare coupled steppers and recurrent networks on chaotic waves, a wake and a prelude by Bach.

`python -m neurenix_ms.recipes.sequences` solves or reads them, trains every model on the first part of
each sequence, and lets it generate that part from its beginning, and the unseen part after it. Finished
models are stored, so an interrupted run resumes. With `--data FILE` it does the same with a sequence of
your own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets import kuramoto_sivashinsky
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.scanned import checksum
from neurenix_ms.datasets.wake import cylinder_wake, pod
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.recipes.options import add_data, check_at_least, own_array, readable
from neurenix_ms.recipes.own import values_of
from neurenix_ms.recipes.reporting import markdown, scatter
from neurenix_ms.recipes.sequences.bach import prelude
from neurenix_ms.timestepping import (
    ClockworkRNN,
    EchoStateNetwork,
    LSTMForecaster,
    SequenceModel,
    fit_hierarchy,
    fit_sequences,
    select_strides,
)
from neurenix_ms.timestepping.shortcuts import fitted_shortcuts

NUM_SEEN, NUM_LATER, NUM_TOLD = 250, 150, 20  # rows: for training, held out, initial history
SEEN_PART = NUM_SEEN / (NUM_SEEN + NUM_LATER)  # of a sequence of the user's own
LEAST_ROWS = 96  # of such a sequence
FORMAT = 2  # of the stored results
STEP_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
HIDDEN = 128
Forecast = Callable[[Tensor, int], Tensor]
Results = dict[str, dict[str, dict[str, list[float]]]]  # by sequence, model and seed


def waves(folder: Path) -> Tensor:
    """Return Kuramoto-Sivashinsky waves on a ring of circumference 22, once they are chaotic."""
    end = 50 + 0.5 * (NUM_SEEN + NUM_LATER)
    solved = kuramoto_sivashinsky(
        1.0, num_points=64, num_times=int(2 * end) + 1, end_time=end, length=22.0, root=folder
    )
    return solved["u"][101:]


def wake(folder: Path) -> Tensor:
    """Return the first eight POD coefficients of the wake behind a cylinder."""
    return pod(cylinder_wake(progress=True, root=folder)["u"], 8)[0]


SEQUENCES = {"Kuramoto-Sivashinsky": waves, "cylinder wake": wake, "Bach": prelude}


def steppers(history: int, shortcut: bool) -> Callable[..., Forecast]:
    """Return a function that trains coupled steppers, with strides selected on the sequence itself.

    Args:
        history: Number of rows that are one state of the steppers.
        shortcut: Fit a linear map by least squares first, and train the networks on the rest.
    """

    def trained(x: Tensor, options: argparse.Namespace) -> Forecast:
        num_features = x.shape[-1]
        states = stacked(x, history)
        dims = states.shape[-1]
        model = fit_hierarchy(
            states,
            1.0,
            [size for size in STEP_SIZES if 2 * size <= x.shape[1] + NUM_TOLD],
            lambda: MLP(dims, dims, [HIDDEN] * 3, shortcut=shortcut),
            validation=states,
            horizon=3,
            num_iterations=options.iterations,
            batch_size=64,
            seed=options.seed,
        )
        chosen = select_strides(model, states).hierarchy

        def forecast(told: Tensor, num_steps: int) -> Tensor:
            return chosen.forecast(stacked(told, history)[:, -1], num_steps)[..., -num_features:]

        return forecast

    return trained


def stacked(x: Tensor, history: int) -> Tensor:
    """Return states of successive rows, `(B, T, D)` -> `(B, T - history + 1, history * D)`.

    Examples:
        >>> stacked(torch.arange(4.0).view(1, 4, 1), 2)[0]
        tensor([[0., 1.],
                [1., 2.],
                [2., 3.]])
    """
    return x.unfold(1, history, 1).transpose(2, 3).flatten(2)


def recurrent(make: Callable[[int, int], SequenceModel]) -> Callable[..., Forecast]:
    """Return a function that trains a recurrent network as `steppers` trains the steppers."""

    def trained(x: Tensor, options: argparse.Namespace) -> Forecast:
        model = make(x.shape[-1], HIDDEN)
        fit_sequences(model, x, validation=x, num_iterations=options.iterations, seed=options.seed)
        return model.forecast

    return trained


def echo(x: Tensor, options: argparse.Namespace) -> Forecast:
    """Fit an echo state network."""
    return EchoStateNetwork(x.shape[-1], 1000, seed=options.seed).fit(x).forecast


def linear(x: Tensor, options: argparse.Namespace) -> Forecast:
    """Fit a linear map from the rows told to the change of the last one, without a network."""
    num_features = x.shape[-1]
    states = stacked(x, NUM_TOLD)
    zero, one = states.new_zeros(states.shape[-1]), states.new_ones(states.shape[-1])
    fit = fitted_shortcuts(states, [1], "all", zero, one, one[None])
    weight, bias = fit.weight[0, :, -num_features:], fit.bias[0, :, -num_features:]

    def forecast(told: Tensor, num_steps: int) -> Tensor:
        rows = told
        for _ in range(num_steps):
            last = rows[:, -NUM_TOLD:]
            rows = torch.cat([rows, last[:, -1:] + (last.flatten(1) @ weight + bias)[:, None]], 1)
        return rows[:, told.shape[1] :]

    return forecast


MODELS: dict[str, Callable[..., Forecast]] = {
    "coupled steppers": steppers(1, False),
    "coupled steppers, linear shortcut": steppers(1, True),
    "coupled steppers, linear shortcut, history": steppers(NUM_TOLD, True),
    "linear map of the history": linear,
    "LSTM": recurrent(LSTMForecaster),
    "echo state network": echo,
    "clockwork RNN": recurrent(ClockworkRNN),
}


def main(argv: Sequence[str] | None = None) -> str:
    """Run the comparison and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options, own = _options(argv)
    if own is None:
        chosen = options.sequences or list(SEQUENCES)
        sequences = {name: SEQUENCES[name](options.data).float() for name in chosen}
    else:
        sequences = {own.name: own.states.float()}
    options.out.mkdir(parents=True, exist_ok=True)
    note = options.out / "sequences.json"
    facts = {"format": FORMAT, "iterations": options.iterations}
    facts |= {} if own is None else {"data": own.digest}
    results: Results = {}
    if note.exists() and not options.fresh:
        kept = json.loads(note.read_text())
        same = {name: value for name, value in kept.items() if name != "results"} == facts
        results = kept["results"] if same else {}
    for seed in range(options.seed, options.seed + options.seeds):
        for name, rows in sequences.items():
            x = rows[None] if own is not None else rows[None, : NUM_SEEN + NUM_LATER]
            num_seen = NUM_SEEN if own is None else round(SEEN_PART * x.shape[1])
            seen = x[:, :num_seen]
            x = (x - seen.mean((0, 1))) / seen.std()
            for kind, train in MODELS.items():
                runs = results.setdefault(name, {}).setdefault(kind, {})
                if str(seed) in runs:
                    continue
                print(f"{name}: {kind}, seed {seed}")
                torch.manual_seed(seed)
                start = time.process_time()
                forecast = train(
                    x[:, :num_seen], argparse.Namespace(**vars(options) | {"seed": seed})
                )
                seconds = time.process_time() - start
                runs[str(seed)] = [*scores(forecast, x, num_seen), seconds]
                content = json.dumps({**facts, "results": results}, indent=1)
                write_atomically(note, content.encode())
    text = table(results)
    write_atomically(options.out / "sequences.md", f"{text}\n".encode())
    print(f"\n{text}\n\n{options.out / 'sequences.md'}")
    return text


@torch.no_grad()
def scores(forecast: Forecast, x: Tensor, num_seen: int = NUM_SEEN) -> tuple[float, float, float]:
    """Return squared errors by the variance: of the part seen, the next 20 rows and all later rows."""
    variance = x[:, :num_seen].var(dim=1).mean()

    def error(first: int, last: int) -> float:
        states = forecast(x[:, first - NUM_TOLD : first], last - first)
        return ((states - x[:, first:last]).square().mean() / variance).item()

    return (
        error(NUM_TOLD, num_seen),
        error(num_seen, num_seen + 20),
        error(num_seen, x.shape[1]),
    )


class OwnSequence:
    """A sequence of states at equal time steps, from a file.

    Args:
        array: States `(T, D)`.

    Raises:
        ValueError: If the file has other axes, too few rows, or one value everywhere in the part seen.
    """

    def __init__(self, array: DiskArray) -> None:
        if array.ndim != 2 or array.shape[0] < LEAST_ROWS:
            raise ValueError(
                f"{array.path} must have the axes (time, features) and at least {LEAST_ROWS} times, got "
                f"shape {array.shape}"
            )
        self.states = values_of(array)
        seen = self.states[: round(SEEN_PART * len(self.states))]
        if seen.min() == seen.max():
            raise ValueError(
                f"{array.path} must have different values, got {seen.max():g} everywhere"
            )
        self.name, self.digest = array.path.name, checksum(array)


def table(results: Results) -> str:
    """Return a Markdown table: a row per sequence and model, means and deviations over the seeds.

    Args:
        results: Errors and CPU time by sequence, model and seed.
    """
    head = ["sequence", "model", "seen, generated", "next 20 rows", "all later rows", "CPU s"]
    lines = [head, [":---", ":---", *["---:"] * 4]]
    for name, kinds in results.items():
        for kind, runs in kinds.items():
            *errors, seconds = zip(*runs.values(), strict=True)
            cells = [scatter(some, ".1e", ".0e") for some in errors]
            lines.append([name, kind, *cells, f"{statistics.mean(seconds):.0f}"])
            name = ""
    return markdown(lines)


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, OwnSequence | None]:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.sequences",
        description="Compare coupled steppers and recurrent networks on sequences.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=2000, help="steps of Adam")
    parser.add_argument("--seed", type=int, default=0, help="for weights and windows")
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of runs; their seeds start at --seed"
    )
    parser.add_argument(
        "--sequences",
        nargs="+",
        choices=list(SEQUENCES),
        metavar="NAME",
        help=f"some of {', '.join(SEQUENCES)}; all if not given",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"), help="results")
    add_data(parser, "your own sequence (T, D), its last rows unseen", "the sequences made here")
    parser.add_argument("--fresh", action="store_true", help="ignore stored results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1, seeds=1)
    array = own_array(parser, options)
    if array is None:
        return options, None
    if options.sequences is not None:
        parser.error(f"--sequences is for those made here, got the file {array.path} in --data")
    with readable(parser):
        return options, OwnSequence(array)
