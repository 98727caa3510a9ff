"""Forms in which variants are compared: size, batch, dtype, device, memory format, compiled or not."""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from neurenix_ms._core.checks import check_flag, shown

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
LONGEST = 600  # characters of a message that is shown in a row of a report


@dataclass(frozen=True)
class Form:
    """One combination of what a comparison varies.

    Args:
        device: Where everything runs.
        dtype: Of parameters and inputs; as they are if None.
        size: Size with which `inputs` is called.
        batch: Batch size with which `inputs` is called.
        compile: Whether modules are compiled.
        channels_last: Whether images and volumes have their channels last in memory.
        params: The options that were given, by name, as shown in names and tables.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    size: Any = None
    batch: int | None = None
    compile: bool = False
    channels_last: bool = False
    params: dict[str, Any] = field(default_factory=dict)

    def inputs(self, made: Any) -> tuple[Any, ...]:
        """Return positional arguments of a call: `made`, or what it returns, on this device.

        Raises:
            ValueError: If a size or a batch is asked for and `made` cannot be called with it.
        """
        if callable(made) and not isinstance(made, Tensor):
            made = made(**self._arguments(made))
        elif self.size is not None or self.batch is not None:
            raise ValueError(
                "inputs must be a function of batch and size where these are given, "
                f"got {shown(made)}"
            )
        return tuple(self._placed(x) for x in (made if isinstance(made, tuple) else (made,)))

    def way(self, way: Callable[..., Any], train: bool) -> Callable[..., Any]:
        """Copy a module to this device, in this mode and form; return another callable as it is."""
        if not isinstance(way, nn.Module):
            return way
        copied = copy.deepcopy(way).to(self.device, self.dtype).train(train)
        for parameter in copied.parameters() if self.channels_last else ():
            if parameter.ndim in LAYOUTS:
                layout = LAYOUTS[parameter.ndim]
                parameter.data = parameter.data.contiguous(memory_format=layout)
        return copied

    def _arguments(self, make: Callable[..., Any]) -> dict[str, Any]:
        taken = inspect.signature(make).parameters
        every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        arguments = {}
        for name, value in {"batch": self.batch, "size": self.size}.items():
            if value is None and name in taken and taken[name].default is inspect.Parameter.empty:
                if name == "size":
                    raise ValueError(
                        "sizes must be given where inputs is a function of size, got None"
                    )
                value = 1
            if value is None:
                continue
            if name not in taken and not every:
                raise ValueError(
                    f"inputs must have an argument {name!r} where {name} is given, got "
                    f"a function of {list(taken)}"
                )
            arguments[name] = value
        return arguments

    def _placed(self, tree: Any) -> Any:
        def place(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            y = x.detach().to(self.device, self.dtype if x.is_floating_point() else None)
            if self.channels_last and y.ndim in LAYOUTS:
                y = y.contiguous(memory_format=LAYOUTS[y.ndim])
            return y.requires_grad_(x.requires_grad)

        return tree_map(place, tree)


def forms(
    default_device: torch.device,
    *,
    sizes: Any = None,
    batch: Any = None,
    dtype: Any = None,
    device: Any = None,
    compile: Any = None,
    channels_last: Any = None,
) -> Iterator[Form]:
    """Return every combination of the values; each argument is None, one value or a list of values.

    Raises:
        ValueError: If a dtype or a device is invalid, or `compile` or `channels_last` is not a bool.
    """
    axes = {
        "size": _values(sizes),
        "batch": _values(batch),
        "dtype": [as_dtype(value) for value in _values(dtype)],
        "device": [as_device(value) for value in _values(device)] or [default_device],
        "compile": [check_flag("compile", value) for value in _values(compile)],
        "channels_last": [check_flag("channels_last", value) for value in _values(channels_last)],
    }
    named = {name for name, values in axes.items() if values}
    if len(axes["device"]) == 1:  # one device is a matter of the machine, not of the case
        named.discard("device")
    for values in itertools.product(*(values or [None] for values in axes.values())):
        chosen = {name: v for name, v in zip(axes, values, strict=True) if v is not None}
        params = {name: _short(v) for name, v in chosen.items() if name in named}
        yield Form(**chosen, params=params)


def default_device() -> torch.device:
    """Return a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_dtype(value: Any) -> torch.dtype:
    """Return a dtype of torch, also by its name."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a dtype of torch, got {shown(value)}")
    return dtype


def as_device(value: Any) -> torch.device:
    """Return a device of torch, also by its name; this machine need not have it."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be a device of torch, got {shown(value)} ({first_line(error)})"
        ) from None


def check_device(device: torch.device) -> None:
    """Raise unless this machine has the device.

    Raises:
        ValueError: If it does not, or the device is "meta".
    """
    if device.type == "meta":
        raise ValueError(
            "device must be one that holds values, got 'meta'; predict_memory works from shapes alone"
        )
    try:
        torch.empty(1, device=device)
    except Exception as error:  # of any kind: every backend raises its own
        raise ValueError(
            f"device must be one of this machine, got {str(device)!r} ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of a message, cut where it is long; the kind of the error if it has none."""
    words = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return words if len(words) <= LONGEST else f"{words[:LONGEST].rstrip()} ..."


def in_words(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    kind, words = type(error).__name__, first_line(error)
    return kind if words == kind else f"{kind}: {words}"


def tensors(tree: Any) -> list[Tensor]:
    """Return all tensors of a structure."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _values(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | range) else [given]


def _short(value: Any) -> Any:
    """Return a value in the form of the name of a case."""
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(str, value))
    return value
