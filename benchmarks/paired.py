"""Check that implementations agree, and measure one relative to another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurenix_ms import enable_gradient_checkpointing

Maps = Tensor | Sequence[Tensor]


def measure_forward(
    measure: Callable[..., dict[str, Any]],
    ways: Mapping[str, Callable[[Any], Any]],
    variant: str,
    x: Maps,
    rounds: int = 10,
    same: bool = True,
    resident: bool = False,
) -> dict[str, Any]:
    """Measure one of `ways` on `x` without gradients, after comparing its result with the plain one.

    With `same=False` the results may differ, because libraries define a block differently. If there
    is no plain implementation, the others are compared with ours.
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
    """Measure one of `steps`, calls without arguments, relative to the plain one."""
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
    """Raise unless two results are equal up to the order of summation."""
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def with_peer(
    ways: Mapping[str, Callable[[Any], Any]],
    peers: Mapping[str, Callable[[], Any]],
    variant: str,
) -> dict[str, Callable[[Any], Any]]:
    """Return `ways`, with the peer called `variant` if it is one; no other peer is built."""
    return {**ways, variant: peers[variant]()} if variant in peers else dict(ways)


def train_step(model: nn.Module, x: Maps, checkpointing: bool = False) -> None:
    """Run forward and backward, and drop the gradients."""
    with enable_gradient_checkpointing(checkpointing):
        loss = model(x).square().mean()
    loss.backward()
    model.zero_grad()


def only_in_full(request: pytest.FixtureRequest) -> None:
    """Skip cases that only `make bench-full` runs."""
    if not request.config.getoption("--full"):
        pytest.skip("a part of the full run")


def only_when_timing(request: pytest.FixtureRequest) -> None:
    """Skip a size that is too large for a run without timing (`--benchmark-disable`)."""
    if request.config.getoption("benchmark_disable"):
        pytest.skip("a trial run takes the smallest size")
