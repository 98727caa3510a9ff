"""A model runs, and what happens is noted: every tensor, every site, every call of a submodule."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from neurenix_ms.checkpointing import enable_gradient_checkpointing, statistics_kept
from neurenix_ms.execution.plan.culprits import ADVICE, LayerError, SizeError, called, failing_layer
from neurenix_ms.execution.plan.mixing import cells_combined
from neurenix_ms.execution.plan.sites import Asked, Interception, Part, Site, nothing_remembered
from neurenix_ms.execution.plan.statistics import Normalization
from neurenix_ms.execution.progress import tell_of_a_long_search


@dataclass(frozen=True)
class Seen:
    """A tensor that a function of torch returned, and in which module.

    `combined` is the number of cells in one of its values, where the function combines all of an axis;
    `ends_fixed` tells that it was resized with `align_corners=True`.
    """

    layer: str
    function: str
    tensor: Tensor
    combined: int = 0
    ends_fixed: bool = False


@dataclass(frozen=True)
class ModuleCall:
    """A call of a submodule.

    It is `alone` if it got one tensor, left that as it was and returned one, and nothing else.
    """

    name: str
    alone: bool
    x: Tensor | None
    y: Tensor | None


@dataclass
class Run:
    """What happened while the model ran: every tensor, site and call of a module, and the outputs."""

    model: str = ""  # the name of its class
    seen: list[Seen] = field(default_factory=list)
    sites: list[tuple[Site, Tensor]] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # of the sites
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    structure: TreeSpec | None = None

    def site_index(self, number: int) -> int:
        """Where the input of a site stands in `tensors()`; its result follows."""
        return len(self.seen) + 2 * number

    def tensors(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """Every tensor, under a key by which it is found again in a run on another size."""
        seen = [((s.layer, s.function), s.tensor) for s in self.seen]
        sites = [(("site",), t) for site, result in self.sites for t in (site.x, result)]
        calls = [((c.name, "module"), t) for c in self.calls for t in (c.x, c.y) if t is not None]
        return [*seen, *sites, *calls, *((("output",), t) for t in self.outputs)]


def counterparts(run: Run, other: Run) -> list[Tensor | None]:
    """For every tensor of `run` the same one of `other`; sizes that need no padding leave some out."""
    theirs = [t for _, t in other.tensors()]
    return [None if i is None else theirs[i] for i in matches(run, other)]


def matches(run: Run, other: Run) -> list[int | None]:
    """For every tensor of `run` where the same one stands in `other`."""
    keys, other_keys = ([key for key, _ in r.tensors()] for r in (run, other))
    if keys == other_keys:
        return list(range(len(keys)))
    if len(run.sites) != len(other.sites) or len(run.outputs) != len(other.outputs):
        raise ValueError(
            "a model run in tiles must do the same on maps of every size, got "
            f"{run.model} with {len(run.sites)} sites and {len(run.outputs)} outputs on one size, "
            f"{len(other.sites)} and {len(other.outputs)} on another; name the submodule that decides "
            "by the size in whole=(...), or replace it"
        )
    found: list[int | None] = [None] * len(keys)
    for i, j, n in SequenceMatcher(None, keys, other_keys, autojunk=False).get_matching_blocks():
        found[i : i + n] = range(j, j + n)
    return found


def observe(
    model: nn.Module,
    x: Tensor,
    parts: Mapping[str, nn.Module],
    answer: Callable[[int, Site], Tensor],
    listen: Callable[[int, Seen], None] | None = None,
    asked: Asked = "values",
) -> Run:
    """Run `model` on `x`, sites answered by `answer`, and note what happens.

    Where only "shapes", or the places of "nan", are `asked`, values are arbitrary.
    """
    run = Run(type(model).__name__)
    names: list[str] = [""]
    versions: list[list[int]] = []

    def visit(index: int, site: Site) -> Tensor:
        if asked == "shapes" and isinstance(site, Normalization):
            result = site.of_its_shape()
        else:
            result = answer(index, site)
        # a copy of what a part gives: what follows may write over it
        kept = result.clone() if isinstance(site, Part) else result
        run.sites.append((site, kept))
        run.layers.append(site.name if isinstance(site, Part) else names[-1])
        return result

    def watch(
        function: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        tell_of_a_long_search()
        name = getattr(function, "__name__", str(function))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        combined = cells_combined(function, args, kwargs, result) if leaves else 0
        for leaf in leaves:
            run.seen.append(Seen(names[-1], name, leaf, combined))
            if listen is not None:
                listen(len(run.seen) - 1, run.seen[-1])
        if function in (F.interpolate, F.upsample):
            x = args[0] if args else kwargs["input"]
            ends_fixed = bool(args[4] if len(args) > 4 else kwargs.get("align_corners"))
            run.seen.append(Seen(names[-1], "resized", x, ends_fixed=ends_fixed))

    def enter(name: str) -> Callable[..., None]:
        def pushed(module: nn.Module, args: Any, kwargs: Any) -> None:
            names.append(name)
            versions.append(_version(args, kwargs))

        return pushed

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if result is not None and not mode.inside_a_part:
            leaves = tree_leaves((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            only = len(tensors) == 1 and all(leaf is None or leaf is tensors[0] for leaf in leaves)
            untouched = versions[-1] == _version(args, kwargs)
            alone = only and untouched and isinstance(result, Tensor)
            ends = (tensors[0], result) if alone else (None, None)
            run.calls.append(ModuleCall(names[-1], alone, *ends))
        names.pop()
        versions.pop()

    mode = Interception(parts, visit, watch, asked)
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        with (
            torch.no_grad(),
            enable_gradient_checkpointing(False),
            statistics_kept(model),
            nothing_remembered(model),
            mode,
        ):
            leaves, run.structure = tree_flatten(model(x))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        layer = failing_layer(model, error)
        if layer is None:
            raise
        if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
            raise LayerError(
                "what a model run in tiles does must not depend on values, got "
                f"{called(model, layer)} ({error.func}); {ADVICE}",
                layer,
            ) from error
        said = str(error).strip().split("\n")[0][:200]
        raise SizeError(
            "a model run in tiles must take maps of other sizes, too, got "
            f"{type(error).__name__} in {called(model, layer)} for shape {tuple(x.shape)} ({said}); "
            f"take a size that it was made for, {ADVICE}",
            layer,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(t).__name__ for t in leaves if not isinstance(t, Tensor)})
        raise ValueError(
            f"a model run in tiles must return tensors only, got {kinds} of {run.model}; wrap it in a "
            "module that returns its tensors"
        )
    run.outputs = leaves
    return run


def _version(args: Any, kwargs: Any) -> list[int]:
    """How often the inputs were written to."""
    leaves = tree_leaves((args, kwargs))
    return [t._version for t in leaves if isinstance(t, Tensor) and not t.is_inference()]


def constants(index: int, site: Site) -> Tensor:
    """Parts run, and every mean is 0 and every variance 1."""
    return site.plain() if isinstance(site, Part) else site.normalized(*site.constants())


def shapes_only(
    model: nn.Module, shape: tuple[int, ...], like: Tensor, parts: Mapping[str, nn.Module]
) -> Run:
    """What happens on a map of this shape, without computing it."""
    with without_memory(model):
        x = torch.empty(shape, dtype=like.dtype, device=like.device)
        return observe(model, x, parts, constants, asked="shapes")


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Let tensors have shapes only; what does not fit is an exception, and not logged by torch."""
    counted = [m for m in model.modules() if m._buffers.get("num_batches_tracked") is not None]
    counters = [m._buffers["num_batches_tracked"] for m in counted]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    for module in counted:  # a mean over all batches would read its counter
        module._buffers["num_batches_tracked"] = None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.disabled = was_disabled
        for module, counter in zip(counted, counters, strict=True):
            module._buffers["num_batches_tracked"] = counter
