"""Coarse-to-fine networks and their volumes against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes_for import dims_and_sizes
from torch import nn

from neurenix_ms import enable_gradient_checkpointing
from neurenix_ms.layers.resize import doubled
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.msnet import MSNet, coarsen, random_volume, scale_masks
from neurenix_ms.training import MultiScaleLoss


def small(**options):
    return MSNet(**{"num_scales": 3, "num_filters": 1, "filter_growth": 2} | options)


@given(dims_and_sizes(1, 12), st.integers(1, 4))
def test_every_scale_keeps_the_sum_of_the_array(shape, num_scales):
    dims, size = shape
    x = torch.rand(2, 1, *size, dtype=torch.float64)
    for level, y in enumerate(reversed(coarsen(x, num_scales))):
        torch.testing.assert_close(y.sum() * 2 ** (dims * level), x.sum())


@given(dims_and_sizes(1, 12))
def test_a_masked_upsampling_keeps_the_coarse_mean(shape):
    _, size = shape
    x = (torch.rand(1, 1, *size, dtype=torch.float64) < 0.4).double()
    masks = scale_masks(x, 3)
    coarse = coarsen(x, 3)[0]
    value = torch.rand_like(coarse) * (coarse > 0)
    fine = value
    for mask in masks[:2]:
        fine = doubled(fine) * mask
    torch.testing.assert_close(coarsen(fine, 3)[0], value)
    assert ((fine > 0) <= (masks[-1] > 0)).all()
    assert torch.equal(masks[-1][(..., *(slice(n) for n in size))], x)


@given(dims_and_sizes(5, 10), st.integers(1, 2))
def test_a_prediction_has_the_size_of_its_array(shape, num_features):
    dims, size = shape
    model = small(spatial_dims=dims, num_features=num_features).eval()
    assert model.predict(torch.rand(2, num_features, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_forward_pass_is_the_published_one(dims):
    model = small(spatial_dims=dims)
    x = (torch.rand(2, 1, *(16, 8, 12)[:dims]) < 0.6).float()
    scales, masks = coarsen(x, 3), scale_masks(x, 3)
    y = [model.stages[0](scales[0])]
    for k in (1, 2):
        u = doubled(y[-1]) * masks[k - 1]
        y.append(model.stages[k](torch.cat([scales[k], u], 1)) + u)
    for ours, expected in zip(model(x), y, strict=True):
        assert torch.equal(ours, expected)
    unmasked = model(scales)
    assert not torch.equal(unmasked[-1], y[-1])


def test_a_stage_is_written_as_published():
    stage = MSNet(num_scales=1, num_filters=3).stages[0]
    norms = [layer.norm for layer in stage.layers]
    assert all(isinstance(norm, nn.InstanceNorm3d) and not norm.affine for norm in norms[:4])
    assert isinstance(norms[4], nn.Identity)
    assert all(isinstance(layer.act, nn.CELU) for layer in stage.layers)


def test_a_solid_volume_has_zero_output_where_masked_and_no_nan_elsewhere():
    x = torch.zeros(1, 1, 8, 8, 8)
    assert torch.equal(small(mask_output=True).predict(x), x)
    assert small().predict(x).isfinite().all()


def test_samples_of_a_batch_do_not_mix():
    model = small().double()
    x = (torch.rand(2, 1, 8, 8, 8) < 0.5).double()
    torch.testing.assert_close(model.predict(x)[:1], model.predict(x[:1]))


def test_checkpointing_gives_equal_gradients_for_less_memory():
    model = small(num_filters=4)
    x = random_volume(32, 3)[-1]
    grads, peaks = [], []
    for on in (False, True):
        model.zero_grad()

        def step(on=on):
            with enable_gradient_checkpointing(on):
                y = model(x)
            sum(a.square().sum() for a in y).backward()

        peaks.append(peak_tensor_bytes(step))
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert peaks[1] < 0.75 * peaks[0]


def test_gradients_are_right():
    model = MSNet(2, 1, 2, spatial_dims=2, num_layers=2).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64).requires_grad_()
    scales = coarsen(x.detach(), 2)
    scales = [s.requires_grad_() for s in scales]
    assert torch.autograd.gradcheck(lambda *s: tuple(model(list(s))), scales)


def test_the_summary_is_printed_once(capsys):
    model = small(summary=True)
    model.predict(torch.rand(1, 1, 8, 8, 8))
    printed = capsys.readouterr().out
    assert printed.count("total") == 1


def test_random_volumes_are_half_pores_and_can_be_repeated():
    volume = random_volume(32, 2, generator=torch.Generator().manual_seed(1))
    again = random_volume(32, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(volume[-1], again[-1])
    assert set(volume[-1].unique().tolist()) == {0.0, 1.0}
    assert 0.45 < volume[-1].mean() < 0.55


def test_a_masked_loss_depends_on_pixels_in_the_mask_only():
    target = torch.randn(2, 1, 8, 8)
    outputs = [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 8, 8)]
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    ruined = target.clone()
    ruined[..., 4:] = 1e6
    loss = MultiScaleLoss(mask=mask)
    torch.testing.assert_close(loss(outputs, target), loss(outputs, ruined))
    expected = target[..., :4].square().mean() / target[..., :4].var()
    torch.testing.assert_close(loss.per_scale(outputs, target)[1], expected)
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MSNet(0), "num_scales must be at least 1, got 0"),
        (lambda: MSNet(num_filters=0), "num_filters must be at least 1, got 0"),
        (lambda: MSNet(spatial_dims=4), "spatial_dims must be one of .*, got 4"),
        (lambda: small()(random_volume(8, 2)), "expected 3 scales, got 2"),
        (
            lambda: small()(torch.zeros(1, 2, 8, 8, 8)),
            r"scale 0 must have 1 channels and 3 spatial axes, got shape \(1, 2, 2, 2, 2\)",
        ),
        (
            lambda: small()([torch.zeros(1, 1, n, n, n) for n in (2, 4, 6)]),
            r"scale 2 needs batch 1 and size \(8, 8, 8\), got shape \(1, 1, 6, 6, 6\)",
        ),
        (
            lambda: small()(random_volume(8, 3), random_volume(8, 3)[:1]),
            "expected 3 masks, one per upsampling and the pores, got 1",
        ),
        (
            lambda: small()(random_volume(8, 3), random_volume(8, 3)),
            r"mask 0 must have 1 channel and size \(4, 4, 4\), got shape \(1, 1, 2, 2, 2\)",
        ),
        (
            lambda: small().predict(torch.zeros(1, 1, 4, 4, 4)),
            r"one pixel in the smallest feature map, got batch size 1 and size \(1, 1, 1\)",
        ),
        (
            lambda: small().predict(torch.zeros(1, 1, 8, 8, 8), 0),
            "tile_size must be at least 1 .*, got 0",
        ),
        (lambda: small().predict(torch.zeros(1, 2, 8, 8, 8), 4), "channels"),
        (lambda: coarsen(torch.zeros(1, 1, 8), 0), "num_scales must be at least 1, got 0"),
        (
            lambda: coarsen(torch.zeros(8, 8), 2),
            "number of spatial axes of x must be one of .*, got 0",
        ),
        (lambda: random_volume(0, 2), "size must be at least 1, got 0"),
        (lambda: MultiScaleLoss("lp"), "loss must be one of .*, got 'lp'"),
        (lambda: MultiScaleLoss(normalize=0), "normalize must be above 0, got 0"),
        (lambda: MultiScaleLoss(normalize="max"), "normalize must be one of .*, got 'max'"),
        (
            lambda: MultiScaleLoss()([torch.zeros(1, 1, 4)], [torch.zeros(1, 1, 4)] * 2),
            "expected 1 targets, one per output, got 2",
        ),
        (
            lambda: MultiScaleLoss()([torch.zeros(1, 1, 4)], torch.zeros(1, 1, 8)),
            r"target 0 must have the shape of its output \(1, 1, 4\), got \(1, 1, 8\)",
        ),
    ],
)
def test_invalid_input_raises_a_specific_message(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(("dims", "size"), [(2, (61, 80)), (3, (37, 29, 26))])
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("mask_output", [True, False])
def test_prediction_in_tiles_is_that_of_whole_stages(dims, size, norm, mask_output):
    model = MSNet(
        3, 2, 1, spatial_dims=dims, norm=norm, mask_output=mask_output, out_channels=2
    ).double()
    x = (torch.rand(2, 2, *size, dtype=torch.float64) - 0.3).clamp(min=0)
    whole, tiled = model.predict(x), model.predict(x, tile_size=12)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 1e-10 * whole.std()


@pytest.mark.slow
def test_large_arrays_are_predicted_in_the_memory_of_their_fields():
    model, x = MSNet(num_scales=3, num_filters=1), torch.rand(1, 1, 160, 160, 160)
    field = x.nbytes
    peak = peak_tensor_bytes(lambda: model.predict(x, tile_size=32))
    assert peak < 2 * field  # the result, all coarser ones, and a tile
    assert peak_tensor_bytes(lambda: model.predict(x)) > 5 * field
