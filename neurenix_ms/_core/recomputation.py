"""Feature maps that are dropped in the forward pass and recomputed when they are needed."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let `module` write to copies of its buffers, so that a second run updates no statistics."""
    owners = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
    for owner, buffers in owners:
        owner._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in owners:
            owner._buffers.update(buffers)


class Recomputation:
    """A function and its inputs, from which a feature map can be recomputed.

    An input is a tensor, or the recomputation of one.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: list["Tensor | Recomputation"],
        latest: "LatestValue",
    ) -> None:
        self.function = function
        self.latest = latest
        self.inputs = inputs
        self.versions = [x._version if isinstance(x, Tensor) else 0 for x in inputs]
        self.autocast = _autocast_state(inputs)
        self.uses = 0
        self.left = 0
        self.value: Tensor | None = None

    def is_unmodified(self) -> bool:
        return all(
            not isinstance(x, Tensor) or x._version == version
            for x, version in zip(self.inputs, self.versions, strict=True)
        )

    def compute(self) -> Tensor:
        if self.value is not None:
            return self.value
        with torch.no_grad(), self.as_in_forward():
            return self.function(
                *[x.compute() if isinstance(x, Recomputation) else x for x in self.inputs]
            )

    @contextmanager
    def as_in_forward(self) -> Iterator[None]:
        """Run `function` under the autocast state of the forward pass, with fixed statistics."""
        if not self.is_unmodified():
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
        """Return the value for one of its uses in the graph.

        The value is kept until its last use, or until another value is computed. Consecutive uses, such
        as by a convolution and the activation before it, therefore share it, and uses that are far apart
        do not occupy memory in between.
        """
        value = self.compute()
        self.left = (self.left or self.uses) - 1
        self.latest.replace(self)
        self.value = value if self.left else None
        return value


class LatestValue:
    """The recomputation of a forward pass that was used last; the others keep no value."""

    def __init__(self) -> None:
        self.recomputation: weakref.ref[Recomputation] | None = None

    def replace(self, recomputation: Recomputation) -> None:
        before = None if self.recomputation is None else self.recomputation()
        if before is not None and before is not recomputation:
            before.value = None
        self.recomputation = weakref.ref(recomputation)


class Kept:
    """A feature map that is kept as a recomputation.

    Args:
        recomputation: Its recomputation, from tensors without a graph.
        inputs: The inputs of the recomputation, attached to the graph.
    """

    def __init__(self, recomputation: Recomputation, inputs: "list[Tensor | Kept]") -> None:
        self.recomputation = recomputation
        self.inputs = inputs

    def tensor(self) -> Tensor:
        """Return the feature map, attached to the graph of its forward pass."""
        with torch.enable_grad(), self.recomputation.as_in_forward():
            return self.recomputation.function(*map(tensor_of, self.inputs))


def tensor_of(x: Tensor | Kept) -> Tensor:
    """Return the tensor from which `kept` made `x`."""
    return x.tensor() if isinstance(x, Kept) else x


class SavedTensor:
    """The entry of the graph for a saved tensor: the tensor, or its recomputation."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.recomputation: Recomputation | None = None

    def release(self, recomputation: Recomputation) -> None:
        recomputation.uses += 1
        self.tensor, self.recomputation = None, recomputation


def unpack(saved: SavedTensor) -> Tensor:
    """Return the tensor of an entry of the graph, recomputed if it was dropped."""
    if saved.recomputation is not None:
        return saved.recomputation.take()
    assert saved.tensor is not None
    return saved.tensor


class Recorder:
    """The recomputations of one forward pass, by the storage of their feature map."""

    def __init__(self) -> None:
        self.recomputations: dict[int, tuple[weakref.ref[Tensor], Kept]] = {}
        self.latest = LatestValue()
        self.fresh: list[SavedTensor] | None = None

    def pack(self, tensor: Tensor) -> SavedTensor:
        saved = SavedTensor(tensor)
        recomputation = self.find(tensor)
        if recomputation is not None:
            saved.release(recomputation)
        elif self.fresh is not None:
            self.fresh.append(saved)
        return saved

    def find(self, tensor: Tensor) -> Recomputation | None:
        known = self.kept(tensor)
        return None if known is None else known.recomputation

    def kept(self, tensor: Tensor) -> Kept | None:
        """Return the kept form of a tensor of this forward pass, or None if it cannot be recomputed."""
        made, known = self.recomputations.get(_memory(tensor), (lambda: None, None))
        return known if known is not None and _same(made(), tensor) else None

    def record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        # detached, because the graph holds the recomputation: a reference back would be a cycle
        recomputation = Recomputation(
            function, [self.find(x) or x.detach() for x in inputs], self.latest
        )
        attached = [self.kept(x) or x for x in inputs]
        outer, self.fresh = self.fresh, []
        result = function(*inputs)
        fresh, self.fresh = self.fresh, outer
        passed_on = any(_memory(result) == _memory(x) for x in inputs)
        if result.requires_grad and not passed_on and recomputation.is_unmodified():
            self.recomputations[_memory(result)] = (
                weakref.ref(result),
                Kept(recomputation, attached),
            )
            for saved in fresh:  # an activation saves its result before it is registered here
                if saved.tensor is not None and _same(result, saved.tensor):
                    saved.release(recomputation)
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


def _autocast_state(inputs: list[Tensor | Recomputation]) -> list[tuple[str, torch.dtype, bool]]:
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    return [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in devices
    ] + [state for x in inputs if isinstance(x, Recomputation) for state in x.autocast][:1]
