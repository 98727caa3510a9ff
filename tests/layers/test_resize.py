"""Resampling without the checks of `F.interpolate` returns the same values."""

import pytest
import torch

from neurenix_ms.layers.resize import MODES, Resize


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unchecked_resampling_is_equal_to_the_last_bit(dims, mode, align_corners):
    if mode == "bicubic" and dims != 2:
        pytest.skip("bicubic is for images")
    resize = Resize(mode, dims, align_corners)
    x = torch.randn(2, 3, *(5, 4, 3)[:dims], requires_grad=True)
    for size in ((9, 8, 7), (3, 2, 1)):
        y, wanted = (
            make(x, size[:dims]) for make in (resize.resampled_unchecked, resize.resampled)
        )
        assert torch.equal(y, wanted)
        grad, expected = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, wanted))
        assert torch.equal(grad, expected)
