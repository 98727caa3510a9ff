"""Take state dicts of other projects as they are found, and give their entries the names of this one."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.checks import shown

# what tools put before every name: DataParallel, Lightning modules, torch.compile, wrappers
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the weights
LOOKED_FOR = f"(also looked for behind {', '.join(map(repr, PREFIXES))} and in {NESTED[0]!r})"
Replacement = str | Callable[[re.Match[str]], str] | None
Rules = Sequence[tuple[str, Replacement]]


def unwrapped(state: Mapping[str, Any], ignored: Collection[str] = ()) -> dict[str, Any]:
    """The entries of a state dict, or of the one in a checkpoint, without what tools put before names.

    Args:
        state: A state dict, or a checkpoint that holds one under "state_dict", as Lightning's does.
        ignored: Names of entries that are left out.

    Raises:
        ValueError: If a name is no string.

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
        # a checkpoint also holds what is beside the model, such as the weights of a loss
        if not found or (within is None and not all(n.startswith(found[0]) for n in entries)):
            break
        entries = {
            n.removeprefix(found[0]): v for n, v in entries.items() if n.startswith(found[0])
        }
    return {name: value for name, value in entries.items() if name not in ignored}


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor of an entry, whichever byte order and strides an array has.

    Args:
        name: Name of the entry, for the message.
        value: A tensor or a NumPy array.

    Raises:
        ValueError: If it is something else, or an array of something else than numbers.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if hasattr(value, "astype") and hasattr(
            value, "dtype"
        ):  # an array, of which torch is choosy
            value = value.astype(value.dtype.newbyteorder("=")).copy(order="C")
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} must be a tensor or an array, got {shown(value)}") from error


def rename(state: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    r"""Give every entry the name that the first fitting rule makes of its own.

    Args:
        state: Entries by name, in any order, which is kept.
        rules: Pairs of a regular expression for the whole name, and what replaces it: a template as
            in `re.sub`, a function of the match, or None to leave the entry out.

    Raises:
        ValueError: If no rule fits a name, or two entries get the same name.

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
    left_over = []
    for name, value in state.items():
        fitting = ((re.fullmatch(pattern, name), new) for pattern, new in rules)
        match, new = next(((match, new) for match, new in fitting if match), (None, None))
        if match is None:
            left_over.append(name)
        elif new is not None:
            ours = new(match) if callable(new) else match.expand(new)
            if ours in renamed:
                raise ValueError(f"two entries would be called {ours!r}, the second is {name!r}")
            renamed[ours] = value
    if left_over:
        raise ValueError(f"left over, no part of this model: {_first(left_over)} {LOOKED_FOR}")
    return renamed


def check_names(state: Collection[str], names: Collection[str]) -> None:
    """Refuse a state dict that lacks one of `names` or has another one.

    Args:
        state: The names that came.
        names: The names that are needed.

    Raises:
        ValueError: With the first names that are missing or left over.
    """
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"missing: {_first(missing)} {LOOKED_FOR}")
    if left_over := [name for name in state if name not in names]:
        raise ValueError(f"left over, no part of this model: {_first(left_over)} {LOOKED_FOR}")


def fill(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Copy all entries into a model, or none of them.

    Args:
        model: A module whose own state dict has exactly the names and shapes of `state`.
        state: Tensors or numpy arrays.

    Raises:
        ValueError: If an entry is missing, left over, or has another shape than the model's.

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
