"""Share the tiles of an image among the ranks of a device mesh, and merge what they computed.

Every merge starts with an agreement: if one rank has failed, its error is raised on all ranks, and the
process group can be used afterwards.
"""

import contextlib
import itertools
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from neurenix_ms._core.checks import shown
from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.statistics import Moments

MOST_GATHERED = 64  # ranks; above, moments are summed, so that a rank receives no copy of each
ROUNDING = 1e-9
SAMPLES_PER_AXIS = 4

Index = tuple[slice, ...]
Result = TypeVar("Result")


class Sent:
    """Count what this process hands to the collectives of its meshes while the context is open.

    The numbers are the same in every run. How often a byte crosses the network depends on the backend.

    Attributes:
        bytes: Own values of gathers and sums, broadcasts of which this rank is the source, and windows
            that it sends to other ranks.
        calls: Collectives, each of which all ranks wait for, and exchanges of windows.

    Examples:
        >>> with Sent() as sent:
        ...     pass
        >>> sent.bytes, sent.calls
        (0, 0)
    """

    _open: ClassVar[list["Sent"]] = []

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0

    def __enter__(self) -> "Sent":
        self._open.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.remove(self)

    @classmethod
    def add(cls, *values: Any) -> None:
        """Count one collective, or one exchange; of None, nothing is sent by this rank."""
        for counter in cls._open:
            counter.calls += 1
            counter.bytes += sum(_num_bytes(value) for value in values if value is not None)


class Checksum(int):
    """A number that stands for values, and says nothing by itself."""


class RankError(RuntimeError):
    """An error of another rank whose own type is not available here.

    With a mesh, an error of one rank is raised on all ranks as its own type. Only an error that cannot
    be pickled is raised on the other ranks as a `RankError`, with its type and message as text.

    Examples:
        >>> str(RankError("another rank failed with LocalError: disk is broken"))
        'another rank failed with LocalError: disk is broken'
    """


class Ranks(Protocol):
    """The processes that share the tiles of one image, as the passes over the tiles see them."""

    rank: int
    size: int

    def shares(self, tiles: Sequence[Tile]) -> list[list[Tile]]:
        """Return the tiles of every rank."""

    def agreeing(self) -> contextlib.AbstractContextManager[None]:
        """Within it, an error on one rank is raised on all."""

    def agree(self) -> None:
        """Wait for all ranks; raise if one has failed."""

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise unless these are the same on all ranks."""

    def merged(self, moments: Moments | None, like: Moments) -> Moments | None:
        """Merge the moments of all ranks."""

    def complete(self, array: Any, pieces: Sequence[Sequence[Index]]) -> None:
        """Fill in the pieces of `array` that other ranks computed."""

    def summed(
        self, values: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return the sums over all ranks; None where no rank has a value."""

    def exchanged(
        self, pieces: Sequence[Tensor | None], like: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Send a piece to each rank, and return what each sent to this one; None is not sent."""

    def anywhere(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""

    def gathered(self, value: Any) -> list[Any]:
        """Return the small values of all ranks."""

    def first(self, value: Any) -> Any:
        """Return the value of the first rank that has one."""

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of rank 0."""


class OneProcess:
    """A process that runs all tiles itself: nothing is merged."""

    rank, size = 0, 1

    def shares(self, tiles: Sequence[Tile]) -> list[list[Tile]]:
        return [list(tiles)]

    def agreeing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def agree(self) -> None:
        pass

    def compare(self, facts: Mapping[str, Any]) -> None:
        pass

    def merged(self, moments: Moments | None, like: Moments) -> Moments | None:
        return moments

    def complete(self, array: Any, pieces: Sequence[Sequence[Index]]) -> None:
        pass

    def summed(
        self, values: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> list[Tensor | None]:
        return list(values)

    def exchanged(
        self, pieces: Sequence[Tensor | None], like: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        return list(pieces)

    def anywhere(self, flag: bool) -> bool:
        return flag

    def gathered(self, value: Any) -> list[Any]:
        return [value]

    def first(self, value: Any) -> Any:
        return value

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)


class MeshRanks:
    """The ranks of a one-dimensional device mesh.

    Args:
        mesh: The mesh; this process is one of its ranks.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()
        self.rank = mesh.get_local_rank()
        self.size = mesh.size()
        backends = dist.get_backend_config(self.group)
        # numbers that a rank waits for: on a GPU they would wait for all of its kernels
        self.device = torch.device("cpu" if "cpu:" in backends else mesh.device_type)
        self.raised: BaseException | None = None

    def shares(self, tiles: Sequence[Tile]) -> list[list[Tile]]:
        """Consecutive tiles, in numbers that differ by one at most.

        A rank without a tile runs the first one with an empty core. So it knows all shapes, and has
        nothing to add.
        """
        few, more = divmod(len(tiles), self.size)
        ends = [rank * few + min(rank, more) for rank in range(self.size + 1)]
        idle = replace(tiles[0], core=tuple((0, 0) for _ in tiles[0].core))
        pairs = itertools.pairwise(ends)
        return [list(tiles[start:stop]) or [idle] for start, stop in pairs]

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        self.raised = None
        try:
            yield
            self._agree(None)
        except Exception as error:
            if self.raised is None:  # else all ranks know of it, or one is gone
                self._agree(error)
            raise
        finally:
            self.raised = None  # its traceback holds the tensors of all frames

    def agree(self) -> None:
        self._agree(None)

    def compare(self, facts: Mapping[str, Any]) -> None:
        everyone = self.gathered(dict(facts))
        for name, wanted in everyone[0].items():
            for rank, theirs in enumerate(everyone):
                if not _alike(wanted, theirs[name]):
                    other = f"{shown(wanted)} on rank 0 and {shown(theirs[name])} on rank {rank}"
                    if isinstance(wanted, list | Checksum):
                        other = f"other values on rank {rank} than on rank 0"
                    raise ValueError(
                        f"all ranks of the mesh must call with the same {name}, got {other}"
                    )

    def merged(self, moments: Moments | None, like: Moments) -> Moments | None:
        self.agree()
        here = replace(like, count=0) if moments is None else moments
        if self.size > MOST_GATHERED:
            return self._merged_by_sums(here)
        flat = torch.cat(
            [here.mean.new_tensor([here.count]), *map(torch.ravel, (here.mean, here.var))]
        )
        gathered = [torch.empty_like(flat) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(gathered, flat, group=self.group), flat)
        total: Moments | None = None
        for numbers in gathered:
            count = int(numbers[0])
            if count:
                mean, var = numbers[1:].reshape(2, *here.mean.shape)
                one = Moments(count, mean, var)
                total = one if total is None else total.merged(one)
        return total

    def _merged_by_sums(self, here: Moments) -> Moments | None:
        """Merge moments in two sums, of which the second is centered and does not cancel."""
        count = here.mean.new_tensor([here.count])
        first = torch.cat([count, (here.count * here.mean).ravel()])
        self._sum(first)
        total = int(first[0])
        if not total:
            return None
        mean = (first[1:] / total).reshape(here.mean.shape)
        second = here.count * (here.var + (here.mean - mean).square())
        self._sum(second)
        return Moments(total, mean, second / total)

    def complete(self, array: Any, pieces: Sequence[Sequence[Index]]) -> None:
        self.agree()
        for rank, own in enumerate(pieces):
            for index in own:
                piece = array[index]
                if 0 in piece.shape:
                    continue
                sent, raw = _bytes_of(piece)
                self._broadcast(raw, rank)
                if rank != self.rank:
                    array[index] = sent

    def summed(
        self, values: Sequence[Tensor | None], like: Sequence[Tensor]
    ) -> list[Tensor | None]:
        self.agree()
        flags = torch.tensor([v is not None for v in values], dtype=torch.int32, device=self.device)
        if len(flags):
            self._call(lambda: dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group), flags)
        result: list[Tensor | None] = [None] * len(values)
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i in flags.nonzero().ravel().tolist():
            kinds.setdefault((like[i].dtype, like[i].device), []).append(i)
        for places in kinds.values():
            own = [_dense(values[i], like[i]) for i in places]
            flat = torch.cat([t.reshape(-1) for t in own])
            self._sum(torch.view_as_real(flat) if flat.is_complex() else flat)
            ends = flat.split([t.numel() for t in own])
            for i, t, piece in zip(places, own, ends, strict=True):
                result[i] = piece.reshape(t.shape).clone()
        return result

    def exchanged(
        self, pieces: Sequence[Tensor | None], like: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        self.agree()
        received: list[Tensor | None] = [None] * self.size
        received[self.rank] = pieces[self.rank]
        steps: list[dist.P2POp] = []
        sent: list[Tensor] = []
        for rank in range(self.size):
            piece, empty = pieces[rank], like[rank]
            if rank == self.rank:
                continue
            if piece is not None:
                sent.append(piece.detach().contiguous())
                steps.append(self._step(dist.isend, sent[-1], rank))
            if empty is not None:
                got = torch.empty_like(empty, memory_format=torch.contiguous_format)
                received[rank] = got
                steps.append(self._step(dist.irecv, got, rank))
        if steps:
            self._call(lambda: [work.wait() for work in dist.batch_isend_irecv(steps)], *sent)
        return received

    def anywhere(self, flag: bool) -> bool:
        self.agree()
        return self._least(0 if flag else 1) == 0

    def gathered(self, value: Any) -> list[Any]:
        self.agree()
        gathered = [None] * self.size
        self._call(lambda: dist.all_gather_object(gathered, value, group=self.group), value)
        return gathered

    def first(self, value: Any) -> Any:
        self.agree()
        rank = self._least(self.size if value is None else self.rank)
        return None if rank == self.size else self._sent(value, rank)

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self.agree()
        result = []
        for t in tensors:
            sent = t.detach().clone(memory_format=torch.contiguous_format)
            if t.numel():
                self._broadcast(sent.reshape(-1).view(torch.uint8), 0)
            result.append(sent)
        return result

    def _agree(self, error: Exception | None) -> None:
        """Raise the error of the first rank that has one."""
        rank = self._least(self.size if error is None else self.rank)
        if rank == self.size:
            return
        sent = self._sent(None if error is None else _pickled(error), rank)
        self.raised = error if rank == self.rank else _unpickled(*sent)
        assert self.raised is not None
        note = f"raised by rank {rank} of {self.size}"
        if note not in getattr(self.raised, "__notes__", []):
            self.raised.add_note(note)
        raise self.raised

    def _least(self, number: int) -> int:
        least = torch.tensor(number, device=self.device)
        self._call(lambda: dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group), least)
        return int(least)

    def _sent(self, value: Any, rank: int) -> Any:
        """Return the value of one rank, on all."""
        sent = [value]
        source = value if rank == self.rank else None
        self._call(
            lambda: dist.broadcast_object_list(sent, group=self.group, group_src=rank), source
        )
        return sent[0]

    def _sum(self, t: Tensor) -> None:
        self._call(lambda: dist.all_reduce(t, group=self.group), t)

    def _broadcast(self, t: Tensor, rank: int) -> None:
        source = t if rank == self.rank else None
        self._call(lambda: dist.broadcast(t, group=self.group, group_src=rank), source)

    def _step(self, function: Callable[..., Any], t: Tensor, rank: int) -> dist.P2POp:
        """Return one half of an exchange with a rank, in bytes, which suit every dtype."""
        return dist.P2POp(function, t.view(-1).view(torch.uint8), None, self.group, 0, rank)

    def _call(self, collective: Callable[[], Any], *own: Any) -> None:
        """Call a collective and count what this rank sends.

        Where it fails, a rank is gone, and no agreement is possible.
        """
        Sent.add(*own)
        try:
            collective()
        except Exception as error:
            self.raised = error
            raise


def ranks_of(mesh: DeviceMesh | None) -> Ranks:
    """Return the ranks of a mesh; without one, this process alone."""
    if mesh is None:
        return OneProcess()
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names
        advice = (
            f"pass mesh[{names[-1]!r}]" if names else "name its dimensions and pass one of them"
        )
        raise ValueError(
            f"mesh must be one-dimensional, got {mesh.ndim} dimensions {tuple(mesh.shape)}; {advice}"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"mesh must contain the process that calls, got rank {dist.get_rank()} of "
            f"torch.distributed and a mesh of ranks {mesh.mesh.tolist()}"
        )
    return MeshRanks(mesh)


def is_shared(out: Any) -> bool:
    """Return whether all ranks see what one writes into `out`: not in the memory of a process."""
    if isinstance(out, np.memmap):
        return out.mode != "c"
    return not isinstance(out, (Tensor, np.ndarray))


def checksum(values: Any) -> Checksum:
    """Return the checksum of what `repr` shows of some values."""
    return _checksum_of(repr(values).encode())


def sample_of(x: Any) -> Checksum | None:
    """Return a checksum of a few values; None for arrays that are neither tensors nor of NumPy."""
    if not isinstance(x, (Tensor, np.ndarray)):
        return None
    few = x[tuple(slice(None, None, max(1, n // SAMPLES_PER_AXIS)) for n in x.shape)]
    if isinstance(few, Tensor):
        wide = torch.complex128 if few.is_complex() else torch.float64
        few = few.detach().to("cpu", wide).resolve_conj().numpy()
    return _checksum_of(np.ascontiguousarray(few).tobytes())


def _checksum_of(content: bytes) -> Checksum:
    return Checksum(2**32 + zlib.crc32(content))  # of equal length in a message, whatever the value


def sums_of(tensors: Sequence[Tensor]) -> list[float]:
    """Two sums per tensor, by which ranks notice that they hold other values."""
    sums = []
    for t in tensors:
        t = t.detach()
        t = (torch.view_as_real(t) if t.is_complex() else t).double()
        wave = torch.linspace(1, 2, t.numel(), dtype=t.dtype, device=t.device)
        sums.append(torch.stack([t.abs().sum(), wave @ t.reshape(-1)]))
    return torch.stack(sums).ravel().tolist() if sums else []


def _num_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, Tensor) else len(pickle.dumps(value))


def _bytes_of(piece: Any) -> tuple[Any, Tensor]:
    """Return a contiguous copy, and its memory: bytes are exact for every dtype and every backend."""
    if isinstance(piece, Tensor):
        own = piece.detach().contiguous()
        return own, own.reshape(-1).view(torch.uint8)
    array = np.ascontiguousarray(piece)
    return array, torch.from_numpy(array.reshape(-1).view(np.uint8))


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, list) or not isinstance(other, list):
        return bool(one == other)
    if len(one) != len(other):
        return False
    a, b = np.array(one), np.array(other)
    return bool(np.allclose(a, b, ROUNDING, ROUNDING, equal_nan=True))


def _dense(value: Tensor | None, like: Tensor) -> Tensor:
    if value is None:
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    value = value.detach().to(like.dtype)
    return value if value.layout is torch.strided else value.to_dense()


def _pickled(error: Exception) -> tuple[bytes | None, str]:
    told = f"{type(error).__name__}: {error}"
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return None, told
    return data, told


def _unpickled(data: bytes | None, told: str) -> BaseException:
    if data is not None:
        with contextlib.suppress(Exception):  # a type that this process does not know
            error = pickle.loads(data)
            if isinstance(error, Exception):
                return error
    return RankError(f"another rank failed with {told}")
