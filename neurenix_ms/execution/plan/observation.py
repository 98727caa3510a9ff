"""Record every tensor, site and call of a submodule while a model runs."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from neurenix_ms._core.recomputation import statistics_kept
from neurenix_ms.checkpointing import enable_gradient_checkpointing
from neurenix_ms.execution.plan.arguments import Others, parted, with_passed
from neurenix_ms.execution.plan.layer_errors import (
    ADVICE,
    LayerError,
    SizeError,
    describe,
    failing_layer,
)
from neurenix_ms.execution.plan.mixing import num_combined
from neurenix_ms.execution.plan.sites import (
    Asked,
    Interception,
    Part,
    Site,
    without_cached_features,
)
from neurenix_ms.execution.plan.statistics import Normalization
from neurenix_ms.execution.progress import report_long_search

# a copy that is made only where its memory is written to; tensors without memory have none
SAME = {"_lazy_clone": "clone"}
WITHOUT_TENSORS = (int, float, str, NoneType, torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True)
class Seen:
    """A tensor that a function of torch returned, and the module that called the function.

    `combined` is the number of input values in one of its values, if the function combines all values
    of an axis; `ends_fixed` tells whether it was resized with `align_corners=True`.
    """

    layer: str
    function: str
    tensor: Tensor
    combined: int = 0
    ends_fixed: bool = False


@dataclass(frozen=True)
class ModuleCall:
    """A call of a submodule.

    It is `alone` if it got one feature map, and else vectors only, did not modify them, and returned one
    tensor.
    """

    name: str
    alone: bool
    x: Tensor | None
    y: Tensor | None
    others: Others | None = None


@dataclass
class Run:
    """Record of a run of a model: every tensor, site and call of a module, and the outputs."""

    model: str = ""  # the name of its class
    seen: list[Seen] = field(default_factory=list)
    sites: list[tuple[Site, Tensor]] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # of the sites
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    structure: TreeSpec | None = None

    def site_index(self, number: int) -> int:
        """Return the index in `tensors()` of the input of a site; its result follows."""
        return len(self.seen) + 2 * number

    def tensors(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """Return every tensor with a key that identifies it in a run on another size."""
        seen = [((s.layer, s.function), s.tensor) for s in self.seen]
        sites = [(("site",), t) for site, result in self.sites for t in (site.x, result)]
        calls = [((c.name, "module"), t) for c in self.calls for t in (c.x, c.y) if t is not None]
        return [*seen, *sites, *calls, *((("output",), t) for t in self.outputs)]


def counterparts(run: Run, other: Run) -> list[Tensor | None]:
    """Return, for every tensor of `run`, the same tensor of `other`.

    It is None if `other` has no such tensor, as sizes that need no padding skip some calls.
    """
    theirs = [t for _, t in other.tensors()]
    return [None if i is None else theirs[i] for i in matches(run, other)]


def matches(run: Run, other: Run) -> list[int | None]:
    """Return, for every tensor of `run`, the index of the same tensor in `other`."""
    keys, other_keys = ([key for key, _ in r.tensors()] for r in (run, other))
    if keys == other_keys:
        return list(range(len(keys)))
    if len(run.sites) != len(other.sites) or len(run.outputs) != len(other.outputs):
        raise ValueError(
            "a model run in tiles must make the same calls for every input size, got "
            f"{run.model} with {len(run.sites)} sites and {len(run.outputs)} outputs for one size, "
            f"{len(other.sites)} and {len(other.outputs)} for another; name the submodule that depends "
            "on the size in whole=(...), or replace it"
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
    """Run `model` on `x`, with the results of sites from `answer`, and return the record.

    If only "shapes", or the positions of "nan", are `asked`, values are arbitrary.
    """
    run = Run(type(model).__name__)
    names: list[str] = [""]
    versions: list[list[int]] = []

    def visit(index: int, site: Site) -> Tensor:
        if asked == "shapes" and isinstance(site, Normalization):
            result = site.of_its_shape()
        else:
            result = answer(index, site)
        # a copy of a part's result, because later layers may overwrite it
        kept = result.clone() if isinstance(site, Part) else result
        run.sites.append((site, kept))
        run.layers.append(site.name if isinstance(site, Part) else names[-1])
        return result

    def watch(
        function: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        report_long_search()
        name = getattr(function, "__name__", str(function))
        name = SAME.get(name, name)
        leaves = _tensors(result)
        combined = num_combined(function, args, kwargs, result) if leaves else 0
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
            given = parted(args, kwargs)
            untouched = versions[-1] == _version(args, kwargs)
            if given is not None and untouched and isinstance(result, Tensor):
                run.calls.append(ModuleCall(names[-1], True, given[0], result, given[1]))
            else:
                run.calls.append(ModuleCall(names[-1], False, None, None))
        names.pop()
        versions.pop()

    mode = Interception(parts, visit, watch, asked)
    call = with_passed(model, x.shape[0])
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        with (
            torch.no_grad(),
            enable_gradient_checkpointing(False),
            nullcontext() if asked == "shapes" else statistics_kept(model),
            without_cached_features(model),
            mode,
        ):
            leaves, run.structure = tree_flatten(call(x))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        layer = failing_layer(model, error)
        if layer is None:
            raise
        if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
            raise LayerError(
                "the calls of a model run in tiles must not depend on values, got "
                f"{describe(model, layer)} ({error.func}); {ADVICE}",
                layer,
            ) from error
        said = str(error).strip().split("\n")[0][:200]
        raise SizeError(
            "a model run in tiles must take inputs of other sizes too, got "
            f"{type(error).__name__} in {describe(model, layer)} for shape {tuple(x.shape)} ({said}); "
            f"take a size that it was made for, {ADVICE}",
            layer,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = sorted({type(t).__name__ for t in leaves if not isinstance(t, Tensor)})
        raise ValueError(
            f"a model run in tiles must return tensors only, got {kinds} from {run.model}; wrap it in a "
            "module that returns its tensors"
        )
    run.outputs = leaves
    return run


def _tensors(result: Any) -> list[Tensor]:
    """Return the tensors in the result of a function; most have one, or are a number or a size."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, WITHOUT_TENSORS):
        return []
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _version(args: Any, kwargs: Any) -> list[int]:
    """Return the version counters of the inputs, which count in-place writes."""
    tensors = [t for value in (*args, *kwargs.values()) for t in _tensors(value)]
    with torch._C.DisableTorchFunction():  # reading the counters is not a call of the model
        return [t._version for t in tensors if not t.is_inference()]


def constants(index: int, site: Site) -> Tensor:
    """Run a part, or normalize with mean 0 and variance 1."""
    return site.plain() if isinstance(site, Part) else site.normalized(*site.constants())


def shapes_only(
    model: nn.Module,
    shape: tuple[int, ...],
    like: Tensor,
    parts: Mapping[str, nn.Module],
    mode: FakeTensorMode | None = None,
) -> Run:
    """Record a run on an input of this shape without computing values.

    Runs with the same `mode` take the shapes of parameters from the first of them.
    """
    with (
        _disable_current_modes(),  # counters should not count it
        statistics_kept(model),  # outside: a copy of a tensor without memory takes much longer
        without_memory(model, mode),
    ):
        x = torch.empty(shape, dtype=like.dtype, device=like.device)
        return observe(model, x, parts, constants, asked="shapes")


def memoryless() -> FakeTensorMode:
    """Return a mode in which tensors have shapes only; those outside of it have one in it, too."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def without_memory(model: nn.Module, mode: FakeTensorMode | None = None) -> Iterator[None]:
    """Let tensors have shapes only; a shape mismatch raises an exception and is not logged by torch."""
    counted = [m for m in model.modules() if m._buffers.get("num_batches_tracked") is not None]
    counters = [m._buffers["num_batches_tracked"] for m in counted]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    for module in counted:  # a cumulative average (momentum=None) would read the counter
        module._buffers["num_batches_tracked"] = None
    try:
        with mode or memoryless():
            yield
    finally:
        logger.disabled = was_disabled
        for module, counter in zip(counted, counters, strict=True):
            module._buffers["num_batches_tracked"] = counter
