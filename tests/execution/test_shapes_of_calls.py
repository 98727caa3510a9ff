"""Replacements that return a tensor of the right shape, compared with the functions of torch."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from neurenix_ms._core.convolution import conv3d
from neurenix_ms.execution.plan.observation import without_memory
from neurenix_ms.execution.plan.shapes import of_its_shape

SIZES = (9, 8, 7)


def both(function, *args, **kwargs):
    """Return the result of torch, and that of the replacement on tensors without memory."""
    with without_memory(torch.nn.Module()):
        replaced = of_its_shape(function)(*args, **kwargs)
    return function(*args, **kwargs), replaced


def assert_alike(wanted, found):
    assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(dims, transposed):
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    function = getattr(F, name)
    x = torch.randn(2, 4, *SIZES[:dims])
    for stride, padding, dilation, kernel in product((1, 2), (0, 1), (1, 2), (1, 2, 3)):
        for groups in (1, 2):
            shape = (4, 8 // groups) if transposed else (8, 4 // groups)
            weight = torch.randn(*shape, *(kernel,) * dims)
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            assert_alike(*both(function, x, weight, torch.zeros(8), **options))
            assert_alike(*both(function, x[0], weight, None, **options))


def test_convolutions_with_padding_by_name_and_input_by_name():
    x, weight = torch.randn(1, 2, 9, 8, 7), torch.randn(3, 2, 3, 5, 1)
    assert_alike(*both(F.conv3d, x, weight, padding="same"))
    assert_alike(*both(conv3d, x, weight, None, 1, 1))
    assert_alike(*both(F.conv3d, input=x.double(), weight=weight.double()))


def test_a_convolution_under_autocast_has_the_dtype_of_autocast():
    x, weight = torch.randn(1, 2, 9, 8), torch.randn(3, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = both(F.conv2d, x, weight)
    assert found.dtype == wanted.dtype == torch.bfloat16


def test_a_convolution_of_other_channels_is_refused():
    with (
        pytest.raises(RuntimeError, match="to have 2 channels, but got 3"),
        without_memory(torch.nn.Module()),
    ):
        of_its_shape(F.conv2d)(torch.empty(1, 3, 8, 8), torch.empty(4, 2, 3, 3))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{"size": 5}, {"scale_factor": 2}, {"scale_factor": 1.7}])
def test_resizing(dims, options):
    x = torch.randn(2, 4, *SIZES[:dims])
    linear = ("linear", "bilinear", "trilinear")[dims - 1]
    for mode in ("nearest", "nearest-exact", "area", linear, *(["bicubic"] if dims == 2 else [])):
        assert_alike(*both(F.interpolate, x, mode=mode, **options))
        if mode in (linear, "bicubic"):
            assert_alike(*both(F.interpolate, x, **options, mode=mode, align_corners=True))
        if "size" not in options and mode != "area":
            assert_alike(*both(F.interpolate, x, **options, mode=mode, recompute_scale_factor=True))
    assert_alike(*both(F.interpolate, x, SIZES[:dims][::-1]))


@pytest.mark.parametrize(
    ("function", "further"),
    [
        (F.batch_norm, (torch.zeros(4), torch.ones(4))),
        (F.batch_norm, (torch.zeros(4), torch.ones(4), None, None, True)),
        (F.instance_norm, ()),
        (F.group_norm, (2, torch.ones(4))),
        (F.layer_norm, ((4, 9, 8),)),
        (torch.layer_norm, ([8],)),
    ],
)
def test_normalizations(function, further):
    assert_alike(*both(function, torch.randn(2, 4, 9, 8), *further))


def test_other_functions_stay_as_they_are():
    assert of_its_shape(torch.relu) is torch.relu
