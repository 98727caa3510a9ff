"""A table of networks: parameters, operations, memory and time at given sizes on this machine."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from neurenix_ms.bench.comparing import call_of
from neurenix_ms.bench.costs import costs
from neurenix_ms.bench.forms import in_words
from neurenix_ms.bench.named import network_named
from neurenix_ms.bench.predicting import predict_memory
from neurenix_ms.bench.results import as_number, in_bytes, in_operations, in_seconds
from neurenix_ms.bench.tables import aligned
from neurenix_ms.bench.timing import finish, seconds

Shape = tuple[int, ...]
Inputs = Sequence[Shape | list[Shape]]
ROUNDS = 5
HEADS = ["network", "shape", "parameters", "FLOPs", "time", "live tensors", "predicted", "total"]


def networks_table(
    names: Sequence[str],
    inputs: Sequence[Inputs],
    device: torch.device,
    *,
    kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    only_predict: bool = False,
) -> str:
    """Measure networks by name with every input.

    The error of a network that cannot be built or run is reported in a line below the table.

    Args:
        names: As `network_named` takes them.
        inputs: Shapes of the arguments of a call: each is a shape, or a list of them for a list of
            feature maps.
        device: Where they run.
        kwargs: Keyword arguments that are not tensors, such as the `num_steps` of a forecast.
        train: Measure a training step instead of a forward pass.
        only_predict: Predict memory from shapes, and run nothing.

    Raises:
        ValueError: If no network could be built and run with any of the inputs.
    """
    lines, notes = [HEADS], []
    missing: dict[str, list[str]] = {}
    for name in names:
        for shapes in inputs:
            size = ",".join(map(_with_crosses, shapes))
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    network = network_named(name, shapes[0]).to(device).train(train)
                    cells, uncounted = _measured(
                        network, shapes, kwargs or {}, device, train, only_predict
                    )
            except Exception as error:  # a user's network may raise any exception
                notes.append(f"{name} at {size}: {in_words(error)}")
                continue
            lines.append([name, size, *cells])
            missing.setdefault(", ".join(uncounted), []).append(name)
    if len(lines) == 1:
        raise ValueError(f"a network must run at one of the shapes, got {'; '.join(notes)}")
    kind = "training step" if train else "forward"
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    title = f"{kind} on {device}, torch {torch.__version__}, {threads} thread{plural}"
    known = [
        f"  Not in the FLOPs: {', '.join(dict.fromkeys(of))}: {words}."
        for words, of in missing.items()
        if words
    ]
    return "\n".join([title, *aligned(lines), *known, *notes])


def _measured(
    network: nn.Module,
    shapes: Inputs,
    kwargs: Mapping[str, Any],
    device: torch.device,
    train: bool,
    only_predict: bool,
) -> tuple[list[str], list[str]]:
    first = shapes[0]
    others = [shape for shape in shapes[1:] if isinstance(shape, tuple)]
    if len(others) < len(shapes) - 1:
        raise ValueError(f"only the first input may be a list of feature maps, got {list(shapes)}")
    predicted = predict_memory(network, first, args=others, kwargs=kwargs, train=train)
    total = [in_bytes(predicted.peak), in_bytes(predicted.total)]
    if only_predict:
        count = sum(p.numel() for p in network.parameters())
        return [as_number(count), "-", "-", "-", *total], []
    xs = tuple(
        [torch.randn(one, device=device) for one in shape]
        if isinstance(shape, list)
        else torch.randn(shape, device=device)
        for shape in shapes
    )
    call = call_of(partial(network, **kwargs), xs, train)

    def to_the_end() -> None:
        call()
        finish(device)

    to_the_end()
    median = statistics.median(seconds(to_the_end) for _ in range(ROUNDS))
    found = costs(call, 1, None, network, torch.float32, device)
    cells = [
        as_number(found["params"]),
        in_operations(found["flops"]),
        in_seconds(median),
        in_bytes(found["tensor_peak_bytes"]),
    ]
    return cells + total, list(found["uncounted"])


def _with_crosses(shape: Shape | list[Shape]) -> str:
    """Return a shape as it is given on the command line."""
    several = shape if isinstance(shape, list) else [shape]
    return "+".join("x".join(map(str, one)) for one in several)
