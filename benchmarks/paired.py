"""Several ways to one result: that they agree, and what one costs beside the other."""

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
