"""What a model sees of its input: closed forms for single layers, and layers that cannot be cut."""

import time
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import PyramidNetwork, UNet
from neurenix_ms.execution import Footprint, footprint
from neurenix_ms.msnet import MSNet


def halo_of(model: nn.Module, in_channels: int = 1, dims: int = 2):
    return footprint(model.eval(), in_channels, dims).halo


@pytest.mark.parametrize("kernel", [1, 2, 3, 6])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_valid_convolution_needs_what_its_kernel_covers(kernel, dilation):
    conv = nn.Conv1d(1, 1, kernel, dilation=dilation)
    assert halo_of(conv, dims=1) == ((0, dilation * (kernel - 1)),)


def test_padding_moves_the_halo_to_both_sides():
    assert halo_of(nn.Conv1d(1, 1, 7, padding=3), dims=1) == ((3, 3),)
    assert halo_of(nn.Conv1d(1, 1, 7, padding=2), dims=1) == ((2, 4),)


def test_every_axis_has_its_own_numbers():
    model = nn.Conv3d(1, 1, (3, 1, 5), stride=(1, 2, 4), padding=(1, 0, 2))
    found = footprint(model, 1, 3)
    assert found.stride == (1, 2, 4)
    assert [float(s) for s in found.scale] == [1, 0.5, 0.25]
    # the last output of a core reads two of its own cells beyond the four it stands for
    assert found.halo == ((1, 1), (0, 0), (4, 0))


def test_strides_multiply_and_upsampling_divides():
    model = nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(3, 3), nn.Upsample(scale_factor=2))
    found = footprint(model, 1, 1)
    assert found == Footprint(((0, 0),), (6,), (Fraction(1, 3),), ())


def test_reach_adds_up_from_layer_to_layer():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(5)), nn.ReLU())
    assert halo_of(model) == ((5, 5), (5, 5))


def test_a_kernel_of_zeros_and_a_dead_activation_hide_nothing():
    conv, head = nn.Conv1d(1, 1, 9, padding=4), nn.Conv1d(1, 1, 1)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(conv, nn.ReLU(), head)
    assert halo_of(model, dims=1) == ((4, 4),)


class CropAndPad(nn.Module):
    """Shows nothing in the interior; at the end of every map it writes zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :-3], (0, 3))


def test_what_only_shows_at_a_border_counts_too():
    assert halo_of(CropAndPad(), dims=1) == ((0, 3),)


def test_statistics_are_listed_and_do_not_widen_the_halo():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4))
    found = footprint(model, 1)
    assert found.halo == ((1, 1), (1, 1))
    assert found.global_layers == ("1", "2")


def test_batch_norm_is_global_in_train_mode_only():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
    assert footprint(model.train(), 1, 1).global_layers == ("1",)
    assert footprint(model.eval(), 1, 1).global_layers == ()


class Stranger(nn.Module):
    """Normalizes without any norm class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x) + F.group_norm(x, 1)


def test_norms_are_met_as_functions():
    model = nn.Sequential(Stranger())
    assert footprint(model, 2, 1).global_layers == ("0",)


def test_the_footprint_of_networks():
    assert footprint(UNet(1, 1, features=[4, 8], norm=None), 1).stride == (4, 4)
    assert footprint(PyramidNetwork(1, 2, base_channels=2, norm=None), 1).stride == (4, 4)
    network = MSNet(num_scales=3, num_filters=1, spatial_dims=2)
    found = footprint(network, 1)
    assert found.stride == (4, 4)
    assert len(found.global_layers) == 12


@pytest.mark.slow
def test_a_four_level_network_in_three_dimensions_is_asked_in_ten_seconds():
    model = UNet(1, 1, features=[16, 32, 64, 128], spatial_dims=3, norm=None)
    start = time.process_time()
    assert footprint(model, 1, 3).halo == ((112, 112),) * 3
    assert time.process_time() - start < 20  # on one core


def test_a_changed_layer_is_asked_again():
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    assert halo_of(model, dims=1) == ((0, 2),)
    model[0] = nn.Conv1d(1, 1, 5)
    assert halo_of(model, dims=1) == ((0, 4),)


def test_asking_changes_nothing():
    model = UNet(1, 1, features=[4], norm="batch").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    footprint(model, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.remember is True
    assert "forward" not in model.__dict__


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        cells = x.flatten(2).movedim(1, 2)
        return self.attend(cells, cells, cells)[0].movedim(1, 2).reshape(x.shape)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0, 1, x.shape[-1])


class Checkers(nn.Module):
    """Treats every fifth column differently: no length shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.shape[-1]) % 5 == 0)


class ToSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 2), x.shape[-1] // 2 * 2 + 1, mode="bilinear")


class Swallow(nn.Module):
    """NaN does not pass a comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x > x.amax((2, 3), keepdim=True) * 0.5)


class Shrunk(nn.Module):
    """A map whose positions are scaled: beside the input it is shifted differently everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 2)
        return x + F.pad(y, (0, x.shape[-1] - y.shape[-1], 0, x.shape[-2] - y.shape[-2]))


class Count(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 3


NO_TILES = {
    "align_corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "Upsample"),
    "resize by 1.5": (nn.Upsample(scale_factor=1.5), r"whole factors.*3/2 in '1' \(Upsample\)"),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(4), r"grows.*'1' \(AdaptiveAvgPool2d\)"),
    "attention": (Attention(), r"'1(\.attend)?' \("),
    "gate": (Gate(), r"'1' \(Gate\)"),
    "positions": (Positions(), r"'1' \(Positions\) \(mul\) along axis 1"),
    "checkers": (Checkers(), r"'1' \(Checkers\)"),
    "swallow": (Swallow(), r"'1' \(Swallow\)"),
    "shrunk": (Shrunk(), r"'1' \(Shrunk\)"),
    "circular padding": (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        r"'1' \(Conv2d\)",
    ),
    "dropout": (nn.Dropout(0.5).train(), r"no layer .* random, got '1' \(Dropout\)"),
    "global pooling": (
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        r"must be a feature map",
    ),
}


@pytest.mark.parametrize("name", NO_TILES)
def test_a_layer_that_cannot_be_cut_is_refused_by_name(name):
    layer, text = NO_TILES[name]
    with pytest.raises(ValueError, match=text):
        footprint(nn.Sequential(nn.Conv2d(1, 2, 3), layer), 1)


def test_a_zero_head_does_not_hide_a_layer_that_cannot_be_cut():
    head = nn.Conv2d(2, 1, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    with pytest.raises(ValueError, match=r"'1' \(Upsample\)"):
        footprint(nn.Sequential(nn.Conv2d(1, 2, 3), up, head), 1)


def test_faint_signals_do_not_hide_it_either():
    with pytest.raises(ValueError, match=r"resize' \(Resize\)"):
        footprint(UNet(1, 1, features=[4, 8], align_corners=True, norm=None), 1)


def test_every_message():
    with pytest.raises(ValueError, match=r"spatial_dims must be one of \[1, 2, 3\], got 4"):
        footprint(nn.Identity(), 1, 4)
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        footprint(nn.Identity(), 0)
    with pytest.raises(ValueError, match=r"return tensors only, got \['int'\]"):
        footprint(Count(), 1)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(1, 1), nn.Conv2d(1, 1, 1)])
def test_a_module_that_sees_one_pixel_has_no_halo(module):
    assert footprint(module, 1).halo == ((0, 0), (0, 0))
