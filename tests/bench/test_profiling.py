"""Timelines of live tensors."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from neurenix_ms import UNet
from neurenix_ms.bench import profile_memory
from neurenix_ms.bench.profiling import BACKWARD, OUTSIDE, MemoryProfile, Moment
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.msnet import MSNet, coarsen, scale_masks

TAG = "{http://www.w3.org/2000/svg}"


class Chain(nn.Module):
    """Three maps of one KiB, of which two are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Tanh(), nn.Sigmoid(), nn.Tanh()

    def forward(self, x):
        return self.third(self.second(self.first(x))) + 1


def test_bytes_belong_to_the_module_that_made_them():
    profile = profile_memory(Chain(), torch.ones(256))
    assert [(m.module, m.operator, m.live) for m in profile.moments] == [
        ("first", "tanh", 1024),
        ("second", "sigmoid", 2048),
        ("third", "tanh", 2048),
        (OUTSIDE, "add", 2048),
    ]
    assert profile.peak == 2048
    assert profile.at_peak == {"first": 1024, "second": 1024}
    assert str(profile).splitlines() == [
        "2 KiB at the peak, after sigmoid in second",
        "  allocated by      alive",
        "  first (Tanh)      1 KiB",
        "  second (Sigmoid)  1 KiB",
    ]


def test_the_peak_is_that_of_the_meter():
    model = UNet(1, 1, [4, 8], remember=False)
    x = torch.randn(2, 1, 16, 16)
    profile = profile_memory(model, x, train=True)

    def step() -> None:
        model(x).square().mean().backward()
        model.zero_grad()

    assert profile.peak == pytest.approx(peak_tensor_bytes(step), rel=0.01)
    assert sum(profile.at_peak.values()) == profile.peak
    assert profile.moments[-1].module == BACKWARD
    assert all(p.grad is None for p in model.parameters())


def test_faster_paths_are_taken_as_in_a_plain_call():
    model = MSNet(2).eval()
    x = (torch.rand(1, 1, 16, 16, 16) < 0.5).float()
    inputs = coarsen(x, 2), scale_masks(x, 2)
    with torch.no_grad():
        peak = peak_tensor_bytes(lambda: model(*inputs))
    assert profile_memory(model, inputs).peak == peak


def test_modules_are_called_as_before_after_an_error():
    call = nn.Module._call_impl
    with pytest.raises(RuntimeError):
        profile_memory(nn.Linear(2, 2), torch.ones(3))
    assert nn.Module._call_impl is call


def test_the_picture_has_a_segment_per_module_and_their_highest_points():
    profile = profile_memory(Chain(), torch.ones(256))
    image = ElementTree.fromstring(profile.picture())[0]
    words = [text.text for text in image.iter(f"{TAG}text")]
    assert "2  second (Sigmoid)" in words
    assert words.count("2 KiB") == 3
    points = next(image.iter(f"{TAG}polygon")).attrib["points"].split()
    assert len(points) == 2 + 2 * 4
    assert profile._repr_html_() == profile.picture()


def test_many_modules_are_shown_by_the_outer_ones():
    moments = [Moment(f"outer.{i}.inner.{j}", "add", 8) for i in range(6) for j in range(9)]
    names = [name for name, _ in MemoryProfile(moments).segments()]
    assert names == [f"outer.{i}.inner" for i in range(6)]
    deep = [Moment(f"{i}.a", "add", 8) for i in range(40)]
    assert [name for name, _ in MemoryProfile(deep).segments()] == [OUTSIDE]
    assert len(str(MemoryProfile(moments, {m.module: 8 for m in moments})).splitlines()) == 15


def test_nothing_is_a_profile_too():
    assert str(MemoryProfile()) == "0 B at the peak"
    assert "<svg" in MemoryProfile().picture()
