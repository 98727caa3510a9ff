"""Parts that ranks share: who has which core, who sends what, and which parts are chosen."""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.execution.plan.arguments import passing
from neurenix_ms.execution.plan.footprint import Place, Plan
from neurenix_ms.execution.plan.grid import Grid, Tile
from neurenix_ms.execution.plan.lengths import Line
from neurenix_ms.execution.plan.sharing import SharedPart, is_empty
from neurenix_ms.execution.run.exchange import WindowExchange
from neurenix_ms.execution.run.setting import Setting, settle


def lines(*resolutions: int) -> tuple[Line, ...]:
    """Layout of a feature map with this many input positions per position, along each axis."""
    return tuple(Line(2 + axis, torch.tensor(r).item(), 0, 0) for axis, r in enumerate(resolutions))


class Ranks:
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self.board, self.barrier = board, barrier

    def exchanged(self, pieces: Sequence[Tensor | None], like: Any) -> list[Tensor | None]:
        self.board[self.rank] = list(pieces)
        self.barrier.wait()
        found = [sent[self.rank] for sent in self.board]
        self.barrier.wait()
        return found


def on_all(size: int, function: Any) -> list[Any]:
    """What a function of the ranks returns on each of them."""
    board, barrier, found = [None] * size, threading.Barrier(size), [None] * size

    def run(rank: int) -> None:
        found[rank] = function(Ranks(rank, board, barrier))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("size", [(23,), (12, 17), (9, 8, 10)])
@pytest.mark.parametrize("halo", [0, 3, 30])
def test_windows_are_those_of_the_whole_and_gradients_the_adjoint(size, halo):
    edge = tuple(-(-n // 2) for n in size)
    grid = Grid(size, (1,) * len(size), edge, (1,) * len(size))
    tiles = list(grid.tiles([(2, 2)] * len(size)))
    tiles.append(Tile(tuple((0, 0) for _ in size), tiles[0].wide, size))  # without a core
    wider = [*grid.tiles([(halo, halo)] * len(size)), tiles[0]]
    windows = [(slice(None), slice(None), *tile.window()) for tile in wider]
    exchange = WindowExchange.between(tiles, lines(*(1,) * len(size)), windows)
    whole = torch.randn(2, 3, *size, dtype=torch.float64)
    xs = [whole[(..., *tile.window())] for tile in tiles]
    found = on_all(len(tiles), lambda ranks: exchange.forward(xs[ranks.rank], ranks))
    for window, got in zip(windows, found, strict=True):
        assert torch.equal(got, whole[window])
    d_windows = [torch.randn_like(window) for window in found]
    back = on_all(
        len(tiles),
        lambda ranks: exchange.backward(d_windows[ranks.rank], xs[ranks.rank].shape, ranks),
    )
    forward = sum((y * d).sum() for y, d in zip(found, d_windows, strict=True))
    backward = sum((x * d).sum() for x, d in zip(xs, back, strict=True))
    torch.testing.assert_close(forward, backward)
    for tile, d_x in zip(tiles, back, strict=True):
        outside = torch.ones_like(d_x, dtype=torch.bool)
        outside[tile.core_of_tile(lines(*(1,) * len(size)))] = False
        assert not d_x[outside].any()


@pytest.mark.parametrize("stride", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("size", [1, 7, 24, 31])
def test_cores_of_a_part_are_a_partition_at_multiples_of_its_stride(size, stride):
    plan = Plan((stride,), (stride,), (size % stride,), (1,), (), ())
    part, place = SharedPart(plan, (size,)), Place("part", ((0, 0),), lines(2))
    for edge in range(2, 2 * size + 2, 2):
        grid = Grid((2 * size,), (2,), (edge,), (2,))
        cores = part.cores(list(grid.tiles([(0, 0)])), place)
        known = [ends for (ends,), core in zip(cores, cores, strict=True) if not is_empty(core)]
        assert [known[0][0], known[-1][1]] == [0, size]
        assert all(one[1] == other[0] for one, other in itertools.pairwise(known))
        assert all(start % stride == 0 for start, _ in known)
        assert size < stride or all(stop - start >= stride for start, stop in known)


def chosen(model: nn.Module, shape: tuple[int, ...], ranks: int = 2, **options: Any) -> Setting:
    known = {"tile_size": "auto", "whole": "auto", "memory_limit": None} | options
    like = next(model.parameters()).detach()[:0]
    setting = settle(model, shape, like, num_ranks=ranks, **known)
    assert setting is not None
    return setting


def shared_names(setting: Setting) -> list[Any]:
    """Names of the shared parts, nested."""

    def named(plan: Plan, shared: Any) -> list[Any]:
        return [
            (plan.sites[number].layer, *named(part.plan, part.shared)) for number, part in shared
        ]

    return named(setting.plan, setting.shared)


def test_every_level_is_shared_with_the_halo_of_its_own_layers():
    setting = chosen(UNet(1, 1, [4, 4, 4], norm="batch", spatial_dims=1), (1, 1, 320))
    assert shared_names(setting) == [("level.inner", ("inner", ("inner",)))]
    halos, shared = [setting.plan.widest_halo()], setting.shared
    while shared:
        ((_, part),) = shared
        halos.append(part.plan.widest_halo())
        shared = part.shared
    assert halos == [((4, 4),)] * 3 + [((2, 2),)]


@pytest.mark.slow
def test_levels_whose_cores_are_shorter_than_their_halo_run_whole_if_they_are_cheap():
    small, large = (UNet(1, 1, [n, 4, 4], norm="batch", spatial_dims=1) for n in (4, 16))
    for model in (small, large):
        assert shared_names(chosen(model, (1, 1, 32))) == [("level.inner", ("inner", ("inner",)))]
    # the cores of the second level have four positions and two
    assert shared_names(chosen(large, (1, 1, 24))) == [("level.inner",)]
    assert chosen(large, (1, 1, 24)).shared[0][1].parts == ("inner",)
    assert shared_names(chosen(small, (1, 1, 24))) == []


class Half(nn.Module):
    """A part at half the resolution."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, 16, 9, padding=4), nn.Conv1d(16, 4, 4, stride=2))
        self.part, self.last = part, nn.Conv1d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.part(self.first(x)))
        return y


class Pooled(nn.Module):
    """Adds the mean of all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(2, keepdim=True)


class Scaled(nn.Module):
    """Multiplies by a vector."""

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return x * by.reshape(-1, 4, 1)


class Conditioned(nn.Module):
    """Calls a part with a vector that a function makes."""

    def __init__(self, vector: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vector = vector
        self.first, self.part = nn.Conv1d(1, 4, 2, stride=2), Scaled()
        self.norm = nn.InstanceNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.part(self.first(x), self.vector(x)))
        return y


def test_a_part_that_cannot_be_cut_runs_whole_on_every_rank():
    setting = chosen(Half(Pooled()), (1, 1, 200))
    assert (setting.whole, setting.in_step) == (("part", "last"), True)
    assert shared_names(setting) == [("last",)]
    words = r"a shared part must run in tiles itself, got 'part': every layer .* instead of shared"
    with pytest.raises(ValueError, match=words):
        chosen(Half(Pooled()), (1, 1, 200), shared=("part",))


def test_a_part_with_other_arguments_than_vectors_is_refused_by_name():
    words = r"got 'part': it must be called with one feature map, and no .* but vectors .*; name it"
    model = Conditioned(lambda x: x.new_tensor([1.0, 2, 3, 4]))  # without a batch
    with pytest.raises(ValueError, match=words):
        chosen(model, (1, 1, 200), shared=("part",), schedule="in_step")
    assert chosen(model, (1, 1, 200)).shared == ()
    x = torch.randn(2, 1, 60)
    tiled = TiledModel(model, 16, spatial_dims=1, whole=("part",), memory_limit=2**20)
    torch.testing.assert_close(tiled(x), model(x))


class Named(Half):
    """Calls a part by the name of its argument."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.part(input=self.first(x)))
        return y


def test_a_part_whose_feature_map_has_a_name_runs_whole():
    model = Named(nn.Conv1d(4, 4, 3, padding=1))
    words = "got 'part': it must be called with one feature map, and no .* but vectors"
    with pytest.raises(ValueError, match=words):
        chosen(model, (1, 1, 200), shared=("part",), schedule="in_step")
    setting = chosen(model, (1, 1, 200))
    assert "part" not in [name for names in shared_names(setting) for name in names]


def test_a_part_that_is_called_with_a_vector_is_shared():
    model = Conditioned(lambda x: x.new_ones(len(x), 4))
    setting = chosen(model, (1, 1, 200), shared=("part",), schedule="in_step")
    assert shared_names(setting) == [("part",)]


@pytest.mark.slow
def test_every_level_of_a_conditioned_network_is_shared():
    model = UNet(1, 1, [4, 4, 4], norm="batch", spatial_dims=1, condition_channels=3)
    with passing((torch.ones(1, 3),)):
        setting = chosen(model, (1, 1, 320))
    assert shared_names(setting) == [("level.inner", ("inner", ("inner",)))]


@pytest.mark.parametrize("wrong", [("nothing",), "part", (1,)])
def test_names_of_shared_parts_are_checked(wrong):
    model, x = Half(nn.Conv1d(4, 4, 1)), torch.zeros(1, 1, 20)
    for call in (
        lambda: TiledModel(model, 8, spatial_dims=1, shared=wrong),
        lambda: accumulate_gradients(model, x, x, F.mse_loss, 8, shared=wrong),
    ):
        with pytest.raises(ValueError, match="shared"):
            call()


def test_shared_parts_of_one_process_run_whole():
    model = UNet(1, 1, [3, 4], norm="batch", spatial_dims=1).double()
    x = torch.randn(2, 1, 61, dtype=torch.float64)
    options = {"shared": ("level.inner", "level.inner.inner"), "schedule": "passes"}
    setting = chosen(model, (2, 1, 61), 1, tile_size=16, **options)
    assert (setting.whole, setting.shared) == (("level.inner",), ())
    assert chosen(model, (2, 1, 61), 2, tile_size=16, **options).shared == ()
    tiled = TiledModel(model.eval(), 16, spatial_dims=1, **options)
    assert (tiled(x) - model(x)).abs().max() < 1e-12
