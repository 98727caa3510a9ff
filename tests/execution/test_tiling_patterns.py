"""Convolutions that pass on the places of NaN only; what is found by them, and how it is announced."""

import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms.execution import TiledModel, footprint
from neurenix_ms.execution.plan.patterns import nan_pattern

FUNCTIONS = [F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d]
FUNCTIONS += [F.conv_transpose3d]


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_places_of_nan_are_those_of_the_convolution(number, groups):
    function, dims, transposed = FUNCTIONS[number], 1 + number % 3, number > 2
    x = torch.randn(2, 4, *(9, 8, 7)[:dims])
    x[0, 1, 3] = x[1, 3, 5] = torch.nan
    for stride, padding, dilation, kernel in product((1, 2), (0, 1), (1, 2), (1, 2, 3)):
        shape = (4, 8 // groups) if transposed else (8, 4 // groups)
        weight = torch.randn(*shape, *(kernel,) * dims)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        for one in (x, x[0]):
            wanted = function(one, weight, torch.zeros(8), **options)
            found = nan_pattern(function)(one, weight, torch.zeros(8), **options)
            assert torch.equal(found.isnan(), wanted.isnan())


def test_places_of_nan_are_those_of_a_linear_layer():
    x, weight = torch.randn(2, 5, 3), torch.randn(4, 3)
    x[0, 1, 2] = torch.nan
    found, wanted = nan_pattern(F.linear)(x, weight), F.linear(x, weight)
    assert torch.equal(found.isnan(), wanted.isnan())


def test_other_functions_stay_as_they_are():
    assert nan_pattern(torch.relu) is torch.relu


class Normed(nn.Module):
    """Divides by the contrast around a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, 3, 1, 1)
        return (x - mean) / (F.avg_pool2d(x * x, 3, 1, 1) - mean * mean).sqrt()


def test_layers_that_divide_by_a_contrast_are_planned():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Normed()).double()
    x = torch.randn(1, 1, 40, 36, dtype=torch.float64)
    wanted = model(x)
    assert (TiledModel(model, 16)(x) - wanted).abs().max() < 1e-8 * wanted.std()


def test_asking_leaves_the_random_numbers_as_they_are():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 1, 3))
    state = torch.get_rng_state()
    footprint(model, 1)
    assert torch.equal(torch.get_rng_state(), state)


class Aside(nn.Module):
    """Computes a mean of all pixels that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.head(y)
        return y


def test_a_layer_that_sees_everything_does_no_harm_where_nothing_depends_on_it():
    assert footprint(Aside(), 1).halo == ((1, 1), (1, 1))


def test_a_long_search_is_announced_once_in_a_while(monkeypatch, caplog):
    monkeypatch.setattr("neurenix_ms.execution.progress.FIRST_MESSAGE", 0.0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    TiledModel(model, 16)(torch.zeros(1, 1, 40, 36))
    said = [r.getMessage() for r in caplog.records if r.name == "neurenix_ms"]
    assert said
    assert "still planning how Sequential runs in tiles" in said[0]
    assert len(said) < 10
    caplog.clear()
    TiledModel(model, 16)(torch.zeros(1, 1, 40, 36))
    assert not caplog.records


@pytest.mark.slow
def test_the_announcement_is_seen_where_no_logging_is_set_up(tmp_path):
    code = (
        "import torch; import neurenix_ms.execution.progress as p; p.FIRST_MESSAGE = 0.0; "
        "from neurenix_ms.execution import footprint; footprint(torch.nn.Conv2d(1, 1, 3), 1)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "still planning how Conv2d runs in tiles" in run.stderr


@pytest.mark.slow
def test_a_search_keeps_to_the_memory_limit(monkeypatch):
    deep = nn.Sequential(*(nn.Conv2d(1, 1, 9, padding=4) for _ in range(12)))
    monkeypatch.setattr(sys.modules["neurenix_ms.execution.plan.footprint"], "SMALL_PROBE", 1)
    words = r"an input of size \(94, 44\), .* Sequential is measured, \d+ bytes, got 20000; raise"
    with pytest.raises(ValueError, match=words):
        TiledModel(deep, 16, whole=(), memory_limit=20_000)(torch.zeros(1, 1, 96, 96))
    TiledModel(deep, 16, whole=(), memory_limit=10**9)(torch.zeros(1, 1, 96, 96))
