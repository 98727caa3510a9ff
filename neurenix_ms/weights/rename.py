"""Unwrapping and renaming of the entries of state dicts of other projects."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import shown

# prefixes that tools add to every name: DataParallel, Lightning modules, torch.compile, wrappers
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the weights
LOOKED_FOR = f"(also with the prefixes {', '.join(map(repr, PREFIXES))} and in {NESTED[0]!r})"
Replacement = str | Callable[[re.Match[str]], str] | None
Rules = Sequence[tuple[str, Replacement]]


def unwrapped(state: Mapping[str, Any], ignored: Collection[str] = ()) -> dict[str, Any]:
    """Return the entries of a state dict, or of the one in a checkpoint, without prefixes of tools.

    Args:
        state: A state dict, or a checkpoint that holds one under "state_dict", as those of Lightning.
        ignored: Names of entries to leave out.

    Raises:
        ValueError: If a name is not a string.

    Examples:
        >>> unwrapped({"state_dict": {"model._orig_mod.conv.bias": 1, "loss.weight": 2}, "epoch": 3})
        {'conv.bias': 1}
    """
    within = next((state[key] for key in NESTED if isinstance(state.get(key), Mapping)), None)
    entries = dict(state if within is None else within)
    for name in entries:
        if not isinstance(name, str):
            raise ValueError(f"a state dict must have strings as names, got {shown(name)}")
    entries = {name: value for name, value in entries.items() if name not in ignored}
    while entries:
        found = [p for p in PREFIXES if any(name.startswith(p) for name in entries)]
        # a checkpoint may also hold entries outside of the model, such as the weights of a loss
        if not found or (within is None and not all(n.startswith(found[0]) for n in entries)):
            break
        entries = {
            n.removeprefix(found[0]): v for n, v in entries.items() if n.startswith(found[0])
        }
    return {name: value for name, value in entries.items() if name not in ignored}


def as_tensor(name: str, value: Any) -> Tensor:
    """Return an entry as a tensor; an array may have any byte order and strides.

    Args:
        name: Name of the entry, for the message.
        value: A tensor or a NumPy array.

    Raises:
        ValueError: If it is neither, or an array that does not hold numbers.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if hasattr(value, "astype") and hasattr(
            value, "dtype"
        ):  # torch accepts only arrays in native byte order with positive strides
            value = value.astype(value.dtype.newbyteorder("=")).copy(order="C")
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} must be a tensor or an array, got {shown(value)}") from error


def rename(state: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    r"""Rename every entry by the first rule that matches its name.

    Args:
        state: Entries by name; their order is kept.
        rules: Pairs of a regular expression for the whole name and its replacement: a template as in
            `re.sub`, a function of the match, or None to leave the entry out.

    Raises:
        ValueError: If no rule matches a name, or two entries get the same name.

    Examples:
        >>> rules = [
        ...     (r"head\.conv\.(.*)", r"first.\1"),
        ...     (r"body\.block(\d)\.(.*)", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}"),
        ...     (r"mask_values", None),
        ... ]
        >>> rename({"head.conv.bias": 1, "body.block1.weight": 2, "mask_values": 3}, rules)
        {'first.bias': 1, 'blocks.0.weight': 2}
    """
    renamed: dict[str, Any] = {}
    unexpected = []
    for name, value in state.items():
        fitting = ((re.fullmatch(pattern, name), new) for pattern, new in rules)
        match, new = next(((match, new) for match, new in fitting if match), (None, None))
        if match is None:
            unexpected.append(name)
        elif new is not None:
            ours = new(match) if callable(new) else match.expand(new)
            if ours in renamed:
                raise ValueError(f"two entries would be called {ours!r}, the second is {name!r}")
            renamed[ours] = value
    _check_none(unexpected)
    return renamed


def check_names(state: Collection[str], names: Collection[str]) -> None:
    """Raise unless a state dict has exactly the given names.

    Args:
        state: The names of the state dict.
        names: The names required.

    Raises:
        ValueError: If names are missing or unexpected; the message has the first ones.
    """
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"the state dict must have {_first(missing)}, missing {LOOKED_FOR}")
    _check_none([name for name in state if name not in names])


def _check_none(unexpected: Sequence[str]) -> None:
    if unexpected:
        raise ValueError(
            "the state dict must hold entries of this model only, got unexpected "
            f"{_first(unexpected)} {LOOKED_FOR}"
        )


def fill(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Copy all entries into a model, or none of them.

    Args:
        model: A module whose own state dict has exactly the names and shapes of `state`.
        state: Tensors or NumPy arrays.

    Raises:
        ValueError: If an entry is missing, unexpected or has the wrong shape.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> fill(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        >>> layer(torch.ones(2)).item()
        2.0
    """
    own = model.state_dict()
    check_names(state.keys(), own.keys())
    tensors = {name: as_tensor(name, value) for name, value in state.items()}
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{name} must have shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}"
            )
    model.load_state_dict(tensors, strict=True)


def _first(names: Iterable[str], count: int = 3) -> str:
    shown = list(names)
    more = f" and {len(shown) - count} more" if len(shown) > count else ""
    return ", ".join(map(repr, shown[:count])) + more
