"""A table of networks: parameters, operations, memory and time at given sizes on this machine."""

import statistics
from collections.abc import Sequence

import torch
from torch import nn

from neurenix_ms._core.checks import check_integers
from neurenix_ms.bench.comparing import call_of
from neurenix_ms.bench.costs import costs
from neurenix_ms.bench.named import network_named
from neurenix_ms.bench.predicting import predict_memory
from neurenix_ms.bench.results import as_number, in_bytes, in_operations, in_seconds
from neurenix_ms.bench.tables import aligned
from neurenix_ms.bench.timing import finish, seconds

ROUNDS = 5
HEADS = ["network", "shape", "parameters", "FLOPs", "time", "live tensors", "predicted", "total"]


def networks_table(
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    device: torch.device,
    *,
    train: bool = False,
    only_predict: bool = False,
) -> str:
    """Measure networks by name at every shape.

    A network that cannot be built, or refuses a shape, gets a line that says so.

    Args:
        names: As `network_named` takes them.
        shapes: Shapes `(B, C, *S)` of the input.
        device: Where they run.
        train: Measure a training step instead of a forward pass.
        only_predict: Predict memory from shapes, and run nothing.
    """
    lines, notes = [HEADS], []
    missing: dict[str, list[str]] = {}
    for name in names:
        for shape in (tuple(check_integers("shape", one, 1, min_length=2)) for one in shapes):
            size = "x".join(map(str, shape))
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    network = network_named(name, shape).to(device).train(train)
                    cells, uncounted = _measured(network, shape, device, train, only_predict)
            except Exception as error:  # of any kind: it is that of somebody's network
                words = (str(error).strip().splitlines() or [""])[0]
                notes.append(f"{name} at {size}: {type(error).__name__}: {words}")
                continue
            lines.append([name, size, *cells])
            missing.setdefault(", ".join(uncounted), []).append(name)
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
    shape: tuple[int, ...],
    device: torch.device,
    train: bool,
    only_predict: bool,
) -> tuple[list[str], list[str]]:
    predicted = predict_memory(network, shape, train=train)
    total = [in_bytes(predicted.peak), in_bytes(predicted.total)]
    if only_predict:
        count = sum(p.numel() for p in network.parameters())
        return [as_number(count), "-", "-", "-", *total], []
    x = torch.randn(shape, device=device)
    call = call_of(network, (x,), train)

    def to_the_end() -> None:
        call()
        finish(device)

    to_the_end()
    median = statistics.median(seconds(to_the_end) for _ in range(ROUNDS))
    found = costs(call, len(x), None, network, torch.float32, device)
    cells = [
        as_number(found["params"]),
        in_operations(found["flops"]),
        in_seconds(median),
        in_bytes(found["tensor_peak_bytes"]),
    ]
    return cells + total, list(found["uncounted"])
