"""Compare coupled steppers and recurrent networks on chaotic waves and a wake.

`python -m neurenix_ms.recipes.sequences` solves both, trains every model on the first part of each
sequence, and lets it generate that part from its beginning, and the unseen part after it. Finished
models are stored, so an interrupted run resumes. With `--data FILE` it does the same with a sequence of
your own.
"""

import argparse
import json
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
from neurenix_ms.timestepping import (
    ClockworkRNN,
    EchoStateNetwork,
    LSTMForecaster,
    SequenceModel,
    fit_hierarchy,
    fit_sequences,
    select_strides,
)

NUM_SEEN, NUM_LATER, NUM_TOLD = 250, 150, 20  # rows: for training, held out, initial history
SEEN_PART = NUM_SEEN / (NUM_SEEN + NUM_LATER)  # of a sequence of the user's own
LEAST_ROWS = 96  # of such a sequence
STEP_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
HIDDEN = 128
Forecast = Callable[[Tensor, int], Tensor]


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


SEQUENCES = {"Kuramoto-Sivashinsky": waves, "cylinder wake": wake}


def steppers(x: Tensor, options: argparse.Namespace) -> Forecast:
    """Train coupled steppers, with strides selected on the sequence itself."""
    dims = x.shape[-1]
    model = fit_hierarchy(
        x,
        1.0,
        [size for size in STEP_SIZES if 2 * size <= x.shape[1] + NUM_TOLD],
        lambda: MLP(dims, dims, [HIDDEN] * 3),
        validation=x,
        horizon=3,
        num_iterations=options.iterations,
        batch_size=64,
        seed=options.seed,
    )
    chosen = select_strides(model, x).hierarchy
    return lambda history, n: chosen.forecast(history[:, -1], n)


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


MODELS: dict[str, Callable[..., Forecast]] = {
    "coupled steppers": steppers,
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
    options.out.mkdir(parents=True, exist_ok=True)
    note = options.out / "sequences.json"
    facts = {"iterations": options.iterations, **({} if own is None else {"data": own.digest})}
    results: dict[str, dict[str, list[float]]] = {}
    if note.exists() and not options.fresh:
        kept = json.loads(note.read_text())
        same = {name: value for name, value in kept.items() if name != "results"} == facts
        results = kept["results"] if same else {}
    made = SEQUENCES if own is None else {own.name: lambda _: own.states}
    for name, make in made.items():
        x = make(options.data).float()[None]
        x = x if own is not None else x[:, : NUM_SEEN + NUM_LATER]
        num_seen = NUM_SEEN if own is None else round(SEEN_PART * x.shape[1])
        seen = x[:, :num_seen]
        x = (x - seen.mean((0, 1))) / seen.std()
        for kind, train in MODELS.items():
            if kind in results.setdefault(name, {}):
                continue
            print(f"{name}: {kind}")
            torch.manual_seed(options.seed)
            start = time.perf_counter()
            forecast = train(x[:, :num_seen], options)
            seconds = time.perf_counter() - start
            results[name][kind] = [*scores(forecast, x, num_seen), seconds]
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


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table with a row per sequence and model."""
    lines = [
        "| sequence | model | seen, generated | next 20 rows | all later rows | training |",
        "| :--- | :--- | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in results.items():
        for kind, (*errors, seconds) in rows.items():
            cells = " | ".join(f"{error:.1e}" for error in errors)
            lines.append(f"| {name} | {kind} | {cells} | {seconds:.0f} s |")
            name = ""
    return "\n".join(lines)


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, OwnSequence | None]:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.sequences",
        description="Compare coupled steppers and recurrent networks on two sequences.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=2000, help="steps of Adam")
    parser.add_argument("--seed", type=int, default=0, help="for weights and windows")
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"), help="results")
    add_data(parser, "your own sequence (T, D), its last rows unseen", "solved sequences")
    parser.add_argument("--fresh", action="store_true", help="ignore stored results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=1)
    array = own_array(parser, options)
    if array is None:
        return options, None
    with readable(parser):
        return options, OwnSequence(array)
