"""Tiles that meet at every site, in one process, against the whole map."""

import copy
import random
import threading

import pytest
import torch
import torch.nn.functional as F
from random_networks import random_network
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from neurenix_ms import UNet
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.execution.plan.channels import channel_moments, channel_sums, spread
from neurenix_ms.execution.plan.choice import choose_parts
from neurenix_ms.execution.plan.statistics import Moments, Normalization
from neurenix_ms.execution.run import merged
from neurenix_ms.execution.run.attributes import Attributes
from neurenix_ms.execution.run.ranks import ranks_of
from neurenix_ms.execution.run.setting import settle
from neurenix_ms.execution.run.suspended import Suspended
from neurenix_ms.meter import count_flops, peak_tensor_bytes

EXACT = 1e-10  # of the output's standard deviation and of the largest gradient, in float64
OF_GRADIENTS = 1e-9


def noise(*shape: int) -> Tensor:
    """Random values, much larger in the second part, so that tiles of equal weight show."""
    x = torch.randn(*shape, dtype=torch.float64)
    x[:, :, 2 * shape[2] // 3 :] += 3
    return x


def summed(outputs, targets) -> Tensor:
    pairs = zip(tree_leaves(outputs), tree_leaves(targets), strict=True)
    return sum((y * t).tanh().sum() for y, t in pairs)


def apart(model: nn.Module, x: Tensor, tile, loss=F.mse_loss, **options) -> dict[str, float]:
    """How far outputs, loss, gradients and buffers of tiles in step are from those of the whole map."""
    plain, tiled, trained = (copy.deepcopy(model) for _ in range(3))
    output = plain(x.clone())
    leaves, structure = tree_flatten(output)
    target = tree_unflatten([torch.randn_like(y) for y in leaves], structure)
    wanted = loss(output, target)
    wanted.backward()
    options = {"whole": (), "schedule": "in_step"} | options
    got = TiledModel(tiled, tile, spatial_dims=x.ndim - 2, **options)(x)
    value = accumulate_gradients(trained, x, target, loss, tile, **options)
    pairs = list(zip(leaves, tree_leaves(got), strict=True))
    grads = [
        (p.grad, q.grad) for p, q in zip(plain.parameters(), trained.parameters(), strict=True)
    ]
    assert all((a is None) == (b is None) for a, b in grads)
    known = [(a, b) for a, b in grads if a is not None]
    most = max((a.abs().max() for a, _ in known), default=torch.ones(())) + 1e-12
    buffers = [
        (a - b).abs().max().item()
        for other in (tiled, trained)
        for a, b in zip(plain.buffers(), other.buffers(), strict=True)
        if a.numel()
    ]
    return {
        "output": max(((a - b).abs().max() / (a.std() + 1e-6)).item() for a, b in pairs),
        "loss": abs((wanted - value) / wanted).item(),
        "gradient": max((((a - b).abs().max() / most).item() for a, b in known), default=0.0),
        "buffers": max(buffers, default=0.0),
    }


def check(found: dict[str, float]) -> None:
    assert found["output"] < EXACT, found
    assert found["loss"] < OF_GRADIENTS, found
    assert found["gradient"] < OF_GRADIENTS, found
    assert found["buffers"] < OF_GRADIENTS, found


def small_net(norm: type[nn.Module] = nn.InstanceNorm1d, **options) -> nn.Module:
    convs = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 2, 3)
    norms = norm(4, **options), norm(4, **options)
    return nn.Sequential(convs[0], norms[0], nn.Tanh(), convs[1], norms[1], convs[2]).double()


def test_random_networks():
    compared = [check_random_network(seed, 1) for seed in range(6)]
    assert sum(compared) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_many_random_networks(seed):
    check_random_network(seed, 1 + seed % 2)


def check_random_network(seed: int, dims: int) -> bool:
    """Compare a network in tiles with the whole; return whether it could be compared."""
    draw = random.Random(seed)
    model = random_network(seed, dims).double().train(draw.random() < 0.6)
    size = {1: (60, 150), 2: (30, 50)}[dims]
    x = torch.randn(2, 1, *(draw.randint(*size) for _ in range(dims)), dtype=torch.float64)
    try:
        outputs = tree_leaves(copy.deepcopy(model)(x.clone()))
        sum(y.sum() for y in outputs).backward()
    except (RuntimeError, ValueError):
        return False  # too small an input, or it writes over what backward needs
    try:
        found = apart(model, x, draw.randint(8, 30), summed, whole=draw.choice([(), "auto"]))
    except ValueError as error:
        if "be shift-equivariant by the stride" not in str(error):
            raise
        return False
    assert found["output"] < EXACT, found
    assert found["gradient"] < 1e-8, found
    assert found["loss"] < OF_GRADIENTS, found
    assert found["buffers"] < EXACT, found
    return True


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (nn.BatchNorm1d, {}),
        (nn.BatchNorm1d, {"momentum": None}),
        (nn.InstanceNorm1d, {"affine": True, "track_running_stats": True}),
        (lambda n: nn.GroupNorm(2, n), {}),
    ],
)
def test_every_norm(norm, options):
    check(apart(small_net(norm, **options).train(), noise(2, 1, 47), 12))


def test_parts_run_whole():
    model = UNet(1, 2, [3, 4], norm="batch", spatial_dims=1).double().train()
    whole = "level.inner.inner", "level.encode.layers.0.conv"
    check(apart(model, noise(2, 1, 59), 8, whole=whole))


def test_two_dimensions_and_a_border_shorter_than_a_tile():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    check(apart(nn.Sequential(*layers).double(), noise(2, 1, 40, 43), (16, 24)))


def test_outputs_of_which_a_tile_has_no_position_of_one():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = (
                nn.Conv1d(1, 2, 3),
                nn.BatchNorm1d(2),
                nn.Conv1d(2, 2, 7),
            )

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.norm(self.first(x))
            return [y, self.second(y)]

    for schedule in ("in_step", "passes"):
        check(apart(Two().double(), noise(2, 1, 43), 9, summed, schedule=schedule))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("of_all", [True, False])
def test_sums_over_channels(dims, of_all):
    x, d_y = torch.randn(2, 2, 3, *(5, 4, 6)[:dims], dtype=torch.float64)
    x, d_y = x[..., 1:], d_y[..., 1:]  # not contiguous
    mean, scale = torch.randn(2, 1 if of_all else 2, 3, dtype=torch.float64)
    over = tuple(range(2, x.ndim))
    products = (x - spread(mean, x)) * spread(scale, x) * d_y
    for found, wanted in zip(
        (*channel_sums(x, d_y, mean, scale), *channel_moments(x)),
        (products.sum(over), d_y.sum(over), x.mean(over), x.var(over, correction=0)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_frozen_and_unused_parameters():
    model = small_net()
    model[0].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    check(apart(model, noise(2, 1, 47), 12))


class Cache:
    """A plain object that a module keeps a tensor in."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None


class KeepsState(nn.Module):
    """Reads after a normalization what it has written to itself before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.norm = nn.InstanceNorm1d(3)
        self.last: Tensor | None = None
        self.all: list[Tensor] = []
        self.named: dict[str, list[Tensor]] = {"kept": []}
        self.cache = Cache()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.all.append(2 * x)
        self.named["kept"].append(3 * x)
        self.cache.kept = 4 * x
        y = self.norm(self.conv(x))
        return (
            y + self.last + self.all.pop() + self.named["kept"].pop() + self.cache.kept * self.calls
        )


def test_what_a_forward_keeps_on_its_modules_is_that_of_the_tile():
    model = KeepsState().double()
    check(apart(model, noise(2, 1, 47), 12))
    TiledModel(model, 12, spatial_dims=1, schedule="in_step")(noise(2, 1, 47))
    assert (model.calls, model.all, model.named) == (1, [], {"kept": []})


def test_attributes_without_a_copy_are_seen(monkeypatch):
    monkeypatch.setattr(Attributes, "_exchange", lambda self: None)
    with pytest.raises(RuntimeError, match="size of tensor"):  # of a tile of another length
        apart(KeepsState().double(), noise(2, 1, 47), 12)


def equal_weights(self: Moments, other: Moments) -> Moments:
    mean, var = (self.mean + other.mean) / 2, (self.var + other.var) / 2
    return Moments(self.count + other.count, mean, var + (self.mean - other.mean).square() / 4)


def no_spread(self: Moments, other: Moments) -> Moments:
    both = MERGED(self, other)
    share = other.count / both.count
    return Moments(both.count, both.mean, self.var + share * (other.var - self.var))


def without_the_mean(self, moments: Moments, d_mean: Tensor, d_var: Tensor):
    return THROUGH(self, moments, 0 * d_mean, d_var)


def without_the_variance(self, moments: Moments, d_mean: Tensor, d_var: Tensor):
    return THROUGH(self, moments, d_mean, 0 * d_var)


MERGED, THROUGH = Moments.merged, Normalization.through_moments


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "seen"),
    [
        (Moments, "merged", equal_weights, "output"),
        (Moments, "merged", no_spread, "output"),
        (Normalization, "through_moments", without_the_mean, "gradient"),
        (Normalization, "through_moments", without_the_variance, "gradient"),
    ],
)
def test_wrong_arithmetic_is_seen(monkeypatch, owner, name, wrong, seen):
    monkeypatch.setattr(owner, name, wrong)
    # the first norm is followed by an activation, so the mean has an effect
    assert apart(small_net(), noise(2, 1, 47), 20)[seen] > 1e-4


def test_a_gradient_of_the_halo_that_is_dropped_is_seen(monkeypatch):
    gradients = Normalization.gradients

    def core_only(self, x, mean, var, weight, d_y):
        cut = torch.zeros_like(d_y)
        cut[..., 3:-3] = d_y[..., 3:-3]
        return gradients(self, x, mean, var, weight, cut)

    monkeypatch.setattr(Normalization, "gradients", core_only)
    assert apart(small_net(), noise(2, 1, 47), 12)["gradient"] > 1e-4


def test_the_gradient_of_a_part_that_counts_a_tile_twice_is_seen(monkeypatch):
    backward = merged._RunTogether.backward

    def twice(ctx, d_token, first, *d_results):
        return backward(ctx, d_token, None if first is None else 2 * first, *d_results)

    monkeypatch.setattr(merged._RunTogether, "backward", staticmethod(twice))
    model = nn.Sequential(*small_net(), nn.Conv1d(2, 2, 3)).double()
    assert apart(model, noise(2, 1, 47), 12, whole=("3",))["gradient"] > 1e-4


def windows(model: nn.Module, x: Tensor, tile) -> list[Tensor]:
    """The tiles of x with their halos."""
    setting = settle(model, x.shape, x, tile, (), None, schedule="in_step")
    tiles = setting.grid.tiles(setting.plan.widest_halo())
    return [x[(..., *tile.window())] for tile in tiles]


def test_no_pass_is_repeated():
    model, x = small_net(), noise(1, 1, 600)
    tiled = TiledModel(model, 150, spatial_dims=1, whole=(), schedule="in_step")
    tiled(x)
    with torch.no_grad():
        once = sum(count_flops(lambda w=w: model(w)) for w in windows(model, x, 150))
    assert count_flops(lambda: tiled(x)) == once
    target = torch.randn(1, 2, 598, dtype=torch.float64)

    def train(schedule: str) -> int:
        options = {"tile_size": 150, "schedule": schedule}
        accumulate_gradients(model, x, target, F.mse_loss, **options)
        return count_flops(lambda: accumulate_gradients(model, x, target, F.mse_loss, **options))

    assert train("in_step") <= 3 * once
    assert train("passes") > 4 * once


def test_the_memory_is_that_of_a_tile_and_of_what_waits():
    model, x, out = small_net().eval(), noise(1, 1, 16_000), noise(1, 2, 15_998)
    peaks = []
    for schedule in ("passes", "in_step"):
        tiled = TiledModel(model, 1000, spatial_dims=1, whole=(), schedule=schedule)
        tiled(x, out)
        peaks.append(peak_tensor_bytes(lambda t=tiled: t(x, out)))
    kept = 4 * x.nbytes  # what a convolution returns, and what else a frame refers to
    with torch.no_grad():
        whole = peak_tensor_bytes(lambda: model(x))
    assert peaks[0] < whole / 10
    assert kept < peaks[1] < 0.75 * whole


def test_the_schedule_is_chosen_by_memory(monkeypatch):
    model = small_net().eval()
    shape, like = (1, 1, 6400), torch.empty(0, dtype=torch.float64)

    def chosen(tile: int, **options) -> bool:
        return settle(model, shape, like, tile, (), None, **options).in_step

    assert chosen(800)
    assert chosen(800, num_ranks=2)
    assert not chosen(800, training=True)
    assert not chosen(800, training=True, num_ranks=2)
    assert chosen(3200, training=True, num_ranks=2)
    assert chosen(800, schedule="in_step", training=True)
    assert not chosen(800, schedule="passes")
    assert not chosen(50)  # too many threads
    assert chosen(50, num_ranks=2)
    monkeypatch.setattr("neurenix_ms.execution.plan.choice.SMALL_IN_STEP", 0)
    assert not chosen(400)  # takes more than twice the memory of a tile
    assert chosen(3300)
    plain = nn.Conv1d(1, 1, 3).double()
    assert not settle(plain, shape, like, 800, (), None, schedule="in_step").in_step  # no site


def test_ranks_that_run_parts_whole_take_those_with_the_fewest_operations():
    model = UNet(1, 1, [8, 8], norm=None, spatial_dims=1).eval()
    known = model, (1, 1, 640), torch.empty(0), None, None
    assert choose_parts(*known, num_ranks=4) == ("level.inner.inner",)
    assert choose_parts(*known) == ("level.inner",)  # a normalization in tiles repeats a pass


def test_a_memory_limit_is_kept_in_step():
    model, x, out = small_net().eval(), noise(1, 1, 16_000), noise(1, 2, 15_998)
    chosen = {}
    for limit in (500_000, 1_000_000):
        setting = settle(model, x.shape, x, "auto", (), limit)
        chosen[limit] = setting.in_step, len(setting.grid)
        tiled = TiledModel(model, "auto", spatial_dims=1, memory_limit=limit, whole=())
        tiled(x, out)
        assert peak_tensor_bytes(lambda t=tiled: t(x, out)) <= 1.001 * limit  # and moments
    assert chosen == {500_000: (False, 3), 1_000_000: (True, 5)}
    words = r"must hold a tile and what all other tiles keep at a site, got 500000; raise it"
    options = {"memory_limit": 500_000, "schedule": "in_step"}
    with pytest.raises(ValueError, match=words):
        TiledModel(model, "auto", spatial_dims=1, whole=(), **options)(x)


def test_tiles_that_are_there_already_are_run_as_far_as_the_last_site():
    model, x = small_net(), noise(1, 1, 47)
    tiled = TiledModel(model, 12, spatial_dims=1, whole=(), schedule="in_step")
    wanted, done = tiled(x), []
    out = torch.full_like(wanted, torch.nan)
    tiled(x, out, skip={0, 2}, on_tile=lambda number, total: done.append((number, total)))
    assert done == [(1, 4), (3, 4)]
    known = ~out.isnan()
    assert torch.equal(out[known], wanted[known])
    assert known.sum() == 2 * (12 + 9)


def test_an_error_leaves_no_thread_and_no_trace():
    model, x, threads = small_net(nn.BatchNorm1d).train(), noise(1, 1, 47), threading.active_count()
    before, target = copy.deepcopy(model.state_dict()), torch.zeros(1, 2, 45, dtype=torch.float64)

    class Broken:
        shape, dtype = x.shape, "float64"

        def __getitem__(self, index):
            if index[2].start > 20:
                raise OSError("the disk is broken")
            return x[index]

    def fails(number: int, total: int) -> None:
        raise OSError("the disk is full")

    def loss(y: Tensor, t: Tensor) -> Tensor:
        raise ZeroDivisionError("the loss")

    tiled = TiledModel(model, 12, spatial_dims=1, schedule="in_step")
    steps = {"tile_size": 12, "schedule": "in_step"}
    calls = {
        "disk is broken": lambda: tiled(Broken()),
        "disk is full": lambda: tiled(x, on_tile=fails),
        "the loss": lambda: accumulate_gradients(model, x, target, loss, **steps),
        "the disk": lambda: accumulate_gradients(model, Broken(), target, F.mse_loss, **steps),
    }
    for words, call in calls.items():
        with pytest.raises((OSError, ZeroDivisionError), match=words):
            call()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert threading.active_count() == threads
    check(apart(model, x, 12))


def test_a_model_that_makes_other_calls_in_one_tile_is_refused():
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.InstanceNorm1d(1), nn.InstanceNorm1d(1)])
            self.wide = 1000

        def forward(self, x: Tensor) -> Tensor:
            x = self.norms[0](x)
            return self.norms[1](x) if x.shape[-1] != self.wide else x

    x = noise(1, 1, 40)
    for wide, tile in ((10, (15,)), (15, (15,))):  # the last tile, the first one
        model = Changing()
        tiled = TiledModel(model, tile, spatial_dims=1, whole=(), schedule="in_step")
        tiled(x)
        setting = settle(model, x.shape, torch.empty(0), tile, (), None, schedule="in_step")
        model.wide = wide
        run = setting.run(model, x.float(), torch.empty(0), lambda: None, ranks_of(None))
        with (
            pytest.raises(ValueError, match="must make the same calls in every tile"),
            run.running(),
        ):
            list(run.results())


def test_a_function_is_suspended_and_continued():
    @torch.no_grad()
    def made() -> Suspended:
        with torch.autocast("cpu", torch.bfloat16):
            return Suspended(lambda pause: state(pause("one")) + pause("two"))

    def state(value: int) -> list:
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        return [value]

    steps = made()
    assert steps.resume() == "one"
    assert steps.resume(1) == "two"
    assert torch.is_grad_enabled()
    assert steps.resume([2]) == [1, 2]
    assert steps.finished


def test_a_suspended_function_is_closed():
    ends = []

    def function(pause):
        try:
            pause(1)
        except Exception:
            ends.append("caught")
        finally:
            ends.append("closed")

    for _ in range(2):
        steps = Suspended(function)
        steps.close()  # which has not begun
        steps = Suspended(function)
        steps.resume()
        steps.close()
        steps.close()
    assert ends == ["closed"] * 2
    wrong = Suspended(lambda pause: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wrong.resume()


def test_counters_see_what_tiles_in_step_do():
    model, x = small_net().eval(), noise(1, 1, 47)
    tiled = TiledModel(model, 12, spatial_dims=1, whole=(), schedule="in_step")
    tiled(x)
    assert count_flops(lambda: tiled(x)) > count_flops(lambda: model(x))
