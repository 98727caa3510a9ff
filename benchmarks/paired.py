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


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int = 5,
    device: torch.device | None = None,
) -> float:
    """Time of `a` divided by that of `b`: the median of pairs run one after the other.

    On a CPU the time of this process on all its threads is counted, not time on the wall, and what
    disturbs the machine meets both calls of a pair; so the ratio is steady where two medians taken
    minutes apart are not. On a GPU its own events count. Every second pair runs in reverse order,
    and calls of less than 5 ms are repeated.

    Args:
        a: A call without arguments.
        b: The call it is compared with.
        rounds: Number of pairs.
        device: Where the calls run; a CPU if None.

    Examples:
        >>> work = lambda n: sum(range(n))
        >>> paired(lambda: work(400_000), lambda: work(100_000)) > 2
        True
    """
    timer = _gpu_time if device is not None and device.type == "cuda" else _cpu_time
    times = max(1, int(5e-3 / max(timer(b, 1), 1e-6)))
    ratios = []
    for i in range(rounds):
        calls = (a, b) if i % 2 == 0 else (b, a)
        first, second = (timer(call, times) for call in calls)
        ratios.append(first / second if i % 2 == 0 else second / first)
    return statistics.median(ratios)


def _cpu_time(call: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - start


def _gpu_time(call: Callable[[], object], times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def measure_forward(
    measure: Callable[..., dict[str, Any]],
    ways: Mapping[str, Callable[[Any], Any]],
    variant: str,
    x: Maps,
    rounds: int = 10,
    same: bool = True,
    resident: bool = False,
) -> dict[str, Any]:
    """Measure one of `ways` on `x` without gradients, if it gives what the plain way gives.

    With `same=False` it does not: libraries mean different things by one word. Where there is no
    plain way, ours is what the others are compared with.
    """
    reference = "plain" if "plain" in ways else "ours"
    way, plain = ways[variant], ways[reference]
    with torch.no_grad():
        if same and variant != reference:
            assert_equal(way(x), plain(x))
        first = x if isinstance(x, Tensor) else x[0]
        model = way if isinstance(way, nn.Module) else None
        against = None if variant == reference else lambda: plain(x)
        measured = measure(
            lambda: way(x),
            len(first),
            model=model,
            x=first,
            rounds=rounds,
            against=against,
            resident=resident,
        )
        measured["same_result"] = same
        return measured


def measure_step(
    measure: Callable[..., dict[str, Any]],
    steps: Mapping[str, Callable[[], object]],
    variant: str,
    x: Tensor,
    model: nn.Module | None = None,
    rounds: int = 5,
    resident: bool = False,
    items: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Measure one of `steps`, calls without arguments, beside the plain one."""
    against = None if variant == "plain" else steps["plain"]
    return measure(
        steps[variant],
        len(x) if items is None else items,
        model=model,
        x=x,
        rounds=rounds,
        against=against,
        resident=resident,
        dtype=dtype,
    )


def assert_equal(ours: Maps, plain: Maps) -> None:
    """Refuse to compare what is not the same; sums may be taken in another order."""
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def with_peer(
    ways: Mapping[str, Callable[[Any], Any]],
    peers: Mapping[str, Callable[[], Any]],
    variant: str,
) -> dict[str, Callable[[Any], Any]]:
    """`ways`, and the peer called `variant` if it is one; no other is made."""
    return {**ways, variant: peers[variant]()} if variant in peers else dict(ways)


def train_step(model: nn.Module, x: Maps, checkpointing: bool = False) -> None:
    """Forward, backward, and the gradients dropped again."""
    with enable_gradient_checkpointing(checkpointing):
        loss = model(x).square().mean()
    loss.backward()
    model.zero_grad()


def only_in_full(request: pytest.FixtureRequest) -> None:
    """Skip what `make bench-full` alone takes its time for."""
    if not request.config.getoption("--full"):
        pytest.skip("a part of the full run")


def only_when_timing(request: pytest.FixtureRequest) -> None:
    """Skip a size that is too large for a mere trial run (`--benchmark-disable`)."""
    if request.config.getoption("benchmark_disable"):
        pytest.skip("a trial run takes the smallest size")
