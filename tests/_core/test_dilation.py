"""Convolution tap by tap equals that of torch, and takes fewer products."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurenix_ms._core import dilation as module
from neurenix_ms._core.dilation import is_mostly_padding, tap_by_tap
from neurenix_ms._core.dims import CONVOLVE
from neurenix_ms.meter import count_flops

AXES = st.lists(
    st.tuples(st.integers(1, 7), st.sampled_from([1, 3]), st.integers(1, 8)), min_size=1, max_size=3
)


def arguments(size, kernel, batch=2, channels=(2, 3)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*channels[::-1], *kernel, dtype=torch.float64, requires_grad=True)
    return x, weight


def plainly(x: Tensor, weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    y: Tensor = CONVOLVE[x.ndim - 2](x, weight, None, 1, padding, dilation)
    return y


@given(axes=AXES, batch=st.integers(0, 3), piece=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_equal_to_torch_with_its_gradients(axes, batch, piece):
    size, kernel, dilation = zip(*axes, strict=True)
    x, weight = arguments(size, kernel, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        got, wanted = tap_by_tap(x, weight, dilation), plainly(x, weight, dilation)
        torch.testing.assert_close(got, wanted)
        seed = torch.randn_like(wanted)
        for ours, theirs in zip(
            *(torch.autograd.grad(y, (x, weight), seed) for y in (got, wanted)), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


def test_derivatives_of_both_orders_and_forward():
    tensors = arguments((3, 4), (3, 3), channels=(1, 2))

    def way(x: Tensor, weight: Tensor) -> Tensor:
        return tap_by_tap(x, weight, (2, 3))

    assert torch.autograd.gradcheck(way, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(way, tensors)


def test_functions_over_a_batch():
    x, weight = arguments((5, 6), (3, 3))
    images = torch.randn(4, *x.shape, dtype=torch.float64)
    wanted = torch.stack([plainly(y, weight, (3, 4)) for y in images])
    got = torch.func.vmap(tap_by_tap, in_dims=(0, None, None))(images, weight, (3, 4))
    torch.testing.assert_close(got, wanted)

    def loss(way, weight: Tensor, x: Tensor) -> Tensor:
        return way(x, weight, (3, 4)).square().sum()

    slope = torch.func.grad(loss, argnums=1)
    per_image = torch.func.vmap(slope, in_dims=(None, None, 0))
    torch.testing.assert_close(
        per_image(tap_by_tap, weight, images), per_image(plainly, weight, images)
    )


def test_only_products_without_padding_are_taken():
    x, weight = arguments((32, 32), (3, 3))
    taken, all_of_them = (
        count_flops(lambda way=way: way(x, weight, (24, 24))) for way in (tap_by_tap, plainly)
    )
    assert taken == all_of_them / 4


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda x, w: (x, w, (24, 24)), True),
        (lambda x, w: (x, w, (4, 4)), False),  # few taps read padding
        (lambda x, w: (x[:, :, :4, :4], w, (3, 3)), False),  # too small to gain anything
        (lambda x, w: (x.double(), w.double(), (24, 24)), False),
        (lambda x, w: (x.to(memory_format=torch.channels_last), w, (24, 24)), False),
        (lambda x, w: (x.to("meta"), w.to("meta"), (24, 24)), False),
        (lambda x, w: (x[:0, :, :0], w, (24, 24)), False),
    ],
)
def test_where_it_is_used(change, wanted):
    x, weight = torch.zeros(1, 64, 32, 32), torch.zeros(64, 64, 3, 3)
    assert is_mostly_padding(*change(x, weight)) == wanted


def test_not_used_under_autocast():
    x, weight = torch.zeros(1, 64, 32, 32), torch.zeros(64, 64, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_mostly_padding(x, weight, (24, 24))
        assert F.conv2d(x, weight).dtype == torch.bfloat16
