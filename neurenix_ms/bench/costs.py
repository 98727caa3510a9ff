"""Costs of a call except time: FLOPs, live tensors, resident memory, parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from neurenix_ms.bench.timing import finish, matmul_rate
from neurenix_ms.meter import count_flops, parameter_table, peak_resident_bytes, peak_tensor_bytes


def costs(
    call: Callable[[], object],
    items: int,
    median: float | None,
    model: nn.Module | None,
    dtype: torch.dtype,
    device: torch.device,
    resident: bool = False,
    plain: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Measure the figures of a call, by name.

    Args:
        call: Function to measure.
        items: Number of samples that it processes.
        median: Seconds that it takes, if they are known.
        model: Gives the number of parameters.
        dtype: That of its matrix products.
        device: Where it runs.
        resident: Measure resident memory too; on a GPU the peak of torch's allocator always is.
        plain: The same without compilation, if `call` is compiled: its FLOPs are counted.
    """
    flops, uncounted = count_flops(plain or call, uncounted=True)
    rate = matmul_rate(dtype, device) if median and flops else None
    by_allocator = resident or device.type == "cuda"
    return {
        "items": items,
        "items_per_s": items / median if median else None,
        "params": parameter_table(model)[-1][1] if model is not None else None,
        "tensor_peak_bytes": None if plain else peak_tensor_bytes(call),
        "resident_peak_bytes": resident_bytes(call, device) if by_allocator else None,
        "flops": flops,
        "uncounted": uncounted,
        "share_of_matmul": flops / median / rate if median and rate else None,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }


def resident_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Measure the memory of the process that a call adds at most; on a GPU, of torch's allocator."""
    if device.type != "cuda":
        return peak_resident_bytes(call)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    finish(device)
    return torch.cuda.max_memory_allocated(device) - before
