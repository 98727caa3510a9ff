"""Intercept the calls of a model that need the whole input, in the order of execution.

Such a call is a *site*: a normalization by the statistics of its input, or a submodule that is to run
on its whole low-resolution feature map (a *part run whole*). Normalizations are intercepted as calls of
torch's functions, which works for the modules of other libraries too. The order of calls identifies
sites, so a layer used twice is two sites.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from neurenix_ms._core.convolution import conv3d
from neurenix_ms._core.remember import Remembers
from neurenix_ms.execution.plan.arguments import Others, parted
from neurenix_ms.execution.plan.patterns import nan_pattern
from neurenix_ms.execution.plan.shapes import of_its_shape
from neurenix_ms.execution.plan.statistics import Normalization, normalization


@dataclass
class Part:
    """A call of a submodule that runs whole, with a feature map `x` and `others`.

    `forward` is that of the submodule; calls inside it are no sites.
    """

    name: str
    forward: Callable[..., Tensor]
    x: Tensor
    others: Others

    def plain(self) -> Tensor:
        """Make the call."""
        return self.others.call(self.forward, self.x)


Site = Normalization | Part
Asked = Literal["values", "shapes", "nan"]
FASTER = {
    F.conv3d: conv3d
}  # faster on small inputs such as tiles, for layers of other libraries too
Visit = Callable[[int, Site], Tensor]
Watch = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], None]


class Interception(TorchFunctionMode):
    """Context in which sites are passed to `visit`, and every other call of torch to `watch`.

    Args:
        parts: The submodules that run whole, by name.
        visit: Takes the number of the site and the call, and returns the call's result.
        watch: Takes a function of torch, its result and its arguments.
        asked: With "shapes", normalizations and resizing return any values of the right shape; with
            "nan", convolutions propagate the positions of NaN and no values.
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
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
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
        if self.asked == "shapes":
            call = of_its_shape(func)
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
        def inside(*args: Any, **kwargs: Any) -> Tensor:
            self.inside_a_part = True
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside_a_part = False

        def replacement(*args: Any, **kwargs: Any) -> Tensor:
            if self.inside_a_part:
                return forward(*args, **kwargs)

            given = parted(args, kwargs)
            if given is None:
                leaves = tree_leaves((args, kwargs))
                tensors = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
                raise ValueError(
                    "a part run whole must be called with one feature map, and else with vectors (B, K) "
                    f"only, got tensors of shapes {tensors} and {len(leaves) - len(tensors)} other "
                    f"arguments for {name!r}"
                )
            return self._visited(Part(name, inside, *given))

        return replacement


def submodules(
    model: nn.Module, names: tuple[str, ...], argument: str = "whole"
) -> dict[str, nn.Module]:
    """Return the submodules of these names."""
    found = dict(model.named_modules())
    for name in names:
        if name not in found or not name:
            raise ValueError(
                f"{argument} must name submodules of {type(model).__name__} as in named_modules(), "
                f"got {name!r}"
            )
    return {name: found[name] for name in names}


@contextmanager
def without_cached_features(model: nn.Module) -> Iterator[None]:
    """Keep modules from caching the features of a tile."""
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
