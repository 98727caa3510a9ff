"""Refuse models and arrays with which the ranks of a process group would disturb one another."""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from torch import nn

from neurenix_ms.execution.plan.layer_errors import describe

FSDP = "torch.distributed.fsdp"
DDP = "torch.nn.parallel.distributed"
Index = tuple[slice, ...]


def check_plain_parallelism(model: nn.Module) -> None:
    """Raise if a module communicates in its forward, since tiles call it unequally often."""
    sharded = getattr(sys.modules.get(FSDP), "FSDPModule", ())
    replicated = getattr(sys.modules.get(DDP), "DistributedDataParallel", ())
    for name, module in model.named_modules():
        if isinstance(module, replicated):
            raise ValueError(
                "a model run in tiles must not be wrapped in DistributedDataParallel, got "
                f"{describe(model, name)}; pass model.module, and mesh= to share tiles among ranks"
            )
        if isinstance(module, sharded):
            raise ValueError(
                "a model run in tiles must have unsharded parameters, got "
                f"{describe(model, name)} after fully_shard; pass the model before it is sharded"
            )
        if isinstance(module, nn.SyncBatchNorm) and module.training:
            raise ValueError(
                "a model run in tiles must have ordinary batch norm, which takes the statistics of "
                f"the whole image over all tiles and ranks, got {describe(model, name)}; leave out "
                "convert_sync_batchnorm, or call model.eval()"
            )


def check_chunks(out: Any, pieces: Sequence[Sequence[Index]]) -> None:
    """Raise if two ranks would write to one chunk: each writes it whole, and the last one wins.

    Args:
        out: An array; one that has no chunks is not asked.
        pieces: What each rank writes.
    """
    chunks = getattr(out, "shards", None) or getattr(out, "chunks", None)
    if not isinstance(chunks, tuple) or not all(isinstance(n, int) for n in chunks):
        return
    owners: dict[tuple[int, ...], int] = {}
    for rank, own in enumerate(pieces):
        for index in own:
            for place in _touched(index, tuple(out.shape), chunks):
                if owners.setdefault(place, rank) != rank:
                    raise ValueError(
                        "every chunk of out must be written by one rank alone, got chunks "
                        f"{chunks}, of which {place} is written by ranks {owners[place]} and {rank}; "
                        f"create it with chunks of {_shape(pieces[0][0], out.shape)}"
                    )


def _shape(index: Index, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one piece."""
    return tuple(len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True))


def _touched(
    index: Index, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """Return the chunks in which some of these cells lie."""
    ranges = []
    for part, n, chunk in zip(index, shape, chunks, strict=True):
        start, stop, _ = part.indices(n)
        ranges.append(range(start // chunk, -(-stop // chunk) if stop > start else start // chunk))
    return product(*ranges)
