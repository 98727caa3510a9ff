"""A model runs, and a visitor gets every call that needs the whole map, in the order of execution.

Such a call is a *site*: a normalization by the statistics of its input, or a submodule that is to run
on the whole low-resolution map. Normalizations are met as calls of torch's functions, so those in
modules of others are met too. The order of calls tells sites apart: a layer used twice is two sites.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from neurenix_ms._core.convolution import conv3d
from neurenix_ms._core.remember import Remembers
from neurenix_ms.execution.plan.patterns import nan_pattern
from neurenix_ms.execution.plan.statistics import Normalization, normalization


@dataclass
class Part:
    """A call of a submodule that runs whole."""

    name: str
    plain: Callable[[], Tensor]
    x: Tensor


Site = Normalization | Part
Asked = Literal["values", "shapes", "nan"]
BATCH_NORMS = (F.batch_norm, torch.batch_norm)
FASTER = {F.conv3d: conv3d}  # tiles are small, and those of other people's layers too
Visit = Callable[[int, Site], Tensor]
Watch = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], None]


class Interception(TorchFunctionMode):
    """While it is entered, sites go to `visit`, and every other call of torch to `watch`.

    Args:
        parts: The submodules that run whole, by name.
        visit: Gets the number of the site and the call, and returns the call's result.
        watch: Gets a function of torch, its result and its arguments.
        asked: With "shapes", a normalization by running statistics, which torch takes apart into many
            calls where tensors have no memory, returns an empty tensor; with "nan", convolutions pass
            on the places of NaN and no values.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        visit: Visit,
        watch: Watch | None = None,
        asked: Asked = "values",
    ) -> None:
        super().__init__()
        self.parts = parts
        self.visit = visit
        self.watch = watch
        self.asked = asked
        self.count = 0
        self.inside_a_part = False

    def __enter__(self) -> "Interception":
        self.count = 0
        self._originals = {name: part.__dict__.get("forward") for name, part in self.parts.items()}
        for name, part in self.parts.items():
            part.__dict__["forward"] = self._replacement(name, part.forward)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, part in self.parts.items():
            del part.__dict__["forward"]
            if self._originals[name] is not None:
                part.__dict__["forward"] = self._originals[name]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        func = FASTER.get(func, func)
        call = func
        if self.asked == "shapes" and func in BATCH_NORMS:
            call = of_the_shape
        elif self.asked == "nan":
            call = nan_pattern(func)
        if self.inside_a_part:
            return call(*args, **kwargs)
        norm = normalization(func, args, kwargs)
        result = call(*args, **kwargs) if norm is None else self._visited(norm)
        if self.watch is not None:
            self.watch(func, result, args, kwargs)
        return result

    def _visited(self, site: Site) -> Tensor:
        self.count += 1
        return self.visit(self.count - 1, site)

    def _replacement(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def replacement(*args: Any, **kwargs: Any) -> Tensor:
            if self.inside_a_part:
                return forward(*args, **kwargs)

            def plain() -> Tensor:
                self.inside_a_part = True
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.inside_a_part = False

            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            others = [leaf for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)]
            if len(tensors) != 1 or any(leaf is not None for leaf in others):
                raise ValueError(
                    f"a part that runs whole must be called with one tensor and nothing else, got "
                    f"{len(tensors)} tensors and {len(others)} other arguments for {name!r}"
                )
            return self._visited(Part(name, plain, tensors[0]))

        return replacement


def submodules(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """The submodules of these names."""
    found = dict(model.named_modules())
    for name in names:
        if name not in found or not name:
            raise ValueError(
                f"whole must name submodules of {type(model).__name__} as in named_modules(), "
                f"got {name!r}"
            )
    return {name: found[name] for name in names}


def of_the_shape(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """An empty tensor like the first argument."""
    return torch.empty_like(x)


@contextmanager
def nothing_remembered(model: nn.Module) -> Iterator[None]:
    """Let no module keep the features of a tile."""
    owners = [m for m in model.modules() if isinstance(m, Remembers)]
    switched = [m for m in owners if m.__dict__.get("remember") is True]
    for module in switched:
        module.__dict__["remember"] = False
    try:
        yield
    finally:
        for module in owners:
            module.clear_features()
        for module in switched:
            module.__dict__["remember"] = True
