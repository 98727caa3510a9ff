"""Checks of single arguments that return a plain Python value or raise a `ValueError`.

A message names the argument, what is needed and what was given. Constructors call the checks through
`neurenix_ms._core.arguments.checked`, which chooses the check by the annotation of the argument.
"""

import math
import operator
import reprlib
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import Proxy

LARGEST_INTEGER = 2**63 - 1  # the largest size of a tensor
LONGEST_SEQUENCE = 2**20

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlist = _short.maxtuple = 8


def check_integer(
    name: str, value: Any, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return an integer as a plain `int`; NumPy integers and 0-d integer tensors are accepted.

    Args:
        name: Name of the argument.
        value: The value given.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.

    Raises:
        ValueError: If the value is not an integer (bools do not count), or out of range.

    Examples:
        >>> import torch
        >>> check_integer("num_levels", torch.tensor(3), minimum=1)
        3
        >>> check_integer("num_levels", 2.5)
        Traceback (most recent call last):
        ValueError: num_levels must be an integer, got 2.5
    """
    number = _integer(value)
    if number is None:
        raise ValueError(f"{name} must be an integer, got {shown(value)}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(number)}")
    most = LARGEST_INTEGER if maximum is None else maximum
    if number > most or number < -LARGEST_INTEGER:
        raise ValueError(f"{name} must be at most {most}, got {shown(number)}")
    return number


def check_odd(name: str, value: Any) -> int:
    """Return an odd integer of at least 1."""
    number = check_integer(name, value)
    if number < 1 or number % 2 == 0:
        raise ValueError(f"{name} must be odd and at least 1, got {shown(number)}")
    return number


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite real number as a plain `float`; NumPy scalars and 0-d tensors are accepted.

    Args:
        name: Name of the argument.
        value: The value given.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        above: Lower bound that the value must exceed.
        below: Upper bound that the value must not reach.

    Raises:
        ValueError: If the value is not a number (bools do not count), not finite, or out of range.

    Examples:
        >>> check_number("dropout", 0, minimum=0, below=1)
        0.0
    """
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(value)}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {shown(value)}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be above {above}, got {shown(value)}")
    if below is not None and number >= below:
        raise ValueError(f"{name} must be below {below}, got {shown(value)}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Return True or False as a plain `bool`; NumPy bools and 0-d bool tensors are accepted."""
    if type(value) is bool:
        return value
    if "bool" in str(getattr(value, "dtype", "")) and not _has_axes(value):
        flag = _item(value)
        if type(flag) is bool:
            return flag
    raise ValueError(f"{name} must be True or False, got {shown(value)}")


def check_text(name: str, value: Any) -> str:
    """Return a string as a plain `str`; NumPy strings and members of a `StrEnum` are accepted."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {shown(value)}")
    return str.__str__(value)


def check_name(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Return the entry of `choices` that `value` equals, in its type there.

    Args:
        name: Name of the argument.
        value: The value given; it need not be hashable.
        choices: Strings, integers and None, or a table that has them as keys.

    Raises:
        ValueError: If the value is not one of the choices.

    Examples:
        >>> check_name("pool_type", "avg", {"avg": 1, "max": 2})
        'avg'
        >>> check_name("norm", ["batch"], ["batch", None])
        Traceback (most recent call last):
        ...
        ValueError: norm must be one of ['batch', None], got ['batch']
    """
    plain = str.__str__(value) if isinstance(value, str) else _integer(value)
    for choice in choices:
        if value is choice or (
            plain is not None and type(plain) is type(choice) and plain == choice
        ):
            return choice
    raise ValueError(f"{name} must be one of {list(choices)}, got {shown(value)}")


def check_sequence(name: str, value: Any, kind: str = "values") -> list[Any]:
    """Return the entries of a sequence, NumPy array or tensor as a list.

    Args:
        name: Name of the argument.
        value: The value given.
        kind: What the entries are, in the plural, for the message.

    Raises:
        ValueError: If the value is not a sequence (strings do not count), or is an array or tensor
            that does not have one axis.

    Examples:
        >>> check_sequence("features", (4, 8))
        [4, 8]
    """
    wrong = isinstance(value, str | bytes | Mapping | Set) or getattr(value, "ndim", 1) != 1
    if wrong or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise ValueError(f"{name} must be a sequence of {kind}, got {shown(value)}")
    if len(value) > LONGEST_SEQUENCE:
        raise ValueError(f"{name} must have at most {LONGEST_SEQUENCE} entries, got {len(value)}")
    return list(value)


def check_integers(
    name: str,
    value: Any,
    minimum: int | None = None,
    *,
    length: int | None = None,
    min_length: int = 0,
) -> list[int]:
    """Return a sequence of integers as a list of plain `int`.

    Args:
        name: Name of the argument.
        value: The value given.
        minimum: Smallest value of an entry.
        length: Number of entries required.
        min_length: Smallest number of entries allowed.

    Raises:
        ValueError: If the value is not a sequence, has the wrong length, or an entry is not an integer
            or below `minimum`.

    Examples:
        >>> import torch
        >>> check_integers("features", torch.tensor([4, 8]), minimum=1)
        [4, 8]
        >>> check_integers("features", [4, "8"])
        Traceback (most recent call last):
        ValueError: features[1] must be an integer, got '8'
    """
    entries = check_sequence(name, value, "integers")
    _check_length(name, entries, length, min_length)
    return [check_integer(f"{name}[{i}]", entry, minimum) for i, entry in enumerate(entries)]


def check_numbers(
    name: str, value: Any, *, length: int | None = None, min_length: int = 0, **limits: float
) -> list[float]:
    """Return a sequence of finite numbers as a list of plain `float`; `limits` as in `check_number`."""
    entries = check_sequence(name, value, "numbers")
    _check_length(name, entries, length, min_length)
    return [check_number(f"{name}[{i}]", entry, **limits) for i, entry in enumerate(entries)]


def check_callable(name: str, value: Any) -> Callable[..., Any]:
    """Return the value, or raise if it cannot be called."""
    if not callable(value):
        raise ValueError(f"{name} must be callable, got {shown(value)}")
    return value


def check_module(name: str, value: Any) -> nn.Module:
    """Return the value, or raise if it is not a module; a module class does not count."""
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name} must be a torch.nn.Module, got {shown(value)}")
    return value


def check_tensor(name: str, value: Any) -> Tensor:
    """Return the value, or raise if it is neither a tensor nor a placeholder of `torch.fx`."""
    if not isinstance(value, (Tensor, Proxy)):
        raise ValueError(f"{name} must be a tensor, got {shown(value)}")
    return cast(Tensor, value)


def check_made(name: str, make: Callable[..., Any], *args: Any) -> nn.Module:
    """Return the module that `make(*args)` gives, for arguments such as `norm` and `act`.

    Raises:
        ValueError: If `make` does not take these arguments, or its result is not a module.

    Examples:
        >>> check_made("act", nn.ReLU)
        ReLU()
    """
    try:
        module = make(*args)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a callable that makes a module of {args}, got {shown(make)} ({error})"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must make a torch.nn.Module of {args}, got {shown(module)}")
    return module


def shown(value: Any) -> str:
    """Return a short description of a value: its shortened `repr`, a shape and dtype, or a class."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and getattr(value, "ndim", 1) > 0:
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, nn.Module):
        return f"a module {type(value).__name__}"
    try:
        return _short.repr(value)
    except Exception:  # the `repr` of another library fails, or an integer has too many digits
        return f"a value of type {type(value).__name__}"


def _check_length(name: str, entries: list[Any], length: int | None, least: int) -> None:
    if length is not None and len(entries) != length:
        raise ValueError(f"{name} must have {length} entries, got {shown(entries)}")
    if len(entries) < least:
        raise ValueError(f"{name} must have at least {least} entry, got {shown(entries)}")


def _integer(value: Any) -> int | None:
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if is_bool or _has_axes(value):
        return None
    try:
        return int(operator.index(value))
    except (TypeError, ValueError, RuntimeError):
        return None


def _number(value: Any) -> float | None:
    if type(value) is float:
        return value
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool | str | bytes | complex) or "bool" in kind or "complex" in kind:
        return None
    if _has_axes(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _has_axes(value: Any) -> bool:
    return hasattr(value, "ndim") and value.ndim != 0


def _item(value: Any) -> Any:
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError):
        return None
