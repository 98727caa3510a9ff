"""What each of several processes does to test shared tiles: every case, compared with the whole input.

A case is a function of the mesh. Every process writes what went wrong in each case, or nothing.
"""

import contextlib
import copy
import dataclasses
import datetime
import functools
import gc
import hashlib
import json
import math
import os
import pickle
import random
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from random_networks import random_network
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from neurenix_ms import UNet
from neurenix_ms.execution import RankError, TiledModel, accumulate_gradients
from neurenix_ms.execution.gradients import CoreLoss
from neurenix_ms.execution.plan.choice import candidates
from neurenix_ms.execution.plan.footprint import Plan
from neurenix_ms.execution.plan.grid import widened
from neurenix_ms.execution.plan.lengths import measure_lengths
from neurenix_ms.execution.plan.sharing import SharedPart, num_levels
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run import merged as merged_file
from neurenix_ms.execution.run import ranks as ranks_file
from neurenix_ms.execution.run.exchange import WindowExchange
from neurenix_ms.execution.run.setting import check_same_calls, settle
from neurenix_ms.msnet import MSNet

EXACT = 1e-10
SCHEDULES = ("passes", "in_step")
CASES: dict[str, Callable[[DeviceMesh], None]] = {}
MANY: dict[str, Callable[[DeviceMesh], None]] = {}
DIGESTS: list[str] = []  # of what the case has compared, to compare launches
Loss = Callable[[Any, Any], Tensor]
Tiled1d = functools.partial(TiledModel, spatial_dims=1)


def case(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    """Register a case that is quick."""
    CASES[function.__name__] = function
    return function


def slow_case(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    """Register a case that takes longer."""
    MANY[function.__name__] = function
    return function


def start(rank: int, size: int, folder: str, names: list[str]) -> None:
    """Run these cases as one of `size` processes."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder}/store"
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=limit)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("domain",))
    report, digests = {}, {}
    for name in names:
        torch.manual_seed(0)
        DIGESTS.clear()
        try:
            (CASES | MANY)[name](mesh)
            report[name] = ""
        except Exception:
            report[name] = traceback.format_exc()
        digests[name] = list(DIGESTS)
    Path(folder, f"report{rank}.json").write_text(json.dumps(report))
    Path(folder, f"digests{rank}.json").write_text(json.dumps(digests))
    del mesh
    gc.collect()  # what still refers to the group may end the process with an error
    dist.barrier()
    dist.destroy_process_group()


def noise(*shape: int) -> Tensor:
    """Random values, much larger in the second part, so that tiles of equal weight show."""
    x = torch.randn(*shape, dtype=torch.float64)
    x[:, :, 2 * shape[2] // 3 :] += 3
    return x


def unet(norm: str | None, spatial_dims: Any = 1, **options: Any) -> UNet:
    """A small U-Net in training mode and float64."""
    return UNet(1, 2, [3, 4], norm=norm, spatial_dims=spatial_dims, **options).double().train()


def small_net(convolution: type[nn.Module], norm: type[nn.Module]) -> nn.Module:
    """Two convolutions and a normalization; in 3-D it is planned faster than a U-Net."""
    layers = convolution(1, 3, 3, padding=1), norm(3), nn.Tanh(), convolution(3, 2, 3)
    return nn.Sequential(*layers).double().train()


def same_bits(tensors: list[Tensor]) -> bool:
    """Whether all ranks have the same values, to the last bit."""
    digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
    DIGESTS.append(digest)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, digest)
    return len(set(gathered)) == 1


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def raised(call: Callable[[], Any]) -> Exception:
    """The error of a call, which all ranks must have alike."""
    try:
        call()
    except Exception as error:
        everyone = everywhere((type(error).__name__, str(error)))
        assert len(set(everyone)) == 1, everyone
        return error
    raise AssertionError(f"no error on rank {dist.get_rank()}")


def check_equal(
    mesh: DeviceMesh | None,
    model: nn.Module,
    x: Tensor,
    tile_size: Any,
    loss: Loss = F.mse_loss,
    target: Any = None,
    schedules: Sequence[str] = SCHEDULES,
    exact: float = EXACT,
    **options: Any,
) -> None:
    """Compare result, loss, gradient and buffers with those of the plain model, in both schedules."""
    model.zero_grad()
    plain = copy.deepcopy(model)
    wanted = plain(x.clone())
    if target is None:
        target = torch.randn_like(wanted)
    value = loss(wanted, target)
    value.backward()
    start = copy.deepcopy(model.state_dict())
    for schedule in schedules:
        options["schedule"] = schedule
        model.zero_grad()
        model.load_state_dict(start)
        result = TiledModel(model, tile_size, spatial_dims=x.ndim - 2, mesh=mesh, **options)(x)
        pairs = zip(tree_leaves(result), tree_leaves(wanted), strict=True)
        for y, whole in pairs:
            most = exact * whole.detach().std() + 1e-15
            assert (y - whole).abs().max() <= most, (y - whole).abs().max()
        check_buffers(model, plain)
        model.load_state_dict(start)
        got = accumulate_gradients(model, x, target, loss, tile_size, mesh=mesh, **options)
        assert abs(got - value) <= exact * abs(value), (got, value)
        check_buffers(model, plain)
        check_gradients(model, plain, exact=exact)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert same_bits([*tree_leaves(result), got, *gradients, *model.buffers()])


def check_buffers(model: nn.Module, plain: nn.Module) -> None:
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert (a - b).abs().max() <= EXACT * max(1, b.abs().max()), (name, a, b)


def check_gradients(
    model: nn.Module, plain: nn.Module, times: int = 1, exact: float = EXACT
) -> None:
    known = (p.grad.abs().max() for p in plain.parameters() if p.grad is not None)
    largest = max(known, default=torch.zeros(()))
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            assert (p.grad - times * q.grad).abs().max() <= exact * largest, name


@case
def batch_norm_in_training(mesh: DeviceMesh) -> None:
    check_equal(mesh, unet("batch"), noise(2, 1, 61), 8, whole=())


@case
def instance_norm_and_a_part_run_whole(mesh: DeviceMesh) -> None:
    check_equal(mesh, unet("instance"), noise(2, 1, 59), 8, whole=("level.inner",))


DEEP = ("level.inner", "level.inner.inner")  # of a U-Net with three resolutions


@case
def shared_parts(mesh: DeviceMesh) -> None:
    """Shares of unequal length, whose ends are no multiples of the strides inside the parts."""
    for norm, size, tile in (("batch", 73, 38), ("instance", 59, 30)):
        check_shared(mesh, unet(norm), noise(2, 1, size), tile, DEEP, levels=2)


class Embedded(nn.Module):
    """A conditioned U-Net, whose condition is computed from a parameter."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.net = unet(norm, condition_channels=2)
        for name, parameter in self.net.named_parameters():
            if "film" in name:
                nn.init.normal_(parameter)  # else the condition would not count
        self.embed = nn.Linear(1, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1.0, 1 + len(x), dtype=x.dtype)[:, None]
        y: Tensor = self.net(x, self.embed(steps))
        return y


@case
def conditioned_shared_parts(mesh: DeviceMesh) -> None:
    """Parts that are called with a vector, which gets a gradient from every rank."""
    names = tuple(f"net.{name}" for name in DEEP)
    check_shared(mesh, Embedded("batch"), noise(2, 1, 73), 38, names, levels=2)


@case
def parts_that_are_chosen_are_shared(mesh: DeviceMesh) -> None:
    model, x = unet("batch"), noise(2, 1, 24 * mesh.size() + 1)
    setting = settle(model, x.shape, x[:0], "auto", "auto", None, mesh.size(), training=True)
    assert setting is not None
    assert num_levels(setting.shared) == 2
    check_equal(mesh, model, x, "auto", whole="auto", schedules=("auto",))


def check_shared(
    mesh: DeviceMesh,
    model: nn.Module,
    x: Tensor,
    tile: Any,
    shared: tuple[str, ...],
    levels: int = 1,
    **options: Any,
) -> None:
    """Compare shared parts with the plain model; in passes they run whole."""
    whole = options.setdefault("whole", ())
    known = tile, whole, None, mesh.size(), "in_step", True, shared
    setting = settle(model, x.shape, x[:0], *known)
    assert setting is not None
    assert num_levels(setting.shared) == levels
    check_equal(mesh, model, x, tile, schedules=("in_step",), shared=shared, **options)


@case
def two_dimensions(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv2d, nn.InstanceNorm2d)
    check_equal(mesh, model, noise(2, 1, 19, 26), (7, 9), whole=())


@case
def three_dimensions(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv3d, nn.BatchNorm3d)
    check_equal(mesh, model, noise(1, 1, 9, 7, 8), 4, whole=())


@case
def more_ranks_than_tiles(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv1d, nn.BatchNorm1d)
    check_equal(mesh, model, noise(1, 1, 31), 40)  # one tile, which is the plain call
    check_equal(mesh, model, noise(1, 1, 31), 40, whole=("1",))  # one tile and a part
    check_equal(mesh, model, noise(1, 1, 31), 16)  # two tiles


@case
def a_tile_for_every_rank(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv1d, nn.InstanceNorm1d)
    check_equal(mesh, model, noise(1, 1, 31), "auto", whole=())


@case
def the_sum_of_a_loss(mesh: DeviceMesh) -> None:
    loss = functools.partial(F.l1_loss, reduction="sum")
    check_equal(mesh, small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31), 4, loss, whole=())


@case
def moments_of_very_many_ranks(mesh: DeviceMesh) -> None:
    most = ranks_file.MOST_GATHERED
    ranks_file.MOST_GATHERED = 1
    try:
        check_equal(mesh, small_net(nn.Conv1d, nn.BatchNorm1d), noise(2, 1, 31), 4, whole=())
    finally:
        ranks_file.MOST_GATHERED = most


@case
def frozen_and_unused_parameters(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv1d, nn.BatchNorm1d)
    model[0].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    check_equal(mesh, model, noise(1, 1, 31), 8, whole=())


@case
def gradients_are_added(mesh: DeviceMesh) -> None:
    model, x = small_net(nn.Conv1d, nn.InstanceNorm1d), noise(1, 1, 31)
    target, plain = noise(1, 2, 29), copy.deepcopy(model)
    F.mse_loss(plain(x), target).backward()
    for _ in range(2):
        accumulate_gradients(model, x, target, F.mse_loss, 8, mesh=mesh)
    check_gradients(model, plain, times=2)


@case
def a_loss_with_parameters(mesh: DeviceMesh) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

        def forward(self, y: Tensor, t: Tensor) -> Tensor:
            return ((y - t).square() * self.weight[:, None]).mean()

    model, x, target = small_net(nn.Conv1d, nn.InstanceNorm1d), noise(1, 1, 31), noise(1, 2, 29)
    loss, plain = Weighted(), Weighted()
    plain(model(x), target).backward()
    accumulate_gradients(model, x, target, loss, 8, mesh=mesh)
    check_gradients(loss, plain)


class Two(nn.Module):
    """An output after one normalization and one after two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = small_net(nn.Conv1d, nn.InstanceNorm1d), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [y, self.second(y)]


@case
def a_loss_that_leaves_an_output_out_on_one_rank(mesh: DeviceMesh) -> None:
    def loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        pairs = [(y, t) for y, t in zip(outputs, targets, strict=True) if t.any()]
        return sum(((y * t).sum() for y, t in pairs), torch.zeros((), dtype=torch.float64))

    targets = [noise(1, 2, 32), noise(1, 2, 32)]
    targets[1][..., 16:] = 0
    check_equal(mesh, Two().double(), noise(1, 1, 34), 17, loss, targets, whole=())


@case
def no_parameters_that_need_a_gradient_before_a_normalization(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.InstanceNorm1d(1), nn.Conv1d(1, 2, 3)).double()
    check_equal(mesh, model, noise(2, 1, 31), 16, whole=())
    check_equal(mesh, model, noise(2, 1, 31), 16, whole=("0",))


@case
def an_error_in_backward_between_two_sites(mesh: DeviceMesh) -> None:
    last = mesh.get_local_rank() == mesh.size() - 1

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d_y: Tensor) -> Tensor:
            if last:
                raise ZeroDivisionError("in backward")
            return d_y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(Fails.apply(self.first(x)))
            return y

    model, x = Model().double(), noise(1, 1, 16 * mesh.size() - 1)  # a tile for every rank
    before = copy.deepcopy(model.state_dict())
    for schedule in SCHEDULES:
        options = {"tile_size": 16, "mesh": mesh, "schedule": schedule}
        error = raised(lambda o=options: accumulate_gradients(model, x, 2 * x, F.mse_loss, **o))
        assert isinstance(error, ZeroDivisionError), error
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    check_equal(mesh, small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31), 16)  # the group works


def off(
    mesh: DeviceMesh, model: nn.Module, x: Tensor, schedule: str, part: str = "3", **options: Any
) -> float:
    """How far output, loss, gradient or buffers are from those of the plain model, on the worst rank."""
    start, plain = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    wanted = plain(x)
    loss = F.mse_loss(wanted, torch.zeros_like(wanted))
    loss.backward()
    model.zero_grad()
    options = {"tile_size": 20, "whole": (part,)} | options | {"mesh": mesh, "schedule": schedule}
    y = Tiled1d(model, **options)(x)
    model.load_state_dict(start)
    value = accumulate_gradients(model, x, torch.zeros_like(wanted), F.mse_loss, **options)
    buffers = list(zip(model.buffers(), plain.buffers(), strict=True))
    moved = max((float((a - b).detach().abs().max()) for a, b in buffers), default=0.0)
    model.load_state_dict(start)
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    grads = [(torch.zeros_like(p) if p.grad is None else p.grad, q.grad) for p, q in pairs]
    differences = [float((a - b).abs().max()) for a, b in grads]
    differences += [
        moved,
        float(abs(value - loss.detach())),
        float((y - wanted).detach().abs().max()),
    ]
    # a tile that nobody writes may hold anything
    return max(everywhere(max(1.0 if d != d else d for d in differences)))


@case
def wrong_merging_is_seen(mesh: DeviceMesh) -> None:
    right = ranks_file.MeshRanks
    merged, summed = right.merged, right.summed

    def only_own(self: Any, moments: Any, like: Any) -> Any:
        merged(self, moments, like)
        return moments

    def equal_weights(self: Any, moments: Any, like: Any) -> Any:
        return merged(self, moments and dataclasses.replace(moments, count=1), like)

    def averaged(self: Any, values: Any, like: Any) -> Any:
        return [None if v is None else v / self.size for v in summed(self, values, like)]

    def own_sums(self: Any, values: Any, like: Any) -> Any:
        summed(self, values, like)
        return list(values)

    wrong = [
        ("merged", only_own),
        ("merged", equal_weights),
        ("summed", averaged),
        ("summed", own_sums),
    ]
    model, x = small_net(nn.Conv1d, nn.BatchNorm1d), noise(2, 1, 31)
    for schedule in SCHEDULES:
        assert off(mesh, model, x, schedule) < EXACT
        for name, function in wrong:
            found = math.inf  # where it raises, as a rank without a tile has no moments
            with replaced(right, name, function), contextlib.suppress(ValueError):
                found = off(mesh, model, x, schedule)
            assert found > 1e-5, (schedule, name, function, found)


@contextlib.contextmanager
def replaced(owner: Any, name: str, wrong: Any) -> Iterator[None]:
    right = owner.__dict__[name]
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def mutants(size: int) -> dict[str, tuple[Any, str, Any]]:
    """Wrong ways to run in step on several ranks: what is replaced, and by what."""
    ranks, together = ranks_file.MeshRanks, merged_file._RunTogether
    summed, chan = ranks.summed, Moments.merged
    shares, total, backward = ranks.shares, CoreLoss.total, together.backward
    move, widest, gradients = (
        Normalization.move_running,
        Plan.widest_halo,
        Normalization.gradients,
    )

    def kind(like: Any) -> str:
        if len(like) > 1:
            return "gradients"
        return "statistics" if like[0].shape == (2, 1, 3) else "results"

    def sums(which: str, own_only: bool = False) -> Callable[..., Any]:
        def wrong(self: Any, values: Any, like: Any) -> Any:
            found = summed(self, values, like)
            if kind(like) != which:
                return found
            return list(values) if own_only else [v if v is None else v / self.size for v in found]

        return wrong

    def no_spread(self: Moments, other: Moments) -> Moments:
        both = chan(self, other)
        share = other.count / both.count
        return Moments(both.count, both.mean, self.var + share * (other.var - self.var))

    def by_rank(self: Any, moments: Moments) -> None:
        move(self, Moments(moments.count, moments.mean + dist.get_rank(), moments.var))

    def often(self: Any, moments: Moments) -> None:
        for _ in range(size):
            move(self, moments)

    def left_out(self: Any, tiles: Any) -> Any:
        found = shares(self, tiles)
        idle = dataclasses.replace(tiles[0], core=((0, 0),))
        return [found[0], [idle], *found[2:]]

    def twice(self: Any, tiles: Any) -> Any:
        found = shares(self, tiles)
        return [found[0], [*found[0], *found[1]], *found[2:]]

    def short(self: Plan) -> Any:
        pairs = zip(widest(self), self.stride, strict=True)
        return tuple(tuple(max(0, side - stride) for side in halo) for halo, stride in pairs)

    def core_only(self: Any, x: Tensor, mean: Any, var: Any, weight: Any, d_y: Tensor) -> Any:
        cut = torch.zeros_like(d_y)
        cut[..., 2:-2] = d_y[..., 2:-2]
        return gradients(self, x, mean, var, weight, cut)

    def own_windows(ctx: Any, d_token: Tensor, *d_results: Any) -> Any:
        cut = []
        for tile, d in zip(ctx.meeting.tiles, d_results, strict=True):
            core = tile.core_of_tile(ctx.meeting.result_lines)
            cut.append(d if d is None else torch.zeros_like(d))
            if d is not None:
                cut[-1][core] = d[core]
        return backward(ctx, d_token, *cut)

    def on_every_rank(ctx: Any, d_token: Tensor, *d_results: Any) -> Any:
        first = copy.copy(ctx.meeting.ranks)
        first.rank = 0
        ctx.meeting = dataclasses.replace(ctx.meeting, ranks=first)
        return backward(ctx, d_token, *d_results)

    return {
        "variance without the spread of means": (Moments, "merged", no_spread),
        "gradients averaged": (ranks, "summed", sums("gradients")),
        "adjoints of statistics averaged": (ranks, "summed", sums("statistics")),
        "adjoints of statistics not summed": (ranks, "summed", sums("statistics", own_only=True)),
        "adjoints of results averaged": (ranks, "summed", sums("results")),
        "loss averaged": (CoreLoss, "total", lambda self: total(self) / size),
        "weights of a part on every rank": (together, "backward", staticmethod(on_every_rank)),
        "running statistics by rank": (Normalization, "move_running", by_rank),
        "running statistics by every rank": (Normalization, "move_running", often),
        "a tile left out": (ranks, "shares", left_out),
        "a tile twice": (ranks, "shares", twice),
        "a halo one stride short": (Plan, "widest_halo", short),
        "gradients of a halo dropped": (Normalization, "gradients", core_only),
        "windows of a part without their halo": (together, "backward", staticmethod(own_windows)),
    }


@slow_case
def wrong_steps_are_seen(mesh: DeviceMesh) -> None:
    model, x = small_net(nn.Conv1d, nn.BatchNorm1d), noise(2, 1, 31)
    for part in ("0", "3"):
        assert off(mesh, model, x, "in_step", part) < EXACT
    for title, mutant in mutants(mesh.size()).items():
        found = math.inf  # where it raises
        with replaced(*mutant), contextlib.suppress(RuntimeError):
            found = max(off(mesh, model, x, "in_step", part) for part in ("0", "3"))
        assert found > 1e-5, (title, found)


@case
def wrong_shared_parts_are_seen(mesh: DeviceMesh) -> None:
    backward = WindowExchange.backward

    def short(self: SharedPart, core: Any) -> Any:
        halo = [
            tuple(max(0, side - stride) for side in sides)
            for sides, stride in zip(self.plan.widest_halo(), self.plan.stride, strict=True)
        ]
        axes = zip(core, halo, self.size, self.plan.stride, self.plan.least, strict=True)
        return tuple(widened(*axis) for axis in axes)

    def kept(self: WindowExchange, d_window: Tensor, shape: Any, ranks: Any) -> Tensor:
        one = copy.copy(ranks)
        one.exchanged = lambda pieces, like: [
            piece if rank == ranks.rank else None
            for rank, piece in enumerate(ranks.exchanged(pieces, like))
        ]
        return backward(self, d_window, shape, one)

    def twice(self: WindowExchange, d_window: Tensor, shape: Any, ranks: Any) -> Tensor:
        return 2 * backward(self, d_window, shape, ranks)

    model, x = unet("batch"), noise(2, 1, 24 * mesh.size() + 1)
    options = {"tile_size": 24, "whole": (), "shared": DEEP}
    assert off(mesh, model, x, "in_step", **options) < EXACT
    for mutant in (
        (SharedPart, "_wide", short),
        (WindowExchange, "backward", kept),
        (WindowExchange, "backward", twice),
    ):
        with replaced(*mutant):
            assert off(mesh, model, x, "in_step", **options) > 1e-5, mutant


class Halved(nn.Module):
    """A convolution, a part at half the resolution, and another convolution."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part = nn.Conv1d(1, 3, 2, stride=2), part
        self.last = nn.Conv1d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.part(self.first(x)))
        return y


@case
def bytes_of_shared_parts(mesh: DeviceMesh) -> None:
    """Neighbors send each other the halo of the part, and that of the layer after it."""
    rank, size = mesh.get_local_rank(), mesh.size()
    model = Halved(nn.Conv1d(3, 3, 5, padding=2)).double()
    x, target = noise(1, 1, 32 * size), noise(1, 2, 16 * size)
    neighbors = (rank > 0) + (rank < size - 1)
    position = 8 * 3  # bytes of the channels at one position
    halos = neighbors * (2 + 1) * position
    sent = {}
    for parts in ({"whole": (), "shared": ("part",)}, {"whole": ("part",)}):
        options = {"mesh": mesh, "schedule": "in_step"} | parts
        tiled = Tiled1d(model, "auto", **options)
        wanted = tiled(x)
        with ranks_file.Sent() as inference:
            tiled(x, wanted)
        steps = functools.partial(accumulate_gradients, model, x, target, F.mse_loss, "auto")
        steps(**options)
        with ranks_file.Sent() as training:
            steps(**options)
        sent["shared" in parts] = inference, training
    shared, whole = sent[True], sent[False]
    agreement, core = (
        8,
        16 * position,
    )  # a part run whole is sent in cores, by one broadcast per rank
    assert shared[0].bytes - whole[0].bytes == halos + agreement - core
    assert shared[0].calls - whole[0].calls == 2 + 1 - size
    # back: an agreement, a flag and an agreement for both; else the gradient of the result, and flags
    result, flags = size * core, 4
    own = shared[1].bytes - whole[1].bytes
    assert own == 2 * halos + 6 * agreement - core - result - flags, (own, halos)


@case
def an_error_inside_a_shared_part_is_raised_on_all(mesh: DeviceMesh) -> None:
    last = mesh.get_local_rank() == mesh.size() - 1

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, where: str) -> Tensor:
            ctx.where = where
            if last and where == "forward" and deadly:
                raise ZeroDivisionError("in forward")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None]:
            if last and ctx.where == "backward":
                raise ZeroDivisionError("in backward")
            return d_y, None

    class Part(nn.Module):
        def __init__(self, where: str) -> None:
            super().__init__()
            self.first, self.second, self.where = nn.BatchNorm1d(3), nn.BatchNorm1d(3), where

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(Fails.apply(self.first(x), self.where))
            return y

    x, target = noise(1, 1, 32 * mesh.size()), noise(1, 2, 16 * mesh.size())
    options = {"tile_size": "auto", "shared": ("part",), "mesh": mesh}
    for where in ("forward", "backward"):
        model, deadly = Halved(Part(where)).double(), []
        before = copy.deepcopy(model.state_dict())
        known = "auto", (), None, mesh.size(), "auto", True, ("part",)
        settle(model, x.shape, x[:0], *known)  # which runs the model, too
        deadly.append(True)
        error = raised(lambda m=model: accumulate_gradients(m, x, target, F.mse_loss, **options))
        assert isinstance(error, ZeroDivisionError), error
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    check_equal(mesh, small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31), 16)  # the group works


@case
def bytes_that_are_sent(mesh: DeviceMesh) -> None:
    """What is counted is what the merges need: moments, cores of the output, and agreements."""
    model, x = small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31)
    tiled = Tiled1d(model, 20, mesh=mesh, whole=(), schedule="in_step")
    wanted = tiled(x)
    with ranks_file.Sent() as sent:
        tiled(x, wanted)
    with ranks_file.Sent() as compared:
        mesh_ranks = ranks_file.ranks_of(mesh)
        model_ranks = settle(model, x.shape, x, 20, (), None, mesh.size(), "in_step")
        none = ranks_file.checksum([])
        check_same_calls(mesh_ranks, model, x, model_ranks, reduce=None, skip=none)
    agreement, moments = 8, 8 * (1 + 2 * 3)
    cores = {0: 8 * 2 * 20, 1: 8 * 2 * 9}  # the positions of two channels that belong to a tile
    own = sent.bytes - compared.bytes
    assert own == moments + cores.get(mesh.get_local_rank(), 0) + 4 * agreement, own
    assert sent.calls - compared.calls == 1 + 2 + 4
    assert sum(everywhere(own)) == mesh.size() * (moments + 4 * agreement) + 8 * 2 * 29


@case
def results_on_disk(mesh: DeviceMesh) -> None:
    model, x = small_net(nn.Conv2d, nn.InstanceNorm2d), noise(1, 1, 17, 14)
    wanted = model(x).detach()
    folder = everywhere(tempfile.mkdtemp())[0]
    scan, path = Path(folder, "x"), Path(folder, "y")
    if mesh.get_local_rank() == 0:
        np.memmap(scan, "float64", "w+", shape=(1, 1, 17, 14))[:] = x.numpy()
        np.memmap(path, "int16", "w+", shape=(1, 15, 12))[:] = -1
    dist.barrier()
    here = np.memmap(scan, "float64", "r", shape=(1, 1, 17, 14))
    out = np.memmap(path, "int16", "r+", shape=(1, 15, 12))
    TiledModel(model, 5, reduce="argmax", mesh=mesh)(here, out)
    assert np.array_equal(out, wanted.argmax(1).numpy())
    tensor = torch.full((1, 2, 15, 12), torch.nan)
    error = raised(lambda: TiledModel(model, 5, mesh=mesh)(x, tensor, skip={0}))
    assert "skip and a function in place of out need arrays on disk, got a tensor" in str(error)
    error = raised(lambda: TiledModel(model, 5, mesh=mesh)(x, lambda *_: tensor))
    assert "skip and a function in place of out need arrays on disk, got a tensor" in str(error)
    rank = mesh.get_local_rank()
    error = raised(lambda: TiledModel(model, 5, mesh=mesh, reduce="argmax")(here, out, skip={rank}))
    assert "must call with the same skip" in str(error)
    out[:] = -1
    dist.barrier()
    TiledModel(model, 5, mesh=mesh, reduce="argmax")(here, lambda *_: out, skip={0})
    left_out = out == -1  # the core of the first tile
    dist.barrier()
    assert np.array_equal(np.argwhere(left_out[0]), np.argwhere(np.ones((5, 5))))
    assert np.array_equal(out[~left_out], wanted.argmax(1).numpy()[~left_out])
    inside = np.full((1, 2, 15, 12), np.nan)
    TiledModel(model, 5, mesh=mesh)(x, inside)  # memory of its own: gathered
    assert np.abs(inside - wanted.numpy()).max() < EXACT
    TiledModel(model, 5, mesh=mesh)(x, tensor)
    assert (tensor - wanted).abs().max() < 1e-6
    out[:] = -1
    dist.barrier()
    TiledModel(model, 50, reduce="argmax", mesh=mesh)(here, out)  # one tile
    assert np.array_equal(out, wanted.argmax(1).numpy())


class Chunked:
    """An array in chunks."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, ...]) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, chunks

    def __setitem__(self, index: Any, values: Any) -> None:
        self.array[index] = values


@case
def chunks_of_two_ranks(mesh: DeviceMesh) -> None:
    model, x = small_net(nn.Conv1d, nn.InstanceNorm1d), noise(1, 1, 42)
    tiled = Tiled1d(model, 10, mesh=mesh)
    error = raised(lambda: tiled(x, Chunked(np.zeros((1, 2, 40)), (1, 2, 7))))
    assert "every chunk of out must be written by one rank alone, got chunks (1, 2, 7)" in str(
        error
    )
    assert "create it with chunks of (1, 2, 10)" in str(error)
    out = Chunked(np.zeros((1, 2, 40)), (1, 2, 10))
    tiled(x, out)
    nonzero = everywhere([bool(out.array[..., i].any()) for i in range(40)])
    assert np.array_equal(np.sum(nonzero, axis=0), np.ones(40)), "one rank writes each value"


@case
def prediction_of_an_msnet(mesh: DeviceMesh) -> None:
    model = MSNet(2, 1, 2, num_layers=2, spatial_dims=2).double().eval()
    x = (torch.rand(1, 1, 21, 18) > 0.4).double()
    y = model.predict(x, tile_size=6, mesh=mesh)
    assert (y - model.predict(x)).abs().max() < EXACT
    assert same_bits([y])
    error = raised(lambda: model.predict(x, mesh=mesh))
    assert "mesh needs a tile_size, got tile_size None" in str(error)


class Failing:
    """An input that cannot be read by one rank."""

    def __init__(self, x: Tensor, error: Exception | None) -> None:
        self.x, self.shape, self.dtype, self.error = x, x.shape, np.float64, error

    def __getitem__(self, index: Any) -> Tensor:
        if self.error is not None and index[2].start:
            raise self.error
        return self.x[index]


class LocalError(Exception):
    """An error that cannot be made again from what it is called with."""

    def __init__(self, path: str, place: int) -> None:
        super().__init__(f"{path} is broken at {place}")


@case
def an_error_of_one_rank_is_raised_on_all(mesh: DeviceMesh) -> None:
    model, x, target = small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31), noise(1, 2, 29)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    last = mesh.get_local_rank() == mesh.size() - 1

    def loss(y: Tensor, t: Tensor) -> Tensor:
        if last and y.requires_grad:
            raise ZeroDivisionError("the loss of the last rank")
        return F.mse_loss(y, t)

    broken = Failing(x, OSError("the disk of the last rank") if last else None)
    local = Failing(x, LocalError("disk", 7) if last else None)
    steps = functools.partial(accumulate_gradients, model, tile_size=8, mesh=mesh)
    calls: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (OSError, "the disk of", lambda: Tiled1d(model, 8, mesh=mesh)(broken)),
        (OSError, "the disk of", lambda: steps(broken, target, F.mse_loss)),
        (ZeroDivisionError, "the loss of", lambda: steps(x, target, loss)),
        (ZeroDivisionError, "the loss of", lambda: steps(x, target, loss, schedule="in_step")),
        (OSError, "the disk of", lambda: steps(broken, target, F.mse_loss, schedule="in_step")),
        (OSError, "the disk of", lambda: steps(x, Failing(target, broken.error), F.mse_loss)),
    ]
    for kind, text, call in calls:
        error = raised(call)
        assert isinstance(error, kind), error
        assert text in str(error), error
        notes = f"raised by rank {mesh.size() - 1} of {mesh.size()}"
        assert notes in error.__notes__
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    with pytest.raises(LocalError if last else RankError, match="disk is broken at 7"):
        Tiled1d(model, 8, mesh=mesh)(local)
    check_equal(mesh, small_net(nn.Conv1d, nn.BatchNorm1d), x, 8)  # the group works


@case
def calls_that_differ_by_rank(mesh: DeviceMesh) -> None:
    rank = mesh.get_local_rank()
    model, x = small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31)
    target = noise(1, 2, 29)
    other = copy.deepcopy(model)
    if rank:
        with torch.no_grad():
            other[3].bias += 1e-3
    expected: dict[str, Callable[[], Any]] = {
        "same values of parameters and buffers, got other values on rank 1": lambda: Tiled1d(
            other, 8, mesh=mesh
        )(x),
        "same training mode, got other values": lambda: Tiled1d(
            copy.deepcopy(model).train(rank == 0), 8, mesh=mesh
        )(x),
        "same class of model, got 'Sequential' on rank 0 and 'Conv1d' on rank 1": lambda: Tiled1d(
            model if rank == 0 else model[0], 8, mesh=mesh
        )(x),
        "same values of x, got": lambda: Tiled1d(model, 8, mesh=mesh)(x + rank),
        "same shape of x, got (1, 1, 31) on rank 0 and (1, 1, 30)": lambda: Tiled1d(
            model, 8, mesh=mesh
        )(x if rank == 0 else x[..., 1:]),
        "same tile_size and parts run whole, got ((8,), ()) on rank 0": lambda: Tiled1d(
            model, 8 if rank == 0 else 9, whole=(), mesh=mesh
        )(x),
        "same schedule, got 'in_step' on rank 0 and 'passes' on rank 1": lambda: Tiled1d(
            model, 8, schedule="in_step" if rank == 0 else "passes", whole=(), mesh=mesh
        )(x),
        "same reduce, got None on rank 0 and 'argmax' on rank 1": lambda: Tiled1d(
            model, 8, reduce=None if rank == 0 else "argmax", mesh=mesh
        )(x),
        "same values of target": lambda: accumulate_gradients(
            model, x, target + rank, F.mse_loss, 8, mesh=mesh
        ),
        "same requires_grad of parameters": lambda: accumulate_gradients(
            copy.deepcopy(model).requires_grad_(rank == 0), x, target, F.mse_loss, 8, mesh=mesh
        ),
        "expected (B, C) and 1 spatial axes": lambda: Tiled1d(model, 8, mesh=mesh)(
            x if rank == 0 else x[None]
        ),
    }
    for text, call in expected.items():
        error = raised(call)
        assert isinstance(error, ValueError), (text, error)
        assert text in str(error), (text, error)


@case
def losses_that_differ_by_rank(mesh: DeviceMesh) -> None:
    model, x = nn.Conv1d(1, 2, 1).double(), noise(1, 1, 32)
    steps = functools.partial(accumulate_gradients, model, x, tile_size=8, mesh=mesh)
    how = "mean" if mesh.get_local_rank() == 0 else "sum"
    loss = functools.partial(F.mse_loss, reduction=how)
    error = raised(lambda: steps(noise(1, 2, 32), loss))
    assert "the same on all ranks, got [['mean'], ['sum']" in str(error), error
    labels = torch.arange(32)[None] // (32 // mesh.size())  # one class per rank
    weights = torch.tensor([1.0, 5.0], dtype=torch.float64)
    weighted = functools.partial(F.cross_entropy, weight=weights)
    error = raised(lambda: steps(labels.clamp(max=1), weighted))
    assert "loss must be a mean of a local term" in str(error), error


@case
def models_that_communicate_themselves(mesh: DeviceMesh) -> None:
    model = small_net(nn.Conv1d, nn.BatchNorm1d)
    refused = {
        "must not be wrapped in DistributedDataParallel": DistributedDataParallel(
            copy.deepcopy(model)
        ),
        "must have unsharded parameters, got FSDPSequential": None,
        "must have ordinary batch norm": nn.SyncBatchNorm.convert_sync_batchnorm(
            copy.deepcopy(model)
        ),
    }
    for text, wrapped in refused.items():
        wrapped = fully_shard(copy.deepcopy(model), mesh=mesh) if wrapped is None else wrapped
        for call in (
            lambda m=wrapped: TiledModel(m, 8, mesh=mesh),
            lambda m=wrapped: TiledModel(m, 8),
            lambda m=wrapped: accumulate_gradients(
                m, noise(1, 1, 31), noise(1, 2, 29), F.mse_loss, 8, mesh=mesh
            ),
        ):
            error = raised(call)
            assert isinstance(error, ValueError), error
            assert text in str(error), error


@case
def meshes_that_do_not_serve(mesh: DeviceMesh) -> None:
    model = nn.Conv1d(1, 2, 1)
    both = init_device_mesh("cpu", (1, mesh.size()), mesh_dim_names=("data", "domain"))
    error = raised(lambda: TiledModel(model, 8, mesh=both))
    assert "mesh must be one-dimensional, got 2 dimensions" in str(error)
    assert "pass mesh['domain']" in str(error)
    TiledModel(model, 8, spatial_dims=1, mesh=both["domain"])(torch.randn(1, 1, 20))
    bare = init_device_mesh("cpu", (1, mesh.size()))
    assert "name its dimensions" in str(raised(lambda: TiledModel(model, 8, mesh=bare)))
    half = DeviceMesh("cpu", [0])
    if mesh.get_local_rank() == 0:
        TiledModel(model, 8, spatial_dims=1, mesh=half)(torch.randn(1, 1, 20))
    else:
        with pytest.raises(ValueError, match="must contain the process that calls, got rank"):
            TiledModel(model, 8, mesh=half)


@case
def copies_of_a_tiled_model(mesh: DeviceMesh) -> None:
    x = noise(1, 1, 31)
    tiled = TiledModel(small_net(nn.Conv1d, nn.InstanceNorm1d), 8, spatial_dims=1, mesh=mesh)
    for copied in (copy.deepcopy(tiled), pickle.loads(pickle.dumps(tiled))):
        assert torch.equal(copied(x), tiled(x))


@slow_case
def all_norms_in_two_dimensions(mesh: DeviceMesh) -> None:
    for norm in (None, "batch", "instance", "group"):
        model = unet(norm, 2)
        check_equal(mesh, model, noise(2, 1, 43, 38), 16, whole=())
        check_equal(mesh, model, noise(2, 1, 37, 50), 16, whole=("level.inner",))
        check_equal(mesh, model, noise(1, 1, 30, 30), "auto", whole=())


@slow_case
def a_unet_in_three_dimensions(mesh: DeviceMesh) -> None:
    check_equal(mesh, unet("instance", 3), noise(1, 1, 18, 21, 15), 8, whole=("level.inner",))


@slow_case
def shared_parts_in_two_and_three_dimensions(mesh: DeviceMesh) -> None:
    for norm in (None, "group", "batch"):
        model = unet(norm, 2)
        check_shared(
            mesh, model, noise(2, 1, 43, 38), (24, 20) if mesh.size() > 3 else (24, 38), DEEP, 2
        )
    check_shared(mesh, unet("instance", 3), noise(1, 1, 26, 13, 15), (14, 13, 15), DEEP, 2)


@slow_case
def shared_parts_with_parts_run_whole(mesh: DeviceMesh) -> None:
    model, x = unet("batch"), noise(2, 1, 61)
    whole = ("level.inner.inner",)
    check_shared(mesh, model, x, "auto", ("level.inner",), whole=whole)
    check_shared(mesh, model, x, "auto", ("level.inner.encode",), whole=whole)
    # several tiles per rank, and passes: they run whole
    for schedule in ("in_step", "passes"):
        options = {"schedules": (schedule,), "shared": DEEP}
        check_equal(mesh, model, x, 8, **options)


@slow_case
def shared_parts_with_more_ranks_than_tiles(mesh: DeviceMesh) -> None:
    model = unet("batch")
    if mesh.size() > 2:
        check_shared(mesh, model, noise(2, 1, 41), 22, DEEP, 2)  # two tiles
    check_shared(
        mesh, model, noise(2, 1, 12), 4 if mesh.size() > 2 else 6, DEEP, 2
    )  # cores without positions
    check_equal(mesh, model, noise(2, 1, 30), 40, schedules=("in_step",), shared=DEEP)  # one


@slow_case
def frozen_and_unused_parameters_of_shared_parts(mesh: DeviceMesh) -> None:
    model, x = unet("instance"), noise(2, 1, 61)
    model.level.inner.requires_grad_(False)
    check_shared(mesh, model, x, "auto", DEEP, 2)
    model.requires_grad_(False)
    model.level.decode.requires_grad_(True)
    check_shared(mesh, model, x, "auto", DEEP, 2)
    model.requires_grad_(True)

    class Apart(nn.Module):
        """Two outputs, of which the loss leaves out that of a shared part, on one rank or on all."""

        def __init__(self) -> None:
            super().__init__()
            self.down, self.part = nn.Conv1d(1, 2, 2, 2), small_net(nn.Conv1d, nn.BatchNorm1d)
            self.part[0] = nn.Conv1d(2, 3, 3, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.down(x)
            return [y, self.part(y)]

    def loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        pairs = [(y, t) for y, t in zip(outputs, targets, strict=True) if t.any()]
        return sum(((y * t).sum() for y, t in pairs), torch.zeros((), dtype=torch.float64))

    for first in (0, 20):
        targets = [noise(1, 2, 40), noise(1, 2, 38)]
        targets[1][..., first:] = 0
        options = {"loss": loss, "target": targets}
        check_shared(mesh, Apart().double(), noise(1, 1, 80), "auto", ("part",), **options)


@slow_case
def steps_of_training(mesh: DeviceMesh) -> None:
    """Five steps of gradient descent end with the weights of the plain model."""
    model = unet("batch")
    plain, x, target = copy.deepcopy(model), noise(2, 1, 61), noise(2, 2, 61)
    descents = [torch.optim.SGD(m.parameters(), 0.05) for m in (model, plain)]
    for _ in range(5):
        for descent in descents:
            descent.zero_grad()
        accumulate_gradients(model, x, target, F.mse_loss, 8, mesh=mesh)
        F.mse_loss(plain(x), target).backward()
        for descent in descents:
            descent.step()
    for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert (a - b).abs().max() < 1e-9
    assert same_bits(list(model.state_dict().values()))


@slow_case
def a_task_under_ddp(mesh: DeviceMesh) -> None:
    """Groups of two ranks share an input; gradients are averaged over the groups."""
    from lightning.pytorch import Trainer

    from neurenix_ms.training import RegressionTask

    num_groups = mesh.size() // 2
    model = small_net(nn.Conv1d, nn.InstanceNorm1d)
    plain = copy.deepcopy(model)
    x, target = noise(num_groups, 1, 31), noise(num_groups, 2, 29)
    descent = torch.optim.SGD(plain.parameters(), 0.05)
    for _ in range(3):
        descent.zero_grad()
        F.mse_loss(plain(x), target).backward()
        descent.step()
    sgd = torch.optim.SGD
    task = RegressionTask(model, optimizer=sgd, learning_rate=0.05, tile_size=8, domain_size=2)
    group = slice(mesh.get_local_rank() // 2, mesh.get_local_rank() // 2 + 1)
    os.environ |= {"LOCAL_RANK": str(mesh.get_local_rank()), "NODE_RANK": "0"}
    trainer = Trainer(
        accelerator="cpu",
        devices=mesh.size(),
        strategy="ddp",
        max_epochs=3,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pairs = torch.utils.data.TensorDataset(x[group], target[group])
    data = torch.utils.data.DataLoader(pairs)
    trainer.fit(task, data)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a - b).abs().max() < EXACT
    assert same_bits(list(model.parameters()))
    trainer.validate(task, data, verbose=False)
    value = trainer.callback_metrics["val_loss"]
    assert abs(value - F.mse_loss(plain(x), target)) < 1e-6
    wrong = RegressionTask(model, tile_size=8, domain_size=mesh.size() + 1)
    error = raised(lambda: wrong.training_step((x, target), 0))
    assert f"got {mesh.size() + 1} and {mesh.size()} processes" in str(error)


def of_random_networks(mesh: DeviceMesh, seeds: range, shared: bool = False) -> None:
    """Compare random networks in step; those that cannot run in tiles, or share parts, are left out."""
    compared = 0
    for seed in seeds:
        torch.manual_seed(seed)
        draw = random.Random(seed)
        model = random_network(seed, 1).double().train(draw.random() < 0.6)
        x = noise(2, 1, draw.randint(60, 150))
        try:
            plain = tree_leaves(copy.deepcopy(model)(x.clone()))
            sum(y.sum() for y in plain).backward()
        except (RuntimeError, ValueError):
            continue  # too small an input, or it writes over what backward needs
        leaves, structure = tree_flatten(copy.deepcopy(model)(x.clone()))
        target = tree_unflatten([torch.randn_like(y) for y in leaves], structure)
        tile = draw.choice(["auto", draw.randint(8, 40)])
        options = {"whole": draw.choice([(), "auto"]), "schedules": ("in_step",), "exact": 1e-9}
        if shared:
            lengths = measure_lengths(model, (1, *x.shape[1:]), x[:0], {})
            # at half the resolution or less, also inside of others
            tile, names = "auto", tuple(candidates(model, lengths))
            options |= {"whole": (), "shared": names}
            if not names:
                continue
        try:
            check_equal(mesh, model, x, tile, summed, target, **options)
        except ValueError as error:
            words = "be shift-equivariant by the stride", "a shared part must run in tiles itself"
            if not any(text in str(error) for text in words[: 1 + shared]):
                raise AssertionError(f"random network {seed}") from error
        except AssertionError as error:
            raise AssertionError(f"random network {seed}") from error
        else:
            compared += 1
    assert compared > len(seeds) / (6 if shared else 3), compared


def summed(outputs: Any, targets: Any) -> Tensor:
    pairs = zip(tree_leaves(outputs), tree_leaves(targets), strict=True)
    return torch.stack([(y * t).tanh().sum() for y, t in pairs]).sum()


@slow_case
def many_random_networks(mesh: DeviceMesh) -> None:
    first = 100 * (mesh.size() % 2)  # others on three ranks than on four
    of_random_networks(mesh, range(first, first + 100))


@slow_case
def shared_parts_of_random_networks(mesh: DeviceMesh) -> None:
    first = 100 * (mesh.size() % 2)
    of_random_networks(mesh, range(first, first + 100), shared=True)


def die(rank: int, size: int, folder: str) -> None:
    """Read an input that kills the last rank; the first one writes what became of it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    model, x = small_net(nn.Conv1d, nn.BatchNorm1d), noise(1, 1, 31)
    before = copy.deepcopy(model.state_dict())

    class Deadly(Failing):
        def __getitem__(self, index: Any) -> Tensor:
            if rank == size - 1 and index[2].start:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    try:
        accumulate_gradients(model, Deadly(x, None), noise(1, 2, 29), F.mse_loss, 8, mesh=mesh)
    except RuntimeError:
        same = all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
        same = same and all(p.grad is None for p in model.parameters())
        told = f"RuntimeError, gradients and buffers {'un' if same else ''}changed"
        Path(folder, f"rank{rank}").write_text(told)
    os._exit(0)
