"""Memory, FLOPs and parameters against values counted by hand."""

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from neurenix_ms import meter
from neurenix_ms.meter import (
    LiveStorages,
    count_flops,
    format_parameter_table,
    parameter_table,
    peak_resident_bytes,
    peak_tensor_bytes,
)

KIB = 1024
X = torch.ones(256)  # one KiB


def freed_on_the_way() -> None:
    a = torch.ones(1024)
    del a
    b = torch.ones(512)
    c = torch.ones(512)
    del b, c


def in_a_list() -> None:
    maps = [X.exp() for _ in range(5)]
    maps.clear()
    maps.append(X.exp())


def backward() -> None:
    x = X.clone().requires_grad_()
    y = x.exp().sin()  # exp stores its result and sin its input, which are the same tensor
    y.backward(X)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: X.exp(), KIB),
        (lambda: X.exp().sin().cos(), 2 * KIB),
        (lambda: X.view(16, 16)[1:].T, 0),
        (lambda: X.exp().view(16, 16).expand(3, 16, 16)[1:].mT, KIB),
        (lambda: X.clone().add_(1).mul_(2), KIB),
        (lambda: torch.empty(256), KIB),
        (lambda: X.double(), 2 * KIB),
        (lambda: X.split(128), 0),
        (lambda: torch.stack([X, X]).unbind(), 2 * KIB),
        (freed_on_the_way, 4 * KIB),
        (in_a_list, 5 * KIB),
        (lambda: None, 0),
    ],
)
def test_the_peak_is_the_one_counted_by_hand(call: Callable[[], object], expected: int):
    assert peak_tensor_bytes(call) == expected


def test_in_place_work_on_an_outer_tensor_is_free():
    outer = torch.ones(256)
    assert peak_tensor_bytes(lambda: outer.add_(1)) == 0


def test_freeing_an_outer_tensor_hides_nothing():
    outer = [torch.ones(256)]

    def call() -> None:
        y = outer[0].exp()
        outer.clear()
        del y

    assert peak_tensor_bytes(call) == KIB


def test_a_backward_pass_inside_the_call_is_counted():
    # alive at once: x, exp(x), sin(exp(x)), cos(exp(x)) and its product with the gradient
    assert peak_tensor_bytes(backward) == 5 * KIB


def test_what_a_graph_keeps_is_counted():
    x = torch.ones(256, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = y.exp()
        return y

    assert peak_tensor_bytes(forward) == 10 * KIB
    with torch.no_grad():
        assert peak_tensor_bytes(forward) == 2 * KIB


def test_checkpointing_lowers_the_peak_and_raises_the_flops():
    layers = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8)))
    x = torch.ones(1, 4, 32, 32, requires_grad=True)

    def plain() -> None:
        layers(x).sum().backward()

    def segments() -> None:
        y = x
        for start in range(0, 8, 4):
            y = checkpoint(layers[start : start + 4], y, use_reentrant=False)
        y.sum().backward()

    plain()  # the gradients of the parameters are there from now on
    assert peak_tensor_bytes(segments) < peak_tensor_bytes(plain)
    assert count_flops(segments) > count_flops(plain)


def test_two_runs_and_other_thread_counts_give_the_same_bytes():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3))
    x = torch.ones(2, 3, 32, 32)

    def step() -> None:
        net.zero_grad()
        net(x).sum().backward()

    threads = torch.get_num_threads()
    peaks = [peak_tensor_bytes(step), peak_tensor_bytes(step)]
    torch.set_num_threads(2)
    peaks.append(peak_tensor_bytes(step))
    torch.set_num_threads(threads)
    assert len(set(peaks)) == 1


def test_an_error_inside_the_call_comes_through():
    with pytest.raises(ZeroDivisionError):
        peak_tensor_bytes(lambda: 1 / 0)
    assert peak_tensor_bytes(lambda: X.exp()) == KIB


def test_flops_of_a_convolution_are_two_per_weight_and_output_pixel():
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = torch.ones(2, 3, 7, 9)
    forward = 2 * (3 * 3 * 3) * (2 * 5 * 7 * 9)
    assert count_flops(lambda: conv(x)) == forward
    assert count_flops(lambda: conv(x).sum().backward()) == 2 * forward  # weight, not input
    assert count_flops(lambda: nn.functional.max_pool2d(x, 2)) == 0


def test_the_table_lists_parameters_in_the_order_of_registration():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    expected = [("0.weight", 216), ("0.bias", 8), ("1.weight", 8), ("1.bias", 8), ("total", 240)]
    assert parameter_table(model) == expected
    assert parameter_table(nn.ReLU()) == [("total", 0)]


def test_a_shared_parameter_is_counted_once():
    layer = nn.Linear(2, 2)
    assert parameter_table(nn.Sequential(layer, layer))[-1] == ("total", 6)


def test_the_text_has_a_line_per_parameter_and_equal_widths():
    lines = format_parameter_table(nn.Linear(1000, 1000)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["weight", "1,000,000"]
    assert lines[-1].split() == ["total", "1,001,000"]
    assert format_parameter_table(nn.ReLU()).splitlines()[-1].split() == ["total", "0"]


def test_a_copy_on_write_is_counted_when_it_is_written():
    x = torch.zeros(256)

    def read():
        return torch._lazy_clone(x).sum()

    def write():
        copied = torch._lazy_clone(x)
        copied.add_(1)
        return copied.sum()

    def write_original():
        made = x + 1
        copied = torch._lazy_clone(made)
        made.add_(1)
        return copied.sum()

    def outlive():
        made = x + 1
        copied = torch._lazy_clone(torch._lazy_clone(made))
        del made
        copied.add_(1)  # the last of them takes the memory over
        return copied + 1

    assert peak_tensor_bytes(read) == 4
    assert peak_tensor_bytes(write) == 1024 + 4
    assert peak_tensor_bytes(write_original) == 2048 + 4
    assert peak_tensor_bytes(outlive) == 2048


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_resident_memory_grows_by_what_is_written():
    measured = peak_resident_bytes(lambda: torch.ones(16 * 2**20))  # 64 MiB
    if measured is not None:
        assert measured == pytest.approx(64 * 2**20, rel=0.05)


def test_resident_memory_is_none_where_it_cannot_be_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meter.sys, "platform", "darwin")
    assert peak_resident_bytes(lambda: None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 1, 3, 2), (0, 3, 1, 2)])
def test_batch_norm_without_memory_has_the_shapes_of_torch(dtype, training, order):
    with FakeTensorMode():
        x = torch.empty(2, 3, 3, 3, dtype=dtype).permute(order)
        moments = [torch.empty(3, dtype=dtype) for _ in range(4)]
        call = partial(torch.native_batch_norm, x, *moments, training, 0.1, 1e-5)
        wanted = call()
        with LiveStorages(of_shapes=True) as live:
            got = call()
    assert live.peak == sum(result.nbytes for result in wanted)
    for a, b in zip(wanted, got, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
