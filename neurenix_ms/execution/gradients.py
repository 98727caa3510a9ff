"""Exact gradients of a loss over the whole input, accumulated tile by tile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from neurenix_ms._core.arguments import UNCHECKED, checked
from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.recomputation import statistics_kept
from neurenix_ms.execution.compiled import plain_module, uncompiled
from neurenix_ms.execution.plan.arguments import check_args, passed, passing
from neurenix_ms.execution.plan.grid import Tile
from neurenix_ms.execution.plan.sites import Part, Site
from neurenix_ms.execution.plan.statistics import Normalization
from neurenix_ms.execution.run.arrays import check_array, read, read_target
from neurenix_ms.execution.run.in_step import InStep
from neurenix_ms.execution.run.passes import Passes, Values, find_values
from neurenix_ms.execution.run.ranks import Ranks, checksum, ranks_of, sample_of
from neurenix_ms.execution.run.reduction import Reduction
from neurenix_ms.execution.run.setting import (
    Schedule,
    TileSize,
    Whole,
    check_choices,
    check_names,
    check_rank_of,
    check_same_calls,
    settle,
)
from neurenix_ms.execution.run.tiles import Buffers, TiledRun, whole_shape


@checked
def accumulate_gradients(
    model: nn.Module,
    x: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    tile_size: TileSize,
    *,
    args: Annotated[Sequence[Any], UNCHECKED] = (),
    whole: Annotated[Whole, UNCHECKED] = (),
    reduction: Literal["mean", "sum"] | None = None,
    mesh: DeviceMesh | None = None,
    schedule: Schedule = "auto",
    shared: Annotated[Sequence[str], UNCHECKED] = (),
) -> Tensor:
    """Add the gradient of `loss(model(x), target)` to every parameter's `.grad`, tile by tile.

    Use it in place of forward and `backward()` where a training step does not fit into memory:
    gradients, loss and running statistics equal those of the whole input to rounding, and the memory is
    that of a tile (and of the parts run whole). In one process, every normalization in tiles costs two
    more passes over the tiles, so run submodules with normalizations whole, the shallowest that fit into
    memory. With a tile for every rank of a mesh, no pass is repeated. If a training step fits into
    memory, the plain step is faster. Gradient checkpointing is disabled during the call, and a compiled
    model runs uncompiled.

    Args:
        model: Any module that takes one tensor, and perhaps `args`, and returns tensors.
        x: The input `(B, C, *S)`, a tensor or an array that can be sliced; it is converted to the
            model's dtype.
        target: What the loss compares with: a tensor or array of the output's spatial size, or
            several of them. Floating point numbers are converted to the model's dtype, integers to
            int64; booleans stay.
        loss: A function of output and target that is a mean or a sum of a local term over all
            positions.
        tile_size: Edge length of a tile in pixels or voxels, or one per axis, without the halo.
        args: Further arguments of the model, which every tile gets unchanged, as in `TiledModel`. A
            tensor that requires a gradient also gets one, for example a condition that another network
            computes.
        whole: Names of submodules that run on their whole feature map of lower resolution; "auto"
            takes the shallowest that need no more memory than one tile, or shares them among the ranks
            of a mesh, as in `TiledModel`.
        reduction: Whether the loss is a "mean" or a "sum"; detected by default.
        mesh: A one-dimensional device mesh whose ranks share the tiles, as in `TiledModel`. Every rank
            calls with the same model, input and target, and gets the loss and the gradients of the
            whole input: do not average them again.
        schedule: "passes" runs the tiles again for every normalization and part run whole; "in_step"
            runs all tiles up to such a layer, where they wait. "auto" is "in_step" with at most one tile
            per rank of a mesh, which needs the memory of that tile, and "passes" otherwise: in step, the
            autograd graphs of all tiles of a process are in memory, and they need more than that of the
            whole input.
        shared: Names of submodules that the ranks of a mesh share, as in `TiledModel`. Gradients of
            windows are sent back and added in the order of ranks.

    Returns:
        The loss over the whole input, detached from the graph.

    Raises:
        ValueError: If the loss is neither a mean nor a sum over positions (class weights or
            `ignore_index` under a mean, a normalization by the target), a shape does not fit, or the
            model cannot run in tiles. With a mesh, also if the ranks have different models, inputs,
            targets or losses; then no rank has changed its gradients.
        RankError: If another rank failed with an error that cannot be pickled.

    Source: tiles as in Pinckaers et al. 2022, "Streaming convolutional neural networks"; the passes
    for statistics are new here: each mean and variance is a variable of the loss, and its adjoint
    is the starting gradient of one more pass. In step, the gradient through the statistics is summed
    over tiles as in synchronized batch normalization (Peng et al. 2018, "MegDet").

    Examples:
        >>> import torch.nn.functional as F
        >>> from neurenix_ms import UNet
        >>> model = UNet(1, 1, features=[4, 8], norm=None)
        >>> x, y = torch.randn(2, 1, 1, 96, 64)
        >>> value = accumulate_gradients(model, x, y, F.mse_loss, tile_size=32)
        >>> torch.allclose(value, F.mse_loss(model(x), y))
        True
    """
    model = plain_module(model)
    ranks = ranks_of(mesh)
    with ranks.agreeing(), uncompiled():
        shape, like = check_rank_of(x, None, model)
        whole = check_choices(model, tile_size, whole, len(shape) - 2, None, mesh)
        shared = check_names(model, "shared", shared)
        targets = [leaf for leaf in tree_leaves(target) if hasattr(leaf, "shape")]
        for leaf in targets:
            check_array("target", leaf, like.dtype)
        samples = [sample_of(leaf) for leaf in targets] if ranks.size > 1 else []
        facts = {"values of target": checksum(samples), "reduction": reduction}
        further = check_args(args, shape)
        leaves = [_leaf_of(value) for value in further]
        with passing(leaves):
            choices = tile_size, whole, None, ranks.size, schedule, True, shared
            setting = settle(model, shape, like, *choices)
            check_same_calls(ranks, model, x, setting, **facts)
            parameters = _parameters(model, loss, leaves)
            if setting is None:
                value = _of_one_piece(model, x, target, loss, like, ranks, parameters)
            else:
                run = setting.run(model, x, like, lambda: None, ranks)
                losses = CoreLoss(run, target, loss, Reduction(loss, reduction))
                with run.running(), _summed_gradients(ranks, parameters):
                    value = _accumulated(run, losses)
                run.move_running()
        _send_to(further, leaves)
        return value


def _leaf_of(value: Any) -> Any:
    """Return a further argument as a leaf of the graph, of which every tile makes its own."""
    return (
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
    )


def _send_to(further: Sequence[Any], leaves: Sequence[Any]) -> None:
    """Propagate the gradients of the leaves back to the arguments that they stand for."""
    pairs = [
        (value, leaf.grad)
        for value, leaf in zip(further, leaves, strict=True)
        if isinstance(leaf, Tensor) and leaf.grad is not None
    ]
    if pairs:
        values, grads = zip(*pairs, strict=True)
        torch.autograd.backward(values, grads)


def _of_one_piece(
    model: nn.Module,
    x: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    like: Tensor,
    ranks: Ranks,
    parameters: list[Tensor],
) -> Tensor:
    """Run the plain step; every rank runs it, and that of rank 0 counts."""

    def step() -> Tensor:
        y = call_intact(model, read(x, (slice(None),), like), *passed(x.shape[0]))
        value = loss(y, _all_of(target, like))
        value.backward()
        return value.detach()

    if ranks.size == 1:
        return step()
    buffers = list(model.buffers())
    with Buffers(model, {}).kept(), _summed_gradients(ranks, parameters):
        (value,) = ranks.same([step()])
        for buffer, first in zip(buffers, ranks.same(buffers), strict=True):
            buffer.copy_(first)
        if ranks.rank:
            for p in parameters:
                p.grad = None
    return value


def _accumulated(run: Passes | InStep, losses: "CoreLoss") -> Tensor:
    return _in_step(run, losses) if isinstance(run, InStep) else _in_passes(run, losses)


def _in_step(run: InStep, losses: "CoreLoss") -> Tensor:
    """Run all tiles of this rank, and propagate back through all at once."""
    with torch.enable_grad():
        values: list[Tensor] = []
        for _, tile, cores, structure in run.results():
            value = losses.of(tile, cores, structure)
            # those of no position have a backward too, which meets the others at all sites
            values += [core.sum() for core in cores] if value is None else [value]
        total = losses.total()
        torch.autograd.backward([v for v in (*values, run.token) if v.requires_grad])
    return total


def _in_passes(passes: Passes, losses: "CoreLoss") -> Tensor:
    """Run the passes for the values of all sites, for the loss, and for the gradient of every site."""
    passes.values = find_values(passes, keep_inputs=True)
    adjoints = Adjoints(passes, passes.values)
    value = adjoints.of_the_loss(losses)
    for number in reversed(passes.plan.site_numbers()):
        adjoints.of_a_site(number)
    return value


def _parameters(model: nn.Module, loss: Any, leaves: Sequence[Any]) -> list[Tensor]:
    """Return all that may get a gradient."""
    found = [p for m in (model, loss) if isinstance(m, nn.Module) for p in m.parameters()]
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return list(dict.fromkeys([*found, *others]))


@contextmanager
def _summed_gradients(ranks: Ranks, parameters: list[Tensor]) -> Iterator[None]:
    """Add to `.grad` what all ranks find meanwhile; leave it as it was on failure."""
    if ranks.size == 1:
        yield
        return
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
        found = ranks.summed([p.grad for p in parameters], parameters)
    except BaseException:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
        raise
    for p, grad, more in zip(parameters, before, found, strict=True):
        p.grad = more if grad is None else grad if more is None else grad.add_(more)


class CoreLoss:
    """The loss over the whole output, as a sum over its cores.

    Args:
        run: The tiles.
        target: What the loss compares the whole output with.
        loss: A mean or a sum of a local term.
        reduction: Finds out which of both.
    """

    def __init__(
        self, run: TiledRun, target: Any, loss: Callable[[Any, Any], Tensor], reduction: Reduction
    ) -> None:
        self.run = run
        self.target = target
        self.loss = loss
        self.reduction = reduction
        self.sum: Tensor | None = None

    def of(self, tile: Tile, cores: list[Tensor], structure: Any) -> Tensor | None:
        """Return what a core adds to the loss; None if it has no positions."""
        wanted = self._target_of(self.target, tile, cores)
        shares = [self._share(tile, i, core) for i, core in enumerate(cores)]
        if not any(core.numel() for core in cores):
            return None
        output = tree_unflatten(cores, structure)
        weight = self.reduction.weight(output, wanted, shares, len(self.run.grid.size))
        value = self.loss(output, wanted) * weight
        self.sum = value.detach() if self.sum is None else self.sum + value.detach()
        return value

    def total(self) -> Tensor:
        """Return the loss of the cores of all ranks, which must agree on the reduction."""
        ranks = self.run.ranks
        self.reduction.agree(ranks, len(self.run.grid.size))
        if ranks.size == 1:
            known = [self.sum]
        else:
            known = ranks.gathered(None if self.sum is None else self.sum.cpu())
        values = [value.to(self.run.like.device) for value in known if value is not None]
        if not values:
            raise ValueError("the output must have at least one position, got an empty output")
        return sum(values[1:], values[0])

    def _share(self, tile: Tile, output: int, core: Tensor) -> float:
        place = self.run.plan.outputs[output]
        whole = whole_shape(core, place.lines, self.run.grid.size)
        return core.numel() / torch.Size(whole).numel()

    def _target_of(self, target: Any, tile: Tile, cores: list[Tensor]) -> Any:
        """Return the piece of every target that belongs to the core, found by its spatial size."""
        size = self.run.grid.size

        def piece(leaf: Any) -> Any:
            if not hasattr(leaf, "shape"):
                return leaf
            dims = len(size)
            sizes = []
            for core, place in zip(cores, self.run.plan.outputs, strict=True):
                whole = whole_shape(core, place.lines, size)
                sizes.append(tuple(whole[line.dim] for line in place.lines))
                if tuple(leaf.shape[-dims:]) == sizes[-1]:
                    ranges = tile.core_of_whole(place.lines)
                    index = [slice(None)] * (len(leaf.shape) - dims)
                    window = (*index, *(ranges[line.dim] for line in place.lines))
                    return read_target(leaf, window, self.run.like)
            raise ValueError(
                f"target must have the spatial size of an output, one of {sizes}, got shape "
                f"{tuple(leaf.shape)}"
            )

        return tree_map(piece, target)


class Adjoints:
    """Gradients of the loss with respect to the global value of every site.

    That value is a pair of moments, or the result of a part run whole. Its gradient is complete when
    the passes of all later sites are done; then one more pass propagates it back from the site.
    """

    def __init__(self, passes: Passes, values: Values) -> None:
        self.passes = passes
        self.values = values
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self.results: dict[int, Tensor] = {}
        self.crops: list[tuple[int, tuple[slice, ...], Tensor]] = []
        for number in passes.plan.site_numbers():
            if number in values.moments:
                self._give_statistics(number)
            else:
                self._give_result(number)

    def of_the_loss(self, losses: CoreLoss) -> Tensor:
        """Compute the loss of every core of the output and propagate its gradient back."""
        with torch.enable_grad():
            for _, tile, cores, structure in self.passes.outputs():
                value = losses.of(tile, cores, structure)
                del cores
                if value is not None:
                    self._send_back([value], [None])
                del value
        return losses.total()

    def of_a_site(self, number: int) -> None:
        """Propagate the gradient of a site back to the weights and to earlier sites, in one pass."""
        self._merge(number)
        d_input: Tensor | None = None
        d_vectors: list[Tensor | None] = []
        if number not in self.statistics:
            d_input, d_vectors = self._through_part(number)
            if d_input is None and not d_vectors:
                return
        with torch.enable_grad():
            for tile, site, core in self.passes.until(number):
                self._send_to_vectors(site, d_vectors)
                d_vectors = []  # of all tiles, which have the same
                if number not in self.statistics and d_input is None:
                    return
                if not core.requires_grad or not core.numel():
                    continue
                if d_input is not None:
                    seed: Tensor | None = d_input[
                        tile.core_of_whole(self.passes.plan.place(number).lines)
                    ]
                else:
                    seed = self._seed(number, site, core)
                if seed is None:
                    return
                self._send_back([core], [seed])
                del site, core, seed

    def _merge(self, number: int) -> None:
        """Sum the gradient of a site's value over all ranks."""
        ranks = self.passes.ranks
        if number in self.statistics:
            leaves = self.statistics[number]
            grads = ranks.summed([leaf.grad for leaf in leaves], leaves)
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = grad
        else:
            found = self.results.pop(number, None)
            (found,) = ranks.summed([found], [self.values.results[number]])
            if found is not None:
                self.results[number] = found

    def _give_statistics(self, number: int) -> None:
        moments = self.values.moments[number]
        leaves = moments.mean.clone().requires_grad_(), moments.var.clone().requires_grad_()
        self.statistics[number] = leaves
        self.passes.given[number] = lambda site, tile: site.normalized(*leaves)

    def _give_result(self, number: int) -> None:
        result, lines = self.values.results[number], self.passes.plan.place(number).result
        assert lines is not None

        def crop(site: Any, tile: Tile) -> Tensor:
            leaf = result[tile.wide_of_whole(lines)].detach().requires_grad_()
            self.crops.append((number, tile.wide_of_whole(lines), leaf))
            return leaf.clone()

        self.passes.given[number] = crop

    def _send_back(self, tensors: list[Tensor], seeds: list[Tensor | None]) -> None:
        if any(t.requires_grad for t in tensors):
            torch.autograd.backward(tensors, seeds)
        for number, index, leaf in self.crops:
            if leaf.grad is not None:
                if number not in self.results:
                    self.results[number] = torch.zeros_like(self.values.results[number])
                self.results[number][index] += leaf.grad
        self.crops.clear()

    def _seed(self, number: int, site: Site, core: Tensor) -> Tensor | None:
        d_mean, d_var = (leaf.grad for leaf in self.statistics[number])
        if d_mean is None or d_var is None or not isinstance(site, Normalization):
            return None
        return site.seed(core.detach(), self.values.moments[number], d_mean, d_var)

    def _send_to_vectors(self, site: Site, seeds: list[Tensor | None]) -> None:
        """Propagate the gradients of the vectors that a part was called with."""
        if not isinstance(site, Part) or not seeds:
            return
        pairs = zip(site.others.vectors(), seeds, strict=True)
        known = [(v, seed) for v, seed in pairs if v.requires_grad and seed is not None]
        if known:
            vectors, grads = zip(*known, strict=True)
            torch.autograd.backward(vectors, grads, retain_graph=True)

    def _through_part(self, number: int) -> tuple[Tensor | None, list[Tensor | None]]:
        """Propagate the gradient of a part's result back to its feature map and its vectors."""
        d_result = self.results.pop(number, None)
        if d_result is None:
            return None, []
        part = self.passes.parts[self.passes.plan.place(number).layer]
        with torch.enable_grad(), statistics_kept(part):
            x = self.values.inputs.pop(number).detach().requires_grad_()
            others = self.values.others[number]
            vectors = [v.requires_grad_(v.is_floating_point()) for v in others.detached().vectors()]
            y = others.replaced(vectors).call(part, x)
            if self.passes.ranks.rank == 0:
                torch.autograd.backward([y], [d_result])
                return x.grad, [v.grad for v in vectors]
            # every rank runs the part, so its weights and vectors get their gradient on rank 0 alone
            (grad,) = torch.autograd.grad([y], [x], [d_result], allow_unused=True)
            return grad, []


def _all_of(target: Any, like: Tensor) -> Any:
    def whole(leaf: Any) -> Any:
        return read_target(leaf, (slice(None),), like) if hasattr(leaf, "shape") else leaf

    return tree_map(whole, target)
