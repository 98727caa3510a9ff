"""Tiles against the whole map: equal, whatever the network, the size and the tile."""

import copy
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from random_networks import Hourglass, random_network
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neurenix_ms import PyramidNetwork, PyramidPooling, UNet
from neurenix_ms.execution import TiledModel
from neurenix_ms.execution.plan.footprint import make_plan
from neurenix_ms.execution.plan.statistics import Moments
from neurenix_ms.execution.run import passes as passes_file
from neurenix_ms.execution.run.in_step import InStep
from neurenix_ms.execution.run.setting import settle
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.msnet import MSNet

EXACT = 1e-10  # of the output's standard deviation, in float64
SLOW = pytest.mark.slow
SIZES = {1: (60, 200), 2: (30, 70), 3: (14, 26)}


def apart(wanted: object, got: object) -> float:
    """The largest difference, in standard deviations of the output."""
    pairs = zip(tree_leaves(wanted), tree_leaves(got), strict=True)
    found = [((a - b).abs().max() / (a.std() + 1e-6)).item() for a, b in pairs if a.numel() > 1]
    return max(found, default=0.0)


def both(model: nn.Module, x: Tensor, tile, dims: int = 2, **options):
    """The plain and the tiled result, and the largest difference of the buffers afterwards.

    Tiles run in passes, unless a schedule is given; for tiles in step see test_in_step.py.
    """
    options = {"schedule": "passes", **options}
    plain, tiled = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        wanted = plain(x.clone())  # which may write over its input
    got = TiledModel(tiled, tile, spatial_dims=dims, **options)(x)
    pairs = zip(plain.buffers(), tiled.buffers(), strict=True)
    moved = max(((a - b).abs().max().item() for a, b in pairs if a.numel()), default=0.0)
    return wanted, got, moved


def unet(norm=None, dims: int = 2, **options) -> UNet:
    model = UNet(1, 2, features=[4, 6, 8], spatial_dims=dims, norm=norm, **options).double()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), dims=st.sampled_from([1, 1, 1, 2, 2, 3]))
@example(seed=30462, dims=1)  # a pooling hides a border that a transposed convolution crops
@example(seed=5339, dims=1)  # a pooling hides what the border of a part's enlarged result changes
def test_random_networks_are_equal_or_refused(seed, dims):
    draw = random.Random(seed)
    model = random_network(seed, dims).double().train(draw.random() < 0.5)
    x = torch.randn(2, 1, *(draw.randint(*SIZES[dims]) for _ in range(dims)), dtype=torch.float64)
    try:
        copy.deepcopy(model)(x.clone())
    except (RuntimeError, ValueError):
        return  # the map is too small for this network
    try:
        wanted, got, moved = both(
            model, x, draw.randint(1, 30), dims, whole=draw.choice([(), "auto"])
        )
    except ValueError as error:
        assert "be shift-equivariant by the stride" in str(error)  # noqa: PT017
        return
    assert apart(wanted, got) < EXACT
    assert moved < 1e-10


@pytest.mark.parametrize("size", [45, *(pytest.param(n, marks=SLOW) for n in (61, 80, 97))])
@pytest.mark.parametrize("num_levels", [3, 4])
def test_pyramids_of_any_length_run_in_tiles(size, num_levels):
    model = PyramidNetwork(1, 1, num_levels, 4, spatial_dims=1).double().eval()
    wanted, got, _ = both(model, torch.randn(1, 1, size, dtype=torch.float64), 16, 1)
    assert apart(wanted, got) < EXACT


def test_a_relu_does_not_hide_what_depends_on_the_result_of_a_part():
    part, up = nn.Conv1d(1, 1, 2, stride=2), nn.Upsample(scale_factor=2, mode="linear")
    nn.init.constant_(part.bias, -100)  # zeros after the ReLU, unless the map is as large as here
    model = nn.Sequential(part, up, nn.ReLU()).double()
    x = 1000 * torch.randn(1, 1, 40, dtype=torch.float64)
    wanted, got, _ = both(model, x, 4, 1, whole=("0",))
    assert wanted.count_nonzero() > 10
    assert apart(wanted, got) < EXACT


@pytest.mark.parametrize("cheap", [0, 2**12])
def test_a_path_that_leads_out_of_the_smallest_feature_map_is_found(cheap, monkeypatch):
    monkeypatch.setattr("neurenix_ms.execution.plan.reach.CHEAP_POSITIONS", cheap)
    # of five cells, the smallest map, the last layer reads the third only: padding after the first
    shrunk = Hourglass(nn.Identity(), nn.Conv2d(1, 1, 4), nn.Identity(), 2)
    model = nn.Sequential(shrunk, nn.Conv2d(2, 1, 3, padding=1, dilation=3)).double()
    x = torch.randn(1, 1, 20, 20, dtype=torch.float64)
    wanted, got, _ = both(model, x, 4, whole=())
    assert apart(wanted, got) < EXACT


class WritesOver(nn.Module):
    """What a layer reads, and what comes of it; the layer may write over the first."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1))
        self.act = act
        self.last = nn.Conv1d(2, 1, 3, padding=1)  # tiles read some cells of `up` twice

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(x)
        return y, self.last(self.act(y))


@pytest.mark.parametrize("whole", [(), ("up",), "auto"])
def test_what_follows_may_write_over_the_result_of_a_part(whole):
    x = torch.randn(2, 1, 61, dtype=torch.float64)
    wanted, got, _ = both(WritesOver(nn.CELU(inplace=True)).double(), x, 8, 1, whole=whole)
    assert apart(wanted, got) < EXACT


@pytest.mark.parametrize("crop", [0, 3])  # what shows at borders only is asked at two cuts
def test_the_feature_map_is_not_overwritten(crop):
    x = torch.randn(2, 1, 61, dtype=torch.float64)
    cut, back = nn.ConstantPad1d((0, -crop), 0.0), nn.ConstantPad1d((0, crop), 0.0)
    conv = nn.Conv1d(1, 2, 5, padding=2)
    model = nn.Sequential(nn.CELU(inplace=True), cut, conv, back).double()
    wanted, before = model(x.clone()), x.clone()
    assert apart(wanted, TiledModel(model, 8, spatial_dims=1)(x)) < EXACT
    assert torch.equal(x, before)


def test_a_part_that_writes_over_its_input_is_refused():
    x, words = torch.randn(2, 1, 61), r"must not modify its input, got 'act', which overwrites"
    tiled = TiledModel(WritesOver(nn.CELU(inplace=True)), 8, spatial_dims=1, whole=("act",))
    for context in (torch.no_grad(), torch.inference_mode()):
        with pytest.raises(ValueError, match=words), context:
            tiled(x)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_few_random_networks_are_refused(dims):
    refused = 0
    for seed in range(30):
        try:
            size = (1, 1, *(SIZES[dims][1],) * dims)
            make_plan(random_network(seed, dims), size, torch.empty(0), ())
        except ValueError:
            refused += 1
        except RuntimeError:
            continue  # the map is too small for this network
    assert refused <= 6


def norms_and_modes() -> list[Any]:
    """All combinations; those that take the same path as another one are marked as slow."""
    found = []
    for norm, training, whole in itertools.product(
        [None, "batch", "instance", "group"], [False, True], [(), "auto", ("level.inner",)]
    ):
        alike = (norm != "batch" and training) or (norm != "instance" and whole == "auto")
        found.append(pytest.param(norm, training, whole, marks=[SLOW] if alike else []))
    return found


@pytest.mark.parametrize(("norm", "training", "whole"), norms_and_modes())
def test_networks_with_every_norm(norm, training, whole):
    x = torch.randn(2, 1, 51, 43, dtype=torch.float64)
    wanted, got, moved = both(unet(norm).train(training), x, 16, whole=whole)
    assert apart(wanted, got) < EXACT
    assert moved < 1e-12


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((64, 64), 32),
        ((65, 71), 32),  # a last core shorter than a stride
        ((40, 40), 1),  # tiles of one stride, smaller than the halo
        pytest.param((16, 90), 24, marks=SLOW),  # the halo is larger than one axis
        pytest.param((37, 53), (8, 53), marks=SLOW),  # strips
        ((50, 50), 1000),  # one tile
    ],
)
def test_sizes_and_tiles(size, tile):
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    wanted, got, _ = both(unet("instance"), x, tile, whole=())
    assert apart(wanted, got) < EXACT


@pytest.mark.parametrize("dims", [1, 2, pytest.param(3, marks=SLOW)])
def test_any_number_of_axes(dims):
    x = torch.randn(2, 1, *(30, 27, 22)[:dims], dtype=torch.float64)
    wanted, got, _ = both(unet("group", dims).train(), x, 9, dims)
    assert apart(wanted, got) < EXACT


def test_several_outputs_of_several_sizes():
    model = PyramidNetwork(1, 2, base_channels=4, return_pyramid=True).double()
    x = torch.randn(1, 1, 45, 61, dtype=torch.float64)
    wanted, got, _ = both(model, x, 12)
    assert isinstance(got, list)
    assert [y.shape for y in got] == [y.shape for y in wanted]
    assert apart(wanted, got) < EXACT


def test_an_output_larger_than_the_input():
    model = MSNet(num_scales=3, num_filters=1, spatial_dims=2).double()
    x = torch.rand(1, 1, 45, 61, dtype=torch.float64) - 0.3
    wanted, got, _ = both(model, x, 16)
    assert got[-1].shape == (1, 1, 48, 64)
    assert apart(wanted, got) < EXACT


class Context(nn.Module):
    """A network whose deep level sees the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.MaxPool2d(2), PyramidPooling(4, 4, norm="batch"))
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=4, mode="bilinear")
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.inside(self.first(x))))


@pytest.mark.slow
def test_what_a_part_contains_is_exact_even_global_pooling():
    model = Context().double().train()
    x = torch.randn(2, 1, 64, 48, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"AdaptiveAvgPool2d.*whole="):
        TiledModel(model, 16, whole=())(x)
    for whole in ("auto", ("inside",)):
        wanted, got, moved = both(model, x, 16, whole=whole, memory_limit=10**8)
        assert apart(wanted, got) < EXACT
        assert moved < 1e-12


def test_a_part_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.part = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 5, padding=2))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.conv(self.part(x)))

    wanted, got, moved = both(
        Twice().double().train(), torch.randn(1, 1, 40, 30, dtype=torch.float64), 8, whole=("part",)
    )
    assert apart(wanted, got) < EXACT
    assert moved < 1e-12


def test_a_layer_that_is_used_twice():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.relu(self.norm(x)))

    x = torch.randn(2, 1, 40, 30, dtype=torch.float64)
    wanted, got, moved = both(Shared().double().train(), x, 8)
    assert apart(wanted, got) < EXACT
    assert moved < 1e-12


@pytest.mark.slow
def test_float32_is_as_near_to_float64_as_the_whole_map():
    exact = unet("instance").eval()
    x = torch.randn(1, 1, 96, 80, dtype=torch.float64)
    truth, single = exact(x), copy.deepcopy(exact).float()
    plain = apart(truth, single(x.float()).double())
    tiled = apart(truth, TiledModel(single, 24)(x.float()).double())
    assert tiled < 2 * plain


@pytest.mark.slow
def test_a_halo_one_stride_short_is_seen(monkeypatch):
    x = torch.randn(1, 1, 96, 80, dtype=torch.float64)
    model = unet().eval()
    plan = make_plan(model, x.shape, x, ())
    for axis in (0, 1):
        for side in (0, 1):
            halo = [list(h) for h in plan.outputs[0].halo]
            halo[axis][side] -= plan.stride[axis]
            short = copy.copy(plan.outputs[0])
            object.__setattr__(short, "halo", tuple(map(tuple, halo)))
            wrong = copy.copy(plan)
            object.__setattr__(wrong, "outputs", (short,))
            monkeypatch.setattr(
                "neurenix_ms.execution.run.setting.make_plan", lambda *_, w=wrong: w
            )
            assert apart(model(x), TiledModel(model, 8, whole=())(x)) > EXACT


@pytest.mark.parametrize(
    ("schedule", "owner"),
    [("passes", passes_file.Values), ("in_step", InStep)],
    ids=["passes", "in step"],
)
@pytest.mark.slow
def test_running_statistics_that_move_twice_are_seen(schedule, owner, monkeypatch):
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)
    once = owner.move_running
    monkeypatch.setattr(owner, "move_running", lambda s: (once(s), once(s)))
    assert both(unet("batch").train(), x, 16, schedule=schedule)[2] > 1e-3


def test_moments_of_two_sets_are_those_of_both():
    a, b = torch.randn(30, 2, dtype=torch.float64) + 5, torch.randn(7, 2, dtype=torch.float64)
    sets = [Moments(len(t), t.mean(0), t.var(0, correction=0)) for t in (a, b, torch.cat([a, b]))]
    merged = sets[0].merged(sets[1])
    assert merged.count == 37
    torch.testing.assert_close(merged.mean, sets[2].mean)
    torch.testing.assert_close(merged.var, sets[2].var)


def test_arrays_in_and_out(tmp_path):
    model = unet("instance").eval().float()
    x = np.random.default_rng(0).normal(size=(1, 1, 70, 50))
    wanted = model(torch.tensor(x, dtype=torch.float32))
    source = np.memmap(tmp_path / "x", mode="w+", shape=x.shape, dtype="float64")
    source[:] = x
    out = np.memmap(tmp_path / "y", mode="w+", shape=tuple(wanted.shape), dtype="float32")
    assert TiledModel(model, 16)(source, out) is out
    assert apart(wanted, torch.tensor(out)) < 1e-4
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(store=str(tmp_path / "z"), shape=wanted.shape, dtype="float32")
    read = zarr.open_array(str(tmp_path / "z"), mode="r+")
    TiledModel(model, 16)(source, read)
    assert apart(wanted, torch.tensor(stored[:])) < 1e-4
    assert apart(wanted, TiledModel(model, 100)(source)) < 1e-4


def test_labels_instead_of_channels():
    model = unet().eval()
    x = torch.randn(2, 1, 40, 52, dtype=torch.float64)
    labels = TiledModel(model, 16, reduce="argmax")(x)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, model(x).argmax(1))
    out = np.zeros((2, 40, 52), dtype="uint8")
    TiledModel(model, 16, reduce="argmax")(x, out)
    assert np.array_equal(out, labels.numpy())


def peak_of(model: nn.Module, n: int, **options) -> int:
    x = torch.randn(1, 1, n, n, dtype=torch.float64)
    tiled = TiledModel(model, 32, **options)
    tiled(x)  # asks the model
    out = torch.empty(1, 2, n, n, dtype=torch.float64)
    return peak_tensor_bytes(lambda: tiled(x, out))


@pytest.mark.slow
@pytest.mark.parametrize("norm", [None, "instance"])
def test_memory_does_not_grow_with_the_map(norm):
    model = UNet(1, 2, features=[4, 6], norm=norm).double().eval()
    # tiles without a border are there at both sizes
    options = {"whole": (), "schedule": "passes"}
    assert peak_of(model, 160, **options) <= 1.01 * peak_of(model, 128, **options)


@pytest.mark.slow
def test_parts_keep_to_the_limit_as_the_feature_map_grows():
    model = unet("group").eval()
    limit = 2_000_000
    small, large = (
        settle(model, (1, 1, n, n), torch.empty(0, dtype=torch.float64), 32, "auto", limit)
        for n in (128, 400)
    )
    assert small.whole == ("level.inner",)
    assert large.whole[0].startswith("level.inner.inner")
    assert peak_of(model, 160, memory_limit=limit) < 3 * limit


@pytest.mark.slow
def test_the_largest_tile_that_fits():
    model = unet().eval()
    x = torch.randn(1, 1, 200, 200, dtype=torch.float64)
    with torch.no_grad():
        plain = peak_tensor_bytes(lambda: model(x))
    edges = []
    for limit in (plain // 2, 2 * plain // 3):
        tiled = TiledModel(model, "auto", memory_limit=limit, whole=())
        assert apart(model(x), tiled(x)) < EXACT
        setting = settle(model, x.shape, x, "auto", (), limit)
        edges.append(setting.grid.edge[0])
        assert peak_tensor_bytes(lambda t=tiled: t(x)) < limit + 2 * x.nbytes
    assert 0 < edges[0] < edges[1] < 200
    assert settle(model, x.shape, x, "auto", (), 2 * plain) is None


def test_a_model_is_left_as_it_was(monkeypatch):
    model = unet("batch").train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)
    calls = []

    def fails(*args):
        calls.append(args)
        if len(calls) == 5:
            raise OSError("disk full")

    monkeypatch.setattr("neurenix_ms.execution.tiling.write", fails)
    with pytest.raises(OSError, match="disk full"):
        TiledModel(model, 8)(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert model.remember is True


def test_a_progress_bar_counts_every_tile(capsys):
    TiledModel(unet("instance").eval(), 32, whole=(), progress=True)(
        torch.randn(1, 1, 64, 64, dtype=torch.float64)
    )
    assert "60/60" in capsys.readouterr().err  # four tiles, fourteen norms and the result


def test_state_dict_and_copies():
    models = [UNet(1, 2, features=[4]).double().eval() for _ in range(2)]
    tiled, other = (TiledModel(model, 16) for model in models)
    other.load_state_dict(tiled.state_dict())
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)
    assert torch.equal(other(x), tiled(x))
    assert torch.equal(copy.deepcopy(tiled)(x), tiled(x))
    assert not tiled(x.requires_grad_()).requires_grad


MESSAGES = [
    ({"tile_size": 0}, r"tile_size must be at least 1 along each of 2 axes, got 0"),
    ({"tile_size": (8, 8, 8)}, r"each of 2 axes, got \(8, 8, 8\)"),
    (
        {"tile_size": "auto"},
        r"'auto' together with memory_limit or mesh, got 'auto' and memory_limit None",
    ),
    ({"tile_size": "big"}, r"got 'big'"),
    ({"tile_size": 8, "memory_limit": 0}, r"memory_limit must be at least 1 byte, got 0"),
    ({"tile_size": 8, "whole": "all"}, r"whole must be 'auto' or names of submodules, got 'all'"),
    ({"tile_size": 8, "whole": ("deep",)}, r"submodules of Conv2d .* got 'deep'"),
    ({"tile_size": 8, "reduce": "max"}, r"reduce must be one of \['argmax'\] or None, got 'max'"),
    ({"tile_size": 8, "spatial_dims": 4}, r"spatial_dims must be one of \[1, 2, 3\], got 4"),
]


@pytest.mark.parametrize(("options", "text"), MESSAGES)
def test_every_message(options, text):
    with pytest.raises(ValueError, match=text):
        TiledModel(nn.Conv2d(1, 1, 3), **options)


def test_every_message_of_a_call():
    tiled = TiledModel(unet().eval(), 8)
    with pytest.raises(ValueError, match=r"\(B, C\) and 2 spatial axes, .* got \(1, 1, 8\)"):
        tiled(torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match=r"got list"):
        tiled([1, 2])
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"out must have shape \(1, 2, 32, 32\), got \(1, 32, 32\)"
    ):
        tiled(x, torch.zeros(1, 32, 32))
    with pytest.raises(ValueError, match=r"out must hold 1 arrays, got 2"):
        tiled(x, [x, x])
    small = TiledModel(unet().eval(), "auto", memory_limit=1000, whole=())
    with pytest.raises(
        ValueError, match=r"hold the smallest tile with its halo, \d+ bytes, got 1000"
    ):
        small(x)
    words = r"one feature map, .* shapes \[.*\] and 0 other arguments for 'level.decode'"
    with pytest.raises(ValueError, match=words):
        TiledModel(unet().eval(), 8, whole=("level.decode",))(x)
    circular = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match=r"be shift-equivariant by the stride, got '1' \(Conv2d\)"):
        TiledModel(nn.Sequential(nn.Conv2d(1, 2, 1), circular), 8, in_channels=1)
