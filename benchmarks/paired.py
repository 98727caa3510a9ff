"""Several ways to one result: that they agree, and what one costs beside the other."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurenix_ms import enable_gradient_checkpointing

Maps = Tensor | Sequence[Tensor]


def paired(a: Callable[[], object], b: Callable[[], object], rounds: int = 5) -> float:
    """CPU time of `a` divided by that of `b`: the median of pairs run one after the other.

    Time of this process on all its threads is counted, not time on the wall, and what disturbs the
    machine meets both calls of a pair; so the ratio is steady where two medians taken minutes
    apart are not. Every second pair runs in reverse order.

    Args:
        a: A call without arguments.
        b: The call it is compared with.
        rounds: Number of pairs.

    Examples:
        >>> work = lambda n: sum(range(n))
        >>> paired(lambda: work(400_000), lambda: work(100_000)) > 2
        True
    """
    ratios = []
    for i in range(rounds):
        calls = (a, b) if i % 2 == 0 else (b, a)
        first, second = (_cpu_time(call) for call in calls)
        ratios.append(first / second if i % 2 == 0 else second / first)
    return statistics.median(ratios)


def _cpu_time(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_forward(
    measure: Callable[..., dict[str, Any]],
    ways: Mapping[str, Callable[[Any], Any]],
    variant: str,
    x: Maps,
    rounds: int = 10,
) -> dict[str, Any]:
    """Measure one of `ways` on `x` without gradients, if it gives what the plain way gives."""
    way = ways[variant]
    with torch.no_grad():
        assert_equal(way(x), ways["plain"](x))
        first = x if isinstance(x, Tensor) else x[0]
        model = way if isinstance(way, nn.Module) else None
        return measure(lambda: way(x), len(first), model=model, x=first, rounds=rounds)


def assert_equal(ours: Maps, plain: Maps) -> None:
    """Refuse to compare what is not the same; sums may be taken in another order."""
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def train_step(model: nn.Module, x: Maps, checkpointing: bool = False) -> None:
    """Forward, backward, and the gradients dropped again."""
    with enable_gradient_checkpointing(checkpointing):
        loss = model(x).square().mean()
    loss.backward()
    model.zero_grad()


def only_when_timing(request: pytest.FixtureRequest) -> None:
    """Skip a size that is too large for a mere trial run (`--benchmark-disable`)."""
    if request.config.getoption("benchmark_disable"):
        pytest.skip("a trial run takes the smallest size")
