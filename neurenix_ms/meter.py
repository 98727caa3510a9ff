"""Parameters of a module, and peak memory and FLOPs of a call."""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.operators import Uncounted

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


@checked
def parameter_table(model: nn.Module) -> list[tuple[str, int]]:
    """Return name and number of values of every parameter, in order of registration, and the total.

    A parameter that is used under several names is listed and counted once.

    Args:
        model: Any module.

    Examples:
        >>> parameter_table(nn.Linear(3, 2))
        [('weight', 6), ('bias', 2), ('total', 8)]
    """
    counts = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    return [*counts, ("total", sum(count for _, count in counts))]


@checked
def format_parameter_table(model: nn.Module) -> str:
    """Format `parameter_table` as text: a line per parameter, the total under a rule.

    Use it to print a model; to compute with the numbers, use `parameter_table`.

    Args:
        model: Any module.

    Examples:
        >>> print(format_parameter_table(nn.Conv2d(3, 64, 3)))
        name    parameters
        ------------------
        weight       1,728
        bias            64
        ------------------
        total        1,792
    """
    rows = [("name", "parameters")]
    rows += [(name, f"{count:,}") for name, count in parameter_table(model)]
    first, second = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{name:<{first}}  {count:>{second}}" for name, count in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


@checked
def peak_tensor_bytes(call: Callable[[], object], *, of_shapes: bool = False) -> int:
    """Return the most bytes of tensors made by `call` that were alive at one moment.

    The number is the same in every run and for every number of threads, so a test can rely on it. It
    counts storages, so views and in-place results add nothing, and a backward pass inside `call` is
    included. It does not count the workspace inside a kernel, the inside of a compiled function, or
    sparse tensors.

    Args:
        call: Function to measure; it takes no arguments, and its result is discarded.
        of_shapes: Count tensors without values (on the meta device, or fake) by the memory that they
            would take, instead of tensors in memory.

    Examples:
        >>> x = torch.zeros(256)
        >>> peak_tensor_bytes(lambda: x.exp().view(16, 16))
        1024
        >>> peak_tensor_bytes(lambda: x.exp().exp().exp())
        2048
    """
    with LiveStorages(of_shapes) as live:
        call()
    return live.peak


@overload
def count_flops(call: Callable[[], object]) -> int: ...
@overload
def count_flops(call: Callable[[], object], *, uncounted: Literal[False]) -> int: ...
@overload
def count_flops(
    call: Callable[[], object], *, uncounted: Literal[True]
) -> tuple[int, dict[str, int]]: ...
@checked
def count_flops(
    call: Callable[[], object], *, uncounted: bool = False
) -> int | tuple[int, dict[str, int]]:
    """Count the floating-point operations of the convolutions and matrix products of `call`.

    Backward passes inside `call` are included, and a multiply-add is two operations. Which operators are
    counted is the choice of `torch.utils.flop_counter`: convolutions, matrix products, and some forms of
    attention. Elementwise operations and sums are not counted. All other operations (FFT, pooling,
    resizing, normalization, `grid_sample`, recurrent layers and attention on the CPU, custom operators)
    are not counted either, so check `uncounted` before you compare two networks.

    Args:
        call: Function to measure; it takes no arguments, and its result is discarded.
        uncounted: Also return the operators that are not counted. Code outside of torch, and the inside
            of a compiled function, cannot be detected.

    Returns:
        The number of operations; with `uncounted`, also the number of calls of each operator that is not
        counted, by name.

    Examples:
        >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
        60
        >>> count_flops(lambda: torch.fft.rfft(torch.ones(64)), uncounted=True)
        (0, {'_fft_r2c': 1})
    """
    with Uncounted() as others, FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    return (flops, dict(others.calls)) if uncounted else flops


@checked
def peak_resident_bytes(call: Callable[[], object]) -> int | None:
    """Measure how far the resident memory of this process grows during `call`.

    All memory counts that the system allocates during the call, including workspace inside kernels;
    memory that the process had before does not count. Below 16 MiB the result is imprecise, because the
    operating system rounds its counts. The function lowers malloc's threshold for large blocks for the
    rest of the process, so measure times in another process.

    Args:
        call: Function to measure; it takes no arguments, and its result is discarded.

    Returns:
        Bytes, or None if the system does not count them: outside Linux, or if `/proc` is not readable.

    Examples:
        >>> grown = peak_resident_bytes(lambda: torch.ones(2**24))  # 64 MiB of floats
        >>> grown is None or grown > 60 * 2**20
        True
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    gc.collect()
    if hasattr(libc, "malloc_trim"):  # glibc keeps freed pages otherwise; others do not
        libc.mallopt(MMAP_THRESHOLD, 65536)
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        start = _status_bytes("VmRSS")
    except OSError:
        return None
    call()
    return max(0, _status_bytes("VmHWM") - start)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


BATCH_NORM = torch.ops.aten.native_batch_norm.default


class LiveStorages(TorchDispatchMode):
    """Keeps the bytes of all storages born since it was entered, and their maximum."""

    def __init__(self, of_shapes: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of_shapes = of_shapes
        self.live = 0
        self.peak = 0
        self.counted: dict[int, int] = {}  # bytes by address; 0 for what was there before
        self.sharing: dict[
            int, set[int]
        ] = {}  # addresses of storages with one memory, until written

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._count(storage, 0)
        is_slow = self.of_shapes and func is BATCH_NORM
        result = _normalized(*args) if is_slow else func(*args, **kwargs)
        for storage in _storages(result):
            counts = (storage.device.type == "meta") is self.of_shapes
            self._count(storage, storage.nbytes() if counts else 0)
        if func is torch.ops.aten._lazy_clone.default:
            self._share(*_storages((args, result)))
        elif self.sharing:
            self._separate(_written(func, args, kwargs) if self.of_shapes else (args, kwargs))
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        address = storage._cdata
        if address not in self.counted:
            self.counted[address] = size
            self.live += size
            weakref.finalize(storage, self._forget, address).atexit = False

    def _forget(self, address: int) -> None:
        self._leave(address)
        self.live -= self.counted.pop(address)

    def _share(self, original: torch.UntypedStorage, copy: torch.UntypedStorage) -> None:
        """Count no bytes for a copy on write until it is written to."""
        group = self.sharing.setdefault(original._cdata, {original._cdata})
        group.add(copy._cdata)
        self.sharing[copy._cdata] = group
        self._set(copy._cdata, 0)

    def _separate(self, tree: Any) -> None:
        """Count the memory of what was written to as its own."""
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            # tensors without memory do not tell; of those, only what was written to is in the tree
            shares = not self.of_shapes and torch._C._is_cow_tensor(tensor)  # type: ignore[attr-defined]
            written = storage._cdata in self.sharing and not shares
            if written and self._leave(storage._cdata):
                self._set(storage._cdata, storage.nbytes())

    def _leave(self, address: int) -> bool:
        """Take a storage out of its group, and tell whether others stay behind with the memory."""
        group = self.sharing.pop(address, {address})
        group.discard(address)
        if group and self.counted[address]:  # one of those that stay answers for the memory
            heir = next(iter(group))
            self._set(heir, self.counted[address])
            self._set(address, 0)
        if len(group) == 1:
            del self.sharing[group.pop()]
            return True
        return bool(group)

    def _set(self, address: int, size: int) -> None:
        self.live += size - self.counted[address]
        self.counted[address] = size


def _normalized(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return tensors of the shapes of `native_batch_norm`, which torch would decompose."""
    has_memory = x.untyped_storage().device.type != "meta"
    if has_memory or x.dtype not in (torch.float32, torch.float64):
        return BATCH_NORM(x, *args)
    training = args[4]
    moments = x.shape[1] if training else 0
    return torch.empty_like(x), x.new_empty(moments), x.new_empty(moments)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operator writes to, by its schema."""
    if not isinstance(func, OpOverload):
        return [args, kwargs]
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    aliases = {a.name: a.alias_info for a in func._schema.arguments if a.alias_info is not None}
    return [value for name, value in given.items() if name in aliases and aliases[name].is_write]


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
