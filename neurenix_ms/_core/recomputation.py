"""Recipes: feature maps that are forgotten in the forward pass and made again when they are needed."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let `module` write to copies of its buffers, so that running it again moves no statistics."""
    owners = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
    for owner, buffers in owners:
        owner._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in owners:
            owner._buffers.update(buffers)


class Recipe:
    """How a map is made again: a function, and maps or further recipes as its inputs."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: list["Tensor | Recipe"],
        made: "LastMade",
    ) -> None:
        self.function = function
        self.last_made = made
        self.inputs = inputs
        self.versions = [x._version if isinstance(x, Tensor) else 0 for x in inputs]
        self.autocast = _autocast_state(inputs)
        self.uses = 0
        self.left = 0
        self.value: Tensor | None = None

    def untouched(self) -> bool:
        return all(
            not isinstance(x, Tensor) or x._version == version
            for x, version in zip(self.inputs, self.versions, strict=True)
        )

    def make(self) -> Tensor:
        if self.value is not None:
            return self.value
        with torch.no_grad(), self.as_recorded():
            return self.function(*[x.make() if isinstance(x, Recipe) else x for x in self.inputs])

    @contextmanager
    def as_recorded(self) -> Iterator[None]:
        """Run `function` as it was run in the forward pass, without moving running statistics."""
        if not self.untouched():
            raise RuntimeError(
                "a feature map needed to recompute another one was modified by an in-place operation; "
                "gradient checkpointing needs it unchanged until backward"
            )
        with ExitStack() as stack:
            for device, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled))
            if isinstance(self.function, nn.Module):
                stack.enter_context(statistics_kept(self.function))
            yield

    def take(self) -> Tensor:
        """Return the value for one of the graph's uses.

        It stays until the last of them, or until another value is made: uses that follow each other,
        of a convolution and the activation before it, share it; those far apart do not hold it.
        """
        value = self.make()
        self.left = (self.left or self.uses) - 1
        self.last_made.replace(self)
        self.value = value if self.left else None
        return value


class LastMade:
    """The recipe of one forward whose value was taken last; no other one keeps its value."""

    def __init__(self) -> None:
        self.recipe: weakref.ref[Recipe] | None = None

    def replace(self, recipe: Recipe) -> None:
        before = None if self.recipe is None else self.recipe()
        if before is not None and before is not recipe:
            before.value = None
        self.recipe = weakref.ref(recipe)


class Kept:
    """A feature map that is kept as a recipe: made again when it is asked for.

    Args:
        recipe: How it is made from tensors without a graph.
        inputs: The inputs of the recipe, attached to the graph.
    """

    def __init__(self, recipe: Recipe, inputs: "list[Tensor | Kept]") -> None:
        self.recipe = recipe
        self.inputs = inputs

    def tensor(self) -> Tensor:
        """Return the feature map, attached to the graph of the forward pass that it is of."""
        with torch.enable_grad(), self.recipe.as_recorded():
            return self.recipe.function(*map(tensor_of, self.inputs))


def tensor_of(x: Tensor | Kept) -> Tensor:
    """Return the tensor that `kept` was given."""
    return x.tensor() if isinstance(x, Kept) else x


class Saved:
    """What the graph holds in the place of a tensor: the tensor, or how it is made again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.recipe: Recipe | None = None

    def forget(self, recipe: Recipe) -> None:
        recipe.uses += 1
        self.tensor, self.recipe = None, recipe


def unpack(saved: Saved) -> Tensor:
    """Return the tensor that the graph asks for, made again if it was forgotten."""
    if saved.recipe is not None:
        return saved.recipe.take()
    assert saved.tensor is not None
    return saved.tensor


class Notebook:
    """The recipes of one forward pass, found by the memory of the map they make."""

    def __init__(self) -> None:
        self.recipes: dict[int, tuple[weakref.ref[Tensor], Kept]] = {}
        self.last_made = LastMade()
        self.fresh: list[Saved] | None = None

    def pack(self, tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        recipe = self.find(tensor)
        if recipe is not None:
            saved.forget(recipe)
        elif self.fresh is not None:
            self.fresh.append(saved)
        return saved

    def find(self, tensor: Tensor) -> Recipe | None:
        known = self.kept(tensor)
        return None if known is None else known.recipe

    def kept(self, tensor: Tensor) -> Kept | None:
        """Return how a tensor of this forward pass is made again, if it can be."""
        made, known = self.recipes.get(_memory(tensor), (lambda: None, None))
        return known if known is not None and _same(made(), tensor) else None

    def record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        # detached: a recipe sits in the graph, and must not hold on to it
        recipe = Recipe(function, [self.find(x) or x.detach() for x in inputs], self.last_made)
        attached = [self.kept(x) or x for x in inputs]
        outer, self.fresh = self.fresh, []
        result = function(*inputs)
        fresh, self.fresh = self.fresh, outer
        passed_on = any(_memory(result) == _memory(x) for x in inputs)
        if result.requires_grad and not passed_on and recipe.untouched():
            self.recipes[_memory(result)] = (weakref.ref(result), Kept(recipe, attached))
            for saved in fresh:  # an activation saves its own result before it can be known here
                if saved.tensor is not None and _same(result, saved.tensor):
                    saved.forget(recipe)
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same(made: Tensor | None, tensor: Tensor) -> bool:
    return bool(
        made is not None
        and _memory(made) == _memory(tensor)
        and made.dtype == tensor.dtype
        and made.shape == tensor.shape
        and made.stride() == tensor.stride()
        and made.storage_offset() == tensor.storage_offset()
        and made._version == tensor._version
    )


def _autocast_state(inputs: list[Tensor | Recipe]) -> list[tuple[str, torch.dtype, bool]]:
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    return [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in devices
    ] + [state for x in inputs if isinstance(x, Recipe) for state in x.autocast][:1]
